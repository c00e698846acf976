"""The best approximations of a model in fewer dimensions: an upper limit for what a student can copy.

A linear projector maps a student of d_s dimensions into a d_s-dimensional subspace of the teacher's space. So the best
approximation of the teacher's vectors (FitNet, FreqD) is their projection onto their d_s leading principal directions.
The best approximation of the teacher's scores is the matrix of rank d_s with the least squared error (Eckart and Young,
1936). Neither needs training.

Both functions rotate a model's vectors; the first r columns of the result are the approximation in r dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["principal_scores", "principal_vectors"]

Pair = tuple[Tensor, Tensor]


def principal_vectors(users: Tensor, items: Tensor) -> Pair:
    """The vectors in coordinates of the principal directions of users and items together, largest variance first.

    The first r columns are the projection onto r directions with the least squared error over all rows. Nothing is
    centred, so dot products over all columns equal those of the given vectors.

    Args:
        users, items: (U, d), (I, d), without padding.
    """
    users, items = users.double(), items.double()
    _, directions = torch.linalg.eigh(users.t() @ users + items.t() @ items)  # the smallest first
    directions = directions.flip(1)
    return users @ directions, items @ directions


def principal_scores(users: Tensor, items: Tensor) -> Pair:
    """Vectors whose first r columns have the dot products that best approximate the scores ``users @ items.T``.

    They are the scores' singular vectors times the roots of the singular values. They are computed from a (d, d)
    matrix, without forming the scores.

    Args:
        users, items: (U, d), (I, d), without padding. The result has as many columns as the scores' largest rank.
    """
    of_users, users_r = torch.linalg.qr(users.double())
    of_items, items_r = torch.linalg.qr(items.double())
    left, values, right = torch.linalg.svd(users_r @ items_r.t(), full_matrices=False)
    return of_users @ left * values.sqrt(), of_items @ right.t() * values.sqrt()
