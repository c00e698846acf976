"""Mult-VAE and Mult-DAE with other likelihoods, unit noise, and annealing that stops, on RecBole's models.

Liang, Krishnan, Hoffman, Jebara: Variational Autoencoders for Collaborative Filtering (WWW 2018), section 2.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from recbole.model.general_recommender import MultiDAE, MultiVAE
from torch import Tensor

__all__ = ["MultiDAEVariant", "MultiVAEVariant", "log_likelihood"]


def log_likelihood(scores: Tensor, ratings: Tensor, likelihood: str, positive_weight: float = 1.0) -> Tensor:
    """log p(x_u | f_u) of each user, up to constants.

    - ``multinomial`` (eq. 2): sum_i x_ui log softmax(f_u)_i
    - ``gaussian`` (eq. 3): -sum_i c_ui / 2 (x_ui - f_ui)^2, c = `positive_weight` at observed items and 1 elsewhere
    - ``logistic`` (eq. 4): sum_i x_ui log sigmoid(f_ui) + (1 - x_ui) log(1 - sigmoid(f_ui))

    Args:
        scores: f, (B, I), of all items except padding.
        ratings: x, (B, I), 1 where observed and 0 elsewhere.

    Returns:
        (B,).
    """
    if likelihood == "multinomial":
        return (F.log_softmax(scores, dim=1) * ratings).sum(dim=1)
    if likelihood == "gaussian":
        confidence = 1 + (positive_weight - 1) * ratings
        return -0.5 * (confidence * (ratings - scores).square()).sum(dim=1)
    return -F.binary_cross_entropy_with_logits(scores, ratings, reduction="none").sum(dim=1)


class MultiVAEVariant(MultiVAE):
    """Mult-VAE: z = mu + noise_std * epsilon * sigma, and -log p(x_u | f(z)) + beta KL(q(z | x_u) || N(0, I)).

    Entry: a user. beta grows by 1 / ``total_anneal_steps`` a step up to ``anneal_cap``. With ``stop_annealing`` it
    stops growing when validation first falls, and then keeps its value at the best evaluation. The paper (section
    2.2.2) trains a second time instead. RecBole's noise is 0.01, the paper's is 1. Padding is not an item here.

    Settings beside RecBole's: ``likelihood``, ``positive_weight``, ``noise_std``, ``stop_annealing``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.likelihood: str = config["likelihood"]
        self.positive_weight: float = config["positive_weight"]
        self.noise_std: float = config["noise_std"]
        self.stop_annealing: bool = config["stop_annealing"]
        self.stopped_at: Optional[float] = None
        self.best_score: Optional[float] = None
        self.best_beta = 0.0
        if self.stop_annealing:
            self.other_parameter_name = ["best_beta"]  # RecBole's list of what a checkpoint keeps beside the weights

    def beta(self) -> float:
        """The weight of the KL term after the steps so far."""
        if self.stopped_at is not None:
            return self.stopped_at
        grown = self.update / self.total_anneal_steps if self.total_anneal_steps > 0 else self.anneal_cap
        return float(min(self.anneal_cap, grown))

    def validated(self, score: float) -> None:
        """Called by the trainer after each evaluation on validation; a larger score is better."""
        if not self.stop_annealing or self.stopped_at is not None:
            return
        if self.best_score is None or score >= self.best_score:
            self.best_score, self.best_beta = score, self.beta()
        else:
            self.stopped_at = self.best_beta

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """z (B, k): drawn in training, the mean otherwise."""
        return mu + self.noise_std * torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A mean over the batch's users: a scalar."""
        ratings = self.get_rating_matrix(interaction[self.USER_ID])
        self.update += 1
        scores, mu, logvar = self.forward(ratings)
        fit = log_likelihood(scores[:, 1:], ratings[:, 1:], self.likelihood, self.positive_weight)
        divergence = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(dim=1)
        return (self.beta() * divergence - fit).mean()


class MultiDAEVariant(MultiDAE):
    """Mult-DAE: -log p(x_u | f(x_u with dropout)), a mean over users.

    Settings beside RecBole's: ``likelihood``, ``positive_weight``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.likelihood: str = config["likelihood"]
        self.positive_weight: float = config["positive_weight"]

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A mean over the batch's users: a scalar."""
        ratings = self.get_rating_matrix(interaction[self.USER_ID])
        scores = self.forward(ratings)
        return -log_likelihood(scores[:, 1:], ratings[:, 1:], self.likelihood, self.positive_weight).mean()
