"""DCD: what the student ranks too low, above what it ranks too high."""

from __future__ import annotations

import pytest
import torch

from recbole_kd.distiller.dcd import DCDDistiller
from recbole_kd.errors import UserError
from tests.distiller.response import ITEMS, USERS, Bench, assert_learns, bench

SIZES = {"interesting": 3, "uninteresting": 3, "pool": 10}


@pytest.fixture
def made() -> Bench:
    return bench()


def gaps(made: Bench, user: int, pool: int) -> dict[int, int]:
    """Student's rank among all unobserved items, less teacher's rank, of each item of the teacher's list."""
    ranked = made.teacher.ranked_items(pool)[user].tolist()
    scores = (made.student.item_table @ made.student.user_table[user]).tolist()
    unobserved = set(range(1, ITEMS)) - made.observed(user)
    by_student = sorted(unobserved, key=lambda item: -scores[item])
    return {item: by_student.index(item) - rank for rank, item in enumerate(ranked)}


def test_interesting_items_are_under_ranked_and_uninteresting_ones_over_ranked(made: Bench) -> None:
    distiller = made.build(DCDDistiller, **SIZES)
    for epoch in (0, 1):
        users, items = made.asked(distiller, epoch)
        for user, row in zip(users.tolist(), items.tolist()):
            gap = gaps(made, user, 10)
            ranks = list(gap)
            under, over = [{item for item in gap if sign * gap[item] > 0} for sign in (1, -1)]
            missing = {1} if min(len(under), len(over)) < 3 else set()
            assert set(row[:3]) <= under | missing
            assert set(row[3:]) <= over | missing
            places = [ranks.index(item) for item in row[:3] if item in under]
            assert places == sorted(places)
        with torch.no_grad():
            made.student.user_table.neg_()


def test_the_loss_is_equation_9_over_the_items_that_exist(made: Bench) -> None:
    distiller = made.build(DCDDistiller, weight=0.3, interesting=10, uninteresting=10, pool=10)
    users, _ = made.asked(distiller)
    losses = []
    for user in users.tolist():
        gap = gaps(made, user, 10)
        under, over = [[item for item in gap if sign * gap[item] > 0] for sign in (1, -1)]
        r = made.student.item_table[under + over] @ made.student.user_table[user]
        losses.append(sum(float(torch.logsumexp(r[k:], 0) - r[k]) for k in range(len(under))))
    assert distiller(made.batch)["dcd"].item() == pytest.approx(0.3 * sum(losses) / len(losses))


def falling_by_id(first: bool) -> Bench:
    """Scores of the student fall with the id; the teacher lists the first unobserved items in that order, or the last."""
    made = bench()
    unobserved = [sorted(set(range(1, ITEMS)) - made.observed(user)) for user in range(USERS)]

    def ranked_items(k: int) -> torch.Tensor:
        return torch.tensor([items[:k] if first else items[-k:] for items in unobserved], dtype=torch.int32)

    made.teacher.ranked_items = ranked_items  # type: ignore[method-assign]
    with torch.no_grad():
        made.student.user_table[1:] = 1
        made.student.item_table[:] = -torch.arange(40.0).unsqueeze(1)
    return made


def test_a_student_that_agrees_with_the_teacher_has_no_loss() -> None:
    made = falling_by_id(first=True)
    distiller = made.build(DCDDistiller, **SIZES)
    distiller.begin_epoch(0)
    assert distiller(made.batch)["dcd"].item() == 0


def test_a_list_in_order_but_sunk_to_the_bottom_has_a_loss() -> None:
    made = falling_by_id(first=False)
    distiller = made.build(DCDDistiller, **SIZES)
    distiller.begin_epoch(0)
    assert distiller(made.batch)["dcd"].item() > 0


def test_it_learns(made: Bench) -> None:
    assert_learns(made, made.build(DCDDistiller, **SIZES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**SIZES, "pool": 40}, r"dcd\.pool=40 is more than the 39 items"),
        ({**SIZES, "uninteresting": 11}, r"dcd\.uninteresting=11 items cannot be drawn from a list of dcd\.pool=10"),
        ({**SIZES, "uninteresting": 0}, r"dcd\.uninteresting=0 is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(DCDDistiller, **options)
