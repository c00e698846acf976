"""Full-ranking evaluation through RecBole's own Evaluator, at a fraction of RecBole's time.

How a trainer uses it, each piece on its own or all together:

- ``self.eval_collector = FullSortCollector(config)`` after ``Trainer.__init__``; it serves all of RecBole's loaders.
- :class:`recbole_kd.data.loaders.FastFullSortEvalDataLoader` where RecBole builds a ``FullSortEvalDataLoader``, with
  batches of :func:`recbole_kd.data.loaders.sized_eval_batch` where the user gave no size.
- ``self.test_batch_size = PAIRS_PER_CALL``: it bounds the memory of models without ``full_sort_predict``.

What costs RecBole its time, and what is done instead:

- It takes the top k of each row in a full pass of `torch.topk`, once for "rec.items" and once for "rec.topk":
  :func:`exact_topk` searches only the blocks with the largest maxima, once.
- It marks the positives in a dense integer matrix: here a hit is found among the sorted positive pairs.
- After each batch it concatenates all that was collected so far: here once, at the end.
- It makes a tensor per user, and joins those of a batch in a loop: here batches are cut out of sorted arrays.
- A large block of scores goes back to the system after each batch, and the next one pays a page fault per page; a
  block of one user pays Python's price per user: ``sized_eval_batch`` lies between.

Masking (`Trainer._full_sort_batch_eval`) stays RecBole's: it is a few hundredths of what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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

#: User-item pairs given to one call of `model.predict` where a model scores pair by pair.
PAIRS_PER_CALL = 2**17

#: Items under one block maximum.
_BLOCK = 8


def exact_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What ``torch.topk(scores, k)`` returns, ties included, faster on a CPU where the rows are long and k is small.

    A row's top k lie under its k largest block maxima, so that only these blocks are searched; the maxima are searched
    the same way. Where equal scores (or NaN) meet among the first k + 1 of a row, the choice and order of its items is
    torch's to make, and that row goes to `torch.topk` itself.

    Args:
        scores: (B, I), -inf where an item must not be recommended.
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
    """The k largest values (B, k) of each row, exactly, and where they stand; among equal values any may be chosen."""
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
    """A DataStruct that concatenates what batches brought once, at the end, not anew with each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, list[Tensor]] = {}

    def update_tensor(self, name: str, value: Tensor) -> None:
        self.batches.setdefault(name, []).append(value.clone().detach())

    def join(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds what other collectors collected, as if their batches had come here, one part after the other."""
        for part in parts:
            for name, value in part.items():
                self.update_tensor(name, value)

    def finished(self) -> DataStruct:
        """All that was set and collected, on the CPU; what batches brought is forgotten here."""
        struct = DataStruct()
        for name, value in self._data_dict.items():
            struct.set(name, value.cpu() if isinstance(value, Tensor) else value)
        for name, batches in self.batches.items():
            struct.set(name, torch.cat(batches).cpu())
        self.batches = {}
        return struct


class FullSortCollector(Collector):
    """RecBole's collector with one top-k per batch and no matrix of positives.

    "rec.topk" and "rec.items" equal what RecBole's collector hands to the Evaluator, to the bit and ties included, but
    for places of items that are left out (a score of -inf): there "rec.items" says 0, no item. "rec.meanrank",
    "rec.score" and "data.label" are collected by RecBole's own code. Metrics that need "data.*", such as ItemCoverage,
    work here, while RecBole 1.2.1 stops at them, calling `.cpu()` on a number.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.data_struct = _CollectedBatches()
        self._collected = DataStruct()
        self._names: list[str] = []
        self._needs_items = self.register.need("rec.items")
        self._needs_hits = self.register.need("rec.topk")
        # These two are collected here: RecBole's own method, called for the rest, must not collect them again.
        setattr(self.register, "rec.items", False)
        setattr(self.register, "rec.topk", False)

    def data_collect(self, train_data: Any) -> None:
        """Collects how often each item is in the training data, of sequences their first items included."""
        super().data_collect(train_data)
        self.data_struct.set("data.num_items", train_data.dataset.item_num)
        if self.register.need("data.count_items"):
            self.data_struct.set("data.count_items", Counter(interactions_of(train_data.dataset)[1].tolist()))

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collects what the metrics need of one batch.

        Args:
            scores_tensor: (B, I), -inf for padding and for what a user already had.
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
            # Distinct pairs, ascending: a positive that is listed twice counts once, as in a matrix.
            positives = torch.unique(positive_rows * items + positive_items).to(scores.device)
            wanted = ranking + torch.arange(0, rows * items, items, device=scores.device).unsqueeze(1)
            hits = torch.isin(wanted, positives)
            lengths = torch.bincount(positives // items, minlength=rows).unsqueeze(1)
            self.data_struct.update_tensor("rec.topk", torch.cat([hits.long(), lengths], dim=1))

    def collected(self) -> dict[str, Tensor]:
        """What the batches of the latest evaluation brought, by name, each with a row for a user."""
        return {name: self._collected.get(name) for name in self._names}

    def get_data_struct(self) -> DataStruct:
        """What one evaluation collected, for RecBole's Evaluator; the next evaluation starts afresh."""
        self._names = list(self.data_struct.batches)
        self._collected = self.data_struct.finished()
        return self._collected

    def per_user(self) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Each user's metrics in the latest evaluation, for paired tests of significance.

        Returns:
            users (n,), their ids in the order of evaluation, and for each metric that is a mean over users
            (``recall@10``, ...) its values (n,), unrounded.

        Raises:
            IndexError: no ranking has been collected yet.
        """
        values: dict[str, NDArray[Any]] = {}
        for name in self.config["metrics"]:
            metric = metric_class(name)(self.config)
            if metric.metric_type == EvaluatorType.RANKING and hasattr(metric, "topk_result"):
                # RecBole's metrics compute (n, max k) values and give them to `topk_result`, which takes their mean.
                metric.topk_result = lambda key, table: {f"{key}@{k}": table[:, k - 1] for k in self.topk}
                values.update(metric.calculate_metric(self._collected))
        return self._collected.get("rec.users").numpy(), values


def _user_of_each_row(users: Tensor, rows: int) -> Tensor:
    """The user of each row of scores; with sampled negatives a batch lists a user once for each candidate."""
    return users if len(users) == rows else torch.unique_consecutive(users)


class PartOfBatches(FastFullSortEvalDataLoader):
    """A part of the batches of a loader of full-ranking batches: whole ones, as one process would make them."""

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
