"""Imports go downwards only: what each part of the package may import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import recbole_kd

ROOT = Path(recbole_kd.__file__).parent
#: Units that any part may use: they know nothing of models, distillers or training.
BASE = {"errors", "options", "checkpoint", "properties_files", "text"}

#: Part -> parts of the package that it may import beside BASE and itself.
ALLOWED = {
    "loss": set(),
    "optimizer": set(),
    "data": set(),
    "model": {"loss", "data"},
    "distiller": {"loss", "data", "contracts"},
    "contracts": {"data"},
    "evaluation": {"data"},
    "representation": {"contracts", "loss"},
    "trainer": {"contracts", "distributed", "evaluation", "optimizer"},
    "distributed": {"contracts", "evaluation", "processes"},
    "bare_teacher": {"contracts"},
    "rank_file": {"bare_teacher", "data"},
    "ensemble": {"bare_teacher", "data"},
    "teacher": {
        *(
            "bare_teacher",
            "config",
            "contracts",
            "data",
            "ensemble",
            "learner",
            "loaders",
            "model",
            "rank_file",
            "representation",
            "trainer",
        ),
    },
    "registry": {"contracts"},
    "config": {"data", "registry"},
    "learner": {"config", "contracts", "data", "optimizer", "representation"},
    "loaders": {"data", "evaluation"},
    "listing": {"config", "contracts", "data", "registry", "representation"},
    "recommend": {"data", "evaluation", "quick_start", "teacher"},
    "export": {"data", "evaluation", "quick_start", "recommend"},
    "report": set(),
    "processes": set(),
    "compare": {
        *("config", "data", "evaluation", "learner", "loaders", "processes", "quick_start", "report", "representation"),
        *("teacher", "trainer", "tune"),
    },
}
#: Third-party packages that a part is limited to; others may use any.
THIRD_PARTY = {
    "loss": {"torch"},
    "optimizer": {"torch"},
}


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    part = _part(path)
    for module in _imports(path):
        top, _, rest = module.partition(".")
        if top == "recbole_kd" and part in ALLOWED:
            imported = rest.split(".")[0]
            assert imported in {part, *ALLOWED[part], *(BASE if part not in THIRD_PARTY else ())}, module
        if top == "ray":
            assert part == "tune", "Ray is imported by tune alone"
        if part in THIRD_PARTY and top not in ("recbole_kd", "__future__"):
            standard = getattr(sys, "stdlib_module_names", None)  # since Python 3.10
            assert standard is None or top in standard or top in THIRD_PARTY[part], module


def test_only_the_command_line_reads_sys_argv() -> None:
    readers = [path.name for path in ROOT.rglob("*.py") if "sys.argv" in path.read_text().replace("sys.argv where", "")]
    assert set(readers) <= {"cli.py", "settings.py"}
    code = ast.parse((ROOT / "experiment" / "settings.py").read_text())
    assert not [node for node in ast.walk(code) if isinstance(node, ast.Attribute) and node.attr == "argv"]
