"""Full-ranking evaluation through RecBole's own Evaluator, at a fraction of RecBole's time.

A trainer can use these parts separately or together:

- ``self.eval_collector = FullSortCollector(config)`` after ``Trainer.__init__``; it works with all of RecBole's
  loaders.
- :class:`recbole_kd.data.loaders.FastFullSortEvalDataLoader` instead of RecBole's ``FullSortEvalDataLoader``; by
  default with batches of :func:`recbole_kd.data.loaders.sized_eval_batch`.
- ``self.test_batch_size = PAIRS_PER_CALL``: it limits the memory of models without ``full_sort_predict``.

RecBole's time is spent on these steps, which are replaced:

- RecBole finds the top k of each row with `torch.topk`, once for "rec.items" and once for "rec.topk". Here
  :func:`exact_topk` runs once and searches only the blocks with the largest maxima.
- RecBole marks the positives in a dense integer matrix. Here hits are searched in the sorted positive pairs.
- RecBole concatenates all collected values after each batch. Here this is done once, at the end.
- RecBole makes a tensor for each user and joins them in a loop. Here batches are slices of sorted arrays.
- A large block of scores is returned to the system after each batch, which causes page faults in the next one. A block
  of one user has Python's overhead for each user. ``sized_eval_batch`` chooses a size in between.

Masking (`Trainer._full_sort_batch_eval`) is RecBole's; it takes only a few percent of the remaining time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, DataStruct
from recbole.utils import EvaluatorType
from torch import Tensor

from recbole_kd.contracts import Share
from recbole_kd.data.loaders import FastFullSortEvalDataLoader
from recbole_kd.data.splits import interactions_of
from recbole_kd.errors import UserError
from recbole_kd.evaluation.metrics import metric_class

#: User-item pairs in one call of `model.predict`, for models that score pair by pair.
PAIRS_PER_CALL = 2**17

#: Number of items in a block of which the maximum is taken.
_BLOCK = 8


def exact_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The result of ``torch.topk(scores, k)``, ties included; faster on a CPU if rows are long and k is small.

    A row's top k are in the blocks with the k largest maxima, so only these blocks are searched. The maxima are
    searched in the same way. If a row has equal scores (or NaN) among its first k + 1, torch decides their choice and
    order, so this row is computed by `torch.topk`.

    Args:
        scores: (B, I), -inf for items that must not be recommended.
        k: at most I.

    Returns:
        values (B, k), descending, and indices (B, k).
    """
    if scores.device.type != "cpu" or not _blocks_pay(scores.shape[1], k + 1):
        return torch.topk(scores, k)
    values, indices = _topk_by_blocks(scores, k + 1)
    undecided = ~(values[:, :-1] > values[:, 1:]).all(dim=1)
    values, indices = values[:, :k], indices[:, :k]
    if undecided.any():
        values[undecided], indices[undecided] = torch.topk(scores[undecided], k)
    return values, indices


def _blocks_pay(columns: int, k: int) -> bool:
    """Whether the candidates (k blocks) are few enough, at most a quarter of the row."""
    return columns >= 4 * _BLOCK * k


def _topk_by_blocks(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values (B, k) of each row, exactly, and their places; among equal values any may be chosen."""
    columns = scores.shape[1]
    if not _blocks_pay(columns, k):
        return torch.topk(scores, k)
    # Block b holds columns b, b + blocks, b + 2 blocks, ...: a maximum over the middle axis reads whole rows.
    blocks = columns // _BLOCK
    spans = scores[:, : blocks * _BLOCK].unflatten(1, (_BLOCK, blocks))
    best = _topk_by_blocks(spans.amax(dim=1), k)[1]
    within = spans.gather(2, best.unsqueeze(1).expand(-1, _BLOCK, -1)).flatten(1)
    values, position = torch.topk(torch.cat([within, scores[:, blocks * _BLOCK :]], dim=1), k)
    in_block = position // k * blocks + best.gather(1, position % k)
    in_rest = position + _BLOCK * (blocks - k)
    return values, torch.where(position < _BLOCK * k, in_block, in_rest)


class _CollectedBatches(DataStruct):
    """A DataStruct that concatenates the batches' values once, at the end, not after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, list[Tensor]] = {}

    def update_tensor(self, name: str, value: Tensor) -> None:
        self.batches.setdefault(name, []).append(value.clone().detach())

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds the values of other collectors, one after the other, as if their batches had been collected here."""
        for part in parts:
            for name, value in part.items():
                self.update_tensor(name, value)

    def finished(self) -> DataStruct:
        """All values, on the CPU; the batches' values are removed from this object."""
        struct = DataStruct()
        for name, value in self._data_dict.items():
            struct.set(name, value.cpu() if isinstance(value, Tensor) else value)
        for name, batches in self.batches.items():
            struct.set(name, torch.cat(batches).cpu())
        self.batches = {}
        return struct


class FullSortCollector(Collector):
    """RecBole's collector with one top-k per batch and no matrix of positives.

    "rec.topk" and "rec.items" equal those of RecBole's collector bit for bit, ties included. The one exception are
    places of items with score -inf: there "rec.items" is 0, no item. "rec.meanrank", "rec.score" and "data.label" are
    collected by RecBole's code. Metrics that need "data.*", such as ItemCoverage, work here; RecBole 1.2.1 fails with
    them, because it calls `.cpu()` on a number.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.data_struct = _CollectedBatches()
        self._collected = DataStruct()
        self._names: list[str] = []
        self._needs_items = self.register.need("rec.items")
        self._needs_hits = self.register.need("rec.topk")
        # These two are collected here, so RecBole's method, which is called for the rest, must not collect them.
        setattr(self.register, "rec.items", False)
        setattr(self.register, "rec.topk", False)

    def data_collect(self, train_data: Any) -> None:
        """Counts each item's occurrences in the training data, including the first items of sequences."""
        super().data_collect(train_data)
        self.data_struct.set("data.num_items", train_data.dataset.item_num)
        if self.register.need("data.count_items"):
            self.data_struct.set("data.count_items", Counter(interactions_of(train_data.dataset)[1].tolist()))

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collects what the metrics need of one batch.

        Args:
            scores_tensor: (B, I), -inf for padding and for items that the user has seen.
            interaction: the batch; its users in the order of the rows.
            positive_u, positive_i: (P,) row and item of each positive.

        Raises:
            UserError: the largest cutoff of `topk` exceeds the catalogue.
        """
        if self._needs_items or self._needs_hits:
            self._collect_ranking(scores_tensor, interaction, positive_u, positive_i)
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def _collect_ranking(
        self, scores: Tensor, interaction: Interaction, positive_rows: Tensor, positive_items: Tensor
    ) -> None:
        rows, items = scores.shape
        cutoff = max(self.topk)
        if cutoff > items:
            raise UserError(f"topk={cutoff} exceeds the catalogue of {items - 1} items; set --topk to at most that.")
        best, ranking = exact_topk(scores, cutoff)
        self.data_struct.update_tensor("rec.users", _user_of_each_row(interaction[self.config["USER_ID_FIELD"]], rows))
        if self._needs_items:
            self.data_struct.update_tensor("rec.items", ranking.masked_fill(best == -torch.inf, 0))
        if self._needs_hits:
            # Distinct pairs, ascending, so that a positive listed twice counts once, as in a matrix.
            positives = torch.unique(positive_rows * items + positive_items).to(scores.device)
            wanted = ranking + torch.arange(0, rows * items, items, device=scores.device).unsqueeze(1)
            hits = torch.isin(wanted, positives)
            lengths = torch.bincount(positives // items, minlength=rows).unsqueeze(1)
            self.data_struct.update_tensor("rec.topk", torch.cat([hits.long(), lengths], dim=1))

    def collected(self) -> dict[str, Tensor]:
        """The collected values of the latest evaluation, by name, with one row for each user."""
        return {name: self._collected.get(name) for name in self._names}

    def get_data_struct(self) -> DataStruct:
        """The collected values of one evaluation, for RecBole's Evaluator; the next evaluation starts empty."""
        self._names = list(self.data_struct.batches)
        self._collected = self.data_struct.finished()
        return self._collected

    def per_user(self) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Each user's metrics in the latest evaluation, for paired tests of significance.

        Returns:
            Users (n,), ids in the order of evaluation; and the unrounded values (n,) of each metric that is a mean over
            users (``recall@10``, ...). Both are empty if no metric is.

        Raises:
            IndexError: no ranking has been collected yet.
        """
        values: dict[str, NDArray[Any]] = {}
        for name in self.config["metrics"]:
            metric = metric_class(name)(self.config)
            if metric.metric_type == EvaluatorType.RANKING and hasattr(metric, "topk_result"):
                # RecBole's metrics compute (n, max k) values and pass them to `topk_result`, which takes their mean.
                metric.topk_result = lambda key, table: {f"{key}@{k}": table[:, k - 1] for k in self.topk}
                values.update(metric.calculate_metric(self._collected))
        return (self._collected.get("rec.users").numpy() if values else np.empty(0, dtype=np.int64)), values


def _user_of_each_row(users: Tensor, rows: int) -> Tensor:
    """The user of each row of scores; with sampled negatives a batch has a user once for each candidate."""
    return users if len(users) == rows else torch.unique_consecutive(users)


class PartOfBatches(FastFullSortEvalDataLoader):
    """A part of the batches of a full-ranking loader; the batches are those of one process."""

    def __init__(self, whole: FastFullSortEvalDataLoader, share: Share) -> None:
        self.__dict__.update(whole.__dict__)
        users, each = whole.sample_size, whole.step
        starts = range(0, users, each)[share.part(-(-users // each))]
        self._batches = [range(start, min(start + each, users)) for start in starts]

    def __len__(self) -> int:
        return len(self._batches)

    def __bool__(self) -> bool:
        return True  # a process without a batch still takes part

    def __iter__(self) -> Iterator[Any]:
        return (self.collate_fn(list(batch)) for batch in self._batches)
