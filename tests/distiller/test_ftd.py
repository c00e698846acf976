"""FTD: the cosines of all pairs of the batch's users and items."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional

from recbole_kd.contracts import Batch
from recbole_kd.distiller.ftd import FTDDistiller, FTDOptions
from tests.distiller.fakes import FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)


def build() -> tuple[FTDDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    return FTDDistiller(FTDOptions(weight=0.5), student, teacher, DATA), student, teacher


def test_loss_is_the_mean_over_pairs_of_users_and_items_together() -> None:
    distiller, student, teacher = build()
    batch = batch_of(DATA, 4, negatives=True)
    assert batch.negatives is not None
    users, items = sorted(set(batch.users.tolist())), sorted({*batch.items.tolist(), *batch.negatives.tolist()})
    own = [student.user_table[user] for user in users] + [student.item_table[item] for item in items]
    taught = [teacher.user_embeddings()[user] for user in users] + [teacher.item_embeddings()[item] for item in items]

    def difference(a: int, b: int) -> torch.Tensor:
        of_student = functional.cosine_similarity(own[a], own[b], dim=0)
        return of_student - functional.cosine_similarity(taught[a], taught[b], dim=0)

    pairs = list(itertools.permutations(range(len(own)), 2))
    expected = 0.5 * sum(difference(a, b) ** 2 for a, b in pairs) / len(pairs)
    found = distiller(batch)["ftd"]
    tables = [student.user_table, student.item_table]
    assert_same_loss(found, expected, tables)


def test_a_batch_twice_over_has_the_same_loss() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    twice = Batch(batch.users.repeat(2), batch.items.repeat(2))
    torch.testing.assert_close(distiller(twice)["ftd"], distiller(batch)["ftd"])


def test_it_has_nothing_to_train_but_the_student() -> None:
    assert not list(build()[0].parameters())
