"""Groups with equally many frequencies of a graph, and filters that weight each group: FreqD's table 1.

The N eigenvectors of a graph's Laplacian L = I - Ã, by ascending frequency, are divided into G groups of N / G. An
eigenvalue of high multiplicity can be in several groups, and its eigenvectors have no order. So each of them is divided
among these groups in the same proportions as the whole eigenspace. A user-item graph has such an eigenvalue: 1, at
least |users - items| times.

Small graphs are decomposed exactly. On large ones the groups' bounds are quantiles of the estimated density of
frequencies. A filter is then an expansion in Chebyshev polynomials with Jackson's damping (the kernel polynomial
method: Weiße et al., Rev. Mod. Phys. 78, 2006); its steps at the bounds are blurred over about pi / degree in angle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_kd.data.graphs import PolynomialFilter

__all__ = [
    "EXACT_NODES",
    "BandFilter",
    "ChebyshevFilter",
    "band_coefficients",
    "band_filter",
    "chebyshev_moments",
    "equal_edges",
    "equal_shares",
    "multiplicity_of_one",
]

Array = NDArray[np.float64]

#: Largest number of nodes of a graph that is decomposed exactly; it then takes 30 seconds and 0.25 GB.
EXACT_NODES = 4000
#: Degree of the polynomials for larger graphs, which is the number of products with Ã in each step.
DEGREE = 64
#: Eigenvalues closer than this are treated as equal.
_EQUAL = 1e-8


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


def equal_edges(adjacency: Any, groups: int, degree: int = 256, probes: int = 32, seed: int = 0) -> Array:
    """(G + 1,) bounds with about equally many eigenvectors between them, from the estimated density.

    Args:
        adjacency: Ã, (N, N), symmetric, sparse; every node has neighbours.
        groups: G.
        degree, probes, seed: parameters of the estimate.
    """
    signs: Any = np.random.default_rng(seed).integers(0, 2, (adjacency.shape[0], probes)) * 2.0 - 1
    # Counts of narrow bands, equal in angle, are summed.
    fine = 1 - np.cos(np.linspace(0, np.pi, 4 * degree + 1))
    counts = band_coefficients(fine, degree) @ chebyshev_moments(adjacency, signs, degree)
    below = np.concatenate([[0.0], np.cumsum(np.maximum(counts, 0))])
    inner = np.interp(np.arange(1, groups) / groups * below[-1], below, fine)
    return np.concatenate([[0.0], inner, [2.0]])


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
    # Jackson's damping keeps the expansion of a step between 0 and 1.
    turn = np.pi / (degree + 2)
    damping = ((degree + 2 - orders) * np.cos(orders * turn) + np.sin(orders * turn) / np.tan(turn)) / (degree + 2)
    weights: Array = np.concatenate([constant[:, None], rest * damping], axis=1)
    return weights


def band_filter(adjacency: Tensor, weights: Sequence[float], unit: str = "freqd") -> BandFilter | ChebyshevFilter:
    """The filter H that multiplies the squared difference in group g by ``weights[g]``: h = sqrt(weights[g]) there.

    Nodes without an edge are in no group; they get the weight of frequency 1, which is their frequency.

    Args:
        adjacency: Ã, (N, N) sparse CSR, symmetric.
        weights: weights of G groups with equally many frequencies, the lowest first.
        unit: the unit named in the log line.

    Returns:
        :class:`BandFilter` up to :data:`EXACT_NODES` nodes with an edge, otherwise :class:`ChebyshevFilter`.
    """
    from scipy.sparse import csr_matrix  # imported late: it takes 0.2 seconds, and the verb `list` does not need it

    roots = np.sqrt(np.asarray(weights, dtype=np.float64))
    parts = (adjacency.values().double().numpy(), adjacency.col_indices().numpy(), adjacency.crow_indices().numpy())
    whole = csr_matrix(parts, shape=tuple(adjacency.shape))
    nodes = np.flatnonzero(np.diff(whole.indptr))
    graph, groups = whole[nodes][:, nodes], len(weights)
    if len(nodes) > EXACT_NODES:
        edges = equal_edges(graph, groups)
        bounds = ", ".join(f"{edge:.4g}" for edge in edges[1:-1])
        logging.getLogger().info(f"{unit}: {groups} groups of {len(nodes):,} frequencies, divided at about {bounds}")
        return ChebyshevFilter(adjacency, roots @ band_coefficients(edges, DEGREE))
    eigenvalues, vectors = np.linalg.eigh(graph.toarray())
    frequencies = np.clip(1 - eigenvalues[::-1], 0, 2)
    shares = equal_shares(frequencies, groups)
    repeated = multiplicity_of_one(frequencies)
    logging.getLogger().info(
        f"{unit}: {groups} groups of {len(nodes):,} frequencies; {repeated:,} of them are 1 and are divided evenly "
        "among the groups that contain them"
    )
    at_one = shares[np.abs(frequencies - 1).argmin()] if len(nodes) else np.full(groups, 1 / groups)
    scaled = vectors[:, ::-1] * np.sqrt(shares @ roots**2)
    matrix = torch.from_numpy(scaled @ vectors[:, ::-1].T).to(adjacency.dtype)
    return BandFilter(len(adjacency), torch.from_numpy(nodes), matrix, float(np.sqrt(at_one @ roots**2)))


class BandFilter(nn.Module):
    """H as a matrix over the nodes with an edge, exact, for small graphs; same methods as :class:`PolynomialFilter`."""

    connected: Tensor
    matrix: Tensor

    def __init__(self, size: int, connected: Tensor, matrix: Tensor, alone: float) -> None:
        """
        Args:
            size: N.
            connected: (M,) nodes with an edge.
            matrix: (M, M) H over these nodes.
            alone: factor of a node without an edge.
        """
        super().__init__()
        self._size, self._alone = size, alone
        self.register_buffer("connected", connected, persistent=False)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, signal: Tensor, nodes: Optional[Tensor] = None) -> Tensor:
        """H signal, (N, d), or its rows of some nodes, (n, d)."""
        nodes = torch.arange(self._size, device=signal.device) if nodes is None else nodes
        place = torch.full((self._size,), -1, device=nodes.device)
        place[self.connected] = torch.arange(len(self.connected), device=nodes.device)
        own = place[nodes]
        joined, lonely = own >= 0, own < 0
        filtered = self.matrix.index_select(0, own[joined]) @ signal.index_select(0, self.connected)
        rows = signal.new_zeros(len(nodes), signal.shape[1]).index_copy(0, joined.nonzero().squeeze(1), filtered)
        return rows.index_copy(0, lonely.nonzero().squeeze(1), self._alone * signal.index_select(0, nodes[lonely]))

    @torch.no_grad()
    def constant(self, signal: Tensor) -> Tensor:
        """H signal without gradient."""
        found: Tensor = self(signal)
        return found

    def part(
        self, nodes: Tensor, dropped: float = 0.0, generator: Optional[torch.Generator] = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The nodes with an edge that the rows H[nodes] read, and these rows as a function of a signal on them."""
        read = torch.unique(torch.cat([self.connected, nodes]))

        def product(signal: Tensor) -> Tensor:
            whole = signal.new_zeros(self._size, signal.shape[1]).index_copy(0, read, signal)
            found: Tensor = self(whole, nodes)
            return found

        return read, product


class ChebyshevFilter(PolynomialFilter):
    """H = sum_k c_k T_k(Ã), of any degree; coefficients of plain powers would be too large for floats."""

    def __init__(self, adjacency: Tensor, coefficients: Sequence[float]) -> None:
        """
        Args:
            adjacency: Ã, (N, N) sparse CSR, symmetric.
            coefficients: c, the coefficients of T_0, T_1, T_2 and so on; at least three.
        """
        super().__init__(adjacency, [0.0, 0.0, 1.0])  # a degree for which H is not formed as a matrix
        self._coefficients = [float(one) for one in coefficients]

    def forward(self, signal: Tensor, nodes: Optional[Tensor] = None) -> Tensor:
        """H signal, (N, d), or its rows of some nodes, (n, d): a product with Ã for each degree."""
        before, current = signal, self._product(signal, None)
        first, second, *others = self._coefficients
        total = first * before + second * current
        for coefficient in others:
            before, current = current, 2 * self._product(current, None) - before
            total = total + coefficient * current
        return total if nodes is None else total.index_select(0, nodes)
