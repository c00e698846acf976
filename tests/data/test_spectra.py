"""Groups of equally many frequencies, against eigenvectors one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_kd.data import spectra
from recbole_kd.data.observed import Observed
from recbole_kd.data.spectra import (
    Spectrum,
    band_coefficients,
    chebyshev_moments,
    equal_groups,
    equal_shares,
    is_small,
    multiplicity_of_one,
)
from recbole_kd.evaluation.spectrum import connected_graph


def graph(users: int = 30, items: int = 80, pairs: int = 220, seed: int = 0) -> spectra.Any:
    """Ã of random pairs, without nodes that have none."""
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(1, size, (pairs,), generator=generator) for size in (users, items)]
    return connected_graph(Observed(draw[0], draw[1], users, items))[1]


def eigen(adjacency: spectra.Any) -> tuple[np.ndarray, np.ndarray]:
    frequencies, vectors = np.linalg.eigh(np.eye(adjacency.shape[0]) - adjacency.toarray())
    return frequencies, vectors


def test_distinct_frequencies_are_cut_into_groups_of_equal_count() -> None:
    shares = equal_shares(np.array([0.0, 0.3, 0.9, 1.4, 1.7, 2.0]), 3)
    assert shares.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_an_eigenspace_in_two_groups_belongs_to_both_in_equal_shares() -> None:
    """Places 2 to 4 of eight hold frequency 1: two of them lie in the first half, one in the second."""
    shares = equal_shares(np.array([0.0, 0.5, 1.0, 1.0, 1.0, 1.5, 1.8, 2.0]), 2)
    assert shares[:2].tolist() == [[1, 0], [1, 0]]
    np.testing.assert_allclose(shares[2:5], [[2 / 3, 1 / 3]] * 3)
    assert shares.sum(axis=0) == pytest.approx([4, 4])


def test_only_frequencies_that_rounding_parts_from_1_are_1() -> None:
    assert multiplicity_of_one(np.array([0.0, 0.999, 1 - 1e-12, 1.0, 1 + 1e-12, 1.001, 2.0])) == 3


@pytest.mark.parametrize(("users", "items"), [(30, 80), (80, 30), (50, 50)])
def test_a_user_item_graph_is_decomposed_by_its_smaller_side(users: int, items: int) -> None:
    adjacency = graph(users, items)
    frequencies, vectors = eigen(adjacency)
    spectrum = Spectrum(adjacency)
    assert spectrum.side is not None
    assert len(spectrum.vectors) <= adjacency.shape[0] / 2
    np.testing.assert_allclose(spectrum.frequencies, frequencies, atol=1e-7)
    signal = np.random.default_rng(0).normal(size=(adjacency.shape[0], 3))
    parts, found = ((vectors.T @ signal) ** 2).sum(1), spectrum.energies(signal)
    assert found.sum() == pytest.approx((signal**2).sum()), "Parseval"
    # Eigenvectors of equal frequency have no order: their energy is compared as a whole.
    for frequency in np.unique(frequencies.round(6)):
        same = np.abs(frequencies - frequency) < 2e-6
        assert found[same].sum() == pytest.approx(parts[same].sum(), abs=1e-6)


def test_any_other_graph_is_decomposed_whole() -> None:
    ring = np.roll(np.eye(7), 1, axis=1) / 2
    adjacency = spectra_csr(ring + ring.T)
    spectrum = Spectrum(adjacency)
    assert spectrum.side is None, "seven nodes in a ring have no two sides"
    np.testing.assert_allclose(spectrum.frequencies, np.sort(1 - np.cos(2 * np.pi * np.arange(7) / 7)), atol=1e-12)
    assert spectrum.energies(np.ones((7, 1))) == pytest.approx([7, 0, 0, 0, 0, 0, 0], abs=1e-12)


def spectra_csr(matrix: np.ndarray) -> spectra.Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(matrix)


def test_a_graph_is_small_by_its_smaller_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "EXACT_SIZE", 35)
    assert is_small(graph(30, 80))
    assert is_small(graph(80, 30))
    assert not is_small(graph(60, 80))
    assert not is_small(spectra_csr(np.ones((36, 36)) - np.eye(36)))
    assert is_small(spectra_csr(np.ones((35, 35)) - np.eye(35)))


def test_estimated_bounds_part_the_frequencies_into_equal_counts() -> None:
    adjacency = graph(150, 120, 900, seed=3)
    frequencies, _ = eigen(adjacency)
    bounds, _, _ = equal_groups(adjacency, 4, degree=256, probes=256)
    assert bounds[0] == 0
    assert bounds[-1] == 2
    for bound, share in zip(bounds[1:-1], (0.25, 0.5, 0.75)):
        # An eigenvalue of high multiplicity is a step in the count: the bound lies on it.
        below, up_to = ((frequencies < bound - 0.02).mean(), (frequencies < bound + 0.02).mean())
        assert below - 0.01 <= share <= up_to + 0.01


@pytest.mark.parametrize("shape", [(30, 200), (200, 30), (100, 90)])
def test_estimated_groups_hold_equally_many_frequencies(shape: tuple[int, int]) -> None:
    """The weights of a group, summed over all frequencies, are N / G; at frequency 1 they are its share, to one frequency."""
    adjacency = graph(*shape, pairs=700)
    frequencies, _ = eigen(adjacency)
    size, groups = len(frequencies), 4
    _, weights, repeated = equal_groups(adjacency, groups, degree=128)
    assert repeated <= multiplicity_of_one(frequencies)
    assert repeated >= multiplicity_of_one(frequencies) - 2
    values = np.polynomial.chebyshev.chebval(1 - frequencies, weights.T)
    np.testing.assert_allclose(values.sum(axis=0), np.ones(size), atol=1e-9)
    np.testing.assert_allclose(values.sum(axis=1) / size, np.full(groups, 1 / groups), atol=0.015)
    expected = equal_shares(frequencies, groups)[np.abs(frequencies - 1).argmin()]
    np.testing.assert_allclose(values[:, np.abs(frequencies - 1).argmin()], expected, atol=1 / repeated)
    assert values.min() > -0.05


@pytest.mark.parametrize("degree", [7, 8])
def test_moments_are_sums_over_eigenvalues(degree: int) -> None:
    """With D = I, trace(T_k(A)) is the sum of cos(k a) over the eigenvalues cos(a)."""
    matrix = graph().toarray()
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
