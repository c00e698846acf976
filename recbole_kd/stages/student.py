"""The student of a run, with its distillers, its trainer and its loaders."""

from __future__ import annotations

import logging
from typing import Any

import torch
from recbole.utils import init_seed
from torch import nn

from recbole_kd.cluster.group import ALONE, Group
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.registry import distiller_class, models
from recbole_kd.stages.needs import check_needs, data_view
from recbole_kd.stages.teacher import AnyTeacher
from recbole_kd.student.matryoshka import OverPrefixes, PrefixStudent, average_over_prefixes, check_prefix_sizes
from recbole_kd.student.readers import ModelStudent
from recbole_kd.student.warm import begin_from, teacher_vectors, warn_of_other_splits
from recbole_kd.teacher.cache import facts
from recbole_kd.trainer.kd_trainer import make_trainer
from recbole_kd.trainer.learner import optimizer_factory
from recbole_kd.trainer.shared import share_of_steps

__all__ = ["build_student"]


def _warm_start(config: KDConfig, splits: Splits, model: nn.Module, teacher: AnyTeacher | None) -> None:
    """Gives the student the weights of ``--warm_start``, and logs how many users and items that file knows."""
    backbone = config.resolved.backbone
    if not models()[backbone].gradient:
        raise UserError(f"{backbone} is computed in closed form and has no initial weights; leave --warm_start out.")
    by_teacher = config["warm_start_new"] == "teacher"
    sides = begin_from(
        str(config["warm_start"]),
        model,
        backbone,
        {"users": splits.user_tokens, "items": splits.item_tokens},
        teacher_vectors(teacher) if by_teacher else {},
    )
    place = "the mean of their neighbours by the teacher" if by_teacher else "the mean of the known ones"
    told = "; ".join(side.told(name) for name, side in sides.items())
    logging.getLogger().info(f"Warm start from {config['warm_start']}: {told}. New ones start at {place}.")


def build_student(
    experiment: Experiment,
    splits: Splits,
    teacher: AnyTeacher | None,
    group: Group = ALONE,
    role: str | None = "student",
) -> tuple[nn.Module, Any, Any]:
    """The student, its trainer with the distillers, and its loaders; with role None the trainer does not log."""
    config = experiment.settings
    init_seed(config["seed"], config["reproducibility"])
    loaders = make_loaders(config, splits, experiment.fast_sampling)
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    warn_of_other_splits(config, splits.training_digest)
    if config["warm_start"]:
        _warm_start(config, splits, model, teacher)
    view = ModelStudent(model)
    views = {size: PrefixStudent(view, size) for size in experiment.prefixes}
    if views:
        average_over_prefixes(model, experiment.prefixes)
        logging.getLogger().info(f"The first {', '.join(map(str, views))} numbers of its vectors are also students")
    distillers: dict[str, nn.Module] = {}
    if teacher is not None:
        data = data_view(experiment, splits, share_of_steps(model, group))
        # Projectors have a separate random stream, so the student's stream does not change. Process 0 computes and
        # keeps the ranked lists; the other processes read them.
        with torch.random.fork_rng(), group.first("ranks"):
            torch.manual_seed(config["seed"])
            for name, options in experiment.distillers.items():
                check_needs(name, options, view, teacher)
                kind = distiller_class(name, config.sequential)
                if views:
                    check_prefix_sizes(name, options, experiment.prefixes, teacher.dimension, view.dimension)
                    built = {size: kind(options, one, teacher, data) for size, one in views.items()}
                    distillers[name] = OverPrefixes(built)
                else:
                    distillers[name] = kind(options, view, teacher, data)
    taught = {} if teacher is None else {"teacher": teacher.name, "teacher_digest": teacher.digest}
    trainer = make_trainer(
        config,
        model,
        distillers=distillers,
        observed=splits.observed,
        step_context=view.step,
        facts={**facts(config, splits), **taught},
        optimizer_factory=optimizer_factory(config, splits, model, teacher),
        fused=experiment.optimiser.fused,
        group=group,
        role=role,
    )
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])
    return model, trainer, loaders
