"""Forms of public raw files that are no table: each is written as lines of fields between tabs, which the reader takes.

=========  ============================================================================================
form       a line of the raw file
=========  ============================================================================================
``lines``  fields between tabs: read as it is
``lists``  a user, numbered by the line from 0: how many items there are, then the items, between spaces
``json``   a JSON object, of which :attr:`Preparable.keys` are read
=========  ============================================================================================
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_kd.data.preparable import Preparable
from recbole_kd.errors import UserError
from recbole_kd.text import one_line

__all__ = ["as_lines"]

_LONGEST = 1 << 24  # bytes of a line

Lines = Iterator[tuple[str, bytes]]
"""(where it stands, for messages; the line) of each line."""


@contextmanager
def as_lines(path: Path, entry: Preparable | None, shown: Path) -> Iterator[Path]:
    """A decompressed raw file as a table: the file itself, or a temporary one, written line by line.

    Args:
        entry: says the form; None for a table.
        shown: the file's name in messages.

    Raises:
        UserError: a line that is not of the form; the message names it.
    """
    if entry is None or entry.form == "lines":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / path.name
        with table.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.writelines(_FORMS[entry.form](_lines(path, shown), entry))
        yield table


def _lines(path: Path, shown: Path) -> Lines:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), 1):
            where = f"'{shown}', line {number}"
            if len(line) > _LONGEST:
                raise UserError(f"{where}: it is longer than {_LONGEST:,} bytes; expected a shorter one.")
            yield where, line.strip()


def _from_lists(lines: Lines, entry: Preparable) -> Iterator[str]:
    for user, (where, line) in enumerate(lines):
        count, *items = line.split() or [b""]
        if not line.replace(b" ", b"").isdigit() or int(count[:9]) != len(items):
            raise UserError(
                f"{where}: it begins with {line[:40]!r} and has {len(items):,} more words; expected how many items the "
                "user has, then as many item numbers, separated by spaces."
            )
        yield "".join(f"{user}\t{item.decode()}\n" for item in items)


def _from_json(lines: Lines, entry: Preparable) -> Iterator[str]:
    for where, line in lines:
        try:
            found = json.loads(line) if line else None
        except (ValueError, RecursionError) as error:
            reason = one_line(error, 100)
            raise UserError(f"{where}: it is not JSON ({reason}); expected an object with {_named(entry)}.") from None
        if not line:
            yield "\n"  # so that lines keep their numbers
            continue
        if not isinstance(found, dict):
            raise UserError(f"{where}: it is no JSON object; expected one with {_named(entry)}.")
        values = []
        for field, key in zip(entry.fields, entry.keys):
            value = found.get(key)
            kinds = (int, float) if field == "rating" else (str,)
            if not isinstance(value, kinds) or isinstance(value, bool) or set("\t\r\n") & set(str(value)):
                what = "a number" if field == "rating" else "a text without tabs and line breaks"
                raise UserError(f"{where}, '{key}': {str(value)[:40]!r} is not {what}; expected {_named(entry)}.")
            values.append(str(value))
        yield "\t".join(values) + "\n"


def _named(entry: Preparable) -> str:
    return ", ".join(entry.keys)


_FORMS: dict[str, Callable[[Lines, Preparable], Iterator[str]]] = {"lists": _from_lists, "json": _from_json}
