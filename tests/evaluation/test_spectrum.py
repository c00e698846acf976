"""The knowledge spectrum: bands of frequency, exactly and estimated, against eigenvectors one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recbole_kd.data.observed import Observed
from recbole_kd.evaluation.spectrum import (
    band_edges,
    connected_graph,
    equal_band_energies,
    estimated_band_energies,
    estimated_equal_band_energies,
    exact_band_energies,
    projection_difference,
)


def graph(users: int = 60, items: int = 40, pairs: int = 400, seed: int = 0) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(1, size + 1, (pairs,), generator=generator) for size in (users, items)]
    # One more user and item than anybody interacted with.
    return Observed(draw[0], draw[1], users + 2, items + 2)


def signal(nodes: int, columns: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(nodes, columns))


def test_bands_are_centred_on_0_1_and_2() -> None:
    assert band_edges(5).tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2]
    for wrong in (1, 4):
        with pytest.raises(ValueError, match="odd"):
            band_edges(wrong)


def test_the_graph_leaves_padding_and_lonely_nodes_out() -> None:
    observed = graph()
    nodes, adjacency = connected_graph(observed)
    degrees = torch.cat([observed.counts, observed.popularity])
    assert nodes.tolist() == degrees.nonzero().squeeze(1).tolist()
    expected = np.zeros((len(degrees), len(degrees)))
    for user, item in zip(observed.user_ids.tolist(), observed.indices.tolist()):
        weight = 1 / np.sqrt(float(observed.counts[user] * observed.popularity[item]))
        expected[user, observed.users + item] = expected[observed.users + item, user] = weight
    chosen = nodes.numpy()
    np.testing.assert_allclose(adjacency.toarray(), expected[np.ix_(chosen, chosen)], rtol=1e-12)


def test_exact_energies_are_those_of_the_eigenvectors_one_by_one() -> None:
    nodes, adjacency = connected_graph(graph())
    edges, given = band_edges(7), signal(len(nodes), 3)
    laplacian = np.eye(len(nodes)) - adjacency.toarray()
    frequencies, vectors = np.linalg.eigh(laplacian)
    counts, energies = np.zeros(7), np.zeros(7)
    for k in range(len(nodes)):
        band = 0
        while band < 6 and frequencies[k] >= edges[band + 1]:
            band += 1
        counts[band] += 1
        for column in range(3):
            projection = 0.0
            for node in range(len(nodes)):
                projection += vectors[node, k] * given[node, column]
            energies[band] += projection**2
    found = exact_band_energies(adjacency, [given, 2 * given], edges)
    np.testing.assert_array_equal(found[0], counts)
    np.testing.assert_allclose(found[1], [energies, 4 * energies], rtol=1e-9)
    assert found[1][0].sum() == pytest.approx((given**2).sum()), "Parseval"


def test_groups_of_equally_many_frequencies_add_up_to_the_signal() -> None:
    nodes, adjacency = connected_graph(graph())
    given = signal(len(nodes), 3)
    edges, energies, repeated = equal_band_energies(adjacency, [given, 2 * given], 4)
    frequencies, vectors = np.linalg.eigh(np.eye(len(nodes)) - adjacency.toarray())
    assert energies[0].sum() == pytest.approx((given**2).sum()), "Parseval"
    np.testing.assert_allclose(energies[1], 4 * energies[0])
    assert repeated == (np.abs(frequencies - 1) < 1e-8).sum() >= 20, "60 users, 40 items"
    np.testing.assert_allclose(edges[1:-1], frequencies[[25, 50, 75]], atol=1e-9)
    # The first group has no eigenspace that another one shares.
    assert energies[0][0] == pytest.approx(((vectors[:, :25].T @ given) ** 2).sum())


@pytest.mark.parametrize("items", [190, 1200])
def test_estimated_groups_agree_with_eigenvectors(items: int) -> None:
    nodes, adjacency = connected_graph(graph(200, items, 2000, seed=3))
    given = signal(len(nodes), 8)
    smooth = given + adjacency @ given
    _, exact, often = equal_band_energies(adjacency, [given, smooth], 4)
    _, estimated, repeated = estimated_equal_band_energies(adjacency, [given, smooth], 4)
    total = exact.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(estimated / total, exact / total, atol=0.01)
    np.testing.assert_allclose(estimated.sum(axis=1, keepdims=True), total, rtol=1e-9)
    assert often - 2 <= repeated <= often


def test_the_smoothest_signal_has_frequency_0_and_the_roughest_2() -> None:
    observed = graph()
    nodes, adjacency = connected_graph(observed)
    degrees = torch.cat([observed.counts, observed.popularity])[nodes].double().sqrt().numpy()[:, None]
    sign = np.where(nodes.numpy()[:, None] < observed.users, 1.0, -1.0)
    for compute in (exact_band_energies, estimated_band_energies):
        _, energies = compute(adjacency, [degrees, sign * degrees], band_edges(5))
        np.testing.assert_allclose(energies / (degrees**2).sum(), [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], atol=1e-3)


@pytest.mark.parametrize("bands", [5, 11])
def test_estimates_agree_with_eigenvectors(bands: int) -> None:
    nodes, adjacency = connected_graph(graph(seed=3))
    edges = band_edges(bands)
    # Not white: a signal that has been smoothed, and one that is rough.
    given = signal(len(nodes), 8)
    smooth, rough = given + adjacency @ given, given - adjacency @ given
    exact = exact_band_energies(adjacency, [smooth, rough], edges)
    estimated = estimated_band_energies(adjacency, [smooth, rough], edges, degree=2000, probes=512)
    total = exact[1].sum(axis=1, keepdims=True)
    # Only the eigenvalues within pi / 2000 of an edge count in part to the next band: at most one or two of a hundred.
    np.testing.assert_allclose(estimated[1] / total, exact[1] / total, atol=0.02)
    np.testing.assert_allclose(estimated[0] / len(nodes), exact[0] / len(nodes), atol=0.03)
    np.testing.assert_allclose(estimated[1].sum(axis=1), total.squeeze(1), rtol=1e-9)
    assert (estimated[1] > -1e-9).all()


def test_a_wide_signal_is_sketched_without_bias() -> None:
    nodes, adjacency = connected_graph(graph())
    edges, given = band_edges(5), signal(len(nodes), 64)
    given = given + 2 * (adjacency @ given)
    _, exact = exact_band_energies(adjacency, [given], edges)
    sketches = [estimated_band_energies(adjacency, [given], edges, 1000, 16, seed)[1][0] for seed in range(30)]
    spread = np.std(sketches, axis=0) / np.sqrt(len(sketches))
    assert (np.abs(np.mean(sketches, axis=0) - exact[0]) < 4 * spread + 0.01 * exact.sum()).all()
    assert np.std(sketches, axis=0).max() > 0, "an estimate, not the exact value"


def test_what_a_linear_map_can_explain_is_no_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(50, 4, generator=generator)
    teacher = student @ torch.randn(4, 9, generator=generator) + torch.randn(9, generator=generator)
    assert np.abs(projection_difference(student, teacher)).max() < 1e-5
    other = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    difference = projection_difference(student, other)
    # Least squares: nothing of the student, nor a constant, is left in it.
    np.testing.assert_allclose(student.double().numpy().T @ difference, 0, atol=1e-9)
    np.testing.assert_allclose(difference.sum(axis=0), 0, atol=1e-9)


def test_an_edge_is_the_first_frequency_of_a_group() -> None:
    """Of 100 frequencies, number n is in group 7 n // 100."""
    nodes, adjacency = connected_graph(graph())
    frequencies = np.linalg.eigvalsh(np.eye(len(nodes)) - adjacency.toarray())
    edges, _, _ = equal_band_energies(adjacency, [signal(len(nodes), 1)], 7)
    first = [next(number for number in range(100) if 7 * number // 100 == group) for group in range(1, 7)]
    np.testing.assert_allclose(edges[1:-1], frequencies[first], atol=1e-9)
