"""DE: Gumbel-softmax selection on the teacher's representation, annealed; experts; and the mean over distinct nodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.experts import Experts, SelectedExperts, Selection, annealed, gumbel_softmax
from recbole_kd.distiller.de import DEDistiller, DEOptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)


def build(**values: Any) -> tuple[DEDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    return DEDistiller(DEOptions(**{"weight": 0.5, "experts": 3, **values}), student, teacher, DATA), student, teacher


def reconstruction(experts: Experts, weights: Tensor, x: Tensor) -> Tensor:
    """sum_m s_m E_m(x) of one node, expert by expert."""
    total = torch.zeros(experts.second.shape[2], dtype=x.dtype)
    for index in range(len(experts)):
        hidden = torch.relu(x @ experts.first[index] + experts.first_bias[index])
        total = total + weights[index] * (hidden @ experts.second[index] + experts.second_bias[index])
    return total


def reference(
    distiller: DEDistiller, student: FakeStudent, teacher: FakeTeacher, batch: Batch, squared: bool
) -> Tensor:
    """Eq. 4-7 node by node. The noise is drawn as the distiller draws it: the users' first, then the items'."""
    errors = []
    sides: list[tuple[SelectedExperts, Tensor, Tensor, Tensor]] = [
        (distiller.users, student.user_table, teacher.user_embeddings(), batch.distinct_users),
        (distiller.items, student.item_table, teacher.item_embeddings(), batch.distinct_items),
    ]
    for side, table, targets, nodes in sides:
        count = len(side.experts)
        uniform = torch.rand(len(nodes), count, generator=distiller.generator, dtype=torch.float64)
        for draw, node in zip(uniform, nodes.tolist()):
            alpha = torch.softmax(side.selection.network(targets[node]), 0)
            exponents = [
                (torch.log(alpha[index]) - math.log(-math.log(draw[index]))) / side.selection.temperature
                for index in range(count)
            ]
            weights = torch.softmax(torch.stack(exponents), 0)
            difference = targets[node] - reconstruction(side.experts, weights, table[node])
            errors.append((difference**2).sum() if squared else (difference**2).sum().sqrt())
    return sum(errors) / len(errors)  # type: ignore[return-value]


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("epoch", [0, 1])
def test_loss_and_gradients_are_those_of_the_paper(squared: bool, epoch: int) -> None:
    distiller, student, teacher = build(squared=squared)
    distiller.begin_epoch(epoch)
    batch = batch_of(DATA, 6, negatives=True)
    state = distiller.generator.get_state()
    found = distiller(batch)["de"]
    distiller.generator.set_state(state)
    expected = 0.5 * reference(distiller, student, teacher, batch, squared)
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(found, expected, inputs)


def test_temperature_falls_geometrically_from_tau0_to_tauP() -> None:
    assert annealed(1.0, 1e-10, 0, 50) == 1.0
    assert annealed(1.0, 1e-10, 25, 50) == pytest.approx(1e-5)
    assert annealed(1.0, 1e-10, 50, 50) == pytest.approx(1e-10)
    assert annealed(1.0, 1e-10, 99, 50) == pytest.approx(1e-10)
    assert annealed(1.0, 1e-10, 0, 0) == 1.0, "a run without epochs"
    distiller = build()[0]
    distiller.begin_epoch(DATA.epochs // 2)
    assert distiller.users.selection.temperature == pytest.approx(1e-5)
    sooner = build(anneal_epochs=5)[0]
    sooner.begin_epoch(DATA.epochs // 2)
    assert sooner.items.selection.temperature == pytest.approx(1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-6])
def test_selection_is_finite_for_any_logits(dtype: torch.dtype, temperature: float) -> None:
    for scale in (0.0, 1.0, 1e4, 1e35):
        logits = (scale * torch.randn(50, 7, dtype=dtype)).requires_grad_()
        weights = gumbel_softmax(logits, torch.zeros_like(logits), temperature)
        torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=dtype))
        (gradient,) = torch.autograd.grad(weights[:, 0].sum(), logits)
        assert torch.isfinite(gradient).all()


def test_selection_is_soft_at_the_beginning_and_one_expert_at_the_end() -> None:
    noise, logits = torch.randn(200, 7), torch.randn(200, 7)
    torch.testing.assert_close(gumbel_softmax(logits, noise, 1.0), torch.softmax(logits + noise, 1))
    distiller, _, teacher = build()
    nodes = torch.tensor([1, 4])
    assert distiller.items.selection(teacher.item_embeddings(), nodes).weights is not None
    distiller.begin_epoch(DATA.epochs)
    assert distiller.items.selection(teacher.item_embeddings(), nodes).weights is None


@pytest.mark.parametrize("scale", [0.0, 1e35])
def test_equal_logits_at_the_end_give_one_expert_not_two_halves(scale: float) -> None:
    """Rows of zeros, and logits so far apart that all others have probability 0."""
    table = scale * torch.tensor([[1.0, 0, 0, 0, 0]], dtype=torch.float64)
    side = build(experts=4)[0].users
    side.selection.begin_epoch(1e-20, table)
    selection = side.selection(table, torch.zeros(50, dtype=torch.long))
    choice = selection.choice
    assert selection.weights is None
    assert choice.min() >= 0
    assert choice.max() <= 3
    assert (len(choice.unique()) == 1) == (scale > 0)


@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-20])
def test_experts_are_drawn_in_proportion_to_alpha(temperature: float) -> None:
    """The Gumbel trick: at any temperature the largest entry is m with probability alpha_m (chi-square, 3 degrees)."""
    selection = build(experts=4)[0].users.selection
    teacher = torch.randn(1, 5, dtype=torch.float64)
    selection.begin_epoch(temperature, teacher)
    choice = selection(teacher, torch.zeros(4000, dtype=torch.long)).choice
    draws, expected = torch.bincount(choice, minlength=4), 4000 * torch.softmax(selection.network(teacher)[0], 0)
    assert ((draws - expected) ** 2 / expected).sum().item() < 16.27  # p = 0.001


def test_once_hard_what_is_known_of_a_table_is_what_its_rows_say() -> None:
    """Computed once an epoch, or of the rows of a step where there is no table before it: the same experts."""
    side, table = build(experts=4)[0].users, torch.randn(9, 5, dtype=torch.float64)
    choices = []
    for known in (table, None):
        side.selection.begin_epoch(1e-20, known)
        side.selection._generator.manual_seed(3)
        choices.append(side.selection(table, torch.arange(9).repeat(20)).choice)
    assert torch.equal(*choices)


def test_routing_and_mixing_agree_where_only_some_nodes_are_certain() -> None:
    experts = build()[0].users.experts
    x, table = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    weights = torch.softmax(torch.randn(6, 3, dtype=torch.float64), 1)
    weights[1], weights[4] = torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0])
    expected = sum(((reconstruction(experts, weights[n], x[n]) - table[n]) ** 2).sum() for n in range(6))
    selection = Selection(table, torch.arange(6), weights.argmax(1), 3, weights)
    found = experts.error(x, selection, squared=True)
    torch.testing.assert_close(found, expected)


def test_once_hard_the_selection_network_has_no_gradient_and_the_chosen_experts_do() -> None:
    distiller, student, _ = build()
    distiller.begin_epoch(DATA.epochs)
    distiller(batch_of(DATA, 6))["de"].backward()
    assert distiller.users.selection.network.weight.grad is None
    assert distiller.users.experts.first.grad is not None
    assert student.user_table.grad is not None
    assert student.user_table.grad.abs().sum() > 0


def test_the_teacher_is_constant() -> None:
    distiller, _, teacher = build()
    assert not teacher.user_embeddings().requires_grad
    before = teacher.item_embeddings().clone()
    distiller(batch_of(DATA, 6))["de"].backward()
    assert torch.equal(teacher.item_embeddings()[1:], before[1:])


def test_attention_is_a_plain_softmax_without_noise_at_every_epoch() -> None:
    distiller, _, teacher = build(selection="softmax")
    distiller.begin_epoch(DATA.epochs)
    nodes = torch.tensor([1, 4])
    expected = torch.softmax(distiller.items.selection.network(teacher.item_embeddings()[nodes]), 1)
    torch.testing.assert_close(distiller.items.selection(teacher.item_embeddings(), nodes).weights, expected)


def test_one_expert_is_a_plain_two_layer_projector() -> None:
    distiller, student, teacher = build(experts=1, weight=1.0)
    batch = batch_of(DATA, 6)
    errors = []
    for node in batch.distinct_users.tolist():
        errors.append((distiller.users, student.user_table[node], teacher.user_embeddings()[node]))
    for node in batch.distinct_items.tolist():
        errors.append((distiller.items, student.item_table[node], teacher.item_embeddings()[node]))
    one = torch.ones(1, dtype=torch.float64)
    expected = sum(((reconstruction(side.experts, one, x) - t) ** 2).sum() for side, x, t in errors) / len(errors)
    torch.testing.assert_close(distiller(batch)["de"], expected)


def test_one_large_expert_is_a_projector_with_the_hidden_layers_of_all() -> None:
    """Table 4: without a selection, and with as many numbers as M experts (but for the last biases)."""
    distiller, student, teacher = build(selection="large", experts=3, weight=1.0)
    assert [tuple(weights.shape) for weights in distiller.users.experts.parameters()] == [
        *((1, 3, 3 * 4), (1, 3 * 4), (1, 3 * 4, 5), (1, 5))
    ]
    batch = batch_of(DATA, 6)
    sides = [
        (distiller.users.experts, student.user_table, teacher.user_embeddings(), batch.distinct_users),
        (distiller.items.experts, student.item_table, teacher.item_embeddings(), batch.distinct_items),
    ]
    one = torch.ones(1, dtype=torch.float64)
    errors = [
        ((reconstruction(experts, one, table[node]) - targets[node]) ** 2).sum()
        for experts, table, targets, nodes in sides
        for node in nodes.tolist()
    ]
    torch.testing.assert_close(distiller(batch)["de"], torch.stack(errors).mean())


def test_a_batch_twice_over_has_the_same_loss() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    state = distiller.get_extra_state()
    once = distiller(batch)["de"]
    distiller.set_extra_state(state)
    twice = distiller(Batch(batch.users.repeat(2), batch.items.repeat(2)))["de"]
    torch.testing.assert_close(once, twice)


def test_experts_have_a_hidden_layer_half_way_between_the_dimensions() -> None:
    experts = build(experts=7)[0].items.experts
    assert experts.first.shape == (7, 3, 4)
    assert experts.second.shape == (7, 4, 5)


@pytest.mark.parametrize(
    "values", [{"experts": 0}, {"temperature": 0}, {"end_temperature": -1}, {"selection": "hard"}, {"anneal_epochs": 0}]
)
def test_wrong_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"de.{next(iter(values))}"):
        DEOptions.parse("de", values)
