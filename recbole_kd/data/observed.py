"""The observed interactions of the training split, as sorted rows of a sparse matrix."""

from __future__ import annotations

from functools import cached_property
from typing import Optional

import numpy as np
import torch
from torch import Tensor


class Observed:
    """The items of each user in the training split, in O(users + interactions) memory, never users x items.

    Attributes:
        users, items: U and I, padding included.
        offsets: (U + 1,) int64; user u's items are ``indices[offsets[u]:offsets[u + 1]]``.
        indices: (interactions,) int64, ascending within each user, without duplicates.
        keys: (interactions,) int64, ``user * items + item``, ascending.
    """

    def __init__(self, user_ids: Tensor, item_ids: Tensor, users: int, items: int) -> None:
        """
        Args:
            user_ids, item_ids: (n,) the observed pairs, in any order, duplicates allowed.
            users, items: U and I, padding included.
        """
        self.users = users
        self.items = items
        keys = np.sort((user_ids.long() * items + item_ids.long()).numpy())  # twice as fast as torch.unique
        self.keys = torch.from_numpy(keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys)
        self.offsets = torch.searchsorted(self.keys, torch.arange(users + 1) * items)
        self.indices = self.keys % items
        self._copies = {self.keys.device: (self.offsets, self.indices)}

    def __len__(self) -> int:
        """Number of distinct observed pairs."""
        return len(self.keys)

    @property
    def counts(self) -> Tensor:
        """(U,) observed items of each user."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def popularity(self) -> Tensor:
        """(I,) users who have observed each item."""
        return torch.bincount(self.indices, minlength=self.items)

    @cached_property
    def user_ids(self) -> Tensor:
        """(interactions,) the user of each entry of :attr:`indices`."""
        return self.keys // self.items

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether each pair is observed: bool, in the broadcast shape of `users` and `items`."""
        wanted = users.long() * self.items + items.long()
        if len(self.keys) == 0:
            return torch.zeros_like(wanted, dtype=torch.bool)
        position = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return self.keys[position] == wanted

    def rows_and_items(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Row in `users` and item of every pair of these users: (pairs,) each, on the device of `users`."""
        if users.device not in self._copies:  # copied once, because each step on a GPU needs them
            self._copies[users.device] = self.offsets.to(users.device), self.indices.to(users.device)
        offsets, indices = self._copies[users.device]
        first = offsets[users]
        rows, places = entries(first, offsets[users + 1] - first)
        return rows, indices[places]

    def pairs_of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(users (n,), items (n,)): all pairs of some users, in their order."""
        rows, items = self.rows_and_items(users)
        return users[rows], items

    def among(self, users: Optional[Tensor], items: Optional[Tensor]) -> Observed:
        """The pairs of the marked users (U,) and items (I,); None marks all."""
        if users is None and items is None:
            return self
        kept = torch.ones(len(self), dtype=torch.bool)
        for ids, marks in ((self.user_ids, users), (self.indices, items)):
            if marks is not None:
                kept &= marks.cpu()[ids]
        return Observed(self.user_ids[kept], self.indices[kept], self.users, self.items)

    def transposed(self) -> Observed:
        """The same pairs with users and items exchanged."""
        return Observed(self.indices, self.user_ids, self.items, self.users)


def entries(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and places of the entries of n rows, which begin at `first` (n,) and have `counts` (n,) entries."""
    rows = torch.repeat_interleave(counts)
    # Entry m of the result is entry m - (number of entries of earlier rows) of its row.
    shift = first - (counts.cumsum(0) - counts)
    return rows, torch.arange(len(rows), device=first.device) + shift[rows]
