"""A compiled file gives what its source gives, and only while both are whole."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from recbole_kd.data import store
from recbole_kd.data.layout import Layout
from recbole_kd.data.store import load_atomic

LAYOUT = Layout(ids=("user_id", "item_id"), time="timestamp")
COLUMNS = ["user_id", "item_id", "timestamp"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shop[1].inter"
    path.write_text('user_id:token\titem_id:token\ttimestamp:float\nann\tx\t5\nbob\t"y\t6\n')
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "saved" / "data"


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "read_atomic", lambda *_: pytest.fail("the source is read again"))


def test_the_second_time_nothing_is_parsed(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_atomic(source, LAYOUT, COLUMNS, folder)
    forbid_reading(monkeypatch)
    again = load_atomic(source, LAYOUT, COLUMNS, folder)
    assert again.equals(first)
    assert again.to_pydict() == {"user_id": ["ann", "bob"], "item_id": ["x", '"y'], "timestamp": [5, 6]}


def test_a_changed_byte_is_read_anew_though_size_and_time_are_the_same(source: Path, folder: Path) -> None:
    load_atomic(source, LAYOUT, COLUMNS, folder)
    before = source.stat()
    source.write_text(source.read_text().replace("ann", "eve"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_atomic(source, LAYOUT, COLUMNS, folder)["user_id"].to_pylist() == ["eve", "bob"]
    assert len(list(folder.iterdir())) == 1  # what the source held before is gone


def test_another_way_of_reading_has_its_own_file(source: Path, folder: Path) -> None:
    load_atomic(source, LAYOUT, COLUMNS, folder)
    assert load_atomic(source, LAYOUT, ["user_id", "item_id"], folder).column_names == ["user_id", "item_id"]
    assert load_atomic(source, Layout(encoding="latin-1"), COLUMNS, folder).num_rows == 2
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_a_damaged_file_is_made_anew_with_a_warning(
    source: Path, folder: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    whole = load_atomic(source, LAYOUT, COLUMNS, folder).to_pydict()
    (compiled,) = folder.iterdir()
    content = bytearray(compiled.read_bytes())
    content[place * len(content) // 100] ^= 1
    compiled.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_atomic(source, LAYOUT, COLUMNS, folder).to_pydict() == whole
    assert "is damaged; it is made again" in caplog.text
    caplog.clear()
    assert load_atomic(source, LAYOUT, COLUMNS, folder).to_pydict() == whole
    assert not caplog.text


@pytest.mark.parametrize("size", [0, 1, 31, 32, 200])
def test_a_file_that_was_cut_off_is_made_anew(
    source: Path, folder: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    whole = load_atomic(source, LAYOUT, COLUMNS, folder).to_pydict()
    (compiled,) = folder.iterdir()
    compiled.write_bytes(compiled.read_bytes()[:size])
    assert load_atomic(source, LAYOUT, COLUMNS, folder).to_pydict() == whole
    assert "is damaged" in caplog.text


def test_without_a_folder_to_write_to_the_source_is_read_each_time(source: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("a file, no folder")
    assert load_atomic(source, LAYOUT, COLUMNS, tmp_path / "saved" / "data")["user_id"].to_pylist() == ["ann", "bob"]
