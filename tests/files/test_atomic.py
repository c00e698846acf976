"""Files are whole or absent: a write that fails loses nothing."""

from __future__ import annotations

import contextlib
import errno
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
from recbole_kd.files.atomic import write_atomic
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


@pytest.mark.parametrize(("path", "reason"), [("saved", "Is a directory"), ("saved/model.pth/x.pth", "File exists")])
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
