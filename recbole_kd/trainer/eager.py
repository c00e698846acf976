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
    """What optimisers ask of ``torch._dynamo``: to leave their functions uncompiled. Whoever asks for more gets it."""

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
        """Makes room for the real module, unless that is there."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        if vars(torch).get("_dynamo") is self:
            del torch._dynamo


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the block, torch's optimisers do not import torch's compiler. Where it is imported, nothing changes."""
    if _NAME in sys.modules:
        yield
        return
    stand_in = _StandIn(_NAME)
    sys.modules[_NAME] = torch._dynamo = stand_in
    try:
        yield
    finally:
        stand_in.leave()
