"""Architectures by name: a model counts as each class that it is derived from."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Union

from torch import nn

__all__ = ["class_names", "is_one_of"]


def class_names(model: Union[nn.Module, type[Any]]) -> list[str]:
    """Names of a model's class and its base classes, nearest first."""
    kind = model if isinstance(model, type) else type(model)
    return [base.__name__ for base in kind.__mro__]


def is_one_of(model: Union[nn.Module, type[Any]], names: Container[str]) -> bool:
    """Whether a model, or a class of models, is of one of these architectures or derived from it."""
    return any(name in names for name in class_names(model))
