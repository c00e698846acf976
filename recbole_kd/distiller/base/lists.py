"""What response-based distillers share: lists of items for every user, as either model ranks and scores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Optional, TypeVar, Union

import torch
from torch import Tensor

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
    """Base of those that compare both models' scores of one list; ``guide`` says which model ranks it."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    guide: str = option("teacher", "whose best items", choices=("teacher", "student"))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs.of("scores", teacher=("ranks", "listed_scores") if self.guide == "teacher" else ("scores",))


@dataclass(frozen=True)
class ImportanceOptions(Options):
    """How much each item of the teacher's list counts, beside the confidence of a file (DLLM2Rec, RecSys'24)."""

    decay: Optional[float] = option(
        None, "T, in ranks: the teacher's k-th item counts exp(-k/T); ~: all alike", above=0
    )
    consistency: float = option(
        1.0, "factor of those that the student's own list of that length holds too, found anew each epoch", above=0
    )

    @property
    def unequal(self) -> bool:
        """Whether either is asked for."""
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
                f"{section}.{name} says how the teacher's items count, and {section}.guide=student lists the student's;"
                " leave one of them out."
            )


ListOptionsT = TypeVar("ListOptionsT", bound=ListOptions)


class ListDistiller(Distiller[ListOptionsT]):
    """Base of the distillers that read ranked lists of unobserved items and the student's scores of them.

    A user without a list (a file need not have one for each) is in no mean: the base loss alone trains them.
    """

    #: (U,) bool: which users the teacher has a list of; None where all who are trained on have one.
    listed: Optional[Tensor] = None
    #: (U, k) how sure the teacher is of each of its :meth:`ranked_items`, where `importance` reads it; None: alike.
    confidence: Optional[Tensor] = None

    #: Options that each ask for so many unobserved items of every user.
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
            UserError: the teacher ranks fewer for a user of the training split.
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
        """:func:`importance` of the teacher's lists of users, beside the student's as it is now."""
        assert isinstance(self.options, ImportanceOptions)
        return importance(
            self.options, ranked, self.confidence, lambda: student_ranking(self.student, self.data, ranked.shape[1])
        )

    def ranked_by(self, guide: str, setting: str, k: int) -> Tensor:
        """:meth:`ranked_items` by the guide: ``teacher``, or ``student`` as it is now."""
        if guide == "teacher":
            return self.ranked_items(setting, k)
        return student_ranking(self.student, self.data, k)


class SequenceLists(NamedTuple):
    """Lists of the next items after n of a batch's sequences, best first.

    Attributes:
        rows: (n,) which sequences of the batch have a list; None: all.
        items: (n, k)
        confidence: (n, k) how sure the teacher is of each; None: all count alike.
        scores: (n, k) the teacher's; None where it has none.
    """

    rows: Optional[Tensor]
    items: Tensor
    confidence: Optional[Tensor]
    scores: Optional[Tensor]


class SequenceListDistiller(Distiller[ListOptionsT]):
    """Base of the same for next-item prediction: lists of what comes next, by a sequential teacher or in a file.

    After sequences without a list (a file need not have one for each) the base loss alone trains the student.
    """

    #: The option that asks for so many items after every sequence.
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
        """The most items that are left out of a list as those of its sequence."""
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

        Padding is left out, and what the sequence holds where nobody has an item twice.
        """
        if not self.data.repeatable:
            scores = scores.scatter(1, sequences.items, -torch.inf)
        return scores[:, 1:].topk(k, dim=1).indices + 1

    def importance(self, batch: Batch, lists: SequenceLists) -> Optional[Tensor]:
        """:func:`importance` of the teacher's lists, beside the student's as it is now."""
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
        # All of the batch's sequences are scored, as the base loss's pass over them is shared.
        rows = rows.to(items.device)
        every = items.new_ones(len(batch.users), items.shape[1]).index_copy_(0, rows, items)
        return self.student.sequence_scores(batch.sequences, every).index_select(0, rows)


def importance(
    options: ImportanceOptions, ranked: Tensor, confidence: Optional[Tensor], own: Callable[[], Tensor]
) -> Optional[Tensor]:
    """How much each listed item counts now: the product of confidence, decay and consistency, divided by its mean.

    The mean is over all listed items of all rows, so that a weight of the loss means the same with and without them.

    Args:
        ranked: (rows, k) the teacher's lists, 0 where there is no item.
        confidence: (rows, k) at least 0; None: 1.
        own: gives the student's lists of the same rows and length.

    Returns:
        (rows, k) float32 on the CPU, 0 where there is no item; None where all items count alike.
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
    """The student's k best unobserved items of every user as it is now, best first: (U, k) int32 on the CPU."""
    return build_rank_bank(catalogue_scores(student, data), data.observed, k)


def catalogue_scores(student: StudentView, data: DataView) -> Callable[[Tensor], Tensor]:
    """A function of users (n,) that gives the student's scores of all items as it is now, (n, I)."""

    def score_block(users: Tensor) -> Tensor:
        catalogue = torch.arange(data.items, device=data.device).expand(len(users), -1)
        return student.scores(users.to(data.device), catalogue)

    return score_block


@torch.no_grad()
def list_scores(view: Union[StudentView, TeacherView], lists: Tensor, data: DataView) -> Tensor:
    """Constant scores of every user's list.

    Args:
        view: whose scores.
        lists: (U, k) items, 0 where there is none.

    Returns:
        (U, k) on the data's device; 0 for user 0. What stands at an item 0 means nothing.
    """
    rows = max(1, _PAIRS_AT_ONCE // lists.shape[1])
    users = torch.arange(1, data.users, device=data.device)
    parts = zip(users.split(rows), lists[1:].split(rows))
    scores = torch.cat([view.scores(ids, items.to(data.device).long().clamp(min=1)) for ids, items in parts])
    return torch.cat([scores.new_zeros(1, lists.shape[1]), scores])


def require_drawable(section: str, options: Options, *names: str) -> None:
    """Checks that the items that the options `names` ask for can be drawn from a list of ``pool`` items.

    Raises:
        UserError: one of them is more than the pool.
    """
    pool: int = getattr(options, "pool")  # noqa: B009
    for name in names:
        count = getattr(options, name)
        if count > pool:
            raise UserError(
                f"{section}.{name}={count} items cannot be drawn from a list of {section}.pool={pool}; "
                "lower the one or raise the other."
            )


@dataclass(frozen=True)
class RelaxedOptions(ListOptions):
    """Options of RRD's lists, and of the likelihood of their order."""

    weight: float = option(1e-3, "weight of the loss", minimum=0)
    interesting: int = option(40, "K, interesting items of each user", minimum=1)
    uninteresting: int = option(
        40, "L, uninteresting items of each user; 0: the order of interesting ones alone", minimum=0
    )
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

    def require_lists(self, section: str, observed: Observed, rows: str, entries: str) -> None:
        """Checks that every row has enough unobserved entries for the pool and the uninteresting ones below it.

        Args:
            rows, entries: what they are called, such as "users" and "items".

        Raises:
            UserError: a row has fewer.
        """
        pool, roles = f"{section}.pool", (rows, entries)
        require_unobserved(observed, pool, self.pool, roles=roles)
        require_unobserved(observed, f"{section}.uninteresting", self.uninteresting, self.pool, pool, roles)


class RelaxedLists:
    """RRD's interesting and uninteresting entries of every row: items of users, users of items, items of sequences."""

    def __init__(self, options: RelaxedOptions, observed: Observed, ranked: Tensor, device: torch.device) -> None:
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
        self._drawn_weights: Optional[Tensor] = None

    def draw(self, generator: torch.Generator, weights: Optional[Tensor] = None) -> None:
        """Draws the entries of every row anew; weights (rows, K') say how much the ranked ones count."""
        options = self._options
        interesting = self._ranked[:, : options.interesting]
        chosen = torch.arange(options.interesting).expand(len(self._ranked), -1)
        if options.sampling == "exponential":
            chances = exponential_log_weights(options.pool, options.emphasis)
            chosen = draw_without_replacement(chances, len(self._ranked), options.interesting, generator)
            interesting = items_at(self._ranked, chosen)
        uninteresting = interesting[:, :0]
        if options.uninteresting:
            uninteresting = self._complement.draw(options.uninteresting, generator)
        self._drawn = torch.cat([interesting, uninteresting], dim=1).to(self._device)
        self._drawn_weights = None if weights is None else items_at(weights, chosen).to(self._device)

    def of(self, rows: Tensor) -> Tensor:
        """(n, K + L) ids, the interesting ones first, best rank first."""
        return self._drawn[rows].long()

    def loss(self, scores: Tensor, rows: Optional[Tensor] = None) -> Tensor:
        """Mean over rows for the student's scores (n, K + L) of what :meth:`of` gave of them (RRD, eq. 9).

        Args:
            rows: (n,) the rows; needed where their entries were drawn with weights.
        """
        k = self._options.interesting
        if self._options.temperature != 1:
            scores = scores / self._options.temperature
        weights = None if self._drawn_weights is None or rows is None else self._drawn_weights[rows].to(scores)
        return listwise_loss(scores[:, :k], scores[:, k:], weights=weights)
