"""Reads tables: RecBole's atomic files, CSV, TSV and Parquet.

pyarrow reads. A file that it refuses is read again line by line, to name the wrong line in the message
(:mod:`recbole_kd.data.faults`). Columns have the kinds of :mod:`recbole_kd.data.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from recbole_kd.data.faults import fault_of, is_sequence
from recbole_kd.data.layout import LONGEST, TIMES, Field, Layout, fields_of
from recbole_kd.errors import UserError
from recbole_kd.text import one_line

__all__ = [
    "by_first_appearance",
    "is_whole",
    "read_atomic",
    "read_columns",
    "seconds_of",
]

_BLOCK = 8 << 20  # bytes that one thread reads at once
_ROWS = 1 << 18  # keys that are numbered at once
_MANY = 1 << 20  # keys below this are numbered with a table of all possible keys


def read_atomic(path: Path, layout: Layout, columns: Sequence[str]) -> pa.Table:
    """Some columns of an atomic file.

    Args:
        path: the file.
        layout: its format.
        columns: names without the type, in any order.

    Returns:
        The columns in the file's order, each in one chunk.

    Raises:
        UserError: the file, its first line or a value is wrong; the message names the line.
    """
    return read_columns(path, layout, fields_of(path, layout), columns)


def read_columns(path: Path, layout: Layout, fields: Sequence[Field], columns: Sequence[str]) -> pa.Table:
    """Some columns of a text file whose first line names `fields`; see :func:`read_atomic`."""
    wanted = [field for field in fields if field.name in columns]
    times = [field for field in wanted if field.kind == "time"]
    error: Exception | None = None
    for time in TIMES if times else TIMES[:1]:
        kinds = {"float": pa.float64(), "time": time}
        types = {field.name: kinds.get(field.kind, pa.string()) for field in wanted}
        try:
            table = _parsed(path, layout, [field.name for field in fields], types)
        except pa.ArrowInvalid as refused:
            error = refused
            if times and f"conversion error to {time}" in str(refused):
                continue
            break
        except (OSError, LookupError, UnicodeError) as refused:
            raise UserError(f"Cannot read '{path}': {refused}.") from None
        if not len(table):
            raise UserError(f"'{path}' has a header but no interactions; expected one per line.")
        found = {}
        for field in wanted:
            found[field.name] = _column(table[field.name], field)
            table = table.drop_columns(field.name)  # frees the text, which is larger than its numbers
        if is_whole(found, layout, wanted):
            return pa.table(found)
        break
    raise UserError(fault_of(path, layout, fields, wanted) or f"Cannot read '{path}': {one_line(error)}.")


def _parsed(path: Path, layout: Layout, names: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    source, separator = pa.OSFile(str(path)), layout.separator  # with a path, pyarrow would look at the name's ending
    if len(separator.encode()) > 1:  # pyarrow needs a separator of one byte
        text = path.read_bytes().decode(layout.encoding).replace(separator, "\x1f").encode(layout.encoding)
        source, separator = pa.BufferReader(text), "\x1f"
    return pa_csv.read_csv(
        source,
        read_options=pa_csv.ReadOptions(
            column_names=names, skip_rows=int(layout.header), block_size=_BLOCK, encoding=layout.encoding
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=separator, quote_char='"' if layout.quoted else False, newlines_in_values=layout.quoted
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=types, include_columns=list(types), strings_can_be_null=False, check_utf8=False
        ),
    )


def is_whole(found: dict[str, pa.Array], layout: Layout, fields: Sequence[Field]) -> bool:
    """Whether every value is allowed in its column."""
    for field in fields:
        column = found[field.name]
        if field.kind == "time":
            if layout.ordered and column.null_count:
                return False
            if column.type == pa.float64() and pc.all(pc.is_finite(column)).as_py() is False:
                return False
        if not pa.types.is_dictionary(column.type):
            continue
        texts = column.dictionary
        try:
            texts.validate(full=True)  # as UTF-8, each text once
        except pa.ArrowInvalid:
            return False
        if pc.any(pc.match_substring(texts, "\0")).as_py():
            return False
        if field.kind == "token" and (pc.max(pc.binary_length(texts)).as_py() or 0) > LONGEST:
            return False
        if field.name in layout.ids and (column.null_count or pc.index(texts, "[PAD]").as_py() >= 0):
            return False
        if field.kind == "float_seq" and not all(is_sequence(text, layout) for text in texts.to_pylist()):
            return False
    return True


def seconds_of(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds since 1970 of a timestamp column: int64, or float64 with fractions of seconds."""
    micros = moments.cast(pa.timestamp("us", moments.type.tz), safe=False).cast(pa.int64())
    seconds = pc.divide(micros, 10**6)
    whole = pc.all(pc.equal(pc.multiply(seconds, 10**6), micros)).as_py() is not False
    return seconds if whole else pc.divide(micros.cast(pa.float64()), 1e6)


def _column(column: pa.ChunkedArray, field: Field) -> pa.Array:
    """A column in one chunk: times as numbers, empty tokens as missing."""
    if pa.types.is_timestamp(column.type):
        return seconds_of(column).combine_chunks()
    if not pa.types.is_string(column.type):
        return column.combine_chunks()
    text = _numbered_text(column)
    empty = pc.index(text.dictionary, "").as_py()
    if field.kind == "token" and empty >= 0:
        codes = text.indices.to_numpy()
        missing = codes == empty
        codes = codes - (codes > empty)
        tokens = pa.concat_arrays([text.dictionary[:empty], text.dictionary[empty + 1 :]])
        text = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=missing), tokens)
    return text


def _numbered_text(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column of text as codes, by first appearance, and the texts."""
    numbers = _whole_numbers(column)
    if numbers is not None:
        codes, found = by_first_appearance(numbers)
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(found).cast(pa.string()))
    text = column.dictionary_encode().combine_chunks()
    return text.chunk(0) if isinstance(text, pa.ChunkedArray) else text


def _whole_numbers(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """(rows,) the numbers of a column that holds whole numbers only, each as it is usually written (7, never 07)."""
    parts: list[NDArray[Any]] = []
    for chunk in column.chunks:
        if any(pc.any(pc.starts_with(chunk, prefix)).as_py() for prefix in ("0x", "0X")):
            return None  # Arrow would read a hexadecimal number
        try:
            numbers = _as_whole(chunk)
        except pa.ArrowInvalid:
            return None
        largest = int(numbers.max(initial=0))
        usual = len(numbers) + sum(np.count_nonzero(numbers >= 10**place) for place in range(1, len(str(largest))))
        # The usual form of a number is its shortest, so comparing total lengths checks all numbers.
        if numbers.min(initial=0) < 0 or usual != pc.sum(pc.binary_length(chunk)).as_py():
            return None
        parts.append(numbers)
    return np.concatenate(parts)


def _as_whole(text: pa.StringArray) -> NDArray[Any]:
    """The numbers in a text; int32 if they fit, which halves the later work."""
    try:
        return text.cast(pa.int32()).to_numpy()
    except pa.ArrowInvalid:
        return text.cast(pa.int64()).to_numpy()


def by_first_appearance(keys: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Numbers keys by first appearance.

    Args:
        keys: (n,) whole numbers, at least 0.

    Returns:
        (n,) the number of each key, from 0, and the keys by number.
    """
    largest = int(keys.max(initial=-1))
    if largest >= max(4 * len(keys), _MANY):
        codes, found = pd.factorize(keys)
        return codes.astype(np.int32), found
    number = np.full(largest + 1, -1, dtype=np.int32)
    codes, parts, count = np.empty(len(keys), dtype=np.int32), [keys[:0]], 0
    for start in range(0, len(keys), _ROWS):  # most blocks have few new keys
        block, places = keys[start : start + _ROWS], codes[start : start + _ROWS]
        number.take(block, out=places, mode="clip")
        unknown = np.flatnonzero(places < 0)
        new = block[unknown]
        order = np.arange(len(new), dtype=np.int32)
        number[new[::-1]] = order[::-1]  # a key's first place is written last
        first = new[number[new] == order]
        number[first] = np.arange(count, count + len(first), dtype=np.int32)
        places[unknown] = number[new]
        parts, count = [*parts, first], count + len(first)
    return codes, np.concatenate(parts)
