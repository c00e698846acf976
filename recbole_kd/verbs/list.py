"""``recbole-kd list``: one line for each name that the command line accepts, or one of them with all details."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole

from recbole_kd.contracts import CAPABILITIES
from recbole_kd.data.preparable import PREPARABLE
from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import known_keys, of_a_model
from recbole_kd.experiment.values import leaves, nest
from recbole_kd.files.properties import PROPERTIES, dataset_names, read_properties, read_yaml
from recbole_kd.options import Described, as_text, described, expected
from recbole_kd.registry import (
    MODELS,
    ModelEntry,
    distiller_class,
    distiller_name,
    distillers,
    load_class,
    lookup,
    models,
    recipes,
)
from recbole_kd.student.readers import capabilities, capabilities_of
from recbole_kd.verbs.help import entries
from recbole_kd.verbs.options import KINDS, ListOptions

_RECBOLE = Path(recbole.__file__).parent / "properties"


def run(options: ListOptions, settings: dict[str, Any]) -> None:
    """The verb."""
    if options.name is not None:
        print(_one(str(options.kind), options.name, options.data_path))
    else:
        print(listing([options.kind] if options.kind else KINDS, options.data_path, options.all))


def listing(kinds: Sequence[str], data_path: str, everything: bool = False) -> str:
    """The lists of these kinds: students, teachers, distillers, recipes, datasets.

    Args:
        everything: also the datasets that are neither on this machine nor made by the program.
    """
    makers = {
        "students": _students,
        "teachers": _teachers,
        "distillers": _distillers,
        "recipes": _recipes,
        "datasets": lambda: _datasets(data_path, everything),
    }
    parts = [f"{kind.capitalize()}\n{_lines(makers[kind]())}" for kind in kinds]
    if "datasets" in kinds and not everything:
        more = len(_datasets(data_path, True)) - len(_datasets(data_path, False))
        parts[-1] += f"\n  {more} more that RecBole names: recbole-kd list --kind=datasets --all=true"
    return "\n\n".join(parts)


def _lines(rows: dict[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in rows.items())


def _students() -> dict[str, str]:
    return {name: f"{entry.summary} {_offers(entry)}" for name, entry in models().items() if entry.gradient}


def _teachers() -> dict[str, str]:
    rows = {
        name: entry.summary
        + ("" if entry.gradient else " (closed form: a teacher, not a student)")
        + f" {_offers(entry)}"
        for name, entry in models().items()
    }
    return {
        **rows,
        "--teacher.ranks=FILE": "a file of another system [ranks; listed_scores with a column score]",
        "--teacher.vectors=FILE": "a file of another system [item_representations; representations with users]",
    }


def _offers(entry: ModelEntry) -> str:
    """A model's capabilities, and a package that it requires, if any."""
    requires = f"; requires {entry.requires}" if entry.requires else ""
    if entry in MODELS.values():
        kind = entry.path.partition(":")[2]
        return f"[{', '.join(sorted(capabilities_of(kind, entry.sequential)))}{requires}]"
    try:
        offered = sorted(capabilities(load_class(entry.path)))
    except (ImportError, AttributeError, ValueError) as error:
        return f"[cannot be loaded: {error}]"
    return f"[{', '.join(offered)}{requires}]"


def _distillers() -> dict[str, str]:
    rows = {}
    for name, entry in distillers().items():
        try:
            kind = distiller_class(name)
        except UserError as error:
            rows[name] = str(error)
            continue
        options = kind.options_class()
        roles = {"student": options.needs.student, "teacher": options.needs.teacher}
        if entry.sequential:
            roles["of sequential models"] = options.sequence_needs.student
        needs = [f"{role}: {', '.join(sorted(wanted))}" for role, wanted in roles.items() if wanted]
        paragraph = (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n\n")[0]
        rows[name] = f"{' '.join(paragraph.split()).rstrip('.')} [needs {'; '.join(needs) or 'nothing'}]"
    return {**rows, **{f"({name})": text for name, text in CAPABILITIES.items()}}


def _recipes() -> dict[str, str]:
    rows = {"SimRecStudent": "SimRecTeacher -> SimRecStudent, distill simrec (an architecture of its own)"}
    for name, recipe in recipes().items():
        section = recipe.get("teacher") or {}
        named = [section, *(section[key] for key in sorted(section) if key.isdigit())]
        teacher = " + ".join(one["model"] for one in named if "model" in one) or "a teacher of your choice"
        rows[name] = f"{teacher} -> {recipe['student']}, distill {', '.join(recipe.get('distill') or [])}"
    return rows


def _datasets(data_path: str, everything: bool) -> dict[str, str]:
    names = dataset_names(data_path)
    texts = {name: f"in {data_path}" for name in names if (Path(data_path) / name).is_dir()}
    texts["ml-100k"] = "inside RecBole"
    for name, entry in PREPARABLE.items():
        texts.setdefault(name, f"recbole-kd prepare: {entry.description}")
    for file in sorted(PROPERTIES.glob("dataset/*.yaml")):
        texts.setdefault(file.stem, f"not on this machine; its settings are in properties/dataset/{file.name}")
    for name in names if everything else ():
        texts.setdefault(name, "recbole-kd prepare: RecBole's zip, as it is")
    return texts


# One in full


def _one(kind: str, name: str, data_path: str) -> str:
    """The details of one name: its description, and its options with defaults, ranges and meanings."""
    if kind == "datasets":
        name = lookup("dataset", name, _datasets(data_path, True), "name")
        return f"{name}: {_datasets(data_path, True)[name]}"
    if kind == "distillers":
        name = distiller_name(name)
        options = list(described(distiller_class(name).options_class, f"{name}."))
        return f"{name}: {_distillers()[name]}\n\n{entries(options)}"
    if kind == "recipes":
        name = lookup("recipe", name, _recipes(), "name")
        presets = (f"{source}\n{_wrapped(flags)}" for source, flags in _presets(name))
        return f"{name}: {_recipes()[name]}\n\nIts presets; later ones override earlier ones:\n\n" + "\n".join(presets)
    name = lookup("model", name, models(), "name")
    return f"{name}: {models()[name].summary} {_offers(models()[name])}\n\n{entries(_settings_of(name))}"


def _settings_of(model: str) -> Iterator[Described]:
    """A model's own settings, from the files of their defaults."""
    module = inspect.getmodule(load_class(models()[model].path))
    beside = Path(str(getattr(module, "__file__", ""))).with_name(f"{model}.yaml")
    defaults: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for file in (_RECBOLE / "model" / f"{model}.yaml", beside, PROPERTIES / "model" / f"{model}.yaml"):
        if file.is_file():
            defaults |= read_yaml(file)
            text = file.read_text(encoding="utf-8")
            comments |= re.findall(r"^([\w-]+):.*?#\s*(?:\([^)]*\)\s*)?(.*)$", text, re.M)
    known = {one.name: one for _, group in known_keys() for one in group}
    for key, default in defaults.items():
        if key in ("for_dataset", "teacher", "distill", "baseline"):
            continue  # of a model that is a recipe too
        bounded = of_a_model(key, defaults) if not isinstance(default, list) else None
        text = "" if default is None else as_text(default)
        takes = expected(*bounded) if bounded else known[key].expected if key in known else ""
        meaning = comments.get(key, known[key].help if key in known else "").rstrip(" .")
        yield Described(key, type(default), text, takes, meaning, "VALUE")


def _wrapped(words: Sequence[str]) -> str:
    indent = " " * 4
    text = " ".join(words)
    return textwrap.fill(
        text, 110, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _presets(recipe: str) -> Iterator[tuple[str, list[str]]]:
    """Files that preset settings of a recipe, lowest first, each with its settings as the command line takes them."""
    properties = read_properties("model", recipe)
    section = nest(properties).get("teacher") or {}
    teachers = {f"teacher.{key}.": one for key, one in section.items() if key.isdigit()} or {"teacher.": section}
    files = [("teacher", one["model"], prefix) for prefix, one in teachers.items() if one.get("model")]
    own = [("model", recipe, ""), ("student", properties.get("student", ""), "")]
    for group in (files, own) if recipe in recipes() else ([], own):
        # Presets for all datasets come before those for one dataset.
        for kind, name, prefix in group:
            settings = read_properties(kind, name)
            settings.pop("for_dataset", None)
            yield from _flags(f"properties/{kind}/{name}.yaml", settings, prefix)
        for kind, name, prefix in group:
            for dataset, settings in read_properties(kind, name).get("for_dataset", {}).items():
                yield from _flags(f"properties/{kind}/{name}.yaml, for {dataset}", settings, prefix)


def _flags(source: str, settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, list[str]]]:
    nested = nest(settings)
    if nested:
        yield source, [f"--{prefix}{key}={as_text(_at(nested, key))}" for key in leaves(nested)]


def _at(settings: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted name."""
    value: Any = settings
    for part in key.split("."):
        value = value[part]
    return value
