"""Filters that weight groups with equally many frequencies of a graph: FreqD's table 1.

The groups are those of :mod:`recbole_kd.data.spectra`: from all eigenvectors where the graph is small enough, otherwise
by Chebyshev polynomials, with the bounds between groups blurred.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor, nn

from recbole_kd.data.graphs import PolynomialFilter
from recbole_kd.data.spectra import Array, Spectrum, equal_groups, equal_shares, is_small, multiplicity_of_one

__all__ = ["BandFilter", "ChebyshevFilter", "PairedFilter", "band_filter"]

#: Degree of the polynomials for large graphs, which is the number of products with Ã in each step.
DEGREE = 128


def band_filter(
    adjacency: Tensor, weights: Sequence[float], unit: str = "freqd"
) -> BandFilter | PairedFilter | ChebyshevFilter:
    """The filter H that multiplies the squared difference in group g by ``weights[g]``: h = sqrt(weights[g]) there.

    Nodes without an edge are in no group; they get the weight of frequency 1, which is their frequency.

    Args:
        adjacency: Ã, (N, N) sparse CSR, symmetric.
        weights: weights of G groups with equally many frequencies, the lowest first.
        unit: the unit named in the log line.

    Returns:
        :class:`PairedFilter` for a user-item graph and :class:`BandFilter` for another, both exact; for a graph that is
        too large :class:`ChebyshevFilter`.
    """
    from scipy.sparse import csr_matrix  # imported late: it takes 0.2 seconds, and the verb `list` does not need it

    given = np.asarray(weights, dtype=np.float64)
    parts = (adjacency.values().double().numpy(), adjacency.col_indices().numpy(), adjacency.crow_indices().numpy())
    whole = csr_matrix(parts, shape=tuple(adjacency.shape))
    nodes = np.flatnonzero(np.diff(whole.indptr))
    graph, groups = whole[nodes][:, nodes], len(given)
    said = f"{unit}: {groups} groups of {len(nodes):,} frequencies"
    if not is_small(graph):
        bounds, shapes, repeated = equal_groups(graph, groups, DEGREE)
        logging.getLogger().info(
            f"{said}, divided at about {', '.join(f'{bound:.4g}' for bound in bounds[1:-1])}; at least {repeated:,} of "
            "them are 1 and are divided among the groups that contain them"
        )
        return ChebyshevFilter(adjacency, _root(given @ shapes))
    spectrum = Spectrum(graph)
    shares = equal_shares(spectrum.frequencies, groups)
    logging.getLogger().info(
        f"{said}; {multiplicity_of_one(spectrum.frequencies):,} of them are 1 and are divided evenly among the groups "
        "that contain them"
    )
    at_one = shares[np.abs(spectrum.frequencies - 1).argmin()] if len(nodes) else np.full(groups, 1 / groups)
    factors, alone = np.sqrt(shares @ given), float(np.sqrt(at_one @ given))
    if spectrum.side is not None:
        return PairedFilter(adjacency, torch.from_numpy(nodes[spectrum.side]), spectrum, factors, alone)
    matrix = torch.from_numpy((spectrum.vectors * factors) @ spectrum.vectors.T).to(adjacency.dtype)
    return BandFilter(len(adjacency), torch.from_numpy(nodes), matrix, alone)


def _root(coefficients: Any) -> list[float]:
    """Chebyshev coefficients of the same degree of about the square root of a polynomial that is hardly below 0."""

    def root(x: Any) -> Any:
        return np.sqrt(np.maximum(chebyshev.chebval(x, coefficients), 0.0))

    found: list[float] = chebyshev.chebinterpolate(root, len(coefficients) - 1).tolist()
    return found


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


class PairedFilter(PolynomialFilter):
    """H of a user-item graph, exact, from the eigenvectors (u, v) and (u, -v) of each singular value."""

    side: Tensor
    vectors: Tensor
    singular: Tensor
    even: Tensor
    odd: Tensor

    def __init__(self, adjacency: Tensor, side: Tensor, spectrum: Spectrum, factors: Array, alone: float) -> None:
        """
        Args:
            adjacency: Ã, (N, N) sparse CSR, symmetric.
            side: (n,) the nodes of the smaller side that have an edge.
            spectrum: of the nodes with an edge.
            factors: h of each of its frequencies.
            alone: h at frequency 1.
        """
        super().__init__(adjacency, [0.0, 0.0, 1.0])  # a degree for which H is not formed as a matrix
        self._alone, pairs = alone, len(spectrum.singular)
        low, high = factors[:pairs] - alone, factors[::-1][:pairs] - alone
        constants = {
            "side": side,
            "vectors": torch.from_numpy(spectrum.vectors.copy()).to(adjacency.dtype),
            "singular": torch.from_numpy(spectrum.singular.copy()).to(adjacency.dtype)[:, None],
            "even": torch.from_numpy((low + high) / 2).to(adjacency.dtype)[:, None],
            "odd": torch.from_numpy((low - high) / 2).to(adjacency.dtype)[:, None],
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, signal: Tensor, nodes: Optional[Tensor] = None) -> Tensor:
        """H signal, (N, d), or its rows of some nodes, (n, d): h(1) times it, and what each pair adds."""
        own = self.vectors.T @ signal.index_select(0, self.side)
        other = self.vectors.T @ self._product(signal, self.side) / self.singular
        of_side = self.vectors @ (self.even * own + self.odd * other)
        to_other = self.vectors @ ((self.odd * own + self.even * other) / self.singular)
        nothing = torch.zeros_like(signal)
        filtered = self._alone * signal + nothing.index_copy(0, self.side, of_side)
        filtered = filtered if nodes is None else filtered.index_select(0, nodes)
        return filtered + self._product(nothing.index_copy(0, self.side, to_other), nodes)


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
