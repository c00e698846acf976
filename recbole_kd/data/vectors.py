"""Reads a file of another system's vectors, as tables in this dataset's ids.

A table (Parquet, or text with commas or tabs) has a column ``vector`` and a column of ids with the dataset's name
(``item_id``). A row is an item. With a column ``user_id`` too, a row is a user or an item, and its other id is empty.
In text, a vector is written as numbers separated by blanks, as in RecBole (``vector:float_seq``).

Safetensors have an array ``items`` and perhaps ``users``. Their ids are in ``items.jsonl`` and ``users.jsonl`` beside
the file, one JSON string a line, as written by ``recbole-kd export``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from torch import Tensor

from recbole_kd.data.foreign import LARGEST, ForeignIds, find_columns
from recbole_kd.errors import UserError
from recbole_kd.files.bundle import is_bundle, read_bundle
from recbole_kd.files.digest import digest
from recbole_kd.files.reading import file_digest, read_text, vector_files
from recbole_kd.files.tables import read_batches, readable

__all__ = ["VectorTable", "Vectors", "read_vectors"]


@dataclass(frozen=True)
class VectorTable:
    """Vectors of users or of items.

    Attributes:
        rows: (n, d) float32 by internal id; zeros for ids without a vector.
        known: (n,) bool, the ids with a vector; None: all.
    """

    rows: Tensor
    known: Optional[Tensor]

    @property
    def count(self) -> int:
        """The number of vectors, without padding."""
        return len(self.rows) - 1 if self.known is None else int(self.known.sum())

    @property
    def is_whole(self) -> bool:
        """Whether every user or item has a vector."""
        return self.count == len(self.rows) - 1

    def told(self, kind: str) -> str:
        """The number of vectors, in words."""
        return f"{self.count:,} of {len(self.rows) - 1:,} {kind}"


@dataclass(frozen=True)
class Vectors:
    """The content of a file of vectors.

    Attributes:
        users: vectors of users; None if the file has only items.
        items: vectors of items, of the same dimension.
        digest: digest of the file's content, in hexadecimal.
    """

    users: Optional[VectorTable]
    items: VectorTable
    digest: str


def read_vectors(
    path: str,
    user_tokens: Sequence[str],
    item_tokens: Sequence[str],
    fields: tuple[str, str] = ("user_id", "item_id"),
    setting: str = "teacher.vectors",
) -> Vectors:
    """Reads and checks a file of vectors.

    Args:
        path: the file.
        user_tokens, item_tokens: original ids by internal id; index 0 is padding.
        fields: names of the columns of users and of items.
        setting: the setting that named the file, for messages.

    Raises:
        UserError: a file that cannot be read, missing columns, ids that are not in the dataset or occur twice, vectors
            of different lengths, a number that is not finite, or no item.
    """
    source = f"--{setting}={path}"
    if not Path(path).is_file():
        raise UserError(f"{source}: there is no such file; give one of vectors of items, or of users and items.")
    reader = _Reader(source, {"users": user_tokens, "items": item_tokens})
    with readable(source):
        if Path(path).suffix == ".safetensors":
            _read_tensors(reader, path)
        else:
            wanted = {"users": fields[0], "items": fields[1], "vector": "vector"}
            expected = f"expected columns {fields[1]} and vector, and {fields[0]} if there are vectors of users"
            choose = partial(find_columns, source, wanted=wanted, needed=("items", "vector"), expected=expected)
            for batch in read_batches(path, choose):
                reader.add(batch)
        contents = [file_digest(file)[0] for file in vector_files(path)]
    return reader.vectors(contents[0] if len(contents) == 1 else digest(contents))


class _Reader:
    """Collects vectors by internal ids, and checks them."""

    def __init__(self, source: str, tokens: dict[str, Sequence[str]]) -> None:
        self.source, self.tokens = source, tokens
        self.ids = ForeignIds(source, tokens)
        self.rows = 0
        self.dimension = 0
        self.parts: dict[str, list[tuple[Any, Any]]] = {kind: [] for kind in tokens}

    def add(self, batch: dict[str, Any]) -> None:
        """Adds a batch of columns: ``vector``, ``items``, and perhaps ``users``."""
        vectors = self._numbers(batch["vector"])
        named = {kind: _is_named(batch[kind]) for kind in self.tokens if kind in batch}
        count = sum(marks.astype(int) for marks in named.values())
        for row in np.flatnonzero(count != 1)[:1]:
            found = "names a user and an item" if count[row] else "has no id"
            raise UserError(
                f"{self.source}: row {self.rows + row + 1:,} {found}; expected the id of one, user or item."
            )
        for kind, marks in named.items():
            self.parts[kind].append((self.ids.of(kind, batch[kind].filter(pa.array(marks))), vectors[marks]))
        self.rows += len(vectors)

    def add_array(self, kind: str, ids: list[str], vectors: Any) -> None:
        """Adds the vectors (n, d) of ``users`` or ``items``."""
        self.parts[kind].append((self.ids.of(kind, pa.array(ids, pa.string())), self._checked(vectors)))
        self.rows += len(ids)

    def _numbers(self, column: Any) -> Any:
        """(n, d) float32 of a column of lists, or of text."""
        if pa.types.is_string(column.type):
            text = pc.utf8_trim_whitespace(pc.replace_substring_regex(column, r"[\[\],]", " "))
            column = pc.utf8_split_whitespace(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text))
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_kind(column.type) for is_kind in kinds):
            raise UserError(f"{self.source}: column 'vector' holds {column.type}; expected a list of numbers in a row.")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if not len(lengths):
            return np.empty((0, self.dimension), np.float32)
        self.dimension = self.dimension or int(lengths[0])
        for row in np.flatnonzero((lengths != self.dimension) | (lengths == 0))[:1]:
            raise UserError(
                f"{self.source}: the vector in row {self.rows + row + 1:,} has {lengths[row]:,} numbers, but that in "
                f"row 1 has {self.dimension:,}; give all rows equally many, and leave out rows without a vector."
            )
        flat = pc.cast(pc.list_flatten(column), pa.float64()).to_numpy(zero_copy_only=False)
        return self._checked(flat.reshape(-1, self.dimension))

    def _checked(self, vectors: Any) -> Any:
        """(n, d) in 32 bits, all finite."""
        wrong = ~(np.abs(vectors) <= LARGEST)
        for row in np.flatnonzero(wrong.any(axis=1))[:1]:
            raise UserError(
                f"{self.source}: the vector in row {self.rows + row + 1:,} holds {vectors[row][wrong[row]][0]}, which "
                "is not a finite number of 32 bits; leave out rows without a vector."
            )
        return vectors.astype(np.float32)

    def vectors(self, content: str) -> Vectors:
        """Everything that was added."""
        self.ids.refuse_unknown(self.rows)
        tables = {kind: self._table(kind) for kind in self.tokens}
        if tables["items"] is None:
            raise UserError(f"{self.source} has no vector of an item; expected those of items, or of users and items.")
        return Vectors(tables["users"], tables["items"], content)

    def _table(self, kind: str) -> Optional[VectorTable]:
        parts = [part for part in self.parts[kind] if len(part[0])]
        if not parts:
            return None
        ids, vectors = (np.concatenate(part) for part in zip(*parts))
        tokens = self.tokens[kind]
        counts = np.bincount(ids, minlength=len(tokens))
        for twice in np.flatnonzero(counts > 1)[:1]:
            raise UserError(f"{self.source} has {counts[twice]:,} vectors of '{tokens[twice]}' among {kind}; keep one.")
        rows = torch.zeros(len(tokens), vectors.shape[1])
        rows[torch.from_numpy(ids).long()] = torch.from_numpy(vectors)
        return VectorTable(rows, None if len(ids) == len(tokens) - 1 else torch.from_numpy(counts > 0))


def _is_named(column: Any) -> Any:
    """(n,) bool: the cells of a column of ids that are not empty."""
    empty = pc.equal(pc.cast(column, pa.string()), "")
    return ~pc.fill_null(empty, True).to_numpy(zero_copy_only=False)


def _read_tensors(reader: _Reader, path: str) -> None:
    """Reads safetensors and the ids beside them; the files of a bundle are checked against its manifest."""
    if is_bundle(Path(path).parent):
        read_bundle(Path(path).parent)
    try:
        arrays = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    if "items" not in arrays:
        raise ValueError(f"it holds {', '.join(arrays) or 'nothing'}; expected an array 'items', and 'users'")
    for kind in ("items", "users"):
        if kind not in arrays:
            continue
        array, file = arrays[kind], Path(path).parent / f"{kind}.jsonl"
        if array.dim() != 2 or not array.is_floating_point() or not array.shape[1]:
            found = f"'{kind}' is {array.dtype} of shape {tuple(array.shape)}"
            raise ValueError(f"{found}; expected rows of floating-point numbers")
        ids = [str(json.loads(line)) for line in read_text(file).rstrip("\n").split("\n")]
        if len(ids) != len(array):
            raise ValueError(f"'{file.name}' beside it has {len(ids):,} ids for {len(array):,} vectors of {kind}")
        reader.dimension = reader.dimension or array.shape[1]
        if array.shape[1] != reader.dimension:
            raise ValueError(
                f"vectors of items have {reader.dimension:,} numbers and those of users {array.shape[1]:,}"
            )
        reader.add_array(kind, ids, array.double().numpy())
