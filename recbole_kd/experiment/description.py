"""An experiment as YAML that ``--config_files`` takes back, with the source of each value (``--dry_run=true``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from recbole_kd.experiment.checks import TEACHER_KEYS
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import BASELINE_LENGTHS, KDConfig
from recbole_kd.experiment.values import is_section, plain
from recbole_kd.registry import given_name

__all__ = ["describe"]

#: Where the comments begin.
_COLUMN = 56


def describe(experiment: Experiment) -> str:
    """The resolved settings, each with its source. As input they give the same experiment and the same digest.

    Training settings of teachers and the baseline follow as comments, unless section ``teacher`` has them.
    """
    config = experiment.settings
    first = ["model", "dataset", "student", "teacher", "distill", *config.distillers, "sevo", "baseline"]
    values = _values(config)
    rest = sorted((key for key in values if key not in first), key=lambda key: config.sources.get(key) == "RecBole")
    lines = ["# The resolved experiment. To run it: recbole-kd train --config_files=THIS_FILE"]
    open_keys = _open_keys(experiment)
    for key in [key for key in (*first, *rest) if key in values]:
        lines += _lines(
            key,
            values[key],
            lambda name: config.sources.get(name, "command line" if name in ("model", "dataset") else "RecBole"),
            open_keys,
        )
    for source in experiment.teachers:
        if source.settings is not None:
            named = source.prefix.rstrip(".")

            def told(key: str, source: Any = source) -> str:
                if key in source.section:
                    return config.sources.get(source.prefix + key) or config.sources.get(f"teacher.{key}", "this run")
                return _source(source.settings, key, "every teacher")

            lines += [f"# {named}, {source.settings['model']}, is trained with:", *_model(source.settings, told)]
    if experiment.baseline is not None:
        baseline = experiment.baseline
        lines += [
            f"# The baseline, {baseline['model']}, is trained with:",
            *_model(baseline, lambda key: _source(baseline, key, "the student")),
        ]
    return "\n".join(lines) + "\n"


def _values(config: KDConfig) -> dict[str, Any]:
    """The settings as a user would give them."""
    final = config.plain_values()
    settings = {**config.internal_config_dict, **config.external_config_dict}
    values = {key: final[key] for key in settings if key in final and key != "MODEL_TYPE"}
    named = {"model": config["model"], "dataset": config["dataset"], "data_path": config.data_root}
    values.update(named, distill=[given_name(name) for name in config.distillers])
    if not config["eval_batch_size_given"]:
        values["eval_batch_size"] = None
    if (values.get("train_neg_sample_args") or {}).get("distribution") == "none":
        values["train_neg_sample_args"] = None  # RecBole replaces None by a value that it refuses as input
    if not config.distillers and config.sevo is None:
        values.pop("teacher", None)  # nothing reads it, and it is an error in the input
    return values


def _open_keys(experiment: Experiment) -> set[str]:
    """Settings that stay comments: as input they would change the teacher or the baseline."""
    config, found = experiment.settings, set()
    if experiment.baseline is not None and experiment.baseline["model"] != config.resolved.backbone:
        found |= {key for key in BASELINE_LENGTHS if key not in config.external_config_dict}
    for source in experiment.teachers:
        if source.settings is None and source.named is None:
            given = config.external_config_dict.get("teacher") or {}
            kept = {*given, *TEACHER_KEYS} - {"model"}
            for prefix, section in (("teacher.", config["teacher"]), (source.prefix, source.section)):
                found |= {prefix + key for key in section if key not in kept and not key.isdigit()}
    return found


def _lines(
    key: str, value: Any, source: Callable[[str], str], open_keys: set[str], prefix: str = "", indent: str = ""
) -> Iterator[str]:
    name = prefix + key
    word = key if key.isidentifier() else json.dumps(key)
    if is_section(key, value):
        yield f"{indent}{word}:"
        for one, inner in value.items():
            yield from _lines(one, inner, source, open_keys, f"{name}.", f"{indent}  ")
        return
    text = f"{indent}{'# ' if name in open_keys else ''}{word}: {json.dumps(value, ensure_ascii=False)}"
    yield f"{text:<{_COLUMN}}  # {' '.join(source(name).split())}"


def _model(config: KDConfig, source: Callable[[str], str]) -> Iterator[str]:
    """The training settings of a plain model, as comments."""
    keys = {*config.model_keys(), "learning_rate_schedule", "fused_adam", "fast_sampling"} - {"student"}
    for key in sorted(keys & set(config.final_config_dict)):
        text = f"#   {key}: {json.dumps(plain(config[key]), ensure_ascii=False)}"
        yield f"{text:<{_COLUMN}}  # {' '.join(source(key).split())}"


def _source(config: KDConfig, key: str, given: str) -> str:
    """Source of a derived model's setting; `given` names the source if the model has none of its own."""
    source = config.sources.get(key, "RecBole")
    return given if source == "command line" else source
