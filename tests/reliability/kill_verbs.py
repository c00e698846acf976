"""Kills `compare` and `tune` with SIGKILL at random moments, repeats the command, and compares their end.

    python tests/reliability/kill_verbs.py --rounds=10

Each round is a command of its own on the known-answer data, killed once or twice at a random moment of the time that it
takes (the processes that it started die with it), and given again, word for word, until it ends. What it found must then
equal, to the last digit, what a command never stopped found: every run's metrics and losses, every trial's settings and
scores, and what was chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from recbole_kd.cli import main; sys.exit(main())"
QUICK = {"epochs": 30, "stopping_step": 30, "learning_rate": 0.01, "train_batch_size": 64, "show_progress": False}
VERBS: dict[str, dict[str, Any]] = {
    "compare": {"models": "BPR,FreqDStudent", "seeds": 2, "teacher.epochs": 20, "teacher.embedding_size": 32},
    "tune": {"model": "BPR", "trials": 4, "prune": False, "cpus": 1},
}


def words(verb: str, data: dict[str, Any], output: Path) -> list[str]:
    """The command of a verb that writes into a folder."""
    given = {**data, **QUICK, **VERBS[verb], "checkpoint_dir": output / "saved", "output": output / "found"}
    return [sys.executable, "-c", PROGRAM, verb, *(f"--{key}={value}" for key, value in given.items())]


def start(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own; what it says goes into a file."""
    output.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (output.parent / f"{output.name}.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=output, env=environment, stdout=said, stderr=said)


def to_the_end(command: list[str], output: Path) -> float:
    """Runs the command to its end: the seconds it took."""
    began = time.monotonic()
    code = start(command, output).wait()
    if code != 0:
        said = (output.parent / f"{output.name}.txt").read_text()[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {said}")
    return time.monotonic() - began


def found(verb: str, output: Path) -> Any:
    """What a finished command found, without times and places."""
    name = "results.json" if verb == "compare" else "result.json"
    result = json.loads((output / "found" / name).read_text())
    if verb == "tune":
        keys = ("settings", "score", "epochs", "status", "valid_result")
        trials = sorted(({key: trial[key] for key in keys} for trial in result["trials"]), key=json.dumps)
        return trials, result["test_result"]
    keys = ("test_result", "best_valid_result", "best_epoch", "loss_history")
    return [[{key: run[key] for key in keys} for run in row["runs"]] for row in result["rows"]]


def main() -> int:
    """The script. Returns 1 where a command ended otherwise than the one never stopped."""
    from recbole_kd.testing import known_answer_settings, write_known_answer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of each verb")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-verbs-"))
    settings = known_answer_settings(write_known_answer(folder / "data"))
    data = {key: settings[key] for key in ("data_path", "benchmark_filename", "load_col", "topk", "valid_metric")}
    data = {"dataset": "known-answer", **data}
    kills, different = Counter[str](), Counter[str]()
    try:
        for verb in given.verbs:
            whole = folder / f"{verb}-whole"
            seconds = to_the_end(words(verb, data, whole), whole)
            expected = found(verb, whole)
            print(f"{verb}: {seconds:.0f} s", flush=True)
            for number in range(given.rounds):
                output = folder / f"{verb}-{number}"
                for _ in range(chance.choice((1, 1, 2))):
                    process = start(words(verb, data, output), output)
                    try:
                        process.wait(chance.uniform(0.2, 1) * seconds)
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        kills[verb] += process.wait() == -signal.SIGKILL
                to_the_end(words(verb, data, output), output)
                same = found(verb, output) == expected
                different[verb] += not same
                print(f"{verb} {number}: {'the same' if same else 'DIFFERENT'}", flush=True)
                shutil.rmtree(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for verb in given.verbs:
            print(f"{verb}: {kills[verb]} kills, {different[verb]} ended otherwise", flush=True)
    return int(any(different.values()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
