"""Ray runs whatever code it is sent: who gets into a session of ours, and what stays of it.

One session serves most of this file. Strangers and guests are processes of their own, which know its address.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

import recbole_kd
from recbole_kd.cluster import ray as sessions
from recbole_kd.cluster.ray import check_cluster, environment, parallel_map, ray_session
from recbole_kd.errors import UserError
from recbole_kd.testing import known_answer_settings, write_known_answer
from recbole_kd.verbs.train import run_recbole_kd

#: What somebody else's program would do.
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("executed:", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""
#: What another program of this package does.
GUEST = """
import sys
from recbole_kd.cluster.ray import parallel_map, ray_session
from recbole_kd.errors import UserError
try:
    with ray_session(sys.argv[1]):
        print("executed:", next(parallel_map(len, ["four"], 1)))
except UserError as error:
    sys.exit(str(error))
"""
#: What Ray of another process needs to look for a cluster at the loopback address, and to give up soon.
AT_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}
WRONG = "0" * 64


def outer_address() -> str:
    """The address under which other machines reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def begin(program: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    """A Python process with nothing of Ray's in its environment but `variables`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env={**ours, "PYTHONPATH": str(Path(recbole_kd.__file__).parents[1]), "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def listening(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """(name of the process, address) of each listening socket of a process and those that it has started."""
    for one in [process, *process.children(recursive=True)]:
        try:
            for connection in one.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM:
                    yield one.name(), connection.laddr.ip.removeprefix("::ffff:")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of a session of one worker, which is up."""
    before = dict(os.environ)
    with ray_session(cpus=1):
        folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
        assert list(parallel_map(len, ["", "a"], 1)) == [(0, 0), (1, 1)]
        yield folder
    assert not folder.exists(), "nothing stays"
    assert dict(os.environ) == before


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    return str(ray.get_runtime_context().gcs_address)


# Who gets in


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG}], ids=["none", "wrong"])
def test_a_stranger_on_this_machine_is_refused(address: str, token: dict[str, str]) -> None:
    stranger = begin(STRANGER, address, **AT_LOOPBACK, **token)
    output, error = stranger.communicate()
    assert stranger.returncode == 1
    assert "executed" not in output
    assert f"Failed to connect to Ray cluster at {address}" in error
    assert "InvalidAuthToken" in error


def test_a_stranger_on_another_machine_reaches_nothing(address: str, folder: Path) -> None:
    """Not even with the token."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as stranger, pytest.raises(ConnectionRefusedError):
        stranger.connect((outer_address(), port))
    hasty = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_gcs_rpc_server_reconnect_timeout_s": "1"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    stranger = begin(STRANGER, f"{outer_address()}:{port}", **hasty, **token)
    output, _ = stranger.communicate()
    assert stranger.returncode != 0
    assert "executed" not in output


def test_who_has_the_token_gets_in(address: str, folder: Path) -> None:
    """So the tests above would notice an open door."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    output, error = begin(STRANGER, address, **AT_LOOPBACK, **token).communicate()
    assert output == "executed: 42\n", error


def test_sockets_are_bound_to_the_loopback_interface(address: str) -> None:
    sockets = list(listening(psutil.Process()))
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {where for _, where in sockets} <= {"127.0.0.1", "::1"}


def test_no_other_module_starts_a_session() -> None:
    package = Path(recbole_kd.__file__).parent
    starting = {
        path.name for path in package.rglob("*.py") if re.search(r"ray\.init\(|import init\b", path.read_text())
    }
    assert starting == {"ray.py"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [
        "tune --model=BPR --trials=2 --cpus=2 --prune=false",
        "compare --models=BPR,Pop --parallel=2",
        "train --model=BPR --ray_address=local",
    ],
    ids=lambda verb: verb.split()[0],
)
def test_a_verb_listens_on_the_loopback_interface_only(verb: str, tmp_path: Path) -> None:
    data = write_known_answer(tmp_path / "data")
    given = (
        "--dataset=known-answer --benchmark_filename=[train,valid,test] --epochs=2 --topk=[10] --valid_metric=NDCG@10"
    )
    program = "import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))"
    run = begin(program, *verb.split(), *given.split(), f"--data_path={data}", f"--checkpoint_dir={tmp_path / 'saved'}")
    sockets = set()
    while run.poll() is None:
        sockets |= set(listening(psutil.Process(run.pid)))
        time.sleep(0.1)
    assert run.returncode == 0, run.communicate()[1]
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {where for _, where in sockets} <= {"127.0.0.1", "::1"}, sockets


# What lies on the disk


def test_only_this_user_reads_the_token(folder: Path) -> None:
    token = folder / "token"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    assert any(folder.glob("ray/session_*")), "Ray's own files are behind the same door"


def test_every_session_has_a_token_of_its_own_and_what_was_killed_is_swept(folder: Path) -> None:
    """A process that is killed cannot clean up; the next session does, and lets living ones alone."""
    program = """
import os, sys, time
from recbole_kd.cluster.ray import ray_session
with ray_session(cpus=1):
    print(os.environ["RAY_AUTH_TOKEN_PATH"], flush=True)
    time.sleep(float(sys.argv[1]))
"""
    killed = begin(program, "1000")
    assert killed.stdout is not None
    token = Path(killed.stdout.readline().strip())
    assert token.read_text() != (folder / "token").read_text()
    started = [one for one in psutil.Process(killed.pid).children(recursive=True) if "Agent" not in one.name()]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert token.is_file()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive, "what runs code ends with the process that started it; Ray's agents do within a minute"
    _, error = begin(program, "0").communicate()
    assert not token.parent.exists(), error
    assert folder.is_dir()


def test_a_folder_of_somebody_else_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that is in use, nor a link to one: all of these stay when a session removes what was left behind."""
    own = sessions._lock(tmp_path)
    assert own is not None
    assert sessions._lock(tmp_path) is None
    os.close(own)
    (tmp_path / "link").symlink_to(tmp_path)
    assert sessions._lock(tmp_path / "link") is None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert sessions._lock(tmp_path) is None


def test_a_path_that_is_too_long_for_sockets_is_not_used(tmp_path: Path) -> None:
    program = "import os\nfrom recbole_kd.cluster.ray import ray_session\n"
    program += "with ray_session(cpus=1): print(os.environ['RAY_AUTH_TOKEN_PATH'])"
    (long := tmp_path / ("x" * 60)).mkdir()
    output, error = begin(program, TMPDIR=str(long)).communicate()
    assert output.startswith("/tmp/kd-ray-"), error


def test_environment_variables_are_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "before")
    monkeypatch.delenv("UNSET", raising=False)
    with environment(SET=None, UNSET="inside"):
        assert "SET" not in os.environ
        assert os.environ["UNSET"] == "inside"
    assert os.environ["SET"] == "before"
    assert "UNSET" not in os.environ


# A cluster that is joined


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_cluster_is_joined_with_the_users_token(address: str, folder: Path, variable: str) -> None:
    token = folder / "token"
    value = str(token) if variable == "RAY_AUTH_TOKEN_PATH" else token.read_text()
    output, error = begin(GUEST, address, **AT_LOOPBACK, **{variable: value}).communicate()
    assert output == "executed: (0, 4)\n", error


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({}, "refuses the connection: it needs another token"),
        ({"RAY_AUTH_TOKEN": WRONG}, "refuses the connection: it needs another token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty"),
    ],
    ids=["none", "wrong", "missing file"],
)
def test_a_cluster_that_refuses_the_token_is_told_in_a_line(address: str, token: dict[str, str], message: str) -> None:
    guest = begin(GUEST, address, **AT_LOOPBACK, **token)
    _, error = guest.communicate()
    assert guest.returncode == 1
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "[::1", "host:port"])
def test_where_no_cluster_can_be_nothing_is_awaited(address: str) -> None:
    with pytest.raises(UserError, match="No Ray cluster answers at --ray_address="):
        check_cluster(address)


@pytest.mark.parametrize("verb", [["train"], ["tune", "--trials=1"]], ids=lambda verb: verb[0])
def test_an_address_without_a_cluster_is_refused_before_anything_is_trained(verb: list[str], tmp_path: Path) -> None:
    data = write_known_answer(tmp_path / "data")
    given = [f"--data_path={data}", "--dataset=known-answer", "--benchmark_filename=[train,valid,test]"]
    words = [*verb, "--model=BPR", "--teacher=BPR", "--distill=rkd", *given, "--ray_address=127.0.0.1:1"]
    process = begin("import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))", *words)
    _, error = process.communicate()
    assert process.returncode == 2, error
    assert "No Ray cluster answers at --ray_address=127.0.0.1:1" in error.splitlines()[-1]
    assert not list(Path.cwd().glob("saved/**/*.pth"))


def test_without_ray_train_it_is_said_what_to_install(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recbole_kd.cluster.ray_train", raising=False)
    monkeypatch.setitem(sys.modules, "ray.train", None)
    settings = known_answer_settings(known_answer, ray_address="127.0.0.1:1", nproc=2)
    with pytest.raises(UserError, match=r"needs Ray Train \(.*\); run: pip install -U 'ray\[train\]'"):
        run_recbole_kd("BPR", "known-answer", config_dict=settings)


def test_a_ray_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "2.58.3")
    with pytest.raises(UserError, match=r"Ray 2\.58\.3 is installed; expected 2\.59 or later"), ray_session():
        pass
    monkeypatch.setattr(ray, "__version__", "2.59.0")
    check_cluster(None)
