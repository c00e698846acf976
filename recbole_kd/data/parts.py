"""The settings of the split: its parts, whether it needs times, and the part of a time."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch
from recbole.utils import ModelType
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.text import moment, unit_of

__all__ = [
    *("held_out_users", "is_ordered", "is_whole", "reads_time"),
    *("parts_asked_for", "parts_of_time", "parts_of_users", "rows_of_parts"),
]


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
    if (held_out := held_out_users(config)) is not None:
        return held_out[0] > 0, held_out[1] > 0
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


def held_out_users(config: Any) -> list[float] | None:
    """How many users are held out for validation and for test, as shares or numbers; None: the split is another."""
    given = config["held_out_users"]
    return None if given is None or is_whole(config) else list(given)


def parts_of_users(config: Any, users: Tensor) -> Tensor:
    """(rows,) the part of each row: 0 of training users, 1 and 2 ranked for validation and test users, 3 their history.

    The protocol of Liang et al. (WWW 2018, section 4.1). Torch's global random state decides it. Users with one row are
    not held out, and each who is has a row of history and one to be ranked, at least.

    Args:
        users: (rows,) the user of each row.

    Raises:
        UserError: too few users.
    """
    users = users.long()
    counts = torch.bincount(users)
    able, everyone = (counts > 1).nonzero().squeeze(1), int((counts > 0).sum())
    asked = held_out_users(config) or []
    sizes = [int(one) if one >= 1 else round(one * everyone) for one in asked]
    if any(one and not size for one, size in zip(asked, sizes)) or sum(sizes) > min(len(able), everyone - 1):
        raise UserError(
            f"--held_out_users={asked} holds out {sizes[0]:,} and {sizes[1]:,} users, and {config['dataset']} has "
            f"{everyone:,}, {len(able):,} of them with two interactions or more; expected one at least where any are "
            "asked for, and one left to train on."
        )
    role = torch.zeros(len(counts), dtype=torch.int8)
    for part, drawn in zip((1, 2), able[torch.randperm(len(able))][: sum(sizes)].split(sizes)):
        role[drawn] = part
    order = torch.randperm(len(users))
    order = order[torch.argsort(users[order], stable=True)]
    place = torch.empty_like(users)
    place[order] = torch.arange(len(users)) - (counts.cumsum(0) - counts)[users[order]]
    # A share such as 0.7 of 10 is a whole number but for its last digits.
    history = (config["fold_in"] * counts.double() - 1e-9).ceil().long().clamp(min=1).minimum(counts - 1)
    parts = role[users]
    parts[(parts > 0) & (place < history[users])] = 3
    return parts


def rows_of_parts(part: Tensor) -> list[Tensor]:
    """The rows of training, validation and test by the part of each row (rows,); then of history, if there is any."""
    chosen = [part == 0, part == 1, part == 2, *([part % 3 == 0] if bool((part == 3).any()) else [])]
    return [rows.nonzero().squeeze(1) for rows in chosen]


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
