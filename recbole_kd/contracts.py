"""The contracts between trainer, student, teacher and distillers.

A distiller sees its student and its teacher through two small protocols and the training data through
:class:`DataView`; it never sees a model, a trainer or a configuration. Ids are RecBole's: 0 is padding and is in no
sample, no mean, no graph and no ranking. U and I count the padding row (RecBole's `user_num`, `item_num`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Optional, Protocol

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
    "tables": "embedding tables of users and of items",
    "layers": "the output of each layer of its graph",
    "sequences": "scores of the next item after a sequence",
    "sequence_vectors": "a vector for each sequence and each item",
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

    def ranked_users(self, k: int) -> Tensor:
        """The k best users of every item among those who did not observe it, by score: (I, k) int32, filled with 0."""

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_t of the next item after each of n sequences: (n, k) for items (n, k), (n, I) for every item."""

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_t of n sequences, (n, d_t)."""


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
    sequential: bool = False  #: whether batches hold sequences and their next items

    #: What of a step this process computes, where a distiller shares (:attr:`Distiller.shares`).
    share: Share = Share()

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


class Distiller(nn.Module):
    """Base of all distillers: chooses entries of a batch, owns its projectors, calls pure losses.

    A subclass sets :attr:`name` (its section and the prefix of its losses), :attr:`options_class`, what it needs, and
    writes :meth:`forward`. Its parameters are optimised and checkpointed with the student's; the views are plain
    objects, so that neither model becomes part of this module.
    """

    name: ClassVar[str]
    options_class: ClassVar[type[Options]]
    #: Whether `forward` gives this process's part of each loss, by ``data.share``, so that the processes' losses sum to
    #: the loss; otherwise one process computes the whole. Random numbers are drawn alike by all processes.
    shares: ClassVar[bool] = False
    generator: torch.Generator

    def __init__(self, options: Options, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__()
        self.check_data(options, data)
        self.options = options
        self.student = student
        self.teacher = teacher
        self.data = data
        # A generator of its own: drawing samples here leaves the base model's random stream as RecBole has it.
        self.generator = torch.Generator().manual_seed(data.seed * 1_000_003 + zlib.crc32(self.name.encode()))

    @classmethod
    def student_needs(cls, options: Options) -> frozenset[str]:
        """Keys of :data:`CAPABILITIES` that these options ask of the student."""
        return frozenset()

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        """Keys of :data:`CAPABILITIES` that these options ask of the teacher."""
        return frozenset()

    @classmethod
    def sequential_needs(cls, options: Options) -> Optional[frozenset[str]]:
        """Keys of :data:`CAPABILITIES` that these options ask of a sequential student and of its teacher.

        None where the distiller has no meaning for next-item prediction. One that has reads ``batch.sequences``.
        """
        return None

    @classmethod
    def check_data(cls, options: Options, data: DataView) -> None:
        """Refuses a training split on which these options cannot be met; asked before a teacher is trained for it.

        Raises:
            UserError: what is asked for and what there is.
        """

    @classmethod
    def same_dimensions(cls, options: Options) -> bool:
        """Whether the two models' vectors are compared as they are, so that their sizes are asked before training."""
        return False

    @classmethod
    def check_dimensions(cls, options: Options, student: StudentView, teacher: Optional[int]) -> None:
        """Refuses a teacher whose vectors have `teacher` dimensions; asked where :meth:`same_dimensions` says so.

        Raises:
            UserError: the two sizes.
        """

    @classmethod
    def is_off(cls, options: Options) -> bool:
        """Whether every loss has weight 0, so that the distiller need not be built at all."""
        return getattr(options, "weight", None) == 0

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch (0 is the first): resample, anneal."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses of a batch: scalars, means over their entries, already weighted."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """State of the sampler's generator, for a checkpoint from which the run goes on exactly."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave."""
        self.generator.set_state(state.to(torch.uint8).cpu())
