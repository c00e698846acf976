"""Several processes on a Ray cluster: what torchrun starts, started by Ray Train.

The cluster is a session of two cores on this machine; the runs are programs of their own, which know its address and
token.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.train import TrainingFailedError

from recbole_kd.cluster import ray_train
from recbole_kd.cluster.group import Group
from recbole_kd.cluster.launch import RESTARTS
from recbole_kd.cluster.ray import ray_session
from recbole_kd.cluster.ray_train import _Board, _member, together_on_cluster
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd
from tests.cluster.test_ray import AT_LOOPBACK, begin

RUN: dict[str, Any] = {
    "teacher.epochs": 2,
    "teacher.embedding_size": 8,
    "embedding_size": 8,
    "rrd.interesting": 5,
    "rrd.uninteresting": 5,
    "rrd.pool": 8,
    "de.experts": 3,
    "baseline": "none",
}
MAIN = "import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster, and the variables with which it is joined."""
    with ray_session(cpus=2):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
        yield str(ray.get_runtime_context().gcs_address), {**AT_LOOPBACK, **token}


def words(data_path: Path, folder: str, **settings: Any) -> list[str]:
    given = known_answer_settings(data_path, **RUN, checkpoint_dir=str(data_path / folder), **settings)
    return ["--model=DERRDStudent", "--dataset=known-answer", *(f"--{key}={value}" for key, value in given.items())]


@pytest.mark.slow
def test_a_run_on_a_cluster_is_that_of_one_process(known_answer: Path, cluster: tuple[str, dict[str, str]]) -> None:
    address, variables = cluster
    settings = known_answer_settings(known_answer, **RUN, checkpoint_dir=str(known_answer / "one"))
    alone = run_recbole_kd("DERRDStudent", "known-answer", config_dict=settings)
    given = words(known_answer, "two", ray_address=address, nproc=2, result_file="result.json")
    run = begin(MAIN, *given, **variables)
    output, error = run.communicate()
    assert run.returncode == 0, error
    assert output.count("test split, epoch") == 1
    assert "epoch 2 training" in output + error, "its lines come here"
    result = json.loads(Path("result.json").read_text())
    for key in ("test_result", "best_epoch", "valid_history"):
        assert result[key] == alone[key], key
    left = {path.suffix for path in (known_answer / "two").iterdir()}
    assert left == {".pth", ".json", ""}, "Ray Train's own files are gone"
    assert not list((known_answer / "two").glob("ray-train-*"))


@pytest.mark.slow
def test_what_the_user_can_mend_is_told_in_a_line(known_answer: Path, cluster: tuple[str, dict[str, str]]) -> None:
    address, variables = cluster
    run = begin(MAIN, *words(known_answer, "two", ray_address=address, nproc=3), **variables)
    _, error = run.communicate()
    assert run.returncode == 2
    assert f"--nproc=3: the cluster at --ray_address={address} has 2 cores; lower it." in error.splitlines()[-1]
    # What only a process on the cluster finds out.
    (known_answer / "known-answer" / "known-answer.test.inter").unlink()
    run = begin(MAIN, *words(known_answer, "two", ray_address=address, nproc=2), **variables)
    _, error = run.communicate()
    assert run.returncode == 2, error
    assert "known-answer.test.inter" in error.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_process_changes_nothing(known_answer: Path, cluster: tuple[str, dict[str, str]]) -> None:
    """All are started again, and go on after the last whole epoch."""
    address, variables = cluster
    results = []
    for folder in ("whole", "killed"):
        given = words(known_answer, folder, ray_address=address, nproc=2, epochs=30, result_file=f"{folder}.json")
        run = begin(MAIN, *given, **variables)
        while folder == "killed" and not list((known_answer / folder).glob("DERRD*-last.pth")):
            assert run.poll() is None, run.communicate()[1]
        if folder == "killed":
            workers = [
                one for one in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(one.cmdline())
            ]
            workers[-1].kill()
        _, error = run.communicate()
        assert run.returncode == 0, error
        results.append(json.loads(Path(f"{folder}.json").read_text()))
    whole, killed = results
    for key in ("test_result", "valid_history", "loss_history", "best_epoch"):
        assert killed[key] == whole[key], key


# Without a cluster: what is asked of Ray, and what its processes tell each other


class Local:
    """A board in this process, whose methods are called like an actor's; some may fail."""

    def __init__(self, board: _Board, **instead: Callable[..., Any]) -> None:
        self.board, self.instead = board, instead

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=self.instead.get(name) or getattr(self.board, name))


def test_a_board_counts_the_starts_of_each_process_until_an_error_is_told() -> None:
    board = _Board()
    assert [board.begin(rank) for rank in (0, 1, 0, 1, 1)] == [0, 0, 1, 1, 2]
    board.tell("UserError", "set it")
    assert board.begin(0) is None, "it would fail again"
    assert board.read() == [("UserError", "set it")]


def board_after(starts: int) -> _Board:
    board = _Board()
    for _ in range(starts):
        board.begin(1)
    return board


def doubled(number: int, group: Group) -> int:
    if number < 0:
        raise UserError(f"process {group.rank} of {group.count}: a number above 0")
    return 2 * number


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs what Ray Train runs in a process of two."""
    for name in ("RANK", "RECBOLE_KD_STAMP", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setattr(ray, "get", lambda value: value)

    def run(rank: int, board: _Board, number: int = 4) -> None:
        os.environ["RANK"] = str(rank)
        monkeypatch.setattr(ray_train, "joined", lambda: contextlib.nullcontext(Group(rank, 2)))
        _member({"board": Local(board), "stamp": "a-stamp", "function": doubled, "arguments": (number,)})

    return run


def test_the_first_process_alone_tells_a_result(process: Callable[..., None]) -> None:
    board = _Board()
    for rank in (1, 0):
        process(rank, board)
        assert (os.environ["RECBOLE_KD_STAMP"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("a-stamp", "0")
    assert board.told == [("result", 8)]
    process(1, board_after(starts=2))
    assert os.environ["TORCHELASTIC_RESTART_COUNT"] == "2", "so that it resumes"


def test_any_process_tells_an_error_and_none_runs_again(process: Callable[..., None]) -> None:
    board, message = _Board(), "process 1 of 2: a number above 0"
    with pytest.raises(RuntimeError, match=message):  # so that Ray Train ends the others
        process(1, board, -1)
    process(0, board, -1)
    assert board.told == [("UserError", message)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A cluster of two cores, and what is asked of it; `fit` may fail, or the board."""
    asked = SimpleNamespace(board=_Board(), resources={"CPU": 2.0}, instead={}, fit=lambda: None)

    class Trainer:
        def __init__(self, function: Any, **given: Any) -> None:
            asked.function, asked.given = function, given

        def fit(self) -> None:
            asked.fit()

    def remote(**resources: Any) -> Any:
        asked.board_takes = resources
        return lambda kind: SimpleNamespace(remote=lambda: Local(asked.board, **asked.instead))

    monkeypatch.setattr(ray_train, "ray_session", lambda address, shown: contextlib.nullcontext())
    monkeypatch.setattr(ray_train, "TorchTrainer", Trainer)
    for name, instead in (
        ("get", lambda value: value),
        ("remote", remote),
        ("cluster_resources", lambda: asked.resources),
    ):
        monkeypatch.setattr(ray, name, instead)
    return asked


def on_two(folder: Path) -> Any:
    return together_on_cluster("10.0.0.1:6379", 2, str(folder / "new"), "a-stamp", doubled, 4)


def test_a_run_takes_a_core_for_each_process_and_leaves_no_file(
    asked: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked.fit = lambda: asked.board.tell("result", 8)
    assert on_two(Path(os.path.relpath(tmp_path))) == 8
    assert asked.board_takes == {"num_cpus": 0}, "the cores are the processes'"
    loop = asked.given["train_loop_config"]
    assert (asked.function, loop["function"], loop["arguments"], loop["stamp"]) == (_member, doubled, (4,), "a-stamp")
    scaling, run = asked.given["scaling_config"], asked.given["run_config"]
    assert (scaling.num_workers, scaling.resources_per_worker, scaling.use_gpu) == (2, {"CPU": 1}, False)
    assert run.failure_config.max_failures == RESTARTS
    place = Path(run.storage_path)
    assert place.is_absolute(), "workers have another current folder"
    assert place.parent == tmp_path / "new"
    assert not list(place.parent.iterdir())
    backend = asked.given["torch_config"]
    assert (backend.backend, backend.timeout_s) == ("gloo", 3600)
    assert not caplog.records


def test_a_cluster_with_gpus_is_told_that_they_are_idle(
    asked: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked.resources["GPU"] = 1.0
    asked.fit = lambda: asked.board.tell("result", 8)
    on_two(tmp_path)
    assert caplog.messages == ["--nproc on a Ray cluster computes on CPUs; torchrun starts a run on GPUs."]


@pytest.mark.parametrize("resources", [{"CPU": 1.0}, {}])
def test_fewer_cores_than_processes_are_refused(
    resources: dict[str, float], asked: SimpleNamespace, tmp_path: Path
) -> None:
    asked.resources = resources
    message = rf"--nproc=2: the cluster at --ray_address=10.0.0.1:6379 has {len(resources)} cores; lower it"
    with pytest.raises(UserError, match=message):
        on_two(tmp_path)


def test_a_cluster_without_this_package_is_refused(asked: SimpleNamespace, tmp_path: Path) -> None:
    def no_module() -> None:
        raise ray.exceptions.RayActorError

    asked.instead["read"] = no_module
    with pytest.raises(UserError, match="at --ray_address=10.0.0.1:6379 cannot import recbole_kd; install it on all"):
        on_two(tmp_path)


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ([("UserError", "set it")], UserError, "^set it$"),
        ([], TrainingError, r"was killed from outside, 4 times in all \(worker 1 died\).*--resume=FILE-last.pth"),
    ],
)
def test_a_failed_run_raises_what_a_process_told_or_that_one_was_killed(
    told: list[Any], error: type[Exception], message: str, asked: SimpleNamespace, tmp_path: Path
) -> None:
    def fails() -> None:
        asked.board.told += told
        raise TrainingFailedError("worker 1 died")

    asked.fit = fails
    with pytest.raises(error, match=message):
        on_two(tmp_path)


def test_an_error_is_raised_if_ray_train_ends_without_one(asked: SimpleNamespace, tmp_path: Path) -> None:
    """As after a restart, in which no process runs again."""
    asked.fit = lambda: asked.board.tell("TrainingError", "not finite")
    with pytest.raises(TrainingError, match="^not finite$"):
        on_two(tmp_path)
