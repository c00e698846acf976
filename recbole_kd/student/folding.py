"""The vector of a user who is not in the data, from the vectors of that user's items. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Folding"]

#: Weight of the penalty on a user's vector, for each of the user's items.
_RIDGE = 3.0
#: Number of item rows held in float64 at once.
_ROWS = 1 << 15


class Folding:
    """Regularised least squares over items' vectors.

    A user has n of I items, and s is the mean of ||v_i||^2 / d. The user's vector is the u that minimises

        sum over the user's items of (1 - u . v_i)^2  +  n / I  sum over the others of (u . v_i)^2  +  3 n s ||u||^2.

    All other items together have the weight of the user's items.
    """

    def __init__(self, items: NDArray[Any], scale: NDArray[np.float32] | None = None) -> None:
        """
        Args:
            items: (I, d) vectors, without padding.
            scale: (I,) factors of the rows; None: 1.
        """
        self.items, self.scale = items, scale
        self.square = np.zeros((items.shape[1], items.shape[1]))
        for start in range(0, len(items), _ROWS):
            rows = self._rows(slice(start, start + _ROWS))
            self.square += rows.T @ rows

    def vector(self, had: Sequence[int]) -> NDArray[np.float64]:
        """The vector (d,) of a user with these rows of items; an item that occurs twice counts twice."""
        own, distinct = self._rows(list(had)), self._rows(np.unique(had))
        count, (number, dimension) = len(had), self.items.shape
        # The sum over the others is the sum over all items minus that over the user's items.
        system = own.T @ own + count / number * (self.square - distinct.T @ distinct)
        system += _RIDGE * count * np.trace(self.square) / (number * dimension) * np.eye(dimension)
        return np.linalg.solve(system, own.sum(axis=0))

    def _rows(self, rows: slice | list[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        vectors: NDArray[np.float64] = self.items[rows].astype(np.float64)
        return vectors if self.scale is None else vectors * self.scale[rows, None]
