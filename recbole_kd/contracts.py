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

#: Capability that a distiller can need of a student or a teacher -> its words in messages.
CAPABILITIES: dict[str, str] = {
    "scores": "scores of single users and items",
    "ranks": "a ranking of a user's unobserved items",
    "listed_scores": "scores of the items in the ranked lists",
    "representations": "a vector for each user and each item",
    "pair_representations": "a vector for each user and each item, or for each pair of them",
    "side_vectors": "a vector for each user and each item, whether or not its scores are their products",
    "item_representations": "a vector for each item",
    "tables": "embedding tables of users and of items",
    "layers": "the output of each layer of its graph",
    "sequences": "scores of the next item after a sequence",
    "sequence_vectors": "a vector for each sequence and each item",
    "sequence_ranks": "a ranking of the next items after some of the training sequences",
    "sequence_listed_scores": "scores of the items in the lists after training sequences",
}


class Sequences(NamedTuple):
    """Input of sequential models: users' earlier items, oldest first.

    Attributes:
        items: (n, L) item ids, filled with 0 at the end.
        lengths: (n,) number of items, at least 1.
    """

    items: Tensor
    lengths: Tensor


class StudentView(Protocol):
    """The student as distillers see it. All tensors have gradient to the student's parameters.

    A graph student is propagated once in a training step, however often its vectors are read.
    """

    name: str
    capabilities: frozenset[str]
    dimension: Optional[int]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_s of users (n,) with items (n,) or (n, k): a tensor of the shape of `items`."""

    def user_embeddings(self) -> Tensor:
        """e_s of every user, (U, d_s)."""

    def item_embeddings(self) -> Tensor:
        """e_s of every item, (I, d_s)."""

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The vectors that scores of the pairs of users (n,) and items (n,) are linear maps of, (n, d)."""

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of every user (U, d) and every item (I, d), from which a model of pairs computes its scores."""

    def tables(self) -> tuple[Tensor, Tensor]:
        """The embedding tables from which the representations are computed: users (U, d), items (I, d)."""

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_s of the next item after each of n sequences: (n, k) for items (n, k), (n, I) for every item."""

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_s of n sequences, (n, d_s)."""


class TeacherView(Protocol):
    """The frozen teacher as distillers see it, in the student's ids. No tensor has gradient."""

    name: str
    capabilities: frozenset[str]
    dimension: Optional[int]
    #: (U,), (I,) bool: the users and items with vectors; None: all. The other rows of a table are undefined.
    known_users: Optional[Tensor]
    known_items: Optional[Tensor]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_t of users (n,) with items (n,) or (n, k): a tensor of the shape of `items`.

        A teacher with `listed_scores` but not `scores` scores only items of its ranked lists; the others are NaN.
        """

    def user_embeddings(self) -> Tensor:
        """e_t of every user, (U, d_t)."""

    def item_embeddings(self) -> Tensor:
        """e_t of every item, (I, d_t)."""

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The vectors that scores of the pairs of users (n,) and items (n,) are linear maps of, (n, d)."""

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of every user (U, d) and every item (I, d), from which a model of pairs computes its scores."""

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(users (U, d_t), items (I, d_t)) of each layer of the graph, the embedding tables first."""

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 if a user has fewer."""

    def listed_weights(self, k: int) -> Optional[Tensor]:
        """Weight of each of :meth:`ranked_items`, at least 0: (U, k) float32; None: all equal."""

    def ranked_users(self, k: int) -> Tensor:
        """For every item the k users with the best scores who have not observed it: (I, k) int32, filled with 0."""

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_t of the next item after each of n sequences: (n, k) for items (n, k), (n, I) for every item."""

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_t of n sequences, (n, d_t)."""

    def ranked_after(self, users: Tensor, sequences: Sequences, k: int) -> tuple[Tensor, Optional[Tensor]]:
        """The k best next items after n training sequences of users (n,), and their weights or None: (n, k).

        Rows of sequences without a list are 0.
        """

    def listed_scores_after(self, users: Tensor, sequences: Sequences, k: int) -> Tensor:
        """y_t of the items of :meth:`ranked_after`, (n, k)."""


@dataclass(frozen=True)
class Share:
    """The part of a step that this process computes: it is process `rank` of `count`; a single process computes all."""

    rank: int = 0
    count: int = 1

    def part(self, entries: int) -> slice:
        """This process's part of `entries` entries. The parts of the processes are consecutive and of similar size."""
        return slice(entries * self.rank // self.count, entries * (self.rank + 1) // self.count)

    def of(self, entries: Tensor) -> tuple[Tensor, float]:
        """This process's part of entries (n,), and its fraction of them. A mean over the part is multiplied by it."""
        own = entries[self.part(len(entries))]
        return own, len(own) / max(1, len(entries))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the processes' `tensor`, in place."""
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

    #: The part of a step that this process computes, for distillers with :attr:`Distiller.shares`.
    share: Share = Share()
    #: Whether lists of next items may hold items of the sequence.
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
    """One training batch: observed pairs, and the negatives if the base loss draws some.

    In a batch of a sequential model each pair is a sequence of a user and the next item.

    Attributes:
        users, items: (n,) the observed pairs.
        negatives: items; by default blocks of n, each in the order of `users`.
        sequences: the histories of the rows.
        negative_users: the users of the negatives, if they are not in such blocks.
    """

    users: Tensor
    items: Tensor
    negatives: Optional[Tensor] = None
    sequences: Optional[Sequences] = None
    negative_users: Optional[Tensor] = None

    @cached_property
    def distinct_users(self) -> Tensor:
        """U_B: the distinct users, ascending."""
        users = self.users if self.negative_users is None else torch.cat([self.users, self.negative_users])
        return torch.unique(users)

    @cached_property
    def distinct_items(self) -> Tensor:
        """I_B: the distinct items, positives and negatives, ascending."""
        everything = self.items if self.negatives is None else torch.cat([self.items, self.negatives])
        return torch.unique(everything)

    @cached_property
    def distinct_pairs(self) -> tuple[Tensor, Tensor]:
        """(users (n,), items (n,)): the distinct pairs, positives and negatives, ascending."""
        users, items = self.users, self.items
        if self.negatives is not None:
            of_negatives = self.negative_users
            if of_negatives is None:
                of_negatives = users.repeat(len(self.negatives) // max(1, len(users)))
            users, items = torch.cat([users, of_negatives]), torch.cat([items, self.negatives])
        pairs = torch.unique(torch.stack([users, items]), dim=1)
        return pairs[0], pairs[1]

    @cached_property
    def distinct_positives(self) -> Tensor:
        """The distinct items among the positives, ascending."""
        return torch.unique(self.items)


class Needs(NamedTuple):
    """What a distiller reads of the student and of the teacher: keys of :data:`CAPABILITIES`.

    Attributes:
        otherwise: one capability that replaces everything needed of the teacher; "" if there is none.
    """

    student: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset()
    otherwise: str = ""

    @classmethod
    def of(cls, *names: str, teacher: Optional[tuple[str, ...]] = None, otherwise: str = "") -> Needs:
        """Needs `names` of the student, and `teacher` of the teacher (by default the same names)."""
        return cls(frozenset(names), frozenset(names if teacher is None else teacher), otherwise)

    def lacking(self, role: str, capabilities: frozenset[str]) -> frozenset[str]:
        """The needs that a ``student`` or ``teacher`` with these capabilities does not meet."""
        if role == "teacher" and self.otherwise in capabilities:
            return frozenset()
        lacking: frozenset[str] = getattr(self, role) - capabilities
        return lacking


@dataclass(frozen=True)
class DistillerOptions(Options):
    """Base of a distiller's options. They also say what it reads and how its losses are weighted.

    A distiller with one loss has an option ``weight``. One with several overrides :attr:`weights`.
    """

    @property
    def needs(self) -> Needs:
        """What is read of the two models. If no option changes it, set ``needs = Needs.of(...)`` in the class."""
        return Needs()

    @property
    def sequence_needs(self) -> Needs:
        """What is read of two sequential models."""
        return self.needs

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of each loss -> its weight; a single loss has the name ""."""
        weight: float = getattr(self, "weight")  # noqa: B009
        return {"": weight}

    @property
    def is_off(self) -> bool:
        """Whether every loss has weight 0; the distiller is then not built."""
        return not any(self.weights.values())

    def check_sizes(self, student: Optional[int], teacher: Optional[int]) -> None:
        """Refuses two models if their vectors' sizes cannot be compared under these options.

        It is called with the sizes in the settings, before a teacher is trained; None is a size not known yet.

        Raises:
            UserError: the sizes do not fit; the message names the setting that changes one of them.
        """


class Part(NamedTuple):
    """A loss in one of several processes: the mean over its entries, and their fraction of all entries."""

    loss: Tensor
    fraction: float


OptionsT = TypeVar("OptionsT", bound=DistillerOptions)


class Distiller(nn.Module, Generic[OptionsT]):
    """Base of all distillers, for a class of options: ``class MyDistiller(Distiller[MyOptions])``.

    A subclass sets :attr:`name` and writes :meth:`loss`. Things made once, such as a projector, are made in
    :meth:`build`. Its parameters are optimised and checkpointed with the student's. The views are plain objects, so
    neither model becomes part of this module.

    Attributes:
        options, student, teacher, data: the arguments of the constructor.
        generator: draws all random numbers, on the CPU; the base model's random stream does not change.
    """

    #: The distiller's section of the settings, and the prefix of its losses in logs.
    name: ClassVar[str]
    #: Read from the brackets in ``Distiller[MyOptions]``.
    options_class: ClassVar[type[DistillerOptions]]
    #: Whether `loss` returns this process's part of each loss, by ``data.share``; the parts of all processes sum to the
    #: loss. Otherwise one process computes the whole loss. All processes draw the same random numbers.
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
        """Refuses a training split that cannot meet these options; called before a teacher is trained.

        Raises:
            UserError: the split has too little; the message says what is needed and what there is.
        """

    def build(self) -> None:
        """Makes projectors, constants and lists, once. Register constants as buffers that are not persistent."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch (0 is the first), to draw samples or set a temperature."""

    def loss(self, batch: Batch) -> Union[Tensor, Part, Mapping[str, Tensor]]:
        """The loss of a batch, or several by name: scalars, means over their entries, without their weights.

        An empty mapping if there is nothing to compute in this step.
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
        """The generator's state, for a checkpoint from which a run resumes exactly."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state.to(torch.uint8).cpu())
