"""The teacher of a run: trained, fetched from the cache or read from a file; several are combined into one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from recbole.utils import dataset_arguments, init_seed

from recbole_kd.cluster.group import ALONE, Group
from recbole_kd.data.ranked_lists import read_ranked_lists
from recbole_kd.data.sequence_states import SequenceStates
from recbole_kd.data.splits import Splits, token_map
from recbole_kd.data.vectors import read_vectors
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment, TeacherSource, require_same_task
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_any
from recbole_kd.model.build import build_model
from recbole_kd.teacher.bare import FileTeacher
from recbole_kd.teacher.cache import Trained, train_or_fetch
from recbole_kd.teacher.ensemble import TeacherEnsemble
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.teacher.ranked_file import RankFileTeacher, SequenceRankFileTeacher
from recbole_kd.teacher.vector_file import VectorFileTeacher
from recbole_kd.trainer.learner import smoothed_tables
from recbole_kd.trainer.state import load_weights

__all__ = ["AnyTeacher", "obtain_teacher", "saved_teacher", "shared_teacher"]

AnyTeacher = FrozenTeacher | FileTeacher | TeacherEnsemble


def shared_teacher(experiment: Experiment, splits: Splits, group: Group = ALONE) -> AnyTeacher:
    """:func:`obtain_teacher` in process 0; the other processes wait and then read its files.

    Raises:
        UserError: as in :func:`obtain_teacher`, or the file is missing on another machine.
    """
    if group.is_first:
        teacher = obtain_teacher(experiment, splits)
        group.tell("teacher", "\n".join(teacher.files))
        return teacher
    missing = [path for path in group.hear("teacher").split("\n") if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"The teacher '{missing[0]}' of process 0 is missing on the machine of process {group.rank}; start all "
            "machines in a shared folder, or set --checkpoint_dir to one."
        )
    return obtain_teacher(experiment, splits)


def obtain_teacher(
    experiment: Experiment, splits: Splits, obtain: Callable[[KDConfig, Splits, str], Trained] | None = None
) -> AnyTeacher:
    """The teacher of an experiment, or several combined into one: from a file, the cache, or trained now.

    Args:
        experiment: names the teachers.
        splits: the student's data.
        obtain: returns the trained model of a teacher that is not a file; None: from the cache, or trained now.

    Raises:
        UserError: a file does not fit this dataset, or as in :func:`_check_student`.
    """
    if obtain is None:
        # What the student's constructor refuses is said before a teacher is trained, which may take hours.
        obtain = partial(train_or_fetch, before=partial(_check_student, experiment.settings, splits))
    teachers = [_obtain(experiment, splits, source, obtain) for source in experiment.teachers]
    if len(teachers) == 1:
        return teachers[0]
    shares = [source.share for source in experiment.teachers]
    device, folder = experiment.settings["device"], experiment.rank_folder
    return TeacherEnsemble(teachers, splits.observed, device, shares, experiment.fusion, folder)


def _check_student(config: KDConfig, splits: Splits) -> None:
    """
    Raises:
        UserError: the student's constructor refuses its settings, or its tables do not fit SEvo's graph.
    """
    model = build_model(config, splits.train)
    if config.sevo is not None:
        smoothed_tables(config.sevo, splits, model)


def _obtain(
    experiment: Experiment,
    splits: Splits,
    source: TeacherSource,
    obtain: Callable[[KDConfig, Splits, str], Trained],
) -> FrozenTeacher | FileTeacher:
    settings = experiment.settings
    fields = (settings["USER_ID_FIELD"], settings["ITEM_ID_FIELD"])
    tokens = (splits.user_tokens, splits.item_tokens)
    if source.ranks:
        states = SequenceStates.of(splits.train) if settings.sequential else None
        lists = read_ranked_lists(source.ranks, *tokens, splits.observed, fields, f"{source.prefix}ranks", states)
        logging.getLogger().info(f"The teacher is the file {source.ranks}")
        if states is not None:
            return SequenceRankFileTeacher(source.ranks, lists, states)
        return RankFileTeacher(source.ranks, lists)
    if source.vectors:
        vectors = read_vectors(source.vectors, *tokens, fields, f"{source.prefix}vectors")
        told = [table.told(kind) for kind, table in (("items", vectors.items), ("users", vectors.users)) if table]
        some = any(table is not None and not table.is_whole for table in (vectors.items, vectors.users))
        logging.getLogger().info(
            f"The teacher is the file {source.vectors}: vectors of {vectors.items.rows.shape[1]:,} numbers for "
            f"{' and '.join(told)}{'; the others are in no mean' if some else ''}"
        )
        return VectorFileTeacher(source.vectors, vectors, settings["device"])
    if source.settings is None:
        return saved_teacher(settings, splits, source)
    return FrozenTeacher(obtain(source.settings, splits, "teacher"), splits, experiment.rank_folder)


def saved_teacher(config: KDConfig, splits: Splits, source: TeacherSource, role: str = "teacher") -> FrozenTeacher:
    """The teacher in a checkpoint of recbole-kd or of RecBole, in the ids of `splits`.

    Args:
        config: settings of the student.
        splits: the student's data.
        source: names the checkpoint; a source without a prefix has no settings.
        role: its name in the log and in errors.

    Raises:
        UserError: the checkpoint has another model than the named one, another task, users, items or split.
    """
    path = str(source.checkpoint)
    kind, state = load_any(path, config["device"])
    stored = dict(state["config"])
    backbone = str(state.get("backbone") or stored.get("model"))
    if source.named not in (None, backbone):
        raise UserError(
            f"'{path}' holds a {backbone}, but --{source.prefix}model={source.named}; leave --{source.prefix}model out "
            "or give another file."
        )
    own = config.checkpoint_config(backbone, stored)
    require_same_task(config, own, role)
    if kind == "recbole":
        user_tokens, item_tokens = _recbole_tokens(config, own, splits, stored)
        data_keys = ("dataset", "eval_args", "benchmark_filename", "split_time", "held_out_users")
        same_split = all(_comparable(stored.get(key)) == _comparable(config[key]) for key in data_keys)
        same_split = same_split and stored.get("seed") == config.split_seed
    else:
        user_tokens, item_tokens = state["user_tokens"], state["item_tokens"]
        same_split = state.get("split") == splits.training_digest
    aligned = True
    for what, ours, theirs in (
        ("users", splits.user_tokens, user_tokens),
        ("items", splits.item_tokens, item_tokens),
    ):
        unknown, missing = set(ours) - set(theirs), set(theirs) - set(ours)
        if unknown or missing:
            raise UserError(
                f"The {role} '{path}' was trained on other {what}: {len(unknown):,} of this dataset's "
                f"{len(ours) - 1:,} are new to it, {len(missing):,} of its {len(theirs) - 1:,} are not in the dataset; "
                f"give a {role} of the same dataset and filters."
            )
        aligned &= list(ours) == list(theirs)
    if not same_split and not source.allow_other_split:
        accepted = f", or accept it with --{source.prefix}allow_other_split=true" if source.prefix else ""
        raise UserError(
            f"The {role} '{path}' was trained on another split of the data and may know test interactions; use one of "
            f"this split{accepted}."
        )
    logging.getLogger().info(f"The {role} {backbone} comes from {path}")
    dataset = splits.train if aligned else splits.in_order_of(user_tokens, item_tokens)
    init_seed(stored.get("seed", config["seed"]), config["reproducibility"])
    model = build_model(own, dataset)
    load_weights(model, state, path)
    maps = None if aligned else (token_map(splits.user_tokens, user_tokens), token_map(splits.item_tokens, item_tokens))
    state.setdefault("test_result", {})
    trained = Trained(own, model, path, False, state)
    return FrozenTeacher(trained, splits, os.path.join(config["checkpoint_dir"], "ranks"), maps)


def _recbole_tokens(
    config: KDConfig, teacher_config: KDConfig, splits: Splits, stored: dict[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """Tokens of a checkpoint by RecBole, which stores none: its dataset is read again with its own filters."""
    keys = [key for key in dataset_arguments if key in stored]
    if stored.get("dataset") == config["dataset"] and all(
        _comparable(stored[key]) == _comparable(config[key]) for key in keys
    ):
        return splits.user_tokens, splits.item_tokens
    settings = {**{key: stored[key] for key in keys}, "data_path": config.data_root, "distill": []}
    own = KDConfig(teacher_config["model"], stored["dataset"], config_dict=settings)
    theirs = Splits(own)
    return theirs.user_tokens, theirs.item_tokens


def _comparable(value: Any) -> str:
    if isinstance(value, dict):
        return str(sorted((str(key), _comparable(element)) for key, element in value.items()))
    return str(list(value) if isinstance(value, tuple) else value)
