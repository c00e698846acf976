"""Checks of settings before anything is read or trained: names, types, ranges, files that execute code."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import recbole
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_kd.contracts import DistillerOptions
from recbole_kd.data.parts import held_out_users
from recbole_kd.errors import UnknownSetting, UserError, closest
from recbole_kd.experiment import known_keys
from recbole_kd.experiment.presets import distiller_names
from recbole_kd.experiment.values import merge
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.reading import open_regular
from recbole_kd.model.held_out import RANKING_HELD_OUT, ranks_held_out
from recbole_kd.registry import distiller_class, distillers
from recbole_kd.sevo.graphs import SEvoOptions

__all__ = [
    *("PICKLES", "TEACHER_KEYS", "TRANSFORMED_SHARES", "WEIGHT_FILES", "WITHOUT_FILES"),
    *("check_files", "check_held_out", "check_known", "check_metrics", "check_transform"),
]

#: Keys of section ``teacher`` that are not settings of the teacher's model.
TEACHER_KEYS = ("model", *known_keys.TEACHER_FILES, "allow_other_split", "count", "share", "fusion")
#: Packages of base classes that read no settings.
_NO_MODEL = ("torch", "builtins", "abc", "typing")
#: RecBole keeps these as pickles, which execute code when read.
PICKLES = ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders")
#: RecBole's settings of one process among several; with them RecBole would use nccl and weight metrics by batches.
_PROCESS = ("local_rank", "single_spec", "offset", "world_size", "group_offset", "ip", "port")
#: Files of weights that RecBole's models unpickle.
WEIGHT_FILES = ("mf_pretrain_path", "mlp_pretrain_path", "pretrain_path", "pre_model_path")

#: Settings with which a model is built without the weights of other files, by architecture.
WITHOUT_FILES: Mapping[str, Mapping[str, Any]] = {
    "NeuMF": {"use_pretrain": False},
    "NeuMFVariant": {"use_pretrain": False},
    "ConvNCF": {"train_method": "no_pretrain"},
    "RaCT": {"train_stage": "actor_pretrain"},
}


def check_known(config: Any) -> tuple[dict[str, DistillerOptions], SEvoOptions | None]:
    """Refuses settings that nothing reads; returns the checked options of the distillers by name, and of SEvo."""
    given = config.external_config_dict
    for key in _PROCESS:
        if key in given:
            raise UserError(
                f"--{key} is set by the launcher only; set --nproc=2 for two processes here, or start several machines "
                "with torchrun (docs/scale.md)."
            )
    for key in PICKLES:
        if given.get(key):
            raise UserError(
                f"--{key} is not supported: RecBole keeps datasets as pickles, which execute code. Leave it out."
            )
    if "MODEL_TYPE" in given:
        raise UserError(f"--{config.prefix}MODEL_TYPE follows from the model and cannot be set; leave it out.")
    if given.get("warm_start_new", "mean") != "mean" and not given.get("warm_start"):
        raise UserError(
            f"--warm_start_new={given['warm_start_new']} is read with --warm_start=FILE alone; set it, or leave "
            "--warm_start_new out."
        )
    held_out = given.get("held_out_users") or config.internal_config_dict.get("held_out_users")
    if "fold_in" in given and given["fold_in"] != config.internal_config_dict["fold_in"] and not held_out:
        raise UserError(
            f"--fold_in={given['fold_in']} is read with --held_out_users alone; set it, such as to [0.1,0.1], or leave "
            "--fold_in out."
        )
    names = distiller_names(given.get("distill", config.internal_config_dict.get("distill")) or [])
    sections = merge(config.internal_config_dict, given)
    sevo = SEvoOptions.parse("sevo", sections["sevo"]) if "sevo" in config.internal_config_dict else None
    if given.get("teacher") and not names and (sevo is None or sevo.graph != "teacher"):
        raise UserError(
            "Section 'teacher' is set but not used: --distill is empty. Set --distill=NAME, such as rrd, or leave "
            "--teacher out."
        )
    if str(given.get("baseline") or "none").lower() not in ("none", "student") and not names:
        raise UserError(
            f"--baseline={given['baseline']} is set but not used: --distill is empty. Set --distill=NAME, such as rrd, "
            f"or compare plain models, recbole-kd compare --models={config.resolved.name},{given['baseline']}."
        )
    for key in given:
        if key in distillers() and key not in names:
            raise UserError(
                f"Section '{key}' is set but not used: --distill is {', '.join(names) or 'empty'}. "
                f"Add {key} to --distill or leave it out."
            )
        if key == "config_files":
            raise UserError(
                "config_files is set inside a file or a dict, where nothing reads it; give the files on the command "
                "line, --config_files=FILES, or in Python as config_file_list."
            )
        if key in config.internal_config_dict or key in ("model", "dataset"):
            continue
        if key not in readable_keys(config):
            own = TEACHER_KEYS if config.prefix else ()
            known = [config.prefix + name for name in [*own, *config.internal_config_dict, *names]]
            raise UnknownSetting(config.prefix + key, known)
    options = {name: distiller_class(name).options_class.parse(name, sections.get(name)) for name in names}
    known_keys.check({key: sections[key] for key in given}, config.internal_config_dict, config.prefix)
    # The teacher's other settings are checked when its own configuration is made.
    return options, sevo


def readable_keys(config: Any) -> set[str]:
    """Settings that RecBole or the model reads, whether or not they have a default."""
    keys = {key for category in config.parameters.values() for key in category}
    keys |= (_keys_read_by_recbole() - known_keys.OF_OTHER_MODELS) | keys_read_by_model(config.resolved.model_class)
    return keys | (set(TRANSFORMED_SHARES.values()) if config.external_config_dict.get("transform") else set())


def check_metrics(final: Mapping[str, Any]) -> None:
    """Refuses unknown metrics and cutoffs, and a ``valid_metric`` that is not computed."""
    metrics = [final["metrics"]] if isinstance(final["metrics"], str) else list(final["metrics"])
    for metric in metrics:
        if str(metric).lower() not in metric_types:
            raise UserError(
                f"Unknown metric '{metric}' in --metrics.{closest(str(metric), metric_types)} "
                f"Choices: {', '.join(sorted(metric_types))}."
            )
    _check_mode(metrics, final.get("eval_args") or {})
    cutoffs = final["topk"] if isinstance(final["topk"], (list, tuple)) else [final["topk"]]
    results = [known_keys.result_name(str(metric), cutoff) for metric in metrics for cutoff in cutoffs]
    if str(final["valid_metric"]).lower() not in map(str.lower, results):
        raise UserError(
            f"--valid_metric={final['valid_metric']} is not computed: --metrics={metrics}, --topk={list(cutoffs)}; "
            f"expected one of them, such as {results[0]}."
        )


def _check_mode(metrics: list[Any], evaluating: Mapping[str, Any]) -> None:
    """Refuses metrics that the evaluation mode in ``eval_args`` cannot compute."""
    ranking = [name for name in metrics if metric_types[str(name).lower()] == EvaluatorType.RANKING]
    labelled = [name for name in metrics if name not in ranking]
    mode = evaluating.get("mode", "full")
    modes = set(mode.values()) if isinstance(mode, Mapping) else {mode}
    with_labels = '--eval_args.mode=labeled with --threshold="{rating: 4}"'
    if ranking and labelled:
        raise UserError(
            f"--metrics has {ranking[0]}, which reads a ranking, and {labelled[0]}, which compares scores with labels; "
            f"one run computes one kind: leave {labelled[0]} out, or keep it alone with {with_labels}."
        )
    if labelled and "full" in modes:
        raise UserError(
            f"--metrics={metrics} compares scores with labels, but --eval_args.mode=full ranks all items; set "
            f"{with_labels}, or --eval_args.mode=uni100 for labels of 100 drawn negatives."
        )
    if ranking and "labeled" in modes:
        raise UserError(
            f"--metrics={metrics} needs a ranking, but --eval_args.mode=labeled scores only the rows of the split; "
            "set --eval_args.mode=full, or --metrics=[AUC] --valid_metric=AUC."
        )


#: RecBole's transforms of a batch's sequences -> the setting of the share that each changes.
TRANSFORMED_SHARES = {"mask_itemseq": "mask_ratio", "crop_itemseq": "eta", "reorder_itemseq": "beta"}


def check_transform(final: Mapping[str, Any], own: str | None, sequential: bool, prefix: str) -> None:
    """
    Args:
        final: the settings.
        own: the model's own transform.
        sequential: whether the model reads sequences.
        prefix: prefix of the model's settings.

    Raises:
        UserError: a transform of sequences for a model without sequences or with its own transform, a transform
            without its share, or RecBole's empty transform.
    """
    name = final["transform"]
    if own is not None and name != own:
        raise UserError(
            f"--{prefix}transform={name}: {final['student']} needs its own transform {own}; leave --transform out."
        )
    if name is None:
        return
    given, share = f"--{prefix}transform={name}", TRANSFORMED_SHARES.get(name, "")
    if not sequential:
        raise UserError(f"{given} changes sequences, but {final['student']} has none; leave it out.")
    if name == "user_defined":
        raise UserError(f"{given} is an empty template in RecBole; leave it out.")
    if share and (final.get(share) is None or not 0 <= final[share] <= 1):
        raise UserError(
            f"{given} needs the share of a sequence that it changes, from 0 to 1; set --{prefix}{share}, e.g. to 0.2."
        )


def check_files(config: Any) -> None:
    """Checks the files that RecBole's models unpickle: unpickling executes code in them."""
    for key in WEIGHT_FILES:
        if config.final_config_dict.get(key):
            load_any(str(config.final_config_dict[key]))
    if config.resolved.backbone == "LDiffRec":
        path = Path(config.final_config_dict["data_path"]) / "item_emb.npy"
        try:
            if path.exists():
                with open_regular(path):
                    np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UserError(
                f"'{path}' is not a plain array, so RecBole would execute code in it; save the items' vectors as "
                "numbers, with numpy.save."
            ) from None


def check_held_out(config: Any) -> None:
    """Refuses models and distillers that know users by rows of their own, where the users who are ranked are held out.

    Raises:
        UserError: such a model, and those that do; or such a distiller.
    """
    if held_out_users(config) is None:
        return
    if not ranks_held_out(config.resolved.model_class):
        raise UserError(
            f"--held_out_users ranks users whom no model was trained on, and {config.resolved.backbone} cannot rank "
            "them; name one that reads a user's items alone in its place "
            f"({', '.join(RANKING_HELD_OUT)}), or leave --held_out_users out."
        )
    if config["knn_method"] == "user":
        raise UserError(
            f"--{config.prefix}knn_method=user compares users, and --held_out_users leaves out those who are ranked; "
            f"set --{config.prefix}knn_method=item."
        )
    if "ir_rrd" in config.active_distillers():
        raise UserError(
            "ir_rrd draws users of each item from all users, and --held_out_users keeps some out of training; set "
            "--distill=rrd."
        )


def _keys_read(source: str) -> set[str]:
    return set(re.findall(r"""config(?:\.final_config_dict)?\[["'](\w+)["']\]""", source)) | set(
        re.findall(r"""config\.get\(["'](\w+)["']""", source)
    )


def keys_read_by_model(model_class: type[Any]) -> frozenset[str]:
    """Settings that the modules of a model and of its base classes read."""
    names = {base.__module__ for base in model_class.__mro__}
    return frozenset().union(*(_keys_read_by(name) for name in names if name.split(".")[0] not in _NO_MODEL))


@cache
def _keys_read_by(module: str) -> frozenset[str]:
    with suppress(OSError, TypeError, KeyError):  # a module without source
        return frozenset(_keys_read(inspect.getsource(sys.modules[module])))
    return frozenset()


@cache
def _keys_read_by_recbole() -> frozenset[str]:
    """Settings that RecBole's code for data, evaluation, sampling and training reads, found in its sources."""
    root = Path(recbole.__file__).parent
    folders = ("data", "evaluator", "sampler", "trainer", "utils", "quick_start")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    return frozenset().union(*(_keys_read(file.read_text(encoding="utf-8")) for file in files))
