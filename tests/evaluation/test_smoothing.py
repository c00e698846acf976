"""Mean average distance, against the double loop of its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recbole_kd.evaluation.smoothing import mean_average_distance, popular_distances


def slow_distance(vectors: Tensor) -> float:
    """Mean over nodes of their mean cosine distance to the others."""
    rows = []
    for i in range(len(vectors)):
        distances = []
        for j in range(len(vectors)):
            if i != j:
                dot = sum(float(a * b) for a, b in zip(vectors[i], vectors[j]))
                norms = math.sqrt(sum(float(a * a) for a in vectors[i])) * math.sqrt(
                    sum(float(b * b) for b in vectors[j])
                )
                distances.append(1 - dot / norms)
        rows.append(sum(distances) / len(distances))
    return sum(rows) / len(rows)


def test_it_is_the_mean_over_all_pairs() -> None:
    vectors = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    assert mean_average_distance(vectors) == pytest.approx(slow_distance(vectors), rel=1e-12)


@pytest.mark.parametrize(
    ("vectors", "distance"), [([[1, 0], [3, 0]], 0), ([[1, 0], [0, 2]], 1), ([[1, 0], [-4, 0]], 2)]
)
def test_known_distances(vectors: list[list[float]], distance: float) -> None:
    assert mean_average_distance(torch.tensor(vectors, dtype=torch.float64)) == pytest.approx(distance, abs=1e-12)


def test_the_most_popular_are_taken_first() -> None:
    vectors = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    popularity = torch.tensor([1, 9, 3, 9, 0, 4, 4, 2, 8])
    order = [1, 3, 8, 5, 6, 2, 7, 0, 4]
    expected = [slow_distance(vectors[order[:n]]) for n in (2, 3, 6, 9)]
    assert popular_distances(vectors, popularity, [2, 3, 6, 100]) == pytest.approx(expected, rel=1e-12)


def test_a_vector_of_zeros_has_no_direction() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert mean_average_distance(vectors) == pytest.approx(1.0)
    assert math.isnan(mean_average_distance(vectors[:2]))
