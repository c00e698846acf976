"""STOSA: Gaussians for items and sequences, compared by 2-Wasserstein distances."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_kd.model.stosa import joined, positive, squared_wasserstein, wasserstein_attention
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SequentialBench


def gaussians(rows: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean, raw = (torch.randn(rows, size, dtype=torch.float64, generator=generator) for _ in range(2))
    return mean, positive(raw)


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], i: int, j: int) -> float:
    """||mu_i - mu_j||^2 + trace(C_i + C_j - 2 (C_i^(1/2) C_j C_i^(1/2))^(1/2)), of covariance matrices."""
    apart = float((first[0][i] - second[0][j]).square().sum())
    one, other = torch.diag(first[1][i]), torch.diag(second[1][j])
    root = one.sqrt()
    return apart + float(torch.trace(one + other - 2 * (root @ other @ root).sqrt()))


def test_distances_are_those_of_gaussians_with_diagonal_covariances() -> None:
    first, second = gaussians(4, 3, 0), gaussians(5, 3, 1)
    found = squared_wasserstein(joined(*first), joined(*second))
    for i in range(4):
        for j in range(5):
            assert found[i, j].item() == pytest.approx(distance(first, second, i, j))


def test_attention_by_loops() -> None:
    queries, keys, values = (gaussians(4, 3, seed) for seed in (0, 1, 2))
    mask = torch.where(torch.ones(4, 4).tril().bool(), 0.0, -10000.0).double()
    found = wasserstein_attention(joined(*queries), joined(*keys), *values, mask, nn.Identity())
    for i in range(4):
        weights = [math.exp(-distance(queries, keys, i, j) / math.sqrt(3)) for j in range(i + 1)]
        mean = sum(w / sum(weights) * values[0][j] for j, w in enumerate(weights))
        covariance = sum((w / sum(weights)) ** 2 * values[1][j] for j, w in enumerate(weights))
        torch.testing.assert_close(found[0][i], mean)
        torch.testing.assert_close(found[1][i], covariance)


@pytest.fixture
def bench(tmp_path: Path) -> SequentialBench:
    return SequentialBench(write_known_sequences(tmp_path), "STOSA", hidden_size=8, inner_size=8, n_heads=2)


def test_a_sequence_by_the_equations(bench: SequentialBench) -> None:
    """Two heads over three items: residuals and normalisation as in SASRec, ELU, and covariances as ELU(x) + 1."""
    model, places = bench.model.eval().double(), slice(0, 3)
    (block,) = model.blocks

    def elu(values: Tensor) -> Tensor:
        return torch.where(values > 0, values, values.exp() - 1)

    raw = [table.weight[[4, 5, 6]] for table in (model.mean_embedding, model.covariance_embedding)]
    mean = model.mean_norm(raw[0] + model.mean_position.weight[places])
    covariance = elu(model.covariance_norm(raw[1] + model.covariance_position.weight[places])) + 1
    means = block.project["mean"](mean).split(8, dim=1)
    covariances = [elu(part) + 1 for part in block.project["covariance"](covariance).split(8, dim=1)]
    attended = [torch.zeros(3, 8, dtype=torch.float64) for _ in range(2)]
    for head in (slice(0, 4), slice(4, 8)):
        queries, keys = ((means[part][:, head], covariances[part][:, head]) for part in (0, 1))
        for i in range(3):
            weights = [math.exp(-distance(queries, keys, i, j) / math.sqrt(4)) for j in range(i + 1)]
            for j, weight in enumerate(weights):
                attended[0][i, head] += weight / sum(weights) * means[2][j, head]
                attended[1][i, head] += (weight / sum(weights)) ** 2 * covariances[2][j, head]
    last = []
    for kind, given, new in zip(("mean", "covariance"), (mean, covariance), attended):
        hidden = block.attention_norm[kind](given + block.output[kind](new))
        last.append(block.norm[kind](hidden + block.outer[kind](elu(block.inner[kind](hidden))))[-1])
    found = model.forward(torch.tensor([[4, 5, 6, 0, 0, 0]]), torch.tensor([3]))[0]
    torch.testing.assert_close(found, torch.cat([last[0], (elu(last[1]) + 1).sqrt()]))


def test_the_loss_is_bpr_on_distances_and_the_regulariser(bench: SequentialBench) -> None:
    model, rows = bench.model.eval().double(), bench.interaction(5)
    negatives = torch.tensor([3, 9, 1, 20, 7])
    rows.update(Interaction({"neg_item_id": negatives}))
    sequence, items = model.forward(rows["item_id_list"], rows["item_length"]), model.item_vectors()
    losses = []
    for row in range(5):
        positive_item, negative = items[rows["item_id"][row]], items[negatives[row]]
        near, far = (float((sequence[row] - one).square().sum()) for one in (positive_item, negative))
        apart = float((positive_item - negative).square().sum())
        losses.append(math.log1p(math.exp(near - far)) + model.pvn_weight * max(0.0, near - apart))
    assert model.calculate_loss(rows).item() == pytest.approx(sum(losses) / 5)


def test_a_score_is_the_same_alone_and_in_a_ranking(bench: SequentialBench) -> None:
    model, rows = bench.model.eval(), bench.interaction(6)
    ranking = model.full_sort_predict(rows)
    torch.testing.assert_close(model.predict(rows), ranking[torch.arange(6), rows["item_id"]], rtol=1e-4, atol=1e-5)
    assert (ranking <= 0).all()


def test_what_follows_a_sequence_changes_nothing(bench: SequentialBench) -> None:
    model = bench.model.eval()
    sequence = torch.tensor([[4, 5, 6, 0, 0, 0], [4, 5, 6, 7, 8, 9]])
    first, second = model.forward(sequence, torch.tensor([3, 3]))
    torch.testing.assert_close(first, second)


def test_it_learns(tmp_path: Path) -> None:
    settings = known_sequences_settings(
        write_known_sequences(tmp_path), epochs=25, learning_rate=0.01, hidden_size=16, inner_size=16, n_heads=2
    )
    assert run_recbole_kd("STOSA", "known-sequences", config_dict=settings)["test_result"]["recall@5"] > 0.8
