"""Time and memory of one SimRec training step, against the obvious way of computing the same thing.

A step is forward, backward and Adam for L_rec + L1 + L2 + L3 + L4 with adaptive weights, on synthetic tables of the
size of Yelp in SimRec's paper: 42,712 users, 26,822 items, d 32, a batch of 4,096 pairs with about 3,500 distinct users
and 3,000 distinct items, 1e5 triplets. That is about 550 million similarities between the batch and the catalogue.

- ``obvious`` keeps every matrix of similarities and lets autograd go back through each loss by itself.
- ``recbole-kd`` is the distiller, in fp32 and in bf16.

Each runs in a process of its own, so that its peak memory is its own. "cpu s" counts processor seconds of all threads:
on a machine that does other work, `--threads 1` and that column are what can be compared, and OMP_WAIT_POLICY=passive
in the environment keeps threads from burning theirs while they wait for each other.

The floor of the fp32 step is arithmetic: three products of 64 operations per similarity, two where only the keys'
gradient is wanted. The line `floor` is a matrix product of that many operations, timed in the same run.

    python tests/benchmarks/simrec_step.py                          # the table above
    python tests/benchmarks/simrec_step.py --items 1e5,1e6,1e7      # memory as the catalogue grows
    python tests/benchmarks/simrec_step.py --blocks                 # shapes of the blocks of similarities

The obvious step spends much of its time getting memory from the system and giving it back; with
MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment glibc keeps it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch, DataView
from recbole_kd.data.observed import Observed
from recbole_kd.distiller.simrec import SimRecDistiller, SimRecOptions
from recbole_kd.loss.kernel.precision import product_precision
from recbole_kd.loss.kernel.streamed import block_shape, streamed_logsumexp
from recbole_kd.teacher.bare import BareTeacher

DIMENSION = 32
MB = 2**20


class Student(nn.Module):
    """SimRec's student: tables and one layer FC(x) = LeakyReLU(W x) + x; read once per step."""

    name = "student"
    capabilities = frozenset({"scores", "representations", "tables"})
    dimension: Optional[int] = DIMENSION

    def __init__(self, users: int, items: int, scale: float) -> None:
        super().__init__()
        self.user_table = nn.Parameter(torch.randn(users, DIMENSION) * scale)
        self.item_table = nn.Parameter(torch.randn(items, DIMENSION) * scale)
        self.layer = nn.Linear(DIMENSION, DIMENSION, bias=False)
        self.outputs: tuple[Tensor, Tensor] = self.tables()

    def propagate(self) -> None:
        """Called once at the start of a step."""
        users, items = (functional.leaky_relu(self.layer(table), 0.5) + table for table in self.tables())
        self.outputs = users, items

    def user_embeddings(self) -> Tensor:
        return self.outputs[0]

    def item_embeddings(self) -> Tensor:
        return self.outputs[1]

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.user_table, self.item_table

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.outputs[0][users] * self.outputs[1][items]).sum(1)


class Teacher(BareTeacher):
    """Constant embeddings, one layer."""

    name = "teacher"
    capabilities = frozenset({"scores", "representations"})
    dimension: Optional[int] = DIMENSION

    def __init__(self, users: int, items: int, scale: float) -> None:
        self.users, self.items = torch.randn(users, DIMENSION) * scale, torch.randn(items, DIMENSION) * scale

    def user_embeddings(self) -> Tensor:
        return self.users

    def item_embeddings(self) -> Tensor:
        return self.items

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users[users] * self.items[items]).sum(1)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.users, self.items)]

    def ranked_items(self, k: int) -> Tensor:
        raise NotImplementedError


def obvious_losses(student: Student, teacher: Teacher, batch: Batch, options: SimRecOptions) -> Tensor:
    """Eq. 12 written down as it stands: every similarity kept, each loss differentiated by itself."""
    users, items = student.user_embeddings()[1:], student.item_embeddings()[1:]
    both = (users, items)
    pair_users, pair_items = batch.users - 1, batch.items - 1
    recommendation = -(users[pair_users] * items[pair_items]).sum(1).mean()

    u, j, k = (torch.randint(len(side), (options.triplets,)) for side in (users, items, items))
    z_s = (users[u] * items[j]).sum(1) - (users[u] * items[k]).sum(1)
    z_t = teacher.scores(u + 1, j + 1) - teacher.scores(u + 1, k + 1)
    prediction = options.prediction_weight * functional.binary_cross_entropy_with_logits(
        z_s / options.prediction_temperature, torch.sigmoid(z_t / options.prediction_temperature)
    )

    nodes = (torch.unique(pair_users), torch.unique(pair_items))
    anchors = (teacher.users[1:], teacher.items[1:])
    embedding = torch.zeros(())
    for side, anchor, rows in zip(both, anchors, nodes):
        cosines = functional.normalize(anchor[rows], dim=1) @ functional.normalize(side, dim=1).t()
        embedding = embedding + functional.cross_entropy(cosines / options.embedding_temperature, rows)
    embedding = options.embedding_weight * embedding

    gradients = [torch.autograd.grad(loss, both, retain_graph=True) for loss in (prediction, embedding, recommendation)]
    weights = []
    for rows, g1, g2, g_rec in zip(nodes, *gradients):
        g1, g2, g_rec = g1[rows], g2[rows], g_rec[rows]
        agree = ((g1 + g2) * g_rec).sum(1) > (g1 * g2).sum(1)
        weights.append(torch.where(agree, 1 - options.epsilon, 1 + options.epsilon))

    tau = options.regularization_temperature
    batch_users, batch_items = (side[rows] for side, rows in zip(both, nodes))
    of_users = torch.logsumexp(batch_users @ users.t() / tau, 1) + torch.logsumexp(batch_users @ items.t() / tau, 1)
    of_items = torch.logsumexp(batch_items @ items.t() / tau, 1)
    regularization = options.regularization_weight * ((weights[0] * of_users).mean() + (weights[1] * of_items).mean())
    decay = options.decay_weight * sum(table[1:].square().sum() for table in student.tables())
    return recommendation + prediction + embedding + regularization + decay


def worker(arguments: argparse.Namespace) -> dict[str, float]:
    """Steps of one implementation in this process: seconds of each, and what the step added to the peak memory."""
    torch.manual_seed(0)
    users, items = arguments.users + 1, int(arguments.items) + 1
    student, teacher = Student(users, items, arguments.scale), Teacher(users, items, 1.0)
    batch = Batch(
        users=_repeated(arguments.users, arguments.distinct_users, arguments.batch),
        items=_repeated(int(arguments.items), arguments.distinct_items, arguments.batch),
    )
    options = SimRecOptions(triplets=arguments.triplets, precision=arguments.precision)
    data = DataView(
        observed=Observed(batch.users, batch.items, users, items), epochs=1, seed=0, device=torch.device("cpu")
    )
    distiller = SimRecDistiller(options, student, teacher, data)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3) if arguments.sgd else torch.optim.Adam(student.parameters())

    def step() -> None:
        optimizer.zero_grad()
        student.propagate()
        if arguments.worker == "obvious":
            loss = obvious_losses(student, teacher, batch, options)
        else:
            recommendation = -student.scores(batch.users, batch.items).mean()
            loss = recommendation + sum(distiller(batch).values())
        loss.backward()
        optimizer.step()

    before = _peak()
    step()
    processor: list[float] = []
    seconds = [_timed(lambda: processor.append(_timed(step, time.process_time))) for _ in range(arguments.steps)]
    return {"seconds": median(seconds), "fastest": min(seconds), "cpu": median(processor), "peak": _peak() - before}


def run(arguments: argparse.Namespace, implementation: str, **changed: Any) -> dict[str, float]:
    """:func:`worker` in a new process."""
    values = {**vars(arguments), **changed, "worker": implementation}
    command = [sys.executable, __file__]
    for name, value in values.items():
        if isinstance(value, bool):
            command += [f"--{name}"] if value else []
        elif value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(arguments: argparse.Namespace) -> None:
    """The step at one size: obvious, fp32, bf16."""
    queries = {"users": arguments.distinct_users, "items": arguments.distinct_items}
    users, items = arguments.users, int(arguments.items)
    contrasted = queries["users"] * users + queries["items"] * items  # L2: no gradient for the anchors
    spread = queries["users"] * (users + items) + queries["items"] * items  # L3
    similarities = contrasted + spread
    floor = _floor() * (2 * contrasted + 3 * spread)
    print(f"{similarities / 1e6:.0f} million similarities a step, {arguments.threads} threads")
    print(
        f"{'':12} {'s/step':>8} {'fastest':>8} {'cpu s':>8} {'ns/sim.':>8} {'step peak':>10} {'ratio':>6} {'by cpu':>6}"
    )
    first: Optional[dict[str, float]] = None
    for label, implementation, precision in (
        ("obvious", "obvious", "fp32"),
        ("recbole-kd", "ours", "fp32"),
        ("  bf16", "ours", "bf16"),
    ):
        found = run(arguments, implementation, precision=precision)
        first = first or found
        each = found["seconds"] / similarities * 1e9
        print(
            f"{label:12} {found['seconds']:8.3f} {found['fastest']:8.3f} {found['cpu']:8.3f} {each:8.2f}"
            f" {found['peak'] / MB:7.0f} MB"
            f" {first['seconds'] / found['seconds']:5.1f}x {first['cpu'] / found['cpu']:5.1f}x",
            flush=True,
        )
    print(f"{'floor':12} {floor:8.3f} {'':8} {'':8} {floor / similarities * 1e9:8.2f}")


def grow(arguments: argparse.Namespace, catalogues: list[int]) -> None:
    """Peak memory of a step with few rows and more and more items."""
    print(f"{'items':>12} {'s/step':>8} {'item table':>12} {'step peak':>12} {'in tables':>10} {'streamed sum':>13}")
    for items in catalogues:
        small = {"users": 1000, "distinct_users": 200, "distinct_items": 200, "batch": 256, "triplets": 1000}
        result = run(arguments, "ours", items=items, steps=1, sgd=True, **small)
        streamed = run(arguments, "sum", items=items, steps=1, distinct_users=200)
        table = items * DIMENSION * 4
        print(
            f"{items:12,} {result['seconds']:8.2f} {table / MB:9.0f} MB {result['peak'] / MB:9.0f} MB"
            f" {result['peak'] / table:10.1f} {streamed['peak'] / MB:10.0f} MB",
            flush=True,
        )


def streamed_sum(arguments: argparse.Namespace) -> dict[str, float]:
    """One log-sum-exp with both gradients: what it adds to the tables that hold its operands and results."""
    keys = torch.randn(int(arguments.items), DIMENSION) * arguments.scale
    queries = keys[: arguments.distinct_users].clone()
    query_gradient, key_gradient = torch.zeros_like(queries), torch.zeros_like(keys).add_(1)
    before = _peak()
    streamed_logsumexp(queries, keys, 1.0, query_gradient=query_gradient, key_gradient=key_gradient)
    return {"peak": _peak() - before}


def shapes(arguments: argparse.Namespace) -> None:
    """ns per similarity of one log-sum-exp with both gradients, for shapes of blocks; of processor time on one thread."""
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    keys = torch.randn(int(arguments.items), DIMENSION) * arguments.scale
    queries = keys[:1024].clone()
    query_gradient, key_gradient = torch.zeros_like(queries), torch.zeros_like(keys)
    for precision in ("fp32", "bf16"):
        for rows in (32, 64, 128, 256, 512):
            for columns in (2048, 8192, 32768, len(keys)):
                if rows * columns > 2**28:
                    continue

                def once(blocks: tuple[int, int] = (rows, columns), precision: str = precision) -> None:
                    gradients = {"query_gradient": query_gradient, "key_gradient": key_gradient}
                    with product_precision(precision):
                        streamed_logsumexp(queries, keys, 1.0, **gradients, blocks=blocks)

                once()
                seconds = min(_timed(once, clock) for _ in range(arguments.steps))
                with product_precision(precision):
                    chosen = " <- block_shape" if (rows, columns) == block_shape(len(keys)) else ""
                print(f"{precision} {rows:5} x {columns:9,} {seconds / len(queries) / len(keys) * 1e9:6.2f} ns{chosen}")


def _floor() -> float:
    """Seconds of 2 d operations in the shape of a block's product, per similarity."""
    left, right = torch.randn(512, DIMENSION), torch.randn(DIMENSION, 2048)
    out = torch.empty(512, 2048)
    return min(_timed(lambda: torch.mm(left, right, out=out)) for _ in range(50)) / out.numel()


def _repeated(count: int, distinct: int, length: int) -> Tensor:
    """(length,) ids from 1..count, `distinct` different ones."""
    chosen = torch.randperm(count)[:distinct] + 1
    return torch.cat([chosen, chosen[torch.randint(distinct, (length - distinct,))]])


def _timed(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def _peak() -> float:
    """Bytes of the largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=42_712)
    parser.add_argument("--items", default="26822", help="one number, or several with commas: memory as they grow")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--distinct-users", type=int, default=3500)
    parser.add_argument("--distinct-items", type=int, default=3000)
    parser.add_argument("--triplets", type=int, default=100_000)
    parser.add_argument("--scale", type=float, default=0.2, help="standard deviation of the student's tables")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--sgd", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", action="store_true", help="time shapes of blocks instead of steps")
    parser.add_argument("--worker", choices=("ours", "obvious", "sum"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    catalogues = [int(float(count)) for count in arguments.items.split(",")]
    if arguments.worker == "sum":
        print(json.dumps(streamed_sum(arguments)))
    elif arguments.worker:
        print(json.dumps(worker(arguments)))
    elif len(catalogues) > 1:
        grow(arguments, catalogues)
    elif arguments.blocks:
        shapes(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
