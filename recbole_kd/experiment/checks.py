"""What is refused among settings before anything is read or trained: names, types, ranges, files that execute code."""

from __future__ import annotations

import inspect
import math
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

from recbole_kd.contracts import DistillerOptions
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.presets import distiller_names
from recbole_kd.experiment.values import merge, same_kind
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.reading import open_regular
from recbole_kd.options import LARGEST_INT, check_names, is_whole
from recbole_kd.registry import distiller_class, distillers
from recbole_kd.sevo.graphs import SEvoOptions

__all__ = ["PICKLES", "TEACHER_KEYS", "check_files", "check_known", "check_metrics", "check_values"]

#: What RecBole reads of its mappings that have a fixed set of names; the rest it passes over in silence.
_RECBOLE_SECTIONS = {
    "eval_args": ("split", "group_by", "order", "mode"),
    "eval_args.mode": ("valid", "test"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
}
_SCALAR_OR_LIST = ("metrics", "topk", "distill")
#: What section ``teacher`` holds beside the settings of the teacher's model.
TEACHER_KEYS = ("model", "checkpoint", "ranks", "allow_other_split", "count", "share", "fusion")
#: Packages of a model's bases that read no settings.
_NO_MODEL = ("torch", "builtins", "abc", "typing")
#: RecBole keeps these as pickles, which execute code when read.
PICKLES = ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders")
#: RecBole's marks of one process among several; given, RecBole would start on nccl and weight metrics by batches.
_PROCESS = ("local_rank", "single_spec", "offset", "world_size", "group_offset", "ip", "port")
#: Files of weights that RecBole's models unpickle.
_WEIGHT_FILES = ("mf_pretrain_path", "mlp_pretrain_path", "pretrain_path", "pre_model_path")

#: (least, most, whole) of RecBole's numbers, which RecBole itself does not check.
_RANGES: dict[str, tuple[float | None, float | None, bool]] = {
    "epochs": (0, None, True),
    "train_batch_size": (1, None, True),
    "eval_batch_size": (1, None, True),
    "eval_step": (0, None, True),
    "stopping_step": (0, None, True),
    "embedding_size": (1, None, True),
    "mf_embedding_size": (1, None, True),
    "mlp_embedding_size": (1, None, True),
    "hidden_size": (1, None, True),
    "inner_size": (1, None, True),
    "n_heads": (1, None, True),
    "num_layers": (1, None, True),
    "MAX_ITEM_LIST_LENGTH": (1, None, True),
    "n_layers": (0, None, True),
    "worker": (0, None, True),
    "seed": (0, 2**32 - 1, True),
    "nproc": (1, 1024, True),
    "split_seed": (0, 2**32 - 1, True),
    "metric_decimal_place": (1, 16, True),
    "learning_rate": (1e-12, None, False),
    "weight_decay": (0, None, False),
    "reg_weight": (0, None, False),
    "temperature": (1e-12, None, False),
}
_DROPOUT = (0, 1, False)
_SCHEDULES = ("constant", "cosine")
_FUSIONS = ("ranks", "scores")


def check_known(config: Any) -> tuple[dict[str, DistillerOptions], SEvoOptions | None]:
    """Refuses settings that nothing reads; the checked options of the distillers by name, and those of SEvo."""
    given = config.external_config_dict
    for key in _PROCESS:
        if key in given:
            raise UserError(
                f"--{key} is the launcher's to say: set --nproc=2 for two processes here, or start several machines "
                "with torchrun (docs/scale.md)."
            )
    for key in PICKLES:
        if given.get(key):
            raise UserError(
                f"--{key} is not supported: RecBole keeps datasets as pickles, which execute code. Leave it out."
            )
    names = distiller_names(given.get("distill", config.internal_config_dict.get("distill")) or [])
    if given.get("teacher") and not names and "sevo" not in config.internal_config_dict:
        raise UserError(
            "Section 'teacher' is set but not used: --distill is empty. Set --distill=NAME, such as rrd, or leave "
            "--teacher out."
        )
    for key in given:
        if key in distillers() and key not in names:
            raise UserError(
                f"Section '{key}' is set but not used: --distill is {', '.join(names) or 'empty'}. "
                f"Add {key} to --distill or leave it out."
            )
        if key in config.internal_config_dict or key in ("model", "dataset", "config_files"):
            continue
        if key not in readable_keys(config):
            own = TEACHER_KEYS if config.prefix else ()
            known = [config.prefix + name for name in [*own, *config.internal_config_dict, *names]]
            raise UserError(
                f"Unknown setting '{config.prefix}{key}': no part of the program reads it."
                f"{closest(config.prefix + key, known)}"
            )
    for section, read in _RECBOLE_SECTIONS.items():
        value: Any = given
        for part in section.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            check_names(config.prefix + section, value, read)
    sections = merge(config.internal_config_dict, given)
    sevo = SEvoOptions.parse("sevo", sections["sevo"]) if "sevo" in config.internal_config_dict else None
    options = {name: distiller_class(name).options_class.parse(name, sections.get(name)) for name in names}
    # What the teacher reads beyond these is checked when its own configuration is made.
    return options, sevo


def readable_keys(config: Any) -> set[str]:
    """Settings that RecBole or the model reads, whether or not they have a default."""
    keys = {key for category in config.parameters.values() for key in category}
    return keys | _keys_read_by_recbole() | keys_read_by_model(config.resolved.model_class)


def check_metrics(final: Mapping[str, Any]) -> None:
    """Refuses metrics and cutoffs that RecBole does not know, and a choice of the epoch by another metric."""
    metrics = [final["metrics"]] if isinstance(final["metrics"], str) else list(final["metrics"])
    for metric in metrics:
        if str(metric).lower() not in metric_types:
            raise UserError(
                f"Unknown metric '{metric}' in --metrics.{closest(str(metric), metric_types)} "
                f"Choices: {', '.join(sorted(metric_types))}."
            )
    cutoffs = final["topk"] if isinstance(final["topk"], (list, tuple)) else [final["topk"]]
    if not cutoffs or not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in cutoffs):
        raise UserError(f"--topk={final['topk']!r}; expected whole numbers above 0, such as --topk=[10,20].")
    name, _, cutoff = str(final["valid_metric"]).partition("@")
    computed = name.lower() in [str(metric).lower() for metric in metrics]
    if not computed or (cutoff and cutoff not in map(str, cutoffs)):
        raise UserError(
            f"--valid_metric={final['valid_metric']} is not computed: --metrics={metrics}, --topk={list(cutoffs)}; "
            f"expected one of them, such as {metrics[0]}@{cutoffs[0]}."
        )


def check_values(config: Any) -> None:
    """Refuses values of a wrong type or out of range."""
    final = config.final_config_dict
    schedule = final["learning_rate_schedule"]
    if schedule not in _SCHEDULES:
        raise UserError(
            f"--{config.prefix}learning_rate_schedule={schedule!r} is not one of {', '.join(_SCHEDULES)}."
            f"{closest(str(schedule), _SCHEDULES)}"
        )
    if final["fused_adam"] not in (None, True, False):
        raise UserError(f"--{config.prefix}fused_adam={final['fused_adam']!r}; expected True or False.")
    if not config.prefix:
        _check_fusion(final["teacher"])
    for key, value in final.items():
        _check_range(config, key, value)
        default = config.internal_config_dict.get(key)
        if key in config.external_config_dict and key not in _SCALAR_OR_LIST and not same_kind(value, default):
            raise UserError(
                f"--{config.prefix}{key}={value!r} is of another type than its default {default!r}; "
                f"set a value such as --{config.prefix}{key}={default}."
            )


def _check_fusion(teacher: Any) -> None:
    section = dict(teacher) if isinstance(teacher, Mapping) else {}
    if section.get("fusion", "ranks") not in _FUSIONS:
        raise UserError(f"--teacher.fusion={section['fusion']!r} is not one of {', '.join(_FUSIONS)}.")
    for key, own in {"": section, **{f"{key}.": own for key, own in section.items() if key.isdigit()}}.items():
        share = (own or {}).get("share", 1)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise UserError(f"--teacher.{key}share={share!r}; expected a number above 0.")
        if key and "fusion" in (own or {}):
            raise UserError(f"--teacher.{key}fusion is set, and all teachers are fused alike; set --teacher.fusion.")


def check_files(config: Any) -> None:
    """Looks at the files that RecBole's models unpickle, as that executes what is in them."""
    for key in _WEIGHT_FILES:
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
                f"'{path}' is no plain array, and RecBole would execute what is in it; save the items' vectors as "
                "numbers, with numpy.save."
            ) from None


def _check_range(config: Any, key: str, value: Any) -> None:
    least, most, whole = _RANGES.get(key, _DROPOUT if "dropout" in key else (None, None, False))
    if least is None or value is None or isinstance(value, (bool, list)):
        return
    bound = f"between {least:g} and {most:g}" if most is not None else f"of at least {least:g}"
    expected = f"expected a {'whole ' if whole else ''}number {bound}."
    number = isinstance(value, (int, float)) and not (whole and not is_whole(value))
    largest = LARGEST_INT if whole else sys.float_info.max
    if not number or not least <= value <= (most if most is not None else largest):
        raise UserError(f"--{config.prefix}{key}={value!r}; {expected}")


def _keys_read(source: str) -> set[str]:
    return set(re.findall(r"""config(?:\.final_config_dict)?\[["'](\w+)["']\]""", source)) | set(
        re.findall(r"""config\.get\(["'](\w+)["']""", source)
    )


def keys_read_by_model(model_class: type[Any]) -> frozenset[str]:
    """Settings that the modules of a model and of its bases read, RecBole's and any other package's."""
    names = {base.__module__ for base in model_class.__mro__}
    return frozenset().union(*(_keys_read_by(name) for name in names if name.split(".")[0] not in _NO_MODEL))


@cache
def _keys_read_by(module: str) -> frozenset[str]:
    with suppress(OSError, TypeError, KeyError):  # a module without source tells nothing
        return frozenset(_keys_read(inspect.getsource(sys.modules[module])))
    return frozenset()


@cache
def _keys_read_by_recbole() -> frozenset[str]:
    """Settings that RecBole's data, evaluation, sampling and training code reads, found in its sources."""
    root = Path(recbole.__file__).parent
    folders = ("data", "evaluator", "sampler", "trainer", "utils", "quick_start")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    return frozenset().union(*(_keys_read(file.read_text(encoding="utf-8")) for file in files))
