"""A teacher that is a file: ranked lists, with or without scores, from any other system (``--teacher.ranks=FILE``)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_kd.data.ranked_lists import RankedLists
from recbole_kd.files.digest import digest
from recbole_kd.teacher.bare import BareTeacher

__all__ = ["RankFileTeacher"]


class RankFileTeacher(BareTeacher):
    """Ranked lists of a file. It has scores of the items that it lists, where the file gives them, and of no other."""

    def __init__(self, path: str, lists: RankedLists) -> None:
        """
        Args:
            path: where the lists were read, for results and messages.
            lists: in the student's ids.
        """
        self.path = path
        self.lists = lists
        self.name = f"the file {Path(path).name}"
        self.digest = lists.digest
        self.capabilities = frozenset({"ranks"} if lists.scores is None else {"ranks", "listed_scores"})
        if lists.observed_rows:
            logging.getLogger().warning(
                f"{lists.observed_rows:,} rows of {path} are interactions of the training split and are left out: "
                "rankings are of unobserved items."
            )

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 where there are fewer."""
        return self.lists.top(k)

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The file's scores of users (n,) with items (n,) or (n, k), shaped like `items`; NaN where it has none."""
        if self.lists.scores is None:
            self.lacks("listed_scores")
        return self.lists.scores_of(users, items)

    @property
    def ranks_key(self) -> str:
        """Under which its ranked lists are kept: of the lists, in the student's ids."""
        return digest(self.digest, self.lists.offsets, self.lists.items)

    def summary(self) -> dict[str, Any]:
        """The part of a run's result that tells of the teacher; a file has no checkpoint and is not evaluated."""
        return {
            "model": self.name,
            "ranks": self.path,
            "checkpoint": None,
            "digest": self.digest,
            "from_cache": False,
            "test_result": {},
            "train_seconds": 0.0,
        }

    @property
    def files(self) -> list[str]:
        """What the teacher was read from."""
        return [self.path]

    @property
    def parameters(self) -> int:
        """Number of weights: a file has none."""
        return 0
