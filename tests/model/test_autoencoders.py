"""Mult-VAE's and Mult-DAE's variants, against the likelihoods that the paper prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.model.autoencoders import log_likelihood
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd
from tests.student.test_readers import build

SIZES: dict[str, Any] = {"mlp_hidden_size": [8], "latent_dimension": 6, "dropout_prob": 0.0}
WORDS = ["multinomial", "gaussian", "logistic"]


def slow_likelihood(scores: list[float], ratings: list[float], likelihood: str, positive_weight: float) -> float:
    total = 0.0
    for score, rating in zip(scores, ratings):
        sigmoid = 1 / (1 + math.exp(-score))
        if likelihood == "multinomial":
            total += rating * math.log(math.exp(score) / sum(math.exp(one) for one in scores))
        elif likelihood == "gaussian":
            total -= (positive_weight if rating else 1) / 2 * (rating - score) ** 2
        else:
            total += rating * math.log(sigmoid) + (1 - rating) * math.log(1 - sigmoid)
    return total


def users_of(model: Any) -> tuple[Interaction, Tensor]:
    users = torch.tensor([3, 7, 20])
    return Interaction({model.USER_ID: users}), model.get_rating_matrix(users)


@pytest.mark.parametrize("likelihood", WORDS)
def test_a_likelihood_by_loops(likelihood: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    ratings = (torch.rand(4, 9, generator=generator) < 0.4).double()
    expected = [slow_likelihood(s, r, likelihood, 7.0) for s, r in zip(scores.tolist(), ratings.tolist())]
    assert log_likelihood(scores, ratings, likelihood, 7.0).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("likelihood", WORDS)
@pytest.mark.parametrize("name", ["MultiVAEVariant", "MultiDAEVariant"])
def test_the_loss_is_a_mean_over_users(name: str, likelihood: str, known_answer: Path) -> None:
    """And padding is no item."""
    model = build(name, known_answer, **SIZES, likelihood=likelihood, positive_weight=3.0).double()
    batch, ratings = users_of(model)
    ratings = ratings.double()
    model.get_rating_matrix = lambda users: ratings
    output = model.forward(ratings)  # in eval mode, without noise
    losses = []
    for row in range(3):
        scores = (output[0] if name == "MultiVAEVariant" else output)[row, 1:].tolist()
        loss = -slow_likelihood(scores, ratings[row, 1:].tolist(), likelihood, 3.0)
        if name == "MultiVAEVariant":
            moments = zip(output[1][row].tolist(), output[2][row].tolist())
            loss += model.total_anneal_steps**-1 * sum(
                0.5 * (math.exp(logvar) + mu**2 - 1 - logvar) for mu, logvar in moments
            )
        losses.append(loss)
    assert model.calculate_loss(batch).item() == pytest.approx(sum(losses) / 3, rel=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_the_noise_has_the_deviation_that_is_set(noise: float, known_answer: Path) -> None:
    model = build("MultiVAEVariant", known_answer, **SIZES, noise_std=noise).train()
    mu, logvar = torch.full((20000, 2), 3.0), torch.full((20000, 2), 2 * math.log(0.5))
    drawn = model.reparameterize(mu, logvar)
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(noise * 0.5, rel=0.05)


def test_annealing_stops_where_validation_falls(known_answer: Path) -> None:
    model = build("MultiVAEVariant", known_answer, **SIZES, total_anneal_steps=100, anneal_cap=0.5, stop_annealing=True)
    model.update = 10
    model.validated(0.3)
    model.update = 20
    model.validated(0.4)
    assert model.beta() == pytest.approx(0.2), "it still grows"
    model.update = 30
    assert model.beta() == pytest.approx(0.3)
    model.validated(0.35)
    assert model.beta() == pytest.approx(0.2), "of the best evaluation"
    model.update = 90
    model.validated(0.9)
    assert model.beta() == pytest.approx(0.2), "for good"


def test_a_score_that_stays_is_no_fall(known_answer: Path) -> None:
    """A coarse metric often repeats: annealing goes on, and what it would fall back to is the later weight."""
    model = build("MultiVAEVariant", known_answer, **SIZES, total_anneal_steps=100, anneal_cap=0.5, stop_annealing=True)
    for update, score in ((10, 0.3), (20, 0.3)):
        model.update = update
        model.validated(score)
    model.update = 30
    assert model.beta() == pytest.approx(0.3)
    model.validated(0.2)
    assert model.beta() == pytest.approx(0.2)


def test_otherwise_it_grows_up_to_its_cap(known_answer: Path) -> None:
    model = build("MultiVAEVariant", known_answer, **SIZES, total_anneal_steps=100, anneal_cap=0.5)
    for update, beta in ((10, 0.1), (50, 0.5), (90, 0.5)):
        model.update = update
        model.validated(-update)
        assert model.beta() == pytest.approx(beta)


@pytest.mark.parametrize("metric", ["NDCG@10", "AveragePopularity@10"])
def test_a_run_tells_the_model_of_its_validation(
    metric: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that more is better, whatever the metric."""
    from recbole_kd.model.autoencoders import MultiVAEVariant

    told: list[float] = []
    monkeypatch.setattr(MultiVAEVariant, "validated", lambda self, score: told.append(score))
    measured = {"metrics": [metric.partition("@")[0]], "valid_metric": metric}
    settings = known_answer_settings(known_answer, distill=[], epochs=2, **measured, **SIZES)
    result = run_recbole_kd("MultiVAEVariant", "known-answer", config_dict=settings)
    assert len(told) == 2
    assert max(told) == result["best_valid_score"] * (1 if metric == "NDCG@10" else -1)


@pytest.mark.parametrize("likelihood", WORDS)
@pytest.mark.parametrize("name", ["MultiVAEVariant", "MultiDAEVariant"])
def test_each_learns(name: str, likelihood: str, known_answer: Path) -> None:
    given = {"likelihood": likelihood, "mlp_hidden_size": [32], "latent_dimension": 32}
    settings = known_answer_settings(
        known_answer, distill=[], epochs=60, learning_rate=0.01, train_batch_size=512, eval_step=60, **given
    )
    assert run_recbole_kd(name, "known-answer", config_dict=settings)["test_result"]["recall@10"] > 0.7


def test_another_likelihood_is_refused(known_answer: Path) -> None:
    with pytest.raises(UserError, match="--likelihood='poisson' is not one of multinomial, gaussian, logistic"):
        build("MultiDAEVariant", known_answer, likelihood="poisson")
