"""Over-smoothing: how far apart the vectors of users or items lie (SimRec, table 6).

Mean average distance (Chen et al., AAAI'20) is the mean over nodes of their mean cosine distance 1 - cos to the other
nodes. Graph recommenders pull popular nodes together; it is therefore measured on the most popular ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mean_average_distance", "popular_distances"]


def mean_average_distance(vectors: Tensor) -> float:
    """Mean of 1 - cos over all ordered pairs of different rows of (n, d), in [0, 2]; nan where there is no pair.

    The sum of all cosines is the squared length of the sum of unit vectors, so that no pair is ever looked at: O(n d).
    A row of zeros has no direction and is left out.
    """
    return popular_distances(vectors, torch.zeros(len(vectors)), [len(vectors)])[0]


def popular_distances(vectors: Tensor, popularity: Tensor, sizes: Sequence[int]) -> list[float]:
    """:func:`mean_average_distance` among the n most popular nodes, for each n of `sizes`.

    Args:
        vectors: (N, d), without padding.
        popularity: (N,) interactions of each node; of equally popular ones the first come first.
        sizes: numbers of nodes; more than there are is all of them.
    """
    lengths = vectors.double().norm(dim=1)
    there = lengths > 0
    order = torch.argsort(popularity[there], descending=True, stable=True)
    units = (vectors.double()[there] / lengths[there].unsqueeze(1))[order]
    squared_sums = units.cumsum(0).square().sum(1)
    distances = []
    for size in sizes:
        n = min(size, len(units))
        distances.append(1 - (float(squared_sums[n - 1]) - n) / (n * (n - 1)) if n > 1 else float("nan"))
    return distances
