"""Sums of errors of mapped vectors against loops over nodes and experts, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss import regression
from recbole_kd.loss.kernel import layout
from recbole_kd.loss.kernel.layout import GroupLayout
from recbole_kd.loss.regression import cosine_distances, expert_error, linear_error, mean_over_nodes, mixture_error

INPUTS, HIDDEN, OUTPUTS, TABLE = 3, 4, 5, 30


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


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


def routed(choice: Tensor, number: int, parameters: list[Tensor], table: Tensor, rows: Tensor) -> list[Any]:
    """What :func:`expert_error` takes after the inputs. Row 0 of the table, which fills up, is nobody's target."""
    nodes = GroupLayout(choice, number)
    return [nodes, *parameters, torch.cat([torch.full_like(table[:1], torch.nan), table])[nodes.padded(rows + 1)]]


def norm(difference: Tensor, squared: bool) -> Tensor:
    return (difference**2).sum() if squared else (difference**2).sum().sqrt()


def assert_same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """The same value, and the same gradient for every input that the expected value depends on."""
    torch.testing.assert_close(found, expected)
    # Times 3: the gradient must follow what comes from above.
    found_gradients = torch.autograd.grad(3 * found, inputs, allow_unused=True)
    expected_gradients = torch.autograd.grad(3 * expected, inputs, allow_unused=True)
    for one, other, tensor in zip(found_gradients, expected_gradients, inputs):
        torch.testing.assert_close(one, torch.zeros_like(tensor) if other is None else other)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every test goes through several, the last of them not full."""
    monkeypatch.setattr(regression, "BLOCK", 4)
    monkeypatch.setattr(regression, "MIXTURE_BLOCK", 3)
    monkeypatch.setattr(layout, "SHORT", 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 13), st.integers(0, 1000))
def test_linear_error_is_the_sum_over_nodes(count: int, seed: int) -> None:
    x, weight, table = (
        draw(seed, count, INPUTS),
        draw(seed + 1, OUTPUTS, INPUTS),
        draw(seed + 2, TABLE, OUTPUTS).detach(),
    )
    rows = torch.randint(TABLE, (count,), generator=torch.Generator().manual_seed(seed))
    expected = (x.sum() + weight.sum()) * 0
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
    expected = (x.sum() + sum(parameter.sum() for parameter in parameters)) * 0
    for node in range(count):
        difference = expert(parameters, int(choice[node]), x[node]) - table[rows[node]]
        expected = expected + norm(difference, squared)
    found = expert_error(x, *routed(choice, len(parameters[0]), parameters, table, rows), squared=squared)
    assert_same(found, expected, [x, *parameters])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_mixture_error_weighs_all_experts(count: int, number: int, squared: bool, seed: int) -> None:
    x, parameters, table = draw(seed, count, INPUTS), experts(number), draw(seed + 2, TABLE, OUTPUTS).detach()
    weights = draw(seed + 3, count, number)
    rows = torch.randint(TABLE, (count,), generator=torch.Generator().manual_seed(seed))
    expected = (x.sum() + weights.sum() + sum(parameter.sum() for parameter in parameters)) * 0
    for node in range(count):
        mixed = sum(weights[node, index] * expert(parameters, index, x[node]) for index in range(number))
        expected = expected + norm(mixed - table[rows[node]], squared)
    found = mixture_error(x, weights, *parameters, table, rows, squared=squared)
    assert_same(found, expected, [x, weights, *parameters])


def test_one_hot_weights_are_a_choice() -> None:
    x, parameters, table, rows = draw(0, 9, INPUTS), experts(3), draw(5, TABLE, OUTPUTS).detach(), torch.arange(9)
    choice = torch.tensor([2, 0, 2, 2, 0, 0, 2, 0, 2])
    weights = torch.nn.functional.one_hot(choice, 3).double()
    found = expert_error(x, *routed(choice, len(parameters[0]), parameters, table, rows))
    assert_same(found, mixture_error(x, weights, *parameters, table, rows), [x, *parameters])


def test_a_norm_of_zero_has_gradient_zero() -> None:
    x, parameters = draw(0, 1, INPUTS), experts(1)
    table = expert(parameters, 0, x[0]).detach().unsqueeze(0)
    node = torch.tensor([0])
    expert_error(x, *routed(node, 1, parameters, table, node), squared=False).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_targets_are_read_in_the_type_of_the_student() -> None:
    x, weight = draw(0, 2, INPUTS), draw(1, OUTPUTS, INPUTS)
    table = torch.ones(TABLE, OUTPUTS, dtype=torch.float32)
    assert linear_error(x, weight, table, torch.tensor([0, 1])).dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-8, 1e4, 1e12])
def test_extreme_vectors_stay_finite(scale: float) -> None:
    x, parameters = (draw(0, 6, INPUTS) * scale).float(), [parameter.float() for parameter in experts(2)]
    table, rows, choice = scale * torch.ones(TABLE, OUTPUTS), torch.arange(6), torch.tensor([0, 1] * 3)
    for squared in (True, False):
        assert torch.isfinite(
            expert_error(x, *routed(choice, len(parameters[0]), parameters, table, rows), squared=squared)
        )
        assert torch.isfinite(mixture_error(x, torch.full((6, 2), 0.5), *parameters, table, rows, squared=squared))


def test_shapes_that_do_not_fit_are_refused() -> None:
    table, rows = draw(0, TABLE, OUTPUTS), torch.arange(2)
    with pytest.raises(ValueError, match="do not fit a map from 3 to 5"):
        linear_error(draw(0, 2, 4), draw(1, OUTPUTS, INPUTS), table, rows)
    with pytest.raises(ValueError, match="do not fit"):
        expert_error(draw(0, 3, INPUTS), *routed(torch.tensor([0, 0]), 2, experts(2), table, rows))
    with pytest.raises(ValueError, match="predicted vectors are"):
        cosine_distances(draw(0, 2, 3), draw(0, 2, 4))


def test_cosine_distance_compares_directions() -> None:
    predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine_distances(predicted, target), torch.tensor([0.0, 1.0, 2.0, 1.0]))


def test_each_node_of_every_side_counts_the_same() -> None:
    assert mean_over_nodes([torch.tensor(6.0), torch.tensor(2.0)], 3 + 1).item() == 2
    assert mean_over_nodes([torch.tensor(0.0)], 0).item() == 0


@pytest.mark.parametrize("name", ["linear", "experts", "mixture"])
def test_autocast_changes_nothing(name: str) -> None:
    """With `enable_amp` the loss is computed in the type of its inputs: its own gradient would not follow otherwise."""
    x, parameters = draw(0, 6, INPUTS).float(), [parameter.float() for parameter in experts(2)]
    table, rows, choice = draw(5, TABLE, OUTPUTS).detach().float(), torch.arange(6), torch.tensor([0, 1] * 3)
    weight = draw(1, OUTPUTS, INPUTS).float()
    losses = {
        "linear": lambda: linear_error(x, weight, table, rows),
        "experts": lambda: expert_error(x, *routed(choice, 2, parameters, table, rows)),
        "mixture": lambda: mixture_error(x, torch.full((6, 2), 0.5), *parameters, table, rows),
    }
    expected = losses[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses[name]()
    assert torch.equal(found, expected)
