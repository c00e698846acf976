"""Formula and kernel: the same names and the same arguments, and what trains imports the kernel."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import recbole_kd

ROOT = Path(recbole_kd.__file__).parent
#: Modules that have a formula beside their kernel. Other modules of loss/kernel/ are tools.
PAIRS = sorted(path.stem for path in (ROOT / "loss").glob("[a-z]*.py") if (ROOT / "loss/kernel" / path.name).exists())
KERNELS = [
    (module, name) for module in PAIRS for name in importlib.import_module(f"recbole_kd.loss.kernel.{module}").__all__
]


def test_every_family_of_losses_has_kernels() -> None:
    assert PAIRS == ["contrastive", "decoupled", "ranking", "regression", "topology"]


@pytest.mark.parametrize(("module", "name"), KERNELS)
def test_a_kernel_has_a_formula_with_the_same_signature(module: str, name: str) -> None:
    formula, kernel = (
        getattr(importlib.import_module(f"recbole_kd.loss.{folder}{module}"), name) for folder in ("", "kernel.")
    )
    assert formula is not kernel
    assert inspect.signature(formula) == inspect.signature(kernel)
    tests = Path(__file__).parent / "kernel" / f"test_{module}.py"
    assert f"formula.{name}(" in tests.read_text(encoding="utf-8"), "each kernel is tested against its formula"


def test_no_module_that_trains_imports_a_formula_that_has_a_kernel() -> None:
    for path in ROOT.rglob("*.py"):
        if path.is_relative_to(ROOT / "loss"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("recbole_kd.loss"):
                module = node.module.removeprefix("recbole_kd.loss").removeprefix(".")
                wrong = [alias.name for alias in node.names if (module, alias.name) in KERNELS]
                assert not wrong, f"{path.name}: import {wrong} from recbole_kd.loss.kernel.{module}"
                assert module or not {alias.name for alias in node.names} & set(PAIRS), f"{path.name}: name the losses"
