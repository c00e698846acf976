"""KD: the teacher's probabilities over a short list of items for each user."""

from __future__ import annotations

import math
from typing import Optional

import pytest
import torch

from recbole_kd.distiller.kd import KDDistiller
from recbole_kd.errors import UserError
from tests.distiller.response import Bench, assert_learns, bench

SIZES = {"items": 5}


@pytest.fixture
def made() -> Bench:
    return bench()


def test_the_items_are_the_teachers_best(made: Bench) -> None:
    users, items = made.asked(made.build(KDDistiller, items=5))
    assert torch.equal(items, made.teacher.ranked_items(5)[users].long())


def test_the_student_guides_by_what_it_ranks_now(made: Bench) -> None:
    distiller = made.build(KDDistiller, items=5, guide="student")
    for epoch in (0, 1):
        distiller.begin_epoch(epoch)
        made.student.asked.clear()
        distiller(made.batch)
        scores = made.student.user_table @ made.student.item_table.t()
        for user, row in zip(*(part.tolist() for part in made.student.asked[0])):
            unobserved = set(range(1, made.data.items)) - made.observed(user)
            assert row == sorted(unobserved, key=lambda item: -float(scores[user, item]))[:5]
        with torch.no_grad():
            made.student.user_table.neg_()


@pytest.mark.parametrize("teachers", [None, 0.5])
def test_the_loss_is_the_weighted_mean_cross_entropy_times_the_squared_temperature(
    teachers: Optional[float], made: Bench
) -> None:
    distiller = made.build(KDDistiller, items=5, weight=0.3, temperature=2.0, teacher_temperature=teachers)
    users, items = made.asked(distiller)
    losses = []
    for user, row in zip(users, items):
        p = [math.exp(y / 2) for y in (made.student.item_table[row] @ made.student.user_table[user]).tolist()]
        teacher = made.teacher.item_embeddings()[row] @ made.teacher.user_embeddings()[user]
        q = [math.exp(y / (teachers or 2)) for y in teacher.tolist()]
        losses.append(-sum(b / sum(q) * math.log(a / sum(p)) for a, b in zip(p, q)))
    assert distiller(made.batch)["kd"].item() == pytest.approx(0.3 * 4 * sum(losses) / len(losses))


@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_it_learns(made: Bench, guide: str) -> None:
    assert_learns(made, made.build(KDDistiller, items=5, guide=guide))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 40}, r"kd\.items=40 is more than the 39 items there are; lower kd\.items"),
        ({"items": 1}, r"kd\.items=1 is out of range; expected at least 2"),
        ({"items": 5, "guide": "pupil"}, r"kd\.guide='pupil' is not one of teacher, student"),
    ],
)
def test_what_cannot_be_had_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(KDDistiller, **options)
