"""Products of a constant sparse matrix and a dense one: what a graph does to the vectors of its nodes.

On a CPU each row of the product is a weighted sum of rows, as torch's embedding bag computes it. Gowalla's graph of 2
million entries times 64 columns takes 18 ms so, 77 ms as MKL's CSR product and 212 ms as the COO product that RecBole
uses (one thread; ``python -m tests.benchmarks.graph_product``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Graph", "graph_product", "to_csr"]


def to_csr(matrix: Tensor) -> Tensor:
    """A sparse matrix as CSR with 32-bit indices: MKL and cuSPARSE convert others in every product."""
    matrix = matrix.to_sparse_csr()
    parts = matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values()
    return torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False)


def graph_product(matrix: Tensor, vectors: Tensor) -> Tensor:
    """matrix @ vectors, (n, N) CSR times (N, d), without gradient."""
    if vectors.device.type != "cpu" or vectors.dtype != torch.float32 or matrix.dtype != torch.float32:
        return matrix @ vectors
    return functional.embedding_bag(
        matrix.col_indices(),
        vectors,
        matrix.crow_indices(),
        mode="sum",
        per_sample_weights=matrix.values(),
        include_last_offset=True,
    )


class Graph:
    """A constant graph over N nodes that propagates vectors, (N, d) -> (N, d), with their gradient.

    It follows the vectors' type and device. Copies of a model share it, as torch cannot copy sparse matrices.

    Attributes:
        matrix: (N, N) CSR.
        transposed: its transpose, which carries gradients back; the matrix itself of a symmetric graph.
    """

    def __init__(self, matrix: Tensor, symmetric: bool = True) -> None:
        self.matrix = to_csr(matrix)
        self.transposed = self.matrix if symmetric else to_csr(matrix.t())

    def __call__(self, vectors: Tensor) -> Tensor:
        if (self.matrix.dtype, self.matrix.device) != (vectors.dtype, vectors.device):
            symmetric = self.transposed is self.matrix
            self.matrix = self.matrix.to(vectors)
            self.transposed = self.matrix if symmetric else self.transposed.to(vectors)
        product: Tensor = _Propagated.apply(vectors, self)
        return product

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self


class _Propagated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return graph_product(graph.matrix, vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return graph_product(ctx.graph.transposed, gradients[0]), None
