"""Gradients of embedding tables by rows: of the rows that a step reads.

A dense gradient has as many rows as the table, whatever a step reads, and each loss that reads the table makes one. The
gradients of a table that is marked are added to its ``grad`` at once, row by row, during the backward pass, which hands
none on: for ``loss.backward()``. A table can remember which rows these were, for an optimiser that updates only them
(`trainer/lazy_adam.py`).
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = [
    "add_to_block",
    "by_rows",
    "distinct_rows",
    "gradient_of_rows",
    "mark_by_rows",
    "remembers_rows",
    "rows_at",
    "rows_with_gradient",
]


def mark_by_rows(embedding: nn.Embedding, remembered: bool = False) -> None:
    """Marks the table of a module: its rows, however they are read, have gradients by rows.

    Args:
        remembered: whether the table remembers which rows were read. This pays for large tables.
    """
    embedding.weight._gradient_by_rows = _Remembered() if remembered else None  # type: ignore[attr-defined]
    embedding.__class__ = _ByRows


class _ByRows(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return rows_at(self.weight, input.reshape(-1)).view(*input.shape, -1)


def by_rows(table: Tensor) -> bool:
    """Whether a table is marked; what is computed from one is not."""
    return hasattr(table, "_gradient_by_rows")


def remembers_rows(table: Tensor) -> bool:
    """Whether a table is marked and remembers its rows."""
    return _remembered(table) is not None


def rows_at(table: Tensor, ids: Tensor) -> Tensor:
    """(n, d) rows of a table (N, d) at ids (n,)."""
    if by_rows(table):
        rows: Tensor = _Rows.apply(table, ids)
        return rows
    return table.index_select(0, ids)


def gradient_of_rows(table: Tensor, ids: Tensor, gradients: Tensor) -> Optional[Tensor]:
    """What a backward pass hands on for `gradients` (n, d) of a table's rows at ids (n,): None where they are added."""
    if not by_rows(table):
        return torch.zeros_like(table).index_add_(0, ids, gradients)
    _own_gradient(table).index_add_(0, ids, gradients)
    _note(table, ids)
    return None


def add_to_block(table: Tensor, start: int, gradients: Tensor, ids: Tensor) -> None:
    """Adds `gradients` (n, d) of the rows from `start` on to a marked table's own; they are 0 but at the rows `ids`."""
    _own_gradient(table)[start : start + len(gradients)].add_(gradients)
    _note(table, ids)


def _own_gradient(table: Tensor) -> Tensor:
    kept = _remembered(table)
    if table.grad is None:
        table.grad = torch.zeros_like(table) if kept is None else kept.zeros(table)
    return table.grad


def _note(table: Tensor, ids: Tensor) -> None:
    kept = _remembered(table)
    if kept is not None and table.grad is not None:
        kept.note(table.grad, ids)


def rows_with_gradient(table: Tensor) -> Optional[Tensor]:
    """(r,) ascending rows that were read, where the table remembers them and nothing else is in its gradient."""
    kept = _remembered(table)
    if kept is None or not kept.holds(table.grad):
        return None
    return distinct_rows(len(table), *kept.rows)


def _remembered(table: Tensor) -> Optional[_Remembered]:
    return getattr(table, "_gradient_by_rows", None)


def distinct_rows(count: int, *ids: Tensor) -> Tensor:
    """The ids (n,), all from 0 to `count` - 1, ascending and each once; without sorting them."""
    marks = torch.zeros(count, dtype=torch.bool, device=ids[0].device if ids else None)
    for each in ids:
        marks.index_fill_(0, each, True)
    return marks.nonzero().squeeze(1)


class _Remembered:
    """The memory of a table's gradient, kept from one step to the next. The rows that were added to are cleared.

    If they are most rows, all are cleared at once, which takes less time.

    Attributes:
        rows: ids of the rows that were added to.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self._memory: Optional[Tensor] = None
        self._version = 0

    def __reduce__(self) -> tuple[type[_Remembered], tuple[()]]:
        return _Remembered, ()  # a copy of a model has its own memory

    def zeros(self, table: Tensor) -> Tensor:
        """Zeros in the shape of the table."""
        kept = self._memory
        if kept is None or not self.holds(kept) or (kept.dtype, kept.device) != (table.dtype, table.device):
            kept = self._memory = torch.zeros_like(table)
        elif 2 * sum(map(len, self.rows)) > len(kept):
            kept.zero_()
        else:
            for ids in self.rows:
                kept.index_fill_(0, ids, 0)
        self.rows, self._version = [], kept._version
        return kept

    def note(self, gradient: Tensor, ids: Tensor) -> None:
        """Remembers the rows of the one change to `gradient` since it was last cleared or noted."""
        if gradient is self._memory and gradient._version == self._version + 1:
            self.rows.append(ids)
            self._version += 1

    def holds(self, gradient: Optional[Tensor]) -> bool:
        """Whether `gradient` is this memory and only `rows` were changed."""
        return gradient is not None and gradient is self._memory and gradient._version == self._version


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(ids)
        return table.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Optional[Tensor], None]:
        (ids,) = ctx.saved_tensors
        return gradient_of_rows(ctx.table, ids, gradients), None
