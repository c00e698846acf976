"""log sum_n exp(q·k_n / tau) over a whole catalogue, in memory that does not grow with the catalogue.

Autograd would keep Q x N similarities and read them again for the gradients. Here one pass over blocks of similarities
gives the sums and their gradients. The formula is ``loss.contrastive.catalogue_logsumexp``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor

__all__ = ["block_shape", "streamed_logsumexp"]

#: Largest number of similarities in a block of rows over the whole catalogue.
HELD = 16 * 2**20
#: For scores within ±40 no maximum is subtracted: even a sum of 1e9 such exponentials, and its inverse, fit fp32.
SAFE_SCORE = 40.0
#: Scores are clamped this far below their row's maximum. Such scores do not change a sum in float64. Their exponentials
#: are still normal numbers; arithmetic with subnormal numbers is more than ten times slower.
FAINT = -60.0


def streamed_logsumexp(
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    sample: Optional[Tensor] = None,
    *,
    weights: Optional[Tensor] = None,
    query_gradient: Optional[Tensor] = None,
    key_gradient: Optional[Tensor] = None,
    blocks: Optional[tuple[int, int]] = None,
) -> Tensor:
    """log sum_n exp(q_r·k_n / tau) of every query over every key, and the gradients of its weighted sum.

    The sums of a block of rows are finished before its two gradient products, so nothing is computed twice. If a block
    of rows over all keys would be too large, the keys are divided into blocks too, and read twice: first for the
    running maximum and sum, then for the gradients. Memory is that of one block. The result is exact even for scores
    whose exponential overflows.

    Args:
        queries: (Q, d).
        keys: (N, d), N > 0.
        temperature: tau > 0.
        sample: (n,) rows of the keys, drawn uniformly. Each sum over all keys is estimated, without bias, by N / n
            times the sum over these rows; the gradients are those of the estimate. None: every key.
        weights: (Q,) w_r; the gradients are those of sum_r w_r values_r. None: 1.
        query_gradient: (Q, d); the gradient with respect to the queries is added to it. None: it is not computed.
        key_gradient: (N, d); the gradient with respect to the keys is added to it. None: it is not computed.
        blocks: (rows, columns) of similarities held at once; None: :func:`block_shape`.

    Returns:
        (Q,) the values, without autograd.

    Raises:
        ValueError: no keys, or temperature not positive.
    """
    if len(keys) == 0:
        raise ValueError("keys is empty; expected at least one row.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; expected a number above 0.")
    if sample is not None:
        drawn = keys.detach().index_select(0, sample)
        of_drawn = None if key_gradient is None else torch.zeros_like(drawn)
        values = streamed_logsumexp(
            queries,
            drawn,
            temperature,
            weights=weights,
            query_gradient=query_gradient,
            key_gradient=of_drawn,
            blocks=blocks,
        )
        if key_gradient is not None and of_drawn is not None:
            key_gradient.index_add_(0, sample, of_drawn)
        return values + math.log(len(keys) / len(sample))
    queries, keys = queries.detach() / temperature, keys.detach()
    rows, columns = blocks or block_shape(len(keys))
    rows, columns = max(1, min(rows, len(queries))), min(columns, len(keys))
    buffer = queries.new_empty(rows * columns)
    values = queries.new_empty(len(queries))
    bounded = len(queries) == 0 or math.prod(_largest_norms(queries, keys)) <= SAFE_SCORE
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

        # d value_r / d score_rn = exp(score_rn - top_r) / total_r. The row's factors multiply the narrow matrix.
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


def block_shape(keys: int) -> tuple[int, int]:
    """(rows, columns) of the blocks of similarities with `keys` keys, at the present precision of products.

    Whole rows are computed once, so they are used if some tens of them fit. Otherwise blocks are small enough to stay
    in the processor's cache between the two reads. Measured by ``tests/benchmarks/simrec_step.py --blocks``.
    """
    rows = 128 if torch.get_float32_matmul_precision() == "medium" else 64
    return (rows, keys) if rows * keys <= HELD else (256, 8192)


def _scores(query: Tensor, keys: Tensor, buffer: Tensor) -> Tensor:
    """(rows, columns) products of `query` and `keys`, written to the beginning of `buffer`."""
    out = buffer[: len(query) * len(keys)].view(len(query), len(keys))
    return torch.mm(query, keys.t(), out=out)


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, length)) for start in range(0, length, step))


def _largest_norms(*tables: Tensor) -> list[float]:
    # Read together, to wait for a GPU only once.
    norms: list[float] = torch.stack([vectors.norm(dim=1).max() for vectors in tables]).tolist()
    return norms
