"""The YAML files under properties/: where they are, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_kd.errors import UserError

_INSTALLED = Path(__file__).parent / "properties"
#: In a wheel the folder lies inside the package; in a checkout beside it.
PROPERTIES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parent.parent / "properties"


class SafeLoader(yaml.SafeLoader):
    """YAML without tags that construct objects, reading 1e-3 as a number as RecBole does."""


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, holds a tag that would construct an object, or no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=SafeLoader)
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
    """The settings in properties/kind/name.yaml; empty where there is no such file."""
    return dict(_cached(PROPERTIES / kind / f"{name}.yaml"))


def overall_properties() -> dict[str, Any]:
    """The settings in properties/overall.yaml."""
    return dict(_cached(PROPERTIES / "overall.yaml"))


def model_names() -> list[str]:
    """Names of the files under properties/model, sorted."""
    return sorted(path.stem for path in (PROPERTIES / "model").glob("*.yaml"))
