"""UnKD: pairs of items of like popularity, in the teacher's order."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_kd.data.samplers import GroupPairs, popularity_groups
from recbole_kd.distiller.unkd import UnKDDistiller
from recbole_kd.errors import UserError
from tests.distiller.response import Bench, assert_learns, bench

SIZES = {"pairs": 6, "groups": 3, "pool": 15, "emphasis": 4.0}


@pytest.fixture
def made() -> Bench:
    return bench()


def test_pairs_are_unobserved_items_of_one_group_in_the_teachers_order(made: Bench) -> None:
    distiller = made.build(UnKDDistiller, **SIZES)
    ranked = made.teacher.ranked_items(15).tolist()
    groups = popularity_groups(made.data.observed.popularity, 3).tolist()
    users, items = made.asked(distiller)
    for user, row in zip(users.tolist(), items.tolist()):
        of_group = [groups[item] for item in ranked[user]]
        for pair, (better, worse) in enumerate(zip(row[:6], row[6:])):
            if of_group.count(pair % 3) < 2:
                continue  # this user has no such pair
            assert groups[better] == groups[worse] == pair % 3
            assert ranked[user].index(better) < ranked[user].index(worse)


def test_the_loss_is_the_weighted_mean_over_the_pairs_that_exist(made: Bench) -> None:
    distiller = made.build(UnKDDistiller, weight=0.3, pairs=6, groups=3, pool=5)
    ranked = made.teacher.ranked_items(5).tolist()
    groups = popularity_groups(made.data.observed.popularity, 3).tolist()
    users, items = made.asked(distiller)
    losses = []
    for user, row in zip(users.tolist(), items.tolist()):
        scores = made.student.item_table[row] @ made.student.user_table[user]
        for pair in range(6):
            if [groups[item] for item in ranked[user]].count(pair % 3) >= 2:
                losses.append(math.log1p(math.exp(float(scores[6 + pair] - scores[pair]))))
    assert 0 < len(losses) < 6 * len(users)
    assert distiller(made.batch)["unkd"].item() == pytest.approx(0.3 * sum(losses) / len(losses))


def test_it_says_which_groups_a_pool_is_too_short_for(made: Bench, caplog: pytest.LogCaptureFixture) -> None:
    made.build(UnKDDistiller, **{**SIZES, "pool": 4})
    ranked, groups = made.teacher.ranked_items(4), popularity_groups(made.data.observed.popularity, 3)
    share = [
        sum((groups[row.long()] == group).sum().item() < 2 for row in ranked[1:]) / (len(ranked) - 1)
        for group in range(3)
    ]
    assert max(share) > 0
    assert f"for {', '.join(f'{part:.0%}' for part in share)} of the users; a larger unkd.pool" in caplog.text


def test_users_without_a_list_do_not_count_as_short() -> None:
    """Held-out users are not trained on and have no list."""
    ranked = torch.tensor([[0, 0], [1, 2], [0, 0], [1, 3]])
    pairs = GroupPairs(ranked, torch.tensor([-1, 0, 0, 1]), 2)
    assert pairs.without_pairs().tolist() == [0.5, 1.0]


def test_pairs_are_drawn_anew_each_epoch(made: Bench) -> None:
    distiller = made.build(UnKDDistiller, **SIZES)
    assert not torch.equal(made.asked(distiller, 0)[1], made.asked(distiller, 1)[1])


def test_it_learns(made: Bench) -> None:
    assert_learns(made, made.build(UnKDDistiller, **SIZES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**SIZES, "pool": 40}, r"unkd\.pool=40 is more than the 39 items"),
        ({**SIZES, "pairs": 2}, r"unkd\.pairs=2 is too few for one pair in each of unkd\.groups=3"),
        (
            {**SIZES, "pairs": 99, "groups": 30},
            r"unkd\.groups=30: group \d+ of them holds [01] items.*lower unkd\.groups",
        ),
        ({**SIZES, "groups": 0}, r"unkd\.groups=0 is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(UnKDDistiller, **options)
