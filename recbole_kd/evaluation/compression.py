"""What is left of a model in fewer dimensions: what a student can be asked to copy.

A linear projector maps a student of d_s dimensions into a d_s-dimensional part of the teacher's space, so that the
closest a student can come to the teacher's vectors (FitNet, FreqD) is their projection onto their d_s leading principal
directions. The closest that d_s dimensions can come to the teacher's scores is their matrix of rank d_s with the least
squared error (Eckart and Young, 1936). Neither needs training.

Both functions rotate a model's vectors so that the first r columns of the result are the answer for r dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["principal_scores", "principal_vectors"]

Pair = tuple[Tensor, Tensor]


def principal_vectors(users: Tensor, items: Tensor) -> Pair:
    """The vectors in the coordinates of their principal directions, users and items as one cloud, the widest first.

    The first r columns are the projection onto r directions with the least squared error over all rows. Nothing is
    centred, so that dot products of all columns are those of the given vectors.

    Args:
        users, items: (U, d), (I, d), without padding.
    """
    users, items = users.double(), items.double()
    _, directions = torch.linalg.eigh(users.t() @ users + items.t() @ items)  # the narrowest first
    directions = directions.flip(1)
    return users @ directions, items @ directions


def principal_scores(users: Tensor, items: Tensor) -> Pair:
    """Vectors whose first r columns have as dot products the rank-r matrix closest to all scores ``users @ items.T``.

    The scores' singular vectors, each times the root of its singular value, from those of a (d, d) matrix: the scores
    themselves are never formed.

    Args:
        users, items: (U, d), (I, d), without padding. The result has as many columns as scores can have rank.
    """
    of_users, users_r = torch.linalg.qr(users.double())
    of_items, items_r = torch.linalg.qr(items.double())
    left, values, right = torch.linalg.svd(users_r @ items_r.t(), full_matrices=False)
    return of_users @ left * values.sqrt(), of_items @ right.t() * values.sqrt()
