"""SimRec's formulas against loops over the paper's equations, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.contrastive import (
    adaptive_weights,
    catalogue_logsumexp,
    contrastive_regularization,
    cosine_infonce,
    mean_score_loss,
    prediction_bce,
)
from tests.loss.same import assert_same, draw


def test_the_recommendation_loss_is_minus_the_mean_score_of_the_pairs() -> None:
    users, items = draw(0, 4, 3), draw(1, 6, 3)
    pairs = [(0, 5), (2, 1), (2, 1), (2, 3)]
    expected = -torch.stack([users[u] @ items[i] for u, i in pairs]).mean()
    assert_same(mean_score_loss(users, items, *torch.tensor(pairs).unbind(1)), expected, [users, items])


def test_the_prediction_level_is_equation_7_triplet_by_triplet() -> None:
    users, items, teacher = draw(0, 4, 3, scale=0.5), draw(1, 6, 3, scale=0.5), draw(2, 30).detach()
    generator = torch.Generator().manual_seed(5)
    # Many triplets meet the same user and item, some the same item twice.
    triplets = [torch.randint(high, (30,), generator=generator) for high in (4, 6, 6)]
    entries = []
    for u, j, k, z in zip(*triplets, teacher):
        student = torch.sigmoid((users[u] @ items[j] - users[u] @ items[k]) / 0.3)
        target = torch.sigmoid(z / 0.3)
        entries.append(-(target * torch.log(student) + (1 - target) * torch.log(1 - student)))
    found = prediction_bce(users, items, (triplets[0], triplets[1], triplets[2]), teacher, 0.3)
    assert_same(found, torch.stack(entries).mean(), [users, items])


def test_a_sum_over_the_catalogue_is_that_of_its_exponentials() -> None:
    queries, keys = draw(0, 3, 4), draw(1, 6, 4)
    expected = torch.stack([sum(torch.exp(q @ k / 0.5) for k in keys).log() for q in queries])
    torch.testing.assert_close(catalogue_logsumexp(queries, keys, 0.5), expected)


def test_a_sample_estimates_the_sum_and_over_all_samples_is_the_sum() -> None:
    queries, keys = draw(0, 3, 4), draw(1, 6, 4)
    every = [torch.tensor(pair) for pair in itertools.product(range(6), repeat=2)]
    mean = torch.stack([catalogue_logsumexp(queries, keys, 0.5, sample).exp() for sample in every]).mean(0)
    torch.testing.assert_close(mean, catalogue_logsumexp(queries, keys, 0.5).exp())


def test_the_embedding_level_is_equation_8_anchor_by_anchor() -> None:
    embeddings, positives = draw(0, 9, 4), torch.tensor([2, 7, 0])
    anchors = torch.nn.functional.normalize(draw(1, 3, 4).detach())
    entries = []
    for anchor, positive in zip(anchors, positives):
        cosines = torch.stack([(anchor @ h) / (anchor.norm() * h.norm()) for h in embeddings])
        entries.append(-torch.log(torch.exp(cosines[positive] / 0.1) / torch.exp(cosines / 0.1).sum()))
    assert_same(cosine_infonce(anchors, embeddings, positives, 0.1), torch.stack(entries).mean(), [embeddings])


@pytest.mark.parametrize("pairs", [("uu", "ui", "ii"), ("ui",), ("uu", "ii"), ()])
def test_the_regularisation_is_equation_9_node_by_node(pairs: tuple[str, ...]) -> None:
    sides = users, items = draw(0, 5, 3), draw(1, 7, 3)
    nodes = of_users, of_items = torch.tensor([4, 0]), torch.tensor([1, 6, 2])
    weights = draw(2, 2).detach(), draw(3, 3).detach()

    def spread(node: Tensor, everything: Tensor) -> Tensor:
        return torch.log(sum(torch.exp(other @ node / 2.0) for other in everything))

    total = torch.zeros((), dtype=torch.float64)
    for u, weight in zip(of_users, weights[0]):
        for name, everything in (("uu", users), ("ui", items)):
            total = total + weight * spread(users[u], everything) * (name in pairs)
    for i, weight in zip(of_items, weights[1]):
        total = total + weight * spread(items[i], items) * ("ii" in pairs)
    assert_same(contrastive_regularization(sides, nodes, weights, 2.0, pairs), total, sides)


# Equation 10


def test_weights_fall_where_distillation_agrees_with_recommendation() -> None:
    toward, across = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert adaptive_weights(toward, across, toward, 0.2).tolist() == pytest.approx([0.8])
    assert adaptive_weights(toward, across, -toward, 0.2).tolist() == pytest.approx([1.2])
    # Two long distillation gradients that agree with each other more than with a short g_rec.
    assert adaptive_weights(toward, toward, 0.1 * toward, 0.2).tolist() == pytest.approx([1.2])
    # Their lengths do not count in cosines.
    turned = toward + 0.5 * across
    assert adaptive_weights(toward, turned, 0.1 * (toward + turned), 0.2).tolist() == pytest.approx([1.2])
    assert adaptive_weights(toward, turned, 0.1 * (toward + turned), 0.2, cosine=True).tolist() == pytest.approx([0.8])


def test_the_cosine_rule_normalises_the_sum_and_not_its_parts() -> None:
    """cos(g1 + g2, g_rec) is negative here, as the long g1 decides; of parts at length 1 it would be positive."""
    g1, g2, g_rec = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[-0.2, 1.0]])
    assert adaptive_weights(g1, g2, g_rec, 0.2, cosine=True).tolist() == pytest.approx([1.2])


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b)) / lengths if lengths else 0.0


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


@pytest.mark.parametrize("compared", [dot, cosine])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1.0, 10.0, 100.0), (5.0, 0.2, 1e-6)])
def test_weights_follow_the_rule_node_by_node(compared, scales) -> None:
    gradients = [draw(seed, 200, 3, scale=scale).detach() for seed, scale in enumerate(scales)]
    gradients[0][0] = gradients[1][1] = gradients[2][2] = 0
    found = adaptive_weights(*gradients, 0.3, cosine=compared is cosine)
    rule = []
    for g1, g2, g_rec in zip(*(gradient.tolist() for gradient in gradients)):
        agree = compared([x + y for x, y in zip(g1, g2)], g_rec) > compared(g1, g2)
        rule.append(1 - 0.3 if agree else 1 + 0.3)
    assert found.tolist() == rule, "to the last digit of float64"
    assert len(set(rule)) == 2


def test_weights_have_the_type_of_the_gradients() -> None:
    for dtype in (torch.float32, torch.float64):
        weights = adaptive_weights(*torch.eye(3, dtype=dtype).unsqueeze(1), 0.2)
        assert torch.equal(weights, torch.tensor([1.2], dtype=dtype))
