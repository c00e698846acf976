"""Sums of errors by blocks and by experts against the formulas: the same values and gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss import regression as formula
from recbole_kd.loss.kernel import layout, precision, regression
from recbole_kd.loss.kernel.layout import GroupLayout
from recbole_kd.loss.kernel.precision import product_precision
from recbole_kd.loss.kernel.regression import expert_error, layer_error, linear_error, mixture_error
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


def routed(choice: Tensor, number: int, parameters: list[Tensor], table: Tensor, rows: Tensor) -> list[Any]:
    """What :func:`expert_error` takes after the inputs. Row 0 of the table, which fills up, is nobody's target."""
    nodes = GroupLayout(choice, number)
    return [nodes, *parameters, torch.cat([torch.full_like(table[:1], torch.nan), table])[nodes.padded(rows + 1)]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every test goes through several, the last of them not full."""
    monkeypatch.setattr(regression, "BLOCK", 4)
    monkeypatch.setattr(regression, "HIDDEN_BLOCK", 3)
    monkeypatch.setattr(layout, "SHORT", 1)


def chosen(seed: int, count: int, high: int) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(seed))


nodes = st.integers(0, 13)
seeds = st.integers(0, 1000)


@settings(max_examples=20, deadline=None)
@given(nodes, seeds, st.integers(1, 3))
def test_linear_error(count: int, seed: int, threads: int) -> None:
    """Threads share out the nodes; what is left over by an unequal number of them is added."""
    x, weight, table = draw(seed, count, INPUTS), draw(seed + 1, OUTPUTS, INPUTS), draw(seed + 2, TABLE, OUTPUTS)
    inputs = (x, weight, table.detach(), chosen(seed, count, TABLE))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: threads)
        found = linear_error(*inputs)
    assert_same(found, formula.linear_error(*inputs), [x, weight])


@settings(max_examples=20, deadline=None)
@given(nodes, st.sampled_from(["squared", "cosine"]), seeds)
def test_layer_error(count: int, distance: str, seed: int) -> None:
    x, constant, table = draw(seed, count, INPUTS), draw(seed + 3, count).detach(), draw(seed + 2, TABLE, OUTPUTS)
    weight, bias = draw(seed + 1, OUTPUTS, INPUTS), draw(seed + 4, OUTPUTS)
    inputs = (x, constant, weight, bias, table.detach(), chosen(seed, count, TABLE), distance)
    assert_same(layer_error(*inputs), formula.layer_error(*inputs), [x, weight, bias])


def test_layer_error_of_vectors_of_zeros() -> None:
    """A vector of zeros has cosine 0: its own gradient is the target's direction, a target of zeros teaches nothing."""
    x, weight, bias = draw(1, 4, INPUTS), draw(2, OUTPUTS, INPUTS), torch.zeros(OUTPUTS).double().requires_grad_()
    x.data[1] = 0
    table = draw(3, 4, OUTPUTS).detach()
    table[2] = 0
    inputs = (x, torch.ones(4).double(), weight, bias, table, torch.arange(4), "cosine")
    assert_same(layer_error(*inputs), formula.layer_error(*inputs), [x, weight, bias])
    (gradient,) = torch.autograd.grad(layer_error(*inputs), x)
    assert not gradient[2].any()
    assert gradient[1].isfinite().all()
    assert gradient[1].any()


@settings(max_examples=20, deadline=None)
@given(nodes, st.integers(1, 4), st.booleans(), seeds)
def test_expert_error(count: int, number: int, squared: bool, seed: int) -> None:
    x, parameters, table = draw(seed, count, INPUTS), experts(number), draw(seed + 2, TABLE, OUTPUTS).detach()
    inputs = routed(chosen(seed, count, number), number, parameters, table, chosen(seed + 1, count, TABLE))
    expected = formula.expert_error(x, *inputs, squared=squared)
    assert_same(expert_error(x, *inputs, squared=squared), expected, [x, *parameters])


@settings(max_examples=20, deadline=None)
@given(nodes, st.integers(1, 4), st.booleans(), seeds)
def test_mixture_error(count: int, number: int, squared: bool, seed: int) -> None:
    x, parameters, table = draw(seed, count, INPUTS), experts(number), draw(seed + 2, TABLE, OUTPUTS).detach()
    weights = draw(seed + 3, count, number)
    inputs = (x, weights, *parameters, table, chosen(seed, count, TABLE))
    expected = formula.mixture_error(*inputs, squared=squared)
    assert_same(mixture_error(*inputs, squared=squared), expected, [x, weights, *parameters])


def test_one_hot_weights_are_a_choice() -> None:
    x, parameters, table, rows = draw(0, 9, INPUTS), experts(3), draw(5, TABLE, OUTPUTS).detach(), torch.arange(9)
    choice = torch.tensor([2, 0, 2, 2, 0, 0, 2, 0, 2])
    weights = torch.nn.functional.one_hot(choice, 3).double()
    found = expert_error(x, *routed(choice, len(parameters[0]), parameters, table, rows))
    assert_same(found, mixture_error(x, weights, *parameters, table, rows), [x, *parameters])


def test_a_norm_of_zero_has_gradient_zero() -> None:
    x, parameters = draw(0, 1, INPUTS), experts(1)
    first, first_bias, second, second_bias = (parameter[0] for parameter in parameters)
    table = ((x @ first + first_bias).relu() @ second + second_bias).detach()
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


@pytest.mark.parametrize("by", ["kernel", "torch"])
@pytest.mark.parametrize("name", ["linear_error", "layer_error", "expert_error", "mixture_error"])
def test_bf16_products_are_within_a_fiftieth_of_fp32(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--precision=bf16`` rounds the factors of large products to 8 bits; loss and gradients are float32."""
    if by == "torch" and not precision._supports("amx_tile"):
        pytest.skip("torch rounds no factors on this processor")
    if by == "kernel":
        if name == "linear_error":
            pytest.skip("its products are not large enough")
        monkeypatch.setattr(precision, "_supports", lambda instructions: instructions == "avx512_bf16")
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(regression, "BLOCK", 2048)
    monkeypatch.setattr(regression, "HIDDEN_BLOCK", 256)
    generator = torch.Generator().manual_seed(0)

    def draw32(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    rows, table = torch.arange(512), draw32(512, 96).detach()
    x, number = draw32(512, 32), 4
    parameters = [draw32(number, 32, 64), draw32(number, 64), draw32(number, 64, 96), draw32(number, 96)]
    layer = [draw32(96, 32), draw32(96)]
    found = []
    for products in ("fp32", "bf16"):
        with product_precision(products):
            if name == "linear_error":
                loss, of = linear_error(x, layer[0], table, rows), [x, layer[0]]
            elif name == "layer_error":
                loss, of = layer_error(x, torch.ones(512), *layer, table, rows, "cosine"), [x, *layer]
            elif name == "expert_error":
                nodes = GroupLayout(rows % number, number)
                loss = expert_error(x, nodes, *parameters, table[nodes.padded(rows)])
                of = [x, *parameters]
            else:
                shares = torch.full((512, number), 1 / number)
                loss, of = mixture_error(x, shares, *parameters, table, rows), [x, *parameters]
            found.append([loss, *torch.autograd.grad(loss, of)])
    for exact, rounded in zip(*found):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() <= 0.02 * exact.norm()
    assert any(not torch.equal(*pair) for pair in zip(*found))
