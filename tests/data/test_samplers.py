"""Samplers against their definitions: probabilities written out for small cases, counted in many draws (chi-square)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.data.samplers import (
    Complement,
    GroupPairs,
    better_of_two,
    discrepancy_log_weights,
    draw_distinct,
    draw_without_replacement,
    exponential_log_weights,
    items_at,
    popularity_groups,
)

DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_distributed(drawn: Iterable[Hashable], probabilities: Mapping[Hashable, float]) -> None:
    """Only what has a probability is drawn, as often as it says. The seeds are fixed: this does not fail by chance."""
    counts = Counter(drawn)
    assert set(counts) <= {outcome for outcome, p in probabilities.items() if p > 0}
    total = sum(counts.values())
    likely = [outcome for outcome, p in probabilities.items() if p * total > 5]
    observed = [counts[outcome] for outcome in likely]
    expected = [probabilities[outcome] * total for outcome in likely]
    rest = total - sum(observed), total - sum(expected)
    if rest[1] > 5:
        observed.append(rest[0])
        expected.append(rest[1])
    if len(observed) == 1:  # a certain outcome: that nothing else was drawn is all there is to see
        return
    expected = [e * sum(observed) / sum(expected) for e in expected]
    assert chisquare(observed, expected).pvalue > 1e-3


def rows_of(drawn: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in drawn.tolist()]


def subset_probabilities(weights: list[float], samples: int) -> dict[tuple[int, ...], float]:
    """Probability of each set of positions when they are drawn one after the other without replacement."""
    probabilities: dict[tuple[int, ...], float] = Counter()
    for order in itertools.permutations(range(len(weights)), samples):
        p, left = 1.0, sum(weights)
        for position in order:
            p *= weights[position] / left if left else 0.0
            left -= weights[position]
        probabilities[tuple(sorted(order))] += p
    return probabilities


# Exponential over ranks, without replacement (RRD, CD)


@pytest.mark.parametrize("emphasis", [0.7, 2.0, 50.0])
def test_ranks_are_drawn_without_replacement_by_falling_exponentials(emphasis: float) -> None:
    weights = [math.exp(-rank / emphasis) for rank in range(1, 7)]
    drawn = draw_without_replacement(exponential_log_weights(6, emphasis), DRAWS, 3, generator())
    assert_distributed(rows_of(drawn), subset_probabilities(weights, 3))


def test_drawn_positions_are_in_rank_order() -> None:
    drawn = draw_without_replacement(exponential_log_weights(30, 5.0), 500, 7, generator())
    assert (drawn[:, 1:] > drawn[:, :-1]).all()


def test_all_positions_are_drawn_where_all_are_asked_for() -> None:
    drawn = draw_without_replacement(exponential_log_weights(5, 0.001), 3, 5, generator())
    assert drawn.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_weights_that_fall_by_hundreds_of_orders_do_not_underflow() -> None:
    drawn = draw_without_replacement(exponential_log_weights(2000, 1.0), 200, 3, generator())
    assert (drawn < 40).all()


def test_each_row_may_have_weights_of_its_own_and_zeros_are_never_drawn() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 0.0, 5.0, 0.0]])
    drawn = draw_without_replacement(weights.log().repeat(DRAWS, 1), 2 * DRAWS, 2, generator())
    assert_distributed(rows_of(drawn[0::2]), subset_probabilities([1.0, 0.0, 2.0, 3.0], 2))
    assert {frozenset(row) for row in rows_of(drawn[1::2])} == {frozenset({-1, 2})}


def test_better_of_two_ranks() -> None:
    weights = [math.exp(-rank / 3) for rank in range(1, 6)]
    total = sum(weights)
    expected: dict[int, float] = Counter()
    for first, second in itertools.product(range(5), repeat=2):
        expected[min(first, second)] += weights[first] * weights[second] / total**2
    actual = better_of_two(exponential_log_weights(5, 3.0)).exp()
    torch.testing.assert_close(actual, torch.tensor([expected[k] for k in range(5)]))


def test_better_of_two_ranks_that_next_to_never_come_can_still_be_drawn() -> None:
    logarithms = better_of_two(exponential_log_weights(20, 0.02))
    # Of two draws the better is k where one is and the other is k or worse: p_k^2 (1 + 2 e^-50 ...), all but p_k^2 itself.
    torch.testing.assert_close(logarithms - logarithms[0], -100.0 * torch.arange(20))
    assert (draw_without_replacement(logarithms, 50, 15, generator()) >= 0).all()


def test_items_at_positions() -> None:
    ranked = torch.tensor([[7, 8, 9], [4, 5, 6]], dtype=torch.int32)
    assert items_at(ranked, torch.tensor([[0, 2], [-1, 1]])).tolist() == [[7, 9], [0, 5]]


# Uniform over the complement (RRD, RD)


@pytest.mark.parametrize(("count", "samples"), [(6, 1), (6, 2), (6, 3), (6, 5), (6, 6), (9, 3)])
def test_every_subset_is_equally_likely(count: int, samples: int) -> None:
    drawn = draw_distinct(torch.full((DRAWS,), count, dtype=torch.int32), samples, generator())
    subsets = list(itertools.combinations(range(count), samples))
    assert_distributed(rows_of(drawn), dict.fromkeys(subsets, 1 / len(subsets)))


def test_rows_differ_in_how_many_numbers_there_are() -> None:
    counts = torch.tensor([3, 4, 50, 10_000], dtype=torch.int32)
    drawn = draw_distinct(counts.repeat(2000), 3, generator())
    assert (drawn < counts.repeat(2000).unsqueeze(1)).all()
    for row, count in enumerate((3, 4)):
        subsets = list(itertools.combinations(range(count), 3))
        assert_distributed(rows_of(drawn[row::4]), dict.fromkeys(subsets, 1 / len(subsets)))


@given(
    users=st.integers(2, 7),
    items=st.integers(4, 30),
    k=st.integers(0, 5),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_the_complement_is_drawn_whole_where_it_is_asked_for_whole(
    users: int, items: int, k: int, share: float, seed: int
) -> None:
    """The mapping from numbers to items, for every number at once."""
    random = generator(seed)
    user_ids, item_ids = (torch.rand(users - 1, items - 1, generator=random) < share).nonzero().add(1).unbind(1)
    observed = Observed(user_ids, item_ids, users, items)
    ranked = torch.randint(0, items, (users, k), generator=random, dtype=torch.int32)
    ranked[0] = 0
    complement = Complement(observed, ranked)
    least = int(complement.counts[1:].min())
    drawn = complement.draw(least, random)
    assert not drawn[0].any()
    for user in range(1, users):
        own = observed.indices[observed.offsets[user] : observed.offsets[user + 1]].tolist()
        left = sorted(set(range(1, items)) - set(own) - set(ranked[user].tolist()))
        assert complement.counts[user] == len(left)
        assert set(drawn[user].tolist()) <= set(left)
        assert len(set(drawn[user].tolist())) == least
        if least == len(left):
            assert drawn[user].tolist() == left


def test_the_complement_is_drawn_uniformly() -> None:
    observed = Observed(torch.tensor([1, 1, 1, 2]), torch.tensor([2, 3, 9, 1]), 3, 11)
    ranked = torch.tensor([[0, 0], [5, 1], [10, 0]], dtype=torch.int32)
    complement = Complement(observed, ranked)
    random = generator()
    drawn = torch.stack([complement.draw(2, random) for _ in range(4000)])
    for user, left in ((1, [4, 6, 7, 8, 10]), (2, [2, 3, 4, 5, 6, 7, 8, 9])):
        pairs = list(itertools.combinations(left, 2))
        assert_distributed(rows_of(drawn[:, user]), dict.fromkeys(pairs, 1 / len(pairs)))


def test_more_users_than_a_block() -> None:
    users, items = 2500, 40
    random = generator(1)
    observed = Observed(
        torch.randint(1, users, (9000,), generator=random),
        torch.randint(1, items, (9000,), generator=random),
        users,
        items,
    )
    ranked = torch.randint(1, items, (users, 4), generator=random, dtype=torch.int32)
    ranked[0] = 0
    drawn = Complement(observed, ranked).draw(5, random)
    everyone = torch.arange(1, users).unsqueeze(1)
    assert not observed.contains(everyone, drawn[1:]).any()
    assert not (drawn[1:].unsqueeze(2) == ranked[1:].unsqueeze(1)).any()
    assert drawn[1:].min() == 1
    assert drawn[1:].max() == items - 1


# Popularity groups and pairs (UnKD)


def test_groups_share_the_popularity_evenly() -> None:
    popularity = torch.randint(0, 60, (400,), generator=generator()) ** 2
    popularity[0] = 0
    groups = popularity_groups(popularity, 4)
    assert groups[0] == -1
    mass = torch.zeros(4, dtype=torch.long).index_add_(0, groups[1:], popularity[1:])
    assert (mass - popularity.sum() / 4).abs().max() <= popularity.max()
    for more, less in zip(range(3), range(1, 4)):
        assert popularity[groups == more].min() >= popularity[groups == less].max()


def test_items_that_nobody_observed_are_in_the_least_popular_group() -> None:
    assert popularity_groups(torch.tensor([0, 0, 10, 0, 10]), 2).tolist() == [-1, 1, 0, 1, 1]


def test_an_item_that_outweighs_the_others_leaves_a_group_empty() -> None:
    groups = popularity_groups(torch.tensor([0, 100, 1, 1]), 3)
    assert set(groups[1:].tolist()) == {1, 2}


@pytest.mark.parametrize("emphasis", [0.5, 2.0, 1e4])
def test_pairs_are_drawn_by_ranks_within_the_group(emphasis: float) -> None:
    ranked = torch.tensor([[0] * 7, [11, 21, 12, 22, 13, 14, 0]], dtype=torch.int32)
    group_of = torch.full((30,), -1)
    group_of[10:20], group_of[20:30] = 0, 1
    pairs = GroupPairs(ranked, group_of, 2)
    better, worse = pairs.draw(DRAWS, emphasis, generator())
    assert not better[0].any()
    assert not worse[0].any()
    drawn = list(zip(better[1].tolist(), worse[1].tolist()))
    for group, in_group in enumerate([[11, 12, 13, 14], [21, 22]]):
        weights = [math.exp(-rank / emphasis) for rank in range(1, len(in_group) + 1)]
        expected = {
            tuple(in_group[position] for position in subset): p
            for subset, p in subset_probabilities(weights, 2).items()
        }
        assert_distributed(drawn[group::2], expected)


def test_a_user_without_two_items_of_a_group_has_no_pair_of_it() -> None:
    ranked = torch.tensor([[0, 0, 0], [1, 2, 3], [3, 2, 0], [0, 0, 0]], dtype=torch.int32)
    better, worse = GroupPairs(ranked, torch.tensor([-1, 0, 0, 1]), 2).draw(4, 1.0, generator())
    assert (better > 0).tolist() == [[False] * 4, [True, False, True, False], [False] * 4, [False] * 4]
    assert torch.equal(better > 0, worse > 0)


def test_pairs_that_do_not_divide_evenly_go_to_the_popular_groups() -> None:
    ranked = torch.tensor([[1, 2, 3, 4, 5, 6]], dtype=torch.int32)
    group_of = torch.tensor([-1, 0, 0, 1, 1, 2, 2])
    better, _ = GroupPairs(ranked, group_of, 3).draw(5, 1.0, generator())
    assert group_of[better[0].long()].tolist() == [0, 1, 2, 0, 1]


# Discrepancy (DCD)


def test_under_ranked_items_are_drawn_by_their_discrepancy() -> None:
    gaps = torch.tensor([3, -1, 1, 0, 9])
    weights = [math.tanh(max(0, gap) / 4) for gap in gaps.tolist()]
    torch.testing.assert_close(discrepancy_log_weights(gaps, 4.0).exp(), torch.tensor(weights))
    drawn = draw_without_replacement(discrepancy_log_weights(gaps, 4.0), DRAWS, 2, generator())
    assert_distributed(rows_of(drawn), subset_probabilities(weights, 2))


# All of them


def test_the_generator_alone_decides() -> None:
    observed = Observed(torch.tensor([1]), torch.tensor([2]), 3, 50)
    ranked = torch.tensor([[0, 0], [1, 3], [4, 5]], dtype=torch.int32)
    group_of = torch.zeros(50, dtype=torch.long)

    def everything(seed: int) -> Tensor:
        random = generator(seed)
        return torch.cat(
            [
                draw_without_replacement(exponential_log_weights(20, 5.0), 3, 4, random),
                Complement(observed, ranked).draw(4, random),
                *GroupPairs(ranked, group_of, 1).draw(4, 1.0, random),
            ]
        )

    torch.manual_seed(1)
    first = everything(7)
    torch.manual_seed(2)
    assert torch.equal(everything(7), first)
    assert not torch.equal(everything(8), first)
