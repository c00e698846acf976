"""A function in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_kd.cluster.launch import in_own_process
from recbole_kd.errors import TrainingError, UserError


def work(kind: str, tell: Callable[[Any], None]) -> int:
    """What the processes of these tests do."""
    tell({"kind": kind})
    if kind == "user":
        raise UserError("set --this")
    if kind == "training":
        raise TrainingError("not finite")
    if kind == "bug":
        raise KeyError("a bug")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()


def test_it_runs_elsewhere_and_tells_on_the_way() -> None:
    told: list[Any] = []
    assert in_own_process(work, "work", on_message=told.append) != os.getpid()
    assert told == [{"kind": "work"}]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("user", UserError, "^set --this$"),
        ("training", TrainingError, "^not finite$"),
        ("bug", RuntimeError, "KeyError: 'a bug'"),
        ("killed", TrainingError, r"ended from outside \(exit code -9\); if memory was short"),
    ],
)
def test_its_errors_are_raised_here(kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        in_own_process(work, kind)


def test_an_interrupt_is_its_parents_to_handle() -> None:
    assert in_own_process(work, "interrupt") > 0


def sleep(file: str, tell: Callable[[Any], None]) -> None:
    """Says who it is and stays."""
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    root = str(Path(__file__).parents[2])
    code = f"from tests.cluster.test_launch import *; in_own_process(sleep, {str(file)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    _wait(lambda: file.is_file() and file.read_text() != "")
    child = int(file.read_text())
    parent.kill()
    parent.wait()
    _wait(lambda: not _alive(child))


def _wait(reached: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False
