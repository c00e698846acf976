"""Groups of users and what a metric is in them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_kd.evaluation.groups import activity_groups, group_means, taste_groups


def test_tastes_are_directions_and_the_largest_group_comes_first() -> None:
    random = np.random.default_rng(0)
    directions = np.eye(3)[[0] * 5 + [1] * 9 + [2] * 2]
    vectors = directions * random.uniform(1, 50, (16, 1)) + random.normal(0, 0.01, (16, 3))
    assert taste_groups(vectors, 3).tolist() == [1] * 5 + [0] * 9 + [2] * 2
    assert taste_groups(vectors, 3).tolist() == taste_groups(vectors, 3).tolist(), "seeded"
    assert set(taste_groups(np.ones((4, 3)), 3)) == {0}, "no more groups than there are directions"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(2, 6))
def test_activity_groups_are_ordered_whole_and_without_gaps(counts: list[int], groups: int) -> None:
    labels = activity_groups(np.array(counts), groups)
    found: dict[int, set[int]] = {}
    for count, label in zip(counts, labels.tolist()):
        found.setdefault(label, set()).add(count)
    assert sorted(found) == list(range(len(found)))
    assert len(found) <= groups
    for label in range(1, len(found)):
        assert max(found[label - 1]) < min(found[label])


def test_activity_groups_are_of_equal_size_where_activity_allows() -> None:
    assert np.bincount(activity_groups(np.arange(100), 5)).tolist() == [20] * 5


def test_group_means_against_a_loop() -> None:
    random = np.random.default_rng(1)
    first, second, labels = random.random(40), random.random(40), np.append(random.integers(0, 3, 39), 3)
    found = group_means(first, second, labels)
    for group in range(4):
        members = [user for user in range(40) if labels[user] == group]
        gaps = [first[user] - second[user] for user in members]
        mean = sum(gaps) / len(gaps)
        assert found.users[group] == len(members)
        assert found.first[group] == pytest.approx(sum(first[user] for user in members) / len(members))
        assert found.second[group] == pytest.approx(sum(second[user] for user in members) / len(members))
        assert found.difference[group] == pytest.approx(mean)
        if len(members) > 1:
            spread: Any = sum((gap - mean) ** 2 for gap in gaps) / (len(members) - 1)
            assert found.standard_error[group] == pytest.approx(math.sqrt(spread / len(members)))
    assert math.isnan(found.standard_error[3]), "one user says nothing of a spread"


def test_a_group_holds_the_users_at_its_upper_bound() -> None:
    """The median is 1, so the users with one interaction are the less active half."""
    assert activity_groups(np.array([1, 1, 1, 1, 2, 3]), 2).tolist() == [0, 0, 0, 0, 1, 1]
