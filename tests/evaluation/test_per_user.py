"""Each user's metrics, written and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from recbole_kd.errors import UserError
from recbole_kd.evaluation.per_user import load_per_user, save_per_user


def test_what_is_written_is_read(tmp_path: Path) -> None:
    values = {"recall@10": np.array([0.5, 1 / 3]), "ndcg@10": np.array([0.0, 1.0])}
    save_per_user(tmp_path / "folder" / "users.parquet", ["196", "a user"], values)
    users, found = load_per_user(tmp_path / "folder" / "users.parquet")
    assert users == ["196", "a user"]
    assert list(found) == list(values)
    for name, column in values.items():
        assert found[name].tolist() == column.tolist(), "to the last bit"


def test_any_reader_of_parquet_reads_it(tmp_path: Path) -> None:
    save_per_user(tmp_path / "users.parquet", ["1"], {"hit@5": np.array([1.0])})
    table = pyarrow.parquet.read_table(tmp_path / "users.parquet")
    assert table.to_pylist() == [{"user": "1", "hit@5": 1.0}]


def test_a_run_without_metrics_of_users(tmp_path: Path) -> None:
    save_per_user(tmp_path / "users.parquet", [], {})
    assert load_per_user(tmp_path / "users.parquet") == ([], {})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        save_per_user(tmp_path / "file" / "users.parquet", [], {})
