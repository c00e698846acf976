"""RRD: relaxed ranking distillation (Kang et al., DE-RRD, CIKM'20): interesting items in order, then others.

For each user RRD draws K interesting items from the teacher's top K' unobserved items, p_k ∝ exp(-k / T), without
replacement, and keeps them in rank order. It draws L uninteresting items uniformly, without replacement, from the
unobserved items below the top K'. The loss is eq. 9, the likelihood that the interesting items come first, in order:

    -log p(pi_1:K | r) = -sum_{k<=K} [r_k - log(sum_{m=k..K} exp r_m + sum_l exp r_l)]

Entry: a distinct user of the batch. All samples are drawn again before each epoch.

For next-item prediction each sequence has a list: the K' items that the teacher ranks highest after it. The
uninteresting items are drawn from all items below. Items of the sequence are left out of both if ``repeatable`` is
false. Both are found and drawn for each batch. Entry: a sequence of the batch.

In the paper r are the scores. ``temperature`` tau makes them r / tau, for a student with bounded scores: with cosines,
the likelihoods of two items could differ at most by a factor of exp(2).

``decay``, ``consistency`` and a file's confidence are factors w_k in the sum over k (DLLM2Rec, RecSys'24).

Ablations of table 4: ``order: interesting`` keeps the order of the interesting items alone, without items below them.
``order: full`` does not relax: the L items have the teacher's order too, so the loss is the likelihood of one ranking
of K + L items. The paper does not say which items its full ranking holds; these are the same items as in eq. 9.

Published code differs. It clamps scores at 80 before exp, which log-sum-exp makes unnecessary. It sums both this loss
and the base loss over a batch, with a weight of 1e-3; here both are means, so the weight is about the same. The authors
later found that the plain top K, without sampling, does considerably better (note on WWW'23 in their repository):
``sampling: top``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.contracts import Batch, DataView, Needs, Part
from recbole_kd.data.observed import Observed
from recbole_kd.distiller.base.lists import (
    ImportanceOptions,
    ListDistiller,
    RelaxedLists,
    RelaxedOptions,
    SequenceListDistiller,
    SequenceLists,
    list_scores,
)
from recbole_kd.options import option


@dataclass(frozen=True)
class RRDOptions(RelaxedOptions, ImportanceOptions):
    """Options of the section ``rrd``."""

    order: str = option(
        "relaxed",
        "what has an order: relaxed: interesting items, which come before the others; interesting: these alone; full: "
        "all drawn items",
        choices=("relaxed", "interesting", "full"),
    )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.of("scores", teacher=("ranks", "scores") if self.in_order else ("ranks",))

    @property
    def sequence_needs(self) -> Needs:
        return Needs.of("sequences", otherwise="" if self.in_order else "sequence_ranks")

    @property
    def below(self) -> int:
        """L, items that are drawn below the pool."""
        return 0 if self.order == "interesting" else self.uninteresting

    @property
    def in_order(self) -> bool:
        """Whether these have an order too."""
        return self.order == "full"


class RRDDistiller(ListDistiller[RRDOptions]):
    """The order of a user's interesting items, all of them before the uninteresting ones."""

    name = "rrd"
    shares = True

    @classmethod
    def check_data(cls, options: RRDOptions, data: DataView) -> None:
        """
        Raises:
            UserError: a user has too few unobserved items for the pool and the uninteresting items below it.
        """
        options.require_lists(cls.name, data.observed, "users", "items")

    def build(self) -> None:
        self._ranked = self.ranked_items("pool", self.options.pool)
        self._lists = RelaxedLists(self.options, self.data.observed, self._ranked, self.data.device)

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's items anew."""
        weights = self.importance(self._ranked)
        self._lists.draw(self.generator, weights, lambda items: list_scores(self.teacher, items, self.data))

    def loss(self, batch: Batch) -> Union[Part, dict[str, Tensor]]:
        """Eq. 9: the mean over this process's part of the batch's distinct users."""
        users, fraction = self.data.share.of(batch.distinct_users)
        if not len(users):
            return {}
        return Part(self._lists.loss(self.student.scores(users, self._lists.of(users)), users), fraction)


class RRDSequenceDistiller(SequenceListDistiller[RRDOptions]):
    """RRD for next-item prediction: the items follow a sequence."""

    name = "rrd"

    @classmethod
    def check_data(cls, options: RRDOptions, data: DataView) -> None:
        """
        Raises:
            UserError: there are too few items for the pool and the uninteresting items below it.
        """
        seen = cls.most_seen(data)
        longest = Observed(torch.ones(seen, dtype=torch.long), torch.arange(1, seen + 1), 2, data.items)
        options.require_lists(cls.name, longest, "sequences", "items")

    def loss(self, batch: Batch) -> Union[Tensor, dict[str, Tensor]]:
        """Eq. 9: the mean over the batch's sequences; sequences without a list in a file are left out."""
        listed = self.listed(batch, self.options.pool)
        if not len(listed.items):
            return {}
        # Row 0 is empty like the padding user's; row n is the n-th sequence with a list.
        lists = self._lists_of(batch, listed)
        own = torch.arange(1, len(listed.items) + 1, device=self.data.device)
        weights = self.importance(batch, listed)
        lists.draw(
            self.generator,
            None if weights is None else functional.pad(weights, (0, 0, 1, 0)),
            lambda items: self._teacher_scores(batch, items),
        )
        return lists.loss(self.student_scores(batch, listed.rows, lists.of(own)), own)

    def _teacher_scores(self, batch: Batch, items: Tensor) -> Tensor:
        """y_t of items (n + 1, L) after the n sequences of the batch; row 0 is no sequence and has zeros."""
        assert batch.sequences is not None, "the student is a sequential model"
        scores = self.teacher.sequence_scores(batch.sequences).gather(1, items[1:].to(self.data.device).long())
        return functional.pad(scores, (0, 0, 1, 0))

    def _lists_of(self, batch: Batch, listed: SequenceLists) -> RelaxedLists:
        """RRD's lists of the batch's sequences, from the best items after each."""
        assert batch.sequences is not None, "the student is a sequential model"
        had = batch.sequences.items[:, : 0 if self.data.repeatable else None]
        if listed.rows is not None:  # lists of a file are on the CPU
            had = had.cpu()[listed.rows]
        ranked, had = torch.cat([listed.items, had], dim=1).cpu().split([listed.items.shape[1], had.shape[1]], dim=1)
        ranked = functional.pad(ranked, (0, 0, 1, 0)).int()
        rows, places = (had > 0).nonzero(as_tuple=True)
        seen = Observed(rows + 1, had[rows, places], len(ranked), self.data.items)
        return RelaxedLists(self.options, seen, ranked, self.data.device)
