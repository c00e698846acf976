"""RKD: distances and angles of a bounded sample of the batch's nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.rkd import RKDDistiller, RKDOptions
from recbole_kd.errors import UserError
from recbole_kd.loss.topology import angles, distances
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)


def build(**values: Any) -> tuple[RKDDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    return RKDDistiller(RKDOptions(**values), student, teacher, DATA), student, teacher


def together(student: FakeStudent, teacher: FakeTeacher, batch: Batch) -> tuple[Tensor, Tensor]:
    users, items = batch.distinct_users, batch.distinct_items
    return (
        torch.cat([student.user_table[users], student.item_table[items]]),
        torch.cat([teacher.user_embeddings()[users], teacher.item_embeddings()[items]]),
    )


def test_a_small_batch_is_compared_whole_with_angles_twice_as_heavy() -> None:
    distiller, student, teacher = build(weight=0.5)
    batch = batch_of(DATA, 5, negatives=True)
    own, taught = together(student, teacher, batch)
    losses = distiller(batch)
    torch.testing.assert_close(losses["distance"], 0.5 * distances(own, taught))
    torch.testing.assert_close(losses["angle"], 0.5 * 2 * angles(own, taught))


def test_no_more_than_the_given_nodes_get_gradient() -> None:
    distiller, student, _ = build(nodes=4)
    sum(distiller(batch_of(DATA, 8, negatives=True)).values()).backward()  # type: ignore[union-attr]
    assert student.user_table.grad is not None
    assert student.item_table.grad is not None
    touched = torch.cat([student.user_table.grad, student.item_table.grad]).abs().sum(1).nonzero()
    assert 0 < len(touched) <= 4


def test_the_sample_is_drawn_anew_and_repeats_with_the_seed() -> None:
    batch = batch_of(DATA, 8)
    first, second = build(nodes=4)[0], build(nodes=4)[0]
    assert first(batch)["distance"].item() == second(batch)["distance"].item()
    assert len({first(batch)["distance"].item() for _ in range(5)}) > 1


def test_a_term_of_weight_0_is_left_out() -> None:
    assert set(build(angle=0.0)[0](batch_of(DATA, 4))) == {"distance"}


def test_a_batch_twice_over_has_the_same_losses() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    once, twice = distiller(batch), distiller(Batch(batch.users.repeat(2), batch.items.repeat(2)))
    for name in once:
        torch.testing.assert_close(once[name], twice[name])


def test_fewer_than_three_nodes_have_no_angle() -> None:
    with pytest.raises(UserError, match=r"rkd\.nodes=2 is out of range"):
        RKDOptions.parse("rkd", {"nodes": 2})
