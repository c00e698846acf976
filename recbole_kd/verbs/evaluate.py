"""``recbole-kd evaluate``: a saved model on its validation and test split, full ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import check_place
from recbole_kd.files.plain import save_json
from recbole_kd.stages.needs import check_cutoffs
from recbole_kd.stages.saved import load_trained
from recbole_kd.stages.testing import evaluated
from recbole_kd.trainer.kd_trainer import make_evaluator
from recbole_kd.verbs.options import EvaluateOptions

__all__ = ["evaluate_checkpoint", "run"]


def run(options: EvaluateOptions, settings: dict[str, Any]) -> None:
    """The verb: prints the metrics as JSON."""
    if options.result_file:
        check_place(options.result_file, "result_file")
    given = {**settings, "config_files": options.config_files}
    result = evaluate_checkpoint(options.checkpoint, given, options.dimensions)
    if options.result_file:
        save_json(result, options.result_file, "result_file")
    print(json.dumps(result, indent=2))


def evaluate_checkpoint(
    path: str, config_dict: Mapping[str, Any] | None = None, dimensions: int | None = None
) -> dict[str, Any]:
    """Full ranking of a saved student, teacher or baseline on its dataset's validation and test split.

    Args and errors are those of :func:`recbole_kd.stages.saved.load_trained`.
    """
    address = (config_dict or {}).get("ray_address")
    if dimensions is not None and address:
        raise UserError("--dimensions cannot be evaluated on a cluster; leave --ray_address out.")
    if not address:
        return _evaluated(path, config_dict or {}, dimensions)
    from recbole_kd.cluster.ray import ray_session  # brings Ray

    with ray_session(str(address)):
        return _evaluated(path, config_dict or {}, None)


def _evaluated(path: str, settings: Mapping[str, Any], dimensions: int | None) -> dict[str, Any]:
    trained, splits = load_trained(path, settings, dimensions)
    config = trained.config
    check_cutoffs(config, splits)
    trainer, (_, valid, test) = make_evaluator(config, trained.model, splits)
    if valid is None and test is None:
        raise UserError(
            f"'{path}' was trained on all of {config['dataset']}, so it cannot be evaluated; evaluate the "
            "checkpoint of a run with a test split."
        )
    results = {}
    for name, data in (("valid_result", valid), ("test_result", test)):
        if data is not None:
            results[name] = evaluated(trainer, data, name.split("_")[0], path, settings)
    how = {} if dimensions is None else {"dimensions": dimensions}
    how |= {"repeatable": splits.repeatable} if splits.sequential else {}
    return {"model": trained.state["model"], "dataset": config["dataset"], "checkpoint": path, **how, **results}
