"""Ranked lists and full-ranking evaluation in shards of users, by the workers of a Ray cluster (``--ray_address``).

A shard consists of the same blocks of users that one process would score. So all matrix products have the same shapes,
and the combined result is equal bit for bit. A worker reads data and model from the same files as this process, with
the same safe reader, and keeps them for its next shard. With several machines, --data_path and --checkpoint_dir must be
folders that all machines share. A worker computes on one thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_kd.cluster.ray import parallel_map, ray_session
from recbole_kd.contracts import Share
from recbole_kd.data.loaders import FastFullSortEvalDataLoader
from recbole_kd.data.ranks import rank_block, rank_blocks
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import PartOfBatches
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.files.digest import digest
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.saved import EVALUATION_KEYS, load_trained
from recbole_kd.stages.teacher import AnyTeacher, obtain_teacher
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.trainer.kd_trainer import make_evaluator

__all__ = ["evaluate_in_shards", "rank_in_shards"]

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Shards for each core of the cluster; several, so that slow cores get fewer of them.
_SHARDS_A_CORE = 4
#: The last objects that a worker read, under their key.
_KEPT: dict[str, Any] = {}


def rank_in_shards(teacher: AnyTeacher, experiment: Experiment) -> None:
    """Makes a teacher compute its missing ranked lists on the cluster at ``--ray_address``.

    With several teachers, this holds for each that is a model.
    """
    config = experiment.settings
    settings = {**experiment.portable_settings(), "ray_address": None, "resume": None}
    for number, member in enumerate(getattr(teacher, "members", [teacher])):
        if isinstance(member, FrozenTeacher):
            source = _Source(config["model"], config["dataset"], settings, number, member.digest)
            member.ranker = _Ranker(source, str(config["ray_address"]))


@dataclass(frozen=True)
class _Source:
    """Tells a worker how to get a teacher: the run's settings, the number of the teacher, and its content."""

    model: str
    dataset: str
    settings: Mapping[str, Any]
    member: int
    content: str

    def load(self) -> FrozenTeacher:
        """The teacher, from the file that the run made or was given."""
        experiment = Experiment.of(self.model, self.dataset, given=self.settings)
        teacher = obtain_teacher(experiment, load_splits(experiment.settings))
        member: FrozenTeacher = getattr(teacher, "members", [teacher])[self.member]
        if member.digest != self.content:
            raise UserError(
                f"A worker of the cluster reads a different teacher {member.name} than this process; set "
                "--checkpoint_dir and --data_path to folders that all machines share."
            )
        return member


@dataclass(frozen=True)
class _Ranker:
    source: _Source
    address: str

    def __call__(self, teacher: FrozenTeacher, k: int) -> Tensor:
        """(U, k) int32: the result of `build_rank_bank` with the teacher's scores."""
        blocks = rank_blocks(teacher.observed)
        tasks = [(self.source, k, blocks[share.part(len(blocks))]) for share in _shares(self.address, len(blocks))]
        lists = [torch.tensor(part) for part in _map(_rank, tasks, self.address)]
        return torch.cat([torch.zeros(1, k, dtype=torch.int32), *lists])


def _rank(task: tuple[_Source, int, Sequence[range]]) -> NDArray[np.int32]:
    source, k, blocks = task
    torch.set_num_threads(1)
    teacher: FrozenTeacher = _kept(source.content, source.load)
    return torch.cat([rank_block(teacher.score_block, teacher.observed, k, block) for block in blocks]).numpy()


def evaluate_in_shards(
    trainer: Any, data: Any, split: str, checkpoint: str, given: Mapping[str, Any], address: str
) -> Any:
    """The result of ``trainer.evaluate(data)``, with batches of users scored on the cluster at `address`.

    Args:
        trainer: the trainer of the model in `checkpoint`; its collector knows the training data.
        data: the loader of the split. A loader that is not for full ranking is evaluated in this process.
        split: ``valid`` or ``test``.
        checkpoint: a file of recbole-kd.
        given: settings of the data that are not in the checkpoint.
        address: the cluster's address; ``local``: this machine's cores.
    """
    if not isinstance(data, FastFullSortEvalDataLoader) or data.is_sequential:
        logging.getLogger().info(
            "--ray_address supports only full ranking by models that are not sequential; this evaluation is made in "
            "this process."
        )
        return trainer.evaluate(data, load_best_model=False)
    config = trainer.config
    settings = {
        **given,
        **{key: config[key] for key in EVALUATION_KEYS},
        **({} if config["use_gpu"] else {"use_gpu": False}),
        **({"eval_batch_size": config["eval_batch_size"]} if config["eval_batch_size_given"] else {}),
        "data_path": os.path.abspath(config.data_root),
        "checkpoint_dir": os.path.abspath(config["checkpoint_dir"]),
        "show_progress": False,
        "ray_address": None,
    }
    path = os.path.abspath(checkpoint)
    batches = -(-data.sample_size // data.step)
    tasks = [(path, os.stat(path).st_mtime_ns, settings, split, share) for share in _shares(address, batches)]
    parts = _map(_collect, tasks, address)
    collector = trainer.eval_collector
    collector.data_struct.join([{name: torch.tensor(value) for name, value in part.items()} for part in parts])
    collector.model_collect(trainer.model)
    return trainer.evaluator.evaluate(collector.get_data_struct())


def _collect(task: tuple[str, int, Mapping[str, Any], str, Share]) -> dict[str, NDArray[Any]]:
    """The evaluator's inputs for a share of a split's batches."""
    path, written, settings, split, share = task
    torch.set_num_threads(1)

    def load() -> tuple[Any, dict[str, Any]]:
        trained, splits = load_trained(path, settings)
        trainer, loaders = make_evaluator(trained.config, trained.model, splits)
        return trainer, dict(zip(("train", "valid", "test"), loaders))

    trainer, loaders = _kept(digest(path, written, dict(settings)), load)
    trainer.evaluate(PartOfBatches(loaders[split], share), load_best_model=False)
    return {name: value.numpy() for name, value in trainer.eval_collector.collected().items()}


def _kept(key: str, load: Callable[[], Any]) -> Any:
    """The result of `load`, kept until another key is requested."""
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = load()
    return _KEPT[key]


def _shares(address: str, most: int) -> list[Share]:
    """The shares of at most `most` blocks or batches: a few for each core of the cluster, none of them empty."""
    with ray_session(address):
        count = min(most, _SHARDS_A_CORE * _cores())
    return [Share(rank, count) for rank in range(count)]


def _map(function: Callable[[Task], Result], tasks: Sequence[Task], address: str) -> list[Result]:
    """The function's results, in the order of the tasks.

    Raises:
        UserError: a worker raised it.
    """
    with ray_session(address):
        try:
            results = dict(parallel_map(function, tasks, _cores()))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
    return [results[number] for number in range(len(tasks))]


def _cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
