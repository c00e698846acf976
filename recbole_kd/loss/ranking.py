"""Losses of response-based distillation: pure functions on scores.

:func:`listwise_loss` is the formula; training uses the one in ``kernel/ranking.py``. The others have no kernel;
training uses them directly.

Shapes: n users, k or K items for each. Every loss is a mean over its entries, which its docstring names. If entries may
be missing, the loss takes a mask of those that exist. A missing entry has no gradient, whatever its score.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid, softmax, softplus

from recbole_kd.loss.common import mean_over_entries

__all__ = [
    "discrepancy_weights",
    "listwise_loss",
    "pairwise_loss",
    "position_weights",
    "sampled_loss",
    "soft_target_loss",
    "softmax_loss",
    "weighted_positive_loss",
]


def listwise_loss(
    interesting: Tensor,
    uninteresting: Tensor,
    interesting_mask: Optional[Tensor] = None,
    uninteresting_mask: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Negative log-likelihood that the interesting items come in their order, before all uninteresting ones.

    -sum_{k<=K} [r_k - log(sum_{m=k..K} exp r_m + sum_l exp r_l)] (RRD, Kang et al., CIKM'20, eq. 9). The log-sum-exp is
    exact for scores of any size; the published code clamps them at 80.

    Args:
        interesting: (n, K) the student's scores of the interesting items, best rank first.
        uninteresting: (n, L) its scores of the uninteresting items, in any order.
        interesting_mask, uninteresting_mask: bool, in the same shapes, False if an entry is missing; None: all exist.
        weights: (n, K) constant factors of the K terms of the sum; None: 1.

    Returns:
        Scalar: the mean over users with an interesting item. Entry: a user.
    """
    if interesting_mask is None:
        interesting_mask = torch.ones_like(interesting, dtype=torch.bool)
    interesting = interesting.masked_fill(~interesting_mask, -torch.inf)
    if uninteresting_mask is not None:
        uninteresting = uninteresting.masked_fill(~uninteresting_mask, -torch.inf)
    entries = [
        torch.cat([interesting[:, k:], uninteresting], dim=1).logsumexp(1) - interesting[:, k]
        for k in range(interesting.shape[1])
    ]
    terms = torch.stack(entries, dim=1).masked_fill(~interesting_mask, 0)
    per_user = (terms if weights is None else terms * weights.detach()).sum(1)
    return mean_over_entries(per_user, interesting_mask.any(1))


def position_weights(
    k: int, temperature: float, discrepancy: Optional[Tensor] = None, renormalise: bool = True, *, like: Tensor
) -> Tensor:
    """Weights a_k of ranks 1..k, proportional to exp(-rank / temperature) and summing to 1 (RD, Tang & Wang, KDD'18).

    Args:
        discrepancy: (n, k) b_k in [0, 1) from :func:`discrepancy_weights`; the weights are then w_k = a_k b_k.
        renormalise: whether the w_k of a row sum to 1, or to 0 if every b_k is 0.
        like: a tensor with the device and type of the result.

    Returns:
        (k,), or with `discrepancy` (n, k), constant.
    """
    logarithms = -torch.arange(k, dtype=like.dtype, device=like.device) / temperature
    if discrepancy is None:
        return softmax(logarithms, dim=0)
    if not renormalise:
        return softmax(logarithms, dim=0) * discrepancy
    # In logarithms: if only the last ranks have b_k > 0, their a_k could all round to 0.
    return softmax(logarithms + discrepancy.log(), dim=1).nan_to_num_(0.0)


def discrepancy_weights(scores: Tensor, sampled: Tensor, items: int, mu: float) -> Tensor:
    """b_k = max(0, tanh(mu (r_k - k))), large where the student ranks the teacher's k-th item too low (RD, KDD'18).

    The student's rank is estimated as r_k = floor((items - 1) * share) + 1, with the share of sampled items that score
    higher. If no item counts, r_k is 1.

    Args:
        scores: (n, K) the student's scores of the teacher's items, best rank first.
        sampled: (n, S) its scores of random items; -inf for an item that does not count, as the user has observed it.
        items: number of items in the catalogue, without padding.
        mu: how fast the weight grows with the gap r_k - k.

    Returns:
        (n, K) in [0, 1), constant: no gradient flows through them.
    """
    with torch.no_grad():
        # Summing comparisons as floats is seven times as fast as summing booleans.
        shape = (*scores.shape, sampled.shape[1])
        above = torch.empty(shape, dtype=torch.float32, device=scores.device)
        torch.gt(sampled.unsqueeze(1), scores.unsqueeze(2), out=above)
        # In integers: with a rounded share the rank would sometimes be one too small.
        counted = (sampled.shape[1] - sampled.isneginf().sum(dim=1, keepdim=True)).clamp_(min=1)
        rank = (items - 1) * above.sum(dim=2).long() // counted + 1
        teacher_rank = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        return torch.tanh(mu * (rank - teacher_rank).to(scores.dtype)).clamp_(min=0)


def weighted_positive_loss(scores: Tensor, weights: Tensor) -> Tensor:
    """-sum_k w_k log sigma(y_k) over the teacher's best items as positives (RD, Tang & Wang, KDD'18; DE-RRD eq. 2).

    Args:
        scores: (n, K) the student's scores.
        weights: (K,) or (n, K), constant.

    Returns:
        Scalar: the mean over users of the weighted sum. Entry: a user.
    """
    return mean_over_entries(-(weights.detach() * logsigmoid(scores)).sum(dim=1))


def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    bias: float = 0.0,
    mask: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Binary cross-entropy of sigma(y_s) against q = sigma((y_t + bias) / temperature) (CD, Lee et al., ICDM'19).

    It is computed from the logits, so no sigmoid is rounded before its logarithm.

    Args:
        student, teacher: (n, k) scores of the same items.
        temperature: tau of the teacher's probabilities, above 0.
        bias: b, added to the teacher's scores.
        mask: (n, k) bool, False where an entry is missing; None: all exist.
        weights: (n, k) constant factors of the entries; None: 1.

    Returns:
        Scalar: the mean over items. Entry: an item.
    """
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = student.masked_fill(~mask, 0), teacher.masked_fill(~mask, 0)
    target = torch.sigmoid((teacher + bias) / temperature)
    weights = None if weights is None else weights.detach()
    return mean_over_entries(binary_cross_entropy_with_logits(student, target, weights, reduction="none"), mask)


def pairwise_loss(better: Tensor, worse: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """-log sigma(y(better) - y(worse)) (UnKD, Chen et al., WSDM'23).

    Args:
        better, worse: (n, k) the student's scores of the two items of each pair.
        mask: (n, k) bool, False where a pair is missing; None: all exist.

    Returns:
        Scalar: the mean over pairs. Entry: a pair.
    """
    margin = better - worse
    if mask is not None:
        margin = margin.masked_fill(~mask, 0)
    return mean_over_entries(-logsigmoid(margin), mask)


def sampled_loss(positives: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy of observed items and drawn negatives (SASRec, Kang & McAuley, ICDM'18, section III.E).

    -log sigmoid(r_p) - log(1 - sigmoid(r_n))

    Args:
        positives, negatives: (p,) scores of the next item, and of a negative drawn for the same position.

    Returns:
        Scalar: the mean over positions. Entry: a position.
    """
    return (softplus(-positives) + softplus(negatives)).mean()


def softmax_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    teacher_temperature: Optional[float] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Cross-entropy of softmax(y_s / tau) against softmax(y_t / tau_t), times tau^2 (KD, Hinton et al., 2015).

    Args:
        student, teacher: (n, K) scores of the same items.
        temperature: tau, above 0.
        teacher_temperature: tau_t; None: tau, as in the paper.
        weights: (n, K) constant factors of the items' terms; None: 1.

    Returns:
        Scalar: the mean over users. Entry: a user.
    """
    # torch's softmax takes a twentieth of the time along the first dimension: it computes many users at once.
    target = softmax(teacher.detach().t() / (teacher_temperature or temperature), dim=0)
    if weights is not None:
        target = target * weights.detach().t()
    return mean_over_entries(-(target * log_softmax(student.t() / temperature, dim=0)).sum(dim=0)) * temperature**2
