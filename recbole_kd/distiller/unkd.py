"""UnKD: unbiased knowledge distillation for recommendation (Chen et al., WSDM'23).

    loss = -mean over pairs of log sigma(y_s(i+) - y_s(i-))

Items are split into G groups of equal popularity mass. Before each epoch, pairs of two different unobserved items of a
group are drawn for each user and group. The first item has p ∝ exp(-rank / T), with its rank within the group; the
second is drawn likewise among the others. i+ is the one that ranks higher. Entry: a pair of a distinct user of the
batch.

``pairs`` is the number of a user's pairs over all groups; each group gets an equal share, as in the published code.
Ranks within a group count only its items in the teacher's top K' (``pool``). A user with fewer than two such items has
no pair of that group.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView
from recbole_kd.data.samplers import GroupPairs, popularity_groups
from recbole_kd.distiller.base.lists import ListDistiller, ListOptions
from recbole_kd.errors import UserError
from recbole_kd.loss.ranking import pairwise_loss
from recbole_kd.options import option

#: A warning is given if a larger share of users has no pair of a group.
_MANY = 0.1


@dataclass(frozen=True)
class UnKDOptions(ListOptions):
    """Options of the section ``unkd``. Defaults are the published ones, except the weight, which was 1."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    pairs: int = option(30, "pairs of each user, over all groups", minimum=1)
    groups: int = option(4, "G, groups of equal popularity mass", minimum=1)
    emphasis: float = option(
        20.0, "T, in ranks within a group; the larger, the farther down items are drawn", minimum=1e-3
    )
    pool: int = option(500, "K', length of the teacher's ranked list, over all groups", minimum=2)

    def check(self, section: str) -> None:
        if self.pairs < self.groups:
            raise UserError(
                f"{section}.pairs={self.pairs} is too few for one pair in each of {section}.groups={self.groups}; "
                f"raise {section}.pairs or lower {section}.groups."
            )


class UnKDDistiller(ListDistiller[UnKDOptions]):
    """Unbiased distillation: the teacher's order among items of similar popularity."""

    name = "unkd"

    def build(self) -> None:
        options = self.options
        ranked = self.ranked_items("pool", options.pool)
        group_of = popularity_groups(self.data.observed.popularity, options.groups)
        self._pairs = GroupPairs(ranked, group_of, options.groups)
        without = self._pairs.without_pairs()
        if float(without.max()) > _MANY:
            shares = ", ".join(f"{share:.0%}" for share in without.tolist())
            logging.getLogger().warning(
                f"{self.name}.pool={options.pool:,} is too short: no pair of a group (the most popular group first) "
                f"for {shares} of the users; a larger {self.name}.pool reaches more of them."
            )
        self._drawn = torch.empty(0)

    @classmethod
    def check_data(cls, options: UnKDOptions, data: DataView) -> None:
        """
        Raises:
            UserError: a user has fewer unobserved items than the pool, or a group has no two items.
        """
        super().check_data(options, data)
        groups, items = options.groups, data.items - 1
        if groups > items:
            raise UserError(f"{cls.name}.groups={groups:,} is more than the {items:,} items of the dataset; lower it.")
        sizes = torch.bincount(popularity_groups(data.observed.popularity, groups)[1:], minlength=groups)
        if int(sizes.min()) < 2:
            raise UserError(
                f"{cls.name}.groups={groups}: group {int(sizes.argmin()) + 1} of them holds "
                f"{int(sizes.min())} items, but a pair needs two; lower {cls.name}.groups."
            )

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's pairs anew."""
        drawn = self._pairs.draw(self.options.pairs, self.options.emphasis, self.generator)
        self._drawn = torch.cat(drawn, dim=1).to(self.data.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the pairs of the batch's distinct users."""
        users = batch.distinct_users
        items = self._drawn.index_select(0, users).long()
        # A missing pair is scored as item 1 and masked, so padding is never scored.
        better, worse = self.student.scores(users, items.clamp(min=1)).chunk(2, dim=1)
        return pairwise_loss(better, worse, items[:, : self.options.pairs] > 0)
