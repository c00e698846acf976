"""Shared by readers of other systems' files: columns by name, and original ids mapped to this dataset's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_kd.errors import UserError

__all__ = ["LARGEST", "ForeignIds", "find_columns"]

#: The largest accepted number, because numbers are kept in 32 bits.
LARGEST = float(np.finfo(np.float32).max)


class ForeignIds:
    """Maps original ids to internal ids; unknown ids are counted and refused at the end.

    Attributes:
        source: the setting and its file, for messages.
        tokens: original ids by internal id, for ``users`` and for ``items``; index 0 is padding.
    """

    def __init__(self, source: str, tokens: Mapping[str, Sequence[str]]) -> None:
        self.source, self.tokens = source, tokens
        self.known = {kind: pa.array(list(names[1:]), pa.string()) for kind, names in tokens.items()}
        self._unknown: dict[str, tuple[int, str]] = {}

    def of(self, kind: str, column: Any) -> Any:
        """(n,) int32 internal ids, 0 for a token that the dataset does not know."""
        if pa.types.is_floating(column.type):  # pandas stores whole numbers as floats if there are empty cells
            column = pc.cast(column, pa.int64())
        column = pc.cast(column, pa.string())
        found = pc.index_in(column, value_set=self.known[kind])
        if found.null_count:
            count, example = self._unknown.get(kind, (0, ""))
            if not count:
                example = str(column[pc.index(pc.is_null(found), True).as_py()].as_py())[:50]
            self._unknown[kind] = count + found.null_count, example
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1

    def refuse_unknown(self, rows: int) -> None:
        """Raises an error if one of the file's `rows` has an id that is not in the dataset."""
        for kind, (count, example) in self._unknown.items():
            raise UserError(
                f"{self.source}: {count:,} of {rows:,} rows name {kind} that the dataset does not have (after its "
                f"filters), such as '{example}'; drop those rows, and write ids as the dataset's own file does."
            )


def find_columns(
    source: str, names: Sequence[str], wanted: Mapping[str, str], needed: Sequence[str], expected: str
) -> dict[str, str]:
    """Kind of column -> its name in the file; RecBole's ``name:type`` is read as the name.

    Args:
        source: the setting and its file, for messages.
        names: the file's columns.
        wanted: kind of column -> its name without a type.
        needed: the required kinds.
        expected: the columns of such a file in words.

    Raises:
        UserError: two columns have the same name, or a required one is missing.
    """
    found = {}
    for kind, field in wanted.items():
        columns = [name for name in names if name.partition(":")[0] == field]
        if len(columns) > 1 or (not columns and kind in needed):
            shown = ", ".join(names)[:100] or "none that can be read"
            problem = f"{len(columns)} columns" if columns else "no column"
            raise UserError(f"{source} has {problem} '{field}' (its first line names {shown}); {expected}.")
        if columns:
            found[kind] = columns[0]
    return found
