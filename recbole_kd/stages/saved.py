"""A saved model and its data, read again and compared with what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils import init_seed

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import result_name
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.model.build import build_model
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.teacher.cache import Trained
from recbole_kd.trainer.state import load_weights

__all__ = ["load_trained"]

#: Settings that say which data a checkpoint was trained on.
_DATA_SETTINGS = (
    "seed",
    "split_seed",
    "split_time",
    "eval_args",
    "benchmark_filename",
    "MAX_ITEM_LIST_LENGTH",
    "load_col",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "val_interval",
    "rm_dup_inter",
    "filter_inter_by_user_or_item",
)


def load_trained(path: str, config_dict: Mapping[str, Any] | None = None) -> tuple[Trained, Splits]:
    """A saved student, teacher or baseline, and its dataset, read again and compared with what it was trained on.

    Args:
        path: a checkpoint of recbole-kd.
        config_dict: settings over the stored ones (``data_path``, ``metrics``, ``topk``, ...).

    Raises:
        UserError: no checkpoint of ours, or one of another dataset or split.
    """
    state = load_checkpoint(path, schema=ModelState)
    backbone = state["backbone"]
    given = dict(config_dict or {})
    dataset = given.pop("dataset", state["dataset"])
    if dataset != state["dataset"]:
        raise UserError(f"'{path}' was trained on {state['dataset']}, and --dataset={dataset}; leave --dataset out.")
    stored = {key: state["config"][key] for key in _DATA_SETTINGS if key in state["config"]}
    if "valid_metric" not in given and ("topk" in given or "metrics" in given):
        # Nothing is chosen here: any metric that is computed will do.
        probe = {key: given.get(key, state["config"].get(key)) for key in ("metrics", "topk")}
        metric, cutoff = (value[0] if isinstance(value, (list, tuple)) and value else value for value in probe.values())
        given["valid_metric"] = result_name(str(metric), cutoff)
    base = KDConfig(backbone, dataset, config_dict={**stored, "distill": [], "teacher": None, **given})
    config = base.checkpoint_config(backbone, state["config"])
    start_logging(config)
    splits = load_splits(config)
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
