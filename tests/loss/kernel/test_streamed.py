"""Sums over a catalogue in blocks against the formula, with all similarities at once, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.contrastive import catalogue_logsumexp
from recbole_kd.loss.kernel import precision
from recbole_kd.loss.kernel.precision import product_precision
from recbole_kd.loss.kernel.streamed import streamed_logsumexp


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def with_autograd(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The value of a function in float64, and its gradients by autograd."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return (value.detach(), *torch.autograd.grad(value.sum(), leaves))


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 7),
    keys=st.integers(1, 11),
    blocks=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_values_and_gradients_equal_the_formula_at_every_size_of_block(queries, keys, blocks, scale):
    q, k, weights = drawn(queries, 3, seed=1, scale=scale), drawn(keys, 3, seed=2, scale=scale), drawn(queries, seed=3)
    values, of_queries, of_keys = with_autograd(lambda q, k: catalogue_logsumexp(q, k, 0.5) * weights, q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    got = streamed_logsumexp(
        q, k, 0.5, weights=weights, query_gradient=got_queries, key_gradient=got_keys, blocks=blocks
    )
    torch.testing.assert_close(got * weights, values)
    torch.testing.assert_close(got_queries, of_queries)
    torch.testing.assert_close(got_keys, of_keys)


@pytest.mark.parametrize("blocks", [(64, 50), (4, 13)], ids=["whole rows", "blocks of columns"])
@pytest.mark.parametrize("furthest", [100, 1e4, -100, -1e4])
def test_scores_whose_exponential_overflows_fp32_stay_exact(furthest, blocks):
    q = drawn(9, 4, dtype=torch.float32).abs()
    k = drawn(50, 4, seed=1, dtype=torch.float32).abs() * math.copysign(1, furthest)
    temperature = float((q @ k.t()).abs().max()) / abs(furthest)
    weights = drawn(9, seed=2, dtype=torch.float32)
    naive = torch.exp(q @ k.t() / temperature).sum(1).log()
    assert naive.isinf().any() or furthest == -100
    values, of_queries, of_keys = with_autograd(
        lambda q, k: catalogue_logsumexp(q, k, temperature) * weights.double(), q, k
    )
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    got = streamed_logsumexp(
        q, k, temperature, weights=weights, query_gradient=got_queries, key_gradient=got_keys, blocks=blocks
    )
    # A score of 1e4 is known to 1e-3 in fp32, so that much can its exponential be off by.
    torch.testing.assert_close((got * weights).double(), values, rtol=1e-6, atol=1e-5)
    for found, expected in ((got_queries, of_queries), (got_keys, of_keys)):
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


def test_gradients_are_added_to_what_is_there_and_only_where_asked():
    q, k = drawn(5, 3), drawn(8, 3, seed=1)
    only = torch.zeros_like(k)
    values = streamed_logsumexp(q, k, 1.0, key_gradient=only)
    torch.testing.assert_close(values, catalogue_logsumexp(q, k, 1.0))
    twice = only.clone()
    streamed_logsumexp(q, k, 1.0, key_gradient=twice)
    torch.testing.assert_close(twice, 2 * only)


def test_without_weights_every_row_counts_once():
    q, k = drawn(5, 3), drawn(8, 3, seed=1)
    _, of_queries, _ = with_autograd(lambda q, k: catalogue_logsumexp(q, k, 2.0), q, k)
    got = torch.zeros_like(q)
    streamed_logsumexp(q, k, 2.0, query_gradient=got)
    torch.testing.assert_close(got, of_queries)


@pytest.mark.parametrize("scale", [0.3, 3.0], ids=["scores near 0", "scores beyond 40"])
@pytest.mark.parametrize("blocks", [(64, 500), (64, 90)], ids=["whole rows", "blocks of columns"])
def test_bf16_products_stay_near_float64(scale, blocks, monkeypatch):
    q = drawn(70, 32, scale=scale, dtype=torch.float32)
    k = drawn(500, 32, seed=1, scale=scale, dtype=torch.float32)
    values, of_queries, of_keys = with_autograd(lambda q, k: catalogue_logsumexp(q, k, 1.0), q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    monkeypatch.setattr(precision, "_supports", lambda instructions: True)
    with product_precision("bf16"):
        got = streamed_logsumexp(q, k, 1.0, query_gradient=got_queries, key_gradient=got_keys, blocks=blocks)
    assert got.dtype == got_queries.dtype == torch.float32
    # bfloat16 keeps 8 bits: of each operand, of each score, of each exponential.
    largest = float(q.norm(dim=1).max() * k.norm(dim=1).max())
    assert (got - values).abs().max() < 2**-8 * largest
    for found, expected in ((got_queries, of_queries), (got_keys, of_keys)):
        assert (found - expected).norm() < 2**-8 * max(2, largest) * expected.norm()


def test_float64_stays_float64():
    q, k = drawn(4, 3), drawn(6, 3, seed=1)
    assert streamed_logsumexp(q, k, 1.0).dtype == torch.float64


@pytest.mark.parametrize(("keys", "temperature", "message"), [(0, 1.0, "keys is empty"), (3, 0.0, "temperature=0")])
def test_wrong_arguments_say_what_was_expected(keys, temperature, message):
    with pytest.raises(ValueError, match=message):
        streamed_logsumexp(drawn(2, 3), drawn(keys, 3), temperature)


def test_no_queries_have_no_sums():
    assert streamed_logsumexp(drawn(0, 3), drawn(6, 3), 1.0, key_gradient=torch.zeros(6, 3).double()).shape == (0,)


def test_a_sample_estimates_the_sums_and_gives_its_own_gradients():
    q, k, sample = drawn(3, 4), drawn(6, 4, seed=1), torch.tensor([5, 2, 2, 0])

    def estimated(q: Tensor, k: Tensor) -> Tensor:
        return (torch.exp(q @ k[sample].t() / 0.5).sum(1) * 6 / 4).log()

    values, of_queries, of_keys = with_autograd(estimated, q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.ones_like(k)
    got = streamed_logsumexp(q, k, 0.5, query_gradient=got_queries, key_gradient=got_keys, sample=sample)
    torch.testing.assert_close(got, values)
    torch.testing.assert_close(got_queries, of_queries)
    torch.testing.assert_close(got_keys, of_keys + 1)

    every = [torch.tensor(pair) for pair in itertools.product(range(6), repeat=2)]
    mean = torch.stack([streamed_logsumexp(q, k, 0.5, sample=pair).exp() for pair in every]).mean(0)
    torch.testing.assert_close(mean, catalogue_logsumexp(q, k, 0.5).exp(), msg="over all samples: the sum itself")
