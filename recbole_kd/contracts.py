"""The contracts between trainer, student, teacher and distillers.

A distiller sees its student and its teacher through two small protocols and the training data through
:class:`DataView`; it never sees a model, a trainer or a configuration. Ids are RecBole's: 0 is padding and is in no
sample, no mean, no graph and no ranking. U and I count the padding row (RecBole's `user_num`, `item_num`).
"""

from __future__ import annotations

import typing
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Optional, Protocol, TypeVar, Union

import torch
from torch import Tensor, nn

from recbole_kd.data.observed import Observed
from recbole_kd.options import Options

#: What a distiller can need of a student or a teacher, with the words for a message that refuses it.
CAPABILITIES: dict[str, str] = {
    "scores": "scores of single users and items",
    "ranks": "a ranking of a user's unobserved items",
    "listed_scores": "scores of the items in the ranked lists",
    "representations": "a vector for each user and each item",
    "pair_representations": "a vector for each user and each item, or for each pair of them",
    "item_representations": "a vector for each item",
    "tables": "embedding tables of users and of items",
    "layers": "the output of each layer of its graph",
    "sequences": "scores of the next item after a sequence",
    "sequence_vectors": "a vector for each sequence and each item",
    "sequence_ranks": "a ranking of the next items after some of the training sequences",
    "sequence_listed_scores": "scores of the items in the lists after training sequences",
}


class Sequences(NamedTuple):
    """What sequential models score: the items that users had so far, oldest first.

    Attributes:
        items: (n, L) item ids, filled with 0 at the end.
        lengths: (n,) how many of them there are, at least 1.
    """

    items: Tensor
    lengths: Tensor


class StudentView(Protocol):
    """The student as distillers see it. All tensors carry gradient to the student's parameters.

    Within one training step a graph student is propagated once, however often and from wherever this is read.
    """

    name: str
    capabilities: frozenset[str]
    dimension: Optional[int]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_s of users (n,) with items (n,) or (n, k): a tensor shaped like `items`."""

    def user_embeddings(self) -> Tensor:
        """e_s of every user, (U, d_s)."""

    def item_embeddings(self) -> Tensor:
        """e_s of every item, (I, d_s)."""

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The vectors that scores of the pairs of users (n,) and items (n,) are linear maps of, (n, d)."""

    def tables(self) -> tuple[Tensor, Tensor]:
        """The parameters under the representations: user table (U, d), item table (I, d)."""

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_s of the next item after each of n sequences: (n, k) for items (n, k), (n, I) for every item."""

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_s of n sequences, (n, d_s)."""


class TeacherView(Protocol):
    """The frozen teacher as distillers see it, in the student's ids. Everything is constant: no tensor has gradient."""

    name: str
    capabilities: frozenset[str]
    dimension: Optional[int]
    #: (U,), (I,) bool: which users and items have vectors, where not all do; what stands for the others means nothing.
    known_users: Optional[Tensor]
    known_items: Optional[Tensor]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_t of users (n,) with items (n,) or (n, k): a tensor shaped like `items`.

        A teacher with `listed_scores` but not `scores` knows the items of its own ranked lists; others score NaN.
        """

    def user_embeddings(self) -> Tensor:
        """e_t of every user, (U, d_t)."""

    def item_embeddings(self) -> Tensor:
        """e_t of every item, (I, d_t)."""

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The vectors that scores of the pairs of users (n,) and items (n,) are linear maps of, (n, d)."""

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(users (U, d_t), items (I, d_t)) of each layer of the graph, the embedding tables first."""

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 where a user has fewer."""

    def listed_weights(self, k: int) -> Optional[Tensor]:
        """How much each of :meth:`ranked_items` counts, at least 0: (U, k) float32; None where all count alike."""

    def ranked_users(self, k: int) -> Tensor:
        """The k best users of every item among those who did not observe it, by score: (I, k) int32, filled with 0."""

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_t of the next item after each of n sequences: (n, k) for items (n, k), (n, I) for every item."""

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_t of n sequences, (n, d_t)."""

    def ranked_after(self, users: Tensor, sequences: Sequences, k: int) -> tuple[Tensor, Optional[Tensor]]:
        """The k best next items after n training sequences of users (n,), and how much each counts or None: (n, k).

        Items are 0 after sequences without a list.
        """

    def listed_scores_after(self, users: Tensor, sequences: Sequences, k: int) -> Tensor:
        """y_t of the items of :meth:`ranked_after`, (n, k)."""


@dataclass(frozen=True)
class Share:
    """Which part of a step's work is this process's: that of process `rank` of `count`; alone, all of it."""

    rank: int = 0
    count: int = 1

    def part(self, entries: int) -> slice:
        """This process's part of so many entries: the processes' parts are consecutive and of about one size."""
        return slice(entries * self.rank // self.count, entries * (self.rank + 1) // self.count)

    def of(self, entries: Tensor) -> tuple[Tensor, float]:
        """This process's part of entries (n,), and which fraction of them it is: weights for means to become parts."""
        own = entries[self.part(len(entries))]
        return own, len(own) / max(1, len(entries))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes of what each has in `tensor`, which is overwritten."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


@dataclass(frozen=True)
class DataView:
    """The training split as distillers see it."""

    observed: Observed
    epochs: int
    seed: int
    device: torch.device

    #: What of a step this process computes, where a distiller shares (:attr:`Distiller.shares`).
    share: Share = Share()
    #: Whether lists of next items hold what a sequence has already.
    repeatable: bool = True

    @property
    def users(self) -> int:
        """U, padding included."""
        return self.observed.users

    @property
    def items(self) -> int:
        """I, padding included."""
        return self.observed.items


@dataclass(frozen=True)
class Batch:
    """One training batch: observed pairs, and the base loss's negatives where it draws some.

    In a batch of a sequential model each pair is a sequence of the user's and the item that comes next.
    """

    users: Tensor
    items: Tensor
    negatives: Optional[Tensor] = None
    sequences: Optional[Sequences] = None

    @cached_property
    def distinct_users(self) -> Tensor:
        """U_B: the distinct users, ascending."""
        return torch.unique(self.users)

    @cached_property
    def distinct_items(self) -> Tensor:
        """I_B: the distinct items, positives and negatives, ascending."""
        everything = self.items if self.negatives is None else torch.cat([self.items, self.negatives])
        return torch.unique(everything)

    @cached_property
    def distinct_pairs(self) -> tuple[Tensor, Tensor]:
        """(users (n,), items (n,)): the distinct pairs, positives and negatives, ascending.

        Where there are several negatives a pair, they come in blocks, each in the order of the users.
        """
        users, items = self.users, self.items
        if self.negatives is not None:
            users = torch.cat([users, users.repeat(len(self.negatives) // max(1, len(users)))])
            items = torch.cat([items, self.negatives])
        pairs = torch.unique(torch.stack([users, items]), dim=1)
        return pairs[0], pairs[1]

    @cached_property
    def distinct_positives(self) -> Tensor:
        """The distinct items among the positives, ascending."""
        return torch.unique(self.items)


class Needs(NamedTuple):
    """What a distiller reads: keys of :data:`CAPABILITIES`, of the student and of the teacher.

    Attributes:
        otherwise: what will do in place of everything that is read of the teacher; "" if nothing will.
    """

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    otherwise: str = ""

    @classmethod
    def of(cls, *names: str, teacher: Optional[tuple[str, ...]] = None, otherwise: str = "") -> Needs:
        """These names of the student; of the teacher the same, or those of `teacher`."""
        return cls(frozenset(names), frozenset(names if teacher is None else teacher), otherwise)

    def lacking(self, role: str, capabilities: frozenset[str]) -> frozenset[str]:
        """What a ``student`` or ``teacher`` that offers these capabilities lacks."""
        if role == "teacher" and self.otherwise in capabilities:
            return frozenset()
        lacking: frozenset[str] = getattr(self, role) - capabilities
        return lacking


@dataclass(frozen=True)
class DistillerOptions(Options):
    """Base of a distiller's options. They also say what it reads, and what its losses are multiplied by.

    A distiller with one loss has an option ``weight``. One with several overrides :attr:`weights`.
    """

    @property
    def needs(self) -> Needs:
        """What is read of the two models. A class whose options do not change it sets ``needs = Needs.of(...)``."""
        return Needs()

    @property
    def sequence_needs(self) -> Needs:
        """What is read of two sequential models."""
        return self.needs

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss by its name; the only loss of a distiller has the name ""."""
        weight: float = getattr(self, "weight")  # noqa: B009
        return {"": weight}

    @property
    def is_off(self) -> bool:
        """Whether every loss has weight 0, so that the distiller need not be built at all."""
        return not any(self.weights.values())

    def check_sizes(self, student: Optional[int], teacher: Optional[int]) -> None:
        """Refuses two models whose vectors have sizes that these options cannot compare.

        Asked with the sizes that the settings give, before a teacher is trained; None is a size not known yet.

        Raises:
            UserError: the two sizes, and the setting that changes one of them.
        """


class Part(NamedTuple):
    """A loss of one of several processes: the mean over its entries, and which fraction of all entries they are."""

    loss: Tensor
    fraction: float


OptionsT = TypeVar("OptionsT", bound=DistillerOptions)


class Distiller(nn.Module, Generic[OptionsT]):
    """Base of all distillers, for a class of options: ``class MyDistiller(Distiller[MyOptions])``.

    A subclass sets :attr:`name` and writes :meth:`loss`. What it makes once, such as a projector, it makes in
    :meth:`build`. Its parameters are optimised and checkpointed with the student's. The views are plain objects, so
    that neither model becomes part of this module.

    Attributes:
        options, student, teacher, data: what the distiller was built with.
        generator: for all random numbers, on the CPU; the base model's random stream stays as RecBole has it.
    """

    #: The distiller's section of the settings, and the prefix of its losses in logs.
    name: ClassVar[str]
    #: Found from the brackets: ``Distiller[MyOptions]``.
    options_class: ClassVar[type[DistillerOptions]]
    #: Whether `loss` gives this process's part of each loss, by ``data.share``, so that the processes' losses sum to
    #: the loss; otherwise one process computes the whole. Random numbers are drawn alike by all processes.
    shares: ClassVar[bool] = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in typing.get_args(base):
                if isinstance(argument, type) and issubclass(argument, DistillerOptions):
                    cls.options_class = argument

    def __init__(self, options: OptionsT, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__()
        self.check_data(options, data)
        self.options = options
        self.student = student
        self.teacher = teacher
        self.data = data
        self.generator = torch.Generator().manual_seed(data.seed * 1_000_003 + zlib.crc32(self.name.encode()))
        self.build()

    @classmethod
    def check_data(cls, options: OptionsT, data: DataView) -> None:
        """Refuses a training split on which these options cannot be met; asked before a teacher is trained for it.

        Raises:
            UserError: what is asked for and what there is.
        """

    def build(self) -> None:
        """Makes projectors, constants and lists, once. Buffers of constants stay out of checkpoints."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch (0 is the first): resample, anneal."""

    def loss(self, batch: Batch) -> Union[Tensor, Part, Mapping[str, Tensor]]:
        """The loss of a batch, or several by name: scalars, means over their entries, not weighted yet.

        An empty mapping where there is nothing to compute in this step.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch by name, each multiplied by its weight."""
        found = self.loss(batch)
        if isinstance(found, Part):
            return {self.name: found.fraction * self.options.weights[""] * found.loss}
        terms = {"": found} if isinstance(found, Tensor) else found
        weights = self.options.weights
        return {term or self.name: weights[term] * loss for term, loss in terms.items()}

    def get_extra_state(self) -> Tensor:
        """State of the sampler's generator, for a checkpoint from which the run goes on exactly."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave."""
        self.generator.set_state(state.to(torch.uint8).cpu())
