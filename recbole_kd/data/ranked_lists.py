"""Reads a file of scores or ranked items of another system, as ranked lists of unobserved items in this dataset's ids.

A row recommends an item to a user. The columns have the dataset's names (``user_id``, ``item_id``) and original ids. A
user's items are ordered by a column ``rank`` (1 is the best), otherwise by a column ``score`` (the highest first),
otherwise by the order of rows. A column ``weight``, at least 0, is the system's confidence in a row. For sequential
models a column ``position`` names the user's training sequence after which the item follows. Text has a header, plain
or as in RecBole's atomic files (``user_id:token``), and tabs or commas between columns; Parquet is read too. Rows are
read in batches, and 20 bytes are held for each kept row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recbole_kd.data.foreign import LARGEST, ForeignIds, find_columns
from recbole_kd.data.observed import Observed
from recbole_kd.data.sequence_states import SequenceStates
from recbole_kd.errors import UserError
from recbole_kd.files.reading import file_digest
from recbole_kd.files.tables import read_batches, readable
from recbole_kd.text import counted

_HELP = "expected columns {user} and {item}, and score or rank if the order of the rows is not the ranking"


@dataclass(frozen=True)
class RankedLists:
    """Ranked lists of unobserved items, user after user.

    Attributes:
        offsets: (U + 1,) int64; the list of user u is ``items[offsets[u]:offsets[u + 1]]``, best first.
        items: (n,) int32.
        scores, weights: (n,) float32, or None if the file has none.
        catalogue: I.
        observed_rows: number of rows of the file that were left out because they are in the training split.
        users_without: number of users of the training split for whom the file lists no unobserved item.
        digest: sha256 of the file, in hexadecimal.
    """

    offsets: Tensor
    items: Tensor
    scores: Optional[Tensor]
    weights: Optional[Tensor]
    catalogue: int
    observed_rows: int
    users_without: int
    digest: str

    def top(self, k: int) -> Tensor:
        """The k best items of every user, best first: (U, k) int32, filled with 0 if a list is shorter."""
        return self._top(self.items, k)

    def top_weights(self, k: int) -> Optional[Tensor]:
        """Their weights, (U, k) float32; None if the file has none."""
        return None if self.weights is None else self._top(self.weights, k)

    def top_scores(self, k: int) -> Optional[Tensor]:
        """Their scores, (U, k) float32; None if the file has none."""
        return None if self.scores is None else self._top(self.scores, k)

    def _top(self, values: Tensor, k: int) -> Tensor:
        users = len(self.offsets) - 1
        lengths = (self.offsets[1:] - self.offsets[:-1]).clamp(max=k)
        rows = torch.repeat_interleave(torch.arange(users), lengths)
        columns = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
        bank = torch.zeros(users, k, dtype=values.dtype)
        bank[rows, columns] = values[self.offsets[rows] + columns]
        return bank

    @cached_property
    def _by_key(self) -> tuple[Tensor, Tensor]:
        """The pairs as ``user * I + item``, ascending, and the score of each."""
        assert self.scores is not None
        lengths = self.offsets[1:] - self.offsets[:-1]
        users = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        keys, order = (users * self.catalogue + self.items).sort()
        return keys, self.scores[order]

    def scores_of(self, users: Tensor, items: Tensor) -> Tensor:
        """The file's scores of users (n,) with items (n,) or (n, k), in the shape of `items`; NaN if missing."""
        keys, scores = self._by_key
        wanted = (users.unsqueeze(1) if items.dim() == 2 else users).cpu().long() * self.catalogue + items.cpu().long()
        position = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        return scores[position].masked_fill(keys[position] != wanted, torch.nan).to(items.device)


def read_ranked_lists(
    path: str,
    user_tokens: Sequence[str],
    item_tokens: Sequence[str],
    observed: Observed,
    fields: tuple[str, str] = ("user_id", "item_id"),
    setting: str = "teacher.ranks",
    states: Optional[SequenceStates] = None,
) -> RankedLists:
    """Reads and checks a file of ranked lists.

    Args:
        path: the file.
        user_tokens, item_tokens: original ids by internal id; index 0 is padding.
        observed: the training split: its pairs are left out, and some of its users must have lists.
        fields: names of the columns of users and of items.
        setting: the setting that named the file, for messages.
        states: for a sequential model: lists belong to training sequences instead of users, to the last one of each
            user or to the one in a column ``position``. Observed items are not left out of them.

    Raises:
        UserError: a file that cannot be read, missing columns, ids that are not in the dataset, an item twice in a
            list, a score that is not a number, a weight below 0, or no list for any user of the training split.
    """
    source = f"--{setting}={path}"
    if not Path(path).is_file():
        raise UserError(f"{source}: there is no such file; give one of scores or ranked items.")
    reader = _Reader(source, user_tokens, item_tokens)
    with readable(source):
        wanted = {"users": fields[0], "items": fields[1], **{name: name for name in _NUMBERS}}
        expected = _HELP.format(user=fields[0], item=fields[1])
        choose = partial(find_columns, source, wanted=wanted, needed=("users", "items"), expected=expected)
        for batch in read_batches(path, choose, _NUMBERS):
            reader.add(batch)
        users, items, order, position, *numbers = reader.columns()
        digest, _ = file_digest(path)
    if states is not None:
        places = None if position is None else torch.from_numpy(position).long()
        users = states.rows(torch.from_numpy(users).long(), places).numpy()
        observed = Observed(torch.empty(0), torch.empty(0), len(states.users), observed.items)
    arranged = np.argsort(users, kind="stable") if order is None else np.lexsort((order, users))
    users, items = torch.from_numpy(users[arranged]), torch.from_numpy(items[arranged])
    keys, _ = (users.long() * observed.items + items).sort()
    # Rows without a training sequence may be of several.
    reader.refuse_duplicates(keys[keys >= observed.items], observed.items, states)
    kept = ~observed.contains(users, items) & (users > 0)
    scores, weights = (None if one is None else torch.from_numpy(one[arranged])[kept] for one in numbers)
    users, items = users[kept], items[kept]
    counts = torch.bincount(users, minlength=observed.users)
    trained = observed.counts > 0 if states is None else torch.arange(observed.users) > 0
    if not bool((counts[trained] > 0).any()):
        rows = "users" if states is None else "sequences"
        raise UserError(
            f"{source} lists no unobserved item for any of {int(trained.sum()):,} {rows} of the training split; give "
            "lists of what they may have next."
        )
    offsets = torch.zeros(observed.users + 1, dtype=torch.long)
    offsets[1:] = counts.cumsum(0)
    without = int((trained & (counts == 0)).sum())
    return RankedLists(offsets, items, scores, weights, observed.items, int((~kept).sum()), without, digest)


#: Columns of numbers.
_NUMBERS = ("rank", "score", "weight", "position")


class _Reader:
    """Collects the rows of a file as internal ids, and checks them."""

    def __init__(self, source: str, user_tokens: Sequence[str], item_tokens: Sequence[str]) -> None:
        self.source = source
        self.tokens = {"users": user_tokens, "items": item_tokens}
        self.ids = ForeignIds(source, self.tokens)
        self.rows = 0
        self.parts: list[tuple[Any, ...]] = []

    def add(self, batch: dict[str, Any]) -> None:
        """Adds a batch of columns: ``users``, ``items``, and the existing columns of numbers."""
        ids = {kind: self.ids.of(kind, batch[kind]) for kind in self.tokens}
        first = self.rows + 1
        self.rows += len(ids["users"])
        numbers = []
        for name in _NUMBERS:
            column = batch.get(name)
            if column is not None:
                if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                    raise UserError(f"{self.source}: column '{name}' holds {column.type}; expected numbers.")
                column = column.to_numpy(zero_copy_only=False).astype(np.float64)
                wrong = np.flatnonzero(~(np.abs(column) <= LARGEST))
                if len(wrong):
                    raise UserError(
                        f"{self.source}: the {name} in row {first + int(wrong[0]):,} is not a finite number of 32 bits;"
                        " give every row one."
                    )
                if name == "weight" and len(column) and column.min() < 0:
                    row = first + int(column.argmin())
                    raise UserError(
                        f"{self.source}: the weight in row {row:,} is {column.min():g}; expected at least 0."
                    )
            numbers.append(column)
        found = (ids["users"] > 0) & (ids["items"] > 0)
        if batch.get("position") is None and self.rows > len(self.tokens["users"]) * len(self.tokens["items"]):
            raise UserError(f"{self.source} has more rows than users times items; list no pair twice.")
        self.parts.append(
            tuple(None if column is None else column[found] for column in (ids["users"], ids["items"], *numbers))
        )

    def columns(self) -> tuple[Any, ...]:
        """(users, items, order of a user's rows, positions, scores, weights as float32); None for missing columns."""
        if not self.rows:
            raise UserError(f"{self.source} has a header but no rows; expected one for each listed item.")
        self.ids.refuse_unknown(self.rows)
        users, items, rank, score, weight, position = (
            None if part[0] is None else np.concatenate(part) for part in map(list, zip(*self.parts))
        )
        order = rank if rank is not None else None if score is None else -score
        score, weight = (None if one is None else one.astype(np.float32) for one in (score, weight))
        return users, items, order, position, score, weight

    def refuse_duplicates(self, keys: Tensor, catalogue: int, states: Optional[SequenceStates]) -> None:
        """Raises an error if an item is twice in a list, given the pairs ``user * I + item``, ascending."""
        twice = (keys[1:] == keys[:-1]).nonzero().squeeze(1)
        if len(twice):
            user, item = divmod(int(keys[twice[0]]), catalogue)
            user = user if states is None else int(states.users[user])
            raise UserError(
                f"{self.source}: {counted(len(twice), 'row')} too many for a user and an item, such as "
                f"'{self.tokens['users'][user]}' and '{self.tokens['items'][item]}'; keep one row of each."
            )
