"""Products with a constant sparse matrix, held against dense ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.kernel.graph import Graph, graph_product, to_csr


def matrix(rows: int, columns: int, entries: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random sparse COO matrix; some rows are empty."""
    generator = torch.Generator().manual_seed(entries)
    places = torch.stack([torch.randint(high, (entries,), generator=generator) for high in (rows, columns)])
    values = torch.randn(entries, generator=generator, dtype=dtype)
    return torch.sparse_coo_tensor(places, values, (rows, columns), check_invariants=True).coalesce()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns", "entries"), [(7, 5, 9), (5, 7, 30), (4, 4, 0)])
@pytest.mark.parametrize("width", [1, 20, 64])
def test_the_product_is_the_dense_one(rows: int, columns: int, entries: int, width: int, dtype: torch.dtype) -> None:
    given = matrix(rows, columns, entries, dtype)
    vectors = torch.randn(columns, 2 * width, dtype=dtype)
    for each in (vectors[:, :width].contiguous(), vectors[:, ::2]):
        torch.testing.assert_close(graph_product(to_csr(given), each), given.to_dense() @ each)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_graph_carries_gradients_back_through_its_transpose(symmetric: bool) -> None:
    given = matrix(6, 6, 12)
    given = (given + given.t()).coalesce() if symmetric else given
    vectors, weights = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    found = Graph(given, symmetric)(Graph(given, symmetric)(vectors))
    dense = given.to_dense() @ given.to_dense() @ vectors
    torch.testing.assert_close(found, dense)
    torch.testing.assert_close(*(torch.autograd.grad(one, vectors, weights)[0] for one in (found, dense)))


def test_a_graph_follows_the_vectors_type() -> None:
    given = matrix(6, 6, 12)
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = Graph(given, symmetric=False)(vectors)
    found.sum().backward()
    torch.testing.assert_close(found, given.to_dense().double() @ vectors)
    torch.testing.assert_close(vectors.grad, given.to_dense().double().t() @ torch.ones(6, 3).double())


def test_copies_of_a_model_share_its_graph() -> None:
    graph = Graph(matrix(3, 3, 4))
    assert copy.deepcopy({"graph": graph})["graph"] is graph
