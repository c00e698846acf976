"""What is read is a regular file, and text has a bounded length: nothing waits for ever or fills the memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.plain import save_json
from recbole_kd.files.properties import read_yaml
from recbole_kd.files.reading import file_digest, open_regular, read_json, read_text


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (open_regular, read_text, file_digest, read_json):
            with pytest.raises(OSError, match="expected a regular file"):
                read(path)
        for load in (load_any, read_yaml):
            with pytest.raises(UserError, match="it is a pipe or a device; expected a regular file"):
                load(path)


def test_text_is_read_up_to_a_bound_and_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("\ufeffümlaut", encoding="utf-8")
    assert read_text(tmp_path / "x") == "ümlaut"
    assert read_text(tmp_path / "x", most=10) == "ümlaut"
    with pytest.raises(OSError, match="it is longer than 9 bytes"):
        read_text(tmp_path / "x", most=9)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' * 200 + "1" + "}" * 200, "9" * 10_000, "\x00", "NaN1"])
def test_text_that_is_no_json_of_ours_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json' is not valid JSON \(") as raised:
        read_json(tmp_path / "x.json")
    assert len(str(raised.value).splitlines()) == 1


def test_json_comes_back_and_is_held_against_its_schema(tmp_path: Path) -> None:
    save_json({"a": [1, 0.5, None, "ü"]}, tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") == {"a": [1, 0.5, None, "ü"]}
    with pytest.raises(UserError, match=r"field a\[1\] is 0.5; expected a whole number"):
        read_json(tmp_path / "x.json", dict[str, list[int]])


def test_a_digest_and_a_size_are_of_the_whole_file(tmp_path: Path) -> None:
    """It is read in blocks of a mebibyte; the size decides how far a zip may expand."""
    content = bytes(2**20) + b"the second block"
    (tmp_path / "x").write_bytes(content)
    assert file_digest(tmp_path / "x") == (hashlib.sha256(content).hexdigest(), len(content))
