"""UnKD: unbiased knowledge distillation for recommendation (Chen et al., WSDM'23).

    loss = -mean over pairs of log sigma(y_s(i+) - y_s(i-))

Items are split into G groups of equal popularity mass. For each user and group, pairs of different unobserved items of
that group are drawn before each epoch, the better-ranked one as i+: the first item with p ∝ exp(-rank / T), the second
likewise among the others, rank being the rank within the group. Entry: a pair of a distinct user of the batch.

``pairs`` counts a user's pairs over all groups, which share them evenly, as equal popularity mass makes them do in the
published code. Ranks within a group are those of its items in the teacher's top K' (``pool``); a user with fewer than
two of them has no pair of that group.
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

#: Share of users without a pair of a group above which it is said.
_MANY = 0.1


@dataclass(frozen=True)
class UnKDOptions(ListOptions):
    """Options of the section ``unkd``. Defaults: the published ones, but for the weight, which was 1."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    pairs: int = option(30, "pairs of each user, over all groups", minimum=1)
    groups: int = option(4, "G, groups of equal popularity mass", minimum=1)
    emphasis: float = option(20.0, "T, in ranks within a group: how far down items are drawn", minimum=1e-3)
    pool: int = option(500, "K', length of the teacher's ranked list, over all groups", minimum=2)

    def check(self, section: str) -> None:
        if self.pairs < self.groups:
            raise UserError(
                f"{section}.pairs={self.pairs} leaves some of the {section}.groups={self.groups} without a pair; "
                "raise the one or lower the other."
            )


class UnKDDistiller(ListDistiller[UnKDOptions]):
    """Unbiased distillation: the teacher's order among items of like popularity."""

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
                f"{self.name}.pool={options.pool:,} is too short for pairs of every group (the most popular first) for "
                f"{shares} of the users; a larger {self.name}.pool reaches more of them."
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
            raise UserError(f"{cls.name}.groups={groups:,} is more than the {items:,} items there are; lower it.")
        sizes = torch.bincount(popularity_groups(data.observed.popularity, groups)[1:], minlength=groups)
        if int(sizes.min()) < 2:
            raise UserError(
                f"{cls.name}.groups={groups}: group {int(sizes.argmin()) + 1} of them holds "
                f"{int(sizes.min())} items, and a pair takes two; lower {cls.name}.groups."
            )

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's pairs anew."""
        drawn = self._pairs.draw(self.options.pairs, self.options.emphasis, self.generator)
        self._drawn = torch.cat(drawn, dim=1).to(self.data.device)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the pairs of the batch's distinct users."""
        users = batch.distinct_users
        items = self._drawn[users].long()
        # A missing pair is scored as if of item 1 and left out: padding is never looked at.
        better, worse = self.student.scores(users, items.clamp(min=1)).chunk(2, dim=1)
        return pairwise_loss(better, worse, items[:, : self.options.pairs] > 0)
