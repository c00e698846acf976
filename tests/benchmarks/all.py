"""Every distiller's epoch beside RecBole's plain one, with both loaders: one table.

    python -m tests.benchmarks.all --data_path=DATASETS [--methods plain kd rrd] [--clock cpu] [--threads 1] [--turns 3]

Measured: whole epochs of BPR (d 20, batch 2,048, Gowalla) by the trainers that a run has, over a teacher (d 300, random)
whose ranked lists are there. Kinds of epochs take turns: RecBole's Trainer with RecBole's loader; the plain student
with fast sampling; the student with the distiller, with RecBole's loader and with fast sampling. Medians of the turns.
A run that distils takes torch's fused Adam, a plain one RecBole's. Experts have been annealed to one a node. Where the
processor multiplies bf16, methods of matrix products have a row with `--precision=bf16`.

Then the first steps of an epoch, each over RecBole's plain ones of its own: LightGCN (d 64, 3 layers, Gowalla), plain and with rrd; SASRec
(RecBole's defaults, Amazon Beauty) with `--trim_padding=true`, plain and with dkd from a SASRec of d 128.

columns      ratio: a distilled epoch with fast sampling over RecBole's plain one of the same turns
             RecBole's loader: the same with RecBole's loader
             floor: the ratio of an epoch with fast sampling, the fused Adam and, of the distiller, the forward and
             backward products alone: scores of its items, its experts' or its projector's matrices
             set-up: seconds that building the distiller takes, with its ranked lists on disk
             memory: how much higher the process's memory was at most while it was built and trained

`--clock cpu --threads 1` counts processor time, for a machine that others use at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
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
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.loss.kernel.precision import factor_type, multiplies_bf16, product_precision
from recbole_kd.model.build import build_model
from recbole_kd.registry import distiller_class
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.bare import BareTeacher
from recbole_kd.teacher.cache import Trained
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.trainer.kd_trainer import make_trainer

STUDENT, TEACHER, BATCH, POOL, EPOCHS, STEPS = 20, 300, 2048, 500, 100, 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: label -> (distiller, options, precision, the issue's target of the ratio; None: none is set)
CASES: dict[str, tuple[str, dict[str, object], str, float | None]] = {
    "cd, 10 items": ("cd", {"samples": 10}, "fp32", 0.75),
    "kd, 10 items": ("kd", {"items": 10}, "fp32", 0.75),
    "rd, 10 items, 100 dynamic": ("rd", {"start_epoch": 0}, "fp32", 0.85),
    "fitnet": ("fitnet", {}, "fp32", 0.95),
    "unkd, 30 pairs": ("unkd", {}, "fp32", 1.1),
    "rrd, 40 and 40": ("rrd", {}, "fp32", 1.5),
    "rrd, 100 and 200": ("rrd", {"interesting": 100, "uninteresting": 200, "pool": 200}, "fp32", 3.5),
    "freqd": ("freqd", {}, "fp32", 1.6),
    "de, 5 experts": ("de", {"experts": 5}, "fp32", 3.5),
    "de, 5 experts, bf16": ("de", {"experts": 5}, "bf16", 1.8),
    "de, 30 experts": ("de", {"experts": 30}, "fp32", 3.5),
    "de, 30 experts, bf16": ("de", {"experts": 30}, "bf16", 1.8),
    "htd, 30 groups": ("htd", {"experts": 30}, "fp32", 5.5),
    "htd, 30 groups, bf16": ("htd", {"experts": 30}, "bf16", 2.8),
    "fitnet, perceptron": ("fitnet", {"projector": "mlp"}, "fp32", None),
    "fitnet, perceptron, bf16": ("fitnet", {"projector": "mlp"}, "bf16", None),
    "phr": ("phr", {}, "fp32", None),
    "ftd": ("ftd", {}, "fp32", None),
    "rkd": ("rkd", {}, "fp32", None),
    "dcd, 40 and 40": ("dcd", {}, "fp32", None),
    "ir_rrd, 40 and 40": ("ir_rrd", {}, "fp32", None),
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
    elif name in ("fitnet", "freqd"):
        work = _projection(student) if "projector" not in options else _perceptron(student)
    elif student.asked is not None:
        users, items = student.asked
        user_table, item_table = (table.detach().requires_grad_() for table in student.tables())
        work = _scores(user_table, item_table, users, items)
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
    sides = [(_factors(m, n, a), _factors(m, a, b), _factors(m, n, b)) for m, n, a, b in shapes]
    return lambda: [
        (inputs @ weight, gradient @ weight.transpose(1, 2), inputs.transpose(1, 2) @ gradient)
        for inputs, weight, gradient in sides
    ]


def _projection(student: Student) -> Callable[[], object]:
    """Both products of a linear projector's loss with the teacher's vectors of a batch's distinct nodes."""
    nodes = [_distinct(len(table), BATCH * side) for side, table in enumerate(student.tables(), start=1)]
    sides = [
        (torch.randn(count, STUDENT), torch.randn(count, TEACHER), torch.randn(TEACHER, STUDENT)) for count in nodes
    ]
    return lambda: [(targets @ weight, vectors.t() @ targets) for vectors, targets, weight in sides]


def _perceptron(student: Student) -> Callable[[], object]:
    """Six products of a perceptron of the teacher's width with a batch's distinct nodes."""
    nodes = sum(_distinct(len(table), BATCH * side) for side, table in enumerate(student.tables(), start=1))
    inputs, hidden = _factors(nodes, STUDENT), _factors(nodes, TEACHER)
    first, last = _factors(STUDENT, TEACHER), _factors(TEACHER, TEACHER)
    return lambda: (
        inputs @ first,
        hidden @ last,
        hidden.t() @ hidden,
        hidden @ last.t(),
        inputs.t() @ hidden,
        hidden @ first.t(),
    )


def _factors(*shape: int) -> Tensor:
    """Random factors of products, in the present precision."""
    values = torch.randn(*shape)
    return values.to(factor_type(values))


def _distinct(of: int, drawn: int) -> int:
    return len(torch.randint(1, of, (drawn,)).unique())


def load(model: str, data_path: str, dataset: str, **settings: Any) -> tuple[KDConfig, Splits]:
    """Settings and splits of a plain student."""
    given = {
        "data_path": data_path,
        "checkpoint_dir": tempfile.mkdtemp(),
        "embedding_size": STUDENT,
        "train_batch_size": BATCH,
        "show_progress": False,
        "use_gpu": False,
        "distill": [],
        "save_last": False,
        "epochs": EPOCHS,
        **settings,
    }
    config = KDConfig(model, dataset, config_dict=given)
    return config, Splits(config)


class Bench:
    """A student's data, its loaders, and RecBole's plain training, which everything is measured against.

    Attributes:
        config, splits: of the student.
        recboles, fast: training loaders.
        steps: of an epoch, where it is too long to be run whole; None: all.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        model: str,
        dataset: str,
        ours: dict[str, Any],
        steps: int | None = None,
        **both: Any,
    ) -> None:
        self.clock, self.turns, self.steps = CLOCKS[arguments.clock], arguments.turns, steps
        theirs, self.splits = load(model, arguments.data_path, dataset, **both)
        self._of_precision = {
            precision: load(model, arguments.data_path, dataset, precision=precision, **both, **ours)[0]
            for precision in ("fp32", "bf16")
        }
        self.config = self._of_precision["fp32"]
        self.recboles = make_loaders(theirs, self.splits)[0]
        self.fast = make_loaders(self.config, self.splits, True)[0]
        self._baseline = Trainer(theirs, build_model(theirs, self.splits.train))
        self.epoch(self._baseline, self.recboles)  # the first one warms up

    def epoch(self, trainer: Any, loader: Any) -> float:
        """Seconds of an epoch."""
        start = self.clock()
        trainer._train_epoch(loader if self.steps is None else list(islice(loader, self.steps)), EPOCHS)
        return self.clock() - start

    def plain(self, fused: bool = False) -> Any:
        """A trainer of the plain student."""
        return make_trainer(self.config, build_model(self.config, self.splits.train), fused=fused)

    def distilled(
        self, name: str, options: dict[str, object], teacher: Any, precision: str
    ) -> tuple[Any, Student, float]:
        """A trainer of the student with a distiller, its student, and the seconds that the distiller took to build."""
        sequential = self.splits.sequential
        kind, model = distiller_class(name, sequential), build_model(self.config, self.splits.train)
        student, observed = Student(model), self.splits.observed
        data = DataView(observed, epochs=EPOCHS, seed=0, device=torch.device("cpu"))
        start = self.clock()
        distiller = kind(kind.options_class.parse(name, options), student, teacher, data)
        setup = self.clock() - start
        config, told = self._of_precision[precision], {name: distiller}
        trainer = make_trainer(config, model, distillers=told, observed=observed, step_context=student.step, fused=True)
        return trainer, student, setup

    def against_recbole(self, *kinds: tuple[Any, Any]) -> list[float]:
        """Medians of the seconds of epochs of RecBole's plain training and of these trainers with their loaders."""
        for kind in kinds:
            self.epoch(*kind)  # the first one warms up
        turns = [[self.epoch(*kind) for kind in ((self._baseline, self.recboles), *kinds)] for _ in range(self.turns)]
        return [statistics.median(column) for column in zip(*turns)]


def sequence_teacher(bench: Bench, data_path: str) -> FrozenTeacher:
    """A SASRec of twice the width, with random weights."""
    config = load("SASRec", data_path, "amazon-beauty", hidden_size=128)[0]
    trained = Trained(config, build_model(config, bench.splits.train), "none", False, {"test_result": {}})
    return FrozenTeacher(trained, bench.splits, tempfile.mkdtemp())


def backbones(arguments: argparse.Namespace) -> None:
    """Rows of LightGCN and SASRec, of the first steps of an epoch."""
    print(f"| backbone, {STEPS} steps | ratio | RecBole's plain steps | target | steps |")
    print("|---|---|---|---|---|")

    def row(label: str, target: float, base: float, took: float) -> None:
        print(f"| {label} | {took / base:.2f} | {base:.2f} s | {target} | {took:.2f} s |", flush=True)

    bench = Bench(arguments, "LightGCN", "gowalla", {}, STEPS, embedding_size=64, n_layers=3)
    trainer = bench.distilled("rrd", {}, Teacher(bench.splits.observed), "fp32")[0]
    base, plain, faster, distilled = bench.against_recbole(
        (bench.plain(), bench.fast), (bench.plain(fused=True), bench.fast), (trainer, bench.fast)
    )
    row("LightGCN d 64, plain", 0.8, base, plain)
    row("LightGCN d 64, plain, fused_adam", 0.8, base, faster)
    row("LightGCN d 64, rrd", 1.1, base, distilled)
    bench = Bench(
        arguments,
        "SASRec",
        "amazon-beauty",
        {"trim_padding": True},
        STEPS,
        embedding_size=64,
        train_neg_sample_args=None,
    )
    trainer = bench.distilled("dkd", {}, sequence_teacher(bench, arguments.data_path), "fp32")[0]
    base, plain, distilled = bench.against_recbole((bench.plain(), bench.fast), (trainer, bench.fast))
    row("SASRec d 64, plain", 0.7, base, plain)
    row("SASRec d 64, dkd", 0.9, base, distilled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset", help="folder that holds gowalla/ and amazon-beauty/")
    parser.add_argument("--methods", nargs="*", default=list(CASES), help="beginnings of the cases to run")
    parser.add_argument("--turns", type=int, default=3, help="epochs of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--fast_alone", action="store_true", help="leave out distilled epochs with RecBole's loader")
    parser.add_argument("--no_backbones", action="store_true", help="leave out LightGCN and SASRec")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    init_seed(0, True)

    bench = Bench(arguments, "BPR", "gowalla", {})
    observed = bench.splits.observed
    teacher = Teacher(observed)
    print(
        f"{observed.users - 1:,} users, {observed.items - 1:,} items, {len(observed):,} training pairs; "
        f"{arguments.threads} threads, {arguments.clock} clock; products: {rates(clock)}"
    )
    of_recbole, of_plain, of_fused = bench.against_recbole(
        (bench.plain(), bench.fast), (bench.plain(fused=True), bench.fast)
    )
    print(f"RecBole's plain epoch: {of_recbole:.2f} s")
    print("| method | ratio | RecBole's loader | floor | target | epoch | set-up | memory |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| plain | {of_plain / of_recbole:.2f} | 1.00 | | 0.55 | {of_plain:.2f} s | | |")
    print(f"| plain, fused Adam | {of_fused / of_recbole:.2f} | | | | {of_fused:.2f} s | | |", flush=True)
    for label, (name, options, precision, target) in CASES.items():
        if not any(label.startswith(method) for method in arguments.methods):
            continue
        if precision == "bf16" and not multiplies_bf16(torch.device("cpu")):
            continue
        memory: list[float] = []
        with peak(memory):
            trainer, student, setup = bench.distilled(name, options, teacher, precision)
            bench.epoch(trainer, bench.fast)
        kinds = [(trainer, bench.fast), (trainer, bench.recboles)][: 1 if arguments.fast_alone else 2]
        base, quick, *slow = bench.against_recbole(*kinds)
        with product_precision(precision):
            floor = of_fused + floor_of_step(clock, student, name, options) * len(bench.fast)
        print(
            f"| {label} | {quick / base:.2f} | {f'{slow[0] / base:.2f}' if slow else ''} | {floor / of_recbole:.2f} "
            f"| {target or ''} | {quick:.2f} s | {setup:.1f} s | {memory[0]:,.0f} MB |",
            flush=True,
        )
    if not arguments.no_backbones:
        backbones(arguments)


if __name__ == "__main__":
    main()
