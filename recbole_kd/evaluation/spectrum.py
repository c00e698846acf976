"""The knowledge spectrum: the frequencies of the user-item graph at which a student differs from its teacher.

FreqD (fig. 1-2, table 1) reads the distance of two models' vectors as a signal on the training graph. Its
Laplacian L = I - Ã has eigenvectors u_k, and its eigenvalues x_k in [0, 2] are the frequencies. Parseval's identity
divides the squared distance D over all nodes into bands:

    ||D||^2 = sum over bands of  sum_{x_k in band} ||u_k^T D||^2

Low frequencies are common to neighbours, high ones distinguish them. Small graphs are decomposed exactly. On large
graphs a band's projector is an expansion in Chebyshev polynomials with Jackson's damping (the kernel polynomial method:
Weiße et al., Rev. Mod. Phys. 78, 2006), which needs only sparse products. Wide signals and traces are estimated with
Hutchinson's random signs.

The user-item graph is bipartite, so the spectrum is symmetric about 1, and 1 is an eigenvalue of high multiplicity (at
least |users - items|). There is an odd number of bands, centred on multiples of their width. So 0, 1 and 2 are in the
middle of bands, not on an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_kd.data.graphs import symmetric_normalized
from recbole_kd.data.observed import Observed
from recbole_kd.data.spectra import (
    Spectrum,
    band_coefficients,
    chebyshev_moments,
    equal_groups,
    equal_shares,
    multiplicity_of_one,
)

__all__ = [
    "band_edges",
    "connected_graph",
    "equal_band_energies",
    "estimated_band_energies",
    "estimated_equal_band_energies",
    "exact_band_energies",
    "projection_difference",
]

Array = NDArray[np.float64]


def band_edges(bands: int) -> Array:
    """(bands + 1,) edges in [0, 2] of bands centred on 0, 2 / (bands - 1), ..., 2; the first and last are half as wide.

    Raises:
        ValueError: not an odd number of at least 3.
    """
    if bands < 3 or bands % 2 == 0:
        raise ValueError(f"bands={bands}; expected an odd number of at least 3")
    centres = np.linspace(0, 2, bands)
    return np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [2.0]])


def connected_graph(observed: Observed) -> tuple[Tensor, Any]:
    """The bipartite training graph without padding and without nodes that have no interaction.

    Returns:
        nodes (N,), ids in the graph where user u is u and item i is U + i, and Ã of them, (N, N) scipy CSR, float64.
    """
    users, items = observed.user_ids, observed.indices + observed.users
    rows, columns = torch.cat([users, items]), torch.cat([items, users])
    size = observed.users + observed.items
    whole = symmetric_normalized(rows, columns, torch.ones(len(rows), dtype=torch.float64), size)
    parts = (whole.values().numpy(), whole.col_indices().numpy(), whole.crow_indices().numpy())
    adjacency = scipy.sparse.csr_matrix(parts, shape=(size, size))
    nodes = torch.unique(rows)
    return nodes, adjacency[nodes.numpy()][:, nodes.numpy()]


def projection_difference(student: Tensor, teacher: Tensor) -> Array:
    """The residual of the teacher's vectors after the best linear map with a bias: E_t - (E_s W + 1 b^T), (N, d_t).

    W and b minimise the difference over all users and items (FreqD's projector, fully trained). So any two models can
    be compared, whatever the distiller.

    Args:
        student: (N, d_s).
        teacher: (N, d_t).
    """
    inputs = np.concatenate([student.double().cpu().numpy(), np.ones((len(student), 1))], axis=1)
    targets = teacher.double().cpu().numpy()
    weight, *_ = np.linalg.lstsq(inputs, targets, rcond=None)
    difference: Array = targets - inputs @ weight
    return difference


def exact_band_energies(adjacency: Any, signals: Sequence[Array], edges: Array) -> tuple[Array, Array]:
    """Number of frequencies in each band and energy of each signal there, by all eigenvectors.

    Args:
        adjacency: Ã, (N, N), symmetric, sparse.
        signals: each (N, d).
        edges: (B + 1,) of :func:`band_edges`.

    Returns:
        counts (B,), energies (signals, B): sums of squares, which add up to N and to each signal's ||.||^2.
    """
    spectrum = Spectrum(adjacency)
    band = np.clip(np.searchsorted(edges, spectrum.frequencies, side="right") - 1, 0, len(edges) - 2)
    bands = len(edges) - 1
    counts = np.bincount(band, minlength=bands).astype(np.float64)
    energies = [np.bincount(band, spectrum.energies(signal), minlength=bands) for signal in signals]
    return counts, np.array(energies)


def equal_band_energies(adjacency: Any, signals: Sequence[Array], groups: int) -> tuple[Array, Array, int]:
    """Energy of each signal in groups of equally many frequencies, by all eigenvectors (FreqD, table 1).

    Args:
        adjacency: Ã, (N, N), symmetric, sparse.
        signals: each (N, d).
        groups: G.

    Returns:
        Edges (G + 1,), the frequencies between groups; energies (signals, G), which add up to each signal's ||.||^2;
        and the multiplicity of frequency 1. If an edge is inside an eigenspace, the groups share its energy.
    """
    spectrum = Spectrum(adjacency)
    frequencies, shares = spectrum.frequencies, equal_shares(spectrum.frequencies, groups)
    energies = np.array([spectrum.energies(signal) @ shares for signal in signals])
    starts = -(-np.arange(1, groups) * len(frequencies) // groups)
    return np.concatenate([[0.0], frequencies[starts], [2.0]]), energies, multiplicity_of_one(frequencies)


def estimated_equal_band_energies(
    adjacency: Any, signals: Sequence[Array], groups: int, degree: int = 512, probes: int = 32, seed: int = 0
) -> tuple[Array, Array, int]:
    """Estimates :func:`equal_band_energies`; the multiplicity is a lower bound, and mostly exact.

    The bounds between groups are blurred over about 2 pi / `degree`. Wide signals are sampled as in
    :func:`estimated_band_energies`.
    """
    edges, weights, repeated = equal_groups(adjacency, groups, degree, probes, seed)
    return edges, _estimated(adjacency, signals, weights, probes, np.random.default_rng(seed)), repeated


def estimated_band_energies(
    adjacency: Any, signals: Sequence[Array], edges: Array, degree: int = 512, probes: int = 32, seed: int = 0
) -> tuple[Array, Array]:
    """Estimates :func:`exact_band_energies` with `degree` / 2 sparse products of at most 2 `probes` columns.

    The edges of bands are blurred over about pi / `degree`. A signal with at most `probes` columns has no other error.
    In a wider signal the weakest directions are sampled. The counts are sampled with `probes` random signals.
    """
    random = np.random.default_rng(seed)
    nodes = adjacency.shape[0]
    signs: Any = random.integers(0, 2, (nodes, probes)) * 2.0 - 1
    weights = band_coefficients(edges, degree)
    counts = weights @ chebyshev_moments(adjacency, signs, degree) / probes
    return counts, _estimated(adjacency, signals, weights, probes, random)


def _estimated(
    adjacency: Any, signals: Sequence[Array], weights: Array, probes: int, random: np.random.Generator
) -> Array:
    """(signals, B) energies, weighted at each frequency by polynomials with Chebyshev coefficients (B, degree + 1)."""
    degree = weights.shape[1] - 1
    narrow = (_narrow(signal, probes, random) for signal in signals)
    return np.array([weights @ chebyshev_moments(adjacency, signal, degree) for signal in narrow])


def _narrow(signal: Array, probes: int, random: np.random.Generator) -> Array:
    """A signal with at most 2 `probes` columns; its expected energy in any band is that of `signal`, (N, d).

    Rotating the columns does not change energies. The `probes` strongest principal directions are kept. The rest is
    replaced by random combinations (Hutchinson's estimate, deflated: Meyer et al., Hutch++, 2021). They are scaled to
    the total energy of the rest, so only its division into bands is estimated.
    """
    if signal.shape[1] <= probes:
        return signal
    _, directions = np.linalg.eigh(signal.T @ signal)  # the weakest first
    strong, rest = signal @ directions[:, -probes:], signal @ directions[:, :-probes]
    mixed = rest @ (random.integers(0, 2, (rest.shape[1], probes)) * 2.0 - 1)
    mixed *= float(np.linalg.norm(rest)) / max(float(np.linalg.norm(mixed)), 1e-300)
    narrow: Array = np.concatenate([strong, mixed], axis=1)
    return narrow
