"""KD: distilling the knowledge in a neural network (Hinton et al., 2015), over a list of items for each user.

    loss = tau^2 * mean over users of the cross-entropy of softmax(y_s / tau) against softmax(y_t / tau_t)

over the K best unobserved items of the guide: the teacher, or the student, ranked anew before each epoch. tau_t is tau
in the paper; a temperature of its own is for scores of another scale than the student's. Entry: a distinct user of the
batch.

For next-item prediction the list is that of a sequence: the K items that the guide, as it is now, ranks highest after
it, those that are in it not left out; or all items (``items: ~``). Entry: a sequence of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Sequences, StudentView, TeacherView
from recbole_kd.distiller.base.lists import GuidedListDistiller, list_scores
from recbole_kd.errors import UserError
from recbole_kd.loss.ranking import softmax_loss
from recbole_kd.options import Options, option


@dataclass(frozen=True)
class KDOptions(Options):
    """Options of the section ``kd``."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    items: Optional[int] = option(20, "K, items of each user or sequence; None: all, of sequential models", minimum=2)
    temperature: float = option(1.0, "tau, of both models' probabilities", above=0)
    teacher_temperature: Optional[float] = option(None, "tau of the teacher's alone; None: the same", above=0)
    guide: str = option("teacher", "whose best items", choices=("teacher", "student"))


class KDDistiller(GuidedListDistiller):
    """Hinton's distillation: the teacher's probabilities over a short list of items."""

    name = "kd"
    options_class = KDOptions
    list_lengths = ("items",)
    options: KDOptions

    def __init__(self, options: KDOptions, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__(options, student, teacher, data)
        self._items = self._targets = torch.empty(0)
        if options.guide == "teacher" and not data.sequential:
            self._rank()

    @classmethod
    def check_data(cls, options: Options, data: DataView) -> None:
        """
        Raises:
            UserError: a user has fewer unobserved items than ``items``, or the catalogue has.
        """
        assert isinstance(options, KDOptions)
        if options.items is None and not data.sequential:
            raise UserError(
                f"{cls.name}.items is None, and the scores of all users with all items are not held: that is for "
                f"sequential models; set --{cls.name}.items to a number such as 20."
            )
        if data.sequential and options.items is not None and options.items >= data.items:
            raise UserError(f"{cls.name}.items={options.items:,} is more than the {data.items - 1:,} items; lower it.")
        super().check_data(options, data)

    @classmethod
    def sequential_needs(cls, options: Options) -> Optional[frozenset[str]]:
        return frozenset({"sequences"})

    def _rank(self) -> None:
        options = self.options
        assert options.items is not None, "checked in the constructor"
        ranked = self.ranked_by(options.guide, "items", options.items)
        self._items = ranked.to(self.data.device)
        self._targets = list_scores(self.teacher, self._items, self.data)

    def begin_epoch(self, epoch: int) -> None:
        """Ranks anew where the student guides."""
        if self.options.guide == "student" and not self.data.sequential:
            self._rank()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"kd": the weighted mean over the batch's distinct users, or over its sequences}."""
        if batch.sequences is not None:
            return {self.name: self.options.weight * self._next_item_loss(batch.sequences)}
        users = batch.distinct_users
        scores = self.student.scores(users, self._items[users].long())
        return {self.name: self.options.weight * self._loss(scores, self._targets[users])}

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return softmax_loss(student, teacher, self.options.temperature, self.options.teacher_temperature)

    def _next_item_loss(self, sequences: Sequences) -> Tensor:
        options = self.options
        teacher = self.teacher.sequence_scores(sequences)[:, 1:]
        if options.items is None:
            return self._loss(self.student.sequence_scores(sequences)[:, 1:], teacher)
        guide = teacher
        if options.guide == "student":
            guide = self.student.sequence_scores(sequences).detach()[:, 1:]
        best = guide.topk(options.items, dim=1).indices
        student = self.student.sequence_scores(sequences, best + 1)
        return self._loss(student, teacher.gather(1, best))
