"""What ``recbole-kd list`` prints: everything that can be named on the command line, a line each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from recbole_kd.contracts import CAPABILITIES
from recbole_kd.data.prepare import PREPARABLE
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import dataset_names
from recbole_kd.registry import ModelEntry, distiller_class, distillers, load_class, models, recipes
from recbole_kd.student.readers import capabilities


def listing(kinds: Sequence[str], data_path: str) -> str:
    """The lists of these kinds: students, teachers, distillers, recipes, datasets."""
    makers = {
        "students": _students,
        "teachers": _teachers,
        "distillers": _distillers,
        "recipes": _recipes,
        "datasets": lambda: _datasets(data_path),
    }
    return "\n\n".join(f"{kind.capitalize()}\n{_lines(makers[kind]())}" for kind in kinds)


def _lines(rows: dict[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in rows.items())


def _students() -> dict[str, str]:
    return {name: f"{entry.summary} {_offers(entry)}" for name, entry in models().items() if entry.gradient}


def _teachers() -> dict[str, str]:
    rows = {
        name: entry.summary
        + ("" if entry.gradient else " (closed form: teaches, does not learn)")
        + f" {_offers(entry)}"
        for name, entry in models().items()
    }
    return {**rows, "--teacher.ranks=FILE": "a file of another system [ranks; listed_scores with a column score]"}


def _offers(entry: ModelEntry) -> str:
    """What a distiller can read of a model; some of it needs a package more."""
    requires = f"; requires {entry.requires}" if entry.requires else ""
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


def _datasets(data_path: str) -> dict[str, str]:
    names = dataset_names(data_path)
    texts = {"ml-100k": "inside RecBole"}
    texts |= {name: f"recbole-kd prepare: {entry.description}" for name, entry in PREPARABLE.items()}
    texts |= {name: f"in {data_path}" for name in names if (Path(data_path) / name).is_dir()}
    return {name: texts.get(name, "") for name in names}
