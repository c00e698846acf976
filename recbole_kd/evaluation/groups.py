"""A metric by groups of users (DE-RRD, fig. 5): by taste (k-means) or by activity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["GroupMeans", "activity_groups", "group_means", "taste_groups"]


@dataclass(frozen=True)
class GroupMeans:
    """Means of two models over the users of each group.

    Attributes:
        users: (G,) users in each group.
        first, second: (G,) mean of each model's values.
        difference: (G,) first - second.
        standard_error: (G,) of the difference, from its spread over the group's users; nan in a group of one.
    """

    users: NDArray[np.int64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    difference: NDArray[np.float64]
    standard_error: NDArray[np.float64]


def taste_groups(vectors: NDArray[Any], groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Group of each user by k-means on the directions of the teacher's vectors (n, d); group 0 is the largest.

    Directions are used because a user's ranking of items does not depend on the length of the vector.
    """
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    groups = min(groups, len(np.unique(units, axis=0)))
    labels = KMeans(groups, n_init=4, random_state=seed).fit_predict(units)
    order = np.argsort(-np.bincount(labels, minlength=groups), kind="stable")
    rank = np.empty(groups, dtype=np.int64)
    rank[order] = np.arange(groups)
    found: NDArray[np.int64] = rank[labels]
    return found


def activity_groups(counts: NDArray[Any], groups: int) -> NDArray[np.int64]:
    """Group of each user by number of training interactions (n,): quantiles, the least active in group 0.

    Users with equal activity are in one group, so groups differ in size and there may be fewer of them.
    """
    inner = np.unique(np.quantile(counts, np.arange(1, groups) / groups))
    labels = np.searchsorted(inner, counts, side="left")
    found: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return found


def group_means(first: NDArray[Any], second: NDArray[Any], labels: NDArray[np.int64]) -> GroupMeans:
    """Means of two models' values (n,) by group, for the same users; `labels` (n,) are the groups, 0 .. G - 1."""
    groups = int(labels.max()) + 1
    users = np.bincount(labels, minlength=groups)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.bincount(labels, values.astype(np.float64), minlength=groups) / users
        return found

    difference = mean(first - second)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.bincount(labels, (first - second - difference[labels]) ** 2, minlength=groups) / (users - 1)
        error = np.sqrt(spread / users)
    return GroupMeans(users, mean(first), mean(second), difference, error)
