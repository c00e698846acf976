"""Seconds of an epoch with one process and with several, and where the time of several goes.

    python tests/benchmarks/scaling.py --model=SimRecStudent --dataset=ml-100k --nproc=2 --simrec.triplets=100000

Every process has one thread, so that what is compared is processes and not threads. The parts are of process 0, in
seconds of an epoch: `drawing` batches (process 0 alone, the others wait), `sending` them, `summing` losses and
gradients, waiting for the slowest included; the rest is computed side by side or in every process.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from recbole_kd.cli import parse
from recbole_kd.cluster import group as distributed
from recbole_kd.verbs import train as quick_start


def timed(name: str, function: Any, spent: Counter[str]) -> Any:
    def measured(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    return measured


def measured_run(model: Any, dataset: Any, files: list[str], settings: dict[str, Any], saved: bool, group: Any) -> Any:
    """A run in a process, with the time of its parts in the result."""
    spent: Counter[str] = Counter()
    group_class, shared = distributed.Group, distributed._SharedBatches
    group_class.tensors = timed("sending", group_class.tensors, spent)
    group_class.sum_gradients = timed("summing", group_class.sum_gradients, spent)
    distributed.SharedMixin._totals = timed("summing", distributed.SharedMixin._totals, spent)
    iterate = shared.__iter__

    def drawing(self: Any) -> Any:
        own = self._loader

        class Timed:
            def __iter__(self) -> Any:
                batches = iter(own)
                while True:
                    start = time.perf_counter()
                    batch = next(batches, None)
                    spent["drawing"] += time.perf_counter() - start
                    if batch is None:
                        return
                    yield batch

            def __len__(self) -> int:
                return len(own)

        self._loader = Timed()
        return iterate(self)

    shared.__iter__ = drawing
    evaluate = distributed.SharedMixin.evaluate
    distributed.SharedMixin.evaluate = lambda self, *a, **n: _without(spent, evaluate, self, *a, **n)
    result = quick_start._run_as_one_of_several(model, dataset, files, settings, saved, group)
    return {**result, "spent": {name: seconds / settings["epochs"] for name, seconds in spent.items()}}


def _without(spent: Counter[str], function: Any, *arguments: Any, **named: Any) -> Any:
    before = Counter(spent)
    value = function(*arguments, **named)
    spent.clear()
    spent.update(before)
    return value


def main() -> None:
    _, settings, _ = parse(sys.argv[1:])
    count = settings.pop("nproc", 2)
    with tempfile.TemporaryDirectory() as folder:
        common = {"epochs": 4, "baseline": "none", "checkpoint_dir": folder, "show_progress": False, **settings}
        results = {}
        for processes in (1, count):
            given = {**common, "nproc": processes}
            if processes == 1:
                results[1] = quick_start.run_recbole_kd(config_dict=given)
            else:
                plan = distributed.Plan(processes, processes, 0, None)
                results[processes] = distributed.run_processes(plan, measured_run, None, None, [], given, True)
        seconds = {number: statistics.median(result["epoch_seconds"]) for number, result in results.items()}
        print(f"{settings.get('model')} on {settings.get('dataset')}: median epoch in seconds", seconds)
        print(f"speed-up of {count} processes: {seconds[1] / seconds[count]:.2f}")
        print("of which, in process 0:", {name: round(value, 3) for name, value in results[count]["spent"].items()})


if __name__ == "__main__":
    main()
