"""The vector of somebody who is not in the data, made of the vectors of the items that they had. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Folding"]

#: Weight of the penalty on a user's vector, for each item had.
_RIDGE = 3.0
#: Rows of items that are held in float64 at once.
_ROWS = 1 << 15


class Folding:
    """Regularised least squares over items' vectors.

    A user's vector is the u that minimises, with n items had of I, the others counting as much as these together, and
    s the mean of ||v_i||^2 / d,

        sum over the items had of (1 - u . v_i)^2  +  n / I  sum over the others of (u . v_i)^2  +  3 n s ||u||^2.
    """

    def __init__(self, items: NDArray[Any], scale: NDArray[np.float32] | None = None) -> None:
        """
        Args:
            items: (I, d) vectors, without padding.
            scale: (I,) what each row is multiplied by; None is 1.
        """
        self.items, self.scale = items, scale
        self.square = np.zeros((items.shape[1], items.shape[1]))
        for start in range(0, len(items), _ROWS):
            rows = self._rows(slice(start, start + _ROWS))
            self.square += rows.T @ rows

    def vector(self, had: Sequence[int]) -> NDArray[np.float64]:
        """The vector (d,) of somebody who had these rows of items; one that was had twice counts twice."""
        own, distinct = self._rows(list(had)), self._rows(np.unique(had))
        count, (number, dimension) = len(had), self.items.shape
        # The sum over the others is the one over all, less the items had.
        system = own.T @ own + count / number * (self.square - distinct.T @ distinct)
        system += _RIDGE * count * np.trace(self.square) / (number * dimension) * np.eye(dimension)
        return np.linalg.solve(system, own.sum(axis=0))

    def _rows(self, rows: slice | list[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        vectors: NDArray[np.float64] = self.items[rows].astype(np.float64)
        return vectors if self.scale is None else vectors * self.scale[rows, None]
