"""Over-smoothing: distances among the vectors of users or items (SimRec, table 6; LightGCN, section 3.2.3).

Mean average distance (Chen et al., AAAI'20) is the mean over nodes of their mean cosine distance 1 - cos to the other
nodes. Graph recommenders make popular nodes similar, so it is measured on the most popular nodes.

Second-order smoothness S_U (He et al., SIGIR'20, eq. 14 and 17) weights each pair of users by one user's influence on
the other in two graph convolutions: c_(v->u) = sum over the items i of both of 1 / (sqrt|N_u| sqrt|N_v| |N_i|). Then
S_U = sum_u sum_v c_(v->u) ||e_u - e_v||^2 for vectors of length 1. The paper prints e / ||e||^2 and says that this
removes the scale, which length 1 does. A smaller S_U means smoother vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_kd.data.observed import Observed

__all__ = ["mean_average_distance", "popular_distances", "second_order_smoothness", "second_order_weights"]


def mean_average_distance(vectors: Tensor) -> float:
    """Mean of 1 - cos over all ordered pairs of different rows of (n, d), in [0, 2]; nan if there is no pair.

    The sum of all cosines is the squared length of the sum of unit vectors, so no pairs are formed: O(n d).
    A row of zeros has no direction and is left out.
    """
    return popular_distances(vectors, torch.zeros(len(vectors)), [len(vectors)])[0]


def popular_distances(vectors: Tensor, popularity: Tensor, sizes: Sequence[int]) -> list[float]:
    """:func:`mean_average_distance` among the n most popular nodes, for each n of `sizes`.

    Args:
        vectors: (N, d), without padding.
        popularity: (N,) interactions of each node; among equally popular nodes the first ones are taken.
        sizes: numbers of nodes; a number that is too large means all nodes.
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


def second_order_weights(observed: Observed, user: int) -> Tensor:
    """c_(v->u) of every user v for the user u, including u: (U,) float64; 0 if they share no item.

    For items, use ``observed.transposed()``.
    """
    graph = _normalised(observed)
    return torch.from_numpy((graph @ graph[user].T).toarray().ravel())


def second_order_smoothness(vectors: Tensor, observed: Observed, sizes: Sequence[int]) -> list[float]:
    """S_U among the n users with most items, for each n of `sizes`; with all users it is the paper's value.

    With R the normalised interactions, c is R R^T and the sum over pairs is 2 (1^T c 1 - ||R^T E||^2), so no pairs are
    formed: O(interactions x d). Vectors of zeros are left out.

    Args:
        vectors: (U, d), with padding; or vectors of items, with ``observed.transposed()``.
        observed: the training split.
        sizes: numbers of users; a number that is too large means all. Among equally active users the first are taken.
    """
    graph = _normalised(observed)
    lengths = vectors.double().norm(dim=1).numpy()
    there = lengths > 0
    there[0] = False
    units = vectors.double().numpy() / np.where(there, lengths, 1)[:, None]
    order = np.argsort(np.where(there, -observed.counts.numpy(), 1), kind="stable")[: there.sum()]
    found = []
    for size in sizes:
        chosen = order[:size]
        own = graph[chosen]
        weights = own @ (own.T @ np.ones(len(chosen)))
        found.append(max(0.0, 2 * float(weights.sum() - np.square(own.T @ units[chosen]).sum())))  # below 0 by rounding
    return found


def _normalised(observed: Observed) -> Any:
    """(U, I) sparse float64, 1 / sqrt(|N_u| |N_i|) at each interaction."""
    from scipy.sparse import csr_matrix  # imported late: it takes 0.2 seconds, and the verb `list` does not need it

    values = (observed.counts[observed.user_ids] * observed.popularity[observed.indices]).double().rsqrt()
    parts = values.numpy(), observed.indices.numpy(), observed.offsets.numpy()
    return csr_matrix(parts, shape=(observed.users, observed.items))
