"""Every dependency is declared, imported, and has its reason in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Package -> what it is imported as, where that differs.
IMPORTED_AS = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "pyyaml": "yaml", "setuptools": None, "ray": "ray"}
WITH_RECBOLE = {"tqdm", "pyyaml", "colorama"}


def _declared() -> dict[str, set[str]]:
    """Names of the packages that setup.cfg requires, and of those that extras do."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = "\n".join(config["options.extras_require"].values())
    return {
        "required": {_name(line) for line in config["options"]["install_requires"].split("\n") if line.strip()},
        "extras": {_name(line) for line in extras.split("\n") if line.strip()},
    }


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement.strip())
    assert found is not None, requirement
    return found[0]


def _table() -> set[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (?!package|---)([^|]+) \|", text.partition("## Dependencies")[2], re.MULTILINE)
    return {_name(name) for row in rows for name in row.split(", ")}


def _imports() -> set[str]:
    """Top-level names that the package imports and the standard library does not have."""
    found = set()
    for path in (ROOT / "recbole_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - {"recbole_kd"}


def test_each_has_its_reason() -> None:
    declared = _declared()
    assert _table() == declared["required"] | declared["extras"] | WITH_RECBOLE


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the standard library lists its modules since Python 3.10")
def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    used = _imports() - sys.stdlib_module_names - {"pytest"}  # recbole_kd.testing, which only tests import
    declared = _declared()
    names = {IMPORTED_AS.get(name, name) for name in declared["required"] | {"faiss-cpu"} | WITH_RECBOLE}
    assert used - {"faiss"} == names - {None, "faiss"}
