"""``recbole-kd evaluate``: a saved model on its validation and test split, full ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_kd.stages.saved import load_trained
from recbole_kd.stages.testing import evaluated
from recbole_kd.trainer.kd_trainer import make_evaluator

__all__ = ["evaluate_checkpoint"]


def evaluate_checkpoint(path: str, config_dict: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Full ranking of a saved student, teacher or baseline on its dataset's validation and test split.

    Args and errors are those of :func:`recbole_kd.stages.saved.load_trained`.
    """
    trained, splits = load_trained(path, config_dict)
    config = trained.config
    trainer, (_, valid, test) = make_evaluator(config, trained.model, splits)
    results = {}
    for name, data in (("valid_result", valid), ("test_result", test)):
        results[name] = evaluated(trainer, data, name.split("_")[0], path, dict(config_dict or {}))
    return {"model": trained.state["model"], "dataset": config["dataset"], "checkpoint": path, **results}
