"""RD: ranking distillation (Tang & Wang, KDD'18; DE-RRD eq. 2).

    loss = -mean over users of sum_{k<=K} w_k log sigma(y_s(u, pi_k))

pi is the teacher's ranking of the user's unobserved items. w_k = a_k b_k with a_k ∝ exp(-k / T). Before epoch
``start_epoch`` b_k = 1, and from then on b_k = max(0, tanh(mu (r_k - k))). r_k is the student's rank of pi_k. It is
estimated from random unobserved items: floor((I - 1) * share of them that score higher) + 1, where I does not count
padding. With ``renormalise`` a user's weights sum to 1, or to 0 if the student ranks every item high enough. No
gradient flows through the weights. Entry: a distinct user of the batch.

A step draws ``dynamic_samples`` distinct items for all of its users, and each user leaves out the observed ones. So for
each user they are a uniform sample of the unobserved items, and their scores are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.data.samplers import draw_distinct
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
    dynamic_samples: int = option(100, "random items of a step from which the student's ranks are estimated", minimum=1)
    renormalise: bool = option(True, "whether a user's weights sum to 1")


class RDDistiller(ListDistiller[RDOptions]):
    """Ranking distillation: the teacher's top items are positives, weighted by rank and by the student's gap."""

    name = "rd"
    list_lengths = ("interesting", "dynamic_samples")

    def build(self) -> None:
        self._ranked = self.ranked_items("interesting", self.options.interesting).to(self.data.device)
        self._users_of_items = self.data.observed.transposed()
        self._dynamic = False

    def begin_epoch(self, epoch: int) -> None:
        """From ``start_epoch`` on, the student's ranks count."""
        self._dynamic = epoch >= self.options.start_epoch

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's distinct users."""
        options, users = self.options, batch.distinct_users
        scores = self.student.scores(users, self._ranked.index_select(0, users).long())
        discrepancy = None
        if self._dynamic:
            discrepancy = discrepancy_weights(
                scores.detach(), self._sampled_scores(users), self.data.items - 1, options.mu
            )
        weights = position_weights(
            options.interesting, options.emphasis, discrepancy, options.renormalise, like=scores.detach()
        )
        return weighted_positive_loss(scores, weights)

    @torch.no_grad()
    def _sampled_scores(self, users: Tensor) -> Tensor:
        """(n, S) scores of S random items for ascending users (n,); -inf where the user has observed the item."""
        catalogue = torch.tensor([self.data.items - 1], dtype=torch.int32)
        drawn = draw_distinct(catalogue, self.options.dynamic_samples, self.generator)
        items = (drawn[0].long() + 1).to(users.device)
        scores = self.student.scores(users, items.expand(len(users), -1))
        columns, owners = self._users_of_items.rows_and_items(items)
        rows = torch.searchsorted(users, owners).clamp_(max=len(users) - 1)
        had = torch.where(users[rows] == owners, -torch.inf, 0.0).to(scores)
        return scores.index_put((rows, columns), had, accumulate=True)
