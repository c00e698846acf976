"""RecBole 1.2.1 on today's numpy, scipy and pandas: the only module that adapts RecBole.

RecBole's last release is from February 2025. Five of its expressions no longer work, and a sixth is slow. Each is
replaced while Python imports the RecBole module that contains it. numpy, scipy, pandas and RecBole's files are not
changed.

===========================  =====================================  ============================
RecBole's source             why it fails                           what is compiled instead
===========================  =====================================  ============================
``np.float_`` and others     numpy 2 has removed the names          ``np.float64`` and others
``matrix._update(entries)``  scipy 1.13 has removed the method      ``matrix._dict.update(...)``
``column.fillna(v,           pandas 3 fills a copy, silently        ``column = column.fillna(v)``
inplace=True)``
``column.agg(len)``          pandas 3 takes the column's length,    ``column.map(len)``
                             not that of each value
``torch.load(file)``         torch 2.6 refuses what RecBole wrote,  ``host().load(__name__, file)``,
                             before that it ran what was in it      which executes nothing
``from sklearn.metrics       works, but every command waits most    an import where the name is
import auc`` and others      of a second for six names              used
===========================  =====================================  ============================

Expressions that still work are not changed. :func:`check` reports in one line what is missing or too old.

RecBole's functions also find our models: ``get_model("STOSA")`` and ``Config(model="STOSA")`` look into
:mod:`recbole_kd.host`, as if RecBole had modules, properties files and loaders of these names.
"""

from __future__ import annotations

import ast
import logging
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, ModuleType
from typing import Any

from recbole_kd.errors import UserError

__all__ = ["RECBOLE", "adapted", "check", "install", "require"]

#: The version of RecBole whose internals are used here.
RECBOLE = "1.2.1"
#: The lowest tested versions of Python and of packages that, if too old, fail late with unclear errors.
LOWEST = {"python": "3.10", "torch": "2.4", "numpy": "1.22"}

#: Names that numpy 2 has removed -> today's names of the same types.
_NUMPY = {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}
_NEEDED = re.compile(
    rf"\bnp\.({'|'.join(_NUMPY)})\b|\._update\(|\.fillna\(|\.agg\(len\)|torch\.load\(|\bmodel_init_file\b|"
    r"from sklearn\b|\bregister_table\b"
)
#: Name, in RecBole's adapted modules, of the function that returns :mod:`recbole_kd.host`.
_HOST = "_recbole_kd"
#: Name of :func:`_late` there.
_LATE = "_recbole_kd_late"
#: The folders in which RecBole looks for a model's module.
_MODELS = re.compile(r"recbole\.model\.(general|sequential)_recommender\.(\w+)")


class _Today(ast.NodeTransformer):
    """Replaces outdated expressions in RecBole's syntax tree."""

    def __init__(self) -> None:
        #: name in the module -> module of scikit-learn and name there
        self.late: dict[str, tuple[str, str]] = {}

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "np" and node.attr in _NUMPY:
            node.attr = _NUMPY[node.attr]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if not node.module or not node.module.startswith("sklearn"):
            return node
        self.late.update({one.asname or one.name: (node.module, one.name) for one in node.names})
        return ast.copy_location(ast.Pass(), node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.late or not isinstance(node.ctx, ast.Load):
            return node
        arguments: list[ast.expr] = [ast.Constant(word) for word in self.late[node.id]]
        return ast.copy_location(ast.Call(ast.Name(_LATE, ast.Load()), arguments, []), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "agg"
            and [ast.unparse(one) for one in node.args] == ["len"]
        ):
            node.func.attr = "map"
        if ast.unparse(node.func) == "torch.load":
            return ast.copy_location(_of_host("load", ast.Name("__name__", ast.Load()), *node.args[:1]), node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.targets[0]) == "model_init_file":
            # configurator.py: the path of a model's properties file.
            node.value = _of_host(
                "properties_of", ast.Name("self", ast.Load()), ast.Name("model", ast.Load()), node.value
            )
        elif ast.unparse(node.targets[0]) == "register_table":
            # data/utils.py: the models with special loaders.
            node.value = _of_host("loaders", node.value)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        self.generic_visit(node)
        call = node.value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return node
        target, method = call.func.value, call.func.attr
        if method == "_update" and _dok_keeps_a_dict():
            call.func = ast.Attribute(ast.Attribute(target, "_dict", ast.Load()), "update", ast.Load())
        elif method == "fillna" and isinstance(target, ast.Subscript):
            call.keywords = [keyword for keyword in call.keywords if keyword.arg != "inplace"]
            column = ast.Subscript(target.value, target.slice, ast.Store())
            return ast.copy_location(ast.Assign([column], call), node)
        return node


def _late(module: str, name: str) -> Any:
    """An object of a module that RecBole imports at its beginning; here it is imported at first use."""
    return getattr(import_module(module), name)


def _of_host(function: str, *arguments: ast.expr) -> ast.Call:
    """A call of a function of :mod:`recbole_kd.host`, which is imported only at the call."""
    host = ast.Call(ast.Name(_HOST, ast.Load()), [], [])
    return ast.Call(ast.Attribute(host, function, ast.Load()), list(arguments), [])


def _dok_keeps_a_dict() -> bool:
    """Whether scipy's ``dok_matrix`` holds its entries in ``_dict`` (since 1.13) instead of being a dict itself."""
    from scipy.sparse import dok_matrix

    return not hasattr(dok_matrix, "_update")


def adapted(source: str) -> ast.Module:
    """The adapted syntax tree of a RecBole module."""
    return ast.fix_missing_locations(_Today().visit(ast.parse(source)))


class _Adapted(SourceFileLoader):
    """Compiles a module from its adapted source; a module that needs no adaptation comes from Python's cache."""

    def __init__(self, fullname: str, path: str, host: Callable[[], Any]) -> None:
        super().__init__(fullname, path)
        self.host = host

    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_data(self.path).decode("utf-8")
        if _NEEDED.search(source) is None:
            return super().get_code(fullname)
        return compile(adapted(source), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update({_HOST: self.host, _LATE: _late})
        super().exec_module(module)


class _Ours(Loader):
    """Loads one of our models as a module that RecBole looks for."""

    def __init__(self, model: type[Any]) -> None:
        self.model = model

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, self.model.__name__, self.model)


class _Finder(MetaPathFinder):
    """Finds RecBole's modules as Python would and gives them the loader above; also finds our models."""

    def __init__(self, host: Callable[[], Any]) -> None:
        self.host = host

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("recbole."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Adapted(spec.loader.name, spec.loader.path, self.host)
        wanted = _MODELS.fullmatch(fullname)
        if spec is None and wanted is not None:
            model = self.host().model_of(*wanted.groups())
            return None if model is None else ModuleSpec(fullname, _Ours(model))
        return spec


def install(host: Callable[[], Any]) -> None:
    """Adapts all RecBole modules that are imported from now on. ``import recbole_kd`` calls it; once is enough.

    Args:
        host: returns :mod:`recbole_kd.host`; called when it is needed.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(host))


def check() -> None:
    """Checks that Python and the packages are installed, new enough and adapted; every verb calls it first.

    It warns about a version of RecBole that was not tested.

    Raises:
        UserError: something is missing or too old, or RecBole was imported too early.
    """
    if sys.version_info[:2] < _numbers(LOWEST["python"]):
        found = ".".join(map(str, sys.version_info[:3]))
        raise UserError(f"This is Python {found}; expected {LOWEST['python']} or later: install it, and start with it.")
    for package in ("torch", "numpy"):
        require(package, LOWEST[package])
    recbole = require("recbole", None)
    for name in [name for name in sys.modules if name.startswith("recbole.")]:
        if type(getattr(sys.modules[name].__spec__, "loader", None)) is SourceFileLoader:
            raise UserError(
                f"{name} was imported before recbole_kd, which adapts RecBole to today's packages; restart Python or "
                "the kernel, and write `import recbole_kd` before the first import of RecBole."
            )
    if recbole != RECBOLE:
        logging.getLogger(__name__).warning(
            f"RecBole {recbole} is installed, but recbole-kd is made for {RECBOLE}. If something fails, run: "
            f"pip install --no-deps recbole=={RECBOLE}"
        )


def require(package: str, lowest: str | None) -> str:
    """The installed version of a package.

    Raises:
        UserError: it is not installed, or older than `lowest`.
    """
    wanted = f"--no-deps recbole=={RECBOLE}" if package == "recbole" else f"'{package}>={lowest}'"
    try:
        found = version(package)
    except PackageNotFoundError:
        raise UserError(f"The package {package} is not installed; run: pip install {wanted}") from None
    if lowest is not None and _numbers(found) < _numbers(lowest):
        raise UserError(f"{package} {found} is installed; expected {lowest} or later: run: pip install -U {wanted}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
