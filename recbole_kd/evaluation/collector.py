"""Full-ranking evaluation through RecBole's own Evaluator, at a fraction of RecBole's time.

How a trainer uses it, each piece on its own or all together:

- ``self.eval_collector = FullSortCollector(config)`` after ``Trainer.__init__``; it serves all of RecBole's loaders.
- ``FastFullSortEvalDataLoader(config, dataset, sampler)`` wherever RecBole builds a ``FullSortEvalDataLoader``.
- ``config["eval_batch_size"] = sized_eval_batch(item_num)`` before the loaders are built, where the user gave none;
  then also ``self.test_batch_size = PAIRS_PER_CALL``: it bounds the memory of models without ``full_sort_predict``.

What costs RecBole its time, and what is done instead:

- It takes the top k of each row in a full pass of `torch.topk`, once for "rec.items" and once for "rec.topk":
  :func:`exact_topk` searches only the blocks with the largest maxima, once.
- It marks the positives in a dense integer matrix: here a hit is found among the sorted positive pairs.
- After each batch it concatenates all that was collected so far: here once, at the end.
- It makes a tensor per user, and joins those of a batch in a loop: here batches are cut out of sorted arrays.
- A large block of scores goes back to the system after each batch, and the next one pays a page fault per page; a
  block of one user pays Python's price per user: :func:`sized_eval_batch` lies between.

Masking (`Trainer._full_sort_batch_eval`) stays RecBole's: it is a few hundredths of what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from logging import getLogger
from typing import Any, Optional, Union

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, DataStruct
from recbole.evaluator.register import metrics_dict
from recbole.utils import EvaluatorType, ModelType
from torch import Tensor

from recbole_kd.contracts import Share
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError

#: Size of a block of float32 scores at which an evaluation is fastest: it stays in the cache and well below the sizes
#: (16-32 MiB) from which the C allocator returns freed memory to the system, to be faulted in again by the next batch.
SCORE_BLOCK_BYTES = 8 * 2**20
#: Users of a block, at least: of a catalogue of a million, fewer would read the item table more often than they use it.
LEAST_ROWS = 8

#: User-item pairs given to one call of `model.predict` where a model scores pair by pair.
PAIRS_PER_CALL = 2**17

#: Items under one block maximum.
_BLOCK = 8


def sized_eval_batch(items: int, available_bytes: Optional[int] = None, candidates: Optional[int] = None) -> int:
    """The `eval_batch_size` at which evaluation is fastest, in what RecBole counts with it: scored user-item pairs.

    Args:
        items: I, padding included: columns of a block of scores.
        available_bytes: memory that a block may take; None leaves the size to speed alone.
        candidates: pairs that RecBole scores per user. None is full ranking, every item; with sampled negatives it is
            (1 + negatives) x positives of a user (a block has a column for each item nevertheless).

    Returns:
        rows x candidates, for as many users (rows) as fit; at least 8, or one where `available_bytes` says so.
    """
    rows = max(LEAST_ROWS, SCORE_BLOCK_BYTES // (4 * items))  # 4 bytes a float32 score
    if available_bytes is not None:
        rows = max(1, min(rows, available_bytes // (4 * items)))
    return rows * (items if candidates is None else candidates)


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

    "rec.topk" and "rec.items" equal what RecBole's collector hands to the Evaluator, to the bit and ties included;
    "rec.meanrank", "rec.score" and "data.label" are collected by RecBole's own code. Metrics that need "data.*", such
    as ItemCoverage, work here, while RecBole 1.2.1 stops at them, calling `.cpu()` on a number.
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
        ranking = exact_topk(scores, cutoff)[1]
        self.data_struct.update_tensor("rec.users", _user_of_each_row(interaction[self.config["USER_ID_FIELD"]], rows))
        if self._needs_items:
            self.data_struct.update_tensor("rec.items", ranking)
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
            metric = metrics_dict[name.lower()](self.config)
            if metric.metric_type == EvaluatorType.RANKING and hasattr(metric, "topk_result"):
                # RecBole's metrics compute (n, max k) values and give them to `topk_result`, which takes their mean.
                metric.topk_result = lambda key, table: {f"{key}@{k}": table[:, k - 1] for k in self.topk}
                values.update(metric.calculate_metric(self._collected))
        return self._collected.get("rec.users").numpy(), values


def _user_of_each_row(users: Tensor, rows: int) -> Tensor:
    """The user of each row of scores; with sampled negatives a batch lists a user once for each candidate."""
    return users if len(users) == rows else torch.unique_consecutive(users)


class FastFullSortEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's loader of full-ranking batches, from sorted arrays instead of a tensor and two sets per user.

    Batches hold the same users, masked pairs and positive pairs as RecBole's; pairs come with items ascending within a
    user, where RecBole has a set's order. Sequential models get RecBole's own loader.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            super().__init__(config, dataset, sampler, shuffle=shuffle)
            return
        self.logger = getLogger()
        self.uid_field = dataset.uid_field
        self.iid_field = dataset.iid_field
        self.is_sequential = False
        if shuffle:
            self.logger.warning("FullSortEvalDataLoader can't shuffle")
        users, items = dataset.inter_feat[self.uid_field], dataset.inter_feat[self.iid_field]
        self._positive = Observed(users, items, dataset.user_num, dataset.item_num)
        self._history = _difference(sampler.used_ids, self._positive)
        self.uid_list = self._positive.counts.nonzero().squeeze(1)
        self.uid2items_num = self._positive.counts.numpy()
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        self.sample_size = len(self.uid_list)
        # Past FullSortEvalDataLoader's own constructor, which is what this class replaces.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    @cached_property
    def uid2positive_item(self) -> NDArray[Any]:
        """(U,) the positive items of each user as a tensor, None for users who are not evaluated."""
        return self._by_user(self._positive)

    @cached_property
    def uid2history_item(self) -> NDArray[Any]:
        """(U,) the items to mask for each user as a tensor, None for users who are not evaluated."""
        return self._by_user(self._history)

    def _by_user(self, pairs: Observed) -> NDArray[Any]:
        by_user = np.full(pairs.users, None, dtype=object)
        for user in self.uid_list.tolist():
            by_user[user] = pairs.indices[pairs.offsets[user] : pairs.offsets[user + 1]]
        return by_user

    def collate_fn(self, index: Any) -> Any:
        """The batch of the users at `index`: (users, (history rows, history items), positive rows, positive items)."""
        if self.is_sequential:
            return super().collate_fn(index)
        user_df = self.user_df[np.asarray(index)]
        users = user_df[self.uid_field]
        return (user_df, self._history.rows_and_items(users), *self._positive.rows_and_items(users))


def _difference(used_ids: Union[Observed, NDArray[Any]], positive: Observed) -> Observed:
    """The pairs of `used_ids`, sorted or RecBole's array of one set per user, that are not positive."""
    if isinstance(used_ids, Observed):
        users, items = used_ids.user_ids, used_ids.indices
    else:
        counts = np.fromiter(map(len, used_ids), dtype=np.int64, count=len(used_ids))
        each = itertools.chain.from_iterable(used_ids)
        items = torch.from_numpy(np.fromiter(each, dtype=np.int64, count=counts.sum()))
        users = torch.repeat_interleave(torch.from_numpy(counts))
    kept = ~positive.contains(users, items)
    return Observed(users[kept], items[kept], positive.users, positive.items)


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
