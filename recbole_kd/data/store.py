"""Compiled tables: read or computed once, kept as an Arrow file, and memory-mapped afterwards.

The name of a compiled file depends on its source's content and on the settings, so that any change makes a new one. It
ends with the sha256 of all its other bytes, which is checked whenever it is read. It holds numbers and text only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from recbole_kd.data.layout import Layout, fields_of
from recbole_kd.data.reader import read_atomic
from recbole_kd.errors import UserError
from recbole_kd.files.atomic import write_atomic
from recbole_kd.files.digest import digest

__all__ = ["PAD", "kept", "load_atomic"]

#: Changes when a reader reads the same file differently.
FORMAT = "recbole-kd data/3"
#: The first word of a column of tokens; it means a missing token.
PAD = "[PAD]"
_DIGEST = 32  # bytes of a sha256

_logger = logging.getLogger(__name__)


def load_atomic(path: Path, layout: Layout, columns: Sequence[str], folder: Path) -> pa.Table:
    """The result of :func:`~recbole_kd.data.reader.read_atomic`, from the compiled file in `folder` if there is one.

    A column of tokens has :data:`PAD` as its first word here, with code 0, which also means a missing token.

    Args:
        path, layout, columns: as in :func:`~recbole_kd.data.reader.read_atomic`.
        folder: folder of the compiled file; if it cannot be written, the table is read each time.

    Raises:
        UserError: the source is wrong.
    """
    content = hashlib.sha256(_content(path)).hexdigest()
    way = digest(FORMAT, sorted(columns), list(vars(layout).values()))[:12]
    return kept(folder, path.name, way, content, lambda: _padded(read_atomic(path, layout, columns), path, layout))


def _padded(table: pa.Table, path: Path, layout: Layout) -> pa.Table:
    """The table, with padding as the first word of each column of tokens."""
    tokens = {field.name for field in fields_of(path, layout) if field.kind == "token"}
    columns = {}
    for name in table.column_names:
        columns[name] = column = table[name].chunk(0)
        if name in tokens:
            codes = (column.indices.fill_null(-1) if column.null_count else column.indices).to_numpy()
            words = pa.concat_arrays([pa.array([PAD]), column.dictionary])
            columns[name] = pa.DictionaryArray.from_arrays(codes + np.int32(1), words)
    return pa.table(columns)


def kept(folder: Path, name: str, way: str, content: str, make: Callable[[], pa.Table]) -> pa.Table:
    """The result of `make`, from the compiled file in `folder` if there is one.

    Args:
        folder: folder of the compiled file; if it cannot be written, the table is made each time.
        name, way, content: parts of the file's name. The file replaces those with other content.
        make: makes the table.
    """
    compiled = folder / f"{name}-{way}-{content[:24]}.arrow"
    table = _mapped(compiled)
    if table is None:
        table = make()
        with contextlib.suppress(UserError):
            write_atomic(compiled, lambda file: _write(table, file))
            for older in folder.glob(f"{_literal(name)}-{way}-*.arrow"):
                if older != compiled:
                    older.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()  # otherwise this memory would add to the next table's
    return table


def _literal(name: str) -> str:
    """A file's name as a pattern that matches only this name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _content(path: Path) -> pa.Buffer:
    """The bytes of a file, mapped into memory; None if it cannot be read."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return pa.py_buffer(b"")
    try:
        return pa.memory_map(str(path)).read_buffer()
    except (OSError, pa.ArrowInvalid):  # an empty file cannot be mapped
        return pa.py_buffer(b"")


class _Hashed:
    """A file that computes the sha256 of the bytes written to it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        """Does nothing: the owner of the underlying file flushes it."""


def _write(table: pa.Table, file: BinaryIO) -> None:
    hashed = _Hashed(file)
    with pa.ipc.new_file(pa.PythonFile(hashed, mode="w"), table.schema) as writer:
        writer.write_table(table)
    file.write(hashed.sha256.digest())


def _mapped(path: Path) -> pa.Table | None:
    """The table in a compiled file; None if the file is missing or damaged."""
    if not path.exists():
        return None
    content = _content(path)
    body, end = content.slice(0, max(content.size - _DIGEST, 0)), content.slice(max(content.size - _DIGEST, 0))
    try:
        if hashlib.sha256(body).digest() == end.to_pybytes():
            table = pa.ipc.open_file(pa.BufferReader(body)).read_all()
            table.validate(full=True)
            return table
    except pa.ArrowException:
        pass
    _logger.warning("The compiled data '%s' is damaged; it is made again from its source.", path)
    return None
