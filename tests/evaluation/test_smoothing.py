"""Mean average distance and second-order smoothness, against the double loops of their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.evaluation.smoothing import (
    mean_average_distance,
    popular_distances,
    second_order_smoothness,
    second_order_weights,
)


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


@pytest.fixture
def observed() -> Observed:
    """7 users with 9 items; user 5 has none, and user 6 shares none with another."""
    pairs = [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3), (4, 1), (4, 4), (4, 5), (4, 3), (6, 8)]
    users, items = torch.tensor(pairs).T
    return Observed(users, items, users=7, items=9)


def slow_weight(observed: Observed, u: int, v: int) -> float:
    """1 / (sqrt|N_u| sqrt|N_v|) times the sum over the items of both of 1 / |N_i|."""
    items = {w: set(observed.indices[observed.offsets[w] : observed.offsets[w + 1]].tolist()) for w in range(7)}
    shared = sum(1 / sum(i in owned for owned in items.values()) for i in items[u] & items[v])
    return shared / math.sqrt(len(items[u]) * len(items[v])) if shared else 0.0


def test_a_weight_is_the_sum_over_shared_items(observed: Observed) -> None:
    for u in range(7):
        expected = [slow_weight(observed, u, v) for v in range(7)]
        assert second_order_weights(observed, u).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_smoothness_is_the_sum_over_all_pairs_of_the_most_active(observed: Observed, scale: float) -> None:
    vectors = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    vectors[2] = 0  # it has no direction
    by_activity = [4, 1, 3, 6, 5]
    expected = []
    for size in (2, 3, 5):
        chosen = by_activity[:size]
        units = {u: vectors[u] / vectors[u].norm() for u in chosen}
        expected.append(
            sum(
                slow_weight(observed, u, v) * float((units[u] - units[v]).square().sum())
                for u in chosen
                for v in chosen
            )
        )
    assert second_order_smoothness(vectors * scale, observed, [2, 3, 100]) == pytest.approx(expected, rel=1e-12)


def test_two_convolutions_pass_on_what_the_weights_say(observed: Observed) -> None:
    """LightGCN, eq. 13: e_u^(2) is the sum of c_(v->u) e_v^(0)."""
    from recbole_kd.data.graphs import bipartite_adjacency

    table = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    twice = bipartite_adjacency(observed) @ (bipartite_adjacency(observed) @ table)
    weighted = torch.stack([second_order_weights(observed, u).float() @ table[:7] for u in range(7)])
    torch.testing.assert_close(twice[:7], weighted)


def test_a_popular_node_without_a_direction_is_left_out() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    expected = [slow_distance(vectors[[2, 3]]), slow_distance(vectors[[2, 3, 0]])]
    assert popular_distances(vectors, torch.tensor([1, 9, 3, 2]), [2, 3]) == pytest.approx(expected, rel=1e-12)
