"""Files are whole or absent: a write that fails loses nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.errors import UserError
from recbole_kd.files import atomic
from recbole_kd.files.atomic import sweep, whole_folder, write_atomic, write_content
from recbole_kd.files.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from recbole_kd.files.plain import save_json
from tests.files.samples import (
    assert_same,
)

OLD = {"epoch": 1, "weights": torch.arange(1000.0)}
NEW = {"epoch": 2, "weights": torch.arange(100_000.0)}


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    path = tmp_path / "saved" / "model.pth"
    save_checkpoint(OLD, path)
    return path


def assert_untouched(path: Path) -> None:
    assert_same(load_checkpoint(path), {**OLD, "format": FORMAT})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "a temporary file was left behind"


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to write past a size, as it does on a full disk, in the middle of a file.

    It holds for every file of the process: pytest's own output must not fall under it.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 10_000, 390_000])
def test_the_disk_ends_in_the_middle_of_a_file(size: int, previous: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': File too large.*--checkpoint_dir"):  # noqa: SIM117
        with file_size_limit(size):
            save_checkpoint(NEW, previous)
    assert_untouched(previous)


def test_a_full_disk(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_file = atomic._RawFile
    monkeypatch.setattr(atomic, "_RawFile", lambda path, mode: raw_file("/dev/full", "w"))
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': No space left on device.*--checkpoint_dir"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_the_system_refuses_the_last_steps(name: str, previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match="Cannot write '.*model.pth': Input/output error"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_the_writer_fails_halfway(error: BaseException, seen: type[BaseException], previous: Path) -> None:
    def write(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(seen):
        write_atomic(previous, write)
    assert_untouched(previous)


def test_a_read_only_folder(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real one does not stop the administrator, who may be running this.
    def refuse(path: Path, mode: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic, "_RawFile", refuse)
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': Read-only file system.*--checkpoint_dir"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize(
    ("path", "reason"), [("saved", "it is a folder; expected a file"), ("saved/model.pth/x.pth", "File exists")]
)
def test_a_path_that_cannot_be_a_file(path: str, reason: str, previous: Path) -> None:
    with pytest.raises(UserError, match=reason):
        save_checkpoint(NEW, previous.parent.parent / path)
    with pytest.raises(UserError, match=reason):
        save_json({}, previous.parent.parent / path)
    assert_untouched(previous)


def test_a_written_file_has_reached_the_disk_before_it_takes_the_name(
    previous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, call=call: (done.append(name), call(*a))[1])
    save_checkpoint(NEW, previous)
    assert done == ["fsync", "replace", "fsync"]
    assert (previous.stat().st_mode & 0o777) == 0o666 & ~_umask(), "others may read it as any other file"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_for_ever(path: Path, states: list[dict[str, Any]]) -> None:
    while True:
        for state in states:
            save_checkpoint(state, path)


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    states = [{"epoch": epoch, "weights": torch.full((50_000,), float(epoch))} for epoch in range(4)]
    save_checkpoint(states[0], path)
    moments = random.Random(0)
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, states))
        process.start()
        time.sleep(moments.uniform(0.005, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        state = load_checkpoint(path)
        assert_same(state, {**states[state["epoch"]], "format": FORMAT})


#: Names that a process may have given to what it did not finish, and names that nobody here gives.
LEFT, OTHERS = (
    (".0123456789abcdef.tmp", ".fedcba9876543210.tmp"),
    (".0123456789abcdef.tmp.csv", "a.0123456789abcdef.tmp"),
)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_write_removes_what_killed_processes_left(kind: str, tmp_path: Path) -> None:
    (tmp_path / LEFT[0]).write_text("half")
    (tmp_path / LEFT[1]).mkdir()
    (tmp_path / LEFT[1] / "one").write_text("half")
    for name in OTHERS:
        (tmp_path / name).write_text("somebody's own")
    if kind == "file":
        write_content(tmp_path / "new", "x")
    else:
        fill(tmp_path / "new", "x")
    assert {entry.name for entry in tmp_path.iterdir()} == {"new", *OTHERS}


def test_a_file_is_not_swept_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, swept = os.replace, []

    def write(file: Any) -> None:
        file.write(b"x")
        swept.append(sweep(tmp_path))

    def replaced_late(*names: Any) -> None:
        swept.append(sweep(tmp_path))
        replace(*names)

    monkeypatch.setattr(os, "replace", replaced_late)
    write_atomic(tmp_path / "one", write)
    assert swept == [0, 0]
    assert (tmp_path / "one").read_text() == "x"


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, swept = fcntl.flock, []

    def locked_late(*arguments: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        swept.append(sweep(tmp_path))
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    write_content(tmp_path / "one", "x")
    assert swept == [1]
    assert (tmp_path / "one").read_text() == "x"


def test_text_is_written_in_utf_8(tmp_path: Path) -> None:
    write_content(tmp_path / "one", "ü 日本")
    assert (tmp_path / "one").read_bytes() == b"\xc3\xbc \xe6\x97\xa5\xe6\x9c\xac"


# Folders


def fill(path: Path, content: str) -> None:
    """A folder of two files of one content."""
    with whole_folder(path) as folder:
        for name in ("one", "two"):
            write_content(folder / name, content)


def contents(path: Path) -> set[str]:
    return {file.read_text() for file in path.iterdir()}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
def test_a_folder_takes_the_place_of_another(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for content in ("first", "second"):
        fill(tmp_path / "parent" / "bundle", content)
        assert contents(tmp_path / "parent" / "bundle") == {content}
    with pytest.raises(TypeError):
        fill(tmp_path / "parent" / "bundle", 3)  # type: ignore[arg-type]
    assert contents(tmp_path / "parent" / "bundle") == {"second"}
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["bundle"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "bundle", "first")
    rename, calls = os.rename, []

    def second_fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            assert sweep(tmp_path) == 0, "another process may write here meanwhile"
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*arguments)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(UserError, match="Cannot write '.*bundle': Input/output error"):
        fill(tmp_path / "bundle", "second")
    assert contents(tmp_path / "bundle") == {"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def _fill_for_ever(path: Path) -> None:
    while True:
        for content in ("first", "second"):
            fill(path, content)


def test_a_folder_is_there_and_whole_at_every_moment_and_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    fill(path, "first")
    moments = random.Random(0)
    left = 0
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_fill_for_ever, args=(path,))
        process.start()
        until = time.monotonic() + moments.uniform(0.05, 0.2)
        while time.monotonic() < until:
            descriptor = os.open(path, os.O_RDONLY)  # one and the same folder, whatever is called so meanwhile
            names = os.listdir(descriptor)
            os.close(descriptor)
            assert sorted(names) in (["one", "two"], ["one"], ["two"], [])  # the last are a replaced one's
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert contents(path) in ({"first"}, {"second"})
        assert len(list(path.iterdir())) == 2
        left += len(list(tmp_path.iterdir())) - 1
    assert left, "no kill left a folder behind: the test proves nothing"
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_link_stays_and_its_folder_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "releases" / "first", "old")
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "first")
    fill(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "releases" / "first") == {"new"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_being_filled_is_not_swept(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "bundle") as folder:
        write_content(folder / "one", "x")
        assert sweep(tmp_path) == 0
        write_content(tmp_path / "other", "x")
        assert folder.is_dir()
    assert contents(tmp_path / "bundle") == {"x"}
