"""Gradients of an embedding table by the rows that a step reads, instead of a table of which most rows are 0.

A dense gradient has as many rows as the table, whatever a step reads. A table that is marked gets sparse gradients, for
an optimiser that takes them (`trainer/lazy_adam.py`). Fused Adam gains nothing from them: it reads every row anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["by_rows", "gradient_of_rows", "mark_by_rows", "rows_at"]


def mark_by_rows(table: Tensor) -> None:
    """Marks a parameter (N, d) as one whose optimiser takes sparse gradients."""
    table._gradient_by_rows = True  # type: ignore[attr-defined]


def by_rows(table: Tensor) -> bool:
    """Whether a tensor is a parameter that :func:`mark_by_rows` marked; what is computed from one is not."""
    return hasattr(table, "_gradient_by_rows")


def rows_at(table: Tensor, ids: Tensor) -> Tensor:
    """(n, d) rows of a table (N, d) at ids (n,)."""
    return functional.embedding(ids, table, sparse=True) if by_rows(table) else table.index_select(0, ids)


def gradient_of_rows(ids: Tensor, gradients: Tensor, rows: int) -> Tensor:
    """The sparse gradient (rows, d) that is the sum of `gradients` (n, d) at their ids (n,)."""
    return torch.sparse_coo_tensor(
        ids.unsqueeze(0), gradients, (rows, gradients.shape[1]), check_invariants=False, is_coalesced=False
    )
