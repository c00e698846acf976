"""Each user's metrics in a file, for tests between runs that were made on different occasions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from recbole_kd.files.atomic import write_atomic


def save_per_user(path: Path, users: Sequence[str], values: Mapping[str, NDArray[Any]]) -> None:
    """Writes a parquet file with a column ``user`` and one for each metric.

    Args:
        path: the file.
        users: (n,) original ids.
        values: metric -> (n,) its value for each of them.

    Raises:
        UserError: the file cannot be written.
    """
    columns = {"user": pyarrow.array(list(users), pyarrow.string())}
    columns.update({name: pyarrow.array(column.astype(np.float64)) for name, column in values.items()})
    table = pyarrow.table(columns)
    write_atomic(path, lambda file: pyarrow.parquet.write_table(table, file, compression="zstd"), "output")


def load_per_user(path: Path) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """What :func:`save_per_user` wrote: users (n,) and metric -> values (n,)."""
    table = pyarrow.parquet.read_table(path)
    values = {name: table[name].to_numpy() for name in table.column_names if name != "user"}
    return table["user"].to_pylist(), values
