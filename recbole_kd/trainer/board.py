"""TensorBoard's runs: one for each role (teacher, student, baseline) of a run, in one folder."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Optional

import recbole.trainer.trainer as recboles
from recbole.utils import get_tensorboard
from torch.utils.tensorboard import SummaryWriter

from recbole_kd.cluster.group import Nothing

__all__ = ["group_name", "new_stamp", "tensorboard_run"]


def new_stamp() -> str:
    """A name for a run's files: its start time and process."""
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"


def group_name(logger: logging.Logger) -> str:
    """The name of a run of the program, which groups teacher, student and baseline; it is the log file's name."""
    files = (str(handler.baseFilename) for handler in logger.handlers if hasattr(handler, "baseFilename"))
    return next((os.path.basename(file).split(".")[0] for file in files), f"model-{new_stamp()}")


@contextmanager
def tensorboard_run(role: Optional[str]) -> Iterator[None]:
    """Inside the block a trainer writes to a new folder, ``log_tensorboard/LOG/ROLE``.

    RecBole names a run by the log file only, so teacher, student and baseline would be one run. RecBole's own logger
    for Weights & Biases is switched off, because :mod:`recbole_kd.trainer.trackers` logs more.

    Args:
        role: such as "student"; None for a trainer that only evaluates and writes nothing.
    """
    usual, wandb_logger, ensure_dir = recboles.get_tensorboard, recboles.WandbLogger, recboles.ensure_dir

    def named(logger: logging.Logger) -> Any:
        if role is None:
            return Nothing()
        group = group_name(logger)
        numbered = (role if number == 1 else f"{role}-{number}" for number in itertools.count(1))
        folders = (os.path.join("log_tensorboard", group, one) for one in numbered)
        return SummaryWriter(next(folder for folder in folders if not os.path.isdir(folder)))

    if usual is get_tensorboard:  # otherwise this is one of several processes that writes nothing
        recboles.get_tensorboard = named
    recboles.WandbLogger = lambda config: Nothing()
    if role is None:
        recboles.ensure_dir = lambda folder: None  # the constructor would make the folder of checkpoints
    try:
        yield
    finally:
        recboles.get_tensorboard, recboles.WandbLogger, recboles.ensure_dir = usual, wandb_logger, ensure_dir
