"""torch's optimisers without torch's compiler, whose import takes a second of processor time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

__all__ = ["without_compiler"]

_NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """Replaces ``torch._dynamo`` for optimisers, which only disable compilation; other uses import the real one."""

    @staticmethod
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        return function

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(import_module(_NAME), name)

    def leave(self) -> None:
        """Removes itself from the loaded modules, unless the real module is already there."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        if vars(torch).get("_dynamo") is self:
            del torch._dynamo


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the block, torch's optimisers do not import torch's compiler, unless it is imported already."""
    if _NAME in sys.modules:
        yield
        return
    stand_in = _StandIn(_NAME)
    sys.modules[_NAME] = torch._dynamo = stand_in
    try:
        yield
    finally:
        stand_in.leave()
