"""RRD and IR-RRD: which items are asked for, what the loss of their scores is, and what is refused."""

from __future__ import annotations

import pytest
import torch

from recbole_kd.distiller.ir_rrd import IRRRDDistiller
from recbole_kd.distiller.rrd import RRDDistiller, RRDOptions
from recbole_kd.errors import UserError
from tests.distiller.response import ITEMS, Bench, assert_learns, bench

SIZES = {"interesting": 4, "uninteresting": 5, "pool": 8}


@pytest.fixture
def made() -> Bench:
    return bench()


def test_interesting_items_are_of_the_pool_in_rank_order_and_the_others_below_it(made: Bench) -> None:
    distiller = made.build(RRDDistiller, **SIZES)
    ranked = made.teacher.ranked_items(8).tolist()
    users, items = made.asked(distiller)
    assert users.tolist() == sorted(set(made.batch.users.tolist()))
    for user, row in zip(users.tolist(), items.tolist()):
        interesting, uninteresting = row[:4], row[4:]
        ranks = [ranked[user].index(item) for item in interesting]
        assert ranks == sorted(set(ranks))
        assert len(set(uninteresting)) == 5
        assert not set(uninteresting) & ({0} | set(ranked[user]) | made.observed(user))


def test_the_plain_top_k_on_request(made: Bench) -> None:
    users, items = made.asked(made.build(RRDDistiller, sampling="top", **SIZES))
    assert torch.equal(items[:, :4], made.teacher.ranked_items(8)[users, :4].long())


@pytest.mark.parametrize("uninteresting", [5, 0])
def test_the_loss_is_the_weighted_mean_of_equation_9_over_distinct_users(made: Bench, uninteresting: int) -> None:
    """Without uninteresting items it is the order of the interesting ones alone, an ablation of table 4."""
    distiller = made.build(RRDDistiller, weight=0.3, **{**SIZES, "uninteresting": uninteresting})
    users, items = made.asked(distiller)
    assert items.shape[1] == 4 + uninteresting
    total = 0.0
    for user, row in zip(users, items):
        r = made.student.item_table[row] @ made.student.user_table[user]
        total += sum(float(torch.logsumexp(r[k:], 0) - r[k]) for k in range(4))
    assert distiller(made.batch)["rrd"].item() == pytest.approx(0.3 * total / len(users))


def test_the_order_of_interesting_items_alone(made: Bench) -> None:
    """The ablation "interesting only" of table 4: as without uninteresting items, whatever their number is."""
    named, without = ({"order": "interesting", **SIZES}, {**SIZES, "uninteresting": 0})
    losses = []
    for options in (named, without):
        distiller = made.build(RRDDistiller, weight=1.0, **options)
        distiller.begin_epoch(0)
        losses.append(distiller(made.batch)["rrd"].item())
    assert losses[0] == losses[1] > 0


def test_the_full_order_is_that_of_the_teacher(made: Bench) -> None:
    """The ablation "full ranking" of table 4: the same items as in eq. 9, and the others are in order too."""
    distiller = made.build(RRDDistiller, weight=1.0, order="full", **SIZES)
    relaxed = made.asked(made.build(RRDDistiller, **SIZES))[1]
    users, items = made.asked(distiller)
    assert torch.equal(items.sort(dim=1).values, relaxed.sort(dim=1).values)
    scores = made.teacher.scores(users, items)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values)
    total = 0.0
    for user, row in zip(users, items):
        r = (made.student.item_table[row] @ made.student.user_table[user]).detach()
        total += sum(float(torch.logsumexp(r[k:], 0) - r[k]) for k in range(4 + 5))
    assert distiller(made.batch)["rrd"].item() == pytest.approx(total / len(users))


def test_a_full_order_needs_the_teachers_scores_and_not_only_its_lists() -> None:
    assert RRDOptions(order="full").needs.lacking("teacher", frozenset({"ranks"})) == frozenset({"scores"})
    assert not RRDOptions().needs.lacking("teacher", frozenset({"ranks"}))


def test_the_temperature_divides_the_students_scores(made: Bench) -> None:
    distiller = made.build(RRDDistiller, weight=1.0, temperature=0.1, **SIZES)
    users, items = made.asked(distiller)
    total = 0.0
    for user, row in zip(users, items):
        r = made.student.item_table[row] @ made.student.user_table[user] / 0.1
        total += sum(float(torch.logsumexp(r[k:], 0) - r[k]) for k in range(4))
    assert distiller(made.batch)["rrd"].item() == pytest.approx(total / len(users))


def test_items_are_drawn_anew_each_epoch_and_kept_within(made: Bench) -> None:
    distiller = made.build(RRDDistiller, **SIZES)
    _, first = made.asked(distiller, 0)
    distiller(made.batch)
    assert torch.equal(made.student.asked[1][1], first)
    assert not torch.equal(made.asked(distiller, 1)[1], first)


def test_a_resumed_run_draws_what_the_run_would_have_drawn(made: Bench) -> None:
    distiller = made.build(RRDDistiller, **SIZES)
    made.asked(distiller, 0)
    resumed = made.build(RRDDistiller, **SIZES)
    resumed.load_state_dict(distiller.state_dict())
    assert torch.equal(made.asked(resumed, 1)[1], made.asked(distiller, 1)[1])


@pytest.mark.parametrize("distiller", [RRDDistiller, IRRRDDistiller])
def test_it_learns(distiller: type[RRDDistiller]) -> None:
    made = bench(users=30)
    assert_learns(made, made.build(distiller, **SIZES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interesting": 9, "pool": 8}, r"rrd\.interesting=9 items cannot be drawn from a list of rrd\.pool=8"),
        ({"interesting": 1, "pool": 40}, r"rrd\.pool=40 is more than the 39 items"),
        ({**SIZES, "uninteresting": 30}, r"rrd\.uninteresting=30 below the 8 of rrd\.pool.*11 of 11 users.*the least"),
        ({**SIZES, "uninteresting": -1}, r"rrd\.uninteresting=-1 is out of range; expected at least 0"),
        ({**SIZES, "interesting": 0}, r"rrd\.interesting=0 is out of range"),
        ({**SIZES, "emphasis": 0}, r"rrd\.emphasis=0 is out of range; expected at least 0\.001"),
        ({**SIZES, "sampling": "exponentially"}, r"Did you mean 'exponential'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Bench, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made.build(RRDDistiller, **options)


def test_a_user_who_observed_everything_is_refused() -> None:
    made = bench([(1, item) for item in range(1, ITEMS)] + [(2, 1)])
    with pytest.raises(UserError, match=r"1 users are observed with all 39 items.*user_inter_num_interval"):
        made.build(RRDDistiller, **SIZES)


# The item side


def test_users_are_ranked_for_items_among_those_who_have_not_observed_them() -> None:
    made = bench(users=30)
    distiller = made.build(IRRRDDistiller, weight=0.5, item_weight=0.25, **SIZES)
    made.asked(distiller)
    users, items = (part.view(-1, 9) for part in made.student.asked[1])
    assert items[:, 0].tolist() == made.batch.distinct_items.tolist()
    scores = made.teacher.user_embeddings() @ made.teacher.item_embeddings().t()
    for item, row in zip(items[:, 0].tolist(), users.tolist()):
        unaware = [user for user in range(1, 30) if item not in made.observed(user)]
        best = sorted(unaware, key=lambda user: -float(scores[user, item]))
        ranks = [best.index(user) for user in row]
        assert ranks[:4] == sorted(set(ranks[:4]))
        assert max(ranks[:4]) < 8 <= min(ranks[4:])
        assert len(set(row)) == 9


def test_both_sides_have_the_same_loss() -> None:
    made = bench(users=30)
    distiller = made.build(IRRRDDistiller, weight=0.5, item_weight=0.25, **SIZES)
    made.asked(distiller)
    users, items = (part.view(-1, 9) for part in made.student.asked[1])
    total = 0.0
    for row, item in zip(users, items[:, 0]):
        r = made.student.user_table[row] @ made.student.item_table[item]
        total += sum(float(torch.logsumexp(r[k:], 0) - r[k]) for k in range(4))
    assert distiller(made.batch)["item"].item() == pytest.approx(0.25 * total / len(items))


def test_an_item_that_too_many_users_know_is_refused(made: Bench) -> None:
    with pytest.raises(UserError, match=r"ir_rrd\.pool=12 is more than the 11 users"):
        made.build(IRRRDDistiller, interesting=4, uninteresting=5, pool=12)


def test_either_weight_keeps_ir_rrd_on() -> None:
    options = IRRRDDistiller.options_class
    assert options.parse("ir_rrd", {"weight": 0, "item_weight": 0}).is_off
    assert not options.parse("ir_rrd", {"weight": 0}).is_off
