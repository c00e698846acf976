"""Plain models (teachers and baselines), trained once and cached on disk, under a digest of data and settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import recbole
from recbole.utils import init_seed
from torch import nn

from recbole_kd.data.loaders import eval_batch_size, make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import SPLIT_KEYS
from recbole_kd.experiment.settings import WITHOUT_EFFECT, KDConfig
from recbole_kd.files.checkpoint import FORMAT, KeptState, ResumableState, load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.model.build import build_model
from recbole_kd.student.warm import warn_of_other_splits
from recbole_kd.trainer.board import group_name
from recbole_kd.trainer.kd_trainer import Unresumable, make_evaluator, make_trainer
from recbole_kd.trainer.learner import compute_faster, optimizer_factory
from recbole_kd.trainer.state import load_weights
from recbole_kd.trainer.trackers import Trackers

__all__ = ["NO_PART_OF_A_MODEL", "Trained", "facts", "recorded", "train_or_fetch"]

#: Settings that do not change what a plain model learns, and so are not part of its cache key.
NO_PART_OF_A_MODEL = WITHOUT_EFFECT | {
    *("device", "teacher", "distill", "model", "student", "metrics", "topk", "metric_decimal_place"),
    *("nproc", "ray_address", "warm_start", "warm_start_new", "precision", "matryoshka"),
    *SPLIT_KEYS,  # the split itself is part of the key
}


@dataclass
class Trained:
    """A model that was trained on the training split and chosen on validation, with its history."""

    config: KDConfig
    model: nn.Module
    checkpoint: str
    from_cache: bool
    state: dict[str, Any]

    @property
    def test_result(self) -> dict[str, float]:
        """Metrics on the test split, as RecBole names them."""
        return dict(self.state["test_result"])

    @property
    def train_seconds(self) -> float:
        """Seconds of all epochs; 0 if the file does not say."""
        return float(sum(self.state.get("epoch_seconds") or []))


def recorded(config: KDConfig, splits: Splits) -> dict[str, Any]:
    """The settings as stored in a checkpoint and a result's digest, with values that were decided by the data."""
    sized = {"eval_batch_size": eval_batch_size(config, splits), "eval_batch_size_given": True}
    return {**config.plain_values(), **sized, "repeatable": splits.repeatable}


def facts(config: KDConfig, splits: Splits) -> dict[str, Any]:
    """A checkpoint's content apart from weights: model, settings, tokens, training split."""
    return {
        "model": config["model"],
        "backbone": config.resolved.backbone,
        "dataset": config["dataset"],
        "config": recorded(config, splits),
        "data_settings": list(splits.read_settings),
        "user_tokens": splits.user_tokens,
        "item_tokens": splits.item_tokens,
        "split": splits.training_digest,
        "final": not any(splits.asked_for),
    }


def train_or_fetch(config: KDConfig, splits: Splits, role: str, before: Callable[[], object] = lambda: None) -> Trained:
    """A plain model of `config`, from the cache, or trained now and put into it.

    Its key is made from content: architecture, settings, seed, tokens, training and validation pairs, versions. An
    interrupted training is resumed.

    Args:
        config: the model's own settings.
        splits: the data, shared with the student.
        role: its name in the log ("teacher", "baseline").
        before: called if it is not in the cache, before it is trained.
    """
    logger = logging.getLogger()
    settings = {key: value for key, value in recorded(config, splits).items() if key not in NO_PART_OF_A_MODEL}
    # Absent by default, so that keys from before these settings existed stay valid.
    for later in ("stop_after", "fast_sampling", "every_position"):
        if not settings.get(later):
            settings.pop(later, None)
    # It has a part in a training only if the epoch is chosen by its metric.
    if not (config["tail_ratio"] and config["valid_metric"].lower().startswith("tailpercentage")):
        settings.pop("tail_ratio", None)
    versions = [FORMAT, recbole.__version__]
    content = splits.content()
    if str(config["learner"]).startswith("sevo_"):
        content += splits.columns()  # its graph may be made from times or from categories
    key = digest(versions, config.resolved.backbone, settings, content)
    folder = os.path.join("teachers", f"{config.resolved.backbone}-{config['dataset']}-{key[:16]}")
    path = os.path.join(config["checkpoint_dir"], f"{folder}.pth")
    shown = ["metrics", "topk", "metric_decimal_place", "eval_args"] + ["tail_ratio"] * bool(config["tail_ratio"])
    evaluated = digest({key: config.plain_values()[key] for key in shown}, list(splits.pairs(splits.test)))
    if os.path.isfile(path):
        state = _kept(path, config, KeptState)
        if state is not None and state["key"] == key and _rounds_as(config, state):
            logger.info(f"The {role} {config['model']} comes from the cache: {path}")
            init_seed(config["seed"], config["reproducibility"])
            model = build_model(config, splits.train)
            load_weights(model, state, path)
            if config["fused_adam"]:
                compute_faster(model)  # as its trainer did, so that its vectors have the same bits
            if state["evaluated"] != evaluated:
                trainer, (_, _, test) = make_evaluator(config, model, splits)
                state["test_result"] = _floats(trainer.evaluate(test, load_best_model=False))
            Trackers.begin(config, group_name(logger), role).finish(model, state, state["test_result"])
            return Trained(config, model, path, True, state)
    before()
    logger.info(f"Training the {role} {config['model']}; it will be kept as {path}")
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = make_loaders(config, splits)
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    warn_of_other_splits(config, splits.training_digest)
    trainer = make_trainer(
        config,
        model,
        facts=facts(config, splits),
        file_name=f"{folder}-training.pth",
        role=role,
        optimizer_factory=optimizer_factory(config, splits, model),
    )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    interrupted = _kept(trainer.last_file, config, ResumableState) if os.path.isfile(trainer.last_file) else None
    if interrupted is not None and _rounds_as(config, interrupted):
        try:
            trainer.resume(trainer.last_file, interrupted)
        except Unresumable as error:  # raised before anything was loaded
            logger.warning(f"{error} It is trained again.")
    trainer.fit(train, valid, saved=True, show_progress=config["show_progress"])
    trainer.load_best()
    state = {
        "format": FORMAT,
        **facts(config, splits),
        **trainer.outcome(),
        "key": key,
        "evaluated": evaluated,
        "test_result": _floats(trainer.evaluate(test, load_best_model=False, show_progress=config["show_progress"])),
    }
    trainer.conclude(state["test_result"])
    save_checkpoint(state, path)
    for file in (trainer.saved_model_file, trainer.last_file):
        if os.path.isfile(file):
            os.remove(file)
    return Trained(config, model, path, False, state)


def _kept(path: str, config: KDConfig, schema: Any) -> dict[str, Any] | None:
    """A checkpoint of the cache; None, with a warning, if it is damaged."""
    try:
        return load_checkpoint(path, config["device"], schema)
    except UserError as error:
        problem, _, advice = str(error).rpartition("; ")  # the advice, to give another file, does not apply here
        logging.getLogger().warning(f"{problem or advice}. The {config['model']} in this file is trained again.")
        return None


def _rounds_as(config: KDConfig, state: dict[str, Any]) -> bool:
    """Whether its scores have as many decimals. The rounded score chooses the epoch, but a file's key is without it."""
    decimals = "metric_decimal_place"
    return bool(state["config"].get(decimals) == config[decimals])


def _floats(result: Any) -> dict[str, float]:
    """Metrics as plain numbers; empty if there is no test split."""
    return {name: float(value) for name, value in (result or {}).items()}
