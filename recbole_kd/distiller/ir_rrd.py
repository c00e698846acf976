"""IR-RRD: item-side ranking regularised distillation (Kang et al., Information Sciences 2021): RRD both ways.

    loss = weight * mean over users of eq. 9 of RRD + item_weight * mean over items of the same

On the item side users are ranked for each distinct item of the batch. Entry: an item. Its interesting and uninteresting
users are drawn as RRD draws items, from the users who have not observed it, again before each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Needs
from recbole_kd.distiller.base.lists import ListDistiller, RelaxedLists, RelaxedOptions
from recbole_kd.options import option


@dataclass(frozen=True)
class IRRRDOptions(RelaxedOptions):
    """Options of the section ``ir_rrd``. Numbers of items are numbers of users on the item side."""

    item_weight: float = option(1e-3, "weight of the loss on the item side", minimum=0)

    needs = Needs.of("scores", teacher=("ranks", "scores"))

    @property
    def weights(self) -> Mapping[str, float]:
        return {"user": self.weight, "item": self.item_weight}


class IRRRDDistiller(ListDistiller[IRRRDOptions]):
    """RRD's loss over the items of each user, and over the users of each item."""

    name = "ir_rrd"

    @classmethod
    def check_data(cls, options: IRRRDOptions, data: DataView) -> None:
        """
        Raises:
            UserError: a user has too few unobserved items, or too few users have not observed an item.
        """
        options.require_lists(cls.name, data.observed, "users", "items")
        options.require_lists(cls.name, data.observed.transposed(), "items", "users")

    def build(self) -> None:
        options, data = self.options, self.data
        self._items = RelaxedLists(options, data.observed, self.ranked_items("pool", options.pool), data.device)
        ranked_users = self.teacher.ranked_users(options.pool).cpu()
        self._users = RelaxedLists(options, data.observed.transposed(), ranked_users, data.device)

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's items and every item's users anew."""
        self._items.draw(self.generator)
        self._users.draw(self.generator)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``user`` and ``item``: the means over the batch's distinct users and over its distinct items."""
        users, items = batch.distinct_users, batch.distinct_items
        of_users = self.student.scores(users, self._items.of(users))
        ranked = self._users.of(items)
        pairs = self.student.scores(ranked.reshape(-1), items.repeat_interleave(ranked.shape[1]))
        return {"user": self._items.loss(of_users), "item": self._users.loss(pairs.view(ranked.shape))}
