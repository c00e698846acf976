"""A teacher in a file of another system: ranked lists, with or without scores (``--teacher.ranks=FILE``)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from recbole_kd.contracts import Sequences
from recbole_kd.data.ranked_lists import RankedLists
from recbole_kd.data.sequence_states import SequenceStates, state_keys
from recbole_kd.errors import UserError
from recbole_kd.files.digest import digest
from recbole_kd.teacher.bare import FileTeacher

__all__ = ["RankFileTeacher", "SequenceRankFileTeacher"]


class RankFileTeacher(FileTeacher):
    """Ranked lists of a file. If the file has scores, they are scores of the listed items only."""

    setting = "ranks"

    def __init__(self, path: str, lists: RankedLists) -> None:
        """
        Args:
            path: the file of the lists, for results and messages.
            lists: the lists in the student's ids.
        """
        super().__init__(path, lists.digest)
        self.lists = lists
        self.capabilities = frozenset({"ranks"} if lists.scores is None else {"ranks", "listed_scores"})
        if lists.observed_rows:
            logging.getLogger().warning(
                f"{lists.observed_rows:,} rows of {path} are interactions of the training split and are left out: "
                "rankings hold unobserved items only."
            )
        if lists.users_without:
            logging.getLogger().info(
                f"{path} has no list for {lists.users_without:,} users of the training split: only the base loss "
                "trains them."
            )

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 if there are fewer."""
        return self.lists.top(k)

    def listed_weights(self, k: int) -> Tensor | None:
        """The file's confidence in each of :meth:`ranked_items`, (U, k); None if it has no confidences."""
        return self.lists.top_weights(k)

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The file's scores of users (n,) with items (n,) or (n, k), in the shape of `items`; NaN if missing."""
        if self.lists.scores is None:
            self.lacks("listed_scores")
        return self.lists.scores_of(users, items)

    @property
    def ranks_key(self) -> str:
        """Cache key of its ranked lists: a digest of the lists in the student's ids."""
        return digest(self.digest, self.lists.offsets, self.lists.items)


class SequenceRankFileTeacher(FileTeacher):
    """Ranked lists of a file for sequential students: next items after some of the training sequences."""

    setting = "ranks"

    def __init__(self, path: str, lists: RankedLists, states: SequenceStates) -> None:
        """
        Args:
            path: the file of the lists, for results and messages.
            lists: the lists in the student's ids; their rows are those of `states`.
            states: the training sequences.
        """
        super().__init__(path, lists.digest)
        self.lists = lists
        scored = () if lists.scores is None else ("sequence_listed_scores",)
        self.capabilities = frozenset({"sequence_ranks", *scored})
        self._keys, self._rows = states.keys[1:].sort()
        lengths = lists.offsets[1:] - lists.offsets[:-1]
        self._held: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        self._shortest = int(lengths[lengths > 0].min())
        logging.getLogger().info(
            f"{path} has lists after {int((lengths > 0).sum()):,} of {len(states.users) - 1:,} training sequences; "
            f"only the base loss trains on the other {lists.users_without:,}."
        )

    def ranked_after(self, users: Tensor, sequences: Sequences, k: int) -> tuple[Tensor, Tensor | None]:
        """The k best next items after n training sequences of users (n,), and their weights: (n, k).

        Raises:
            UserError: the file has a shorter list.
        """
        rows, (items, weights, _) = self._rows_of(users, sequences), self._best(k)
        return items[rows].long(), None if weights is None else weights[rows]

    def listed_scores_after(self, users: Tensor, sequences: Sequences, k: int) -> Tensor:
        """The file's scores of :meth:`ranked_after`, (n, k)."""
        scores = self._best(k)[2]
        if scores is None:
            self.lacks("sequence_listed_scores")
        return scores[self._rows_of(users, sequences)]

    def _rows_of(self, users: Tensor, sequences: Sequences) -> Tensor:
        """(n,) the rows of the file's lists after sequences of users (n,); 0, an empty row, if there is no list."""
        keys = state_keys(users, sequences.items).cpu()
        place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return torch.where(self._keys[place] == keys, self._rows[place] + 1, 0)

    def _best(self, k: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The first k of every list, their weights and scores: (R + 1, k)."""
        if k > self._shortest:
            raise UserError(
                f"{self.name} has a list of {self._shortest:,} items, but {k:,} are needed; lower the pool "
                "(--rrd.pool, --cd.pool, --kd.items) or give longer lists."
            )
        if self._held is None or self._held[0].shape[1] != k:
            self._held = self.lists.top(k), self.lists.top_weights(k), self.lists.top_scores(k)
        return self._held
