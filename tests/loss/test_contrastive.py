"""Catalogue-wide sums and SimRec's terms against slow references in float64: full logits, loops, autograd."""

from __future__ import annotations

import itertools
import math
from typing import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.contrastive import (
    adaptive_weights,
    catalogue_logsumexp,
    cosine_infonce,
    interaction_gradient,
    prediction_bce,
    with_gradient,
)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def with_autograd(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The value of a function in float64, and its gradients by autograd."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return (value.detach(), *torch.autograd.grad(value.sum(), leaves))


def full_logsumexp(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The formula with all similarities at once."""
    return torch.logsumexp(queries @ keys.t() / temperature, dim=1)


# catalogue_logsumexp


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 7),
    keys=st.integers(1, 11),
    blocks=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_values_and_gradients_equal_the_formula_at_every_size_of_block(queries, keys, blocks, scale):
    q, k, weights = drawn(queries, 3, seed=1, scale=scale), drawn(keys, 3, seed=2, scale=scale), drawn(queries, seed=3)
    values, of_queries, of_keys = with_autograd(lambda q, k: full_logsumexp(q, k, 0.5) * weights, q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    got = catalogue_logsumexp(
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
    values, of_queries, of_keys = with_autograd(lambda q, k: full_logsumexp(q, k, temperature) * weights.double(), q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    got = catalogue_logsumexp(
        q, k, temperature, weights=weights, query_gradient=got_queries, key_gradient=got_keys, blocks=blocks
    )
    # A score of 1e4 is known to 1e-3 in fp32, so that much can its exponential be off by.
    torch.testing.assert_close((got * weights).double(), values, rtol=1e-6, atol=1e-5)
    for found, expected in ((got_queries, of_queries), (got_keys, of_keys)):
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


def test_gradients_are_added_to_what_is_there_and_only_where_asked():
    q, k = drawn(5, 3), drawn(8, 3, seed=1)
    only = torch.zeros_like(k)
    values = catalogue_logsumexp(q, k, 1.0, key_gradient=only)
    torch.testing.assert_close(values, full_logsumexp(q, k, 1.0))
    twice = only.clone()
    catalogue_logsumexp(q, k, 1.0, key_gradient=twice)
    torch.testing.assert_close(twice, 2 * only)


def test_without_weights_every_row_counts_once():
    q, k = drawn(5, 3), drawn(8, 3, seed=1)
    _, of_queries, _ = with_autograd(lambda q, k: full_logsumexp(q, k, 2.0), q, k)
    got = torch.zeros_like(q)
    catalogue_logsumexp(q, k, 2.0, query_gradient=got)
    torch.testing.assert_close(got, of_queries)


@pytest.mark.parametrize("scale", [0.3, 3.0], ids=["scores near 0", "scores beyond 40"])
@pytest.mark.parametrize("blocks", [(64, 500), (64, 90)], ids=["whole rows", "blocks of columns"])
def test_bf16_products_stay_near_float64(scale, blocks):
    q = drawn(70, 32, scale=scale, dtype=torch.float32)
    k = drawn(500, 32, seed=1, scale=scale, dtype=torch.float32)
    values, of_queries, of_keys = with_autograd(lambda q, k: full_logsumexp(q, k, 1.0), q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.zeros_like(k)
    got = catalogue_logsumexp(
        q, k, 1.0, query_gradient=got_queries, key_gradient=got_keys, precision="bf16", blocks=blocks
    )
    assert got.dtype == got_queries.dtype == torch.float32
    # bfloat16 keeps 8 bits: of each operand, of each score, of each exponential.
    largest = float(q.norm(dim=1).max() * k.norm(dim=1).max())
    assert (got - values).abs().max() < 2**-8 * largest
    for found, expected in ((got_queries, of_queries), (got_keys, of_keys)):
        assert (found - expected).norm() < 2**-8 * max(2, largest) * expected.norm()


def test_bf16_leaves_the_precision_of_other_products_as_it_was():
    torch.set_float32_matmul_precision("high")
    try:
        catalogue_logsumexp(drawn(4, 3), drawn(6, 3, seed=1), 1.0, precision="bf16")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float64_stays_float64():
    q, k = drawn(4, 3), drawn(6, 3, seed=1)
    assert catalogue_logsumexp(q, k, 1.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("keys", "temperature", "precision", "message"),
    [
        (0, 1.0, "fp32", "keys is empty"),
        (3, 0.0, "fp32", "temperature=0"),
        (3, 1.0, "fp16", "expected one of fp32, bf16"),
    ],
)
def test_wrong_arguments_say_what_was_expected(keys, temperature, precision, message):
    with pytest.raises(ValueError, match=message):
        catalogue_logsumexp(drawn(2, 3), drawn(keys, 3), temperature, precision=precision)


# cosine_infonce


def test_a_sample_estimates_the_sums_and_gives_its_own_gradients():
    q, k, sample = drawn(3, 4), drawn(6, 4, seed=1), torch.tensor([5, 2, 2, 0])

    def estimated(q: Tensor, k: Tensor) -> Tensor:
        return (torch.exp(q @ k[sample].t() / 0.5).sum(1) * 6 / 4).log()

    values, of_queries, of_keys = with_autograd(estimated, q, k)
    got_queries, got_keys = torch.zeros_like(q), torch.ones_like(k)
    got = catalogue_logsumexp(q, k, 0.5, query_gradient=got_queries, key_gradient=got_keys, sample=sample)
    torch.testing.assert_close(got, values)
    torch.testing.assert_close(got_queries, of_queries)
    torch.testing.assert_close(got_keys, of_keys + 1)

    every = [torch.tensor(pair) for pair in itertools.product(range(6), repeat=2)]
    mean = torch.stack([catalogue_logsumexp(q, k, 0.5, sample=pair).exp() for pair in every]).mean(0)
    torch.testing.assert_close(mean, full_logsumexp(q, k, 0.5).exp(), msg="over all samples: the sum itself")


def slow_infonce(anchors: Tensor, embeddings: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Eq. 8, one anchor at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for anchor, positive in zip(anchors, positives):
        cosines = torch.stack([(anchor @ h) / (anchor.norm() * h.norm()) for h in embeddings])
        total = total - torch.log(torch.exp(cosines[positive] / temperature) / torch.exp(cosines / temperature).sum())
    return total / len(anchors)


def test_infonce_equals_the_formula_with_its_gradient_through_the_normalisation():
    embeddings, positives = drawn(9, 4), torch.tensor([2, 7, 0])
    anchors = torch.nn.functional.normalize(drawn(3, 4, seed=1))
    value, gradient = with_autograd(lambda h: slow_infonce(anchors, h, positives, 0.1), embeddings)
    got, got_gradient = cosine_infonce(anchors, embeddings, positives, 0.1)
    torch.testing.assert_close(got, value)
    torch.testing.assert_close(got_gradient, gradient)


def test_infonce_gradient_is_across_the_embedding():
    embeddings = drawn(9, 4)
    _, gradient = cosine_infonce(torch.nn.functional.normalize(drawn(3, 4, seed=1)), embeddings, torch.arange(3), 0.1)
    torch.testing.assert_close((gradient * embeddings).sum(1), torch.zeros(9, dtype=torch.float64))


def test_infonce_of_an_embedding_of_length_zero_is_finite():
    value, gradient = cosine_infonce(
        torch.nn.functional.normalize(drawn(1, 4)), torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0]), 0.1
    )
    assert value.item() == pytest.approx(math.log(3))
    assert gradient.isfinite().all()


# prediction_bce


def slow_bce(users: Tensor, items: Tensor, triplets: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Eq. 7, one triplet at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for (u, j, k), z in zip(triplets.tolist(), teacher):
        student = torch.sigmoid((users[u] @ items[j] - users[u] @ items[k]) / temperature)
        target = torch.sigmoid(z / temperature)
        total = total - (target * torch.log(student) + (1 - target) * torch.log(1 - student))
    return total / len(triplets)


def triplets_of(count: int, users: int, items: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.stack([torch.randint(high, (count,), generator=generator) for high in (users, items, items)], dim=1)


def test_bce_equals_the_formula_with_its_gradients():
    users, items, teacher = drawn(4, 3, scale=0.5), drawn(6, 3, seed=1, scale=0.5), drawn(30, seed=2)
    triplets = triplets_of(30, 4, 6)  # many meet the same user and item, some the same item twice
    expected = with_autograd(lambda users, items: slow_bce(users, items, triplets, teacher, 0.3), users, items)
    got = prediction_bce(users, items, triplets.unbind(1), teacher, 0.3)
    for found, wanted in zip(got, expected):
        torch.testing.assert_close(found, wanted)


def test_bce_of_scores_of_ten_thousand_is_finite_in_fp32():
    users, items = drawn(4, 3, scale=100, dtype=torch.float32), drawn(6, 3, seed=1, scale=100, dtype=torch.float32)
    value, *gradients = prediction_bce(users, items, triplets_of(30, 4, 6).unbind(1), drawn(30) * 1e4, 1.0)
    assert value.isfinite()
    assert value > 1e3
    assert all(gradient.isfinite().all() for gradient in gradients)


# interaction_gradient, adaptive_weights, with_gradient


def test_interaction_gradient_is_that_of_minus_the_mean_score():
    users, items = drawn(4, 3), drawn(6, 3, seed=1)
    user, item = torch.tensor([0, 2, 2, 2]), torch.tensor([5, 1, 1, 3])
    _, *expected = with_autograd(lambda users, items: -(users[user] * items[item]).sum(1).mean(), users, items)
    for found, wanted in zip(interaction_gradient(users, items, user, item), expected):
        torch.testing.assert_close(found, wanted)


def test_weights_fall_where_distillation_agrees_with_recommendation():
    toward = torch.tensor([[1.0, 0.0]])
    across = torch.tensor([[0.0, 1.0]])
    assert adaptive_weights(toward, across, toward, 0.2).tolist() == pytest.approx([0.8])
    assert adaptive_weights(toward, across, -toward, 0.2).tolist() == pytest.approx([1.2])
    # Two long distillation gradients that agree with each other more than with a short g_rec.
    assert adaptive_weights(toward, toward, 0.1 * toward, 0.2).tolist() == pytest.approx([1.2])
    assert adaptive_weights(toward, toward, 0.1 * toward, 0.2, cosine=True).tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("cosine", [False, True])
def test_weights_equal_equation_10_node_by_node(cosine):
    gradients = [drawn(20, 3, seed=seed, scale=10.0**seed) for seed in range(3)]
    got = adaptive_weights(*gradients, 0.3, cosine=cosine)
    for node, weight in enumerate(got.tolist()):
        g1, g2, g_rec = (gradient[node] / (gradient[node].norm() if cosine else 1) for gradient in gradients)
        assert weight == pytest.approx(0.7 if float((g1 + g2) @ g_rec) > float(g1 @ g2) else 1.3)


def test_with_gradient_hands_its_gradients_back_times_the_incoming_one():
    a, b, unused = (drawn(2, 3, seed=seed).requires_grad_() for seed in range(3))
    value = torch.tensor(7.0, dtype=torch.float64)
    loss = with_gradient(value, (a, b, unused), (torch.ones(2, 3), 2 * torch.ones(2, 3), None))
    assert loss.item() == 7
    (3 * loss).backward()
    assert (a.grad == 3).all()
    assert (b.grad == 6).all()
    assert unused.grad is None


def test_with_gradient_hands_them_on_once():
    """They are multiplied in place, so that a second time would count them twice."""
    tensor = drawn(2, 3).requires_grad_()
    loss = with_gradient(torch.tensor(0.0), (tensor,), (torch.ones(2, 3),))
    torch.autograd.grad(loss, tensor, retain_graph=True)
    with pytest.raises(RuntimeError, match="handed on already"):
        torch.autograd.grad(loss, tensor)


def test_with_gradient_refuses_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match="expected those of the tensors"):
        with_gradient(torch.tensor(0.0), (drawn(2, 3),), (drawn(3, 2),))
