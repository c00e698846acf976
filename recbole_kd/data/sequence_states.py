"""Users' items in time: training sequences, which are found by content, and all items before a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from recbole_kd.data.dataset import BEFORE, PLACE
from recbole_kd.data.observed import entries

__all__ = ["Past", "SequenceStates", "state_keys"]

#: Odd, so that no power of it is 0 among 64-bit numbers.
_BASE = 6364136223846793005


def state_keys(users: Tensor, items: Tensor) -> Tensor:
    """(n,) int64: a hash of each user (n,) with a sequence of items (n, L); it does not depend on trailing zeros.

    It is a polynomial in 64-bit arithmetic. With a million sequences, two have equal hashes in one of ten million
    splits.
    """
    powers = torch.full((items.shape[1] + 1,), _BASE, device=users.device).cumprod(0)
    return users.long() * powers[0] + (items.long() * powers[1:]).sum(1)


@dataclass(frozen=True)
class SequenceStates:
    """Rows 1 .. R: the training sequences by user, and for each user in time. Row 0 is padding.

    Attributes:
        keys: (R + 1,) results of :func:`state_keys`.
        users: (R + 1,) the user of each sequence.
        first: (U,) the first row of each user.
        counts: (U,) the number of rows of each user, from `first` on.
    """

    keys: Tensor
    users: Tensor
    first: Tensor
    counts: Tensor

    @classmethod
    def of(cls, train: Any) -> SequenceStates:
        """The states of RecBole's dataset of the training split of a sequential model."""
        rows, config = train.timed, train.config
        # Sequences with the same time are ordered by their lengths.
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
        """(n,) the rows of users (n,) at positions (n,), from 1; None: their last rows. 0 if there is none."""
        counts = self.counts[users]
        positions = counts if positions is None else positions
        there = (positions >= 1) & (positions <= counts)
        return torch.where(there, self.first[users] + positions - 1, 0)


@dataclass(frozen=True)
class Past:
    """Each user's items in all splits, in time, including items that are too old to be in a sequence.

    Attributes:
        offsets: (U + 1,); the items of user u are ``items[offsets[u]:offsets[u + 1]]``, oldest first.
        items: (n,)
    """

    offsets: Tensor
    items: Tensor

    @classmethod
    def of(cls, parts: Sequence[Any]) -> Past:
        """The past in all splits of RecBole's dataset of a sequential model: the datasets of its parts."""
        rows, config = [part.timed for part in parts], parts[0].config
        user, item = parts[0].uid_field, parts[0].iid_field
        users, items, before = (torch.cat([part[field] for part in rows]) for field in (user, item, BEFORE))
        # A user's first item is not the next item of any row.
        first = before == 1
        begins = torch.cat([part[item + config["LIST_SUFFIX"]][:, 0] for part in rows])[first]
        users, items = torch.cat([users[first], users]), torch.cat([begins, items])
        order = torch.argsort(torch.cat([torch.zeros_like(begins), before]), stable=True)
        order = order[torch.argsort(users[order], stable=True)]
        counts = torch.bincount(users, minlength=parts[0].user_num)
        return cls(torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]), items[order])

    def before(self, users: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The first `counts` (n,) items of users (n,): for each, its row in `users` and the item."""
        rows, places = entries(self.offsets[users], counts)
        return rows, self.items[places]
