"""FitNet: a linear projector per side, squared distances, the mean over the batch's distinct nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base import projectors
from recbole_kd.distiller.fitnet import FitNetDistiller, FitNetOptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)


def build(**values: Any) -> tuple[FitNetDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    return FitNetDistiller(FitNetOptions(**{"weight": 0.5, **values}), student, teacher, DATA), student, teacher


def test_loss_is_the_mean_squared_distance_over_distinct_nodes() -> None:
    distiller, student, teacher = build()
    batch = batch_of(DATA, 6, negatives=True)
    errors = []
    for user in sorted(set(batch.users.tolist())):
        error = distiller.user_projector(student.user_table[user]) - teacher.user_embeddings()[user]
        errors.append((error**2).sum())
    assert batch.negatives is not None
    for item in sorted({*batch.items.tolist(), *batch.negatives.tolist()}):
        error = distiller.item_projector(student.item_table[item]) - teacher.item_embeddings()[item]
        errors.append((error**2).sum())
    expected = 0.5 * sum(errors) / len(errors)
    found = distiller(batch)["fitnet"]
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(found, expected, inputs)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_a_projector_may_be_the_mean_of_perceptrons(distance: str) -> None:
    values = {"projector": "mlp", "projectors": 3, "hidden": 4, "distance": distance, "weight": 0.5}
    distiller, student, teacher = build(**values)
    batch = batch_of(DATA, 6, negatives=True)
    assert batch.negatives is not None
    errors = []
    for projector, nodes, own, taught in (
        (distiller.user_projector, batch.users, student.user_table, teacher.user_embeddings()),
        (
            distiller.item_projector,
            torch.cat([batch.items, batch.negatives]),
            student.item_table,
            teacher.item_embeddings(),
        ),
    ):
        for node in sorted(set(nodes.tolist())):
            mapped = torch.zeros(5, dtype=torch.float64)
            for first, last in zip(projector.first, projector.last):
                hidden = (first.weight @ own[node] + first.bias).clamp(min=0)
                mapped = mapped + (last.weight @ hidden + last.bias) / 3
            target = taught[node]
            cosine = (mapped @ target) / (mapped.norm() * target.norm())
            errors.append(1 - cosine if distance == "cosine" else ((mapped - target) ** 2).sum())
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(distiller(batch)["fitnet"], 0.5 * sum(errors) / len(errors), inputs)


def test_dropout_is_drawn_anew_in_each_step_while_training_and_keeps_the_mean() -> None:
    distiller, student, _ = build(projector="mlp", dropout=0.4)
    linear = distiller.user_projector
    vectors = student.user_table[1:].detach()
    assert not torch.equal(linear(vectors), linear(vectors))
    distiller.eval()
    whole = linear(vectors)
    assert torch.equal(whole, linear(vectors))
    distiller.train()
    with torch.no_grad():  # no hidden unit is ever cut: the mean over dropouts is exact
        linear.first[0].weight.abs_()
        linear.first[0].bias.fill_(10)
        whole = distiller.eval().user_projector(vectors.abs())
        distiller.train()
        mean = torch.stack([linear(vectors.abs()) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0.05, atol=0.3)


def test_what_is_dropped_does_not_depend_on_blocks_and_has_the_gradients_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distiller, student, _ = build(projector="mlp", projectors=2, hidden=4, dropout=0.4)
    projector, state = distiller.user_projector, distiller.generator.get_state()
    vectors = student.user_table.detach()[1:].requires_grad_()

    def mapped(vectors: Tensor, *parameters: Tensor) -> Tensor:
        distiller.generator.set_state(state)
        return projector(vectors)

    whole = mapped(vectors)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(projectors, "HIDDEN_BLOCK", 3)
    torch.testing.assert_close(mapped(vectors), whole)
    assert torch.autograd.gradcheck(mapped, (vectors, *projector.parameters()))


@pytest.mark.parametrize("values", [{"projectors": 2}, {"hidden": 4}, {"dropout": 0.1}])
def test_options_of_perceptrons_are_refused_with_a_linear_projector(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"fitnet\.projector is linear; set --fitnet\.projector=mlp"):
        FitNetOptions.parse("fitnet", values)


def test_a_batch_twice_over_has_the_same_loss() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6, negatives=True)
    twice = Batch(*(torch.cat([ids, ids]) for ids in (batch.users, batch.items, batch.negatives) if ids is not None))
    assert distiller(twice)["fitnet"].item() == pytest.approx(distiller(batch)["fitnet"].item())


def test_gradients_reach_the_rows_of_the_batch_and_the_projectors_alone() -> None:
    distiller, student, teacher = build()
    batch = Batch(torch.tensor([2, 2]), torch.tensor([4, 7]))
    distiller(batch)["fitnet"].backward()
    assert student.user_table.grad is not None
    assert student.item_table.grad is not None
    assert student.user_table.grad.abs().sum(1).nonzero().flatten().tolist() == [2]
    assert student.item_table.grad.abs().sum(1).nonzero().flatten().tolist() == [4, 7]
    assert not teacher.user_embeddings().requires_grad
    assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_projectors_are_drawn_from_the_distillers_own_stream() -> None:
    """Adding a distiller must not change what the base model draws; the same seed gives the same projector."""
    before = torch.get_rng_state()
    first, second = build()[0], build()[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.user_projector.weight, second.user_projector.weight)
    assert not torch.equal(first.user_projector.weight, first.item_projector.weight)
    other = dataclasses.replace(DATA, seed=1)
    third = FitNetDistiller(FitNetOptions(), FakeStudent(USERS, ITEMS, 3), FakeTeacher(USERS, ITEMS, 5), other)
    assert not torch.equal(first.user_projector.weight, third.user_projector.weight)


def test_it_asks_both_models_for_vectors_of_nodes_or_pairs() -> None:
    assert FitNetOptions().needs.student == {"pair_representations"}
    assert FitNetOptions().needs.teacher == {"pair_representations"}


def test_training_brings_the_student_to_a_teacher_it_can_reach() -> None:
    student = FakeStudent(USERS, ITEMS, 3, seed=3)
    teacher = FakeTeacher(USERS, ITEMS, 3)
    distiller = FitNetDistiller(FitNetOptions(weight=1.0), student, teacher, DATA)
    batch = Batch(torch.arange(1, USERS).repeat(2)[: ITEMS - 1], torch.arange(1, ITEMS))
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.05)
    first = distiller(batch)["fitnet"].item()
    for _ in range(300):
        optimizer.zero_grad()
        distiller(batch)["fitnet"].backward()
        optimizer.step()
    assert distiller(batch)["fitnet"].item() < 0.01 * first


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"fitnet\.weight"):
        FitNetOptions.parse("fitnet", {"weight": -1})
