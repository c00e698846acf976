"""RRD: relaxed ranking distillation (Kang et al., DE-RRD, CIKM'20), and IR-RRD (Kang et al.,
Information Sciences 2021).

RRD draws for each user K interesting items from the top K' of the teacher's unobserved items, p_k ∝ exp(-k / T) without
replacement, in rank order, and L uninteresting ones uniformly, without replacement, from the unobserved items below the
top K'. The loss is eq. 9, the likelihood of the interesting items' order before all uninteresting ones:

    -log p(pi_1:K | r) = -sum_{k<=K} [r_k - log(sum_{m=k..K} exp r_m + sum_l exp r_l)]

Entry: a distinct user of the batch. All samples are drawn anew before each epoch.

IR-RRD adds the same loss on the item side: users ranked for each distinct item of the batch (entry: an item),
interesting and uninteresting ones drawn in the same way from the users who have not observed it.

For next-item prediction, RRD's list is the teacher's of a sequence: the K' items that it ranks highest after it, those
that are in it not left out, and for the uninteresting ones all below; both are found and drawn for each batch. Entry: a
sequence of the batch.

The paper's r are the scores themselves; ``temperature`` tau makes them r / tau, for a student whose scores are bounded:
of cosines the likelihood can tell no item from another by more than a factor of exp(2).

Where published code differs: it clamps scores at 80 before exp, which log-sum-exp makes unnecessary; it sums over the
users of a batch beside a base loss that is summed too, with a weight of 1e-3; the mean here, beside a mean, takes about
the same weight. The authors found later that the plain top K, with no sampling, does considerably better (their
repository's note on WWW'23): ``sampling: top``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Sequences, StudentView, TeacherView
from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import require_unobserved
from recbole_kd.data.samplers import Complement, draw_without_replacement, exponential_log_weights, items_at
from recbole_kd.distiller.base.lists import ListDistiller, require_drawable
from recbole_kd.loss.kernel.ranking import listwise_loss
from recbole_kd.options import Options, option


@dataclass(frozen=True)
class RRDOptions(Options):
    """Options of the section ``rrd``."""

    weight: float = option(1e-3, "weight of the loss", minimum=0)
    interesting: int = option(40, "K, interesting items of each user", minimum=1)
    uninteresting: int = option(40, "L, uninteresting items of each user", minimum=1)
    pool: int = option(100, "K', length of the ranked list that interesting items are drawn from", minimum=1)
    emphasis: float = option(10.0, "T, in ranks: how far down the list interesting items are drawn", minimum=1e-3)
    sampling: str = option(
        "exponential", "how interesting items are chosen: drawn, or the plain top K", choices=("top", "exponential")
    )
    temperature: float = option(
        1.0, "tau, divides the student's scores; 0.1, say, where they are cosines, as SimpleX's", above=0
    )

    def check(self, section: str) -> None:
        require_drawable(section, self, "interesting")


class RRDDistiller(ListDistiller):
    """RRD: relaxed ranking distillation (Kang et al., DE-RRD, CIKM'20): interesting items in order, then others."""

    name = "rrd"
    options_class = RRDOptions
    shares = True
    options: RRDOptions

    def __init__(self, options: RRDOptions, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__(options, student, teacher, data)
        if not data.sequential:
            self._lists = _Lists(options, data.observed, self.ranked_items("pool", options.pool), data.device)

    @classmethod
    def check_data(cls, options: Options, data: DataView) -> None:
        """
        Raises:
            UserError: a user has too few unobserved items for the pool and the uninteresting items below it.
        """
        assert isinstance(options, RRDOptions)
        if data.sequential:
            _require_lists(options, cls.name, _nothing_observed(1, data.items), ("sequences", "items"))
        else:
            _require_lists(options, cls.name, data.observed, ("users", "items"))

    @classmethod
    def sequential_needs(cls, options: Options) -> Optional[frozenset[str]]:
        return frozenset({"sequences"})

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's items anew."""
        if not self.data.sequential:
            self._lists.draw(self.generator)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"rrd": the weighted mean over the batch's distinct users, or over its sequences}."""
        if batch.sequences is not None:
            lists = self._lists_of(batch.sequences)
            rows = torch.arange(1, len(batch.users) + 1, device=self.data.device)
            scores = self.student.sequence_scores(batch.sequences, lists.of(rows))
            return {self.name: self.options.weight * lists.loss(scores)}
        users, fraction = self.data.share.of(batch.distinct_users)
        if not len(users):
            return {}
        scores = self.student.scores(users, self._lists.of(users))
        return {self.name: fraction * self.options.weight * self._lists.loss(scores)}

    def _lists_of(self, sequences: Sequences) -> _Lists:
        """Lists of a batch's sequences, drawn now: row 0 is empty, as a padding user's, and row n is sequence n - 1."""
        ranked = self.teacher.sequence_scores(sequences)[:, 1:].topk(self.options.pool, dim=1).indices + 1
        ranked = torch.nn.functional.pad(ranked, (0, 0, 1, 0)).int().cpu()
        lists = _Lists(self.options, _nothing_observed(len(ranked) - 1, self.data.items), ranked, self.data.device)
        lists.draw(self.generator)
        return lists


@dataclass(frozen=True)
class IRRRDOptions(RRDOptions):
    """Options of the section ``ir_rrd``; the numbers of items serve as numbers of users on the item side."""

    item_weight: float = option(1e-3, "weight of the loss on the item side", minimum=0)


class IRRRDDistiller(ListDistiller):
    """IR-RRD: item-side ranking regularised distillation (Kang et al., Information Sciences 2021): RRD both ways."""

    name = "ir_rrd"
    options_class = IRRRDOptions
    options: IRRRDOptions

    def __init__(self, options: IRRRDOptions, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__(options, student, teacher, data)
        self._items = _Lists(options, data.observed, self.ranked_items("pool", options.pool), data.device)
        ranked_users = teacher.ranked_users(options.pool).cpu()
        self._users = _Lists(options, data.observed.transposed(), ranked_users, data.device)

    @classmethod
    def check_data(cls, options: Options, data: DataView) -> None:
        """
        Raises:
            UserError: a user has too few unobserved items, or an item too few users who have not observed it.
        """
        assert isinstance(options, IRRRDOptions)
        _require_lists(options, cls.name, data.observed, ("users", "items"))
        _require_lists(options, cls.name, data.observed.transposed(), ("items", "users"))

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"ranks", "scores"})

    @classmethod
    def is_off(cls, options: Options) -> bool:
        assert isinstance(options, IRRRDOptions)
        return not (options.weight or options.item_weight)

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's items and every item's users anew."""
        self._items.draw(self.generator)
        self._users.draw(self.generator)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"user", "item"}: the weighted means over the batch's distinct users and over its distinct items."""
        users, items = batch.distinct_users, batch.distinct_items
        of_users = self.student.scores(users, self._items.of(users))
        ranked = self._users.of(items)
        pairs = self.student.scores(ranked.reshape(-1), items.repeat_interleave(ranked.shape[1]))
        return {
            "user": self.options.weight * self._items.loss(of_users),
            "item": self.options.item_weight * self._users.loss(pairs.view(ranked.shape)),
        }


def _nothing_observed(rows: int, items: int) -> Observed:
    """As many rows, padding not counted, for which no item is left out."""
    none = torch.empty(0, dtype=torch.long)
    return Observed(none, none, rows + 1, items)


def _require_lists(options: RRDOptions, section: str, observed: Observed, roles: tuple[str, str]) -> None:
    pool = f"{section}.pool"
    require_unobserved(observed, pool, options.pool, roles=roles)
    require_unobserved(observed, f"{section}.uninteresting", options.uninteresting, options.pool, pool, roles)


class _Lists:
    """One side's interesting and uninteresting entries: items of users, or users of items."""

    def __init__(self, options: RRDOptions, observed: Observed, ranked: Tensor, device: torch.device) -> None:
        """
        Args:
            observed: the training split, rows being what has a list.
            ranked: (rows, K') int32, the teacher's best unobserved entries.
        """
        self._options = options
        self._ranked = ranked
        self._complement = Complement(observed, ranked)
        self._device = device
        self._drawn = torch.empty(0)

    def draw(self, generator: torch.Generator) -> None:
        options = self._options
        interesting = self._ranked[:, : options.interesting]
        if options.sampling == "exponential":
            weights = exponential_log_weights(options.pool, options.emphasis)
            chosen = draw_without_replacement(weights, len(self._ranked), options.interesting, generator)
            interesting = items_at(self._ranked, chosen)
        uninteresting = self._complement.draw(options.uninteresting, generator)
        self._drawn = torch.cat([interesting, uninteresting], dim=1).to(self._device)

    def of(self, rows: Tensor) -> Tensor:
        """(n, K + L) ids, the interesting ones first, best rank first."""
        return self._drawn[rows].long()

    def loss(self, scores: Tensor) -> Tensor:
        """Mean over rows for the student's scores (n, K + L) of what :meth:`of` gave."""
        k = self._options.interesting
        if self._options.temperature != 1:
            scores = scores / self._options.temperature
        return listwise_loss(scores[:, :k], scores[:, k:])
