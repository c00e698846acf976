"""Extends RecBole's own functions: with our models and their settings, and with reading files without executing them.

After ``import recbole_kd``, RecBole's ``get_model("STOSA")``, ``Config(model="STOSA", ...)`` and
``run_recbole(model="SimRecTeacher", ...)`` work. :mod:`recbole_kd.compat` calls these functions where RecBole would
look into its own folders.
"""

from __future__ import annotations

import os
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.properties import PROPERTIES, read_yaml
from recbole_kd.registry import load_class, models, recipes

__all__ = ["load", "loaders", "model_of", "properties_of"]

#: Our models whose batches are users, not pairs, like MultiVAE's.
_OF_USERS = ("MultiVAEVariant", "MultiDAEVariant", "WMF")


def model_of(kind: str, module: str) -> type[Any] | None:
    """Our model for a module that RecBole looks for and does not have.

    Args:
        kind: ``general`` or ``sequential``, by the folder in which RecBole looks.
        module: the model's name in lower case.

    Raises:
        UserError: a recipe, which is not a model.
    """
    for name, entry in models().items():
        if name.lower() == module and not entry.path.startswith("recbole."):
            return load_class(entry.path) if entry.sequential == (kind == "sequential") else None
    for name in recipes():
        if name.lower() == module:
            raise _needs_a_teacher(name)
    return None


def properties_of(config: Any, model: str, file: str) -> str:
    """The properties file of a model for RecBole's Config: RecBole's, or ours if RecBole has none.

    Args:
        config: the calling Config. A :class:`~recbole_kd.experiment.settings.KDConfig` finds our files itself.
        model: the model's name.
        file: the file that RecBole looks for.

    Raises:
        UserError: a recipe, which RecBole's functions would train without its teacher.
    """
    from recbole.config import Config

    ours = PROPERTIES / "model" / f"{model}.yaml"
    if type(config) is not Config or os.path.isfile(file) or not ours.is_file():
        return file
    if "distill" in read_yaml(ours):
        raise _needs_a_teacher(model)
    return str(ours)


def loaders(table: dict[str, Any]) -> dict[str, Any]:
    """RecBole's table of models whose batches are not pairs, with ours."""
    return table | dict.fromkeys(_OF_USERS, table["MultiVAE"])


def load(module: str, path: Any) -> dict[str, Any]:
    """``torch.load`` for RecBole's modules: reads a checkpoint of RecBole or recbole-kd without executing anything.

    Args:
        module: the calling module.
        path: the file.

    Raises:
        UserError: as in :func:`~recbole_kd.files.checkpoint.load_any`; or the caller is RecBole's
            ``load_data_and_model``, which needs the Config as an object.
    """
    if module == "recbole.quick_start.quick_start":
        raise UserError(
            f"RecBole's load_data_and_model would execute code in '{path}'; "
            "call recbole_kd.load_data_and_model, which reads the same files."
        )
    return load_any(str(path))[1]


def _needs_a_teacher(recipe: str) -> UserError:
    return UserError(
        f"{recipe} learns from a teacher, but RecBole's functions train only one model; "
        f"call recbole_kd.run_recbole_kd(model='{recipe}', dataset=...)."
    )
