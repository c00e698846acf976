"""The house: every module has a layer, and imports only lower layers or its own folder. No circle, at any depth.

``python -m tests.test_imports`` draws the house from the sources: each folder with the folders that it imports.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "recbole_kd"

#: The layers from the lowest to the highest. An entry is a module or a folder; the longest entry that fits counts.
LAYERS = (
    ("errors", "text"),
    ("compat",),
    ("options",),
    ("verbs.options",),
    ("files",),
    ("loss.common",),
    ("loss.kernel",),
    ("loss",),
    ("data",),
    ("contracts",),
    ("evaluation", "model"),
    ("student",),
    ("distiller.base",),
    ("distiller",),
    ("sevo",),
    ("registry",),
    ("host",),
    ("experiment",),
    ("cluster",),
    ("trainer",),
    ("teacher",),
    ("stages",),
    ("report",),
    ("verbs",),
    ("cli", "testing", "__init__"),
)
#: Modules of an inner layer that import fewer packages than others may.
THIRD_PARTY = {
    "loss.kernel.gather": {"torch", "scipy"},
    "loss": {"torch"},
    "sevo.optimizer": {"torch"},
    "errors": set(),
    "options": set(),
    "cli": set(),
}
#: The only places that import Ray.
RAY = ("cluster.ray", "stages.shards", "verbs.tune")


def name_of(path: Path) -> str:
    """``distiller.base.lists`` for recbole_kd/distiller/base/lists.py; a folder's ``__init__`` is the folder itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Full names that a file imports, also inside functions and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import from the package's root, not relatively"
            # `from recbole_kd.loss import ranking` imports a module.
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {full for full in modules if full.removeprefix("recbole_kd.") in MODULES}
            found |= known or {str(node.module)}
    return found


@cache
def edges() -> dict[str, set[str]]:
    """Module -> the package's modules that it imports."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        inside = (full for full in imported(path) if full.partition(".")[0] == "recbole_kd")
        graph[name] = {full.partition(".")[2] or "__init__" for full in inside} - {name}
    return graph


def layer_of(module: str) -> tuple[int, str]:
    """(height, entry of LAYERS) of a module.

    Raises:
        KeyError: it has no layer.
    """
    places = {entry: height for height, layer in enumerate(LAYERS) for entry in layer}
    fitting = [entry for entry in places if module == entry or module.startswith(entry + ".")]
    if not fitting:
        raise KeyError(f"recbole_kd.{module} has no layer: name it, or its folder, in LAYERS")
    entry = max(fitting, key=len)
    return places[entry], entry


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_lower_layers_and_its_own_folder(module: str) -> None:
    height, own = layer_of(module)
    for other in edges()[module]:
        theirs, entry = layer_of(other)
        assert theirs < height or entry == own, f"{module} imports {other}, which stands higher or beside it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(edges()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", MODULES)
def test_other_packages_are_imported_where_they_belong(module: str) -> None:
    limits = [allowed for part, allowed in THIRD_PARTY.items() if module == part or module.startswith(f"{part}.")]
    for full in imported(MODULES[module]):
        top = full.partition(".")[0]
        if top == "ray":
            assert module.startswith(RAY), f"{module} imports Ray; {', '.join(RAY)} do"
        if limits and top != "recbole_kd" and top not in sys.stdlib_module_names:
            assert top in limits[0], f"{module} imports {top}"


def test_only_the_command_line_reads_sys_argv() -> None:
    for module, path in MODULES.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        reads = any(isinstance(node, ast.Attribute) and node.attr == "argv" for node in nodes)
        assert not reads or module == "cli", f"{module} reads sys.argv"


def code_lines(path: Path) -> int:
    """Lines of a file that are neither blank nor comment nor docstring."""
    source = path.read_text(encoding="utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text:
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


@pytest.mark.parametrize("module", MODULES)
def test_a_long_module_says_why(module: str) -> None:
    """A module of more than 400 lines of code gives the reason in its first line, after "long:"."""
    first = MODULES[module].read_text(encoding="utf-8").partition("\n")[0]
    assert code_lines(MODULES[module]) <= 400 or "long:" in first


def test_nothing_changes_the_working_folder() -> None:
    for module, path in MODULES.items():
        assert "os.chdir" not in path.read_text(encoding="utf-8"), module


def drawing() -> str:
    """The house as text: its layers from the highest down, each part with the parts that it imports."""
    graph = edges()
    lines = []
    for height in reversed(range(len(LAYERS))):
        for part in LAYERS[height]:
            modules = [module for module in graph if layer_of(module)[1] == part]
            below = {layer_of(other)[1] for module in modules for other in graph[module]} - {part}
            lines.append(f"{height:2}  {part:<15} {len(modules):2} modules  <- {', '.join(sorted(below)) or '-'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawing())
    print(f"{sum(map(code_lines, MODULES.values())):,} lines of code")
