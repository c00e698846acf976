"""CD: collaborative distillation for top-N recommendation (Lee et al., ICDM'19; DE-RRD eq. 3).

    loss = mean over drawn items of the binary cross-entropy of sigma(y_s) against q = sigma((y_t + bias) / temperature)

Before each epoch n different items are drawn for each user from the guide's top K' unobserved items. The guide is the
teacher or the present student. The item at rank k has p_k ∝ exp(-k / (K' T)). Entry: a drawn item of a distinct user of
the batch.

``decay``, ``consistency`` and a file's confidence multiply the entries (DLLM2Rec, RecSys'24).

For next-item prediction each sequence has a list: the K' items that the present guide ranks highest after it, or the
first K' of a file's list. Items of the sequence are left out if ``repeatable`` is false. Items are drawn for each
batch. Entry: a drawn item of a sequence of the batch.

Published code differs: it draws two ranks and keeps the better one (``better_of_two``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, Needs
from recbole_kd.data.samplers import better_of_two, draw_without_replacement, exponential_log_weights, items_at
from recbole_kd.distiller.base.lists import (
    GuidedOptions,
    ImportanceOptions,
    ListDistiller,
    SequenceListDistiller,
    SequenceLists,
    list_scores,
    require_drawable,
)
from recbole_kd.loss.ranking import soft_target_loss
from recbole_kd.options import option


@dataclass(frozen=True)
class CDOptions(ImportanceOptions, GuidedOptions):
    """Options of the section ``cd``."""

    samples: int = option(10, "n, items drawn for each user", minimum=1)
    pool: int = option(100, "K', length of the guide's ranked list", minimum=1)
    emphasis: float = option(
        0.1, "T, as a share of the pool; the larger, the farther down items are drawn", minimum=1e-6
    )
    temperature: float = option(2.0, "tau, of the teacher's probabilities", above=0)
    bias: float = option(0.0, "b, added to the teacher's scores")
    guide: str = option("teacher", "the model from whose list items are drawn", choices=("teacher", "student"))
    better_of_two: bool = option(False, "whether each draw keeps the better of two ranks")

    @property
    def sequence_needs(self) -> Needs:
        return Needs.of("sequences", otherwise="sequence_listed_scores" if self.guide == "teacher" else "")

    def check(self, section: str) -> None:
        super().check(section)
        require_drawable(section, self, "samples")

    def log_chances(self) -> Tensor:
        """(K',) logarithms of the ranks' unnormalised probabilities."""
        chances = exponential_log_weights(self.pool, self.emphasis * self.pool)
        return better_of_two(chances) if self.better_of_two else chances


class CDDistiller(ListDistiller[CDOptions]):
    """Collaborative distillation: the teacher's scores are soft targets for highly ranked items."""

    name = "cd"

    def build(self) -> None:
        options = self.options
        self._weights = options.log_chances()
        self._ranked = self._rank() if options.guide == "teacher" else None
        self._items = self._targets = torch.empty(0)
        self._counts: Optional[Tensor] = None

    def _rank(self) -> Tensor:
        return self.ranked_by(self.options.guide, "pool", self.options.pool)

    def begin_epoch(self, epoch: int) -> None:
        """Draws every user's items anew and asks the teacher for their scores."""
        ranked = self._rank() if self._ranked is None else self._ranked
        drawn = draw_without_replacement(self._weights, len(ranked), self.options.samples, self.generator)
        self._items = items_at(ranked, drawn).to(self.data.device)
        self._targets = list_scores(self.teacher, self._items, self.data)
        self._counts = None
        if self._ranked is not None:
            counts = self.importance(ranked)
            self._counts = None if counts is None else items_at(counts, drawn).to(self._targets)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the items drawn for the batch's distinct users."""
        users = batch.distinct_users
        items, targets = (of_users.index_select(0, users) for of_users in (self._items, self._targets))
        counts = None if self._counts is None else self._counts.index_select(0, users)
        scores, options = self.student.scores(users, items.long()), self.options
        return soft_target_loss(scores, targets, options.temperature, options.bias, weights=counts)


class CDSequenceDistiller(SequenceListDistiller[CDOptions]):
    """CD for next-item prediction: the listed items follow a sequence."""

    name = "cd"

    def build(self) -> None:
        super().build()
        self._weights = self.options.log_chances()

    def loss(self, batch: Batch) -> Union[Tensor, dict[str, Tensor]]:
        """The mean over the items drawn for the batch's sequences; sequences without a list in a file are left out."""
        options, device = self.options, self.data.device
        lists = self.listed(batch, options.pool) if options.guide == "teacher" else self._own(batch)
        if not len(lists.items):
            return {}
        assert lists.scores is not None, "checked before"
        drawn = draw_without_replacement(self._weights, len(lists.items), options.samples, self.generator).long()
        counts = self.importance(batch, lists) if options.guide == "teacher" else None
        counts = None if counts is None else counts.gather(1, drawn).to(device)
        place = drawn.to(device)
        scores = self.student_scores(batch, lists.rows, lists.items.to(device).gather(1, place))
        targets = lists.scores.gather(1, place)
        return soft_target_loss(scores, targets, options.temperature, options.bias, weights=counts)

    def _own(self, batch: Batch) -> SequenceLists:
        """The student's best items after the batch's sequences, with the teacher's scores."""
        assert batch.sequences is not None, "the student is a sequential model"
        scores = self.student.sequence_scores(batch.sequences).detach()
        items = self.best(scores, batch.sequences, self.options.pool)
        return SequenceLists(None, items, None, self.teacher.sequence_scores(batch.sequences, items))
