"""The form of a table in a text file: its separators, and the columns that the first line names.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from recbole_kd.errors import UserError
from recbole_kd.text import one_line

__all__ = ["KINDS", "LONGEST", "TIMES", "Field", "Layout", "fields_of", "first_line", "lines_of", "shown"]

#: The kinds that an atomic file's first line may have after a column's name.
KINDS = ("token", "float", "token_seq", "float_seq")
#: Types of a column of time, of which the first that fits is used: whole numbers, numbers, ISO dates without and with
#: zone, with six or nine digits of a second.
TIMES = (pa.int64(), pa.float64(), *(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")))
#: Bytes of a token: RecBole keeps all tokens of a column as wide as the longest.
LONGEST = 4096
_NUL = "\udc00"  # replaces a NUL byte, at which Python 3.10's csv would stop; no byte is decoded to it


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
            raise UserError(f"Cannot read '{path}': it begins with {shown(line)}; expected a table of text.")
        raise UserError(
            f"The first line of '{path}' is {shown(line, 60)}; expected columns as name:type, "
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


def lines_of(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
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
        number, names = next(lines_of(path, layout), (1, [""]))
        layout.separator.join(names).encode()
    except csv.Error as error:
        raise UserError(f"The first line of '{path}' is cut off ({error}); expected columns as name:type.") from None
    except UnicodeEncodeError:
        raise UserError(
            f"'{path}', line 1: it is not {layout.encoding.upper()}; save the file as UTF-8, or set --encoding, "
            "such as --encoding=utf-16."
        ) from None
    except (OSError, LookupError, UnicodeError) as error:
        raise UserError(f"Cannot read '{path}': {one_line(error)}.") from None
    return names if number == 1 else [""]


def shown(value: str, letters: int = 40) -> str:
    """A value for a message."""
    return repr(value if len(value) <= letters else f"{value[:letters]}...")
