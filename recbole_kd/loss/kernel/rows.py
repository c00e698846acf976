"""Sparse gradients of embedding tables: only the rows that a step reads.

A dense gradient has as many rows as the table, whatever a step reads, and each loss that reads the table makes one. A
table that is marked does without: its rows' gradients are *added* to its ``grad`` at once, or stay *sparse* for an
optimiser that takes them so (`trainer/lazy_adam.py`).
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["ADDED", "SPARSE", "by_rows", "gradient_of_rows", "mark_by_rows", "rows_at"]

#: Gradients are added to the table's ``grad`` during the backward pass, which hands none on: for ``loss.backward()``.
ADDED = "added"
#: Gradients are sparse tensors.
SPARSE = "sparse"


def mark_by_rows(embedding: nn.Embedding, kind: str) -> None:
    """Marks the table of a module: its rows, however they are read, get gradients of this kind."""
    embedding.weight._gradient_by_rows = kind  # type: ignore[attr-defined]
    embedding.weight._added = _Added()  # type: ignore[attr-defined]
    embedding.__class__ = _ByRows


class _ByRows(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return rows_at(self.weight, input.reshape(-1)).view(*input.shape, -1)


def by_rows(table: Tensor) -> Optional[str]:
    """ADDED or SPARSE of a table that is marked; None of another, and of what is computed from one."""
    return getattr(table, "_gradient_by_rows", None)


def rows_at(table: Tensor, ids: Tensor) -> Tensor:
    """(n, d) rows of a table (N, d) at ids (n,)."""
    kind = by_rows(table)
    if kind == SPARSE:
        return functional.embedding(ids, table, sparse=True)
    if kind == ADDED:
        rows: Tensor = _AddedRows.apply(table, ids)
        return rows
    return table.index_select(0, ids)


def gradient_of_rows(table: Tensor, ids: Tensor, gradients: Tensor) -> Optional[Tensor]:
    """What a backward pass hands on for `gradients` (n, d) of a table's rows at ids (n,): None where they are added."""
    kind = by_rows(table)
    if kind == SPARSE:
        return torch.sparse_coo_tensor(
            ids.unsqueeze(0), gradients, tuple(table.shape), check_invariants=False, is_coalesced=False
        )
    if kind is None:
        return torch.zeros_like(table).index_add_(0, ids, gradients)
    if table.grad is None:
        table.grad = table._added.zeros(table)  # type: ignore[attr-defined]
    table.grad.index_add_(0, ids, gradients)
    table._added.note(table.grad, ids)  # type: ignore[attr-defined]
    return None


class _Added:
    """The memory of a table's gradient, kept from one step to the next: only the rows that were added to are cleared.

    Clearing a whole gradient takes a third of a plain student's step.
    """

    def __init__(self) -> None:
        self._memory: Optional[Tensor] = None
        self._version = 0
        self._rows: list[Tensor] = []

    def __reduce__(self) -> tuple[type[_Added], tuple[()]]:
        return _Added, ()  # a copy of a model has its own memory

    def zeros(self, table: Tensor) -> Tensor:
        """Zeros in the shape of the table."""
        kept = self._memory
        if kept is None or kept._version != self._version or (kept.dtype, kept.device) != (table.dtype, table.device):
            kept = self._memory = torch.zeros_like(table)  # also after anything but `note` changed it
        for ids in self._rows:
            kept.index_fill_(0, ids, 0)
        self._rows, self._version = [], kept._version
        return kept

    def note(self, gradient: Tensor, ids: Tensor) -> None:
        """Remembers the rows that were added to `gradient`, by the only change since it was last noted or cleared."""
        if gradient is self._memory and gradient._version == self._version + 1:
            self._rows.append(ids)
            self._version += 1


class _AddedRows(torch.autograd.Function):
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
