"""Training of the student, and of the plain model with which it is compared."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recbole_kd.data.splits import Splits
from recbole_kd.errors import Interrupted
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.teacher.cache import Trained, train_or_fetch
from recbole_kd.text import counted

__all__ = ["resumable", "train_baseline", "train_student"]


def train_student(trainer: Any, loaders: Any, saved: bool = True) -> None:
    """Trains the student and keeps its best epoch by the validation split."""
    config = trainer.config
    bound = f"{'at most ' if loaders[1] is not None else ''}{counted(trainer.epochs, 'epoch')}"
    alone = "" if loaders[1] is not None else ", without a validation split"
    logging.getLogger().info(f"Training the student {config['model']} for {bound}{alone}")
    trainer.fit(*loaders[:2], saved=saved, show_progress=config["show_progress"])


@contextmanager
def resumable(trainer: Any) -> Iterator[None]:
    """If interrupted inside the block after a complete epoch, names the file from which training can resume."""
    try:
        yield
    except KeyboardInterrupt:
        if os.path.isfile(trainer.last_file):
            raise Interrupted(trainer.last_file) from None
        raise


def train_baseline(experiment: Experiment, splits: Splits) -> Trained | None:
    """The plain model of an experiment, from the cache or trained now."""
    return None if experiment.baseline is None else train_or_fetch(experiment.baseline, splits, "baseline")
