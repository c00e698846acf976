"""The terms of SimRec with their gradients, each in one pass. The formulas are in ``loss/contrastive.py``.

A contrastive term compares a batch's nodes with every user or item. Its sums and their gradients are computed for one
block of the catalogue at a time (``streamed.py``), so memory does not grow with the catalogue. Each term may be
differentiated again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recbole_kd.loss.common import mean_over_entries
from recbole_kd.loss.kernel.autograd import own_precision, with_gradient
from recbole_kd.loss.kernel.streamed import streamed_logsumexp

__all__ = ["contrastive_regularization", "cosine_infonce", "mean_score_loss", "prediction_bce"]


@own_precision
def mean_score_loss(users: Tensor, items: Tensor, user: Tensor, item: Tensor) -> Tensor:
    """L_rec. The rows are gathered once, for the value and for both tables' gradients."""
    share = -1 / max(1, len(user))
    of_user, of_item = users.detach().index_select(0, user), items.detach().index_select(0, item)
    gradients = [
        torch.zeros_like(users).index_add_(0, user, of_item, alpha=share),
        torch.zeros_like(items).index_add_(0, item, of_user, alpha=share),
    ]
    return with_gradient(of_user.mul_(of_item).sum() * share, [users, items], gradients)


@own_precision
def prediction_bce(
    users: Tensor, items: Tensor, triplets: tuple[Tensor, Tensor, Tensor], teacher: Tensor, temperature: float
) -> Tensor:
    """Eq. 7. The vectors of a triplet are gathered once, for the value and for the gradient."""
    user, better, worse = triplets
    of_user = users.detach().index_select(0, user)
    difference = items.detach().index_select(0, better).sub_(items.detach().index_select(0, worse))
    logits = (of_user * difference).sum(1).div_(temperature)
    target = torch.sigmoid(teacher.to(logits.dtype) / temperature)
    value = mean_over_entries(binary_cross_entropy_with_logits(logits, target, reduction="none"))
    slope = ((torch.sigmoid(logits) - target) / (temperature * max(1, len(user))))[:, None]
    user_gradient = torch.zeros_like(users).index_add_(0, user, difference.mul_(slope))
    of_user.mul_(slope)
    item_gradient = torch.zeros_like(items).index_add_(0, better, of_user).index_add_(0, worse, of_user, alpha=-1)
    return with_gradient(value, [users, items], [user_gradient, item_gradient])


@own_precision
def cosine_infonce(
    anchors: Tensor, embeddings: Tensor, positives: Tensor, temperature: float, sample: Optional[Tensor] = None
) -> Tensor:
    """Eq. 8. The gradient is computed for the unit vectors, then projected to get that of the embeddings."""
    count = max(1, len(anchors))
    lengths = torch.linalg.vector_norm(embeddings.detach(), dim=1, keepdim=True)
    lengths.masked_fill_(lengths == 0, 1.0)  # as `unit` does
    directions = embeddings.detach() / lengths
    gradient = torch.zeros_like(directions)
    share = anchors.new_full((len(anchors),), 1 / count)
    sums = streamed_logsumexp(anchors, directions, temperature, sample, weights=share, key_gradient=gradient)
    value = mean_over_entries(sums - (anchors * directions[positives]).sum(1) / temperature)
    gradient[positives] -= anchors / (temperature * count)
    # Only the part orthogonal to the vector changes its cosines.
    gradient.addcmul_(directions, (gradient * directions).sum(1, keepdim=True), value=-1).div_(lengths)
    return with_gradient(value, [embeddings], [gradient])


@own_precision
def contrastive_regularization(
    embeddings: tuple[Tensor, Tensor],
    nodes: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    temperature: float,
    pairs: Collection[str] = ("uu", "ui", "ii"),
    samples: tuple[Optional[Tensor], Optional[Tensor]] = (None, None),
) -> Tensor:
    """Eq. 9. All pairs of sides add to one gradient of users and one of items."""
    value = embeddings[0].new_zeros(())
    gradients = [torch.zeros_like(side) for side in embeddings]
    for name, one, other in (("uu", 0, 0), ("ui", 0, 1), ("ii", 1, 1)):
        if name not in pairs:
            continue
        queries, shares = embeddings[one].detach()[nodes[one]], weights[one].detach()
        query_gradient = torch.zeros_like(queries)
        sums = streamed_logsumexp(
            queries,
            embeddings[other],
            temperature,
            samples[other],
            weights=shares,
            query_gradient=query_gradient,
            key_gradient=gradients[other],
        )
        value += shares @ sums
        gradients[one][nodes[one]] += query_gradient
    return with_gradient(value, embeddings, gradients)
