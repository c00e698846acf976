"""A function in a process of its own, and one in several that work together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from recbole_kd.cluster.group import Group
from recbole_kd.cluster.launch import in_own_process, raise_told, together
from recbole_kd.errors import Interrupted, TrainingError, UserError


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
        ("killed", TrainingError, r"killed from outside \(exit code -9\); if memory was short"),
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


# Several processes


def meets(folder: str, group: Group) -> dict[str, Any]:
    """Both add their number, and tell what they know of the run."""
    total = torch.tensor([float(group.rank + 1)])
    dist.all_reduce(total)
    listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    listening += [
        c.laddr.ip for c in psutil.Process().parent().net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    heard = group.plain("of process 0" if group.is_first else None)
    return {"sum": float(total), "heard": heard, "stamp": group.stamp, "listening": listening}


def test_processes_meet_without_a_port_that_others_reach(tmp_path: Path) -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told = together(2, "a-stamp", meets, str(tmp_path))
    assert (told["sum"], told["heard"], told["stamp"]) == (3.0, "of process 0", "a-stamp")
    assert set(told["listening"]) <= {"127.0.0.1", "::1"}
    assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def ends_badly(how: str, group: Group) -> str:
    """Process 1 ends in some way while process 0 waits for it in a sum."""
    if group.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "mended":
            raise UserError("--epochs='many'; expected a whole number.")
        raise LookupError("a bug")
    dist.all_reduce(torch.zeros(1))
    return "never"


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (
            "killed",
            TrainingError,
            r"^Process 1 of 2 was killed from outside \(SIGKILL\), 2 times.*--resume=FILE-last.pth",
        ),
        ("mended", UserError, r"^--epochs='many'; expected a whole number\.$"),
        ("a bug", RuntimeError, "LookupError: a bug"),
    ],
)
def test_a_process_that_ends_badly_ends_the_others_with_one_message(
    how: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        together(2, "stamp", ends_badly, how, restarts=1)


def test_of_several_errors_the_one_that_a_user_can_correct_is_raised() -> None:
    told = [
        ("RuntimeError", "process 1: the connection broke"),
        ("TrainingError", "not finite"),
        ("UserError", "set it"),
    ]
    with pytest.raises(UserError, match="set it"):
        raise_told(told)
    with pytest.raises(TrainingError, match="not finite"):
        raise_told(told[:2])
    raise_told([("result", {})])


def one_is_killed(data_path: Path, rank: int, epoch: int, group: Group) -> dict[str, Any]:
    """A distilled run in which one process is killed at the beginning of an epoch, the first time that it is reached."""
    from recbole_kd.testing import known_answer_settings
    from recbole_kd.trainer.kd_trainer import KDMixin
    from recbole_kd.verbs.train import _run_as_one_of_several

    mark, train = data_path / "killed", KDMixin._train_epoch

    def killed(self: Any, train_data: Any, epoch_idx: int, *arguments: Any, **named: Any) -> Any:
        if group.rank == rank and epoch_idx == epoch and len(self.distillers) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, train_data, epoch_idx, *arguments, **named)

    KDMixin._train_epoch = killed  # type: ignore[method-assign]
    settings = known_answer_settings(data_path, **RUN, checkpoint_dir=str(data_path / f"saved-{rank}-{epoch}"))
    return _run_as_one_of_several("DERRDStudent", "known-answer", [], settings, True, group)


def run(data_path: Path, folder: str, **settings: Any) -> dict[str, Any]:
    """A distilled run on the known-answer data."""
    # Here, so that the processes of the other tests start without RecBole.
    from recbole_kd.testing import known_answer_settings
    from recbole_kd.verbs.train import run_recbole_kd

    given = known_answer_settings(data_path, **RUN, checkpoint_dir=str(data_path / folder), **settings)
    return run_recbole_kd("DERRDStudent", "known-answer", config_dict=given)


RUN = {
    "epochs": 4,
    "teacher.epochs": 2,
    "embedding_size": 8,
    "teacher.embedding_size": 8,
    "baseline": "none",
    "rrd.interesting": 5,
    "rrd.uninteresting": 5,
    "rrd.pool": 8,
    "de.experts": 3,
}


def told_of(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("test_result", "valid_history", "loss_history", "best_epoch")}


@pytest.mark.parametrize(("rank", "epoch"), [(0, 2), (1, 3), (1, 0)])
def test_a_killed_process_changes_nothing(rank: int, epoch: int, known_answer: Path) -> None:
    whole = run(known_answer, "whole", nproc=2)
    broken = together(2, "stamp", one_is_killed, known_answer, rank, epoch)
    assert (known_answer / "killed").exists()
    assert told_of(broken) == told_of(whole)
    assert Path(broken["checkpoint"]).name == "DERRDStudent-known-answer-2020-stamp.pth"


def test_torchrun_starts_a_run(known_answer: Path) -> None:
    from recbole_kd.testing import known_answer_settings

    alone = run(known_answer, "one")
    folder, file = str(known_answer / "two"), str(known_answer / "result.json")
    settings = known_answer_settings(known_answer, **RUN, checkpoint_dir=folder, result_file=file)
    words = [f"--{key}={value}" for key, value in settings.items()]
    root = Path(__file__).parents[2]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(root / "run_recbole_kd.py")]
    command = [sys.executable, *launcher, "--model=DERRDStudent", "--dataset=known-answer", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test split, epoch") == 1, "the first process alone tells"
    result = json.loads((known_answer / "result.json").read_text())
    assert result["test_result"] == alone["test_result"]


MEETS = """
import os, signal, torch
import torch.distributed as dist
from recbole_kd.cluster.group import joined
with joined() as group:
    dist.all_reduce(torch.ones(1))
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts < 2:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
    open(f"met-{group.rank}-{restarts}", "w").close()
"""


@pytest.mark.parametrize("meeting", ["--standalone", "--master-port"])
def test_processes_of_torchrun_meet_again_after_each_restart(meeting: str, tmp_path: Path) -> None:
    """torchrun's store still has the addresses of the processes before, to which nobody answers."""
    (tmp_path / "meets.py").write_text(MEETS)
    if meeting == "--master-port":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = f"{meeting}={free.getsockname()[1]}"
    launcher = ["-m", "torch.distributed.run", meeting, "--nproc-per-node=2", "--max-restarts=2", "meets.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert sorted(path.name for path in tmp_path.glob("met-*")) == ["met-0-2", "met-1-2"], done.stderr


def test_an_interrupt_says_what_the_run_goes_on_from(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole_kd.testing import known_answer_settings
    from recbole_kd.verbs.train import run_recbole_kd

    given = known_answer_settings(known_answer, nproc=2)
    saved = known_answer / "saved"
    saved.mkdir()

    def interrupted(processes: int, stamp: str, *_: Any) -> None:
        if stamp_is_told:
            (saved / f"BPR-known-answer-2020-{stamp}-last.pth").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_kd.verbs.train.together", interrupted)
    stamp_is_told = False
    with pytest.raises(KeyboardInterrupt) as nothing:
        run_recbole_kd("BPR", "known-answer", config_dict=given)
    assert not isinstance(nothing.value, Interrupted)
    stamp_is_told = True
    with pytest.raises(Interrupted) as told:
        run_recbole_kd("BPR", "known-answer", config_dict=given)
    assert Path(told.value.resume).is_file()
