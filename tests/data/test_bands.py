"""Filters of groups of equally many frequencies, against eigenvectors one by one."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch

from recbole_kd.data import spectra
from recbole_kd.data.bands import BandFilter, ChebyshevFilter, PairedFilter, band_filter
from recbole_kd.data.graphs import bipartite_adjacency, neighbour_adjacency
from recbole_kd.data.observed import Observed
from recbole_kd.data.spectra import multiplicity_of_one

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


def filter_energy(adjacency: torch.Tensor, weights: list[float], signal: torch.Tensor) -> float:
    """The sum over eigenvectors of their weight times the squared part of the signal: FreqD's eq. 3."""
    nodes, frequencies, vectors = spectrum_of(adjacency)
    total, size = 0.0, len(nodes)
    for k in range(size):
        space = [j for j in range(size) if abs(frequencies[j] - frequencies[k]) < 1e-7]
        weight = np.mean([weights[j * len(weights) // size] for j in space])
        total += weight * float(((vectors[:, k] @ signal[nodes].double().numpy()) ** 2).sum())
    return total


def on_connected_nodes(adjacency: torch.Tensor, columns: int = 3) -> torch.Tensor:
    """A random signal that is 0 on nodes without an edge."""
    signal = torch.randn(len(adjacency), columns, generator=torch.Generator().manual_seed(1))
    return signal * (adjacency.to_dense().sum(1, keepdim=True) > 0)


def users_only(users: int = USERS) -> torch.Tensor:
    """A graph that is not bipartite."""
    return neighbour_adjacency(observed(users=users), 3)


@pytest.mark.parametrize(
    ("adjacency", "kind"),
    [
        (bipartite_adjacency(observed()), PairedFilter),
        (bipartite_adjacency(observed(9, 14)), PairedFilter),
        (users_only(), BandFilter),
    ],
)
def test_the_filter_weighs_the_square_in_each_group(adjacency: torch.Tensor, kind: type) -> None:
    weights = [1.0, 0.7, 0.2, 0.0]
    smooth = band_filter(adjacency, weights)
    assert isinstance(smooth, kind)
    signal = on_connected_nodes(adjacency)
    expected = filter_energy(adjacency, weights, signal)
    assert float(smooth(signal).square().sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("adjacency", [bipartite_adjacency(observed()), users_only(25)])
def test_equal_weights_filter_nothing(adjacency: torch.Tensor) -> None:
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


def test_a_node_without_an_edge_gets_the_weight_of_frequency_1() -> None:
    """One user with two items: frequencies 0, 1 and 2, in a group each. Padding and the last item have no edge."""
    adjacency = bipartite_adjacency(Observed(torch.tensor([1, 1]), torch.tensor([1, 2]), 2, 4))
    smooth = band_filter(adjacency, [0.9, 0.25, 0.4])
    signal, lonely = torch.randn(6, 2, requires_grad=True), torch.tensor([0, 2, 5])
    torch.testing.assert_close(smooth(signal)[lonely], 0.5 * signal[lonely])
    assert not smooth.constant(signal).requires_grad
    read, product = smooth.part(torch.tensor([5, 1]))
    torch.testing.assert_close(product(signal[read]), smooth(signal)[[5, 1]])


def test_a_node_without_an_edge_is_read_for_its_own_row_alone() -> None:
    """In a graph of users only: users 1, 2 and 3 share an item, so they have no two sides."""
    pairs = Observed(torch.tensor([1, 2, 3]), torch.tensor([1, 1, 1]), 5, 2)
    smooth = band_filter(neighbour_adjacency(pairs, 2), [0.9, 0.4])
    read, product = smooth.part(torch.tensor([4, 1]))
    assert isinstance(smooth, BandFilter)
    assert read.tolist() == [1, 2, 3, 4]
    signal = torch.randn(5, 2)
    torch.testing.assert_close(product(signal[read]), smooth(signal)[[4, 1]])


def test_gradients_are_those_of_the_transpose() -> None:
    smooth = band_filter(bipartite_adjacency(observed()).double(), [1.0, 0.5, 0.1])
    signal = torch.randn(USERS + ITEMS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth(x, torch.tensor([3, 20])), (signal,))


def test_a_graph_without_an_edge_has_a_filter_too() -> None:
    """Its groups are empty: each node gets the mean of their weights."""
    nothing = torch.empty(0, dtype=torch.long)
    smooth = band_filter(bipartite_adjacency(Observed(nothing, nothing, 2, 3)), [0.5, 0.0])
    torch.testing.assert_close(smooth(torch.ones(5, 1)), torch.full((5, 1), 0.5))


def test_the_smaller_side_with_an_edge_must_be_small_enough(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adjacency = bipartite_adjacency(observed())
    nodes = spectrum_of(adjacency)[0]
    smaller = int((nodes >= USERS).sum())
    monkeypatch.setattr(spectra, "EXACT_SIZE", smaller)
    assert isinstance(band_filter(adjacency, [1.0, 0.0]), PairedFilter)
    monkeypatch.setattr(spectra, "EXACT_SIZE", smaller - 1)
    with caplog.at_level(logging.INFO):
        assert isinstance(band_filter(adjacency, [1.0, 0.0]), ChebyshevFilter)
    # Of a bipartite graph, frequencies lie symmetrically around 1.
    assert re.search(rf"2 groups of {len(nodes)} frequencies, divided at about 1; at least \d+ of them", caplog.text)


def large(items: int = 120) -> torch.Tensor:
    return bipartite_adjacency(observed(users=150, items=items, pairs=900, seed=3))


@pytest.mark.parametrize("items", [120, 1500])
@pytest.mark.parametrize("group", range(4))
def test_a_large_graph_is_filtered_by_chebyshev_polynomials(
    items: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten items a user, frequency 1 makes up the middle groups, and parts of the others."""
    adjacency, weights = large(items), np.eye(4)[group].tolist()
    signal = on_connected_nodes(adjacency, 16)
    signals = signal, signal + adjacency @ signal  # white, and smooth
    exact = [float(band_filter(adjacency, weights)(given).square().sum()) for given in signals]
    monkeypatch.setattr(spectra, "EXACT_SIZE", 10)
    estimated = band_filter(adjacency, weights)
    assert isinstance(estimated, ChebyshevFilter)
    for given, expected in zip(signals, exact):
        found, whole = estimated(given), float(given.square().sum())
        assert float(found.square().sum()) / whole == pytest.approx(expected / whole, abs=0.02)
    nodes = torch.tensor([5, 200, 7])
    torch.testing.assert_close(estimated(signal, nodes), estimated(signal)[nodes])


def test_a_mild_filter_of_a_large_graph_changes_each_vector_as_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    adjacency, weights = large(600), [1.0, 0.7, 0.4, 0.25]
    signal = on_connected_nodes(adjacency, 6)
    expected = band_filter(adjacency, weights)(signal)
    monkeypatch.setattr(spectra, "EXACT_SIZE", 10)
    found = band_filter(adjacency, weights)(signal)
    assert float((found - expected).norm() / expected.norm()) < 0.02


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
