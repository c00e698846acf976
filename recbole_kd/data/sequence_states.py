"""The training sequences of sequential models, found again by their content: each user's items so far, in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from recbole_kd.data.dataset import PLACE

__all__ = ["SequenceStates", "state_keys"]

#: Odd, so that no power of it is 0 among 64-bit numbers.
_BASE = 6364136223846793005


def state_keys(users: Tensor, items: Tensor) -> Tensor:
    """(n,) int64: a number of each user (n,) with a sequence of items (n, L), however many 0 follow the items.

    It is a polynomial among 64-bit numbers. Two of a million different ones are equal once in ten million splits.
    """
    powers = torch.full((items.shape[1] + 1,), _BASE, device=users.device).cumprod(0)
    return users.long() * powers[0] + (items.long() * powers[1:]).sum(1)


@dataclass(frozen=True)
class SequenceStates:
    """Rows 1 .. R: the training sequences by user, and of each user in time. Row 0 is padding.

    Attributes:
        keys: (R + 1,) of :func:`state_keys`.
        users: (R + 1,) whose they are.
        first: (U,) the first row of each user; `counts` rows from there on are the user's.
        counts: (U,)
    """

    keys: Tensor
    users: Tensor
    first: Tensor
    counts: Tensor

    @classmethod
    def of(cls, train: Any) -> SequenceStates:
        """The states of RecBole's dataset of the training split of a sequential model."""
        rows, config = train.timed, train.config
        # Sequences of one time are in the order of their lengths.
        order = torch.argsort(rows[config["ITEM_LIST_LENGTH_FIELD"]], stable=True)
        order = order[torch.argsort(rows[PLACE][order], stable=True)]
        order = order[torch.argsort(rows[train.uid_field][order], stable=True)]
        users = rows[train.uid_field][order].long()
        items = rows[train.iid_field + config["LIST_SUFFIX"]][order]
        keys = state_keys(users, items)
        counts = torch.bincount(users, minlength=train.user_num)
        padding = torch.zeros(1, dtype=torch.long)
        return cls(torch.cat([padding, keys]), torch.cat([padding, users]), 1 + counts.cumsum(0) - counts, counts)

    def rows(self, users: Tensor, positions: Optional[Tensor]) -> Tensor:
        """(n,) the rows of users (n,) at positions (n,) from 1 on; None: their last. 0 where there is none."""
        counts = self.counts[users]
        positions = counts if positions is None else positions
        there = (positions >= 1) & (positions <= counts)
        return torch.where(there, self.first[users] + positions - 1, 0)
