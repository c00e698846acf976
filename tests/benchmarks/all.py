"""Every distiller's epoch beside RecBole's plain one, with both loaders: one table.

    python -m tests.benchmarks.all --data_path=DATASETS [--methods plain kd rrd] [--clock cpu] [--threads 1] [--turns 3]

Measured: whole epochs of BPR (d 20, batch 2,048, Gowalla) by the trainers that a run has, over a teacher (d 300, random)
whose ranked lists are there. Four kinds of epochs take turns: RecBole's Trainer with RecBole's loader; the plain student
with fast sampling; the student with the distiller, with RecBole's loader and with fast sampling. Medians of the turns.
A run that distils takes torch's fused Adam, a plain one RecBole's. Experts have been annealed to one a node.

columns      ratio: a distilled epoch with fast sampling over RecBole's plain one of the same turns
             RecBole's loader: the same with RecBole's loader
             floor: the ratio of an epoch with fast sampling, the fused Adam and, of the distiller, the forward and
             backward products alone: scores of its items, or its experts' matrices
             set-up: seconds that building the distiller takes, with its ranked lists on disk
             memory: how much higher the process's memory was at most while it was built and trained

`--clock cpu --threads 1` counts processor time, for a machine that others use at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import Tensor

from recbole_kd.contracts import CAPABILITIES, DataView
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import build_rank_bank
from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.model.build import build_model
from recbole_kd.registry import distiller_class
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.bare import BareTeacher
from recbole_kd.trainer.kd_trainer import make_trainer
from tests.benchmarks.on_gowalla import BATCH, STUDENT, load

TEACHER, POOL, EPOCHS = 300, 500, 100
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: label -> (distiller, options, the issue's target of the ratio; None: none is set)
CASES: dict[str, tuple[str, dict[str, object], float | None]] = {
    "cd, 10 items": ("cd", {"samples": 10}, 0.75),
    "kd, 10 items": ("kd", {"items": 10}, 0.75),
    "rd, 10 items, 100 dynamic": ("rd", {"start_epoch": 0}, 0.85),
    "fitnet": ("fitnet", {}, 0.95),
    "unkd, 30 pairs": ("unkd", {}, 1.1),
    "rrd, 40 and 40": ("rrd", {}, 1.5),
    "rrd, 100 and 200": ("rrd", {"interesting": 100, "uninteresting": 200, "pool": 200}, 3.5),
    "dcd, 40 and 40": ("dcd", {}, None),
    "freqd": ("freqd", {}, 1.6),
    "ftd": ("ftd", {}, None),
    "phr": ("phr", {}, None),
    "rkd": ("rkd", {}, None),
    "de, 5 experts": ("de", {"experts": 5}, 3.5),
    "de, 30 experts": ("de", {"experts": 30}, 3.5),
    "htd, 30 groups": ("htd", {"experts": 30}, 5.5),
    "ir_rrd, 40 and 40": ("ir_rrd", {}, None),
}


class Teacher(BareTeacher):
    """Random vectors, and ranked lists that are there."""

    name = "Teacher"
    capabilities = frozenset(CAPABILITIES) - {"sequences", "sequence_vectors", "item_representations"}
    dimension = TEACHER

    def __init__(self, observed: Observed) -> None:
        self._users, self._items = (torch.randn(rows, TEACHER) / 20 for rows in (observed.users, observed.items))
        self._ranked = build_rank_bank(lambda users: self._users[users] @ self._items.t(), observed, POOL)
        self._transposed = observed.transposed()

    def user_embeddings(self) -> Tensor:
        return self._users

    def item_embeddings(self) -> Tensor:
        return self._items

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return gathered_dot(self._users, self._items, users, items)

    def ranked_items(self, k: int) -> Tensor:
        return self._ranked[:, :k]

    def ranked_users(self, k: int) -> Tensor:
        return build_rank_bank(lambda items: self._items[items] @ self._users.t(), self._transposed, k)


class Student(ModelStudent):
    """BPR's tables; what was asked of them last is kept."""

    asked: tuple[Tensor, Tensor] | None = None

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        self.asked = users, items
        return super().scores(users, items)


@contextmanager
def peak(found: list[float]) -> Iterator[None]:
    """Appends by how many MB the process's memory was higher at most than at the beginning (Linux)."""

    def status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    before = status("VmRSS")
    yield
    found.append(status("VmHWM") - before)


def rates(clock: Callable[[], float]) -> str:
    """GFLOP/s of matrix products of 512 rows and columns in each type."""
    told = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix, taken = torch.randn(512, 512).to(dtype), []
        for _ in range(4):
            start = clock()
            matrix @ matrix
            taken.append(clock() - start)
        told.append(f"{str(dtype)[6:]} {2 * 512**3 / min(taken) / 1e9:,.1f}")
    return f"{', '.join(told)} GFLOP/s"


def floor_of_step(clock: Callable[[], float], student: Student, name: str, options: dict[str, object]) -> float:
    """Seconds of a step's products, forward and backward: the median of nine."""
    if name in ("de", "htd"):
        work = _experts(student, int(str(options["experts"])))
    elif student.asked is not None:
        users, items = student.asked
        work = _scores(*(table.detach().requires_grad_() for table in student.tables()), users, items)
    else:
        return 0.0
    taken = []
    for _ in range(9):
        start = clock()
        work()
        taken.append(clock() - start)
    return statistics.median(taken)


def _scores(user_table: Tensor, item_table: Tensor, users: Tensor, items: Tensor) -> Callable[[], object]:
    return lambda: gathered_dot(user_table, item_table, users, items).sum().backward()


def _experts(student: Student, experts: int) -> Callable[[], object]:
    """Both sides' experts on the distinct nodes of a batch: two layers of three products each."""
    hidden = (STUDENT + TEACHER) // 2
    users, items = student.tables()
    nodes = (_distinct(len(users), BATCH), _distinct(len(items), 2 * BATCH))
    shapes = [
        (experts, max(1, count // experts), a, b) for count in nodes for a, b in ((STUDENT, hidden), (hidden, TEACHER))
    ]
    sides = [(torch.randn(m, n, a), torch.randn(m, a, b), torch.randn(m, n, b)) for m, n, a, b in shapes]
    return lambda: [
        (inputs @ weight, gradient @ weight.transpose(1, 2), inputs.transpose(1, 2) @ gradient)
        for inputs, weight, gradient in sides
    ]


def _distinct(of: int, drawn: int) -> int:
    return len(torch.randint(1, of, (drawn,)).unique())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset", help="folder that holds gowalla/")
    parser.add_argument("--methods", nargs="*", default=list(CASES), help="beginnings of the cases to run")
    parser.add_argument("--turns", type=int, default=3, help="epochs of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--fast_alone", action="store_true", help="leave out distilled epochs with RecBole's loader")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    init_seed(0, True)

    config, splits, recboles, _ = load("BPR", arguments.data_path, save_last=False, epochs=EPOCHS)
    fast = make_loaders(config, splits, True)[0]
    observed = splits.observed
    teacher = Teacher(observed)
    data = DataView(observed, epochs=EPOCHS, seed=0, device=torch.device("cpu"))
    print(
        f"{observed.users - 1:,} users, {observed.items - 1:,} items, {len(observed):,} training pairs; "
        f"{arguments.threads} threads, {arguments.clock} clock; products: {rates(clock)}"
    )

    def epoch(trainer: Any, loader: Any) -> float:
        start = clock()
        trainer._train_epoch(loader, EPOCHS)
        return clock() - start

    def plain(fused: bool = False) -> Any:
        return make_trainer(config, build_model(config, splits.train), fused=fused)

    baseline = Trainer(config, build_model(config, splits.train))
    alone, fused = plain(), plain(fused=True)
    epoch(baseline, recboles), epoch(alone, fast), epoch(fused, fast)  # the first ones warm up
    kinds = (baseline, recboles), (alone, fast), (fused, fast)
    turns = [[epoch(*kind) for kind in kinds] for _ in range(arguments.turns)]
    of_recbole, of_plain, of_fused = (statistics.median(column) for column in zip(*turns))
    print(f"RecBole's plain epoch: {of_recbole:.2f} s ({', '.join(f'{turn[0]:.2f}' for turn in turns)})")
    print("| method | ratio | RecBole's loader | floor | target | epoch | set-up | memory |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| plain | {of_plain / of_recbole:.2f} | 1.00 | | 0.55 | {of_plain:.2f} s | | |")
    print(f"| plain, fused Adam | {of_fused / of_recbole:.2f} | | | | {of_fused:.2f} s | | |", flush=True)
    for label, (name, options, target) in CASES.items():
        if not any(label.startswith(method) for method in arguments.methods):
            continue
        kind = distiller_class(name, False)
        memory: list[float] = []
        with peak(memory):
            model = build_model(config, splits.train)
            student = Student(model)
            start = clock()
            distiller = kind(kind.options_class.parse(name, options), student, teacher, data)
            setup = clock() - start
            trainer = make_trainer(
                config, model, distillers={name: distiller}, observed=observed, step_context=student.step, fused=True
            )
            epoch(trainer, fast)
        measured = []
        for _ in range(arguments.turns):
            slow = float("nan") if arguments.fast_alone else epoch(trainer, recboles)
            measured.append((epoch(baseline, recboles), slow, epoch(trainer, fast)))
        base, slow, quick = (statistics.median(column) for column in zip(*measured))
        floor = of_fused + floor_of_step(clock, student, name, options) * len(fast)
        print(
            f"| {label} | {quick / base:.2f} | {'' if slow != slow else f'{slow / base:.2f}'} | {floor / of_recbole:.2f} "
            f"| {target or ''} | {quick:.2f} s | {setup:.1f} s | {memory[0]:,.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
