"""The contracts between trainer, student, teacher and distillers.

A distiller sees its student and its teacher through two small protocols and the training data through
:class:`DataView`; it never sees a model, a trainer or a configuration. Ids are RecBole's: 0 is padding and is in no
sample, no mean, no graph and no ranking. U and I count the padding row (RecBole's `user_num`, `item_num`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Optional, Protocol

import torch
from torch import Tensor, nn

from recbole_kd.data.observed import Observed
from recbole_kd.options import Options

#: What a distiller can need of a student or a teacher, with the words for a message that refuses it.
CAPABILITIES: dict[str, str] = {
    "scores": "scores of single users and items",
    "ranks": "a ranking of a user's unobserved items",
    "representations": "a vector for each user and each item",
    "tables": "embedding tables of users and of items",
    "layers": "the output of each layer of its graph",
}


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

    def tables(self) -> tuple[Tensor, Tensor]:
        """The parameters under the representations: user table (U, d), item table (I, d)."""


class TeacherView(Protocol):
    """The frozen teacher as distillers see it, in the student's ids. Everything is constant: no tensor has gradient."""

    name: str
    capabilities: frozenset[str]
    dimension: Optional[int]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_t of users (n,) with items (n,) or (n, k): a tensor shaped like `items`."""

    def user_embeddings(self) -> Tensor:
        """e_t of every user, (U, d_t)."""

    def item_embeddings(self) -> Tensor:
        """e_t of every item, (I, d_t)."""

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(users (U, d_t), items (I, d_t)) of each layer of the graph, the embedding tables first."""

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 where a user has fewer."""


@dataclass(frozen=True)
class DataView:
    """The training split as distillers see it."""

    observed: Observed
    epochs: int
    seed: int
    device: torch.device

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
    """One training batch: observed pairs, and the base loss's negatives where it draws some."""

    users: Tensor
    items: Tensor
    negatives: Optional[Tensor] = None

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
    generator: torch.Generator

    def __init__(self, options: Options, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__()
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
