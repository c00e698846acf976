"""The sources of settings in one list: layers of properties files below the layers that the user gives."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import TEACHER_FILES
from recbole_kd.experiment.values import leaves, merge, nest
from recbole_kd.files.properties import overall_properties, read_properties, read_yaml
from recbole_kd.registry import MODELS, Resolved, distiller_name, distillers, recipes

__all__ = ["Layer", "distiller_names", "merged", "precedence", "teacher_presets", "teacher_sections"]


@dataclass(frozen=True)
class Layer:
    """Settings of one source.

    Attributes:
        source: its name in the output of ``--dry_run``.
        settings: nested.
        given: whether it comes from the user: a file of settings or the command line.
        preset: whether it is a properties file of the model, recipe or student.
    """

    source: str
    settings: Mapping[str, Any]
    given: bool = False
    preset: bool = False


def precedence(recbole: Mapping[str, Any], resolved: Resolved, dataset: str, given: Sequence[Layer]) -> list[Layer]:
    """All sources of a run's settings, lowest to highest.

    They are: defaults of the run's distillers and optimiser, RecBole, ours, dataset, model or recipe, student, the last
    two for this dataset, YAML files, command line.

    Args:
        recbole: RecBole's own defaults for the architecture and the dataset.
        resolved: the model or recipe.
        dataset: the dataset's name.
        given: the user's layers: YAML files in their order, then the command line.
    """
    layers = [
        Layer("RecBole", recbole),
        Layer("properties/overall.yaml", overall_properties()),
        Layer(f"properties/dataset/{dataset}.yaml", read_properties("dataset", dataset)),
    ]
    if resolved.backbone not in MODELS:  # of another package: its defaults are in a file beside its module
        own = resolved.model_class.__mro__[1] if resolved.recipe else resolved.model_class
        beside = Path(inspect.getfile(own)).with_name(f"{resolved.backbone}.yaml")
        layers.append(Layer(beside.name, nest(read_yaml(beside)) if beside.is_file() else {}))
    for name in dict.fromkeys((resolved.backbone, resolved.name)):
        found = _file("model", name, dataset)
        if name != resolved.name:  # what distils the backbone by itself is not for a recipe
            found = [_without(layer, ("teacher", "distill", "baseline")) for layer in found]
        if name in recipes():  # a recipe serves any student; a file of its own holds settings for this one
            own_layers = _file("student", resolved.backbone, dataset)
            found = [layer for pair in zip(found, own_layers) for layer in pair]
        layers += found
    layers += given
    units = _units(layers)
    unused = (set(distillers()) | {"sevo"}) - {key for unit in units for key in unit.settings}
    return [*units, *(layer if layer.given else _without(layer, unused) for layer in layers)]


def _units(layers: Sequence[Layer]) -> list[Layer]:
    """Defaults of the optimiser and of the distillers that the layers name."""
    found = []
    if str(_last(layers, "learner")).lower().startswith("sevo_"):
        found.append(Layer("properties/optimizer/sevo.yaml", {"sevo": read_properties("optimizer", "sevo")}))
    names = _last(layers, "distill") or []
    if not isinstance(names, (list, tuple)):
        raise UserError(f"--distill={names!r} is not a list of distillers; expected names, such as --distill=simrec.")
    for name in distiller_names(names):
        found.append(Layer(f"properties/distiller/{name}.yaml", {name: read_properties("distiller", name)}))
    return found


def _last(layers: Sequence[Layer], key: str) -> Any:
    return next((layer.settings[key] for layer in reversed(layers) if key in layer.settings), None)


def _without(layer: Layer, keys: Iterable[str]) -> Layer:
    settings = {key: value for key, value in layer.settings.items() if key not in keys}
    return Layer(layer.source, settings, layer.given, layer.preset)


def _file(kind: str, name: str, dataset: str) -> list[Layer]:
    """A properties file's two layers: settings for all datasets, and for this dataset, which override them."""
    path, settings = f"properties/{kind}/{name}.yaml", dict(read_properties(kind, name))
    cases = settings.pop("for_dataset", {})
    return [
        Layer(path, nest(settings), preset=True),
        Layer(f"{path}, for {dataset}", nest(cases.get(dataset, {})), preset=True),
    ]


def merged(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of all layers, later ones overriding earlier ones, and each value's source by its dotted name."""
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        settings = merge(settings, layer.settings)
        sources.update(dict.fromkeys(leaves(layer.settings), layer.source))
    return settings, sources


def distiller_names(given: Iterable[Any]) -> list[str]:
    """The registered names of distillers, which may be given as "module:Class"; without the word "none"."""
    return [distiller_name(str(name)) for name in given if str(name).lower() != "none"]


def teacher_sections(teacher: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of each teacher in section ``teacher``, by its number; a single teacher without a number is "".

    Settings without a number hold for every teacher.

    Raises:
        UserError: settings of a teacher that does not exist.
    """
    section = dict(teacher)
    numbered = {key: section.pop(key) for key in list(section) if key.isdigit()}
    count = section.pop("count", None) or max(map(int, numbered), default=0) + 1
    for key in numbered:
        if key != str(int(key)) or int(key) >= count:
            raise UserError(
                f"teacher.{key} is set, but there are {count} teachers, counted from 0; name them all, as in "
                "--teacher=BPR,LightGCN."
            )
    if not numbered:
        return {"": section}
    return {str(index): merge(section, numbered.get(str(index)) or {}) for index in range(count)}


def teacher_presets(teacher: Mapping[str, Any], dataset: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Section ``teacher`` of a recipe, completed from each model's file in properties/teacher/.

    Returns:
        The section, and the source of each added value, by dotted name.
    """
    complete = dict(teacher)
    sources: dict[str, str] = {}
    for index, section in teacher_sections(teacher).items():
        if any(map(section.get, TEACHER_FILES)):
            continue
        preset, found = merged(_file("teacher", str(section.get("model")), dataset))
        missing = {key: value for key, value in preset.items() if key not in section}
        prefix = f"teacher.{index}." if index else "teacher."
        sources.update({prefix + key: source for key, source in found.items() if key.split(".")[0] in missing})
        if index:
            complete[index] = {**missing, **(complete.get(index) or {})}
        else:
            complete = {**missing, **complete}
    return complete, sources
