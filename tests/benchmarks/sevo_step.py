"""What SEvo adds to a training step, measured in one run beside the same step with torch's own optimiser.

Two cases of random data with the sizes (and a long tail of popularity) of public datasets:

- SASRec-like: a causal transformer (2 layers, 2 heads, d 64) on sequences of 50 items, cross-entropy over the catalogue
  of Amazon Beauty (12,101 items), consecutive graph, SEvoAdamW beside AdamW. Target: at most 1.25 times the step.
- BPR on Gowalla's user-item graph (70,839 nodes, 1.6M edges), d 64, SEvoAdam beside Adam. Target: at most the time of 2
  SpMM passes more than the plain step.

The floor of a smoothed step is its L sparse products (SpMM), each of the whole graph with the whole table: a polynomial
of degree L in Ã takes L products, unless powers of Ã were stored, which are far denser. One pass is one
`adjacency @ table`. Forward and backward, the plain step, the smoothed step and the pass take turns, and each figure is
the median of its turns.

    python -m tests.benchmarks.sevo_step [--case beauty|gowalla|all] [--layers 3] [--repeats 9] [--batch_size 2048]
                                         [--threads N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from recbole_kd.data.graphs import bipartite_adjacency
from recbole_kd.data.observed import Observed
from recbole_kd.sevo.graphs import consecutive_adjacency
from recbole_kd.sevo.optimizer import NeumannSmoother, SEvoAdam, SEvoAdamW, smoothed_groups

DIMENSION = 64


def popular(count: int, ids: int) -> Tensor:
    """`count` ids of 1..ids - 1, the small ones far more often."""
    return 1 + (torch.rand(count).pow(3) * (ids - 1)).long()


class SequenceModel(nn.Module):
    """A SASRec-like next-item model: item and position embeddings, causal attention, scores of all items."""

    def __init__(self, items: int, longest: int = 50) -> None:
        super().__init__()
        self.items = nn.Embedding(items, DIMENSION, padding_idx=0)
        self.positions = nn.Embedding(longest, DIMENSION)
        layer = nn.TransformerEncoderLayer(DIMENSION, 2, 4 * DIMENSION, 0.5, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(longest))

    def forward(self, histories: Tensor, targets: Tensor) -> Tensor:
        hidden = self.encoder(self.items(histories) + self.positions.weight, mask=self.mask, is_causal=True)
        return cross_entropy(hidden[:, -1] @ self.items.weight.T, targets)


class FactorModel(nn.Module):
    """Matrix factorisation with the BPR loss."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.users = nn.Embedding(users, DIMENSION)
        self.items = nn.Embedding(items, DIMENSION)

    def forward(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        anchors = self.users(users)
        margins = (anchors * (self.items(positives) - self.items(negatives))).sum(1)
        return -logsigmoid(margins).mean()


def timed(work: Callable[[], Any], device: str) -> float:
    """Milliseconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def measure(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    table_names: list[str],
    adjacency: Tensor,
    optimizers: tuple[type[Any], type[Any]],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Median milliseconds of: forward and backward, the plain and the smoothed step, and one SpMM pass."""
    device = arguments.device
    model, batch, adjacency = model.to(device), tuple(part.to(device) for part in batch), adjacency.to(device)
    twin = copy.deepcopy(model)
    plain_class, sevo_class = optimizers
    plain = plain_class(model.parameters(), lr=1e-3)
    tables = [twin.get_parameter(name) for name in table_names]
    smoother = NeumannSmoother(adjacency, 0.9, arguments.layers)
    smoothed = sevo_class(smoothed_groups(twin.parameters(), tables, smoother), lr=1e-3)
    dense = torch.cat([table.detach() for table in tables])

    def learn() -> None:
        model.zero_grad()
        model(*batch).backward()

    turns: dict[str, list[float]] = {"learn": [], "plain": [], "smoothed": [], "pass": []}
    for turn in range(arguments.repeats + 2):
        elapsed = {"learn": timed(learn, device)}
        for mine, theirs in zip(twin.parameters(), model.parameters()):
            mine.grad = theirs.grad
        elapsed["plain"] = timed(plain.step, device)
        elapsed["smoothed"] = timed(smoothed.step, device)
        elapsed["pass"] = timed(lambda: adjacency @ dense, device)
        if turn >= 2:  # the first turns allocate
            for name, milliseconds in elapsed.items():
                turns[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in turns.items()}


def report(name: str, target: str, adjacency: Tensor, figures: dict[str, float], layers: int) -> None:
    added = figures["smoothed"] - figures["plain"]
    before, floor = figures["learn"] + figures["plain"], layers * figures["pass"]
    print(f"{name}: {adjacency.shape[0]:,} nodes, {adjacency.values().numel():,} edges, d {DIMENSION}, {layers} layers")
    print(
        f"  forward and backward {figures['learn']:.1f} ms, plain step {figures['plain']:.1f} ms, "
        f"smoothed step {figures['smoothed']:.1f} ms, one SpMM pass {figures['pass']:.1f} ms"
    )
    print(f"  added {added:.1f} ms = {added / figures['pass']:.2f} passes; floor ({layers} passes) {floor:.1f} ms")
    print(f"  added / floor {added / floor:.2f}; whole step with SEvo / without {1 + added / before:.3f} ({target})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["beauty", "gowalla", "all"], default="all")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")

    if arguments.case in ("beauty", "all"):
        items, users, interactions = 12_102, 22_363, 198_502 - 2 * 22_363
        people, order = torch.randint(1, users + 1, (interactions,)), torch.arange(interactions)
        start = time.perf_counter()
        adjacency = consecutive_adjacency(people, popular(interactions, items), order, items)
        print(f"consecutive graph built in {time.perf_counter() - start:.2f} s")
        batch = popular(arguments.batch_size * 50, items).reshape(-1, 50), popular(arguments.batch_size, items)
        figures = measure(
            SequenceModel(items), batch, ["items.weight"], adjacency, (torch.optim.AdamW, SEvoAdamW), arguments
        )
        report("SASRec-like on Beauty", "target 1.25", adjacency, figures, arguments.layers)

    if arguments.case in ("gowalla", "all"):
        users, items, interactions = 29_858, 40_981, 840_000
        start = time.perf_counter()
        pairs = torch.randint(1, users, (interactions,)), popular(interactions, items)
        adjacency = bipartite_adjacency(Observed(*pairs, users, items))
        print(f"user-item graph built in {time.perf_counter() - start:.2f} s")
        size = arguments.batch_size
        batch = torch.randint(1, users, (size,)), popular(size, items), torch.randint(1, items, (size,))
        figures = measure(
            FactorModel(users, items),
            batch,
            ["users.weight", "items.weight"],
            adjacency,
            (torch.optim.Adam, SEvoAdam),
            arguments,
        )
        report("BPR on Gowalla", "target: at most 2 passes added", adjacency, figures, arguments.layers)


if __name__ == "__main__":
    main()
