"""Kills runs with SIGKILL at random moments, goes on with them, and compares their end with runs never stopped.

    python tests/reliability/kill_runs.py --runs=50 --model=SimRecStudent,DERRDStudent,FreqDStudent,BPR

Each run is a process of its own that goes through the command line, as a user's does. It tells through a pipe when it
begins to write a file, to take a step, to evaluate, and when it trains its teacher; the script chooses one of these at
random, waits for it and a random moment more, and kills. Then it does what a user does: ``--resume=...-last.pth``, or the
same command again where there is no such file yet. At the end everything that the run made is compared to the bit:
weights, optimiser, random states, metrics, histories, best epoch.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What a run tells of through its pipe: a letter at the beginning of each.
MOMENTS = {"w": "writing a file", "s": "in a step", "e": "evaluating", "t": "training the teacher"}
#: How long after the beginning of such a moment the signal comes, at most, in seconds.
LONGEST = {"w": 0.01, "s": 0.02, "e": 0.03, "t": 1.0}
#: Quick runs: enough epochs to improve, to stop improving and to improve again.
SETTINGS: dict[str, dict[str, Any]] = {
    "SimRecStudent": {"simrec.triplets": 1000, "teacher.epochs": 3},
    "DERRDStudent": {
        "teacher.epochs": 3,
        "teacher.embedding_size": 32,
        "de.experts": 4,
        "rrd.weight": 0.1,
        "rrd.interesting": 5,
        "rrd.uninteresting": 5,
        "rrd.pool": 8,
    },
    "FreqDStudent": {"teacher.epochs": 3, "teacher.embedding_size": 32},
    "BPR": {"learner": "sevo_adamw", "sevo.graph": "bipartite"},
}
COMMON = {"epochs": 8, "stopping_step": 2, "learning_rate": 0.01, "baseline": "none", "show_progress": False}


def tell_moments(descriptor: int) -> None:
    """Lets this process write a letter into a pipe at the beginning of each of :data:`MOMENTS`."""
    import torch
    from recbole.trainer import Trainer

    import recbole_kd.verbs.train  # noqa: F401  before its parts are replaced
    from recbole_kd.files import atomic
    from recbole_kd.teacher import cache

    def telling(letter: str, function: Any) -> Any:
        def told(*arguments: Any, **named: Any) -> Any:
            os.write(descriptor, letter.encode())
            return function(*arguments, **named)

        return told

    atomic._claimed = telling("w", atomic._claimed)
    torch.Tensor.backward = telling("s", torch.Tensor.backward)  # type: ignore[method-assign]
    Trainer.evaluate = telling("e", Trainer.evaluate)
    cache.build_model = telling("t", cache.build_model)


def command(words: Sequence[str], descriptor: int, folder: Path) -> None:
    """What a process of a run does: the command line, with its moments told."""
    import torch

    from recbole_kd import cli

    os.chdir(folder)
    torch.set_num_threads(1)
    tell_moments(descriptor)
    with open(os.devnull, "w") as silent:
        os.dup2(silent.fileno(), 1)
        with (folder / "stderr.txt").open("a") as errors:
            os.dup2(errors.fileno(), 2)
        code = cli.main(list(words))
    os._exit(code)


@dataclass
class Process:
    """A run that was started, killed or left to end."""

    pid: int
    pipe: int
    popen: Any = None
    seen: collections.Counter[str] = field(default_factory=collections.Counter)

    def read(self) -> str:
        """The next letters; empty when the process has ended."""
        letters = os.read(self.pipe, 4096).decode()
        self.seen.update(letters)
        return letters

    def wait(self) -> int:
        """Its exit code; the number of the signal, negated, that ended it."""
        os.close(self.pipe)
        if self.popen is not None:
            return int(self.popen.wait())
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status) if hasattr(os, "waitstatus_to_exitcode") else _exit_code(status)


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def start(words: Sequence[str], folder: Path, fork: bool) -> Process:
    """Starts the command line in a folder: in a new interpreter, or in a fork of this one, which is seconds faster."""
    reading, writing = os.pipe()
    if fork:
        import recbole_kd.verbs.train  # noqa: F401  once, here, for all forks

        process = multiprocessing.get_context("fork").Process(target=command, args=(words, writing, folder))
        process.start()
        os.close(writing)
        return Process(process.pid or 0, reading, _Forked(process))
    code = "import sys; from tests.reliability.kill_runs import command; from pathlib import Path; "
    code += "command(sys.argv[3:], int(sys.argv[1]), Path(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    popen = subprocess.Popen(
        [sys.executable, "-c", code, str(writing), str(folder), *words],
        pass_fds=[writing],
        env=environment,
        cwd=folder,
    )
    os.close(writing)
    return Process(popen.pid, reading, popen)


class _Forked:
    def __init__(self, process: Any) -> None:
        self.process = process

    def wait(self) -> int:
        self.process.join()
        return int(self.process.exitcode)


def to_the_end(words: Sequence[str], folder: Path, fork: bool) -> collections.Counter[str]:
    """Runs a command to its end; how often each moment came."""
    process = start(words, folder, fork)
    while process.read():
        pass
    code = process.wait()
    if code != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {code}: {(folder / 'stderr.txt').read_text()[-2000:]}")
    return process.seen


def until_killed(
    words: Sequence[str], folder: Path, fork: bool, moment: str, count: int, delay: float
) -> tuple[bool, dict[str, int]]:
    """Runs a command until `delay` seconds after the `count`-th beginning of a moment, then kills it.

    Returns:
        whether it was killed (or had ended before), and how often each moment had come.
    """
    process = start(words, folder, fork)
    while process.seen[moment] < count and process.read():
        pass
    if process.seen[moment] >= count:
        time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(words)} ended with {code}: {(folder / 'stderr.txt').read_text()[-2000:]}")
    return code != 0, dict(process.seen)


def data_of(dataset: str, folder: Path) -> dict[str, Any]:
    """Settings of a dataset: of the one with a known answer, written into a folder, or of one that RecBole finds."""
    if dataset != "known-answer":
        return {"dataset": dataset}
    from recbole_kd.testing import known_answer_settings, write_known_answer

    settings = known_answer_settings(write_known_answer(folder / "data"))
    keys = ("data_path", "benchmark_filename", "load_col", "topk", "valid_metric")
    return {"dataset": dataset, **{key: settings[key] for key in keys}, "train_batch_size": 64}


def arguments_of(model: str, data: dict[str, Any], folder: Path) -> list[str]:
    """The words of a run of a model in a folder."""
    settings = {"model": model, **data, **COMMON, **SETTINGS.get(model, {}), "checkpoint_dir": folder / "saved"}
    return [f"--{key}={value}" for key, value in settings.items()]


def last_file(folder: Path) -> Path | None:
    """The student's state after its last whole epoch, if there is one."""
    found = sorted((folder / "saved").glob("*-last.pth"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run left, as plain values and digests to the bit, without times and places."""
    from recbole_kd.files.checkpoint import load_checkpoint
    from recbole_kd.files.digest import digest

    (result_file,) = [
        path for path in (folder / "saved").glob("*.json") if "test_result" in json.loads(path.read_text())
    ]
    result = json.loads(result_file.read_text())
    keys = ("best_epoch", "best_valid_score", "best_valid_result", "test_result", "epochs_trained")
    found = {key: result[key] for key in (*keys, "loss_history", "valid_history")}
    if result["teacher"]:
        found["teacher"] = {key: result["teacher"][key] for key in ("digest", "test_result")}
    files = {"best": result_file.with_suffix(".pth"), "last": last_file(folder)}
    for name, state in ((name, load_checkpoint(path)) for name, path in files.items() if path is not None):
        for key in ("state_dict", "optimizer", "distillers", "random", "loader", "epoch", "cur_step"):
            found[f"{name} {key}"] = digest(state[key])
    left = [path.name for path in folder.rglob("*.tmp")] + [path.name for path in folder.rglob("*-training*")]
    found["left over"] = sorted(left)
    return found


def kill_and_go_on(
    model: str,
    data: dict[str, Any],
    reference: tuple[dict[str, Any], collections.Counter[str]],
    folder: Path,
    chance: random.Random,
    fork: bool,
    moment: str | None = None,
) -> dict[str, Any]:
    """One run, killed once or more and gone on with to its end.

    Returns:
        when it was killed, whether it was resumed or repeated, and in what it differs from the reference.
    """
    folder.mkdir(parents=True)
    expected, counts = reference
    words = arguments_of(model, data, folder)
    record: dict[str, Any] = {"model": model, "kills": [], "differs": []}
    for _ in range(chance.choice((1, 1, 2))):
        chosen = moment or chance.choice([letter for letter in MOMENTS if counts[letter]])
        count = chance.randint(1, counts[chosen])
        again = _again(words, folder)
        killed, seen = until_killed(again, folder, fork, chosen, count, chance.uniform(0, LONGEST[chosen]))
        how = "resumed" if len(again) > len(words) else "started"
        record["kills"].append({"moment": MOMENTS[chosen], "killed": killed, "was": how, "seen": seen})
        record["half-written"] = record.get("half-written", 0) + len(list(folder.rglob(".*.tmp")))
        if not killed:
            break
    if not _finished(folder):
        to_the_end(_again(words, folder), folder, fork)
    found = outcome(folder)
    record["differs"] = [key for key in expected if found.get(key) != expected[key]]
    return record


def _again(words: list[str], folder: Path) -> list[str]:
    last = last_file(folder)
    return words if last is None else [*words, f"--resume={last}"]


def _finished(folder: Path) -> bool:
    return any("test_result" in json.loads(path.read_text()) for path in (folder / "saved").glob("*.json"))


def report(records: Sequence[dict[str, Any]], started: float) -> str:
    """What happened, in lines."""
    kills = [kill for record in records for kill in record["kills"] if kill["killed"]]
    moments = collections.Counter(kill["moment"] for kill in kills)
    models = collections.Counter(record["model"] for record in records)
    different = [record for record in records if record["differs"]]
    lines = [
        f"runs: {len(records)} ({', '.join(f'{model} {count}' for model, count in models.items())})",
        f"kills: {len(kills)} ({', '.join(f'{moment} {count}' for moment, count in moments.items())}), "
        f"{sum(kill['was'] == 'resumed' for kill in kills)} of them of a run that had been resumed",
        f"half-written files left by kills: {sum(record.get('half-written', 0) for record in records)}",
        f"runs that ended otherwise than the run never stopped: {len(different)}",
        *(f"  {record['model']}: {record['differs']} after {record['kills']}" for record in different),
        f"seconds: {time.monotonic() - started:.0f}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script. Returns 1 where a run ended otherwise than the one never stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--model", default=",".join(SETTINGS), help="models, separated by commas")
    parser.add_argument("--dataset", default="known-answer", help="or ml-100k")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--fork", action="store_true", help="processes forked from this one: faster, one hash seed")
    given = parser.parse_args(arguments)
    models = given.model.split(",")
    chance = random.Random(given.seed)
    started = time.monotonic()
    records = []
    folder = Path(tempfile.mkdtemp(prefix="kill-runs-"))
    data = data_of(given.dataset, folder)
    try:
        references = {}
        for model in models:
            whole = folder / f"{model}-whole"
            whole.mkdir()
            counts = to_the_end(arguments_of(model, data, whole), whole, given.fork)
            references[model] = outcome(whole), counts
            print(f"{model}: {dict(counts)}, best epoch {references[model][0]['best_epoch']}", flush=True)
        for number in range(given.runs):
            model = models[number % len(models)]
            place = folder / str(number)
            records.append(kill_and_go_on(model, data, references[model], place, chance, given.fork))
            print(number, json.dumps(records[-1]), flush=True)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        print(report(records, started), flush=True)
    return int(any(record["differs"] for record in records))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
