"""Shared by formulas and kernels: unit vectors, and means over entries."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

__all__ = ["mean_over_entries", "same_length", "sum_of_squares", "unit"]


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last dimension divided by their lengths: (..., d) -> (..., d).

    A vector of zeros stays as it is: it is divided by 1, and its cosine with every vector is 0.
    """
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms == 0, 1.0)


def sum_of_squares(rows: Tensor) -> Tensor:
    """The sum of all squared entries, (..., d), without a copy of them; not for a gradient."""
    return torch.linalg.vector_norm(rows, dim=-1).square_().sum()


def mean_over_entries(values: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Mean over the entries that exist; if there are none, a 0 that still has a (zero) gradient."""
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def same_length(student: Tensor, teacher: Tensor) -> None:
    """
    Raises:
        ValueError: student and teacher have different numbers of vectors.
    """
    if len(student) != len(teacher):
        raise ValueError(f"the student has {len(student)} vectors and the teacher {len(teacher)}")
