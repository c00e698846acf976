"""Whether a difference between recommenders is more than chance: paired tests, Holm's correction, intervals.

Both tests are paired t-tests, of the users' metrics and of the seeds' means. A table reports means, and the t-test is a
test of the mean difference; for rankings it agrees with the randomisation test, which needs thousands of times the
work, while Wilcoxon's signed ranks test another quantity, drop the many users without a difference, and should not be
used for means (Smucker, Allan and Carterette, CIKM 2007; Urbano, Lima and Hanjalic, SIGIR 2019). With five seeds
Wilcoxon's smallest two-sided p is 0.0625: it could not call any difference significant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

#: A square table by rows: an entry for each pair of names, None where there is nothing to test.
Matrix = list[list[Optional[float]]]


def paired_t(first: NDArray[Any], second: NDArray[Any]) -> Optional[float]:
    """Two-sided p of the paired t-test that the mean of ``first - second`` is 0.

    Args:
        first, second: (n,) the same users (or seeds) in the same order.

    Returns:
        p in [0, 1]; 1 where the two are equal throughout, None where there are fewer than two pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"paired samples of {len(first)} and {len(second)}")
    count = len(first)
    if count < 2:
        return None
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    # Equal differences leave a spread of rounding errors alone.
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * student_t.sf(abs(mean) / spread * math.sqrt(count), count - 1))


def holm(p_values: Sequence[Optional[float]]) -> list[Optional[float]]:
    """Holm's step-down correction (1979): the k-th smallest of m p-values is multiplied by m - k + 1, running maximum.

    Args:
        p_values: of one family of tests; None is no test, stays None and does not count.

    Returns:
        The corrected values in the order given: the family-wise error is at most what they are compared with.
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
        samples: (n,) for each name; None, or another length than a partner's, is not tested.

    Returns:
        p and corrected p: two symmetric matrices with None on the diagonal and where nothing was tested.
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
        level: the part of the drawn means that lies inside.
        draws: how many times n users are drawn.
        seed: the same draws serve every recommender that is asked with it.

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
