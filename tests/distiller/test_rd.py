"""RD: the teacher's best items as positives, weighted by rank and, later, by how far down the student has them."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_kd.distiller.rd import RDDistiller
from recbole_kd.errors import UserError
from tests.distiller.response import Bench, assert_learns, bench

SIZES = {"interesting": 3, "dynamic_samples": 10}
DYNAMIC = {**SIZES, "start_epoch": 0}


@pytest.fixture
def made() -> Bench:
    return bench()


def positive_loss(made: Bench, user: int, items: list[int], weights: list[float]) -> float:
    scores = (made.student.item_table[items] @ made.student.user_table[user]).tolist()
    return -sum(weight * math.log(1 / (1 + math.exp(-score))) for weight, score in zip(weights, scores))


def test_before_the_start_epoch_weights_fall_with_the_rank_alone(made: Bench) -> None:
    distiller = made.build(RDDistiller, weight=0.3, emphasis=2.0, **SIZES)
    users, items = made.asked(distiller, epoch=9)
    assert len(made.student.asked) == 1
    assert torch.equal(items, made.teacher.ranked_items(3)[users].long())
    weights = [math.exp(-rank / 2) for rank in (1, 2, 3)]
    weights = [weight / sum(weights) for weight in weights]
    losses = [positive_loss(made, user, row, weights) for user, row in zip(users.tolist(), items.tolist())]
    assert distiller(made.batch)["rd"].item() == pytest.approx(0.3 * sum(losses) / len(losses))


@pytest.mark.parametrize("renormalise", [True, False])
def test_from_the_start_epoch_on_the_students_rank_counts(made: Bench, renormalise: bool) -> None:
    """A user's rank comes from those of the step's random items that the user has not observed."""
    distiller = made.build(RDDistiller, weight=1.0, mu=0.2, renormalise=renormalise, **SIZES)
    distiller.begin_epoch(10)
    made.student.asked.clear()
    loss = distiller(made.batch)["rd"].item()
    (users, items), (same, sampled) = made.student.asked
    assert torch.equal(users, same)
    drawn = sampled[0].tolist()
    assert sampled.tolist() == [drawn] * len(users), "all users of a step have the same items"
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(range(1, made.data.items))
    losses, left_out = [], 0
    for user, row in zip(users.tolist(), items.tolist()):
        others = [item for item in drawn if item not in made.observed(user)]
        left_out += 10 - len(others)
        scores = (made.student.item_table @ made.student.user_table[user]).tolist()
        weights = []
        for k, item in enumerate(row, start=1):
            above = sum(scores[other] > scores[item] for other in others)
            rank = (made.data.items - 1 - 1) * above // len(others) + 1
            static = math.exp(-k) / sum(math.exp(-j) for j in (1, 2, 3))
            weights.append(static * max(0.0, math.tanh(0.2 * (rank - k))))
        if renormalise and sum(weights):
            weights = [weight / sum(weights) for weight in weights]
        losses.append(positive_loss(made, user, row, weights))
    assert left_out > 0
    assert loss == pytest.approx(sum(losses) / len(losses))


def test_every_item_is_drawn_equally_often(made: Bench) -> None:
    """1,000 steps of 10 of 39 items: each item is drawn with probability 10 / 39 in a step."""
    distiller = made.build(RDDistiller, **DYNAMIC)
    distiller.begin_epoch(0)
    counts = torch.zeros(made.data.items)
    for _ in range(1000):
        made.student.asked.clear()
        distiller(made.batch)
        counts[made.student.asked[1][1][0]] += 1
    share = 10 / 39
    deviation = math.sqrt(1000 * share * (1 - share))
    assert counts[0] == 0
    assert bool(((counts[1:] - 1000 * share).abs() < 4.5 * deviation).all())


def test_a_student_that_ranks_every_item_first_has_no_loss(made: Bench) -> None:
    distiller = made.build(RDDistiller, start_epoch=0, **SIZES)
    with torch.no_grad():
        made.student.user_table[1:] = 0
    distiller.begin_epoch(0)
    loss = distiller(made.batch)["rd"]
    assert loss.item() == 0
    loss.backward()
    assert made.student.item_table.grad is not None
    assert torch.isfinite(made.student.item_table.grad).all()


def test_random_items_are_drawn_anew_in_each_step(made: Bench) -> None:
    distiller = made.build(RDDistiller, start_epoch=0, **SIZES)
    made.asked(distiller)
    first = made.student.asked[1][1]
    made.asked(distiller)
    assert not torch.equal(made.student.asked[1][1], first)


def test_it_learns(made: Bench) -> None:
    assert_learns(made, made.build(RDDistiller, **SIZES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interesting": 40}, r"rd\.interesting=40 is more than the 39 items"),
        ({**SIZES, "dynamic_samples": 38}, r"rd\.dynamic_samples=38: 11 of 11 users have fewer"),
        ({**SIZES, "dynamic_samples": 0}, r"rd\.dynamic_samples=0 is out of range"),
        ({**SIZES, "dynamic_sample": 5}, r"Unknown option 'rd\.dynamic_sample'\. Did you mean 'dynamic_samples'"),
    ],
)
def test_what_cannot_be_had_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(RDDistiller, **options)
