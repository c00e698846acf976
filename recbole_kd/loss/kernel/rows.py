"""Sparse gradients of embedding tables: only the rows that a step reads.

A dense gradient has as many rows as the table, and most of them are 0. A marked table gets sparse gradients, for an
optimiser that takes them (`trainer/lazy_adam.py`). Fused Adam gains nothing from them, because it reads every row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["by_rows", "gradient_of_rows", "mark_by_rows", "rows_at"]


def mark_by_rows(table: Tensor) -> None:
    """Marks a parameter (N, d): its optimiser takes sparse gradients."""
    table._gradient_by_rows = True  # type: ignore[attr-defined]


def by_rows(table: Tensor) -> bool:
    """Whether a tensor is a parameter that :func:`mark_by_rows` marked; tensors computed from it are not."""
    return hasattr(table, "_gradient_by_rows")


def rows_at(table: Tensor, ids: Tensor) -> Tensor:
    """(n, d) rows of a table (N, d) at ids (n,)."""
    return functional.embedding(ids, table, sparse=True) if by_rows(table) else table.index_select(0, ids)


def gradient_of_rows(ids: Tensor, gradients: Tensor, rows: int) -> Tensor:
    """The sparse gradient (rows, d): the sum of `gradients` (n, d) at their ids (n,)."""
    return torch.sparse_coo_tensor(
        ids.unsqueeze(0), gradients, (rows, gradients.shape[1]), check_invariants=False, is_coalesced=False
    )
