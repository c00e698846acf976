"""What is wrong with a table that could not be read: the first wrong line, and how to correct it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from recbole_kd.data.layout import LONGEST, TIMES, Field, Layout, lines_of, shown
from recbole_kd.text import one_line

__all__ = ["check_of", "fault_of", "is_sequence"]

_MISSING = frozenset(pa_csv.ConvertOptions().null_values)  # how a missing number may be written


def fault_of(path: Path, layout: Layout, fields: Sequence[Field], wanted: Sequence[Field]) -> str | None:
    """The error in the first wrong line; None if no line is wrong."""
    lines = lines_of(path, layout)
    if layout.header:
        next(lines)
    checks = [(fields.index(field), field, check_of(field, layout)) for field in wanted]
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
                    return f"{where}, column '{field.name}': {shown(row[place])} {problem}."
    except (csv.Error, UnicodeError) as error:
        return f"Cannot read '{path}': {one_line(error)}."
    return None


def check_of(field: Field, layout: Layout) -> Callable[[str], str | None]:
    """A function from a value to its error, or None."""
    is_id = field.name in layout.ids
    kinds: dict[str, str] = {}  # format of the column's first time

    def check(value: str) -> str | None:
        if not value.isascii() and any("\udc80" <= letter <= "\udcff" for letter in value):
            return "is not UTF-8; save the file as UTF-8, or set --encoding, such as --encoding=latin-1"
        if "\0" in value:
            return "holds a NUL byte; remove it"
        if field.kind == "token" and len(value.encode()) > LONGEST:
            return f"is longer than {LONGEST:,} bytes; expected a shorter token"
        if field.kind == "float" and not _is_number(value):
            return "is not a number; write one, or leave the field empty"
        if field.kind == "float_seq" and not is_sequence(value, layout):
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


def is_sequence(value: str, layout: Layout) -> bool:
    return all(_is_plain_number(part) for part in value.split(layout.sequence_separator) if part)


def _time_kind(value: str) -> str | None:
    """The format of a time, in words; None if it is not a time."""
    if _is_plain_number(value):
        return "a number" if math.isfinite(float(value)) else None
    for kind in TIMES[2:]:
        try:
            pa.array([value]).cast(kind)
            return "a date with a zone" if kind.tz else "a date"
        except pa.ArrowInvalid:
            pass
    return None
