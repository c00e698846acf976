"""Groups of equally many frequencies, against eigenvectors one by one."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import scipy.sparse
import torch

from recbole_kd.data import bands
from recbole_kd.data.bands import (
    BandFilter,
    ChebyshevFilter,
    band_coefficients,
    band_filter,
    chebyshev_moments,
    equal_edges,
    equal_shares,
    multiplicity_of_one,
)
from recbole_kd.data.graphs import bipartite_adjacency
from recbole_kd.data.observed import Observed

USERS, ITEMS = 14, 9


def observed(users: int = USERS, items: int = ITEMS, pairs: int = 45, seed: int = 0) -> Observed:
    """Random pairs; the last user and the last item have none."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(1, size - 1, (pairs,), generator=generator) for size in (users, items)]
    return Observed(draw[0], draw[1], users, items)


def spectrum_of(adjacency: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes with an edge, their frequencies ascending, and their eigenvectors."""
    dense = adjacency.to_dense().double().numpy()
    nodes = np.flatnonzero(dense.any(axis=1))
    values, vectors = np.linalg.eigh(np.eye(len(nodes)) - dense[np.ix_(nodes, nodes)])
    return nodes, values, vectors


def test_distinct_frequencies_are_cut_into_groups_of_equal_count() -> None:
    shares = equal_shares(np.array([0.0, 0.3, 0.9, 1.4, 1.7, 2.0]), 3)
    assert shares.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_an_eigenspace_in_two_groups_belongs_to_both_in_equal_shares() -> None:
    """Places 2 to 4 of eight hold frequency 1: two of them lie in the first half, one in the second."""
    shares = equal_shares(np.array([0.0, 0.5, 1.0, 1.0, 1.0, 1.5, 1.8, 2.0]), 2)
    assert shares[:2].tolist() == [[1, 0], [1, 0]]
    np.testing.assert_allclose(shares[2:5], [[2 / 3, 1 / 3]] * 3)
    assert shares.sum(axis=0) == pytest.approx([4, 4])


def test_the_filter_weighs_the_square_in_each_group() -> None:
    """||H x||^2 is the sum over eigenvectors of their weight times the squared part of x: FreqD's eq. 3."""
    adjacency, weights = bipartite_adjacency(observed()), np.array([1.0, 0.7, 0.2, 0.0])
    smooth = band_filter(adjacency, weights.tolist()).double()
    assert isinstance(smooth, BandFilter)
    nodes, frequencies, vectors = spectrum_of(adjacency)
    signal = torch.zeros(len(adjacency), 3, dtype=torch.float64)
    signal[nodes] = torch.randn(len(nodes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, size = 0.0, len(nodes)
    for k in range(size):
        space = [j for j in range(size) if abs(frequencies[j] - frequencies[k]) < 1e-8]
        weight = np.mean([weights[j * 4 // size] for j in space])
        expected += weight * float(((vectors[:, k] @ signal[nodes].numpy()) ** 2).sum())
    assert float(smooth(signal).square().sum()) == pytest.approx(expected, rel=1e-6)


def test_equal_weights_filter_nothing() -> None:
    adjacency = bipartite_adjacency(observed())
    signal = torch.randn(len(adjacency), 4, generator=torch.Generator().manual_seed(2))
    smooth = band_filter(adjacency, [1.0, 1.0, 1.0])
    torch.testing.assert_close(smooth(signal), signal, atol=1e-5, rtol=1e-5)
    chosen = torch.tensor([3, 20, 1])
    torch.testing.assert_close(smooth(signal, chosen), signal[chosen], atol=1e-5, rtol=1e-5)
    read, product = smooth.part(chosen)
    torch.testing.assert_close(product(signal[read]), signal[chosen], atol=1e-5, rtol=1e-5)
    assert not smooth.state_dict(), "made anew from the training split"


def test_how_often_frequency_1_occurs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """At least as often as there are more users than items: here 12 users and 7 items have an interaction."""
    adjacency = bipartite_adjacency(observed(pairs=400))
    with caplog.at_level(logging.INFO):
        band_filter(adjacency, [1.0, 0.0])
    nodes, frequencies, _ = spectrum_of(adjacency)
    assert multiplicity_of_one(frequencies) >= 5
    assert f"2 groups of {len(nodes)} frequencies; {multiplicity_of_one(frequencies)} of them are 1" in caplog.text


def test_only_frequencies_that_rounding_parts_from_1_are_1() -> None:
    assert multiplicity_of_one(np.array([0.0, 0.999, 1 - 1e-12, 1.0, 1 + 1e-12, 1.001, 2.0])) == 3


def test_a_node_without_an_edge_gets_the_weight_of_frequency_1() -> None:
    """One user with two items: frequencies 0, 1 and 2, in a group each. Padding and the last item have no edge."""
    adjacency = bipartite_adjacency(Observed(torch.tensor([1, 1]), torch.tensor([1, 2]), 2, 4))
    smooth = band_filter(adjacency, [0.9, 0.25, 0.4])
    signal, lonely = torch.randn(6, 2, requires_grad=True), torch.tensor([0, 2, 5])
    torch.testing.assert_close(smooth(signal)[lonely], 0.5 * signal[lonely])
    assert not smooth.constant(signal).requires_grad
    read, product = smooth.part(torch.tensor([5, 1]))
    assert read.tolist() == [1, 3, 4, 5], "a node without an edge is read for its own row alone"
    torch.testing.assert_close(product(signal[read]), smooth(signal)[[5, 1]])


def test_a_graph_without_an_edge_has_a_filter_too() -> None:
    """Its groups are empty: each node gets the mean of their weights."""
    nothing = torch.empty(0, dtype=torch.long)
    smooth = band_filter(bipartite_adjacency(Observed(nothing, nothing, 2, 3)), [0.5, 0.0])
    torch.testing.assert_close(smooth(torch.ones(5, 1)), torch.full((5, 1), 0.5))


def test_only_nodes_with_an_edge_count_towards_what_is_decomposed_exactly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adjacency = bipartite_adjacency(observed())
    nodes = len(spectrum_of(adjacency)[0])
    assert nodes < len(adjacency)
    monkeypatch.setattr(bands, "EXACT_NODES", nodes)
    assert isinstance(band_filter(adjacency, [1.0, 0.0]), BandFilter)
    monkeypatch.setattr(bands, "EXACT_NODES", nodes - 1)
    with caplog.at_level(logging.INFO):
        assert isinstance(band_filter(adjacency, [1.0, 0.0]), ChebyshevFilter)
    # Of a bipartite graph, frequencies lie symmetrically around 1.
    assert re.search(rf"2 groups of {nodes} frequencies, divided at about (1|1\.0\d*|0\.9\d*)$", caplog.text.strip())


@pytest.mark.parametrize("degree", [7, 8])
def test_moments_are_sums_over_eigenvalues(degree: int) -> None:
    """With D = I, trace(T_k(A)) is the sum of cos(k a) over the eigenvalues cos(a)."""
    matrix = bipartite_adjacency(observed()).to_dense().double().numpy()
    angles = np.arccos(np.clip(np.linalg.eigvalsh(matrix), -1, 1))
    expected = [np.cos(k * angles).sum() for k in range(degree + 1)]
    np.testing.assert_allclose(chebyshev_moments(matrix, np.eye(len(matrix)), degree), expected, atol=1e-6)


def test_coefficients_are_integrals_with_jacksons_damping() -> None:
    """g_n of N = degree + 1 terms (Weiße et al., eq. 71), times the integral of cos(n a) over each band of angles."""
    degree, edges = 6, np.array([0.0, 0.4, 1.3, 2.0])
    terms, middles = degree + 1, (np.arange(200_000) + 0.5) / 200_000 * np.pi
    found = band_coefficients(edges, degree)
    assert found.shape == (3, degree + 1)
    for band in range(3):
        inside = (edges[band] <= 1 - np.cos(middles)) & (1 - np.cos(middles) < edges[band + 1])
        for n in range(degree + 1):
            turn = np.pi / (terms + 1)
            damping = ((terms - n + 1) * np.cos(n * turn) + np.sin(n * turn) / np.tan(turn)) / (terms + 1)
            mean = (inside * np.cos(n * middles)).mean()
            assert found[band, n] == pytest.approx(damping * (1 if n == 0 else 2) * mean, abs=1e-4)


def large() -> torch.Tensor:
    return bipartite_adjacency(observed(users=150, items=120, pairs=900, seed=3))


def test_estimated_bounds_part_the_frequencies_into_equal_counts() -> None:
    nodes, frequencies, _ = spectrum_of(large())
    graph = scipy.sparse.csr_matrix(large().to_dense().double().numpy()[np.ix_(nodes, nodes)])
    edges = equal_edges(graph, 4, degree=512, probes=256)
    assert edges[0] == 0
    assert edges[-1] == 2
    for bound, share in zip(edges[1:-1], (0.25, 0.5, 0.75)):
        # An eigenvalue of high multiplicity is a step in the count: the bound lies on it.
        below, up_to = ((frequencies < bound - 0.02).mean(), (frequencies < bound + 0.02).mean())
        assert below - 0.01 <= share <= up_to + 0.01


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.04, 0.04]])
def test_a_large_graph_is_filtered_by_chebyshev_polynomials(
    weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    adjacency = large()
    exact = band_filter(adjacency, weights)
    monkeypatch.setattr(bands, "EXACT_NODES", 10)
    monkeypatch.setattr(bands, "DEGREE", 400)
    estimated = band_filter(adjacency, weights)
    assert isinstance(estimated, ChebyshevFilter)
    signal = torch.randn(len(adjacency), 6, generator=torch.Generator().manual_seed(4))
    signal = signal + torch.sparse.mm(adjacency, signal)  # not white
    found, expected = estimated(signal), exact(signal)
    assert float((found - expected).norm() / expected.norm()) < 0.15
    nodes = torch.tensor([5, 200, 7])
    torch.testing.assert_close(estimated(signal, nodes), found[nodes])


def test_chebyshev_polynomials_are_those_of_the_eigenvalues() -> None:
    """H = sum_k c_k T_k(Ã) with T_k(cos a) = cos(k a), and gradients are its transpose."""
    adjacency, coefficients = bipartite_adjacency(observed()), [0.4, -0.3, 0.2, 0.05, -0.1]
    smooth = ChebyshevFilter(adjacency, coefficients).double()
    values, vectors = np.linalg.eigh(adjacency.to_dense().double().numpy())
    angles = np.arccos(np.clip(values, -1, 1))
    scaled = sum(c * np.cos(k * angles) for k, c in enumerate(coefficients))
    signal = torch.randn(len(adjacency), 2, dtype=torch.float64, requires_grad=True)
    expected = torch.from_numpy(vectors @ np.diag(scaled) @ vectors.T) @ signal
    torch.testing.assert_close(smooth(signal), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(smooth.constant(signal), expected.detach(), atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda x: smooth(x, torch.tensor([3, 5])), (signal,))
