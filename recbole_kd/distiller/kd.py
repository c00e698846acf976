"""KD: distilling the knowledge in a neural network (Hinton et al., 2015), over a list of items for each user.

    loss = tau^2 * mean over users of the cross-entropy of softmax(y_s / tau) against softmax(y_t / tau_t)

The softmax is over the guide's K best unobserved items. The guide is the teacher or the student; a student guide ranks
again before each epoch. tau_t is tau in the paper; set another one if the teacher's scores have another scale than the
student's. Entry: a distinct user of the batch.

``decay``, ``consistency`` and a file's confidence multiply the items' terms in the cross-entropy (DLLM2Rec, RecSys'24).

For next-item prediction each sequence has a list: the K items that the present guide ranks highest after it, all items
(``items: ~``), or the first K of a file's list. Items of the sequence are left out if ``repeatable`` is false. Entry: a
sequence of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Needs
from recbole_kd.distiller.base.lists import (
    GuidedOptions,
    ImportanceOptions,
    ListDistiller,
    SequenceListDistiller,
    list_scores,
)
from recbole_kd.errors import UserError
from recbole_kd.loss.ranking import softmax_loss
from recbole_kd.options import option


@dataclass(frozen=True)
class KDOptions(ImportanceOptions, GuidedOptions):
    """Options of the section ``kd``."""

    items: Optional[int] = option(20, "K, items of each user or sequence; ~: all, for sequential models", minimum=2)
    temperature: float = option(1.0, "tau, of both models' probabilities", above=0)
    teacher_temperature: Optional[float] = option(
        None, "tau, of the teacher's probabilities alone; ~: the same", above=0
    )

    @property
    def sequence_needs(self) -> Needs:
        listed = self.guide == "teacher" and self.items is not None
        return Needs.of("sequences", otherwise="sequence_listed_scores" if listed else "")

    def cross_entropy(self, student: Tensor, teacher: Tensor, weights: Optional[Tensor] = None) -> Tensor:
        """tau^2 times the cross-entropy of the softmax of the scores (n, k), the mean over rows."""
        return softmax_loss(student, teacher, self.temperature, self.teacher_temperature, weights)


class KDDistiller(ListDistiller[KDOptions]):
    """Hinton's distillation: the teacher's probabilities over a short list of items."""

    name = "kd"
    list_lengths = ("items",)

    @classmethod
    def check_data(cls, options: KDOptions, data: DataView) -> None:
        """
        Raises:
            UserError: a user has fewer unobserved items than ``items``, or ``items`` is None.
        """
        if options.items is None:
            raise UserError(
                f"{cls.name}.items is None, which means all items and is for sequential models only; "
                f"set --{cls.name}.items to a number such as 20."
            )
        super().check_data(options, data)

    def build(self) -> None:
        self._items = self._targets = torch.empty(0)
        self._weights: Optional[Tensor] = None
        if self.options.guide == "teacher":
            self._rank()

    def _rank(self) -> None:
        assert self.options.items is not None, "checked in the constructor"
        ranked = self.ranked_by(self.options.guide, "items", self.options.items)
        self._items = ranked.to(self.data.device)
        self._targets = list_scores(self.teacher, self._items, self.data)

    def begin_epoch(self, epoch: int) -> None:
        """Ranks again if the student is the guide; otherwise computes the weights of the teacher's items."""
        if self.options.guide == "student":
            self._rank()
            return
        weights = self.importance(self._items.cpu())
        self._weights = None if weights is None else weights.to(self._targets)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's distinct users."""
        users = batch.distinct_users
        scores = self.student.scores(users, self._items.index_select(0, users).long())
        weights = None if self._weights is None else self._weights.index_select(0, users)
        return self.options.cross_entropy(scores, self._targets.index_select(0, users), weights)


class KDSequenceDistiller(SequenceListDistiller[KDOptions]):
    """KD for next-item prediction: the softmax is over the best items after a sequence, or over all items."""

    name = "kd"
    list_length = "items"

    def loss(self, batch: Batch) -> Union[Tensor, dict[str, Tensor]]:
        """The mean over the batch's sequences; sequences without a list in a file are left out."""
        sequences, options = batch.sequences, self.options
        assert sequences is not None, "the student is a sequential model"
        if options.items is None or options.guide == "student":
            student, teacher = (view.sequence_scores(sequences) for view in (self.student, self.teacher))
            if options.items is None:
                return options.cross_entropy(student[:, 1:], teacher[:, 1:])
            best = self.best(student.detach(), sequences, options.items)
            return options.cross_entropy(self.student.sequence_scores(sequences, best), teacher.gather(1, best))
        lists = self.listed(batch, options.items)
        if not len(lists.items):
            return {}
        assert lists.scores is not None, "checked before"
        weights = self.importance(batch, lists)
        scores = self.student_scores(batch, lists.rows, lists.items.to(self.data.device))
        return options.cross_entropy(scores, lists.scores, None if weights is None else weights.to(scores))
