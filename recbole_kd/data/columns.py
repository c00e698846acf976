"""Columns and rows of a dataset during reading and splitting: tokens by id, groups of rows, selection of rows."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_kd.data.reader import by_first_appearance

__all__ = [
    "Groups",
    "TokenIds",
    "Tokens",
    "as_recboles",
    "as_tensor",
    "cut",
    "numbered",
    "row_type",
    "some_rows",
]


class Tokens(UserDict[str, Any]):
    """Field -> tokens by id, converted to a numpy array at first use: a million tokens take 100 MB.

    Attributes:
        data: field -> the array, or the Arrow data for it.
    """

    def __getitem__(self, field: str) -> NDArray[np.str_]:
        if isinstance(self.data[field], pa.Array):
            self.data[field] = np.array(self.data[field].to_pylist())
        return self.data[field]


class TokenIds(dict[str, Any]):
    """Field -> a dict from tokens to ids, made at first use."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self._tokens = tokens

    def __missing__(self, field: str) -> dict[str, int]:
        self[field] = {token: index for index, token in enumerate(self._tokens[field].tolist())}
        return dict.__getitem__(self, field)


class Groups:
    """Rows grouped by a key: groups in the order in which their keys first appear, rows of a group in order."""

    def __init__(self, keys: NDArray[Any]) -> None:
        kind = row_type(len(keys))
        grouped, rows = torch.sort(torch.from_numpy(keys), stable=True)
        self.rows: Tensor = torch.from_numpy(rows.numpy().astype(kind))
        starts = np.append(0, 1 + np.flatnonzero((grouped[1:] != grouped[:-1]).numpy()))[: len(keys)].astype(kind)
        order = np.argsort(self.rows.numpy()[starts])
        self.starts: NDArray[Any] = starts[order]
        self.sizes: NDArray[Any] = np.diff(starts, append=kind(len(keys)))[order]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        rows = self.rows.numpy()
        return (rows[start : start + size] for start, size in zip(self.starts, self.sizes))

    def pieces(self, first: NDArray[Any], last: NDArray[Any]) -> Tensor:
        """The rows ``first[g]`` to ``last[g] - 1`` of each group g, one group after the other."""
        first, lengths = first.astype(self.sizes.dtype), (last - first).astype(self.sizes.dtype)
        ends = np.cumsum(lengths, dtype=lengths.dtype)
        places = np.repeat(self.starts + first - (ends - lengths), lengths)
        places += np.arange(len(places), dtype=places.dtype)
        return self.rows.index_select(0, torch.from_numpy(places))


def some_rows(features: Interaction, index: Any) -> Interaction:
    """Some rows, by a slice or by row numbers; twice as fast as Interaction's own indexing."""
    if isinstance(index, Tensor):
        return Interaction({field: values.index_select(0, index) for field, values in features.interaction.items()})
    return Interaction({field: values[index] for field, values in features.interaction.items()})


def as_recboles(features: Interaction, index: Any) -> Interaction:
    """Some rows in RecBole's form, with ids in int64."""
    rows = some_rows(features, index).interaction
    return Interaction(
        {field: values.long() if values.dtype == torch.int32 else values for field, values in rows.items()}
    )


def as_tensor(values: Any) -> Tensor:
    """A tensor that shares the memory of an array, which may be read-only."""
    return torch.utils.dlpack.from_dlpack(pa.array(values))


def row_type(rows: int) -> type[np.signedinteger[Any]]:
    """The type of row numbers: int32, which takes half the memory, if it is large enough."""
    return np.int32 if rows < 2**31 else np.int64


def cut(values: NDArray[Any], parts: Sequence[Any]) -> list[NDArray[Any]]:
    """`values` divided into pieces with the lengths of `parts`."""
    return np.split(values, np.cumsum([len(part) for part in parts])[:-1])


def numbered(codes: NDArray[np.int32], tokens: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """(rows,) ids from 1 by first appearance, 0 for a missing token; and the tokens of the ids, padding first."""
    missing = codes == 0
    numbers, found = by_first_appearance(codes[~missing])
    ids = np.zeros(len(codes), dtype=np.int32)
    ids[~missing] = numbers + 1
    return ids, tokens.take(pa.array(np.append(0, found)))
