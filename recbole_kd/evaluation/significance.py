"""Significance of differences between recommenders: paired tests, Holm's correction, intervals.

There are two paired t-tests: over the users' metrics, and over the seeds' means. A table reports means, and the t-test
tests the mean difference. For rankings it agrees with the randomisation test, which needs thousands of times the work.
Wilcoxon's signed-rank test tests another quantity, drops the many users without a difference, and should not be used
for means (Smucker, Allan and Carterette, CIKM 2007; Urbano, Lima and Hanjalic, SIGIR 2019). With five seeds its
smallest two-sided p is 0.0625, so no difference could be significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

#: A square table by rows: an entry for each pair of names, None if the pair is not tested.
Matrix = list[list[Optional[float]]]


def paired_t(first: NDArray[Any], second: NDArray[Any]) -> Optional[float]:
    """Two-sided p of the paired t-test that the mean of ``first - second`` is 0.

    Args:
        first, second: (n,) the same users (or seeds) in the same order.

    Returns:
        p in [0, 1]; 1 if all pairs are equal, None if there are fewer than two pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"paired samples of {len(first)} and {len(second)}")
    count = len(first)
    if count < 2:
        return None
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    # If all differences are equal, their spread is only rounding error.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * student_t.sf(abs(mean) / spread * math.sqrt(count), count - 1))


def holm(p_values: Sequence[Optional[float]]) -> list[Optional[float]]:
    """Holm's step-down correction (1979): the k-th smallest of m p-values is multiplied by m - k + 1, running maximum.

    Args:
        p_values: the p-values of one family of tests; None is no test, stays None and is not counted.

    Returns:
        The corrected values in the given order. Comparing them with a level keeps the family-wise error below it.
    """
    corrected: list[Optional[float]] = [None] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def pairwise(samples: Sequence[Optional[NDArray[Any]]]) -> tuple[Matrix, Matrix]:
    """Paired t-tests of all pairs, and the same after Holm's correction over all of them.

    Args:
        samples: (n,) for each name; a pair is not tested if one is None or the lengths differ.

    Returns:
        p and corrected p: two symmetric matrices with None on the diagonal and for pairs that are not tested.
    """
    size = len(samples)
    pairs = [(row, column) for row in range(size) for column in range(row + 1, size)]
    p_values: list[Optional[float]] = []
    for row, column in pairs:
        first, second = samples[row], samples[column]
        testable = first is not None and second is not None and len(first) == len(second)
        p_values.append(paired_t(first, second) if testable else None)  # type: ignore[arg-type]
    matrices: list[Matrix] = []
    for values in (p_values, holm(p_values)):
        matrix: Matrix = [[None] * size for _ in range(size)]
        for (row, column), p in zip(pairs, values):
            matrix[row][column] = matrix[column][row] = p
        matrices.append(matrix)
    return matrices[0], matrices[1]


def bootstrap_intervals(
    values: NDArray[Any], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """Percentile intervals of the means over users, from users drawn with replacement.

    Args:
        values: (n, m) a row per user, a column per metric.
        level: the share of the drawn means inside the interval.
        draws: number of times that n users are drawn.
        seed: with the same seed, all recommenders get the same draws.

    Returns:
        (low, high) for each of the m metrics.
    """
    generator = np.random.default_rng(seed)
    users = len(values)
    means = np.empty((draws, values.shape[1]))
    for draw in range(draws):
        times = np.bincount(generator.integers(users, size=users), minlength=users)
        means[draw] = times @ values / users
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(lower), float(upper)) for lower, upper in zip(low, high)]


def sample_deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample (divided by n - 1); 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
