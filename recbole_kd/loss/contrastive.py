"""The terms of SimRec (Xia et al., WWW'23, eq. 7-10), as formulas. Training uses ``kernel/contrastive.py``.

:func:`adaptive_weights` has no kernel; training uses it directly. Shapes: U users and I items of d dimensions, without
padding; y(u, i) is the dot product of h_u and h_i. Rows are nodes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recbole_kd.loss.common import mean_over_entries, unit

__all__ = [
    "adaptive_weights",
    "catalogue_logsumexp",
    "contrastive_regularization",
    "cosine_infonce",
    "mean_score_loss",
    "prediction_bce",
]


def mean_score_loss(users: Tensor, items: Tensor, user: Tensor, item: Tensor) -> Tensor:
    """L_rec = -mean of y(u, i) over observed pairs. Entry: a pair.

    Args:
        users, items: (U, d) and (I, d).
        user, item: (B,) row numbers of the pairs.
    """
    return -mean_over_entries((users[user] * items[item]).sum(1))


def prediction_bce(
    users: Tensor, items: Tensor, triplets: tuple[Tensor, Tensor, Tensor], teacher: Tensor, temperature: float
) -> Tensor:
    """Eq. 7: mean binary cross-entropy of sigma(z_s / tau) against sigma(z_t / tau). Entry: a triplet (u, j, k).

    z = y(u, j) - y(u, k). The loss is computed from z, so no sigmoid is rounded before its logarithm.

    Args:
        users, items: (U, d) and (I, d) of the student.
        triplets: u, j, k, each (T,) row numbers.
        teacher: (T,) z_t.
        temperature: tau > 0.
    """
    user, better, worse = triplets
    logits = (users[user] * (items[better] - items[worse])).sum(1) / temperature
    target = torch.sigmoid(teacher.to(logits.dtype) / temperature)
    return mean_over_entries(binary_cross_entropy_with_logits(logits, target, reduction="none"))


def catalogue_logsumexp(queries: Tensor, keys: Tensor, temperature: float, sample: Optional[Tensor] = None) -> Tensor:
    """log sum_n exp(q_r·k_n / tau) of every query over every key: (Q, d), (N, d) -> (Q,).

    Args:
        queries, keys: (Q, d) and (N, d).
        temperature: tau > 0.
        sample: (n,) rows of the keys, drawn uniformly; the sum over all keys is estimated by N / n times the sum over
            these rows. None: every key.
    """
    if sample is not None:
        return catalogue_logsumexp(queries, keys[sample], temperature) + math.log(len(keys) / len(sample))
    return torch.logsumexp(queries @ keys.t() / temperature, dim=1)


def cosine_infonce(
    anchors: Tensor, embeddings: Tensor, positives: Tensor, temperature: float, sample: Optional[Tensor] = None
) -> Tensor:
    """Eq. 8: mean of -cos(a_r, h_{p_r}) / tau + log sum_n exp(cos(a_r, h_n) / tau). Entry: an anchor r.

    Args:
        anchors: (R, d) constants of length 1.
        embeddings: (N, d) h. The sum runs over all of them.
        positives: (R,) p, the row of each anchor's positive, all distinct.
        temperature: tau > 0.
        sample: see :func:`catalogue_logsumexp`.
    """
    directions = unit(embeddings)
    positive = (anchors * directions[positives]).sum(1) / temperature
    return mean_over_entries(catalogue_logsumexp(anchors, directions, temperature, sample) - positive)


def contrastive_regularization(
    embeddings: tuple[Tensor, Tensor],
    nodes: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    temperature: float,
    pairs: Collection[str] = ("uu", "ui", "ii"),
    samples: tuple[Optional[Tensor], Optional[Tensor]] = (None, None),
) -> Tensor:
    """Eq. 9: a weighted sum of log sum_n exp(h_r·h_n / tau) over nodes r of the batch, for each pair of sides.

    Args:
        embeddings: h of users (U, d) and of items (I, d).
        nodes: (n_u,) and (n_i,) rows of the batch's distinct users and items.
        weights: (n_u,) and (n_i,) w_r, constants; divided by the number of nodes, the sum is a mean. Entry: a node.
        temperature: tau > 0.
        pairs: "uu": users over all users; "ui": users over all items; "ii": items over all items.
        samples: for users and for items, see :func:`catalogue_logsumexp`.
    """
    total = embeddings[0].new_zeros(())
    for name, one, other in (("uu", 0, 0), ("ui", 0, 1), ("ii", 1, 1)):
        if name in pairs:
            queries = embeddings[one][nodes[one]]
            sums = catalogue_logsumexp(queries, embeddings[other], temperature, samples[other])
            total = total + weights[one].detach() @ sums
    return total


def adaptive_weights(
    prediction: Tensor, embedding: Tensor, recommendation: Tensor, epsilon: float, *, cosine: bool = False
) -> Tensor:
    """Eq. 10: w = 1 - epsilon where (g1 + g2)·g_rec > g1·g2, else 1 + epsilon.

    If the gradients of distillation and recommendation agree, a node needs less regularisation.

    Args:
        prediction, embedding, recommendation: (n, d) g1, g2, g_rec of the nodes.
        epsilon: the step from 1.
        cosine: whether cosines are compared, as in the authors' code: cos(g1 + g2, g_rec) > cos(g1, g2). The sum is
            normalised, not its parts. The cosine of a gradient of zeros is 0.

    Returns:
        (n,) weights, in the gradients' type.
    """
    distillation = prediction + embedding
    if cosine:
        distillation, prediction, embedding, recommendation = map(
            unit, (distillation, prediction, embedding, recommendation)
        )
    agreement, between = (distillation * recommendation).sum(1), (prediction * embedding).sum(1)
    return torch.full_like(agreement, 1 + epsilon).masked_fill_(agreement > between, 1 - epsilon)
