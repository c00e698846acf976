"""Reads tables: RecBole's atomic files, CSV, TSV and Parquet.

pyarrow reads. A file that it refuses is read again line by line, to name the wrong line in the message.

A column has one of these kinds, which an atomic file names in its first line (``user_id:token``):

=============  ==========================================================  ===============================
kind           column of the table                                         an empty field
=============  ==========================================================  ===============================
token          text, numbered by first appearance (a dictionary column)    missing (null); refused in an id
float          float64                                                     missing (NaN)
token_seq,     the text as written (a dictionary column)                   an empty sequence
float_seq
time           int64, or float64 with fractions; ISO dates become          missing; refused if rows are
               seconds since 1970                                          ordered by it
=============  ==========================================================  ===============================

An id is the text between two separators, as written: ``NA``, ``null``, ``007`` and ``" x"`` are ids. A quote is an
ordinary character, unless the separator is a comma or a semicolon: this is CSV, where quotes enclose a field.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from recbole_kd.errors import UserError

__all__ = [
    "KINDS",
    "Field",
    "Layout",
    "by_first_appearance",
    "fields_of",
    "first_line",
    "read_atomic",
    "read_columns",
    "seconds_of",
]

#: The kinds that an atomic file's first line may have after a column's name.
KINDS = ("token", "float", "token_seq", "float_seq")
#: Types of a column of time, of which the first that fits is used: whole numbers, numbers, ISO dates without and with
#: zone.
_TIMES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
_BLOCK = 8 << 20  # bytes that one thread reads at once
_MISSING = frozenset(pa_csv.ConvertOptions().null_values)  # how a missing number may be written
_ROWS = 1 << 18  # keys that are numbered at once
_MANY = 1 << 20  # keys below this are numbered with a table of all possible keys
_SHOWN = 40  # letters of a value in a message
_NUL = "\udc00"  # replaces a NUL byte, at which Python 3.10's csv would stop; no byte is decoded to it
_LONGEST = 4096  # bytes of a token: RecBole keeps all tokens of a column as wide as the longest


@dataclass(frozen=True)
class Field:
    """A column: its name in the file's first line, and its kind (see above)."""

    name: str
    kind: str


@dataclass(frozen=True)
class Layout:
    """The format of a file.

    Attributes:
        separator: text between two fields.
        sequence_separator: text between two elements of a sequence.
        encoding: name of the text's encoding in Python; a byte order mark is skipped.
        ids: columns that hold an id in every row.
        time: the column that is read as time if the first line says float; None if there is none.
        ordered: whether rows are ordered by time; then each needs a time, even if the first line says token.
        header: whether the first line names the columns.
    """

    separator: str = "\t"
    sequence_separator: str = " "
    encoding: str = "utf-8"
    ids: tuple[str, ...] = ()
    time: str | None = None
    ordered: bool = False
    header: bool = True

    @property
    def quoted(self) -> bool:
        """Whether the file is CSV, so that quotes enclose a field."""
        return self.separator in (",", ";")


def fields_of(path: Path, layout: Layout) -> list[Field]:
    """The columns in the first line of an atomic file; the column of time has the kind time.

    Raises:
        UserError: the line cannot be read, a column has no kind or an unknown one, or two columns have one name.
    """
    names = first_line(path, layout)
    parts = [name.split(":") for name in names]
    if any(len(part) != 2 for part in parts):
        line = layout.separator.join(names)
        if not line.replace("\t", "").isprintable():
            raise UserError(f"Cannot read '{path}': it begins with {_shown(line)}; expected a table of text.")
        raise UserError(
            f"The first line of '{path}' is {_shown(line, 60)}; expected columns as name:type, "
            f"such as user_id:token and item_id:token, separated by --field_separator.{_suggestion(names, layout)}"
        )
    fields = [Field(name, kind) for name, kind in parts]
    for place, field in enumerate(fields):
        if field.kind not in KINDS:
            raise UserError(
                f"'{path}', line 1, column '{field.name}': the type {field.kind!r} is unknown; "
                f"expected one of {', '.join(KINDS)}."
            )
        if field.name in (other.name for other in fields[:place]):
            raise UserError(f"'{path}', line 1: two columns are called '{field.name}'; expected different names.")
        if field.name in layout.ids and field.kind != "token":
            raise UserError(f"'{path}', line 1: '{names[place]}' is a column of ids; expected {field.name}:token.")
    times = ("float", "token") if layout.ordered else ("float",)
    return [
        Field(field.name, "time") if field.name == layout.time and field.kind in times else field for field in fields
    ]


def _suggestion(names: Sequence[str], layout: Layout) -> str:
    """The corrected first line, if it lacks only the types."""
    plain = [name for name in names if name.isidentifier()]
    if len(plain) < 2 or len(plain) < len(names):
        return ""
    numbers = {"rating", "label", "timestamp", "time", layout.time}
    line = layout.separator.join(f"{name}:{'float' if name in numbers else 'token'}" for name in names)
    return f" Write {line!r}, or convert the file with 'recbole-kd prepare --source=FILE'."


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
    for time in _TIMES if times else _TIMES[:1]:
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
        if _whole(found, layout, wanted):
            return pa.table(found)
        break
    raise UserError(_fault(path, layout, fields, wanted) or f"Cannot read '{path}': {_one_line(error)}.")


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


def _whole(found: dict[str, pa.Array], layout: Layout, fields: Sequence[Field]) -> bool:
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
        if field.kind == "token" and (pc.max(pc.binary_length(texts)).as_py() or 0) > _LONGEST:
            return False
        if field.name in layout.ids and (column.null_count or pc.index(texts, "[PAD]").as_py() >= 0):
            return False
        if field.kind == "float_seq" and not all(_is_sequence(text, layout) for text in texts.to_pylist()):
            return False
    return True


def seconds_of(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds since 1970 of a timestamp column: int64, or float64 with fractions of seconds."""
    micros = moments.cast(pa.timestamp("us", moments.type.tz)).cast(pa.int64())
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


# Errors, with their lines


def _lines(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line that is not empty, including the first; any content is accepted."""
    separator = layout.separator if len(layout.separator) == 1 else "\x1f"
    encoding = "utf-8-sig" if layout.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else layout.encoding
    with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
        lines = (line.replace(layout.separator, separator).replace("\0", _NUL) for line in file)
        rows = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE)
        for row in rows:
            if row:
                yield rows.line_num, [field.replace(_NUL, "\0") for field in row]


def first_line(path: Path, layout: Layout) -> list[str]:
    """The fields of a file's first line.

    Raises:
        UserError: there is no file, or no text in it.
    """
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; expected a table whose first line names its columns.")
    try:
        number, names = next(_lines(path, layout), (1, [""]))
        layout.separator.join(names).encode()
    except csv.Error as error:
        raise UserError(f"The first line of '{path}' is cut off ({error}); expected columns as name:type.") from None
    except UnicodeEncodeError:
        raise UserError(
            f"'{path}', line 1: it is not {layout.encoding.upper()}; save the file as UTF-8, or set --encoding, "
            "such as --encoding=utf-16."
        ) from None
    except (OSError, LookupError, UnicodeError) as error:
        raise UserError(f"Cannot read '{path}': {_one_line(error)}.") from None
    return names if number == 1 else [""]


def _fault(path: Path, layout: Layout, fields: Sequence[Field], wanted: Sequence[Field]) -> str | None:
    """The error in the first wrong line; None if no line is wrong."""
    lines = _lines(path, layout)
    if layout.header:
        next(lines)
    checks = [(fields.index(field), field, _check(field, layout)) for field in wanted]
    try:
        for number, row in lines:
            where = f"'{path}', line {number}"
            if len(row) != len(fields):
                names = f", but the first line names {len(fields)} columns" if layout.header else ""
                return (
                    f"{where}: it has {len(row)} fields{names}; expected {len(fields)}, "
                    f"separated by {layout.separator!r}."
                )
            for place, field, check in checks:
                problem = check(row[place])
                if problem:
                    return f"{where}, column '{field.name}': {_shown(row[place])} {problem}."
    except (csv.Error, UnicodeError) as error:
        return f"Cannot read '{path}': {_one_line(error)}."
    return None


def _check(field: Field, layout: Layout) -> Callable[[str], str | None]:
    """A function from a value to its error, or None."""
    is_id = field.name in layout.ids
    kinds: dict[str, str] = {}  # format of the column's first time

    def check(value: str) -> str | None:
        if not value.isascii() and any("\udc80" <= letter <= "\udcff" for letter in value):
            return "is not UTF-8; save the file as UTF-8, or set --encoding, such as --encoding=latin-1"
        if "\0" in value:
            return "holds a NUL byte; remove it"
        if field.kind == "token" and len(value.encode()) > _LONGEST:
            return f"is longer than {_LONGEST:,} bytes; expected a shorter token"
        if field.kind == "float" and not _is_number(value):
            return "is not a number; write one, or leave the field empty"
        if field.kind == "float_seq" and not _is_sequence(value, layout):
            return f"is not a list of numbers; expected numbers separated by {layout.sequence_separator!r}"
        if field.kind == "time" and (layout.ordered or value.strip() not in _MISSING):
            kind = _time_kind(value.strip())
            if kind is None:
                return "is not a time; expected a number, or a date such as 2026-11-29T08:30:00"
            if kind != kinds.setdefault("first", kind):
                return f"is not {kinds['first']} like the times before it; write all in the same way"
        if is_id and value in ("", "[PAD]"):
            what = "is not an id" if value else "is empty"
            return f"{what}; write an id, or remove the line"
        return None

    return check


def _is_number(value: str) -> bool:
    """Whether pyarrow reads a field as a number, or as a missing one."""
    return _is_plain_number(value.strip()) or value.strip() in _MISSING


def _is_plain_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return value.isascii() and "_" not in value


def _is_sequence(value: str, layout: Layout) -> bool:
    return all(_is_plain_number(part) for part in value.split(layout.sequence_separator) if part)


def _time_kind(value: str) -> str | None:
    """The format of a time, in words; None if it is not a time."""
    if _is_plain_number(value):
        return "a number" if math.isfinite(float(value)) else None
    for kind, name in zip(_TIMES[2:], ("a date", "a date with a zone")):
        try:
            pa.array([value]).cast(kind)
            return name
        except pa.ArrowInvalid:
            pass
    return None


def _shown(value: str, letters: int = _SHOWN) -> str:
    """A value for a message."""
    return repr(value if len(value) <= letters else f"{value[:letters]}...")


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]
