"""Cost of the response-based distillers, as the ratio of a distilled epoch to a plain RecBole epoch.

    python tests/benchmarks/response_epoch.py --data_path=DATASETS [--methods rrd cd] [--threads 2] [--clock cpu]

Measured: RecBole's own steps of BPR (d 20, batch 2,048, Gowalla, Adam, its data loader with its negative sampling),
plain and with one distiller, taking turns of ten steps in one run; medians. A plain epoch is the plain step times the
number of batches; a distilled one is the distilled step, and the drawing of samples once. As in a run, the distilled
step's Adam is torch's fused one; "alike" is the ratio to a plain step with that Adam as well. Set-up is what building the
distiller takes over a teacher (d 300, random) whose ranked lists are on disk.

The floor of each step is printed beside it: the student's scores of the distiller's items, forward alone.

The rank bank is measured on a part of the users, against the two things that it needs: the matrix product of a block
and torch.topk of it.

`--clock cpu --threads 1` counts processor time, for a machine that others use at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from on_gowalla import adam, in_turns, load
from recbole.utils import init_seed
from torch import Tensor

from recbole_kd.contracts import CAPABILITIES, Batch, DataView, Distiller
from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import build_rank_bank
from recbole_kd.distiller.cd import CDDistiller
from recbole_kd.distiller.dcd import DCDDistiller
from recbole_kd.distiller.ir_rrd import IRRRDDistiller
from recbole_kd.distiller.kd import KDDistiller
from recbole_kd.distiller.rd import RDDistiller
from recbole_kd.distiller.rrd import RRDDistiller
from recbole_kd.distiller.unkd import UnKDDistiller
from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.model.build import build_model
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.bare import BareTeacher

POOL = 500
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]

#: label -> (class, options, target of the ratio; nan: none is set)
CASES: dict[str, tuple[type[Distiller], dict[str, object], float]] = {
    "kd 10": (KDDistiller, {"items": 10}, 1.6),
    "cd 10": (CDDistiller, {"samples": 10}, 1.6),
    "rd 10, 100 dynamic": (RDDistiller, {"start_epoch": 0}, 2.2),
    "unkd 30 pairs": (UnKDDistiller, {}, 2.5),
    "rrd 40, 40": (RRDDistiller, {}, 3.0),
    "rrd 100, 200": (RRDDistiller, {"interesting": 100, "uninteresting": 200, "pool": 200}, 9.0),
    "dcd 40, 40": (DCDDistiller, {}, float("nan")),
    "cd 10, student": (CDDistiller, {"samples": 10, "guide": "student"}, float("nan")),
    "ir_rrd 40, 40": (IRRRDDistiller, {}, float("nan")),
}


class Student(ModelStudent):
    """BPR's tables, scored by sparse products; the shape of the items of the last call is kept."""

    asked: tuple[Tensor, Tensor]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        self.asked = users, items
        return gathered_dot(self.user_embeddings(), self.item_embeddings(), users, items)


class Teacher(BareTeacher):
    """Random vectors, and ranked lists that cost nothing."""

    name = "Teacher"
    capabilities = frozenset(CAPABILITIES) - {"sequences", "sequence_vectors", "item_representations"}
    dimension = 300

    def __init__(self, observed: Observed) -> None:
        self.observed = observed
        self.users = torch.randn(observed.users, self.dimension) / 20
        self.items = torch.randn(observed.items, self.dimension) / 20
        self.ranked = build_rank_bank(self.score_block, observed, POOL)

    def score_block(self, users: Tensor) -> Tensor:
        return self.users[users] @ self.items.t()

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return gathered_dot(self.users, self.items, users, items)

    def ranked_items(self, k: int) -> Tensor:
        return self.ranked[:, :k]

    def ranked_users(self, k: int) -> Tensor:
        return build_rank_bank(lambda items: self.items[items] @ self.users.t(), self.observed.transposed(), k)


def batches(loader: Any) -> Iterator[Any]:
    """RecBole's batches, epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """Median seconds of `work`."""
    taken = []
    for _ in range(repeat):
        start = clock()
        work()
        taken.append(clock() - start)
    return statistics.median(taken)


def measure_rank_bank(observed: Observed, users: int) -> None:
    """Prints what a rank bank of the first `users` users takes beside its floor."""
    part = Observed(
        observed.user_ids[observed.user_ids < users], observed.indices[observed.user_ids < users], users, observed.items
    )
    vectors = torch.randn(users, 300), torch.randn(observed.items, 300)

    def floor() -> None:
        for block in torch.arange(1, users).split(100):
            (vectors[0][block] @ vectors[1].t()).topk(POOL, dim=1)

    def bank() -> None:
        build_rank_bank(lambda block: vectors[0][block] @ vectors[1].t(), part, POOL)

    taken, least = [], []
    for _ in range(3):
        least.append(seconds(floor))
        taken.append(seconds(bank))
    ratio = statistics.median(taken) / statistics.median(least)
    everyone = statistics.median(taken) * observed.users / users
    print(f"rank bank, K' {POOL}: {everyone:.1f} s for all users, {ratio:.2f} of the product and top-k (target 2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset", help="folder that holds gowalla/")
    parser.add_argument("--methods", nargs="*", default=list(CASES), help="beginnings of the cases to run")
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    global clock
    clock = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    init_seed(0, True)

    config, splits, loader, names = load("BPR", arguments.data_path)
    observed = splits.observed
    print(f"{observed.users - 1:,} users, {observed.items - 1:,} items, {len(observed):,} training pairs")
    measure_rank_bank(observed, 2000)
    teacher = Teacher(observed)
    data = DataView(observed, epochs=100, seed=0, device=torch.device("cpu"))
    stream = batches(loader)
    count = len(loader)
    print(
        f"{'':20}{'set-up':>8}{'draw':>8}{'plain':>8}{'fused':>8}{'with':>8}{'floor':>8}{'epoch':>8}{'ratio':>8}{'alike':>8}{'target':>8}"
    )
    print(f"{'':20}{'s':>8}{'s':>8}{'ms':>8}{'ms':>8}{'ms':>8}{'ms':>8}{'s':>8}")
    for label, (kind, options, target) in CASES.items():
        if not any(label.startswith(method) for method in arguments.methods):
            continue
        model = build_model(config, splits.train)
        student = Student(model)
        recboles, fused = (adam(model.parameters(), fused=value) for value in (False, True))
        start = clock()
        distiller = kind(kind.options_class.parse(kind.name, options), student, teacher, data)
        setup = clock() - start
        draw = seconds(lambda made=distiller: made.begin_epoch(0), 3)

        def step(optimizer: torch.optim.Optimizer, distilled: bool) -> float:
            start = clock()
            interaction = next(stream)
            loss = model.calculate_loss(interaction)  # noqa: B023
            if distilled:
                batch = Batch(*(interaction[name] for name in names))
                loss = loss + sum(distiller(batch).values())  # noqa: B023
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return (clock() - start) * 1e3

        kinds = (recboles, False), (fused, False), (fused, True)
        base, alike, with_it = in_turns(arguments.steps, *(partial(step, *kind) for kind in kinds))
        users, items = student.asked
        with torch.no_grad():
            floor = seconds(lambda asked=(users, items), view=student: view.scores(*asked), 9) * 1e3
        epoch = base * count / 1e3
        ratios = ((with_it * count / 1e3 + draw) / (plain * count / 1e3) for plain in (base, alike))
        print(
            f"{label:20}{setup:8.1f}{draw:8.2f}{base:8.1f}{alike:8.1f}{with_it:8.1f}{floor:8.1f}{epoch:8.2f}"
            + "".join(f"{ratio:8.2f}" for ratio in ratios)
            + f"{target:8.1f}",
            flush=True,
        )
    print(f"peak memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
