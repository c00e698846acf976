"""Killed, out of disk, or not permitted to write: nothing whole is lost, and a run goes on exactly where it was."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import random
import resource
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.files.atomic import sweep, write_atomic
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from tests.reliability.kill_runs import MOMENTS, arguments_of, data_of, kill_and_go_on, outcome, to_the_end
from tests.test_cli import quick


@pytest.mark.parametrize(("model", "moments"), [("DERRDStudent", "stw"), ("BPR", "e")])
def test_a_killed_run_ends_as_one_never_stopped(model: str, moments: str, tmp_path: Path) -> None:
    """A small version of kill_runs.py, which does this fifty times and in fresh interpreters."""
    data, whole, chance = data_of("known-answer", tmp_path), tmp_path / "whole", random.Random(model)
    whole.mkdir()
    counts = to_the_end(arguments_of(model, data, whole), whole, fork=True)
    expected = outcome(whole)
    assert expected["epochs_trained"] > 3
    for moment in moments:
        for attempt in range(10):  # a run of a quarter of a second may be over before it is hit
            folder = tmp_path / f"{moment}{attempt}"
            record = kill_and_go_on(model, data, (expected, counts), folder, chance, True, moment)
            assert record["differs"] == [], f"{MOMENTS[moment]}: {record}"
            if any(kill["killed"] for kill in record["kills"]):
                break
        else:
            pytest.fail(f"never hit {MOMENTS[moment]}")


# What killed processes leave behind


def _hold(folder: Path, ready: Any) -> None:
    """Is in the middle of writing a file, until it is killed."""

    def write(file: Any) -> None:
        file.write(b"half")
        ready.send("writing")
        signal.pause()

    write_atomic(folder / "model.pth", write)


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    writers = [multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, sender)) for _ in range(2)]
    for writer in writers:
        writer.start()
        assert receiver.recv() == "writing"
    killed, alive = writers
    try:
        killed.kill()
        killed.join()
        foreign = [tmp_path / name for name in (".notes.tmp", "x.tmp", f".{secrets.token_hex(8)}.pth", ".1234.tmp")]
        for path in foreign:
            path.touch()
        assert len(list(tmp_path.glob(".*.tmp"))) == 4
        assert sweep(tmp_path) == 1, "the dead writer's file, neither the living one's nor someone else's"
        assert sweep(tmp_path) == 0
        assert all(path.exists() for path in foreign)
    finally:
        alive.kill()
        alive.join()
    save_checkpoint({"epoch": 1}, tmp_path / "model.pth")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.pth", *(path.name for path in foreign)}


def test_a_link_is_not_followed_and_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / f".{secrets.token_hex(8)}.tmp").symlink_to(precious)
    assert sweep(tmp_path / "saved") == 0
    assert precious.read_text() == "kept"
    assert sweep(tmp_path / "none") == 0


# Disks that are full, folders that are read-only


def _full(size: int) -> Callable[[], None]:
    """The kernel refuses to write any file past a size, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _no_longer_administrator() -> None:
    """Permissions hold for this process, whoever runs the tests."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Sets(ctypes.Structure):
        _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]

    libc, header, sets = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    overriding = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    sets[0].effective &= ~overriding
    sets[0].permitted &= ~overriding
    assert libc.capset(ctypes.byref(header), sets) == 0


def _under(condition: Callable[[], None], words: Sequence[str], sender: Any) -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.close(writing)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # not those that pytest reads
    logging.getLogger().handlers.clear()
    condition()
    code = main(list(words))
    os.set_blocking(reading, False)
    sender.send((code, os.read(reading, 1 << 16).decode()))
    os._exit(0)


def run_under(condition: Callable[[], None], words: Sequence[str]) -> tuple[int, str]:
    """Exit code and standard error of the command line, in a process that a condition holds for."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_under, args=(condition, words, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()  # type: ignore[no-any-return]
    finally:
        process.join()


@pytest.fixture
def trained(known_answer: Path) -> Path:
    """The checkpoint of a finished run of two epochs, beside its last one."""
    assert main(quick(known_answer, model="BPR", epochs=2)) == 0
    (checkpoint,) = (known_answer / "saved").glob("*[0-9].pth")
    return checkpoint


def _content(folder: Path) -> dict[str, str]:
    """Digests of a folder's files, but for compiled data: a cache of whole files, each with its own checksum."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".arrow"]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


def _words(verb: str, checkpoint: Path, data: Path, to: Path) -> list[str]:
    """A verb that writes something of a few ten thousand bytes into a folder."""
    own = [f"--checkpoint={checkpoint}", f"--data_path={data}"]
    if verb == "train":
        return quick(data, model="BPR", checkpoint_dir=to)
    if verb == "resume":
        return quick(
            data, model="BPR", epochs=4, resume=str(checkpoint).replace(".pth", "-last.pth"), checkpoint_dir=to
        )
    if verb == "teacher":
        return quick(data, model="FreqDStudent", checkpoint_dir=to, **{"teacher.epochs": 1})
    if verb == "recommend":
        return ["recommend", *own, "--users=all", "--k=30", f"--output={to / 'lists.csv'}"]
    if verb == "export":
        return ["export", *own, f"--output={to / 'bundle'}"]
    if verb == "evaluate":
        return ["evaluate", *own, "--topk=[10]", "--valid_metric=NDCG@10", f"--result_file={to / 'result.json'}"]
    raw = data / "raw.txt"
    raw.write_text("".join(f"{u}\t2010-10-19T23:55:27Z\t0\t0\t{i}\n" for u in range(60) for i in range(60)))
    return ["prepare", "--dataset=gowalla", f"--data_path={to}", f"--source={raw}"]


WRITING = ("train", "resume", "teacher", "recommend", "export", "evaluate", "prepare")


def _assert_refused(
    verb: str, trained: Path, data: Path, condition: Callable[[], None], reason: str, mode: int = stat.S_IRWXU
) -> None:
    """Where it may not write, the verb says so in one line, and every file there is as it was."""
    to = trained.parent if verb == "resume" else data / "to"
    to.mkdir(exist_ok=True)
    words = _words(verb, trained, data, to)
    before = _content(to), _content(trained.parent)
    to.chmod(mode)
    try:
        code, errors = run_under(condition, words)
    finally:
        to.chmod(stat.S_IRWXU)
    assert code == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("recbole-kd:")]
    assert reason in line
    assert "Traceback" not in errors
    assert (_content(to), _content(trained.parent)) == before, "nothing half-written, nothing lost"


@pytest.mark.parametrize("verb", WRITING)
def test_a_full_disk_is_one_line_and_leaves_what_was_whole(verb: str, trained: Path, known_answer: Path) -> None:
    _assert_refused(verb, trained, known_answer, _full(100 if verb == "evaluate" else 6000), "File too large")
    for path in trained.parent.glob("*.pth"):
        load_checkpoint(path)


@pytest.mark.parametrize("verb", WRITING)
def test_a_read_only_folder_is_one_line_and_leaves_what_was_whole(verb: str, trained: Path, known_answer: Path) -> None:
    read_only = stat.S_IRUSR | stat.S_IXUSR
    _assert_refused(verb, trained, known_answer, _no_longer_administrator, "Permission denied", read_only)


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint({"weights": torch.ones(4)}, path)

    def refused(sender: Any) -> None:
        _full(1000)()
        try:
            save_checkpoint({"weights": torch.ones(40_000)}, path)
        except UserError as error:
            sender.send(str(error))
        os._exit(0)

    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=refused, args=(sender,))
    process.start()
    assert "File too large" in receiver.recv()
    process.join()
    assert load_checkpoint(path)["weights"].equal(torch.ones(4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pth"]
