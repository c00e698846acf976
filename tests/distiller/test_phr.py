"""PHR: each node's own projector, generated from the teacher's representation."""

from __future__ import annotations

import pytest
import torch

from recbole_kd.contracts import Batch
from recbole_kd.distiller.phr import PHRDistiller, PHROptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS, RANK = 9, 12, 2
DATA = data_view(USERS, ITEMS)


def build() -> tuple[PHRDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    return PHRDistiller(PHROptions(weight=0.5, rank=RANK), student, teacher, DATA), student, teacher


def test_loss_is_that_of_every_nodes_own_matrix() -> None:
    distiller, student, teacher = build()
    batch = batch_of(DATA, 6, negatives=True)
    errors = []
    for side, table, targets, nodes in (
        (distiller.users, student.user_table, teacher.user_embeddings(), batch.distinct_users),
        (distiller.items, student.item_table, teacher.item_embeddings(), batch.distinct_items),
    ):
        basis = side.matrices.weight.split(3, dim=1)  # W_0, W_1, W_2, each (5, 3)
        for node in nodes.tolist():
            shares = torch.relu(side.personalisation(targets[node]))
            own = basis[0] + sum(shares[index] * basis[index + 1] for index in range(RANK))
            errors.append(((own @ table[node] + side.matrices.bias - targets[node]) ** 2).sum())
    expected = 0.5 * sum(errors) / len(errors)
    found = distiller(batch)["phr"]
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(found, expected, inputs)


def test_a_batch_twice_over_has_the_same_loss() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    twice = Batch(batch.users.repeat(2), batch.items.repeat(2))
    torch.testing.assert_close(distiller(twice)["phr"], distiller(batch)["phr"])


def test_a_student_of_zeros_cannot_be_talked_into_the_teacher() -> None:
    """Nothing but the shared bias is left of a node without a student: e_t does not leak through its own projector."""
    distiller, student, teacher = build()
    with torch.no_grad():
        student.user_table.zero_()
    one, other = (distiller.users.matrices.bias - teacher.user_embeddings()[user] for user in (1, 2))
    expected = ((one**2).sum() + (other**2).sum()) / 2
    side = distiller.entries.sides(Batch(torch.tensor([1, 2]), torch.tensor([1, 1])))[0]
    torch.testing.assert_close(distiller.users(side) / 2, expected)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"phr\.rank=0 is out of range"):
        PHROptions.parse("phr", {"rank": 0})
