"""The same seed on the same machine: the same bits, in every fresh process and with any number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.kill_runs import ROOT

#: Trains in a fresh interpreter and prints what came of it, to the bit.
_PROGRAM = """
import json, sys
from pathlib import Path
import torch
from recbole_kd.cli import main
from tests.reliability.kill_runs import outcome
torch.set_num_threads(int(sys.argv[1]))
assert main(sys.argv[2:]) == 0
print("OUTCOME", json.dumps(outcome(Path())))
"""
RUNS: dict[str, list[str]] = {
    "SimRec": [
        *("--model=SimRecStudent", "--simrec.triplets=1000", "--teacher.epochs=1", "--train_batch_size=16384"),
        "--teacher.train_batch_size=16384",
    ],
    "DE-RRD": [
        *("--model=DERRDStudent", "--teacher.epochs=1", "--teacher.embedding_size=32", "--de.experts=4"),
        *("--train_batch_size=16384", "--teacher.train_batch_size=16384"),
    ],
}
COMMON = ["--dataset=ml-100k", "--epochs=1", "--baseline=none", "--checkpoint_dir=saved", "--show_progress=False"]


def start(words: list[str], folder: Path, threads: int, hash_seed: int) -> subprocess.Popen[str]:
    """A run in a process of its own, whose sets of words have an order of their own."""
    folder.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", _PROGRAM, str(threads), *words, *COMMON, "--save_last=False"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("OUTCOME ")]
    return json.loads(line.removeprefix("OUTCOME "))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("method", "threads"), [("SimRec", 2), ("DE-RRD", 1)])
def test_two_processes_end_with_the_same_bits(method: str, threads: int, tmp_path: Path) -> None:
    processes = [start(RUNS[method], tmp_path / str(number), threads, number) for number in (1, 2)]
    one, two = map(ended, processes)
    assert one == two
    assert one["best state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "threads"), [("SimRec", 1), ("DE-RRD", 2)])
def test_and_so_they_do_with_other_threads(method: str, threads: int, tmp_path: Path) -> None:
    test_two_processes_end_with_the_same_bits(method, threads, tmp_path)
