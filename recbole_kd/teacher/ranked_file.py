"""A teacher that is a file: ranked lists, with or without scores, from any other system (``--teacher.ranks=FILE``)."""

from __future__ import annotations

import logging

from torch import Tensor

from recbole_kd.data.ranked_lists import RankedLists
from recbole_kd.files.digest import digest
from recbole_kd.teacher.bare import FileTeacher

__all__ = ["RankFileTeacher"]


class RankFileTeacher(FileTeacher):
    """Ranked lists of a file. It has scores of the items that it lists, where the file gives them, and of no other."""

    setting = "ranks"

    def __init__(self, path: str, lists: RankedLists) -> None:
        """
        Args:
            path: where the lists were read, for results and messages.
            lists: in the student's ids.
        """
        super().__init__(path, lists.digest)
        self.lists = lists
        self.capabilities = frozenset({"ranks"} if lists.scores is None else {"ranks", "listed_scores"})
        if lists.observed_rows:
            logging.getLogger().warning(
                f"{lists.observed_rows:,} rows of {path} are interactions of the training split and are left out: "
                "rankings are of unobserved items."
            )
        if lists.users_without:
            logging.getLogger().info(
                f"{path} has no list for {lists.users_without:,} users of the training split: the base loss alone "
                "trains them."
            )

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 where there are fewer."""
        return self.lists.top(k)

    def listed_weights(self, k: int) -> Tensor | None:
        """How sure the file is of each of :meth:`ranked_items`, (U, k); None where it does not say."""
        return self.lists.top_weights(k)

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The file's scores of users (n,) with items (n,) or (n, k), shaped like `items`; NaN where it has none."""
        if self.lists.scores is None:
            self.lacks("listed_scores")
        return self.lists.scores_of(users, items)

    @property
    def ranks_key(self) -> str:
        """Under which its ranked lists are kept: of the lists, in the student's ids."""
        return digest(self.digest, self.lists.offsets, self.lists.items)
