"""Contrastive losses over a whole catalogue, in memory that does not grow with it (SimRec, WWW'23).

A contrastive term compares a batch's nodes with *every* user or item: log sum_n exp(q·k_n / tau) over N of them. Left
to autograd it keeps the Q x N similarities and walks over them again for the gradients. Here one function gives the
sums and their gradients in one pass over blocks of similarities, and the losses built on it return value and gradient
together. :func:`with_gradient` puts such a pair back into autograd, so that a loss is differentiated once.

Rows are nodes; the caller leaves padding out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Optional, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

_Loss = TypeVar("_Loss", bound=Callable[..., Any])

PRECISIONS = ("fp32", "bf16")
#: Similarities held at once, at most, by a block of rows over the whole catalogue.
HELD = 16 * 2**20
#: Scores within ±40 need no maximum subtracted: even a sum of 1e9 such exponentials, and its inverse, fit fp32.
SAFE_SCORE = 40.0
#: Scores this far below their row's maximum add nothing that float64 could show, and their exponentials are still
#: ordinary numbers: below the smallest of those, arithmetic is more than ten times slower.
FAINT = -60.0
_TINY = 1e-12


def catalogue_logsumexp(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    *,
    weights: Optional[Tensor] = None,
    query_gradient: Optional[Tensor] = None,
    key_gradient: Optional[Tensor] = None,
    precision: str = "fp32",
    blocks: Optional[tuple[int, int]] = None,
    sample: Optional[Tensor] = None,
) -> Tensor:
    """log sum_n exp(q_r·k_n / tau) of every query over every key; on the way, the gradients of its weighted sum.

    Works by blocks of rows whose sums are finished before the block's two gradient products are taken, so that nothing
    is computed twice. Where a block of rows over all keys would be too large, the keys are worked by blocks too, in two
    sweeps: running maximum and sum first, the exponentials again for the gradients. Memory is that of one block. Exact
    for scores whose exponential overflows.

    Args:
        queries: (Q, d).
        keys: (N, d), N > 0.
        temperature: tau > 0.
        weights: (Q,) w_r of the sum_r w_r values_r that is differentiated; None is 1.
        query_gradient: (Q, d), to which the gradient with respect to the queries is added; None: it is not computed.
        key_gradient: (N, d), to which the gradient with respect to the keys is added; None: it is not computed.
        precision: "fp32": products in the tensors' own type. "bf16": products of float32 tensors round their operands
            to bfloat16 and sum in float32, on processors that multiply bfloat16 (torch's float32 matmul precision
            "medium"; others compute as with "fp32"). Over 42,712 keys of 32 dimensions the values are off by at most
            1e-4 where scores have a standard deviation of 0.2, by 3e-3 at 1.4.
        blocks: (rows, columns) of similarities held at once; None is what :func:`block_shape` gives.
        sample: (n,) rows of the keys, drawn uniformly, that stand for all: each sum is estimated by N / n times the sum
            over them, which is right in the mean, and the gradients are the estimate's. None: every key.

    Returns:
        (Q,) the values, without autograd.

    Raises:
        ValueError: no keys, temperature not positive, unknown precision.
    """
    if len(keys) == 0:
        raise ValueError("keys is empty; expected at least one row.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; expected a number above 0.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if sample is not None:
        drawn = keys.detach().index_select(0, sample)
        of_drawn = torch.zeros_like(drawn)
        values = catalogue_logsumexp(
            queries,
            drawn,
            temperature,
            weights=weights,
            query_gradient=query_gradient,
            key_gradient=None if key_gradient is None else of_drawn,
            precision=precision,
            blocks=blocks,
        )
        if key_gradient is not None:
            key_gradient.index_add_(0, sample, of_drawn)
        return values + math.log(len(keys) / len(sample))
    queries, keys = queries.detach() / temperature, keys.detach()
    rows, columns = blocks or block_shape(len(keys), precision)
    rows, columns = min(rows, len(queries)), min(columns, len(keys))
    buffer = queries.new_empty(rows * columns)
    values = queries.new_empty(len(queries))
    bounded = _largest_norm(queries) * _largest_norm(keys) <= SAFE_SCORE
    with _float32_products(precision):
        for start, stop in _spans(len(queries), rows):
            query = queries[start:stop]
            top = query.new_full((len(query), 1), 0.0 if bounded else -math.inf)
            total = query.new_zeros(len(query), 1)
            for first, last in _spans(len(keys), columns):
                scores = _scores(query, keys[first:last], buffer)
                if not bounded:
                    higher = torch.maximum(top, scores.amax(1, keepdim=True))
                    total *= torch.exp(top - higher)
                    top = higher
                    scores.sub_(top).clamp_(min=FAINT)
                total += scores.exp_().sum(1, keepdim=True)
            values[start:stop] = (total.log() + top).squeeze(1)
            if query_gradient is None and key_gradient is None:
                continue

            # d value_r / d score_rn = exp(score_rn - top_r) / total_r: the row's factors go to the product's thin side.
            factor = 1 / total if weights is None else weights[start:stop, None] / total
            weighted = query * factor
            for first, last in _spans(len(keys), columns):
                if columns < len(keys):
                    scores = _scores(query, keys[first:last], buffer)
                    if not bounded:
                        scores.sub_(top).clamp_(min=FAINT)
                    scores.exp_()
                if key_gradient is not None:
                    key_gradient[first:last].addmm_(scores.t(), weighted)
                if query_gradient is not None:
                    query_gradient[start:stop] += (scores @ keys[first:last]) * (factor / temperature)
    return values


def block_shape(keys: int, precision: str = "fp32") -> tuple[int, int]:
    """(rows, columns) of the blocks of similarities with a catalogue of `keys`.

    Whole rows as long as some tens of them can be held, since they are computed once; then blocks that stay in the
    processor's cache between the two sweeps. Measured by ``tests/benchmarks/simrec_step.py --blocks``.
    """
    rows = 128 if precision == "bf16" else 64
    return (rows, keys) if rows * keys <= HELD else (256, 8192)


def cosine_infonce(
    anchors: Tensor,
    embeddings: Tensor,
    positives: Tensor,
    temperature: float,
    *,
    precision: str = "fp32",
    sample: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE on cosines against constant anchors (SimRec eq. 8), and its gradient.

    The mean over anchors r of -cos(a_r, h_{p_r}) / tau + log sum_n exp(cos(a_r, h_n) / tau): the positive is row p_r of
    the embeddings, the sum runs over all of them.

    Args:
        anchors: (R, d) rows of length 1.
        embeddings: (N, d) h.
        positives: (R,) row of each anchor's positive, all distinct.
        temperature: tau > 0.
        precision, sample: see :func:`catalogue_logsumexp`.

    Returns:
        the loss, a scalar, and its gradient with respect to `embeddings`, (N, d), the normalisation included.
    """
    embeddings = embeddings.detach()
    lengths = embeddings.norm(dim=1, keepdim=True).clamp_(min=_TINY)
    directions = embeddings / lengths
    share = anchors.new_full((len(anchors),), 1 / len(anchors))
    gradient = torch.zeros_like(directions)
    sums = catalogue_logsumexp(
        anchors, directions, temperature, weights=share, key_gradient=gradient, precision=precision, sample=sample
    )
    similarity = (anchors * directions[positives]).sum(1)
    value = (sums - similarity / temperature).mean()
    gradient[positives] -= anchors / (temperature * len(anchors))
    # Only the part across the direction changes a cosine.
    gradient.addcmul_(directions, (gradient * directions).sum(1, keepdim=True), value=-1).div_(lengths)
    return value, gradient


def prediction_bce(
    users: Tensor, items: Tensor, triplets: tuple[Tensor, Tensor, Tensor], teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction-level distillation (SimRec eq. 7), and its gradients.

    The mean over triplets (u, j, k) of the binary cross-entropy of sigma(z_s / tau) against sigma(z_t / tau), with
    z = y(u, j) - y(u, k); computed from logits.

    Args:
        users, items: (U, d) and (I, d) the student's embeddings; y is their dot product.
        triplets: u, j, k, each (T,) row numbers.
        teacher: (T,) z_t.
        temperature: tau > 0.

    Returns:
        the loss, a scalar, and its gradients with respect to `users` and `items`.
    """
    user, better, worse = triplets
    users, items = users.detach(), items.detach()
    of_user = users.index_select(0, user)
    difference = items.index_select(0, better).sub_(items.index_select(0, worse))
    logits = (of_user * difference).sum(1).div_(temperature)
    target = torch.sigmoid(teacher.to(logits.dtype) / temperature)
    value = functional.binary_cross_entropy_with_logits(logits, target)
    slope = ((torch.sigmoid(logits) - target) / (temperature * len(user)))[:, None]
    user_gradient = torch.zeros_like(users).index_add_(0, user, difference.mul_(slope))
    of_user.mul_(slope)
    item_gradient = torch.zeros_like(items).index_add_(0, better, of_user).index_add_(0, worse, of_user, alpha=-1)
    return value, user_gradient, item_gradient


def interaction_gradient(users: Tensor, items: Tensor, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of -mean y(u, i) over observed pairs (SimRec's L_rec) with respect to the embeddings.

    Args:
        users, items: (U, d) and (I, d); y is their dot product.
        user, item: (B,) row numbers of the pairs.

    Returns:
        gradients with respect to `users` and `items`, shaped like them.
    """
    users, items = users.detach(), items.detach()
    share = -1 / len(user)
    return (
        torch.zeros_like(users).index_add_(0, user, items.index_select(0, item), alpha=share),
        torch.zeros_like(items).index_add_(0, item, users.index_select(0, user), alpha=share),
    )


def adaptive_weights(
    prediction: Tensor, embedding: Tensor, recommendation: Tensor, epsilon: float, *, cosine: bool = False
) -> Tensor:
    """w of each node (SimRec eq. 10): 1 - epsilon where (g1 + g2)·g_rec > g1·g2, else 1 + epsilon.

    Where distillation and recommendation pull a node the same way, it needs less regularisation.

    Args:
        prediction, embedding, recommendation: (n, d) g1, g2, g_rec of the nodes.
        epsilon: the step from 1.
        cosine: whether the three are brought to length 1 first, as the authors' code does.

    Returns:
        (n,) weights.
    """
    if cosine:
        prediction, embedding, recommendation = (
            functional.normalize(gradient, dim=1, eps=_TINY) for gradient in (prediction, embedding, recommendation)
        )
    agree = ((prediction + embedding) * recommendation).sum(1) > (prediction * embedding).sum(1)
    return torch.where(agree, 1 - epsilon, 1 + epsilon).to(prediction.dtype)


def with_gradient(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Optional[Tensor]]) -> Tensor:
    """`value`, whose backward pass hands `gradients` (times the incoming one) to `tensors`, once.

    For losses that computed their gradient together with their value. The gradients are multiplied where they lie, so
    that each is a tensor of its own.

    Args:
        value: a scalar.
        tensors: what the value depends on.
        gradients: for each tensor one shaped like it, or None where the value does not depend on it.

    Raises:
        ValueError: not one gradient for each tensor, or one of another shape.
    """
    shapes = [tensor.shape for tensor in tensors]
    found = [shape if gradient is None else gradient.shape for gradient, shape in zip(gradients, shapes)]
    if len(gradients) != len(tensors) or found != shapes:
        raise ValueError(f"gradients have shapes {found}; expected those of the tensors, {shapes}.")
    result: Tensor = _WithGradient.apply(value, tuple(gradients), *tensors)
    return result


def own_precision(loss: _Loss) -> _Loss:
    """A loss that takes its gradient itself, computed in its inputs' type inside of autocast too (`enable_amp`)."""

    @wraps(loss)
    def computed(*arguments: Any, **named: Any) -> Any:
        if not (torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()):
            return loss(*arguments, **named)
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return loss(*arguments, **named)

    return cast(_Loss, computed)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Optional[Tensor], ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Optional[Tensor], ...]:
        (grad,) = incoming
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("This loss's gradient was handed on already; compute the loss again.")
        return (None, None, *(None if gradient is None else gradient.mul_(grad) for gradient in gradients))


def _scores(query: Tensor, keys: Tensor, buffer: Tensor) -> Tensor:
    """(rows, columns) products of `query` and `keys`, in the front of `buffer`."""
    out = buffer[: len(query) * len(keys)].view(len(query), len(keys))
    return torch.mm(query, keys.t(), out=out)


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """Lets float32 products round their operands to bfloat16 inside the block, if `precision` says so."""
    if precision != "bf16":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, length)) for start in range(0, length, step))


def _largest_norm(vectors: Tensor) -> float:
    return float(vectors.norm(dim=1).max()) if len(vectors) else 0.0
