"""Tables: Parquet and text are read alike, and no cell that we write is a formula of a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_kd.errors import UserError
from recbole_kd.files.tables import csv_text, read_batches, readable, write_parquet


def chosen(names: Sequence[str]) -> dict[str, str]:
    return {name.partition(":")[0]: name for name in names if not name.startswith("other")}


def test_parquet_and_text_hold_the_same_table(tmp_path: Path) -> None:
    columns = {"user": ["1", "b"], "score": [0.5, -1.0], "other": ["x", "y"]}
    write_parquet(tmp_path / "x.parquet", columns)
    (tmp_path / "x.tsv").write_text("user:token\tscore:float\tother\n1\t0.5\tx\nb\t-1\ty\n")
    (tmp_path / "x.csv").write_text('user,"score",other\r\n1,0.5,x\r\nb,-1,y\r\n')
    for path in tmp_path.iterdir():
        batch = list(read_batches(path, chosen, ("score",)))[-1]
        assert {name: column.to_pylist() for name, column in batch.items()} == {
            "user": ["1", "b"],
            "score": [0.5, -1.0],
        }


def test_quotes_between_tabs_are_letters(tmp_path: Path) -> None:
    """As in a dataset's own files; otherwise a title such as "Alien would swallow the rows after it."""
    (tmp_path / "x").write_text('user\tscore\ttitle\nu1\t0.5\t"Alien\n"u2"\t1\tBrazil\nu3\t2\t"M"\n')
    batch = list(read_batches(tmp_path / "x", chosen, ("score",)))[-1]
    assert batch["user"].to_pylist() == ["u1", '"u2"', "u3"]


def test_a_columns_name_has_neither_blanks_around_it_nor_a_byte_order_mark(tmp_path: Path) -> None:
    """Spreadsheets write the mark, and people the blanks."""
    (tmp_path / "x").write_text('user , "score"\nu1,0.5\n', encoding="utf-8-sig")
    batch = list(read_batches(tmp_path / "x", chosen, ("score",)))[-1]
    assert {name: column.to_pylist() for name, column in batch.items()} == {"user": ["u1"], "score": [0.5]}


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x", {"user": pyarrow.array([], pyarrow.string())})
    assert [
        {name: str(column.type) for name, column in batch.items()} for batch in read_batches(tmp_path / "x", chosen)
    ] == [{"user": "string"}]


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    for content in (b"PAR1 and no more", b"user,score\n1\n", b"user,score\n1,x\n", b"user,score\n\xff,1\n"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match="^x cannot be read: ") as raised, readable("x"):
            list(read_batches(tmp_path / "x", chosen, ("score",)))
        assert len(str(raised.value).splitlines()) == 1


def test_a_cell_that_would_be_computed_is_text() -> None:
    rows = [
        ["=1+2", "+x", "-x", "@x", "\tx", "\r=x"],
        ["-1.5", "+3", "x=1", "", "a-b", "'"],
        [-1.5, None, True, 0, 1e-9, 2],
    ]
    read = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert read[0] == ["'=1+2", "'+x", "'-x", "'@x", "'\tx", " =x"]
    assert read[1] == rows[1]
    assert read[2] == ["-1.5", "", "True", "0", "1e-09", "2"]


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_no_text_begins_with_a_formula(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_text([[text]]), newline=""))
    plain = text.replace("\r", " ")
    assert cell in (plain, f"'{plain}")
    assert cell[0] not in "=@\t"
    if cell[0] in "+-":
        float(cell)
