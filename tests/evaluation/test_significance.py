"""Tests of significance against worked examples, scipy and slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_kd.evaluation.significance import bootstrap_intervals, holm, paired_t, pairwise, sample_deviation


def test_holm_on_a_worked_example() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 are multiplied by 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and the last rises to 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]), "never above 1"
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_what_was_not_tested_does_not_count() -> None:
    assert holm([None, 0.02, None, 0.04]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        order = sorted(range(len(p_values)), key=lambda index: p_values[index])
        rejected = set()
        for rank, index in enumerate(order):
            if p_values[index] * (len(p_values) - rank) >= level:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(corrected) if p is not None and p < level} == rejected


@given(st.integers(2, 50), st.integers(0, 1000))
@settings(max_examples=30)
def test_the_paired_t_test_is_scipys(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.random(count), generator.random(count)
    assert paired_t(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_samples_without_a_spread() -> None:
    ones = np.ones(5)
    assert paired_t(ones, ones) == 1.0
    assert paired_t(ones, ones + 0.1) == 0.0, "the same difference for every user"
    assert paired_t(ones[:1], 2 * ones[:1]) is None, "one pair says nothing of its spread"
    with pytest.raises(ValueError, match="5 and 4"):
        paired_t(ones, ones[:4])


def test_it_agrees_with_the_randomisation_test_on_recall() -> None:
    """Recall of few positives: many users without a difference. The signs of the differences are drawn anew."""
    generator = np.random.default_rng(3)
    first = generator.binomial(3, 0.30, 400) / 3
    second = generator.binomial(3, 0.29, 400) / 3
    difference = first - second
    signs = generator.choice([-1, 1], size=(20_000, 400))
    drawn = np.abs((signs * difference).mean(axis=1))
    randomised = float((drawn >= abs(difference.mean()) - 1e-12).mean())
    assert paired_t(first, second) == pytest.approx(randomised, abs=0.015)
    assert 0.005 < randomised < 0.3, "neither end of the scale, where any test would agree"


def test_equal_recommenders_are_called_different_at_the_rate_that_was_asked_for() -> None:
    generator = np.random.default_rng(0)
    rate = np.mean([paired_t(*generator.binomial(3, 0.3, (2, 200)) / 3) < 0.05 for _ in range(1000)])
    assert 0.03 < rate < 0.07


def test_all_pairs() -> None:
    generator = np.random.default_rng(1)
    good, bad = generator.random(30) + 1, generator.random(30)
    p, corrected = pairwise([good, bad, bad.copy(), None, np.ones(3)])
    assert p[0][0] is None
    assert p[0][1] == p[1][0] == paired_t(good, bad)
    assert p[1][2] == 1.0
    assert p[0][3] is p[0][4] is None, "nothing, or other users, cannot be paired"
    assert corrected[0][1] == pytest.approx(3 * p[0][1]), "three tests"
    assert corrected[1][2] == 1.0


def test_bootstrap_intervals_of_the_mean() -> None:
    values = np.random.default_rng(2).normal([0.0, 5.0], [1.0, 2.0], size=(1000, 2))
    intervals = bootstrap_intervals(values)
    for column, (low, high) in enumerate(intervals):
        mean, error = values[:, column].mean(), values[:, column].std(ddof=1) / np.sqrt(1000)
        assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.25 * error)
    assert bootstrap_intervals(values) == intervals, "the same draws each time"
    assert bootstrap_intervals(np.full((10, 1), 0.3)) == [(pytest.approx(0.3), pytest.approx(0.3))]


def test_the_deviation_is_the_samples() -> None:
    assert sample_deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert sample_deviation([7.0]) == 0.0


def test_differences_that_are_only_rounding_are_none() -> None:
    """The mean of three seeds depends on their order: by a last digit, which is not tested."""
    first, second = np.array([0.1 + 0.2, 0.5, 0.7]), np.array([0.3, 0.5, 0.7])
    assert first[0] != second[0]
    assert paired_t(first, second) == 1.0
