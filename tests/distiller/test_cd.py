"""CD: items from the guide's list, the teacher's probabilities as their soft targets."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_kd.distiller.cd import CDDistiller
from recbole_kd.errors import UserError
from tests.distiller.response import Bench, assert_learns, bench

SIZES = {"samples": 4, "pool": 8}
STUDENT_GUIDED = {**SIZES, "guide": "student"}


@pytest.fixture
def made() -> Bench:
    return bench()


def test_items_are_of_the_teachers_pool_and_drawn_anew_each_epoch(made: Bench) -> None:
    distiller = made.build(CDDistiller, **SIZES)
    users, items = made.asked(distiller)
    for user, row in zip(users, items.tolist()):
        assert set(row) <= set(made.teacher.ranked_items(8)[user].tolist())
        assert len(set(row)) == 4
    assert not torch.equal(made.asked(distiller, 1)[1], items)


def test_the_student_guides_by_what_it_ranks_now(made: Bench) -> None:
    distiller = made.build(CDDistiller, guide="student", **SIZES)
    for epoch in (0, 1):
        distiller.begin_epoch(epoch)
        made.student.asked.clear()
        distiller(made.batch)
        scores = made.student.user_table @ made.student.item_table.t()
        for user, row in zip(*(part.tolist() for part in made.student.asked[0])):
            unobserved = set(range(1, made.data.items)) - made.observed(user)
            assert set(row) <= set(sorted(unobserved, key=lambda item: -float(scores[user, item]))[:8])
        with torch.no_grad():
            made.student.user_table.neg_()


def test_the_loss_is_the_weighted_mean_binary_cross_entropy(made: Bench) -> None:
    distiller = made.build(CDDistiller, weight=0.3, temperature=3.0, bias=-0.5, **SIZES)
    users, items = made.asked(distiller)
    entries = []
    for user, row in zip(users, items):
        y_s = made.student.item_table[row] @ made.student.user_table[user]
        y_t = made.teacher.item_embeddings()[row] @ made.teacher.user_embeddings()[user]
        for student, teacher in zip(y_s.tolist(), y_t.tolist()):
            q, p = 1 / (1 + math.exp(-(teacher - 0.5) / 3)), 1 / (1 + math.exp(-student))
            entries.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
    assert distiller(made.batch)["cd"].item() == pytest.approx(0.3 * sum(entries) / len(entries))


@pytest.mark.parametrize("better_of_two", [False, True])
def test_the_emphasis_is_a_share_of_the_pool(made: Bench, better_of_two: bool) -> None:
    distiller = made.build(CDDistiller, samples=1, pool=20, emphasis=0.2, better_of_two=better_of_two)
    weights = [math.exp(-rank / 4) for rank in range(1, 21)]
    best = weights[0] / sum(weights)
    expected = 1 - (1 - best) ** 2 if better_of_two else best
    first = made.teacher.ranked_items(1)
    hits = [(items == first[users]).double().mean() for users, items in (made.asked(distiller, e) for e in range(300))]
    assert float(torch.stack(hits).mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_it_learns(made: Bench, guide: str) -> None:
    assert_learns(made, made.build(CDDistiller, guide=guide, **SIZES))


def test_a_student_guide_needs_no_ranking_of_the_teacher() -> None:
    options = CDDistiller.options_class
    assert options.parse("cd", {}).needs.teacher == {"ranks", "listed_scores"}
    assert options.parse("cd", {"guide": "student"}).needs.teacher == {"scores"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 9, "pool": 8}, r"cd\.samples=9 items cannot be drawn from a list of cd\.pool=8"),
        ({"pool": 39}, r"cd\.pool=39: 11 of 11 users have fewer unobserved items, the least \d+; lower cd\.pool"),
        ({**SIZES, "temperature": 0}, r"cd\.temperature=0 is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(CDDistiller, **options)
