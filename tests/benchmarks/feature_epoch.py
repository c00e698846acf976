"""Cost of the feature-based and relation-based distillers, as the ratio of a distilled epoch to a plain one.

    python tests/benchmarks/feature_epoch.py --data_path=DATASETS [--methods fitnet freqd] [--threads 2]

Measured: milliseconds of a training step (BPR, d 20, batch 2,048, Gowalla's graph, Adam; teacher d 300, random), plain
and with one distiller, taking turns in one run; medians. The plain step here is only a loop over two embedding tables;
RecBole's own, with its data loader, is timed first, and the ratio is (RecBole's + what is added) / RecBole's. As in a run,
the distilled step's Adam is torch's fused one, the plain step's is not; "alike" is the ratio where both are.
Set-up is what building the distiller takes. On a machine that others use as well, ``--threads=1 --clock=process`` counts the processor's time instead of the wall's.

The floor of DE and HTD is printed with them: the matrix products alone that their experts need, forward and backward,
at the beginning (every node through every expert) and once each node has one expert.

Last, RecBole's LightGCN (3 layers) with two feature distillers at once, which a step propagates once for all of them:
its step beside the plain one, both with the fused Adam.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from on_gowalla import BATCH, STUDENT, adam, in_turns, load
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import CAPABILITIES, Batch, DataView, Distiller
from recbole_kd.data.observed import Observed
from recbole_kd.distiller.de import DEDistiller
from recbole_kd.distiller.fitnet import FitNetDistiller
from recbole_kd.distiller.freqd import FreqDDistiller
from recbole_kd.distiller.ftd import FTDDistiller
from recbole_kd.distiller.htd import HTDDistiller
from recbole_kd.distiller.phr import PHRDistiller
from recbole_kd.distiller.rkd import RKDDistiller
from recbole_kd.model.build import build_model
from recbole_kd.student.readers import ModelStudent

TEACHER, EPOCHS = 300, 100
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

Clock = Callable[[], float]

#: label -> (class, options, epoch of the annealing)
CASES: dict[str, tuple[type[Distiller], dict[str, object], int]] = {
    "fitnet": (FitNetDistiller, {}, 0),
    "freqd": (FreqDDistiller, {}, 0),
    "freqd quadratic": (FreqDDistiller, {"filter": [1.0, -0.8, 0.16]}, 0),
    "freqd knn": (FreqDDistiller, {"graph": "knn"}, 0),
    "phr": (PHRDistiller, {}, 0),
    "ftd": (FTDDistiller, {}, 0),
    "rkd": (RKDDistiller, {}, 0),
    "de 30, one-hot": (DEDistiller, {"experts": 30}, EPOCHS),
    "de 5, one-hot": (DEDistiller, {"experts": 5}, EPOCHS),
    "htd 30, one-hot": (HTDDistiller, {"experts": 30}, EPOCHS),
    "htd 30 first, one-hot": (HTDDistiller, {"experts": 30, "variant": "first"}, EPOCHS),
    "de 30, epoch 25%": (DEDistiller, {"experts": 30}, EPOCHS // 4),
    "de 30, epoch 0": (DEDistiller, {"experts": 30}, 0),
}


class Tables:
    """A student or teacher that is two embedding tables."""

    name = "Tables"
    capabilities = frozenset(CAPABILITIES) - {"sequences", "sequence_vectors", "item_representations"}

    def __init__(self, users: int, items: int, dimension: int, trained: bool) -> None:
        self.dimension: Optional[int] = dimension
        self.users = nn.Embedding(users, dimension)
        self.items = nn.Embedding(items, dimension)
        for table in (self.users, self.items):
            nn.init.xavier_normal_(table.weight)
            table.requires_grad_(trained)

    def user_embeddings(self) -> Tensor:
        return self.users.weight

    def item_embeddings(self) -> Tensor:
        return self.items.weight


def gowalla(data_path: Path) -> Observed:
    """Four fifths of the interactions of Gowalla, drawn at random."""
    pairs = np.loadtxt(data_path / "gowalla" / "gowalla.inter", skiprows=1, usecols=(0, 1), dtype=np.int64)
    pairs = pairs[np.random.default_rng(0).random(len(pairs)) < 0.8]
    users, items = (torch.from_numpy(np.unique(column, return_inverse=True)[1] + 1) for column in pairs.T)
    return Observed(users, items, int(users.max()) + 1, int(items.max()) + 1)


class Training:
    """A training loop: student, optimiser and, where there is one, a distiller."""

    def __init__(
        self, observed: Observed, student: Tables, distiller: Optional[Distiller], clock: Clock, fused: bool
    ) -> None:
        self.observed, self.student, self.distiller, self.clock = observed, student, distiller, clock
        tables = *student.users.parameters(), *student.items.parameters()
        self.optimizer = adam(tables, () if distiller is None else distiller.parameters(), fused=fused)

    def step(self) -> float:
        """Milliseconds of one step."""
        start = self.clock()
        drawn = torch.randint(len(self.observed), (BATCH,))
        users, items = self.observed.user_ids[drawn], self.observed.indices[drawn]
        negatives = torch.randint(1, self.observed.items, (BATCH,))
        of_users = self.student.users(users)
        difference = (of_users * (self.student.items(items) - self.student.items(negatives))).sum(1)
        loss = -functional.logsigmoid(difference).mean()
        if self.distiller is not None:
            loss = loss + sum(self.distiller(Batch(users, items, negatives)).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return (self.clock() - start) * 1e3


def products(clock: Clock, rows: int, inputs: int, outputs: int, count: int = 1) -> float:
    """Milliseconds of a linear layer's three matrix products, `count` layers in a row; the median of five."""
    nodes, weight, gradient = torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.randn(rows, outputs)

    def once() -> float:
        start = clock()
        for _ in range(count):
            nodes @ weight, gradient @ weight.t(), nodes.t() @ gradient
        return (clock() - start) * 1e3

    return statistics.median(once() for _ in range(5))


def floor(clock: Clock, sizes: tuple[int, ...], experts: int, epoch: int) -> float:
    """Milliseconds of the matrix products of both sides' experts."""
    hidden = (STUDENT + TEACHER) // 2
    total = 0.0
    for nodes in sizes:
        if epoch == 0:
            total += products(clock, nodes, STUDENT, hidden * experts)
            total += products(clock, nodes, hidden * experts, TEACHER)
        else:
            rows = nodes // experts
            total += products(clock, rows, STUDENT, hidden, experts) + products(clock, rows, hidden, TEACHER, experts)
    return total


def recbole_step(data_path: Path, clock: Clock) -> float:
    """Milliseconds of a step of RecBole's own plain epoch."""
    arguments, sys.argv = sys.argv, sys.argv[:1]  # Config reads them
    settings = {
        "data_path": str(data_path),
        "embedding_size": STUDENT,
        "train_batch_size": BATCH,
        "use_gpu": False,
        "state": "ERROR",
        "show_progress": False,
        "checkpoint_dir": tempfile.mkdtemp(),
    }
    config = Config(model="BPR", dataset="gowalla", config_dict=settings)
    sys.argv = arguments
    train, _, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, BPR(config, train.dataset))
    start = clock()
    trainer._train_epoch(train, 0)
    return (clock() - start) * 1e3 / len(train)


def graph_student(data_path: Path, clock: Clock, count: int) -> tuple[float, float]:
    """Median milliseconds of a step of LightGCN, plain and with FitNet and FreqD."""
    config, splits, loader, names = load("LightGCN", data_path, n_layers=3)
    model = build_model(config, splits.train)
    student, observed = ModelStudent(model), splits.observed
    teacher = Tables(observed.users, observed.items, TEACHER, trained=False)
    data = DataView(observed=observed, epochs=EPOCHS, seed=0, device=torch.device("cpu"))
    distillers = [
        kind(kind.options_class.parse(kind.name, {}), student, teacher, data)
        for kind in (FitNetDistiller, FreqDDistiller)
    ]
    own = [parameter for distiller in distillers for parameter in distiller.parameters()]
    optimizer = adam(model.parameters(), own, fused=True)
    batches = iter(loader)

    def step(distilled: bool) -> float:
        start = clock()
        interaction = next(batches)
        with student.step():
            loss = model.calculate_loss(interaction)
            if distilled:
                batch = Batch(*(interaction[name] for name in names))
                loss = loss + sum(sum(distiller(batch).values()) for distiller in distillers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return (clock() - start) * 1e3

    plain, distilled = in_turns(count, lambda: step(False), lambda: step(True))
    return plain, distilled


def timed(build: Callable[[], Distiller]) -> tuple[Distiller, float]:
    start = time.perf_counter()
    built = build()
    return built, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="folder that holds gowalla/")
    parser.add_argument("--methods", nargs="*", default=list(CASES), help="beginnings of the cases to run")
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    torch.manual_seed(0)

    observed = gowalla(arguments.data_path)
    data = DataView(observed=observed, epochs=EPOCHS, seed=0, device=torch.device("cpu"))
    teacher = Tables(observed.users, observed.items, TEACHER, trained=False)
    student = Tables(observed.users, observed.items, STUDENT, trained=True)
    plain, plain_fused = (Training(observed, student, None, clock, fused) for fused in (False, True))
    drawn = torch.randint(len(observed), (BATCH,))
    batch = Batch(observed.user_ids[drawn], observed.indices[drawn], torch.randint(1, observed.items, (BATCH,)))
    sizes = (len(batch.distinct_users), len(batch.distinct_items))
    recbole = recbole_step(arguments.data_path, clock)
    steps = -(-len(observed) // BATCH)
    print(f"{len(observed)} interactions, {steps} steps an epoch, {sizes} distinct nodes, {arguments.threads} threads")
    print(f"RecBole's plain step: {recbole:.2f} ms, {recbole * steps / 1e3:.2f} s an epoch")
    print(
        f"{'case':24}{'plain ms':>10}{'fused ms':>10}{'step ms':>10}{'ratio':>8}{'alike':>8}{'added s/epoch':>15}{'set-up s':>10}"
        f"{'floor ms':>10}"
    )

    for label, (kind, values, epoch) in CASES.items():
        if not any(label.startswith(method) for method in arguments.methods):
            continue
        options = kind.options_class.parse(kind.name, values)
        distiller, setup = timed(lambda kind=kind, options=options: kind(options, student, teacher, data))  # type: ignore[misc]
        distiller.begin_epoch(epoch)
        distilled = Training(observed, student, distiller, clock, fused=True)
        count = 6 if label.endswith("epoch 0") else arguments.steps
        before, alike, after = in_turns(count, plain.step, plain_fused.step, distilled.step)
        experts = values.get("experts")
        bound = f"{floor(clock, sizes, experts, epoch):.1f}" if isinstance(experts, int) else ""
        print(
            f"{label:24}{before:10.2f}{alike:10.2f}{after:10.2f}{1 + (after - before) / recbole:8.2f}"
            f"{1 + (after - alike) / (recbole + alike - before):8.2f}{(after - before) * steps / 1e3:15.2f}{setup:10.2f}{bound:>10}"
        )
    if any("lightgcn".startswith(method) for method in arguments.methods) or arguments.methods == list(CASES):
        base, with_both = graph_student(arguments.data_path, clock, arguments.steps // 3)
        print(f"LightGCN with fitnet and freqd: {with_both:.1f} ms, plain {base:.1f} ms, ratio {with_both / base:.2f}")


if __name__ == "__main__":
    main()
