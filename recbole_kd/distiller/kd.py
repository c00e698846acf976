"""KD: distilling the knowledge in a neural network (Hinton et al., 2015), over a list of items for each user.

    loss = tau^2 * mean over users of the cross-entropy of softmax(y_s / tau) against softmax(y_t / tau)

over the K best unobserved items of the guide: the teacher, or the student, ranked anew before each epoch. Entry: a
distinct user of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Distiller, StudentView, TeacherView
from recbole_kd.data.ranks import require_unobserved
from recbole_kd.distiller.lists import guided_ranking, list_scores
from recbole_kd.loss.ranking import softmax_loss
from recbole_kd.options import Options, option


@dataclass(frozen=True)
class KDOptions(Options):
    """Options of the section ``kd``."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    items: int = option(20, "K, items of each user", minimum=2)
    temperature: float = option(1.0, "tau, of both models' probabilities", above=0)
    guide: str = option("teacher", "whose best items", choices=("teacher", "student"))


class KDDistiller(Distiller):
    """Hinton's distillation: the teacher's probabilities over a short list of items."""

    name = "kd"
    options_class = KDOptions
    options: KDOptions

    def __init__(self, options: KDOptions, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        """
        Raises:
            UserError: a user has fewer unobserved items than ``items``.
        """
        super().__init__(options, student, teacher, data)
        require_unobserved(data.observed, f"{self.name}.items", options.items)
        self._items = self._targets = torch.empty(0)
        if options.guide == "teacher":
            self._rank()

    @classmethod
    def student_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"scores"})

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        assert isinstance(options, KDOptions)
        return frozenset({"ranks", "scores"} if options.guide == "teacher" else {"scores"})

    def _rank(self) -> None:
        options = self.options
        ranked = guided_ranking(options.guide, self.student, self.teacher, self.data, options.items)
        self._items = ranked.to(self.data.device)
        self._targets = list_scores(self.teacher, self._items, self.data)

    def begin_epoch(self, epoch: int) -> None:
        """Ranks anew where the student guides."""
        if self.options.guide == "student":
            self._rank()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"kd": the weighted mean over the batch's distinct users}."""
        users = batch.distinct_users
        scores = self.student.scores(users, self._items[users].long())
        return {self.name: self.options.weight * softmax_loss(scores, self._targets[users], self.options.temperature)}
