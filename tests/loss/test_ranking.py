"""Losses of response-based distillation against the papers' formulas, written as loops over float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.kernel import ranking as kernel
from recbole_kd.loss.ranking import (
    discrepancy_weights,
    listwise_loss,
    pairwise_loss,
    position_weights,
    sampled_loss,
    soft_target_loss,
    softmax_loss,
    weighted_positive_loss,
)

sizes = st.integers(1, 6)
seeds = st.integers(0, 10_000)


def drawn(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def chosen(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def assert_gradient(loss: Tensor, reference: Tensor, *inputs: Tensor) -> None:
    for actual, wanted in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(reference, inputs)):
        torch.testing.assert_close(actual, wanted)


# RRD: the likelihood of a permutation


def permutation_loss(interesting: Tensor, uninteresting: Tensor, present: Tensor, present_below: Tensor) -> Tensor:
    """RRD eq. 9, entry by entry."""
    users = []
    for r, r_below, exists, exists_below in zip(interesting, uninteresting, present, present_below):
        ranked = [score for score, there in zip(r, exists) if there]
        below = [score for score, there in zip(r_below, exists_below) if there]
        total = torch.zeros((), dtype=torch.float64)
        for k, score in enumerate(ranked):
            total = total - (score - torch.stack([*ranked[k:], *below]).exp().sum().log())
        if ranked:
            users.append(total)
    return torch.stack(users).mean() if users else torch.zeros((), dtype=torch.float64)


@given(n=sizes, k=sizes, below=sizes, seed=seeds)
@settings(max_examples=50, deadline=None)
def test_listwise_loss_is_equation_9_and_so_is_its_gradient(n: int, k: int, below: int, seed: int) -> None:
    interesting = drawn(n, k, seed=seed).requires_grad_()
    uninteresting = drawn(n, below, seed=seed + 1).requires_grad_()
    everything = torch.ones(n, k, dtype=torch.bool), torch.ones(n, below, dtype=torch.bool)
    loss, reference = (
        listwise_loss(interesting, uninteresting),
        permutation_loss(interesting, uninteresting, *everything),
    )
    torch.testing.assert_close(loss, reference)
    assert_gradient(loss, reference, interesting, uninteresting)


@given(n=sizes, k=sizes, below=sizes, seed=seeds)
@settings(max_examples=50, deadline=None)
def test_missing_entries_are_in_no_sum_and_no_mean(n: int, k: int, below: int, seed: int) -> None:
    interesting, uninteresting = drawn(n, k, seed=seed), drawn(n, below, seed=seed + 1)
    masks = chosen(n, k, seed=seed + 2), chosen(n, below, seed=seed + 3)
    interesting[~masks[0]], uninteresting[~masks[1]] = torch.nan, torch.inf
    interesting.requires_grad_(), uninteresting.requires_grad_()
    loss = listwise_loss(interesting, uninteresting, *masks)
    torch.testing.assert_close(loss, permutation_loss(interesting, uninteresting, *masks))
    of_interesting, of_uninteresting = torch.autograd.grad(loss, [interesting, uninteresting])
    assert torch.isfinite(of_interesting).all()
    assert torch.isfinite(of_uninteresting).all()
    assert not of_interesting[~masks[0]].any()
    assert not of_uninteresting[~masks[1]].any()


@pytest.mark.parametrize("listwise", [listwise_loss, kernel.listwise_loss], ids=["formula", "kernel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, -1])
def test_listwise_loss_is_stable_at_extreme_scores(
    listwise: Callable[..., Tensor], dtype: torch.dtype, order: int
) -> None:
    """Right order: no loss. Wrong order: the sum of the distances, where exp overflows long before."""
    interesting = torch.tensor([[1e4, 5e3, 0.0]], dtype=dtype) * order
    uninteresting = torch.tensor([[-1e4, -1e4]], dtype=dtype) * order
    interesting.requires_grad_(), uninteresting.requires_grad_()
    loss = listwise(interesting, uninteresting)
    wrong = 2e4 + 1.5e4 + 1e4 + 3 * math.log(2)
    torch.testing.assert_close(loss.item(), 0.0 if order == 1 else wrong, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(loss, [interesting, uninteresting])
    expected = ([[0.0] * 3], [[0.0] * 2]) if order == 1 else ([[-1.0] * 3], [[1.5] * 2])
    for actual, wanted in zip(gradients, expected):
        # A score of 1e4 is itself rounded to a thousandth in single precision.
        torch.testing.assert_close(actual, torch.tensor(wanted, dtype=dtype), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("listwise", [listwise_loss, kernel.listwise_loss], ids=["formula", "kernel"])
def test_listwise_loss_only_depends_on_differences(listwise: Callable[..., Tensor]) -> None:
    interesting, uninteresting = drawn(3, 4, seed=0), drawn(3, 5, seed=1)
    shift = torch.tensor([[-9e3], [0.0], [9e3]], dtype=torch.float64)
    torch.testing.assert_close(
        listwise(interesting + shift, uninteresting + shift), listwise(interesting, uninteresting)
    )


# RD: the teacher's best items as positives


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1e6])
def test_position_weights_fall_exponentially(temperature: float) -> None:
    weights = position_weights(4, temperature, like=torch.zeros(1, dtype=torch.float64))
    falling = [math.exp(-(rank - 1) / temperature) for rank in (1, 2, 3, 4)]
    torch.testing.assert_close(weights.tolist(), [weight / sum(falling) for weight in falling])


def test_weights_of_what_the_student_ranks_too_low_sum_to_one_however_far_down_it_is() -> None:
    discrepancy = torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    a = [math.exp(-rank / 0.5) for rank in (1, 2, 3)]
    w = [[a[k] * row[k] for k in range(3)] for row in discrepancy.tolist()]
    expected = torch.tensor([[x / max(sum(row), 1e-300) for x in row] for row in w], dtype=torch.float64)
    torch.testing.assert_close(position_weights(3, 0.5, discrepancy, like=discrepancy), expected)
    plain = torch.tensor([[x / sum(a) for x in row] for row in w], dtype=torch.float64)
    torch.testing.assert_close(position_weights(3, 0.5, discrepancy, renormalise=False, like=discrepancy), plain)
    last = torch.zeros(1, 40).index_fill_(1, torch.tensor([39]), 0.3)  # exp(-40 / 0.1) is 0 in float32
    assert position_weights(40, 0.1, last, like=last).sum().item() == 1


@given(n=sizes, k=sizes, sampled=sizes, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_discrepancy_weights_follow_the_approximate_rank(n: int, k: int, sampled: int, seed: int) -> None:
    items, mu = 50, 0.1
    scores, others = drawn(n, k, seed=seed), drawn(n, sampled, seed=seed + 1)
    weights = discrepancy_weights(scores.requires_grad_(), others, items, mu)
    assert not weights.requires_grad
    for u in range(n):
        for position in range(k):
            above = int((others[u] > scores[u, position]).sum())
            rank = math.floor((items - 1) * above / sampled) + 1
            expected = max(0.0, math.tanh(mu * (rank - (position + 1))))
            assert weights[u, position].item() == pytest.approx(expected)


def test_an_item_that_does_not_count_changes_no_rank() -> None:
    """The share of higher items is 1 of 2 where three were drawn and one does not count; without any the rank is 1."""
    scores, nothing = torch.tensor([[1.5]]), -torch.inf
    for sampled, rank in (([1.0, 2.0, nothing], 99 // 2 + 1), ([nothing, nothing], 1)):
        found = discrepancy_weights(scores, torch.tensor([sampled]), items=100, mu=0.001).item()
        assert found == pytest.approx(math.tanh(0.001 * (rank - 1)))


def test_an_item_that_the_student_ranks_well_enough_has_no_weight() -> None:
    scores, sampled = torch.tensor([[5.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert discrepancy_weights(scores, sampled, items=100, mu=0.1).tolist() == [[0.0, 0.0]]


@given(n=sizes, k=sizes, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_weighted_positive_loss_is_the_mean_over_users_of_weighted_sums(n: int, k: int, seed: int) -> None:
    scores, weights = drawn(n, k, seed=seed), drawn(n, k, seed=seed + 1).abs()
    reference = 0.0
    for u in range(n):
        reference += sum(-float(weights[u, j]) * math.log(sigmoid(float(scores[u, j]))) for j in range(k)) / n
    assert weighted_positive_loss(scores, weights).item() == pytest.approx(reference)


def test_no_gradient_flows_through_weights() -> None:
    scores, weights = drawn(2, 3, seed=0).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    weighted_positive_loss(scores, weights).backward()
    assert weights.grad is None


# CD: soft targets


@given(n=sizes, k=sizes, seed=seeds, temperature=st.floats(0.1, 10), bias=st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_soft_target_loss_is_a_binary_cross_entropy(n: int, k: int, seed: int, temperature: float, bias: float) -> None:
    student, teacher = drawn(n, k, seed=seed), drawn(n, k, seed=seed + 1)
    mask = chosen(n, k, seed=seed + 2)
    entries = []
    for u in range(n):
        for j in range(k):
            if mask[u, j]:
                q, p = sigmoid((float(teacher[u, j]) + bias) / temperature), sigmoid(float(student[u, j]))
                entries.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
    reference = sum(entries) / max(len(entries), 1)
    assert soft_target_loss(student, teacher, temperature, bias, mask).item() == pytest.approx(reference)


def test_soft_target_loss_is_least_where_student_and_teacher_agree() -> None:
    teacher = drawn(2, 3, seed=0)
    student = (teacher / 2).requires_grad_()
    soft_target_loss(student, teacher, temperature=2).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


# UnKD: pairs


@given(n=sizes, k=sizes, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_pairwise_loss_is_the_mean_over_the_pairs_that_exist(n: int, k: int, seed: int) -> None:
    better, worse, mask = drawn(n, k, seed=seed), drawn(n, k, seed=seed + 1), chosen(n, k, seed=seed + 2)
    entries = [-math.log(sigmoid(float(better[u, j] - worse[u, j]))) for u in range(n) for j in range(k) if mask[u, j]]
    assert pairwise_loss(better, worse, mask).item() == pytest.approx(sum(entries) / max(len(entries), 1))


# KD: softmax with temperature


@given(n=sizes, k=sizes, seed=seeds, temperature=st.floats(0.2, 10))
@settings(max_examples=30, deadline=None)
def test_softmax_loss_is_a_cross_entropy_times_the_squared_temperature(
    n: int, k: int, seed: int, temperature: float
) -> None:
    student, teacher = drawn(n, k, seed=seed), drawn(n, k, seed=seed + 1)
    reference = 0.0
    for u in range(n):
        p = [math.exp(float(student[u, j]) / temperature) for j in range(k)]
        q = [math.exp(float(teacher[u, j]) / temperature) for j in range(k)]
        reference -= sum(q[j] / sum(q) * math.log(p[j] / sum(p)) for j in range(k)) * temperature**2 / n
    assert softmax_loss(student, teacher, temperature).item() == pytest.approx(reference)


# Weights of entries


@given(n=sizes, k=sizes, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_weights_are_factors_of_the_entries(n: int, k: int, seed: int) -> None:
    """Of RRD's terms, of CD's items and of the items' parts of KD's cross-entropy; weights of 1 change nothing."""
    student, teacher, below = drawn(n, k, seed=seed), drawn(n, k, seed=seed + 1), drawn(n, 3, seed=seed + 3)
    weights, ones = drawn(n, k, seed=seed + 2).abs(), torch.ones(n, k, dtype=torch.float64)
    listwise = soft = cross = 0.0
    for u in range(n):
        p = [math.exp(float(score)) for score in student[u]]
        q = [math.exp(float(score)) for score in teacher[u]]
        rest = sum(math.exp(float(score)) for score in below[u])
        for j in range(k):
            w = float(weights[u, j])
            listwise -= w * math.log(p[j] / (sum(p[j:]) + rest)) / n
            t, s = q[j] / (1 + q[j]), p[j] / (1 + p[j])
            soft -= w * (t * math.log(s) + (1 - t) * math.log(1 - s)) / (n * k)
            cross -= w * q[j] / sum(q) * math.log(p[j] / sum(p)) / n
    assert listwise_loss(student, below, weights=weights).item() == pytest.approx(listwise)
    assert soft_target_loss(student, teacher, weights=weights).item() == pytest.approx(soft)
    assert softmax_loss(student, teacher, weights=weights).item() == pytest.approx(cross)
    torch.testing.assert_close(listwise_loss(student, below, weights=ones), listwise_loss(student, below))
    torch.testing.assert_close(soft_target_loss(student, teacher, weights=ones), soft_target_loss(student, teacher))
    torch.testing.assert_close(softmax_loss(student, teacher, weights=ones), softmax_loss(student, teacher))


# All of them

LOSSES = {
    "listwise": lambda student, teacher: listwise_loss(student, student.flip(1)),
    "listwise kernel": lambda student, teacher: kernel.listwise_loss(student, student.flip(1)),
    "weighted positive": lambda student, teacher: weighted_positive_loss(student, teacher.sigmoid()),
    "soft target": lambda student, teacher: soft_target_loss(student, teacher, 0.01),
    "pairwise": lambda student, teacher: pairwise_loss(student, student.flip(1)),
    "softmax": lambda student, teacher: softmax_loss(student, teacher, 0.01),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 1.0], [1e4, 0.0, -1e4]], dtype=dtype)
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_twice_as_large_has_the_same_loss(name: str) -> None:
    student, teacher = drawn(3, 4, seed=0), drawn(3, 4, seed=1)
    once = LOSSES[name](student, teacher)
    twice = LOSSES[name](torch.cat([student, student]), torch.cat([teacher, teacher]))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("loss", [soft_target_loss, pairwise_loss])
def test_a_missing_entry_has_no_gradient_even_where_its_score_is_not_a_number(loss: Callable[..., Tensor]) -> None:
    first, second, mask = drawn(2, 3, seed=0), drawn(2, 3, seed=1), chosen(2, 3, seed=2)
    first[~mask] = second[~mask] = torch.nan
    first.requires_grad_()
    loss(first, second, mask=mask).backward()
    assert first.grad is not None
    assert first.grad[mask].all()
    assert not first.grad[~mask].any()


@pytest.mark.parametrize("name", ["soft target", "softmax"])
def test_no_gradient_flows_into_the_teacher(name: str) -> None:
    student, teacher = drawn(2, 3, seed=0).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None


# SASRec: the next item against a drawn one


@given(positions=sizes, seed=seeds)
def test_the_next_item_against_a_drawn_one(positions: int, seed: int) -> None:
    near, far = (drawn(positions, seed=seed + side).requires_grad_() for side in (0, 1))
    terms = [
        -math.log(sigmoid(float(r))) - math.log(1 - sigmoid(float(s))) for r, s in zip(near.detach(), far.detach())
    ]
    loss = sampled_loss(near, far)
    assert loss.item() == pytest.approx(sum(terms) / positions)
    assert_gradient(loss, -(near.sigmoid().log() + (1 - far.sigmoid()).log()).mean(), near, far)


def test_scores_of_any_size_have_a_finite_loss() -> None:
    assert sampled_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)
