"""Reads a saved model and its data again, and compares the data with the model's training data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.utils import dataset_arguments, evaluation_arguments, init_seed, training_arguments
from torch import nn

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.known_keys import result_name
from recbole_kd.experiment.settings import WITHOUT_EFFECT, KDConfig, shared_keys
from recbole_kd.experiment.values import DATASET_KEYS, merge, nest, plain
from recbole_kd.files.checkpoint import ModelState, load_any, load_checkpoint
from recbole_kd.files.properties import named_files, read_yaml
from recbole_kd.model.build import build_model
from recbole_kd.registry import distillers
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.student.matryoshka import keep_prefix
from recbole_kd.teacher.cache import Trained
from recbole_kd.trainer.state import load_weights

__all__ = ["EVALUATION_KEYS", "load_data_and_model", "load_trained"]

#: Settings of a checkpoint's evaluation, in addition to those of the data.
EVALUATION_KEYS = ("metrics", "topk", "valid_metric", "metric_decimal_place", "tail_ratio")

#: Settings that are requested while the data is read, but do not change how it is read.
_ELSEWHERE = WITHOUT_EFFECT | {"MODEL_TYPE", "dataset", "sevo"}


def load_trained(
    path: str, config_dict: Mapping[str, Any] | None = None, dimensions: int | None = None
) -> tuple[Trained, Splits]:
    """A saved student, teacher or baseline and its dataset, compared with the dataset that it was trained on.

    Args:
        path: a checkpoint of recbole-kd.
        config_dict: settings that override the stored ones (``data_path``, ``metrics``, ``topk``, ...). Among them
            ``config_files`` names YAML files, which come below the others. Only a file's settings of data, evaluation
            and machine are used; the settings of the model and its training are the checkpoint's.
        dimensions: for a student of ``--matryoshka``, the size of the prefix to use.

    Raises:
        UserError: not a checkpoint of recbole-kd, another dataset or split, or no such prefix.
    """
    state = load_checkpoint(path, schema=ModelState)
    if dimensions is not None:
        _check_dimensions(path, state["config"].get("matryoshka"), dimensions)
    backbone = state["backbone"]
    given = dict(config_dict or {})
    _refuse_training(path, state, given)
    given = merge(_of_files(named_files(str(given.pop("config_files", ""))), state["config"]), nest(given))
    dataset = given.pop("dataset", state["dataset"])
    if dataset != state["dataset"]:
        raise UserError(f"'{path}' was trained on {state['dataset']}, not on --dataset={dataset}; leave --dataset out.")
    # The same items are ranked as in training. In files of older versions sequential models rank all items.
    keys = _data_settings(state).union(EVALUATION_KEYS, {"repeatable"})
    stored = {key: state["config"][key] for key in keys if key in state["config"]}
    if "valid_metric" not in given and ("topk" in given or "metrics" in given):
        # Any computed metric will do, because no epoch is chosen here.
        probe = {key: given.get(key, state["config"].get(key)) for key in ("metrics", "topk")}
        metric, cutoff = (value[0] if isinstance(value, (list, tuple)) and value else value for value in probe.values())
        given["valid_metric"] = result_name(str(metric), cutoff)
    base = KDConfig(backbone, dataset, config_dict={**stored, "distill": [], "teacher": None, **given})
    config = base.checkpoint_config(backbone, state["config"])
    start_logging(config, trains=False)
    splits = load_splits(base)  # the model's own settings do not affect reading
    if state["split"] != splits.training_digest:
        raise UserError(
            f"'{path}' was trained on another split of {dataset}, so it may know test interactions; "
            "use the data and split settings that it was trained with."
        )
    if state["user_tokens"] != splits.user_tokens or state["item_tokens"] != splits.item_tokens:
        raise UserError(
            f"'{path}' numbers the users and items of {dataset} in another order; use the files it was trained on."
        )
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    load_weights(model, state, path)
    if dimensions is not None:
        keep_prefix(model, dimensions)
    return Trained(config, model, path, False, state), splits


def _check_dimensions(path: str, trained: list[int] | None, dimensions: int) -> None:
    if not trained:
        raise UserError(
            f"--dimensions={dimensions}: the student in '{path}' was not trained with --matryoshka, so only its "
            "whole vectors can rank; leave --dimensions out."
        )
    if dimensions not in trained:
        raise UserError(
            f"--dimensions={dimensions}: the student in '{path}' was trained for the sizes "
            f"{', '.join(map(str, trained))}; set --dimensions to one of them, or leave it out for the whole vectors."
        )


def _data_settings(state: Mapping[str, Any]) -> set[str]:
    """Settings that determined how a checkpoint's data was read: those requested while its dataset was read.

    Files of older versions do not record them; for these it is every setting that any dataset can be read with.
    """
    asked = state.get("data_settings") or (*DATASET_KEYS, "seed", "split_seed", "eval_args")
    return set(asked) - _ELSEWHERE


def _refuse_training(path: str, state: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: another model, or other settings of a model or of training, than the checkpoint's.
    """
    if given.get("model", state["model"]) not in (state["model"], state["backbone"]):
        raise UserError(f"--model={given['model']}: '{path}' is a checkpoint of {state['model']}; leave it out.")
    own = KDConfig(state["backbone"], state["dataset"]).model_keys() | {*training_arguments}
    for key in own - {"distill", "teacher", "student", "baseline"}:
        if key in given and key in state["config"] and plain(given[key]) != state["config"][key]:
            raise UserError(
                f"--{key}={given[key]}: '{path}' was trained with {key}={state['config'][key]}; leave it out."
            )


def _of_files(files: list[str], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of YAML files that apply to a trained model; `trained` are its settings in training."""
    given: dict[str, Any] = {}
    for file in files:
        for key, value in nest(read_yaml(Path(file))).items():
            if key in shared_keys() or key == "dataset":
                given[key] = value
            elif key not in trained and key not in ("model", *distillers()):
                raise UserError(f"Unknown setting '{key}' in {file}.{closest(key, shared_keys())} Leave it out.")
    return given


def load_data_and_model(
    model_file: str, config_dict: Mapping[str, Any] | None = None
) -> tuple[KDConfig, nn.Module, Any, Any, Any, Any]:
    """Replaces RecBole's function of this name, for files of both; nothing in the file is executed.

    Args:
        model_file: a checkpoint.
        config_dict: settings that override the stored ones, such as ``data_path``.

    Returns:
        (config, model, dataset, train_data, valid_data, test_data), as in RecBole: the model with its weights, the
        dataset before the split, and the loaders of the three splits.

    Raises:
        UserError: not such a checkpoint, or data or settings that do not fit it.
    """
    kind, state = load_any(model_file)
    if kind == "recbole-kd":
        trained, splits = load_trained(model_file, config_dict)
        config, model = trained.config, trained.model
    else:
        stored = state["config"]
        keys = {*dataset_arguments, *evaluation_arguments, "seed", "reproducibility", "train_neg_sample_args"}
        folder = os.path.dirname(str(stored["data_path"]))  # RecBole adds the dataset's name
        given = {key: stored[key] for key in keys & set(stored) if stored[key] is not None and key != "eval_batch_size"}
        given |= {"data_path": folder, **(config_dict or {}), "distill": [], "teacher": None}
        config = KDConfig(stored["model"], stored["dataset"], config_dict=given)
        config = config.checkpoint_config(stored["model"], stored)
        splits = load_splits(config)
        init_seed(config["seed"], config["reproducibility"])
        model = build_model(config, splits.train)
        load_weights(model, state, model_file)
    return (config, model, splits.dataset, *make_loaders(config, splits))
