"""Tables in files: Parquet, and text with commas or tabs; the package reads and writes both through this module."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike, write_atomic
from recbole_kd.files.reading import open_regular
from recbole_kd.text import one_line

#: Bytes of text and rows of Parquet read at a time; largest size of a header in bytes.
_BLOCK_BYTES, _BLOCK_ROWS, _HEADER_BYTES = 8 << 20, 1 << 18, 1 << 16
#: Characters with which a spreadsheet's formulas begin.
_FORMULA = ("=", "+", "-", "@", "\t")


def write_parquet(path: PathLike, columns: Mapping[str, Any], setting: str = "output") -> None:
    """Writes columns (n,) by name, whole or not at all.

    Raises:
        UserError: the file system refused.
    """
    table = pa.table(dict(columns))
    write_atomic(path, lambda file: pyarrow.parquet.write_table(table, file, compression="zstd"), setting)


def read_batches(
    path: PathLike, choose: Callable[[Sequence[str]], Mapping[str, str]], numbers: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of a file in batches: kind of column -> its pyarrow column (n,).

    Text has a header. Its separator is the tab if the header contains one, otherwise the comma. Between commas, quotes
    enclose a field; between tabs they are letters.

    Args:
        path: a Parquet file or text.
        choose: a function from the names of the file's columns to those to read: kind -> column's name.
        numbers: kinds that are numbers; in text files the other kinds are read as they are written.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: it cannot be read; :func:`readable` puts it in a line.
    """
    with open_regular(path) as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"PAR1"):
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as parquet:
            found = choose(list(parquet.schema_arrow.names))
            empty = pa.RecordBatch.from_pylist([], parquet.schema_arrow)
            for batch in chain([empty], parquet.iter_batches(_BLOCK_ROWS, columns=list(found.values()))):
                yield {kind: batch.column(name) for kind, name in found.items()}
        return
    header = head.decode("utf-8-sig", errors="replace").partition("\n")[0].rstrip("\r")
    separator = "\t" if "\t" in header else ","
    quote = '"' if separator == "," else ""
    names = [name.strip().strip(quote) for name in header.split(separator)]
    found = choose(names)
    types = {name: pa.float64() if kind in numbers else pa.string() for kind, name in found.items()}
    with pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, block_size=_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, quote_char=quote or False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(found.values())),
    ) as reader:
        for batch in reader:
            yield {kind: batch.column(name) for kind, name in found.items()}


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turns errors of reading a table inside the block into one line.

    Raises:
        UserError: instead of an error of pyarrow or of the file system.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(f"{source} cannot be read: {one_line(error, 200)}.") from None


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV text; a text cell that a spreadsheet would treat as a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[_harmless(cell) for cell in row] for row in rows])
    return text.getvalue()


def _harmless(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r", " ")  # before Python 3.13 the writer does not quote it, and it would end the row
    if not cell.startswith(_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
