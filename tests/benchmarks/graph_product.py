"""A graph's propagation of vectors, over the CSR product of torch (MKL's) and the COO product that RecBole uses.

    python -m tests.benchmarks.graph_product [--nodes 70839] [--entries 2054740] [--threads 1]

A random symmetric graph with degrees by a power law, of Gowalla's size by default. Fastest of seven turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from recbole_kd.loss.kernel.graph import graph_product, to_csr


def seconds(function: Callable[[], Tensor], turns: int = 7) -> float:
    function()
    spent = []
    for _ in range(turns):
        start = time.perf_counter()
        function()
        spent.append(time.perf_counter() - start)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=70_839)
    parser.add_argument("--entries", type=int, default=2_054_740)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    half = arguments.entries // 2
    ends = (arguments.nodes * torch.rand(2, half).double() ** 2).long()
    places, size = torch.cat([ends, ends.flip(0)], dim=1), (arguments.nodes, arguments.nodes)
    coo = torch.sparse_coo_tensor(places, torch.rand(2 * half), size, check_invariants=True).coalesce()
    csr = to_csr(coo)
    print(f"{arguments.nodes:,} nodes, {csr.values().numel():,} entries, {arguments.threads} threads")
    print("| columns | ours | torch CSR | over ours | torch COO | over ours |")
    print("|---|---|---|---|---|---|")
    for columns in (20, 64, 128):
        vectors = torch.randn(arguments.nodes, columns)
        ours = seconds(lambda: graph_product(csr, vectors))  # noqa: B023
        others = [seconds(lambda one=one: torch.sparse.mm(one, vectors)) for one in (csr, coo)]  # type: ignore[misc]  # noqa: B023
        cells = " | ".join(f"{1e3 * each:.1f} ms | {each / ours:.1f}" for each in others)
        print(f"| {columns} | {1e3 * ours:.1f} ms | {cells} |")


if __name__ == "__main__":
    main()
