"""Graphs of the training split and polynomial filters of their spectrum, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.data import graphs
from recbole_kd.data.graphs import (
    PolynomialFilter,
    bipartite_adjacency,
    check_decreasing,
    neighbour_adjacency,
    symmetric_normalized,
)
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError

USERS, ITEMS = 7, 9


def observed(seed: int = 0, share: float = 0.4) -> Observed:
    """Random pairs in which user 3 and item 5 have none, and id 0, padding, never has any."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(USERS, ITEMS, generator=generator) < share
    mask[0], mask[:, 0], mask[3], mask[:, 5] = False, False, False, False
    users, items = mask.nonzero(as_tuple=True)
    return Observed(users, items, USERS, ITEMS)


def dense_bipartite(pairs: Observed) -> Tensor:
    """D^(-1/2) A D^(-1/2) written out, one edge at a time, in float64."""
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    degree = torch.zeros(USERS + ITEMS, dtype=torch.float64)
    for user, item in zip(pairs.user_ids.tolist(), pairs.indices.tolist()):
        adjacency[user, USERS + item] = adjacency[USERS + item, user] = 1.0
        degree[user] += 1
        degree[USERS + item] += 1
    for a, b in adjacency.nonzero().tolist():
        adjacency[a, b] /= (degree[a] * degree[b]) ** 0.5
    return adjacency


def test_weights_are_divided_by_the_roots_of_both_degrees() -> None:
    # A path 1 - 2 - 3 with weights 3 and 1: degrees 3, 4, 1. Node 0 has no edge and stays empty, not NaN.
    rows, columns = torch.tensor([1, 2, 2, 3]), torch.tensor([2, 1, 3, 2])
    normalised = symmetric_normalized(rows, columns, torch.tensor([3.0, 3.0, 1.0, 1.0]), 4)
    expected = torch.zeros(4, 4)
    expected[1, 2] = expected[2, 1] = 3 / (3 * 4) ** 0.5
    expected[2, 3] = expected[3, 2] = 1 / (4 * 1) ** 0.5
    assert normalised.layout == torch.sparse_csr
    assert normalised.col_indices().dtype == torch.int32
    torch.testing.assert_close(normalised.to_dense(), expected)


def test_more_entries_than_its_offsets_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_ENTRIES", 3)
    with pytest.raises(UserError, match="graph has 4 entries, two for each interaction; expected at most 3"):
        symmetric_normalized(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), torch.ones(4), 3)


def test_an_edge_listed_twice_weighs_twice() -> None:
    once = symmetric_normalized(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), torch.tensor([2.0, 2, 1, 1]), 3)
    rows, columns = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([1, 1, 0, 0, 2, 1])
    torch.testing.assert_close(symmetric_normalized(rows, columns, torch.ones(6), 3).to_dense(), once.to_dense())


def test_bipartite_graph_has_users_first_then_items() -> None:
    pairs = observed()
    torch.testing.assert_close(bipartite_adjacency(pairs).to_dense().double(), dense_bipartite(pairs))


def test_padding_is_in_no_edge() -> None:
    adjacency = bipartite_adjacency(observed()).to_dense()
    assert adjacency[[0, USERS]].abs().sum() == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [2, 100])
def test_neighbours_are_those_who_share_most(seed: int, block: int) -> None:
    pairs = observed(seed)
    history = {user: set() for user in range(USERS)}
    for user, item in zip(pairs.user_ids.tolist(), pairs.indices.tolist()):
        history[user].add(item)
    tied = torch.zeros(USERS, USERS)
    for user in range(USERS):
        shared = {other: len(history[user] & history[other]) for other in range(USERS) if other != user}
        near = sorted((other for other in shared if shared[other] > 0), key=lambda other: (-shared[other], other))
        for other in near[:2]:
            tied[user, other] = tied[other, user] = 1.0
    found = neighbour_adjacency(pairs, neighbours=2, block=block).to_dense()
    assert torch.equal(found > 0, tied > 0)
    degree = tied.sum(1)
    for a, b in tied.nonzero().tolist():
        assert found[a, b].item() == pytest.approx((degree[a] * degree[b]).item() ** -0.5)


def test_more_neighbours_than_there_are_is_all_of_them() -> None:
    pairs = observed(0)
    everyone = neighbour_adjacency(pairs, USERS).to_dense()
    assert torch.equal(neighbour_adjacency(pairs, 10**9).to_dense(), everyone)


def test_items_are_neighbours_through_the_transposed_pairs() -> None:
    # Items 1 and 2 share both users, item 3 shares one of them with either.
    pairs = Observed(torch.tensor([1, 1, 2, 2, 2]), torch.tensor([1, 2, 1, 2, 3]), 3, 4)
    assert (neighbour_adjacency(pairs.transposed(), 1).to_dense() > 0).nonzero().tolist() == [
        [1, 2], [1, 3], [2, 1], [3, 1],
    ]  # fmt: skip


coefficients = st.lists(st.floats(-2, 2), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(coefficients, st.integers(0, 100))
def test_a_filter_scales_each_frequency_by_its_polynomial(theta: list[float], seed: int) -> None:
    pairs = observed(seed)
    laplacian = torch.eye(USERS + ITEMS, dtype=torch.float64) - dense_bipartite(pairs)
    frequencies, basis = torch.linalg.eigh(laplacian)
    weights = sum(value * frequencies**power for power, value in enumerate(theta))
    signal = torch.randn(USERS + ITEMS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = basis @ (weights.unsqueeze(1) * (basis.T @ signal))
    smooth = PolynomialFilter(bipartite_adjacency(pairs), theta).double()
    torch.testing.assert_close(smooth(signal), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(smooth.constant(signal), smooth(signal))
    nodes = torch.tensor([3, 12, 1])
    torch.testing.assert_close(smooth(signal, nodes), smooth(signal)[nodes])


@pytest.mark.parametrize("theta", [[0.7], [1.0, -0.4], [1.0, -0.5, 0.1], [0.3, 0.1, -0.2, 0.05]])
@pytest.mark.parametrize("nodes", [None, torch.tensor([3, 12, 1])])
def test_gradients_are_the_transposed_filter(theta: list[float], nodes: Tensor | None) -> None:
    smooth = PolynomialFilter(bipartite_adjacency(observed()), theta).double()
    signal = torch.randn(USERS + ITEMS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth(x, nodes), (signal,))


@pytest.mark.parametrize("width", [2, 64])
def test_gradients_of_wide_signals_are_those_of_narrow_ones(width: int) -> None:
    """From 64 columns on, another product computes them."""
    smooth, nodes = PolynomialFilter(bipartite_adjacency(observed()), [1.0, -0.4]), torch.tensor([3, 12, 1])
    signal = torch.randn(USERS + ITEMS, width, requires_grad=True)
    weights = torch.randn(3, width)
    found = torch.autograd.grad(smooth(signal, nodes), signal, weights)[0]
    rows = smooth(torch.eye(USERS + ITEMS), nodes)
    torch.testing.assert_close(found, rows.t() @ weights)


def test_rows_cut_by_torch_are_those_cut_by_scipy() -> None:
    """Devices other than the CPU slice and multiply with torch; here both are run on the CPU."""
    smooth = PolynomialFilter(bipartite_adjacency(observed()), [1.0, -0.4])
    nodes = torch.tensor([3, 12, 1, 0, 4])
    offsets, columns, values = smooth._parts(nodes)
    cut = torch.sparse_csr_tensor(offsets, columns, values, (len(nodes), USERS + ITEMS))
    signal = torch.randn(USERS + ITEMS, 3)
    torch.testing.assert_close(cut @ signal, smooth(signal, nodes))


def test_a_filter_leaves_no_trace_in_a_checkpoint_and_follows_its_module() -> None:
    smooth = PolynomialFilter(bipartite_adjacency(observed()), [1.0, -0.4])
    assert not smooth.state_dict()
    assert smooth.double()(torch.ones(USERS + ITEMS, 1, dtype=torch.float64)).dtype == torch.float64


def test_a_filter_without_coefficients_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one coefficient"):
        PolynomialFilter(bipartite_adjacency(observed()), [])


@pytest.mark.parametrize(
    "theta",
    [[1.0], [1.0, 0.0], [1.0, -0.5], [-1.0, 0.5], [1.0, -1.0, 0.25], [1.0, -0.5, 0.05, -0.01]],
)
def test_a_decreasing_weight_passes(theta: list[float]) -> None:
    check_decreasing(theta, "freqd.filter")


@pytest.mark.parametrize(
    ("theta", "where"),
    [
        ([1.0, 0.5], "x=2"),
        # h = 1 - 0.75 x is decreasing, but negative above x = 4/3: its weight h^2 grows from there on.
        ([1.0, -0.75], "x=2"),
        # h = 1 - x + x^2 / 2 falls to 1/2 at x = 1 and rises after.
        ([1.0, -1.0, 0.5], "x=2"),
        # A band in the middle: h = x (2 - x) rises most steeply near x = 0.42.
        ([0.0, 2.0, -1.0], "x=0.423"),
    ],
)
def test_a_weight_that_increases_is_refused_with_the_place(theta: list[float], where: str) -> None:
    with pytest.raises(UserError, match=where) as error:
        check_decreasing(theta, "freqd.filter")
    assert "--freqd.filter" in str(error.value)


@settings(max_examples=100, deadline=None)
@given(coefficients)
def test_the_check_agrees_with_a_fine_grid(theta: list[float]) -> None:
    weights = np.polynomial.Polynomial(theta)(np.linspace(0, 2, 2001)) ** 2
    rise = np.diff(weights).max()
    if rise > 1e-5:
        with pytest.raises(UserError):
            check_decreasing(theta, "freqd.filter")
    elif rise < -1e-5:
        check_decreasing(theta, "freqd.filter")
