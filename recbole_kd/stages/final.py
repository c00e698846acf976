"""The student for serving (``--final=true``): trained again on all interactions, for the chosen number of epochs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recbole_kd.cluster.group import Group
from recbole_kd.data.parts import parts_asked_for
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.needs import check_data
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import AnyTeacher, shared_teacher
from recbole_kd.stages.training import train_student

__all__ = ["check_final", "final_experiment", "train_final"]


def check_final(config: KDConfig) -> None:
    """Refuses ``--final`` before training if nothing is held out or trained.

    Raises:
        UserError: there is neither a validation nor a test split, or there are no epochs.
    """
    if config["epochs"] == 0:
        raise UserError(
            "--final=true trains again for as many epochs as validation chose, and --epochs=0 trains none; "
            "set --epochs=1 or more, or leave --final out."
        )
    if not any(parts_asked_for(config)):
        raise UserError(
            "--final=true trains again with the held-out interactions, but the split holds out none: this run's "
            "checkpoint is already trained on all. Leave --final out."
        )


def final_experiment(experiment: Experiment, trainer: Any, teacher: AnyTeacher | None) -> Experiment:
    """A run's experiment on all interactions; each model is trained for its chosen number of epochs.

    A trained teacher is trained again. A teacher from a file does not change, so it does not know all interactions.

    Args:
        experiment: the run.
        trainer: the trainer of its student, after training.
        teacher: its teacher, or several as one.
    """
    given: dict[str, Any] = {
        "eval_args.split": {"RS": [1, 0, 0]},
        "split_time": None,
        "stop_after": trainer.best_epoch + 1,
        "resume": None,
        "save_last": False,
        "baseline": "none",
    }
    given.update(_annealing("", trainer.model))
    for source, member in zip(experiment.teachers, getattr(teacher, "members", [teacher])):
        if source.settings is not None and source.settings["epochs"]:
            given[f"{source.prefix}stop_after"] = member.trained.state["best_epoch"] + 1
            given.update(_annealing(source.prefix, member.trained.model))
        elif source.checkpoint:
            given[f"{source.prefix}allow_other_split"] = True
    return experiment.variant(**given)


def _annealing(prefix: str, model: Any) -> dict[str, float]:
    """Where the annealing of an autoencoder stopped, as a setting: without validation nothing stops it."""
    stopped = getattr(model, "best_beta", 0.0)
    return {f"{prefix}anneal_cap": stopped} if stopped else {}


def train_final(experiment: Experiment, trainer: Any, teacher: AnyTeacher | None, group: Group) -> dict[str, Any]:
    """Trains a run's student on all interactions and writes it beside the run's checkpoint.

    Returns:
        ``checkpoint``, ``epochs``, ``interactions``, ``train_seconds`` and ``teacher``, for the run's result.
    """
    final = final_experiment(experiment, trainer, teacher)
    logging.getLogger().info("Training on all interactions, for serving; this model cannot be tested")
    splits = load_splits(final.settings)
    check_data(final, splits)
    taught = shared_teacher(final, splits, group) if final.teachers else None
    _, own, loaders = build_student(final, splits, taught, group)
    own.saved_model_file = str(Path(trainer.saved_model_file).with_suffix("")) + "-final.pth"
    train_student(own, loaders)
    own.conclude()
    return {
        "checkpoint": own.saved_model_file,
        "epochs": len(own.epoch_seconds),
        "interactions": len(splits.train),
        "train_seconds": sum(own.epoch_seconds),
        "teacher": None if taught is None else taught.summary(),
    }
