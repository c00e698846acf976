"""A worker process of the search: it loads data and teacher once, then trains one trial after the other."""

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
    """The facts that all trials of a search share.

    Attributes:
        key: digest of the search, under which a worker keeps data and teacher.
        model, dataset: names.
        settings: settings of the tuned run, nested; paths are absolute, because workers run in other folders.
        draws: the settings of each trial by dotted name; trial n is the n-th, from 1.
        folder: the folder of the trials' checkpoints.
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
        """The file of a trial's best epoch; its state after the last complete epoch is in FILE-last.pth."""
        return Path(self.folder) / "trials" / f"{number:04d}.pth"

    def last(self, number: int) -> Path:
        """The file from which an interrupted trial resumes."""
        return Path(self.folder) / "trials" / f"{number:04d}-last.pth"

    def experiment(self, **settings: Any) -> Experiment:
        """The tuned run, with `settings` (by dotted name) in place of its own."""
        return Experiment.of(self.model, self.dataset, given=merge(self.settings, nest(settings)))


#: Task's key -> data and teacher; only one search at a time.
_SHARED: dict[str, tuple[Splits, AnyTeacher | None]] = {}


def load_shared(task: Task, experiment: Experiment) -> tuple[Splits, AnyTeacher | None]:
    """Data and teacher of a search, loaded in this process at the first call."""
    if task.key not in _SHARED:
        _SHARED.clear()
        splits = load_splits(experiment.settings)
        _SHARED[task.key] = splits, teacher_of(experiment, splits)
    return _SHARED[task.key]


def teacher_of(experiment: Experiment, splits: Splits) -> AnyTeacher | None:
    """The teacher of a run if its distillers or its optimiser read one: from the cache, or trained now."""
    return obtain_teacher(experiment, splits) if experiment.teachers else None


def device_settings(gpus: list[Any] | None) -> dict[str, Any]:
    """Settings for the devices that Ray assigned; without them every worker would use the GPU in its settings.

    >>> device_settings([2]), device_settings([]), device_settings(None)
    ({'use_gpu': True, 'gpu_id': '2'}, {'use_gpu': False, 'gpu_id': ''}, {})
    """
    return {} if gpus is None else {"use_gpu": bool(gpus), "gpu_id": ",".join(map(str, gpus))}


def train_trial(
    task: Task, number: int, report: Callable[[dict[str, Any]], object], gpus: list[Any] | None = None
) -> None:
    """Trains trial `number` and calls `report` after every evaluation on the validation split.

    An interrupted trial resumes after its last complete epoch. The test split is never evaluated.

    Args:
        task: the search.
        number: number of the trial, from 1.
        report: called with ``epoch`` (trained so far), ``score`` (best so far), ``best_epoch`` (0 is the first),
            ``valid_result`` (of that epoch), ``valid_history`` and ``seconds`` (of training). The last call has also
            ``ended``, and ``failed`` if training was not possible. It may raise an error to end the trial.
        gpus: devices that Ray assigned to the trial; None: as in the settings.
    """
    gc.collect()  # frees the previous trial, whose model and optimiser refer to each other
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
        if isinstance(error.__context__, OSError):
            raise  # a full disk says nothing about the trial's settings: the next search tries it again
        report({**state, "ended": True, "failed": " ".join(str(error).split())})
    finally:
        if trainer is not None:
            trainer.tensorboard.close()
            trainer.conclude()
