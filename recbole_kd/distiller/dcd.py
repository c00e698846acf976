"""DCD: dual correction strategy for ranking distillation (Lee & Kim, CIKM'21).

Before each epoch the student ranks all unobserved items. Items are then drawn from the teacher's list of K' unobserved
items: for each user K under-ranked and L over-ranked ones, without replacement, p ∝ tanh(max(0, gap) / T). The gap is
how many ranks the student places an item too low (too high). The loss is RRD's (DE-RRD eq. 9). Under-ranked items, in
the teacher's order, are its interesting items; over-ranked items are its uninteresting ones. Entry: a distinct user of
the batch.

Ranks are exact: one more than the number of unobserved items with a higher score. So there are gaps even if the student
keeps the list in order but ranks it far down. A user with fewer than K (L) such items contributes those that exist. A
user without any under-ranked item is in no mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.data.ranks import ranks_of
from recbole_kd.data.samplers import discrepancy_log_weights, draw_without_replacement, items_at
from recbole_kd.distiller.base.lists import ListDistiller, ListOptions, catalogue_scores, require_drawable
from recbole_kd.loss.kernel.ranking import listwise_loss
from recbole_kd.options import option


@dataclass(frozen=True)
class DCDOptions(ListOptions):
    """Options of the section ``dcd``."""

    weight: float = option(1e-3, "weight of the loss", minimum=0)
    interesting: int = option(40, "K, under-ranked items of each user", minimum=1)
    uninteresting: int = option(40, "L, over-ranked items of each user", minimum=1)
    pool: int = option(100, "K', length of the teacher's ranked list", minimum=2)
    emphasis: float = option(
        10.0, "T, in ranks: gaps much larger than T have the same weight", minimum=1e-3, maximum=1e9
    )

    def check(self, section: str) -> None:
        require_drawable(section, self, "interesting", "uninteresting")


class DCDDistiller(ListDistiller[DCDOptions]):
    """Dual correction: items that the student ranks too low move above items that it ranks too high."""

    name = "dcd"

    def build(self) -> None:
        self._ranked = self.ranked_items("pool", self.options.pool)
        self._drawn = torch.empty(0)

    def begin_epoch(self, epoch: int) -> None:
        """Ranks all unobserved items with the present student, and draws every user's items."""
        options = self.options
        by_student = ranks_of(self._ranked, catalogue_scores(self.student, self.data), self.data.observed)
        gaps = by_student - torch.arange(1, self._ranked.shape[1] + 1)
        gaps[0] = 0  # padding
        drawn = [
            items_at(
                self._ranked,
                draw_without_replacement(
                    discrepancy_log_weights(towards, options.emphasis), len(gaps), samples, self.generator
                ),
            )
            for towards, samples in ((gaps, options.interesting), (-gaps, options.uninteresting))
        ]
        self._drawn = torch.cat(drawn, dim=1).to(self.data.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's distinct users."""
        users, k = batch.distinct_users, self.options.interesting
        items = self._drawn.index_select(0, users).long()
        # A missing item is scored as item 1 and masked, so padding is never scored.
        scores, exists = self.student.scores(users, items.clamp(min=1)), items > 0
        return listwise_loss(scores[:, :k], scores[:, k:], exists[:, :k], exists[:, k:])
