"""What the benchmarks of epochs share: Gowalla as a run loads it, and two kinds of steps that take turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from os import PathLike
from typing import Any, Union

from recbole_kd.config import KDConfig
from recbole_kd.data.splits import Splits
from recbole_kd.loaders import make_loaders

STUDENT, BATCH = 20, 2048


def load(model: str, data_path: Union[str, PathLike[str]], **settings: Any) -> tuple[KDConfig, Splits, Any, list[str]]:
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
    config = KDConfig(model, "gowalla", config_dict=given)
    splits = Splits(config)
    item = config["ITEM_ID_FIELD"]
    return config, splits, make_loaders(config, splits)[0], [config["USER_ID_FIELD"], item, config["NEG_PREFIX"] + item]


def in_turns(plain: Callable[[], float], distilled: Callable[[], float], count: int) -> tuple[float, float]:
    """Medians of what steps of two kinds take, `count` or a few more of each, in turns of ten.

    The first two steps of a turn are not counted: they find the other's tables and moments in the caches.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(-(-count // 8)):
        for step, kept in zip((plain, distilled), times):
            kept += [step() for _ in range(10)][2:]
    return statistics.median(times[0]), statistics.median(times[1])
