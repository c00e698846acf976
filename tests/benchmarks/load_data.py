"""What it costs to load and split a dataset: processor and wall seconds, and memory, beyond those of the imports.

    python -m tests.benchmarks.load_data FOLDER [--users=1000000] [--items=1000000] [--rows=20000000]
    python -m tests.benchmarks.load_data FOLDER --dataset=gowalla

The first form writes ``FOLDER/made/made.inter`` if it is not there. Each figure is of a process of its own: cold, as the
first command on a dataset, and warm, as each later one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv


def make(path: Path, users: int, items: int, rows: int) -> None:
    """Rows of users and items who are as often in it as such are, few very often; ids are text."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"user_id:token\titem_id:token\n")
        for start in range(0, rows, 1_000_000):
            count = min(1_000_000, rows - start)
            sides = [(size * generator.random(count) ** 1.5).astype(np.int64) for size in (users, items)]
            table = pa.table([pa.array(side) for side in sides], names=["user", "item"])
            options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t")
            pyarrow.csv.write_csv(table, file, options)


def measure(data_path: str, dataset: str, checkpoints: str) -> None:
    """Prints what one load takes, as JSON."""
    import pyarrow.parquet  # noqa: F401
    from recbole.utils import init_seed

    from recbole_kd.data import summary
    from recbole_kd.data.splits import Splits
    from recbole_kd.experiment.settings import KDConfig

    settings = {"data_path": data_path, "checkpoint_dir": checkpoints, "distill": [], "use_gpu": False}
    config = KDConfig("BPR", dataset, config_dict=settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    init_seed(config.split_seed, True)
    splits = Splits(config)
    found = {
        "cpu s": round(time.process_time() - cpu, 2),
        "wall s": round(time.perf_counter() - wall, 2),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "of it imports": round(before / 2**20, 2),
        "rows": [len(part) for part in (splits.train, splits.valid, splits.test)],
    }
    for name, work in (
        ("table", lambda: (summary.table(splits), summary.warnings(splits))),
        ("digest", lambda: splits.training_digest),
    ):
        cpu = time.process_time()
        work()
        found[f"{name} cpu s"] = round(time.process_time() - cpu, 2)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--dataset")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--measure")
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.dataset, given.measure)
        return
    dataset = given.dataset or "made"
    path = Path(given.folder) / dataset / f"{dataset}.inter"
    if given.dataset is None and not path.exists():
        make(path, given.users, given.items, given.rows)
    checkpoints = tempfile.mkdtemp(prefix="recbole-kd-load-")
    try:
        for name in ("cold", "warm", "warm"):
            words = [
                "-m",
                "tests.benchmarks.load_data",
                given.folder,
                f"--dataset={dataset}",
                f"--measure={checkpoints}",
            ]
            line = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stdout
            print(f"{name}: {line.splitlines()[-1]}")
    finally:
        shutil.rmtree(checkpoints)


if __name__ == "__main__":
    main()
