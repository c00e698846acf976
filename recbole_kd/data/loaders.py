"""RecBole's loaders for one model of a run, over splits that all of them share."""

from __future__ import annotations

from typing import Any

from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import InputType

from recbole_kd.data.negatives import ObservedSampler
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import FastFullSortEvalDataLoader


def make_loaders(config: Any, splits: Splits) -> tuple[Any, Any, Any]:
    """The training, validation and test loader that RecBole would make for the model of `config`.

    Raises:
        UserError: an empty validation or test split, or a user for whom no negative item is left.
    """
    parts = [splits.train, splits.valid, splits.test]
    for phase, part in zip(("validation", "test"), parts[1:]):
        if len(part) == 0:
            raise UserError(
                f"The {phase} split of {config['dataset']} is empty, so that nothing can be chosen or reported; "
                "change --eval_args or use a larger dataset."
            )
    if config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and config["train_neg_sample_args"]["distribution"] == "none":
        raise UserError(
            f"{config['model']} compares an item with a negative one, and --train_neg_sample_args draws none; "
            "leave --train_neg_sample_args out, and leave low ratings out with --val_interval."
        )
    try:
        samplers = _samplers(config, splits.dataset, parts)
    except ValueError as error:
        raise UserError(f"Negatives cannot be sampled: {' '.join(str(error).split())}") from error
    loaders = []
    # RecBole knows an autoencoder's loader by the model's name, which a recipe's is not.
    chosen_by = {"model": config["student"], "MODEL_TYPE": config["MODEL_TYPE"], "eval_args": config["eval_args"]}
    for phase, part, sampler in zip(("train", "valid", "test"), parts, samplers):
        loader = get_dataloader(chosen_by, phase)
        if loader is FullSortEvalDataLoader:
            loader = FastFullSortEvalDataLoader
        loaders.append(loader(config, part, sampler, shuffle=config["shuffle"] if phase == "train" else False))
    return loaders[0], loaders[1], loaders[2]


def _samplers(config: Any, dataset: Any, parts: list[Any]) -> list[Any]:
    """What RecBole's `create_samplers` gives for the training, validation and test split, None where none is wanted."""
    if config["repeatable"]:  # of sequential models: nothing is left out, and nothing kept
        return list(create_samplers(config, dataset, parts))
    phases = ["train", "valid", "test"]
    shared: Any = None
    samplers: list[Any] = []
    for phase in phases:
        wanted = config[f"{phase}_neg_sample_args"]
        if wanted["distribution"] == "none":
            samplers.append(None)
            continue
        if shared is None:
            shared = ObservedSampler(phases, parts, wanted["distribution"], wanted.get("alpha", 1.0))
        shared.set_distribution(wanted["distribution"])
        samplers.append(shared.set_phase(phase))
    return samplers
