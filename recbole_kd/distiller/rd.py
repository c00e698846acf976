"""RD: ranking distillation (Tang & Wang, KDD'18; DE-RRD eq. 2).

    loss = -mean over users of sum_{k<=K} w_k log sigma(y_s(u, pi_k))

pi is the teacher's ranking of the user's unobserved items. w_k = a_k b_k with a_k ∝ exp(-k / T). Before epoch
``start_epoch`` b_k = 1, and from then on b_k = max(0, tanh(mu (r_k - k))). r_k is the student's rank of pi_k. It is
estimated from ``dynamic_samples`` random unobserved items: floor((I - 1) * share of them that score higher) + 1, where
I does not count padding. With ``renormalise`` a user's weights sum to 1, or to 0 if the student ranks every item high
enough. No gradient flows through the weights. Entry: a distinct user of the batch.

A user's random items are distinct and drawn again before each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.data.samplers import Complement
from recbole_kd.distiller.base.lists import ListDistiller, ListOptions
from recbole_kd.loss.ranking import discrepancy_weights, position_weights, weighted_positive_loss
from recbole_kd.options import option


@dataclass(frozen=True)
class RDOptions(ListOptions):
    """Options of the section ``rd``. Defaults: the published ones."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    interesting: int = option(10, "K, the teacher's best items taken as positives", minimum=1)
    emphasis: float = option(1.0, "T, in ranks; the larger, the slower weights fall with the rank", minimum=1e-3)
    mu: float = option(
        0.1, "how fast the weight grows with the gap between the student's and the teacher's rank", above=0
    )
    start_epoch: int = option(10, "epoch (0 is the first) from which the student's ranks count", minimum=0)
    dynamic_samples: int = option(100, "random items from which the student's ranks are estimated", minimum=1)
    renormalise: bool = option(True, "whether a user's weights sum to 1")


class RDDistiller(ListDistiller[RDOptions]):
    """Ranking distillation: the teacher's top items are positives, weighted by rank and by the student's gap."""

    name = "rd"
    list_lengths = ("interesting", "dynamic_samples")

    def build(self) -> None:
        self._ranked = self.ranked_items("interesting", self.options.interesting).to(self.data.device)
        self._unobserved = Complement(self.data.observed, self._ranked.cpu()[:, :0])
        self._sampled = torch.empty(0)
        self._dynamic = False

    def begin_epoch(self, epoch: int) -> None:
        """From ``start_epoch`` on, draws the items from which the student's ranks are estimated."""
        self._dynamic = epoch >= self.options.start_epoch
        if self._dynamic:
            drawn = self._unobserved.draw(self.options.dynamic_samples, self.generator)
            self._sampled = drawn.to(self.data.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's distinct users."""
        options, users = self.options, batch.distinct_users
        scores = self.student.scores(users, self._ranked.index_select(0, users).long())
        discrepancy = None
        if self._dynamic:
            with torch.no_grad():
                sampled = self.student.scores(users, self._sampled.index_select(0, users).long())
            discrepancy = discrepancy_weights(scores.detach(), sampled, self.data.items - 1, options.mu)
        weights = position_weights(
            options.interesting, options.emphasis, discrepancy, options.renormalise, like=scores.detach()
        )
        return weighted_positive_loss(scores, weights)
