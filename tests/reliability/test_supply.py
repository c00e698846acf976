"""Every dependency is declared, imported here or by RecBole, and has its reason in docs/environment.md."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Package -> what it is imported as, where that differs.
IMPORTED_AS = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "pyyaml": "yaml"}
#: What RecBole imports where we do: of training, evaluation and its own `run_recbole`.
OF_RECBOLE = ("config", "data", "evaluator", "model", "quick_start", "sampler", "trainer", "utils")
#: What RecBole imports only in models, or for settings, that need a package more; its error or ours names it.
OPTIONAL = {"community", "dgl", "faiss", "hyperopt", "kmeans_pytorch", "lightgbm", "networkx", "torch_geometric"}
OPTIONAL |= {"torch_scatter", "wandb", "xgboost"}
#: What is imported only where a setting or verb asks for it (--log_wandb, --log_mlflow, serve), and named in a line where
#: it is missing; pydantic comes with fastapi.
ASKED_FOR = {"fastapi", "fastapi_offline", "mlflow", "pydantic", "uvicorn", "wandb"}


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
    text = (ROOT / "docs" / "environment.md").read_text()
    rows = re.findall(r"^\| (?!package|---)([^|]+) \|", text.partition("## Dependencies")[2], re.MULTILINE)
    return {_name(name) for row in rows for name in row.split(", ")}


def _imports(folder: Path) -> set[str]:
    """Top-level names that a package's modules import and the standard library does not have."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"recbole_kd", "recbole", "pytest"}  # pytest: recbole_kd.testing


def test_each_has_its_reason() -> None:
    declared = _declared()
    assert _table() == declared["required"] | declared["extras"]


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    recbole = Path(str(importlib.util.find_spec("recbole").origin)).parent
    used = _imports(ROOT / "recbole_kd") | set().union(*(_imports(recbole / part) for part in OF_RECBOLE)) - OPTIONAL
    names = {IMPORTED_AS.get(name, name) for name in _declared()["required"]}
    assert used - {"faiss"} - ASKED_FOR | {"tensorboard"} == names, "tensorboard is imported by torch.utils.tensorboard"


def test_recbole_itself_is_not_asked_for() -> None:
    """Its own requirements would come with it, and among them a Ray that lets strangers in."""
    assert "recbole" not in _declared()["required"]
