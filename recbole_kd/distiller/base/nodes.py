"""Shared by distillers of vectors: both models' vectors of a batch's users, items or pairs.

Three readers have the same methods: :class:`Nodes` for users and items, :class:`SequenceNodes` for the sequences
and items of sequential models, and :class:`Pairs` for models that encode a user and an item together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Optional, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch, Distiller, DistillerOptions, Needs, StudentView, TeacherView
from recbole_kd.errors import UserError
from recbole_kd.loss.kernel.regression import linear_error
from recbole_kd.loss.kernel.rows import rows_at
from recbole_kd.options import option

__all__ = [
    "ONE_SIDE",
    "NodeDistiller",
    "NodeOptions",
    "NodeOrPairOptions",
    "Nodes",
    "Pairs",
    "SequenceNodes",
    "Side",
    "known",
    "linear",
    "projection_error",
    "with_bias",
]


#: Capabilities of a teacher with vectors of items; it has one of them, with or without vectors of users.
ONE_SIDE = frozenset({"representations", "item_representations"})


@dataclass(frozen=True)
class NodeOptions(DistillerOptions):
    """Base of the options of distillers that read vectors of users and items, or of sequences and items."""

    needs = Needs.of("representations", otherwise="item_representations")
    sequence_needs = Needs.of("sequence_vectors", otherwise="item_representations")
    pairs = True  # NodeOrPairOptions makes it an option


@dataclass(frozen=True)
class NodeOrPairOptions(NodeOptions):
    """The same for distillers that regress each entry by itself; an entry can then also be a (user, item) pair."""

    pairs: bool = option(
        True,
        "whether a model that encodes a user and an item together (NeuMF) is read by pairs; false: by its vectors of "
        "users and of items",
    )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Vectors of pairs, or of users and of items."""
        return Needs.of("pair_representations" if self.pairs else "side_vectors", otherwise="item_representations")


class Side(NamedTuple):
    """One kind of node in a batch: its distinct users, items, sequences, or pairs of a user and an item.

    Attributes:
        nodes: (n,) ids of users or items, ascending; positions in the batch for sequences and pairs.
        student: (n, d_s) the student's vectors of the nodes; gradients reach the student only through them.
        teacher: (N, d_t) the teacher's vectors of all users (items); of the batch alone for sequences and pairs.
    """

    nodes: Tensor
    student: Tensor
    teacher: Tensor

    def targets(self) -> Tensor:
        """(n, d_t) the teacher's vectors of the nodes, in the student's type."""
        return self.teacher.index_select(0, self.nodes).to(self.student)


def known(ids: Tensor, marks: Optional[Tensor]) -> Tensor:
    """The ids (n,) that `marks`, (U,) or (I,), says have a vector; all ids if `marks` is None."""
    return ids if marks is None else ids[marks[ids]]


class Nodes:
    """Reads the distinct users and the distinct items of a batch; a graph student is propagated once.

    Users and items without a teacher's vector are left out. If the teacher has no users, their side is left out.

    Attributes:
        kinds: what each side of a batch holds.
    """

    kinds: tuple[str, ...] = ("user", "item")
    #: Capability of a teacher that has vectors of the first side too.
    _both_sides: ClassVar[str] = "representations"

    def __init__(self, student: StudentView, teacher: TeacherView) -> None:
        self.student, self.teacher = student, teacher
        if self._both_sides not in teacher.capabilities:
            self.kinds = ("item",)

    def examples(self) -> tuple[Tensor, Tensor]:
        """Some vectors of the student (n, d_s) and of the teacher (m, d_t), to read their sizes and types from."""
        return self.student.item_embeddings(), self.teacher.item_embeddings()

    def tables(self) -> tuple[Optional[Tensor], ...]:
        """For each side the teacher's vectors (N, d_t); None if they depend on the batch."""
        items = self.teacher.item_embeddings()
        return (self._user_table(), items) if "user" in self.kinds else (items,)

    def sides(self, batch: Batch) -> tuple[Side, ...]:
        """The sides of a batch, in the order of `kinds`."""
        items = known(batch.distinct_items, self.teacher.known_items)
        of_items = Side(items, rows_at(self.student.item_embeddings(), items), self.teacher.item_embeddings())
        return (self._users(batch), of_items) if "user" in self.kinds else (of_items,)

    def _user_table(self) -> Optional[Tensor]:
        return self.teacher.user_embeddings()

    def _users(self, batch: Batch) -> Side:
        users = known(batch.distinct_users, self.teacher.known_users)
        return Side(users, rows_at(self.student.user_embeddings(), users), self.teacher.user_embeddings())


class _Sides:
    """A student or teacher whose vectors of users and items are its :meth:`side_vectors`."""

    def __init__(self, view: Any) -> None:
        self._view, self._both = view, "side_vectors" in view.capabilities
        self.capabilities = view.capabilities | ({"representations"} if self._both else set())

    def user_embeddings(self) -> Tensor:
        """(U, d)."""
        users: Tensor = self._view.side_vectors()[0]
        return users

    def item_embeddings(self) -> Tensor:
        """(I, d)."""
        items: Tensor = self._view.side_vectors()[1] if self._both else self._view.item_embeddings()
        return items

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


class SequenceNodes(Nodes):
    """Reads the sequences of a batch in the place of its users."""

    _both_sides = "sequence_vectors"

    def _user_table(self) -> Optional[Tensor]:
        return None

    def _users(self, batch: Batch) -> Side:
        assert batch.sequences is not None, "the student is a sequential model"
        student, teacher = (view.sequence_embeddings(batch.sequences) for view in (self.student, self.teacher))
        return Side(torch.arange(len(student), device=student.device), student, teacher)


class Pairs(Nodes):
    """Reads the distinct pairs of a batch, positives and negatives.

    The vector of a pair is the last hidden layer of a model that encodes a user and an item together (NeuMF). It is the
    elementwise product for a model with vectors of users and items.
    """

    _both_sides = "pair_representations"

    def __init__(self, student: StudentView, teacher: TeacherView, device: torch.device) -> None:
        super().__init__(student, teacher)
        if self.kinds == ("item",):
            raise UserError(
                f"{student.name} has vectors of pairs of a user and an item, but {teacher.name} has only vectors of "
                "items; give a file with users' vectors too, or set --model to a student with vectors of items, such "
                "as BPR."
            )
        self.kinds = ("pair",)
        self._device = device

    def examples(self) -> tuple[Tensor, Tensor]:
        first = torch.ones(1, dtype=torch.long, device=self._device)
        with torch.no_grad():
            return self.student.pair_representations(first, first), self.teacher.pair_representations(first, first)

    def tables(self) -> tuple[Optional[Tensor], ...]:
        return (None,)

    def sides(self, batch: Batch) -> tuple[Side, ...]:
        pairs = batch.distinct_pairs
        for side, marks in enumerate((self.teacher.known_users, self.teacher.known_items)):
            if marks is not None:
                kept = marks[pairs[side]]
                pairs = pairs[0][kept], pairs[1][kept]
        student, teacher = (view.pair_representations(*pairs) for view in (self.student, self.teacher))
        return (Side(torch.arange(len(student), device=student.device), student, teacher),)


NodeOptionsT = TypeVar("NodeOptionsT", bound=NodeOptions)


class NodeDistiller(Distiller[NodeOptionsT]):
    """Base of distillers that read vectors of a batch's users and items, sequences and items, or pairs.

    Attributes:
        entries: the reader of these vectors.
        student_dimension, teacher_dimension: d_s, d_t.
        dtype: type of the teacher's vectors and of the projectors.
    """

    entries: Nodes

    def build(self) -> None:
        views = self.student, self.teacher
        if "sequence_vectors" in self.student.capabilities:
            self.entries = SequenceNodes(*views)
        elif not self.options.pairs:
            self.entries = Nodes(*map(_Sides, views))
        elif "representations" in self.student.capabilities and not ONE_SIDE.isdisjoint(self.teacher.capabilities):
            self.entries = Nodes(*views)
        else:
            self.entries = Pairs(*views, self.data.device)
        ours, theirs = self.entries.examples()
        self.student_dimension, self.teacher_dimension, self.dtype = ours.shape[1], theirs.shape[1], theirs.dtype

    def together(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(n, d_s), (n, d_t): the student's and the teacher's vectors of the batch's users, then of its items."""
        sides = self.entries.sides(batch)
        return torch.cat([side.student for side in sides]), torch.cat([side.targets() for side in sides])

    def linear(self) -> nn.Linear:
        """A linear projector from the student's vectors to the teacher's."""
        return linear(self.student_dimension, self.teacher_dimension, self.generator, self.dtype)


def linear(inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    """A linear layer with torch's usual initial distribution, uniform in ±1/sqrt(inputs), drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)
    for parameter in layer.parameters():
        draw_uniform(parameter, inputs, generator)
    return layer


def draw_uniform(parameter: nn.Parameter, inputs: int, generator: torch.Generator) -> None:
    """Fills a layer's parameter with numbers uniform in ±1/sqrt(inputs)."""
    with torch.no_grad():
        parameter.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def with_bias(layer: nn.Linear) -> Tensor:
    """The layer as one matrix (outputs, inputs + 1); its last column, the bias, multiplies a constant input 1."""
    return torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1)


def projection_error(layer: nn.Linear, vectors: Tensor, side: Side) -> Tensor:
    """sum over the side's nodes of ||W x + b - e_t||^2, for x = `vectors` (n, inputs)."""
    return linear_error(functional.pad(vectors, (0, 1), value=1.0), with_bias(layer), side.teacher, side.nodes)
