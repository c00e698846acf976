"""The settings of the split: its parts, whether it needs times, and the part of a time."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch
from recbole.utils import ModelType
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.text import moment, unit_of

__all__ = ["is_ordered", "is_whole", "parts_asked_for", "parts_of_time", "reads_time"]


def is_ordered(config: Any) -> bool:
    """Whether the split or a graph of SEvo depends on time; then each interaction must have a time."""
    return bool(config["eval_args"]["order"] == "TO" or config["split_time"] is not None or config["sevo"])


def reads_time(config: Any) -> bool:
    """Whether the split or histories read times; then their column is read whatever ``load_col`` says."""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL or config["split_time"] is not None:
        return True
    return bool(config["eval_args"]["order"] == "TO" and not config["benchmark_filename"])


def parts_asked_for(config: Any) -> tuple[bool, bool]:
    """Whether there is a validation split, and whether there is a test split."""
    ((how, part),) = config["eval_args"]["split"].items()
    if is_whole(config):
        return False, False
    if config["split_time"] is not None:
        return len(_boundaries(config)) == 2, True
    if config["benchmark_filename"]:
        return True, True
    if how == "LS":
        return part != "test_only", part != "valid_only"
    return part[1] > 0, part[2] > 0


def is_whole(config: Any) -> bool:
    """Whether all interactions are for training: the split is [1, 0, 0], whatever the other settings of the split."""
    ((how, part),) = config["eval_args"]["split"].items()
    return how != "LS" and not any(part[1:])


def _boundaries(config: Any) -> list[Any]:
    times = config["split_time"]
    return list(times) if isinstance(times, (list, tuple)) else [times]


def parts_of_time(config: Any, times: Tensor) -> Tensor:
    """(rows,) the split of each row by ``split_time``, exactly: 0 training, 1 validation, 2 test.

    Raises:
        UserError: a date although the times are not dates, or a time that leaves a split empty.
    """
    low, high = times.min().item(), times.max().item()
    bounds = []
    for given in _boundaries(config):
        moment_given = moment(given)
        if isinstance(moment_given, datetime):
            unit = unit_of(high)
            if unit is None:
                raise UserError(
                    f"--split_time={given} is a date, but the times of {config['dataset']} are from "
                    f"{_shown(low)} to {_shown(high)}; give a number among them."
                )
            bound = moment_given.timestamp() * unit
        else:
            bound = float(moment_given or 0)
        if not low < bound <= high:
            raise UserError(
                f"--split_time={given} leaves a split empty: the times of {config['dataset']} are from "
                f"{_shown(low)} to {_shown(high)}; give one among them."
            )
        bounds.append(bound)
    found = torch.bucketize(times, torch.tensor(bounds, dtype=torch.float64), right=True).to(torch.int8)
    return found if len(bounds) == 2 else 2 * found


def _shown(time: float) -> str:
    """A time, with its date if it can be one."""
    unit = unit_of(time)
    date = "" if unit is None else f" ({datetime.fromtimestamp(time / unit, timezone.utc):%Y-%m-%d})"
    return f"{time:.15g}{date}"
