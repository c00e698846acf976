"""Values of settings: nested by their dotted names, merged, compared and written out."""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import recbole

from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import TEACHER_FILES

__all__ = ["DATASET_KEYS", "at", "is_section", "leaves", "like", "merge", "nest", "plain"]

_LISTS = Path(recbole.__file__).parent / "utils" / "argument_list.py"
#: RecBole's keys of datasets, read from the file: every Config appends to the lists in the module, and importing the
#: module's package imports pandas and TensorBoard.
DATASET_KEYS: tuple[str, ...] = tuple(runpy.run_path(str(_LISTS))["dataset_arguments"])
#: RecBole's settings that are mappings and replaced as a whole. In other mappings (the sections of units, eval_args,
#: train_neg_sample_args) given keys are replaced and the others stay.
_WHOLE = frozenset({*DATASET_KEYS, "clip_grad_norm", "split"})
#: Whole numbers below this are exact as floats.
_EXACT = 2**53


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turns dotted keys into nested mappings, and expands short forms.

    ``teacher.embedding_size`` goes into section ``teacher``; ``teacher: LightGCN`` is short for ``teacher.model``, and
    ``teacher: "BPR,LightGCN"``, or a list, for ``teacher.0.model`` and ``teacher.1.model``;
    ``distill: "de,rrd"`` is a list.
    """
    nested: dict[str, Any] = {}
    for key in settings:
        if not isinstance(key, str) or not key:
            raise UserError(f"A setting's name is {key!r}; expected a word, such as epochs.")
    # A section given as a whole first, then its settings: the order in which they are written does not matter.
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        section, dot, rest = key.partition(".")
        if dot and not (section and rest):
            raise UserError(f"Setting '{key}' has an empty part; expected section.option, such as teacher.epochs.")
        if section == "teacher" and not dot and not isinstance(value, Mapping) and value is not None:
            value = _teacher_section(value)
        if section == "distill" and isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if dot:
            value = nest({rest: value}) if "." in rest else {rest: value}
        if section == "teacher" and isinstance(value, Mapping):  # teacher.0: LightGCN is short for teacher.0.model
            value = {
                str(name): {"model": one} if str(name).isdigit() and isinstance(one, str) else one
                for name, one in value.items()
            }
        nested = _together(nested, {section: value})
    return nested


def _together(some: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of one source, together; :func:`merge` has the rules between sources."""
    both = dict(some)
    for key, value in more.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _together(both[key], value) if nested else value
    return both


def _teacher_section(value: Any) -> dict[str, Any]:
    """Section ``teacher`` from its short forms: a model's name, several with commas, or a list of names or sections.

    ``count`` is their number; teachers from a source of lower priority are dropped.
    """
    given = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        given = [given]
    sections = [nest(element) if isinstance(element, Mapping) else {"model": element} for element in given]
    if len(sections) == 1:
        return sections[0]
    return {"count": len(sections), **{str(index): section for index, section in enumerate(sections)}}


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` with `high` taking precedence; mappings are merged key by key, except those that RecBole takes as a whole.

    ``teacher.epochs`` in `high` also overrides ``teacher.0.epochs`` in `low`.
    """
    if any(key.isdigit() for key in low):
        if any(key in high for key in ("count", "model", *TEACHER_FILES)):  # the teachers are named again
            low = {key: value for key, value in low.items() if key != "count" and not key.isdigit()}
        low = {
            key: {name: one for name, one in value.items() if name not in high} if key.isdigit() and value else value
            for key, value in low.items()
        }
    merged = dict(low)
    for key, value in high.items():
        whole = key in _WHOLE
        if not whole and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def is_section(key: str, value: Any) -> bool:
    """Whether a value is a mapping whose names can be given one by one; RecBole takes some as a whole."""
    return isinstance(value, Mapping) and bool(value) and key not in _WHOLE


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values in nested settings; a mapping that RecBole takes as a whole is one value."""
    for key, value in settings.items():
        if is_section(key, value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def at(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted name in nested settings; single names may contain dots too."""
    if key in settings:
        return settings[key]
    name = next(name for name in settings if key.startswith(f"{name}."))
    return at(settings[name], key[len(name) + 1 :])


def plain(value: Any) -> Any:
    """`value` in plain types, for checkpoints, digests and results; other types become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def like(value: Any, default: Any) -> Any:
    """A whole number in the type of its default (0 or 0.0), so that equal settings have equal digests.

    RecBole also needs ints where it counts.
    """
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return {key: like(one, default.get(key)) for key, one in value.items()}
    plain = {type(value), type(default)} == {int, float} and abs(value) < _EXACT
    return type(default)(value) if plain and value == int(value) else value
