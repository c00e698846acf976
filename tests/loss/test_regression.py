"""Sums of errors of mapped vectors against loops over nodes and experts, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.kernel.layout import GroupLayout
from recbole_kd.loss.regression import cosine_distances, expert_error, linear_error, mean_over_nodes, mixture_error
from tests.loss.same import assert_same, draw

INPUTS, HIDDEN, OUTPUTS, TABLE = 3, 4, 5, 30


def experts(count: int) -> list[Tensor]:
    """A, a, B, b of `count` experts."""
    return [
        draw(1, count, INPUTS, HIDDEN),
        draw(2, count, HIDDEN),
        draw(3, count, HIDDEN, OUTPUTS),
        draw(4, count, OUTPUTS),
    ]


def expert(parameters: list[Tensor], index: int, x: Tensor) -> Tensor:
    """E_m(x), one vector at a time."""
    first, first_bias, second, second_bias = (parameter[index] for parameter in parameters)
    hidden = first.T @ x + first_bias
    return second.T @ torch.where(hidden > 0, hidden, 0.0) + second_bias


def norm(difference: Tensor, squared: bool) -> Tensor:
    return (difference**2).sum() if squared else (difference**2).sum().sqrt()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 13), st.integers(0, 1000))
def test_linear_error_is_the_sum_over_nodes(count: int, seed: int) -> None:
    x, weight, table = (
        draw(seed, count, INPUTS),
        draw(seed + 1, OUTPUTS, INPUTS),
        draw(seed + 2, TABLE, OUTPUTS).detach(),
    )
    rows = torch.randint(TABLE, (count,), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros((), dtype=torch.float64)
    for node in range(count):
        expected = expected + norm(weight @ x[node] - table[rows[node]], squared=True)
    assert_same(linear_error(x, weight, table, rows), expected, [x, weight])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 13), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_expert_error_sends_each_node_through_its_own_expert(count: int, number: int, squared: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, parameters, table = draw(seed, count, INPUTS), experts(number), draw(seed + 2, TABLE, OUTPUTS).detach()
    choice = torch.randint(number, (count,), generator=generator)
    rows = torch.randint(TABLE, (count,), generator=generator)
    expected = torch.zeros((), dtype=torch.float64)
    for node in range(count):
        difference = expert(parameters, int(choice[node]), x[node]) - table[rows[node]]
        expected = expected + norm(difference, squared)
    layout = GroupLayout(choice, number)
    # Row 0, which fills up the layout, is nobody's target.
    targets = torch.cat([torch.full_like(table[:1], torch.nan), table])[layout.padded(rows + 1)]
    found = expert_error(x, layout, *parameters, targets, squared=squared)
    assert_same(found, expected, [x, *parameters])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_mixture_error_weighs_all_experts(count: int, number: int, squared: bool, seed: int) -> None:
    x, parameters, table = draw(seed, count, INPUTS), experts(number), draw(seed + 2, TABLE, OUTPUTS).detach()
    weights = draw(seed + 3, count, number)
    rows = torch.randint(TABLE, (count,), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros((), dtype=torch.float64)
    for node in range(count):
        mixed = sum(weights[node, index] * expert(parameters, index, x[node]) for index in range(number))
        expected = expected + norm(mixed - table[rows[node]], squared)
    found = mixture_error(x, weights, *parameters, table, rows, squared=squared)
    assert_same(found, expected, [x, weights, *parameters])


def test_cosine_distance_compares_directions() -> None:
    predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine_distances(predicted, target), torch.tensor([0.0, 1.0, 2.0, 1.0]))


def test_each_node_of_every_side_counts_the_same() -> None:
    assert mean_over_nodes([torch.tensor(6.0), torch.tensor(2.0)], 3 + 1).item() == 2
    assert mean_over_nodes([torch.tensor(0.0)], 0).item() == 0


def test_cosine_distance_is_one_less_the_cosine_and_so_is_its_gradient() -> None:
    predicted, target = draw(0, 6, 4), draw(1, 6, 4).detach()
    expected = torch.stack([1 - p @ t / (p.norm() * t.norm()) for p, t in zip(predicted, target)]).sum()
    assert_same(cosine_distances(predicted, target).sum(), expected, [predicted])
    with pytest.raises(ValueError, match="predicted vectors are"):
        cosine_distances(draw(0, 2, 3), draw(0, 2, 4))
