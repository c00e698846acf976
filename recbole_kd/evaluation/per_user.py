"""Each user's metrics in a file, for significance tests between separate runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from recbole_kd.files.tables import read_batches, readable, write_parquet


def save_per_user(path: Path, users: Sequence[str], values: Mapping[str, NDArray[Any]]) -> None:
    """Writes a parquet file with a column ``user`` and one for each metric.

    Args:
        path: the file.
        users: (n,) original ids.
        values: metric -> (n,) its value for each user.

    Raises:
        UserError: the file cannot be written.
    """
    columns = {name: column.astype(np.float64) for name, column in values.items()}
    write_parquet(path, {"user": pyarrow.array(list(users), pyarrow.string()), **columns})


def load_per_user(path: Path) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Reads a file of :func:`save_per_user`: users (n,) and metric -> values (n,).

    Raises:
        UserError: it cannot be read, has no users, or a metric is not a number.
    """
    with readable(str(path)):
        batches = list(read_batches(path, lambda names: {name: name for name in names}))
        columns = {name: pyarrow.chunked_array([batch[name] for batch in batches]) for name in batches[0]}
        users = columns.pop("user")
        kinds = {"user": users.type, **{name: column.type for name, column in columns.items()}}
        for name, kind in kinds.items():
            wanted = pyarrow.string() if name == "user" else pyarrow.float64()
            if kind != wanted:
                raise ValueError(f"column {name} holds {kind}; expected {wanted}")
        return users.to_pylist(), {name: column.to_numpy() for name, column in columns.items()}
