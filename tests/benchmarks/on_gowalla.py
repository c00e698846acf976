"""What the benchmarks of epochs share: Gowalla as a run loads it, and two kinds of steps that take turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, Union

import torch
from torch import Tensor

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.trainer.learner import fused_adam_exists

STUDENT, BATCH = 20, 2048


def load(
    model: str, data_path: Union[str, PathLike[str]], dataset: str = "gowalla", **settings: Any
) -> tuple[KDConfig, Splits, Any, list[str]]:
    """A plain student of d 20 with batches of 2,048: settings, splits, training loader, columns of a batch's triplets."""
    given = {
        "data_path": str(data_path),
        "checkpoint_dir": tempfile.mkdtemp(),
        "embedding_size": STUDENT,
        "train_batch_size": BATCH,
        "show_progress": False,
        "use_gpu": False,
        "distill": [],
        **settings,
    }
    config = KDConfig(model, dataset, config_dict=given)
    splits = Splits(config)
    item = config["ITEM_ID_FIELD"]
    return config, splits, make_loaders(config, splits)[0], [config["USER_ID_FIELD"], item, config["NEG_PREFIX"] + item]


def adam(*groups: Iterable[Tensor], fused: bool) -> torch.optim.Adam:
    """Adam over groups of parameters: RecBole's, or torch's fused one, which the trainer takes where there is one."""
    return torch.optim.Adam([{"params": list(group)} for group in groups], fused=fused and fused_adam_exists())


def in_turns(count: int, *steps: Callable[[], float]) -> tuple[float, ...]:
    """Medians of what steps of several kinds take, `count` or a few more of each, in turns of ten.

    The first two steps of a turn are not counted: they find the others' tables and moments in the caches.
    """
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(-(-count // 8)):
        for step, kept in zip(steps, times):
            kept += [step() for _ in range(10)][2:]
    return tuple(map(statistics.median, times))
