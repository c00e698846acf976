"""Tables of events (CSV, TSV, Parquet), of one's own or of a public dataset: users, items, ratings and times."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recbole_kd.data.faults import check_of
from recbole_kd.data.layout import TIMES, Field, Layout, first_line, shown
from recbole_kd.data.preparable import Preparable
from recbole_kd.data.reader import is_whole, read_columns, seconds_of
from recbole_kd.errors import UserError, closest
from recbole_kd.text import one_line

__all__ = ["Columns", "read_events"]

_SEPARATORS = ("\t", ",", ";", "|")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table of events are read, by their names there, and how.

    Attributes:
        user, item: ids.
        time: when the event was; None for none.
        rating: a number; None for none.
        minimum_rating: events below it are dropped.
        separator: text between two fields; None finds it in the first line.
        encoding: of a text file.
    """

    user: str
    item: str
    time: str | None = None
    rating: str | None = None
    minimum_rating: float | None = None
    separator: str | None = None
    encoding: str = "utf-8"


def read_events(path: Path, entry: Preparable | None, chosen: Columns | None) -> pa.Table:
    """Columns user_id and item_id (dictionaries), and rating and timestamp where there are, a row an event."""
    if entry is not None:
        names = list(entry.fields)
        time, rating = (name if name in names else None for name in ("timestamp", "rating"))
        own = Columns("user", "item", time, rating)
        layout = Layout(separator="\t", header=False)
    else:
        assert chosen is not None
        own = chosen
        kind = _beginning(path)
        if kind == b"PAR1":
            return _from_parquet(path, own)
        if kind == b"PK\3\4":
            raise UserError(f"'{path}' is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV.")
        layout = _found_layout(path, own)
        names = first_line(path, layout)
    roles = {own.user: "token", own.item: "token", own.rating: "float", own.time: "time"}
    _check_columns(path, names, own)
    fields = [
        Field(name if name in roles else f"\0{place}", roles.get(name, "token")) for place, name in enumerate(names)
    ]
    layout = Layout(layout.separator, " ", own.encoding, (own.user, own.item), own.time, True, layout.header)
    if not path.stat().st_size:
        raise UserError(f"'{path}' is empty; expected one interaction per line.")
    table = read_columns(path, layout, fields, [name for name in roles if name is not None])
    return _named(table, own)


def _found_layout(path: Path, chosen: Columns) -> Layout:
    """The separator that is given, or that the first line holds most of."""
    if chosen.separator is not None:
        return Layout(separator=chosen.separator, encoding=chosen.encoding)
    line = "\x1f".join(first_line(path, Layout(separator="\x1f", encoding=chosen.encoding)))
    return Layout(separator=max(_SEPARATORS, key=line.count), encoding=chosen.encoding)


def _check_columns(path: Path, names: list[str], chosen: Columns) -> None:
    for option in ("user", "item", "time", "rating"):
        name = getattr(chosen, option)
        if name is not None and names.count(name) != 1:
            found = f"has no column '{name}'" if name not in names else f"has several columns called '{name}'"
            raise UserError(
                f"'{path}' {found}; it has {', '.join(names)[:300]}.{closest(name, names)} "
                f"Set --{option} to one of them, or --separator to what separates them."
            )
    options = [name for name in ("user", "item", "time", "rating") if getattr(chosen, name) is not None]
    for first, second in combinations(options, 2):
        if getattr(chosen, first) == getattr(chosen, second):
            raise UserError(f"--{first} and --{second} are both '{getattr(chosen, first)}'; expected two columns.")
    if chosen.minimum_rating is not None and chosen.rating is None:
        raise UserError("--minimum_rating is given without --rating; set --rating to the column of ratings.")


def _beginning(path: Path) -> bytes:
    """The first four bytes, which name the kind of a file."""
    with path.open("rb") as file:
        return file.read(4)


def _from_parquet(path: Path, chosen: Columns) -> pa.Table:
    try:
        _check_columns(path, pq.read_schema(path).names, chosen)
        wanted = [name for name in (chosen.user, chosen.item, chosen.rating, chosen.time) if name is not None]
        table = pq.read_table(path, columns=wanted)
        if not len(table):
            raise UserError(f"'{path}' has no rows; expected one per interaction.")
        found = {}
        for name in wanted:
            column = table[name]
            if pa.types.is_floating(column.type):
                column = pc.if_else(pc.is_nan(column), None, column)
            if name in (chosen.user, chosen.item):
                column = _as_ids(column)
            elif name == chosen.rating:
                column = column.cast(pa.float64())
            else:
                column = _as_times(column)
            if column.null_count and name != chosen.rating:
                row = pc.index(column.is_null(), True).as_py() + 1
                raise UserError(f"'{path}', row {row}, column '{name}': it is empty; write a value, or remove the row.")
            whole = column.combine_chunks()
            found[name] = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
        _check_values(path, found, chosen)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"Cannot read '{path}': {one_line(error)}.") from None
    return _named(pa.table(found), chosen)


def _as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as text; empty ones are missing. Whole numbers have no point, as in a column of pandas with a missing id."""
    if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        column = column.cast(pa.int64())
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text).dictionary_encode()


def _as_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as numbers: seconds since 1970 of dates, also of those written as text."""
    if pa.types.is_temporal(column.type):
        return seconds_of(column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False))
    if pa.types.is_integer(column.type):
        return column
    for kind in TIMES if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else ():
        try:
            times = column.cast(kind)
        except pa.ArrowInvalid:
            continue
        return seconds_of(times) if pa.types.is_timestamp(kind) else times
    return column.cast(pa.float64())


def _check_values(path: Path, found: dict[str, pa.Array], chosen: Columns) -> None:
    """Refuses ids and times that an atomic file cannot hold, as in text."""
    layout = Layout(ids=(chosen.user, chosen.item), time=chosen.time, ordered=True)
    fields = [Field(name, "token") for name in layout.ids]
    fields += [Field(chosen.time, "time")] if chosen.time is not None else []
    if is_whole(found, layout, fields):
        return
    for field in fields:
        check, column = check_of(field, layout), found[field.name]
        values = column.dictionary if pa.types.is_dictionary(column.type) else pc.unique(column)
        for value in values.to_pylist():
            problem = check(str(value))
            if problem:
                row = pc.index(column.cast(values.type), value).as_py() + 1
                raise UserError(f"'{path}', row {row}, column '{field.name}': {shown(str(value))} {problem}.")


def _named(table: pa.Table, chosen: Columns) -> pa.Table:
    """The columns under the names that they get in an atomic file, in its order."""
    names = {"user_id": chosen.user, "item_id": chosen.item, "rating": chosen.rating, "timestamp": chosen.time}
    return pa.table({name: table[there] for name, there in names.items() if there is not None})
