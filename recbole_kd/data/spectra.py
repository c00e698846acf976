"""The eigenvectors of a graph's Laplacian L = I - Ã, and groups of equally many of them (FreqD, table 1).

The N eigenvectors, by ascending frequency, are divided into G groups of N / G. An eigenvalue of high multiplicity can
be in several groups, and its eigenvectors have no order. So each of them is divided among these groups in the same
proportions as the whole eigenspace. A user-item graph has such an eigenvalue: 1, at least |users - items| times.

A user-item graph is decomposed by the smaller of its two sides. With R the block of Ã between the sides, and its
singular value decomposition R = U S V^T, each singular value s above 0 gives two eigenvectors, (u, v) / sqrt(2) with
frequency 1 - s and (u, -v) / sqrt(2) with 1 + s. All others have frequency 1. Only U and S are kept, as
V^T x = S^-1 U^T R x.

Graphs that are too large for this are estimated with Chebyshev polynomials and Jackson's damping (the kernel polynomial
method: Weiße et al., Rev. Mod. Phys. 78, 2006). Frequency 1 is treated apart there. Its multiplicity is taken as the
number of nodes that a largest matching leaves out. The true one is never smaller, and larger only where values of Ã
happen to cancel, as between users with the same items.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EXACT_SIZE",
    "Spectrum",
    "band_coefficients",
    "chebyshev_moments",
    "equal_groups",
    "equal_shares",
    "is_small",
    "multiplicity_of_one",
]

Array = NDArray[np.float64]

#: Rows of the largest matrix that is decomposed: the smaller side of a user-item graph, or all nodes of another graph.
EXACT_SIZE = 6000
#: Eigenvalues closer than this are treated as equal.
_EQUAL = 1e-8
#: Singular values of R below this are rounding errors of 0: they are roots of eigenvalues of R R^T.
_ZERO = 1e-6


def is_small(adjacency: Any) -> bool:
    """Whether a graph, (N, N) scipy CSR, is small enough for :class:`Spectrum`."""
    size, border = adjacency.shape[0], _border(adjacency)
    return (size if border is None else min(border, size - border)) <= EXACT_SIZE


class Spectrum:
    """All eigenvectors of a graph's Laplacian.

    Attributes:
        frequencies: (N,) eigenvalues of L, ascending.
        side: the nodes of a user-item graph's smaller side, n of them; None for any other graph.
        vectors: U, (n, r), by descending singular value; for any other graph the eigenvectors, (N, N).
        singular: S, (r,); empty for any other graph.
    """

    def __init__(self, adjacency: Any) -> None:
        """
        Args:
            adjacency: Ã, (N, N) scipy CSR, symmetric; every node has an edge. The nodes of one side come first.
        """
        self._adjacency = adjacency
        size, border = adjacency.shape[0], _border(adjacency)
        self.side: Optional[slice] = None
        self.singular: Array = np.zeros(0)
        if border is None:
            values, vectors = np.linalg.eigh(adjacency.toarray())
            self.frequencies: Array = np.clip(1 - values[::-1], 0, 2)
            self.vectors: Array = vectors[:, ::-1]
            return
        first, second = slice(0, border), slice(border, size)
        self.side, other = (first, second) if border <= size - border else (second, first)
        block = adjacency[self.side][:, other]
        squares, vectors = np.linalg.eigh((block @ block.T).toarray())
        kept = squares > _ZERO**2
        self.vectors = vectors[:, kept][:, ::-1]
        self.singular = np.sqrt(np.minimum(squares[kept], 1))[::-1]
        ones = np.ones(size - 2 * len(self.singular))
        self.frequencies = np.concatenate([1 - self.singular, ones, 1 + self.singular[::-1]])

    def energies(self, signal: Array) -> Array:
        """(N,) squared part of a signal, (N, d), along each eigenvector; the mean of them at frequency 1, if `side`."""
        if self.side is None:
            parts: Array = ((self.vectors.T @ signal) ** 2).sum(1)
            return parts
        own = self.vectors.T @ signal[self.side]
        other = (self.vectors.T @ (self._adjacency @ signal)[self.side]) / self.singular[:, None]
        low, high = ((own + other) ** 2).sum(1) / 2, ((own - other) ** 2).sum(1) / 2
        ones = len(self.frequencies) - 2 * len(self.singular)
        rest = max(float((signal**2).sum() - low.sum() - high.sum()), 0.0)
        return np.concatenate([low, np.full(ones, rest / max(ones, 1)), high[::-1]])


def _border(adjacency: Any) -> Optional[int]:
    """Number of nodes of the first side, if no edge connects two nodes below or two nodes from that number on."""
    size = adjacency.shape[0]
    first = np.minimum.reduceat(adjacency.indices, adjacency.indptr[:-1]) if size else np.zeros(0)
    border = int((first > np.arange(size)).sum())
    inside = adjacency[:border, :border].nnz + adjacency[border:, border:].nnz
    return border if 0 < border < size and not inside else None


def equal_shares(frequencies: Array, groups: int) -> Array:
    """The share of each eigenvector in each of G groups of equal size: (N, G), rows sum to 1.

    Args:
        frequencies: (N,) eigenvalues of the Laplacian, ascending.
        groups: G.
    """
    size = len(frequencies)
    place = np.arange(size) * groups // max(size, 1)
    own = np.eye(groups)[place]
    space = np.concatenate([[0], np.cumsum(np.diff(frequencies) > _EQUAL)])[:size]
    means: Array = np.zeros((int(space[-1]) + 1 if size else 0, groups))
    np.add.at(means, space, own)
    shares: Array = (means / np.bincount(space)[:, None])[space]
    return shares


def multiplicity_of_one(frequencies: Array) -> int:
    """Number of eigenvectors with frequency 1."""
    return int((np.abs(frequencies - 1) <= _EQUAL).sum())


def equal_groups(adjacency: Any, groups: int, degree: int, probes: int = 32, seed: int = 0) -> tuple[Array, Array, int]:
    """Estimates of G groups of equally many frequencies.

    Args:
        adjacency: Ã, (N, N) scipy CSR, symmetric; every node has an edge.
        groups: G.
        degree: of the polynomials. Bounds between groups are blurred over about 2 pi / `degree` in angle, and what is
            special to frequency 1 over half of that.
        probes, seed: parameters of the estimated number of frequencies below each.

    Returns:
        bounds (G + 1,); Chebyshev coefficients in Ã of each group's weight, (G, degree + 1), whose sum over the groups
        is 1 at any frequency; and the multiplicity of frequency 1.
    """
    from scipy.sparse.csgraph import structural_rank  # imported late, as it takes a moment

    size = adjacency.shape[0]
    repeated = size - int(structural_rank(adjacency))
    signs: Any = np.random.default_rng(seed).integers(0, 2, (size, probes)) * 2.0 - 1
    detail = 4 * degree
    orders = np.arange(detail + 1)
    at_one = np.cos(orders * np.pi / 2)  # T_k(0)
    moments = chebyshev_moments(adjacency, signs, detail) / probes - repeated * at_one
    if _border(adjacency) is not None:
        moments[1::2] = 0  # the frequencies 1 - s and 1 + s of a user-item graph come in pairs
    # Counts of narrow bands, equal in angle, are summed.
    fine = 1 - np.cos(np.linspace(0, np.pi, 4 * detail + 1))
    below = np.concatenate([[0.0], np.cumsum(np.maximum(band_coefficients(fine, detail) @ moments, 0))])
    below *= (size - repeated) / max(float(below[-1]), 1e-300)

    before = float(np.interp(1.0, fine, below))  # frequencies below 1; then frequency 1 itself
    cuts = np.arange(1, groups) / groups * size
    inner = np.interp(np.where(cuts < before, cuts, np.maximum(cuts - repeated, before)), below, fine)
    inner[(cuts >= before) & (cuts <= before + repeated)] = 1.0
    bounds = np.concatenate([[0.0], inner, [2.0]])
    weights = np.zeros((groups, degree + 1))
    half = degree // 2
    weights[:, : half + 1] = band_coefficients(bounds, half)
    if repeated:
        places = np.clip(np.concatenate([[0.0], cuts, [size]]), before, before + repeated)
        shares = np.diff(places) / repeated
        # A peak at frequency 1, of height 1, gives each group its share there and leaves other frequencies alone.
        peak = np.concatenate([[1.0], 2 * _damping(degree)]) * at_one[: degree + 1]
        peak /= peak @ at_one[: degree + 1]
        weights += np.outer(shares - weights @ at_one[: degree + 1], peak)
    return bounds, weights, repeated


def chebyshev_moments(adjacency: Any, signal: Array, degree: int) -> Array:
    """(degree + 1,) trace(D^T T_k(Ã) D), two for each product: T_2k = 2 T_k^2 - 1 and T_2k+1 = 2 T_k+1 T_k - T_1."""
    before, current = signal, adjacency @ signal
    moments = np.zeros(degree + 2)
    moments[0], moments[1] = np.vdot(signal, signal), np.vdot(current, signal)
    for order in range(1, degree // 2 + 1):
        moments[2 * order] = 2 * np.vdot(current, current) - moments[0]
        before, current = current, 2 * (adjacency @ current) - before
        moments[2 * order + 1] = 2 * np.vdot(current, before) - moments[1]
    return moments[: degree + 1]


def band_coefficients(edges: Array, degree: int) -> Any:
    """(B, degree + 1) damped Chebyshev coefficients of the bands' indicator functions of 1 - x."""
    orders = np.arange(1, degree + 1)
    angles = np.arccos(np.clip(1 - edges, -1, 1))  # rising with the frequency
    constant = np.diff(angles) / np.pi
    rest = 2 / np.pi * np.diff(np.sin(orders[:, None] * angles), axis=1).T / orders
    weights: Array = np.concatenate([constant[:, None], rest * _damping(degree)], axis=1)
    return weights


def _damping(degree: int) -> Array:
    """(degree,) Jackson's damping of T_1, T_2, ...: it keeps the expansion of a step between 0 and 1."""
    orders = np.arange(1, degree + 1)
    turn = np.pi / (degree + 2)
    damping: Array = ((degree + 2 - orders) * np.cos(orders * turn) + np.sin(orders * turn) / np.tan(turn)) / (
        degree + 2
    )
    return damping
