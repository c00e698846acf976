"""Seconds of an epoch with one process and with several.

    python -m tests.benchmarks.scaling --model=SimRecStudent --dataset=ml-100k --nproc=2 --simrec.triplets=100000

Every process has one thread, so that what is compared is processes and not threads.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

from recbole_kd import run_recbole_kd
from recbole_kd.cli import parse


def main() -> None:
    _, settings, _ = parse(sys.argv[1:])
    count, seconds = settings.pop("nproc", 2), {}
    with tempfile.TemporaryDirectory() as folder:
        common = {"epochs": 4, "baseline": "none", "checkpoint_dir": folder, "show_progress": False, **settings}
        for processes in (1, count):
            result = run_recbole_kd(config_dict={**common, "nproc": processes})
            seconds[processes] = statistics.median(result["epoch_seconds"])
    print(f"{settings.get('model')} on {settings.get('dataset')}: median epoch in seconds {seconds}")
    print(f"speed-up of {count} processes: {seconds[1] / seconds[count]:.2f}")


if __name__ == "__main__":
    main()
