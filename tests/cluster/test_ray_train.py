"""Several processes on a Ray cluster: what torchrun starts, started by Ray Train.

The cluster is a session of two cores on this machine; the runs are programs of their own, which know its address and
token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from recbole_kd.cluster.ray import ray_session
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd
from tests.cluster.test_ray import AT_LOOPBACK, begin

pytestmark = pytest.mark.slow
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
