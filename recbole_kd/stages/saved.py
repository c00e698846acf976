"""A saved model and its data, read again and compared with what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.settings import WITHOUT_EFFECT, KDConfig, shared_keys
from recbole_kd.experiment.values import DATASET_KEYS, merge, nest
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.files.properties import read_yaml
from recbole_kd.model.build import build_model
from recbole_kd.registry import distillers
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.teacher.cache import Trained
from recbole_kd.trainer.state import load_weights

__all__ = ["load_trained"]

#: What reading the data asks for and what is no part of how it is read.
_ELSEWHERE = WITHOUT_EFFECT | {"MODEL_TYPE", "dataset", "sevo"}


def load_trained(path: str, config_dict: Mapping[str, Any] | None = None) -> tuple[Trained, Splits]:
    """A saved student, teacher or baseline, and its dataset, read again and compared with what it was trained on.

    Args:
        path: a checkpoint of recbole-kd.
        config_dict: settings over the stored ones (``data_path``, ``metrics``, ``topk``, ...). ``config_files`` names
            YAML files below them. Of a file, the settings of data, evaluation and machine count: those of the model and
            its training are the checkpoint's own.

    Raises:
        UserError: no checkpoint of ours, or one of another dataset or split.
    """
    state = load_checkpoint(path, schema=ModelState)
    backbone = state["backbone"]
    given = dict(config_dict or {})
    given = merge(_of_files(str(given.pop("config_files", "")).split(), state["config"]), nest(given))
    dataset = given.pop("dataset", state["dataset"])
    if dataset != state["dataset"]:
        raise UserError(f"'{path}' was trained on {state['dataset']}, and --dataset={dataset}; leave --dataset out.")
    stored = {key: state["config"][key] for key in _data_settings(state) if key in state["config"]}
    if "valid_metric" not in given and ("topk" in given or "metrics" in given):
        # Nothing is chosen here: any metric that is computed will do.
        probe = {key: given.get(key, state["config"].get(key)) for key in ("metrics", "topk")}
        metric, cutoff = (value[0] if isinstance(value, (list, tuple)) and value else value for value in probe.values())
        given["valid_metric"] = f"{metric}@{cutoff}"
    base = KDConfig(backbone, dataset, config_dict={**stored, "distill": [], "teacher": None, **given})
    config = base.checkpoint_config(backbone, state["config"])
    start_logging(config)
    splits = load_splits(base)  # a model's own settings say nothing of how data is read
    if state["split"] != splits.training_digest:
        raise UserError(
            f"'{path}' was trained on another split of {dataset}: interactions that it should not know may be known "
            "to it; use the data and split settings that it was trained with."
        )
    if state["user_tokens"] != splits.user_tokens or state["item_tokens"] != splits.item_tokens:
        raise UserError(
            f"'{path}' numbers the users and items of {dataset} in another order; use the files it was trained on."
        )
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    load_weights(model, state, path)
    return Trained(config, model, path, False, state), splits


def _data_settings(state: Mapping[str, Any]) -> set[str]:
    """Settings by which the data of a checkpoint was read: what reading asked for when it was trained.

    Checkpoints of older programs do not know it. Of them it is all that any dataset is read by.
    """
    asked = state.get("data_settings") or (*DATASET_KEYS, "seed", "split_seed", "eval_args")
    return set(asked) - _ELSEWHERE


def _of_files(files: list[str], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of YAML files that count for a trained model; `trained` are those of its training."""
    given: dict[str, Any] = {}
    for file in files:
        for key, value in nest(read_yaml(Path(file))).items():
            if key in shared_keys() or key == "dataset":
                given[key] = value
            elif key not in trained and key not in ("model", *distillers()):
                raise UserError(f"Unknown setting '{key}' in {file}.{closest(key, shared_keys())} Leave it out.")
    return given
