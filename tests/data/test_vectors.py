"""Files of vectors: every form gives the same tables in internal ids, and what is wrong with a file is one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from recbole_kd.data.vectors import Vectors, read_vectors
from recbole_kd.errors import UserError
from recbole_kd.files import tables
from recbole_kd.files.reading import vector_files
from tests.files import test_bundle as bundles

USERS, ITEMS = ["[PAD]", "ann", "bob"], ["[PAD]", "x", "y", "12"]
#: A whole number that is written with an exponent where it is a float.
LONG = 12345678901
#: Nobody has a vector of y and of bob.
ROWS = [("", "12", [1.0, 2.5]), ("ann", "", [-3.0, 0.125]), ("", "x", [4.0, 1e-3])]
EXPECTED = ([[0, 0], [4, 1e-3], [0, 0], [1, 2.5]], [False, True, False, True])


def read(path: Path) -> Vectors:
    return read_vectors(str(path), USERS, ITEMS)


def written(folder: Path, header: str, rows: Any, separator: str = ",") -> Path:
    path = folder / "vectors.csv"
    path.write_text("\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n")
    return path


def assert_expected(vectors: Vectors) -> None:
    assert vectors.items.known is not None
    assert vectors.items.known.tolist() == EXPECTED[1]
    torch.testing.assert_close(vectors.items.rows, torch.tensor(EXPECTED[0]))
    assert vectors.users is not None
    assert vectors.users.rows.tolist() == [[0, 0], [-3, 0.125], [0, 0]]
    assert vectors.users.told("users") == "1 of 2 users"


@pytest.mark.parametrize(
    ("header", "separator", "form"),
    [
        ("user_id:token\titem_id:token\tvector:float_seq", "\t", "{0} {1}"),
        ("user_id,item_id,vector", ",", " {0}   {1} "),
        ("user_id,item_id,vector", ",", '"[{0}, {1}]"'),
    ],
)
def test_text_has_blanks_between_numbers_or_the_list_that_pandas_writes(
    header: str, separator: str, form: str, tmp_path: Path
) -> None:
    rows = [(user, item, form.format(*vector)) for user, item, vector in ROWS]
    assert_expected(read(written(tmp_path, header, rows, separator)))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float64())])
def test_parquet_has_lists_and_empty_cells(kind: pa.DataType, tmp_path: Path) -> None:
    users, items, vectors = zip(*ROWS)
    ids = {name: [one or None for one in column] for name, column in {"user_id": users, "item_id": items}.items()}
    path = tmp_path / "vectors.parquet"
    pyarrow.parquet.write_table(pa.table({**ids, "vector": pa.array(vectors, kind)}), path)
    assert_expected(read(path))


def test_whole_numbers_beside_empty_cells_are_ids(tmp_path: Path) -> None:
    """pandas makes 12.0 of the id 12 where other rows of the column are empty."""
    path = tmp_path / "vectors.parquet"
    columns = {"user_id": ["ann", None], "item_id": pa.array([None, 12.0]), "vector": [[1.0], [2.0]]}
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert read(path).items.rows.tolist() == [[0], [0], [0], [2]]
    columns["item_id"] = pa.array([None, float(LONG)])
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert read_vectors(str(path), USERS, ["[PAD]", str(LONG)]).items.rows.tolist() == [[0], [2]]


def test_safetensors_have_their_ids_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    items, users = torch.tensor([[1, 2.5], [4, 1e-3]]), torch.tensor([[-3, 0.125]])
    safetensors.torch.save_file({"items": items, "users": users}, path)
    for kind, ids in {"items": ["12", "x"], "users": ["ann"]}.items():
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ids))
    first = read(path)
    assert_expected(first)
    assert len(vector_files(str(path))) == 3
    (tmp_path / "items.jsonl").write_text('12\n"y"\n')
    second = read(path)
    assert second.items.rows[2].tolist() == items[1].tolist(), "ids decide whose a vector is"
    assert second.digest != first.digest


def test_items_alone_and_all_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "vector,item_id", [("1 2", "x"), ("3 4", "12"), ("5 6", "y")])
    found = read(path)
    assert found.users is None
    assert found.items.known is None
    assert found.items.rows.tolist() == [[0, 0], [1, 2], [5, 6], [3, 4]]
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_many_small_batches_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(user, item, "{} {}".format(*vector)) for user, item, vector in ROWS]
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 24)
    assert_expected(read(written(tmp_path, "user_id,item_id,vector", rows)))


def test_unknown_ids_of_all_batches_are_counted_and_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 24)
    rows = [("x", "1 2"), *((f"unknown-{number}", "1 2") for number in range(5))]
    with pytest.raises(UserError, match="5 of 6 rows name items .* such as 'unknown-0'"):
        read(written(tmp_path, "item_id,vector", rows))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("item_id,vector", [("x", "1 2"), ("y", "1 2 3")], "the vector in row 2 has 3 numbers, but that in row 1 has 2"),
        ("item_id,vector", [("x", "1 2"), ("y", "")], "the vector in row 2 has 0 numbers"),
        ("item_id,vector", [("x", "1 nan")], "the vector in row 1 holds nan, which is not a finite number"),
        ("item_id,vector", [("x", "1 2"), ("y", "1e300 2")], r"the vector in row 2 holds 1e\+300"),
        ("item_id,vector", [("x", "1 a")], "cannot be read: .*'a'"),
        ("item_id,vector", [("x", "1 2"), ("w", "1 2"), ("v", "1 2")], "2 of 3 rows name items that the dataset does not have .* such as 'w'; drop those rows"),
        ("item_id,vector", [("x", "1 2"), ("x", "1 2")], "has 2 vectors of 'x' among items; keep one"),
        ("user_id,item_id,vector", [("ann", "x", "1 2")], "row 1 names a user and an item"),
        ("user_id,item_id,vector", [("", "x", "1 2"), ("", "", "1 2")], "row 2 has no id"),
        ("user_id,item_id,vector", [("ann", "", "1 2")], "has no vector of an item"),
        ("user_id,item_id,vector", [("carl", "", "1 2")], "1 of 1 rows name users"),
        ("user_id,vector", [("ann", "1 2")], "has no column 'item_id' .*expected columns item_id and vector"),
        ("item_id,values", [("x", "1 2")], "has no column 'vector'"),
        ("item_id,item_id:token,vector", [("x", "y", "1 2")], "has 2 columns 'item_id'"),
        ("item_id,vector", [], "no vector of an item|cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(header: str, rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(written(tmp_path, header, rows))
    assert "--teacher.vectors=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "ids", "message"),
    [
        ({"items": torch.ones(2, 3)}, ["x"], "'items.jsonl' beside it has 1 ids for 2 vectors of items"),
        ({"items": torch.ones(2, 3)}, None, "cannot be read: .*items.jsonl"),
        (
            {"items": torch.ones(2)},
            ["x", "y"],
            r"'items' is torch.float32 of shape \(2,\); expected rows of floating-point numbers",
        ),
        ({"items": torch.ones(1, 3).int()}, ["x"], "'items' is torch.int32"),
        ({"items": torch.tensor([[torch.inf]])}, ["x"], "the vector in row 1 holds inf"),
        ({"items": torch.ones(1, 3), "users": torch.ones(1, 2)}, ["x"], "those of users 2"),
        ({"rows": torch.ones(1, 3)}, ["x"], "it holds rows; expected an array 'items'"),
        ({}, ["x"], "it holds nothing"),
    ],
)
def test_what_is_wrong_with_safetensors(arrays: Any, ids: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    safetensors.torch.save_file(arrays, path)
    if ids is not None:
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ids))
    (tmp_path / "users.jsonl").write_text('"ann"\n')
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_bundle_that_was_changed_is_refused(tmp_path: Path) -> None:
    """What ``export`` wrote is known by its digests."""
    tables_of_both = {"users": bundles.USERS, "items": bundles.ITEMS}
    path = bundles.write(tmp_path / "bundle", tables_of_both) / "vectors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"vectors\.safetensors was changed after the export.*export it again"):
        read(path)


@pytest.mark.parametrize("name", ["vectors.csv", "vectors.parquet", "vectors.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff\xfe" * 100, b"PAR1 and then nothing", b"x" * (1 << 17)])
def test_what_is_no_such_file_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="--teacher.vectors="):
        read(tmp_path / name)


def test_a_column_of_single_numbers_is_no_column_of_vectors(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    pyarrow.parquet.write_table(pa.table({"item_id": ["x"], "vector": [1.0]}), path)
    with pytest.raises(UserError, match="column 'vector' holds double; expected a list of numbers in a row"):
        read(path)
