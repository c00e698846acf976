"""Time and memory of a training, estimated from a few of its steps (``--dry_run=true``)."""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import get_trainer, init_seed

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.evaluation.costs import peak_memory, reset_peak_memory
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.registry import models
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.needs import check_data
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.teacher.cache import Trained
from recbole_kd.text import counted, duration
from recbole_kd.trainer.kd_trainer import make_trainer
from recbole_kd.trainer.learner import optimizer_factory

__all__ = ["estimated"]

#: Steps measured for each model; the first one is a warm-up and is not counted.
STEPS = 4


def estimated(experiment: Experiment) -> list[str]:
    """A line for each model that would be trained: seconds per epoch, longest total time, and peak memory.

    A few real steps are made on the run's data, for each teacher and for the student with its distillers. The student's
    teachers are untrained. Time saved by teachers in the cache is not counted. Nothing is kept on disk.
    """
    config = experiment.settings
    if not Path(config["data_path"]).is_dir():
        return [f"no estimate, because the data of {config['dataset']} are missing"]
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        splits = load_splits(config)
        check_data(experiment, splits)
        with tempfile.TemporaryDirectory() as folder:
            experiment = experiment.variant(checkpoint_dir=folder)
            trained = [source.settings for source in experiment.teachers if source.settings is not None]
            return [*(_alone(own, splits) for own in trained), _student(experiment, splits)]
    finally:
        logging.disable(level)


def _without_steps(config: KDConfig) -> str:
    """The reason why a model's steps cannot be measured; empty if they can."""
    if not models()[config.resolved.backbone].gradient:
        return "a closed form, solved in one step"
    own_loop = get_trainer(config["MODEL_TYPE"], config["student"]) is not Trainer
    return "no estimate, because it has its own training loop" if own_loop else ""


def _alone(config: KDConfig, splits: Splits) -> str:
    """The line of a teacher."""
    name = f"teacher {config['model']}"
    if reason := _without_steps(config):
        return f"{name}: {reason}"
    init_seed(config["seed"], config["reproducibility"])
    train = make_loaders(config, splits)[0]
    model = build_model(config, splits.train)
    own = optimizer_factory(config, splits, model)
    return _line(name, make_trainer(config, model, role=None, optimizer_factory=own), train)


def _student(experiment: Experiment, splits: Splits) -> str:
    """The line of the student."""
    config = experiment.settings
    name = f"student {config['model']}"
    if reason := _without_steps(config):
        return f"{name}: {reason}"
    teacher = obtain_teacher(experiment, splits, _untrained) if experiment.teachers else None
    _, trainer, loaders = build_student(experiment, splits, teacher, role=None)
    return _line(name, trainer, loaders[0])


def _untrained(config: KDConfig, splits: Splits, role: str) -> Trained:
    """An untrained teacher; a step with it costs the same as with a trained one."""
    init_seed(config["seed"], config["reproducibility"])
    return Trained(config, build_model(config, splits.train), "", False, {"test_result": {}})


class _FirstSteps:
    """The first batches of a loader, and the seconds between them."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.seconds = loader, [0.0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.seconds = []
        for batch in itertools.islice(self.loader, STEPS):
            start = time.perf_counter()
            yield batch
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)


def _line(name: str, trainer: Any, train: Any) -> str:
    steps = _FirstSteps(train)
    reset_peak_memory()
    trainer._train_epoch(steps, trainer.start_epoch)
    epoch = statistics.median(steps.seconds[1:] or steps.seconds) * len(train)
    lasting = f"{epoch:.2g} s" if epoch < 99 else duration(epoch)
    return (
        f"{name}: about {lasting} per epoch of {len(train):,} steps, at most "
        f"{duration(epoch * trainer.epochs)} for {counted(trainer.epochs, 'epoch')} without evaluation; "
        f"peak memory {peak_memory() / 1e6:,.0f} MB"
    )
