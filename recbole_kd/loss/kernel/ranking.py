"""The listwise loss with its gradient in closed form. The formula is in ``loss/ranking.py``."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_kd.loss.common import mean_over_entries

__all__ = ["listwise_loss"]


def listwise_loss(
    interesting: Tensor,
    uninteresting: Tensor,
    interesting_mask: Optional[Tensor] = None,
    uninteresting_mask: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """RRD eq. 9. One cumulative sum gives every normaliser. Differentiable once."""
    if interesting_mask is not None:
        interesting = interesting.masked_fill(~interesting_mask, -torch.inf)
    if uninteresting_mask is not None:
        uninteresting = uninteresting.masked_fill(~uninteresting_mask, -torch.inf)
    per_user: Tensor = _Listwise.apply(interesting, uninteresting, weights)
    return mean_over_entries(per_user, None if interesting_mask is None else interesting_mask.any(dim=1))


class _Listwise(torch.autograd.Function):
    """Each user's loss with its gradient in closed form; -inf marks a missing entry.

    With z_k = log(sum_{m>=k} exp r_m + sum_l exp r_l), the gradient is exp(r_j) sum_{k<=j} exp(-z_k) - 1 for an
    interesting item and exp(r_l) sum_{k<=K} exp(-z_k) for an uninteresting one. The sums are kept as logarithms.
    r_j <= z_k for every k <= j, so no exponential overflows. Factors w_k of the terms multiply exp(-z_k) and the 1.
    """

    @staticmethod
    def forward(ctx: Any, interesting: Tensor, uninteresting: Tensor, weights: Optional[Tensor]) -> Tensor:
        rest = uninteresting.logsumexp(dim=1, keepdim=True)
        normaliser = _log_cumsum_exp(torch.cat([rest, interesting.flip(1)], dim=1))[:, 1:].flip(1)
        ctx.save_for_backward(interesting, uninteresting, normaliser, weights)
        terms = (normaliser - interesting).masked_fill(interesting == -torch.inf, 0)
        return (terms if weights is None else terms * weights).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        interesting, uninteresting, normaliser, weights = ctx.saved_tensors
        missing = interesting == -torch.inf
        of_terms = -normaliser if weights is None else weights.log() - normaliser
        shares = _log_cumsum_exp(of_terms.masked_fill(missing, -torch.inf))
        own = 1 if weights is None else weights
        of_interesting = ((interesting + shares).exp() - own).masked_fill(missing, 0)
        of_uninteresting = (uninteresting + shares[:, -1:]).exp()
        return of_interesting * gradient.unsqueeze(1), of_uninteresting * gradient.unsqueeze(1), None


def _log_cumsum_exp(values: Tensor) -> Tensor:
    """log of the cumulative sums of exp(values) along each row, (n, k).

    On a CPU torch.logcumsumexp takes twenty times as long as cumulative sums of exp(values - maximum). These are exact
    unless the first one, the smallest, underflows. On a GPU that test would have to wait for the GPU.
    """
    if values.device.type != "cpu":
        return torch.logcumsumexp(values, dim=1)
    top = values.amax(dim=1, keepdim=True)
    sums = (values - top).exp_().cumsum(dim=1)
    # Not `sums < limit`: a row without entries gives NaN and needs the slow way too.
    if sums.numel() and not bool((sums[:, 0] > 1e-30).all()):
        return torch.logcumsumexp(values, dim=1)
    return sums.log_().add_(top)
