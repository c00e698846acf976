"""The listwise loss in closed form against the formula: the same value and gradient, in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss import ranking as formula
from recbole_kd.loss.kernel import ranking as kernel
from tests.loss.same import assert_same, draw, gradients

sizes = st.integers(1, 6)
seeds = st.integers(0, 10_000)


def chosen(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


@given(n=sizes, k=sizes, below=st.integers(0, 6), seed=seeds, scale=st.sampled_from([1.0, 100.0]))
@settings(max_examples=50, deadline=None)
def test_listwise_loss(n: int, k: int, below: int, seed: int, scale: float) -> None:
    scores = draw(seed, n, k, scale=scale), draw(seed + 1, n, below, scale=scale)
    assert_same(kernel.listwise_loss(*scores), formula.listwise_loss(*scores), scores)


@given(n=sizes, k=sizes, below=sizes, seed=seeds, masked=st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=50, deadline=None)
def test_listwise_loss_where_entries_are_missing(
    n: int, k: int, below: int, seed: int, masked: tuple[bool, bool]
) -> None:
    scores = draw(seed, n, k), draw(seed + 1, n, below)
    drawn = chosen(n, k, seed=seed + 2), chosen(n, below, seed=seed + 3)
    for score, mask, wanted, anything in zip(scores, drawn, masked, (torch.nan, torch.inf)):
        if wanted:
            score.data[~mask] = anything
    masks = [mask if wanted else None for mask, wanted in zip(drawn, masked)]
    found, expected = kernel.listwise_loss(*scores, *masks), formula.listwise_loss(*scores, *masks)
    assert_same(found, expected, scores)
    for gradient, mask in zip(gradients(found, scores), masks):
        assert mask is None or not gradient[~mask].any()


@given(n=sizes, k=sizes, below=st.integers(0, 6), seed=seeds, masked=st.booleans())
@settings(max_examples=50, deadline=None)
def test_listwise_loss_whose_terms_have_weights(n: int, k: int, below: int, seed: int, masked: bool) -> None:
    """Some of the weights are 0: such a term adds nothing, and its item stays among those below the better ones."""
    scores = draw(seed, n, k), draw(seed + 1, n, below)
    weights = torch.rand(n, k, dtype=torch.float64) * chosen(n, k, seed=seed + 2)
    mask = chosen(n, k, seed=seed + 3) if masked else None
    found = kernel.listwise_loss(*scores, mask, None, weights)
    assert_same(found, formula.listwise_loss(*scores, mask, None, weights), scores)


def test_float32_follows_the_formula_where_exponentials_overflow() -> None:
    scores = [draw(seed, 5, 4, scale=1e4) for seed in (0, 1)]
    single = [score.detach().float().requires_grad_() for score in scores]
    loss = kernel.listwise_loss(*single)
    torch.testing.assert_close(loss.double(), formula.listwise_loss(*scores), rtol=1e-6, atol=1e-6)
    for found, expected in zip(gradients(loss, single), gradients(formula.listwise_loss(*scores), scores)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
