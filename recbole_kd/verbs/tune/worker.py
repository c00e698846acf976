"""What a worker process of the search does: it loads data and teacher once, then trains one trial after the other."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_kd.data.splits import Splits
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.values import merge, nest
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import AnyTeacher, obtain_teacher
from recbole_kd.trainer.trackers import GROUP


@dataclass(frozen=True)
class Task:
    """What all trials of a search share.

    Attributes:
        key: the content of the search, under which a worker keeps data and teacher.
        model, dataset: names.
        settings: the run that is tuned, nested; its paths are absolute, because workers run in folders of their own.
        draws: the settings of each trial by dotted name; trial n is the n-th, from 1.
        folder: where trials leave their checkpoints.
        threads: threads that torch may use in a trial.
    """

    key: str
    model: str
    dataset: str
    settings: Mapping[str, Any]
    draws: tuple[Mapping[str, Any], ...]
    folder: str
    threads: int

    def checkpoint(self, number: int) -> Path:
        """The file of a trial's best epoch; its state after the last whole epoch is in FILE-last.pth."""
        return Path(self.folder) / "trials" / f"{number:04d}.pth"

    def last(self, number: int) -> Path:
        """The file from which an interrupted trial goes on."""
        return Path(self.folder) / "trials" / f"{number:04d}-last.pth"

    def experiment(self, **settings: Any) -> Experiment:
        """The run that is tuned, with `settings` (by dotted name) over it."""
        return Experiment.of(self.model, self.dataset, given=merge(self.settings, nest(settings)))


#: Data and teacher by the task's key; of one search at a time.
_SHARED: dict[str, tuple[Splits, AnyTeacher | None]] = {}


def load_shared(task: Task, experiment: Experiment) -> tuple[Splits, AnyTeacher | None]:
    """Data and teacher of a search, loaded in this process when they are first asked for."""
    if task.key not in _SHARED:
        _SHARED.clear()
        splits = load_splits(experiment.settings)
        _SHARED[task.key] = splits, teacher_of(experiment, splits)
    return _SHARED[task.key]


def teacher_of(experiment: Experiment, splits: Splits) -> AnyTeacher | None:
    """The teacher of a run, where its distillers or its optimiser read one: from the cache, or trained now."""
    return obtain_teacher(experiment, splits) if experiment.teachers else None


def device_settings(gpus: list[Any] | None) -> dict[str, Any]:
    """Settings for the devices that Ray gave: RecBole would show every worker the GPU that its settings name.

    >>> device_settings([2]), device_settings([]), device_settings(None)
    ({'use_gpu': True, 'gpu_id': '2'}, {'use_gpu': False, 'gpu_id': ''}, {})
    """
    return {} if gpus is None else {"use_gpu": bool(gpus), "gpu_id": ",".join(map(str, gpus))}


def train_trial(
    task: Task, number: int, report: Callable[[dict[str, Any]], object], gpus: list[Any] | None = None
) -> None:
    """Trains trial `number` and calls `report` after every evaluation on the validation split.

    A trial that was interrupted goes on from its last whole epoch. The test split is never evaluated.

    Args:
        task: the search.
        number: of the trial, from 1.
        report: gets ``epoch`` (trained so far), ``score`` (the best so far), ``best_epoch`` (0 is the first),
            ``valid_result`` (of that epoch), ``valid_history`` and ``seconds`` (of training); in the end once more with
            ``ended``, and ``failed`` where training was not possible. It may raise to end the trial.
        gpus: devices that Ray gave to the trial; None leaves the device to the settings.
    """
    gc.collect()  # the trial before this one, whose model and optimiser refer to each other
    torch.set_num_threads(task.threads)
    os.environ.setdefault(GROUP, os.path.basename(task.folder))  # all trials are one group
    device = device_settings(gpus)
    state: dict[str, Any] = {}
    trainer = None
    try:
        splits, teacher = load_shared(task, task.experiment(**device))
        own = {**task.draws[number - 1], **device}
        if os.path.isfile(task.last(number)):
            own["resume"] = str(task.last(number))
        _, trainer, (train, valid, _) = build_student(task.experiment(**own), splits, teacher)
        trainer.saved_model_file = str(task.checkpoint(number))

        def evaluated(epoch: int, _: float) -> None:
            state.update(
                epoch=epoch + 1,
                score=float(trainer.best_valid_score),
                best_epoch=trainer.best_epoch,
                valid_result={name: float(value) for name, value in (trainer.best_valid_result or {}).items()},
                valid_history=list(trainer.valid_history),
                seconds=sum(trainer.epoch_seconds),
            )
            report(dict(state))

        trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=evaluated)
        report({**state, "ended": True})
    except (UserError, TrainingError) as error:
        report({**state, "ended": True, "failed": " ".join(str(error).split())})
    finally:
        if trainer is not None:
            trainer.tensorboard.close()
            trainer.conclude()
