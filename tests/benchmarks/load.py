"""Load: synthetic data of any size through RecBole's files, loaders and trainer, in at most so many gigabytes.

    python tests/benchmarks/load.py --scale=0.01                 # 10,000 x 10,000 x 200,000: half a minute or so
    python tests/benchmarks/load.py --scale=0.1 --steps=0        # whole epochs, to hold the extrapolated ones against
    python tests/benchmarks/load.py                              # 1M users x 1M items x 20M interactions
    python tests/benchmarks/load.py --steps=0 --methods=plain,rrd --set learner=lazy_adam fast_sampling=true

Users and items are drawn with power laws. The files are read as any dataset is; then each method runs in a process of
its own, forked from the one that read them, in which more than ``--limit_gb`` of address space is an error:

- ``build``: student, loaders, distillers, graphs; ``draw``: what a distiller draws before an epoch; ``shuffle``: the
  loader's own.
- ``step``: the median of ``--steps`` steps, each with its negatives, loss, backward pass and optimiser. ``epoch`` is
  extrapolated from it: shuffle + draw + steps of an epoch x step. ``--steps=0`` runs whole epochs and measures them.
- A checkpoint after the first (cut short) epoch, from which a new trainer goes on: the second epoch must end with the
  same weights, to the bit, as without the interruption.
- ``trained``, ``peak``: the most memory that was resident, the data included: in training, and with what follows it.

The batch is a thousandth of the interactions, since a step of RecBole's optimisers writes the whole tables. Seconds are
processor seconds of one thread, beside those of the clock: other work on the machine stretches only the latter.

The teacher's vectors and its rank bank are random: what they hold changes no time. What the bank would cost is measured
on some users and extrapolated (a bank for 1M users x 1M items takes 2 d x 1e12 operations). SimRec's sums run over
``--catalogue`` sampled nodes of each side; over all of them (0) a step takes time in proportion to batch x catalogue.

``recommend`` is the command itself, for 10,000 users, reading the files again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import torch
import yaml
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import build_rank_bank
from recbole_kd.data.samplers import Complement
from recbole_kd.data.splits import Splits
from recbole_kd.evaluation.costs import peak_memory, reset_peak_memory
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.student import build_student
from recbole_kd.teacher.bare import BareTeacher

NAME = "synthetic"
GB = 2**30
_COMMAND = "import sys; from recbole_kd.cli import main; sys.exit(main())"
POOL = 100
#: Vectors of a teacher, and of a student.
TEACHER_SIZE, STUDENT_SIZE = 200, 20
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"model": "BPR"},
    "rrd": {"model": "BPR", "distill": ["rrd"], "rrd.pool": POOL},
    "freqd": {"model": "BPR", "distill": ["freqd"]},
    "simrec": {"model": "SimRecStudent", "baseline": None},
    "sevo": {"model": "BPR", "learner": "sevo_adamw", "sevo.graph": "bipartite"},
}


def synthesise(folder: Path, users: int, items: int, interactions: int, held_out: int, seed: int) -> None:
    """Atomic files of a training split, and of a validation and a test split of so many users with one item each."""
    random = np.random.default_rng(seed)
    # By the inverse of the distribution function: rank r is drawn with probability about r^-a / sum r^-a.
    user, item = (
        (size * random.random(interactions) ** (1 / (1 - exponent))).astype(np.int64)
        for size, exponent in ((users, 0.5), (items, 0.8))
    )
    pairs = np.unique(user * items + item)
    random.shuffle(pairs)
    known = pairs[2 * held_out :]
    folder.mkdir(parents=True)
    later = random.choice(np.unique(known // items), 2 * held_out, replace=False) * items + random.choice(
        np.unique(known % items), 2 * held_out
    )
    for split, keys in (("train", known), ("valid", later[:held_out]), ("test", later[held_out:])):
        table = pyarrow.table({"user": keys // items, "item": keys % items})
        options = pyarrow.csv.WriteOptions(delimiter="\t", include_header=False)
        with (folder / f"{NAME}.{split}.inter").open("wb") as file:
            file.write(b"user_id:token\titem_id:token\n")
            pyarrow.csv.write_csv(table, file, options)


class RandomTeacher(BareTeacher):
    """Vectors and lists of a teacher that knows nothing."""

    name = "Random"
    capabilities = frozenset({"scores", "listed_scores", "ranks", "representations"})
    parameters, files, digest = 0, (), ""

    def __init__(self, observed: Observed, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.dimension = size
        self._observed = observed
        self._vectors = [torch.randn(rows, size, generator=generator) for rows in (observed.users, observed.items)]

    def user_embeddings(self) -> Tensor:
        return self._vectors[0]

    def item_embeddings(self) -> Tensor:
        return self._vectors[1]

    def ranked_items(self, k: int) -> Tensor:
        nothing = torch.zeros(self._observed.users, 0, dtype=torch.int32)
        return Complement(self._observed, nothing).draw(k, torch.Generator().manual_seed(1))


class First:
    """The first `count` batches of a loader, all of them where it is 0; notes the times at which each is asked for."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader)) or len(loader)
        self.asked: list[float] = []
        self.shuffle = 0.0

    def __iter__(self) -> Iterator[Any]:
        start = time.process_time()
        batches = iter(self.loader)
        self.shuffle = time.process_time() - start
        self.asked = [time.process_time()]
        for _ in range(self.count):
            yield next(batches)
            self.asked.append(time.process_time())

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    @property
    def __class__(self) -> Any:
        # A resumed run asks what its loader is, and sets how it draws.
        return type(self.loader)

    @property
    def fast(self) -> bool:
        return bool(self.loader.fast)

    @fast.setter
    def fast(self, value: bool) -> None:
        self.loader.fast = value

    @property
    def step(self) -> float:
        """Median seconds of a step; the first one warms up."""
        spent = [later - earlier for earlier, later in zip(self.asked, self.asked[1:])]
        return statistics.median(spent[1:] or spent)


def clocked(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, processor seconds, seconds of the clock)."""
    processor, clock = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - processor, time.perf_counter() - clock


def settings(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """What a method is trained with."""
    own = {key: value for key, value in METHODS[method].items() if key != "model"}
    if method == "simrec" and arguments.catalogue:
        own["simrec.catalogue"] = arguments.catalogue
    return {
        "data_path": str(arguments.folder),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "checkpoint_dir": str(arguments.folder / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "train_batch_size": arguments.batch,
        "embedding_size": 32 if method == "simrec" else STUDENT_SIZE,
        "epochs": 2,
        "distill": [],
        "teacher": None,
        "topk": [20],
        "metrics": ["NDCG"],
        **({"distill": ["simrec"], "teacher": "LightGCN"} if method == "simrec" else {}),
        **({"teacher": "LightGCN"} if "distill" in own else {}),
        **own,
        **{key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in arguments.set)},
    }


def measure(arguments: argparse.Namespace, splits: Splits, method: str) -> dict[str, Any]:
    """One method: two epochs, the second once more from the checkpoint between them."""
    reset_peak_memory()
    observed = splits.observed
    teacher: Any = None
    if method not in ("plain", "sevo"):
        teacher = RandomTeacher(observed, 32 if method == "simrec" else TEACHER_SIZE)
    found: dict[str, Any] = {"method": method}

    def built(**more: Any) -> tuple[Any, Any]:
        experiment = Experiment.of(METHODS[method]["model"], NAME, given={**settings(arguments, method), **more})
        _, trainer, (train, valid, _) = build_student(experiment, splits, teacher)
        return trainer, (First(train, arguments.steps), valid)

    (trainer, (train, valid)), found["build"], found["build_wall"] = clocked(built)
    found["steps_an_epoch"] = len(train.loader)
    draws = [clocked(lambda one=one: one.begin_epoch(0))[1] for one in trainer.distillers.values()]
    found["draw"] = sum(draws)
    _, spent, wall = clocked(lambda: trainer.fit(train, valid, saved=True, show_progress=False))
    found["trained_gb"] = peak_memory() / GB
    found.update(shuffle=train.shuffle, step=train.step, epoch_wall=trainer.epoch_seconds[-1])
    found["slowdown"] = wall / spent
    found["epoch"] = found["shuffle"] + found["draw"] + found["steps_an_epoch"] * found["step"]
    if not arguments.steps:
        found["whole_epoch"] = train.asked[-1] - train.asked[0] + found["shuffle"] + found["draw"]
    final = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found["checkpoint_gb"] = os.path.getsize(trainer.last_file) / GB
    _, found["checkpoint"], _ = clocked(lambda: trainer._save_state(str(arguments.folder / "saved" / "timed.pth"), 0))
    last = trainer.last_file
    trainer = train = None
    (again, (train, valid)), found["resume"], _ = clocked(lambda: built(resume=last))
    assert again.start_epoch == 1, "the checkpoint is of the end of the first epoch"
    again.fit(train, valid, saved=True, show_progress=False)
    found["same"] = all(torch.equal(value, final[name]) for name, value in again.model.state_dict().items())
    found["peak_gb"] = peak_memory() / GB
    found["best"] = again.saved_model_file
    return found


def rank_bank(splits: Splits, count: int) -> dict[str, Any]:
    """The rate at which the rank bank of a teacher is computed, from `count` users."""
    reset_peak_memory()
    observed = splits.observed
    few = observed.user_ids <= count
    some = Observed(observed.user_ids[few], observed.indices[few], min(count + 1, observed.users), observed.items)
    teacher = RandomTeacher(observed, TEACHER_SIZE)
    users, items = teacher.user_embeddings(), teacher.item_embeddings()
    _, spent, _ = clocked(lambda: build_rank_bank(lambda block: users[block] @ items.t(), some, POOL))
    each = spent / (some.users - 1)
    return {
        "method": "rank bank",
        "ms_a_user": 1e3 * each,
        "ns_a_score": 1e9 * each / observed.items,
        "extrapolated_hours": each * (observed.users - 1) / 3600,
        "peak_gb": peak_memory() / GB,
    }


def recommend(arguments: argparse.Namespace, splits: Splits, checkpoint: str) -> dict[str, Any]:
    """The command, for 10,000 users, in a process of its own."""
    chosen = splits.user_tokens[1 : arguments.recommended + 1]
    ids, output = arguments.folder / "ids.txt", arguments.folder / "recommended.csv"
    ids.write_text("\n".join(chosen))
    words = [
        f"--checkpoint={checkpoint}",
        f"--data_path={arguments.folder}",
        f"--users=@{ids}",
        "--k=20",
        f"--output={output}",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _COMMAND, "recommend", *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with output.open() as lines:
        rows = sum(1 for _ in lines) - 1
    assert rows == 20 * len(chosen), f"{rows} rows"
    return {
        "method": "recommend",
        "users": len(chosen),
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall": time.perf_counter() - start,
    }


def in_a_process(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function returns, run in a fork of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send(function())
        except BaseException as error:
            traceback.print_exc()
            sender.send({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        found = {"failed": "the process was ended"}
    process.join()
    return found


def available() -> float:
    """Bytes that the machine has free."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return float(lines["MemAvailable"].split()[0]) * 1024


def tell(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}
    print(json.dumps(shown), flush=True)
    if arguments.output:
        with arguments.output.open("a") as file:
            file.write(json.dumps(shown) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--interactions", type=float, default=2e7)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the three")
    parser.add_argument("--batch", type=int, default=0, help="a thousandth of the interactions")
    parser.add_argument("--steps", type=int, default=6, help="of an epoch; 0: all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every method")
    parser.add_argument("--catalogue", type=int, default=8192, help="nodes that SimRec's sums run over; 0: all")
    parser.add_argument("--held_out", type=int, default=200, help="users of the validation split, and of the test's")
    parser.add_argument("--ranked", type=int, default=64, help="users whose ranked lists are timed")
    parser.add_argument("--recommended", type=int, default=10_000)
    parser.add_argument("--limit_gb", type=float, default=16.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a file that gets the lines that are printed")
    arguments = parser.parse_args()
    users, items, interactions = (
        int(arguments.scale * size) for size in (arguments.users, arguments.items, arguments.interactions)
    )
    arguments.batch = arguments.batch or max(200, interactions // 1000)
    if interactions >= 1e7 and available() < arguments.limit_gb * GB:
        sys.exit(f"{available() / GB:.1f} GB are free, and --limit_gb={arguments.limit_gb:g} may be needed; try later.")
    limit = int(arguments.limit_gb * GB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    arguments.folder = Path(tempfile.mkdtemp(prefix="load-"))
    os.chdir(arguments.folder)
    try:
        sizes = (users, items, interactions, arguments.held_out, arguments.seed)
        # In a process of its own, so that what it held does not count as the reader's.
        made = in_a_process(lambda: dict.fromkeys([str(synthesise(arguments.folder / NAME, *sizes))]))
        if "failed" in made:
            sys.exit(made["failed"])
        config = KDConfig("BPR", NAME, config_dict=settings(arguments, "plain"))
        reset_peak_memory()
        splits, spent, wall = clocked(lambda: load_splits(config))
        _, more, _ = clocked(lambda: splits.observed)
        tell(
            arguments,
            {
                "method": "load",
                "users": splits.train.user_num - 1,
                "items": splits.train.item_num - 1,
                "interactions": len(splits.observed),
                "batch": arguments.batch,
                "seconds": spent + more,
                "wall": wall,
                "peak_gb": peak_memory() / GB,
            },
        )
        best = ""
        for method in arguments.methods.split(","):
            found = in_a_process(lambda method=method: measure(arguments, splits, method))
            made = found.pop("best", "")
            best = best or made
            tell(arguments, found)
        tell(arguments, in_a_process(lambda: rank_bank(splits, arguments.ranked)))
        if best:
            tell(arguments, recommend(arguments, splits, best))
    finally:
        os.chdir("/")
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
