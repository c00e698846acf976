"""Shared by response-based distillers: for every user a list of items, ranked and scored by either model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Optional, TypeVar, Union

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.contracts import (
    Batch,
    DataView,
    Distiller,
    DistillerOptions,
    Needs,
    Sequences,
    StudentView,
    TeacherView,
)
from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import build_rank_bank, require_listed, require_unobserved
from recbole_kd.data.samplers import Complement, draw_without_replacement, exponential_log_weights, items_at
from recbole_kd.errors import UserError
from recbole_kd.loss.kernel.ranking import listwise_loss
from recbole_kd.options import Options, option

__all__ = [
    "GuidedOptions",
    "ImportanceOptions",
    "ListDistiller",
    "ListOptions",
    "RelaxedLists",
    "RelaxedOptions",
    "SequenceListDistiller",
    "SequenceLists",
    "catalogue_scores",
    "importance",
    "list_scores",
    "require_drawable",
]

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ListOptions(DistillerOptions):
    """Base of the options of distillers that read the teacher's ranked lists and the student's scores of them."""

    needs = Needs.of("scores", teacher=("ranks",))


@dataclass(frozen=True)
class GuidedOptions(ListOptions):
    """Base of the options of distillers that compare both models' scores on one list; ``guide`` ranks it."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    guide: str = option("teacher", "the model whose best items are listed", choices=("teacher", "student"))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.of("scores", teacher=("ranks", "listed_scores") if self.guide == "teacher" else ("scores",))


@dataclass(frozen=True)
class ImportanceOptions(Options):
    """Weights of the items in the teacher's list, beside the confidence that a file gives (DLLM2Rec, RecSys'24)."""

    decay: Optional[float] = option(
        None, "T, in ranks: the teacher's k-th item counts exp(-k/T); ~: all alike", above=0
    )
    consistency: float = option(
        1.0, "factor of items that are also in the student's list of that length, ranked again each epoch", above=0
    )

    @property
    def unequal(self) -> bool:
        """Whether the options weight the items differently."""
        return self.decay is not None or self.consistency != 1

    def check(self, section: str) -> None:
        """
        Raises:
            UserError: the list is the student's own.
        """
        super().check(section)
        if self.unequal and getattr(self, "guide", "teacher") == "student":
            name = "consistency" if self.decay is None else "decay"
            raise UserError(
                f"{section}.{name} weights the teacher's items, but {section}.guide=student lists the student's items; "
                "leave out one of them."
            )


ListOptionsT = TypeVar("ListOptionsT", bound=ListOptions)


class ListDistiller(Distiller[ListOptionsT]):
    """Base of distillers that read ranked lists of unobserved items and the student's scores of these items.

    A file may lack the lists of some users. Such users are in no mean; only the base loss trains them.
    """

    #: (U,) bool: the users for whom the teacher has a list; None if every training user has one.
    listed: Optional[Tensor] = None
    #: (U, k) the teacher's confidence in each of its :meth:`ranked_items`, for `importance`; None: all equal.
    confidence: Optional[Tensor] = None

    #: Options whose value is a number of unobserved items that every user must have.
    list_lengths: ClassVar[tuple[str, ...]] = ("pool",)

    @classmethod
    def check_data(cls, options: ListOptionsT, data: DataView) -> None:
        """
        Raises:
            UserError: a user of the training split has fewer unobserved items than one of the `list_lengths`.
        """
        for name in cls.list_lengths:
            require_unobserved(data.observed, f"{cls.name}.{name}", getattr(options, name))

    def ranked_items(self, setting: str, k: int) -> Tensor:
        """The teacher's k best unobserved items of every user, best first: (U, k) int32 on the CPU.

        Args:
            setting: the option that asks for k, such as ``pool``.

        Raises:
            UserError: the teacher ranks fewer items for a user of the training split.
        """
        ranked = self.teacher.ranked_items(k).cpu()
        untrained = self.data.observed.counts == 0
        if bool((ranked[untrained] > 0).any()):  # they are in no batch, and in no mean over all lists
            ranked = ranked.masked_fill(untrained.unsqueeze(1), 0)
        require_listed(self.data.observed, f"{self.name}.{setting}", ranked, self.teacher.name)
        listed = ranked[:, 0] > 0
        if bool((self.data.observed.counts[~listed] > 0).any()):
            self.listed = listed.to(self.data.device)
        if isinstance(self.options, ImportanceOptions):
            self.confidence = self.teacher.listed_weights(k)
        return ranked

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, each multiplied by its weight, over the users who have a list."""
        if self.listed is not None:
            kept = self.listed[batch.users]
            batch = Batch(batch.users[kept], batch.items[kept])
            if not len(batch.users):
                return {}
        return super().forward(batch)

    def importance(self, ranked: Tensor) -> Optional[Tensor]:
        """:func:`importance` of the teacher's lists, given the present student's lists."""
        assert isinstance(self.options, ImportanceOptions)
        return importance(
            self.options, ranked, self.confidence, lambda: student_ranking(self.student, self.data, ranked.shape[1])
        )

    def ranked_by(self, guide: str, setting: str, k: int) -> Tensor:
        """:meth:`ranked_items` of the guide: ``teacher``, or the present ``student``."""
        if guide == "teacher":
            return self.ranked_items(setting, k)
        return student_ranking(self.student, self.data, k)


class SequenceLists(NamedTuple):
    """Lists of the next items after n of a batch's sequences, best first.

    Attributes:
        rows: (n,) which sequences of the batch have a list; None: all.
        items: (n, k)
        confidence: (n, k) the teacher's confidence in each item; None: all equal.
        scores: (n, k) the teacher's scores; None if it has none.
    """

    rows: Optional[Tensor]
    items: Tensor
    confidence: Optional[Tensor]
    scores: Optional[Tensor]


class SequenceListDistiller(Distiller[ListOptionsT]):
    """The counterpart for next-item prediction: lists of next items, from a sequential teacher or a file.

    A file may lack the lists of some sequences; for these only the base loss trains the student.
    """

    #: The option whose value is the length of each sequence's list.
    list_length: ClassVar[str] = "pool"

    @classmethod
    def check_data(cls, options: ListOptionsT, data: DataView) -> None:
        """
        Raises:
            UserError: `list_length` is more than the items that can follow every training sequence.
        """
        length, seen = getattr(options, cls.list_length), cls.most_seen(data)
        left = data.items - 1 - seen
        if length is not None and length > left:
            without = f" that are not in the longest training sequence, of {seen:,}" if seen else ""
            raise UserError(
                f"{cls.name}.{cls.list_length}={length:,} is more than the {left:,} items{without}; lower it."
            )

    @staticmethod
    def most_seen(data: DataView) -> int:
        """The largest number of items that a list leaves out because they are in its sequence."""
        return 0 if data.repeatable else max(0, int(data.observed.counts.max()) - 1)

    def build(self) -> None:
        if "sequences" not in self.teacher.capabilities:  # a file, whose lists may be too short
            length = getattr(self.options, self.list_length)
            assert length is not None, "a file has no scores of all items"
            nothing = torch.empty(0, dtype=torch.long), torch.empty(0, 1, dtype=torch.long)
            self.teacher.ranked_after(nothing[0], Sequences(nothing[1], nothing[0]), length)

    def listed(self, batch: Batch, k: int) -> SequenceLists:
        """The teacher's k best items after the batch's sequences."""
        assert batch.sequences is not None, "the student is a sequential model"
        if "sequences" in self.teacher.capabilities:
            scores = self.teacher.sequence_scores(batch.sequences)
            items = self.best(scores, batch.sequences, k)
            return SequenceLists(None, items, None, scores.gather(1, items))
        ranked, confidence = self.teacher.ranked_after(batch.users, batch.sequences, k)
        rows = ranked[:, 0].nonzero().squeeze(1)
        found = None
        if "sequence_listed_scores" in self.teacher.capabilities:
            found = self.teacher.listed_scores_after(batch.users, batch.sequences, k)[rows].to(self.data.device)
        confidence = None if confidence is None else confidence[rows]
        return SequenceLists(rows, ranked[rows], confidence, found)

    def best(self, scores: Tensor, sequences: Sequences, k: int) -> Tensor:
        """The k items with the largest scores (n, I) after n sequences, best first: (n, k).

        Padding is left out. The sequence's own items are left out too if no user has an item twice.
        """
        if not self.data.repeatable:
            scores = scores.scatter(1, sequences.items, -torch.inf)
        return scores[:, 1:].topk(k, dim=1).indices + 1

    def importance(self, batch: Batch, lists: SequenceLists) -> Optional[Tensor]:
        """:func:`importance` of the teacher's lists, given the present student's lists."""
        assert isinstance(self.options, ImportanceOptions)
        if lists.confidence is None and not self.options.unequal:
            return None
        assert batch.sequences is not None, "the student is a sequential model"
        sequences, k = batch.sequences, lists.items.shape[1]

        def own() -> Tensor:
            best = self.best(self.student.sequence_scores(sequences).detach(), sequences, k).cpu()
            return best if lists.rows is None else best[lists.rows]

        return importance(self.options, lists.items.cpu(), lists.confidence, own)

    def student_scores(self, batch: Batch, rows: Optional[Tensor], items: Tensor) -> Tensor:
        """y_s of items (n, k) after the n sequences of the batch at `rows`; None: all."""
        assert batch.sequences is not None, "the student is a sequential model"
        if rows is None or len(rows) == len(batch.users):
            return self.student.sequence_scores(batch.sequences, items)
        # All sequences of the batch are scored: the pass is shared with the base loss.
        rows = rows.to(items.device)
        every = items.new_ones(len(batch.users), items.shape[1]).index_copy_(0, rows, items)
        return self.student.sequence_scores(batch.sequences, every).index_select(0, rows)


def importance(
    options: ImportanceOptions, ranked: Tensor, confidence: Optional[Tensor], own: Callable[[], Tensor]
) -> Optional[Tensor]:
    """Weight of each listed item: the product of confidence, decay and consistency, divided by its mean.

    The mean is over all listed items of all rows, so the scale of the loss does not change.

    Args:
        ranked: (rows, k) the teacher's lists, 0 where there is no item.
        confidence: (rows, k) at least 0; None: 1.
        own: returns the student's lists of the same rows and length.

    Returns:
        (rows, k) float32 on the CPU, 0 where there is no item; None if all weights are equal.
    """
    if confidence is None and not options.unequal:
        return None
    listed = ranked > 0
    weights = listed.float() if confidence is None else confidence.cpu() * listed
    if options.decay is not None:
        weights = weights * torch.exp(-torch.arange(1, ranked.shape[1] + 1) / options.decay)
    if options.consistency != 1:
        held = own().sort(dim=1).values
        place = torch.searchsorted(held, ranked).clamp_(max=held.shape[1] - 1)
        weights = torch.where(held.gather(1, place) == ranked, weights * options.consistency, weights)
    mean = weights.sum(dtype=torch.float64) / listed.sum().clamp(min=1)
    return weights / mean.clamp(min=torch.finfo(torch.float32).tiny).float()


def student_ranking(student: StudentView, data: DataView, k: int) -> Tensor:
    """The present student's k best unobserved items of every user, best first: (U, k) int32 on the CPU."""
    return build_rank_bank(catalogue_scores(student, data), data.observed, k)


def catalogue_scores(student: StudentView, data: DataView) -> Callable[[Tensor], Tensor]:
    """A function from users (n,) to the present student's scores of all items, (n, I)."""

    def score_block(users: Tensor) -> Tensor:
        catalogue = torch.arange(data.items, device=data.device).expand(len(users), -1)
        return student.scores(users.to(data.device), catalogue)

    return score_block


@torch.no_grad()
def list_scores(view: Union[StudentView, TeacherView], lists: Tensor, data: DataView) -> Tensor:
    """Scores of every user's list, without gradient.

    Args:
        view: the model that scores.
        lists: (U, k) items, 0 where there is none.

    Returns:
        (U, k) on the data's device; 0 for user 0. Entries at item 0 are undefined.
    """
    rows = max(1, _PAIRS_AT_ONCE // lists.shape[1])
    users = torch.arange(1, data.users, device=data.device)
    parts = zip(users.split(rows), lists[1:].split(rows))
    scores = torch.cat([view.scores(ids, items.to(data.device).long().clamp(min=1)) for ids, items in parts])
    return torch.cat([scores.new_zeros(1, lists.shape[1]), scores])


def require_drawable(section: str, options: Options, *names: str) -> None:
    """Checks that each of the options `names` asks for at most ``pool`` items.

    Raises:
        UserError: one asks for more.
    """
    pool: int = getattr(options, "pool")  # noqa: B009
    for name in names:
        count = getattr(options, name)
        if count > pool:
            raise UserError(
                f"{section}.{name}={count} items cannot be drawn from a list of {section}.pool={pool}; "
                f"lower {section}.{name} or raise {section}.pool."
            )


@dataclass(frozen=True)
class RelaxedOptions(ListOptions):
    """Options of RRD's lists and of the likelihood of their order."""

    weight: float = option(1e-3, "weight of the loss", minimum=0)
    interesting: int = option(40, "K, interesting items of each user", minimum=1)
    uninteresting: int = option(
        40, "L, uninteresting items of each user; 0: the order of interesting ones alone", minimum=0
    )
    pool: int = option(100, "K', length of the ranked list that interesting items are drawn from", minimum=1)
    emphasis: float = option(10.0, "T, in ranks; the larger, the farther down the list items are drawn", minimum=1e-3)
    sampling: str = option(
        "exponential", "how interesting items are chosen: drawn, or the plain top K", choices=("top", "exponential")
    )
    temperature: float = option(
        1.0, "tau, divides the student's scores; for cosines, as in SimpleX, about 0.1", above=0
    )

    @property
    def below(self) -> int:
        """L, entries that are drawn below the pool."""
        return self.uninteresting

    @property
    def in_order(self) -> bool:
        """Whether the entries below the pool have an order too."""
        return False

    def check(self, section: str) -> None:
        require_drawable(section, self, "interesting")

    def require_lists(self, section: str, observed: Observed, rows: str, entries: str) -> None:
        """Checks that every row has enough unobserved entries for the pool and the uninteresting ones below it.

        Args:
            rows, entries: their names in the message, such as "users" and "items".

        Raises:
            UserError: a row has too few.
        """
        pool, roles = f"{section}.pool", (rows, entries)
        require_unobserved(observed, pool, self.pool, roles=roles)
        require_unobserved(observed, f"{section}.uninteresting", self.below, self.pool, pool, roles)


class RelaxedLists:
    """RRD's interesting and uninteresting entries of every row: a user's items, an item's users, a sequence's items."""

    def __init__(self, options: RelaxedOptions, observed: Observed, ranked: Tensor, device: torch.device) -> None:
        """
        Args:
            observed: the training split, with one row for each list.
            ranked: (rows, K') int32, the teacher's best unobserved entries.
        """
        self._options = options
        self._ranked = ranked
        self._complement = Complement(observed, ranked)
        self._device = device
        self._drawn = torch.empty(0)
        self._drawn_weights: Optional[Tensor] = None

    def draw(
        self,
        generator: torch.Generator,
        weights: Optional[Tensor] = None,
        teacher_scores: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> None:
        """Draws the entries of every row anew.

        Args:
            generator: draws them.
            weights: (rows, K') those of the ranked entries.
            teacher_scores: entries (rows, L) -> the teacher's scores of them, by which they are put in order; needed if
                the options ask for an order below the pool.
        """
        options, k = self._options, self._options.interesting
        self._drawn = torch.empty(0)  # the last epoch's are not held beside the new ones
        drawn = torch.empty(len(self._ranked), k + options.below, dtype=self._ranked.dtype)
        if options.sampling == "exponential":
            chances = exponential_log_weights(options.pool, options.emphasis)
            chosen = draw_without_replacement(chances, len(self._ranked), k, generator)
            drawn[:, :k] = items_at(self._ranked, chosen)
        else:
            chosen = torch.arange(k).expand(len(self._ranked), -1)
            drawn[:, :k] = self._ranked[:, :k]
        if options.below:
            drawn[:, k:] = self._complement.draw(options.below, generator)
            if options.in_order:
                assert teacher_scores is not None, "an order needs the teacher's scores"
                order = teacher_scores(drawn[:, k:]).argsort(dim=1, descending=True, stable=True)
                drawn[:, k:] = drawn[:, k:].gather(1, order.to(drawn.device))
        self._drawn = drawn.to(self._device)
        self._drawn_weights = None if weights is None else items_at(weights, chosen).to(self._device)

    def of(self, rows: Tensor) -> Tensor:
        """(n, K + L) ids, the interesting ones first, best rank first."""
        return self._drawn.index_select(0, rows).long()

    def loss(self, scores: Tensor, rows: Optional[Tensor] = None) -> Tensor:
        """RRD's eq. 9, the mean over rows, from the student's scores (n, K + L) of the entries of :meth:`of`.

        Args:
            rows: (n,) the rows; required if their entries were drawn with weights.
        """
        k = self._options.interesting
        if self._options.temperature != 1:
            scores = scores / self._options.temperature
        weights = None
        if self._drawn_weights is not None and rows is not None:
            weights = self._drawn_weights.index_select(0, rows).to(scores)
        if self._options.in_order:
            weights = None if weights is None else functional.pad(weights, (0, self._options.below), value=1.0)
            k = scores.shape[1]
        return listwise_loss(scores[:, :k], scores[:, k:], weights=weights)
