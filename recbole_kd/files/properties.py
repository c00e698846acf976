"""Reads the YAML files under properties/, and values on the command line."""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_kd.errors import UserError
from recbole_kd.files.reading import read_text
from recbole_kd.files.schema import Unbounded, require_bounded

_PACKAGE = Path(__file__).parent.parent
#: In a wheel the folder lies inside the package; in a checkout beside it.
PROPERTIES = next(folder / "properties" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "properties").is_dir())


class Repeated(yaml.MarkedYAMLError):
    """A mapping has a name twice; YAML's own loader would keep the last value."""


class SafeLoader(yaml.SafeLoader):
    """YAML without tags that construct objects and without repeated names; like RecBole it reads 1e-3 as a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here a node has only the names in the text; a merge key (<<) adds names later, which may be repeated.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in names:
                    raise Repeated(problem=f"'{key.value}' is given twice; keep one", problem_mark=key.start_mark)
                names.add((key.tag, key.value))
        return node


SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


#: Largest size of a settings file, and largest number of its values after aliases are expanded.
_MOST_BYTES, _MOST_VALUES = 1 << 22, 1 << 18


def load_yaml(text: str) -> Any:
    """The plain values in YAML text; their number is bounded, even with aliases.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag that would construct an object, repeats a name, refers to itself, or
            expands to too many values.
    """
    try:
        content = yaml.load(text, Loader=SafeLoader)
        require_bounded(content, _MOST_VALUES)
    except RecursionError:
        raise _Refused("it is nested too deeply") from None
    except Unbounded as error:
        raise _Refused(str(error)) from None
    except (ValueError, OverflowError) as error:  # an invalid date, a number with ten thousand digits
        raise _Refused(str(error)) from None
    return content


class _Refused(yaml.YAMLError):
    """Well-formed YAML that is refused."""


def parse_value(text: str) -> Any:
    """A value from the command line, read as a Python or YAML literal; nothing is evaluated.

    >>> parse_value("1e-3"), parse_value("[10,20]"), parse_value("None"), parse_value("BPR")
    (0.001, [10, 20], None, 'BPR')

    Raises:
        UserError: a mapping with a repeated name.
    """
    try:
        tree = ast.parse(text.lstrip(" \t"), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    else:
        mappings = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        if any(len(ast.literal_eval(node)) < len(node.keys) for node in mappings):
            raise UserError(f"{text} has the same name twice; keep one.")
        return list(value) if isinstance(value, tuple) else value  # --topk=10,20
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.startswith(("[", "{")) or text in ("~", "null"):
        try:
            return load_yaml(text)
        except Repeated as error:
            raise UserError(f"{text}: {error.problem}.") from None
        except yaml.YAMLError:
            return text
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, has a tag that would construct an object or a repeated name, or
            is not a mapping.
    """
    try:
        content = load_yaml(read_text(path, _MOST_BYTES))
    except OSError as error:
        raise UserError(f"Cannot read the configuration file {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise UserError(f"The configuration file {path} is not plain YAML{line}: {problem}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"The configuration file {path} holds no settings by name; expected lines such as 'epochs: 50'."
        )
    return content


@cache
def _cached(path: Path) -> Mapping[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def read_properties(kind: str, name: str) -> dict[str, Any]:
    """The settings in properties/kind/name.yaml; empty if there is no such file."""
    return dict(_cached(PROPERTIES / kind / f"{name}.yaml"))


def named_files(text: str) -> list[str]:
    """The files that ``--config_files`` names: one, whose name may have blanks, or several with blanks between them.

    Names with blanks among several are quoted, as in a shell.
    """
    if os.path.isfile(text):
        return [text]
    try:
        return shlex.split(text)
    except ValueError:  # an apostrophe
        return text.split()


def overall_properties() -> dict[str, Any]:
    """The settings in properties/overall.yaml."""
    return dict(_cached(PROPERTIES / "overall.yaml"))


def model_names() -> list[str]:
    """Names of the files under properties/model, sorted."""
    return sorted(path.stem for path in (PROPERTIES / "model").glob("*.yaml"))


def dataset_names(data_path: str) -> list[str]:
    """Datasets that can be named: folders under `data_path`, those we know, those RecBole downloads, ml-100k."""
    folder = Path(data_path)
    local = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    ours = [path.stem for path in (PROPERTIES / "dataset").glob("*.yaml")]
    return sorted({"ml-100k", *local, *ours, *recbole_downloads()})


def recbole_downloads() -> Mapping[str, str]:
    """RecBole's own datasets: a name -> the address of a zip of atomic files."""
    import recbole

    return _cached(Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml")
