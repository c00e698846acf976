"""What the feature-based and relation-based distillers share: the representations of a batch's nodes."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Distiller, StudentView, TeacherView
from recbole_kd.options import Options

__all__ = ["NodeOrPairDistiller", "RepresentationDistiller", "Side"]


class Side(NamedTuple):
    """The distinct users, or items, or pairs of both of a batch; its sequences, where it has them, are its users.

    Attributes:
        nodes: (n,) their ids, ascending; of sequences and pairs their numbers in the batch.
        student: (n, d_s) their rows, through which alone gradients reach the student.
        teacher: (N, d_t) the teacher's representations of all users (items), of sequences and pairs those of the batch.
    """

    nodes: Tensor
    student: Tensor
    teacher: Tensor

    def targets(self) -> Tensor:
        """(n, d_t) the teacher's representations of the nodes, in the student's type."""
        return self.teacher.index_select(0, self.nodes).to(self.student)


class RepresentationDistiller(Distiller):
    """Base of the distillers that read representations of the batch's distinct users and items.

    Attributes:
        student_dimension, teacher_dimension: d_s, d_t.
        dtype: of the teacher's representations, and so of the projectors.
    """

    def __init__(self, options: Options, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__(options, student, teacher, data)
        assert student.dimension is not None, "student_needs was checked"
        self.student_dimension = student.dimension
        self.teacher_dimension = teacher.item_embeddings().shape[1]
        self.dtype: torch.dtype = teacher.item_embeddings().dtype

    @classmethod
    def student_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"representations"})

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"representations"})

    @classmethod
    def sequential_needs(cls, options: Options) -> Optional[frozenset[str]]:
        return frozenset({"sequence_vectors"})

    def sides(self, batch: Batch) -> tuple[Side, Side]:
        """(users, items) of a batch, or (sequences, items); a graph student is read once."""
        items = batch.distinct_items
        of_items = Side(items, self.student.item_embeddings().index_select(0, items), self.teacher.item_embeddings())
        if batch.sequences is not None:
            numbers = torch.arange(len(batch.users), device=items.device)
            student, teacher = (view.sequence_embeddings(batch.sequences) for view in (self.student, self.teacher))
            return Side(numbers, student, teacher), of_items
        users = batch.distinct_users
        of_users = Side(users, self.student.user_embeddings().index_select(0, users), self.teacher.user_embeddings())
        return of_users, of_items

    def together(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(n, d_s), (n, d_t): student and teacher of the batch's users, then of its items."""
        sides = self.sides(batch)
        return torch.cat([side.student for side in sides]), torch.cat([side.targets() for side in sides])


class NodeOrPairDistiller(RepresentationDistiller):
    """Base of those that regress each entry by itself, so that it may be a user, an item, or a pair of both.

    A model that encodes a user and an item together (NeuMF) has a vector for each pair alone: its last hidden layer.
    Where the student or the teacher is such a model, the batch's distinct pairs, positives and negatives, are the
    entries; a model with vectors of users and items then gives their elementwise product.

    Attributes:
        pairs: whether entries are pairs.
    """

    def __init__(self, options: Options, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        apart = all("representations" in view.capabilities for view in (student, teacher))
        if apart or data.sequential:
            super().__init__(options, student, teacher, data)
            self.pairs = False
            return
        Distiller.__init__(self, options, student, teacher, data)
        self.pairs = True
        first = torch.ones(1, dtype=torch.long, device=data.device)
        with torch.no_grad():
            ours, theirs = (view.pair_representations(first, first) for view in (student, teacher))
        self.student_dimension, self.teacher_dimension, self.dtype = ours.shape[1], theirs.shape[1], theirs.dtype

    @classmethod
    def student_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"pair_representations"})

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"pair_representations"})

    def entries(self, batch: Batch) -> tuple[Side, ...]:
        """(users, items) of a batch, or (pairs,)."""
        if not self.pairs:
            return self.sides(batch)
        pairs = batch.distinct_pairs
        student, teacher = (view.pair_representations(*pairs) for view in (self.student, self.teacher))
        return (Side(torch.arange(len(student), device=student.device), student, teacher),)
