"""Graphs of the training split as sparse matrices, and polynomial filters of their spectrum.

A graph is a symmetric-normalised adjacency Ã = D^(-1/2) W D^(-1/2) in CSR form with int32 indices. Its Laplacian
L = I - Ã has eigenvalues in [0, 2]: the frequencies of a signal on its nodes. A filter h(L) multiplies the part of the
signal at frequency x by h(x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor, nn

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.loss.kernel.graph import graph_product

__all__ = [
    "PolynomialFilter",
    "bipartite_adjacency",
    "check_decreasing",
    "neighbour_adjacency",
    "symmetric_normalized",
]

#: Columns of a dense matrix that a filter processes at a time; limits temporary memory to (size, 64) floats.
COLUMNS = 64

#: Largest number of entries of a graph: MKL and cuSPARSE are fast only with 32-bit offsets.
MOST_ENTRIES = 2**31 - 1


def symmetric_normalized(rows: Tensor, columns: Tensor, weights: Tensor, size: int) -> Tensor:
    """D^(-1/2) W D^(-1/2) of a weighted graph, D being the row sums of W.

    A node without edges has an empty row and column. Edges listed more than once have their weights added.

    Args:
        rows, columns: (edges,) int ids of the nodes; an undirected edge is listed in both directions.
        weights: (edges,) positive weights.
        size: number of nodes, padding included.

    Returns:
        (size, size) sparse CSR, of the dtype and device of `weights`, with int32 indices.

    Raises:
        UserError: too many entries for 32-bit offsets.
    """
    if len(rows) > MOST_ENTRIES:
        raise UserError(
            f"The graph has {len(rows):,} entries, two for each interaction; expected at most {MOST_ENTRIES:,}. "
            "Train on fewer interactions (--user_inter_num_interval, --val_interval)."
        )
    keys, place = torch.unique(rows.long() * size + columns, return_inverse=True)
    row, column = keys // size, keys % size
    summed = torch.zeros(len(keys), dtype=torch.float64, device=weights.device).index_add_(0, place, weights.double())
    degrees = torch.zeros(size, dtype=torch.float64, device=weights.device).index_add_(0, row, summed)
    values = summed * (degrees[row] * degrees[column]).rsqrt()
    offsets = torch.zeros(size + 1, dtype=torch.int32, device=weights.device)
    offsets[1:] = torch.bincount(row, minlength=size).cumsum(0)
    return _csr(offsets, column.int(), values.to(weights.dtype), size)


def bipartite_adjacency(observed: Observed) -> Tensor:
    """Ã of the user-item graph: (U + I, U + I) sparse CSR, float32. User u is node u, item i is node U + i."""
    users, items = observed.user_ids, observed.indices + observed.users
    rows, columns = torch.cat([users, items]), torch.cat([items, users])
    return symmetric_normalized(rows, columns, torch.ones(len(rows)), observed.users + observed.items)


def neighbour_adjacency(observed: Observed, neighbours: int, block: int = 2048) -> Tensor:
    """Ã of the user-user graph that connects each user with the users who share most items.

    Two users are connected, with weight 1, if either is among the other's `neighbours` nearest by the number of shared
    items; ties are broken by the smaller id. For the item-item graph pass ``observed.transposed()``.

    Args:
        observed: the training split.
        neighbours: neighbours that each user chooses; fewer if fewer users share an item.
        block: users whose co-occurrences are counted at a time.

    Returns:
        (U, U) sparse CSR, float32.
    """
    from scipy.sparse import csr_matrix  # imported late: it takes 0.2 seconds, and the verb `list` does not need it

    interactions = csr_matrix(
        (np.ones(len(observed), dtype=np.int32), observed.indices.numpy(), observed.offsets.numpy()),
        shape=(observed.users, observed.items),
    )
    by_item = interactions.T.tocsr()
    chosen = [
        _nearest(interactions[start : start + block] @ by_item, start, neighbours)
        for start in range(0, observed.users, block)
    ]
    rows, columns = (torch.from_numpy(np.concatenate(part)) for part in zip(*chosen))
    keys = torch.unique(torch.cat([rows * observed.users + columns, columns * observed.users + rows]))
    rows, columns = keys // observed.users, keys % observed.users
    return symmetric_normalized(rows, columns, torch.ones(len(keys)), observed.users)


def _nearest(counts: Any, start: int, neighbours: int) -> tuple[Any, Any]:
    """(rows, columns) of the `neighbours` largest off-diagonal entries of each row of a sparse block of rows.

    For each neighbour, one pass over the entries finds and removes every row's largest entry. A row has hundreds of
    entries and only a few are needed, so this is many times faster than sorting.
    """
    size = counts.shape[1]
    lengths = np.diff(counts.indptr)
    rows = np.flatnonzero(lengths)
    first, lengths = counts.indptr[rows], lengths[rows]
    if len(rows) == 0:
        return rows, rows
    # One number that orders by count and then by smaller id; 0 is an entry that must not be chosen.
    keys = counts.data.astype(np.int64) * size + (size - 1 - counts.indices)
    keys[counts.indices == np.repeat(rows + start, lengths)] = 0
    chosen_rows, chosen_columns = [], []
    for _ in range(neighbours):
        best = np.maximum.reduceat(keys, first)
        keys[keys == np.repeat(best, lengths)] = 0
        found = best > 0
        chosen_rows.append(rows[found] + start)
        chosen_columns.append(size - 1 - best[found] % size)
        if not found.any():
            break
    return np.concatenate(chosen_rows), np.concatenate(chosen_columns)


def check_decreasing(coefficients: Sequence[float], setting: str) -> None:
    """Refuses a filter whose weight increases with the frequency anywhere.

    A filter h multiplies the squared difference at frequency x by h(x)^2, which must not increase on [0, 2]. The
    largest slope is found exactly, from the roots of the slope's own derivative.

    Args:
        coefficients: theta of h(x) = sum_k theta_k x^k, not all 0.
        setting: the option to name in the message.

    Raises:
        UserError: h^2 increases on [0, 2]; the message says where.
    """
    theta = np.asarray(coefficients, dtype=np.float64)
    theta = theta / np.abs(theta).max()  # only the shape of the filter matters here
    # Negligible coefficients would only disturb the search for roots.
    weight = Polynomial(np.where(np.abs(theta) > 1e-15, theta, 0.0)).trim() ** 2
    slope = weight.deriv()
    roots: list[complex] = slope.deriv().roots().tolist()
    turning = [root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 2]
    steepest = max([0.0, 2.0, *turning], key=lambda x: float(slope(x)))
    if slope(steepest) > 1e-9 * float(np.abs(weight.coef).max()):
        raise UserError(
            f"{setting}={list(coefficients)} is a filter whose weight h(x)^2 increases near frequency "
            f"x={steepest:.3g}; expected one that decreases on [0, 2], such as [1, -0.5]: change --{setting}."
        )


class PolynomialFilter(nn.Module):
    """H = h(L), h(x) = sum_k theta_k x^k, of a graph's Laplacian L = I - Ã.

    H is not formed: as a polynomial of Ã with coefficients c it takes one sparse product per degree. For a batch, the
    last product uses only the needed rows of Ã.
    """

    offsets: Tensor
    neighbours: Tensor
    values: Tensor

    def __init__(self, adjacency: Tensor, coefficients: Sequence[float]) -> None:
        """
        Args:
            adjacency: Ã, (N, N) sparse CSR, symmetric.
            coefficients: theta, lowest degree first.

        Raises:
            ValueError: there is no coefficient.
        """
        super().__init__()
        if len(coefficients) == 0:
            raise ValueError("a filter needs at least one coefficient; expected [theta_0, ...]")
        powers = Polynomial(np.asarray(coefficients, dtype=np.float64))(Polynomial([1.0, -1.0]))
        # A negligible leading coefficient cannot be a divisor.
        powers = powers.trim(np.finfo(np.float64).eps * float(np.abs(powers.coef).max()))
        self._powers = [float(power) for power in powers.coef]
        if len(self._powers) <= 2:
            # H is as sparse as Ã, so one product is enough.
            adjacency = _added(adjacency, *self._powers)
        # Plain tensors, because buffers would follow the module to another device or dtype. They are made from the
        # training split, so a checkpoint does not need them.
        self.register_buffer("offsets", adjacency.crow_indices(), persistent=False)
        self.register_buffer("neighbours", adjacency.col_indices(), persistent=False)
        self.register_buffer("values", adjacency.values(), persistent=False)

    def forward(self, signal: Tensor, nodes: Optional[Tensor] = None) -> Tensor:
        """H signal, or only its rows H[nodes] signal.

        Args:
            signal: (N, d) one row for each node; gradient flows to it.
            nodes: (n,) distinct nodes; None for all.

        Returns:
            (N, d) or (n, d).
        """
        if len(self._powers) <= 2:
            return self._product(signal, nodes)
        constant, *between, leading = self._powers
        spread = signal
        for power in reversed(between):
            spread = self._product(spread, None) + power / leading * signal
        own = signal if nodes is None else signal.index_select(0, nodes)
        return leading * self._product(spread, nodes) + constant * own

    @torch.no_grad()
    def constant(self, signal: Tensor) -> Tensor:
        """H signal, (N, d), without gradient, a few columns at a time: only the result is as large as `signal`."""
        filtered = torch.empty_like(signal)
        for first in range(0, signal.shape[1], COLUMNS):
            columns = slice(first, first + COLUMNS)
            filtered[:, columns] = self(signal[:, columns].contiguous())
        return filtered

    def part(
        self, nodes: Tensor, dropped: float = 0.0, generator: Optional[torch.Generator] = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The nodes that the rows H[nodes] read, and these rows as a function of a signal on those nodes only.

        Args:
            nodes: (n,) distinct nodes.
            dropped: share of the entries of Ã that are dropped at random; the others are divided by 1 - `dropped`.
                Only for a filter of degree 1 or 0.
            generator: draws the dropped entries.

        Returns:
            (t,) distinct nodes, and a function (t, d) -> (n, d). A filter of a higher degree reads all nodes.
        """
        if len(self._powers) > 2:
            return torch.arange(len(self.offsets) - 1, device=nodes.device), lambda signal: self(signal, nodes)
        offsets, columns, values = self._parts(nodes)
        if dropped:
            rows = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), offsets.diff().long())
            own = columns == nodes[rows]  # a node's entry for itself is not an edge
            kept = own | (torch.rand(len(values), generator=generator).to(values.device) >= dropped)
            place = kept.nonzero().squeeze(1)
            values = torch.where(own, values, values / (1 - dropped))[place]
            columns, counts = columns[place], torch.bincount(rows[place], minlength=len(nodes))
            offsets = torch.cat([offsets.new_zeros(1), counts.cumsum(0).to(offsets)])
        touched, place = torch.unique(columns, return_inverse=True)
        matrix: Any
        if values.device.type == "cpu":
            from scipy.sparse import csr_matrix

            arrays = (values.numpy(), place.to(offsets).numpy(), offsets.numpy())
            matrix = csr_matrix(arrays, shape=(len(nodes), len(touched)))
        else:
            matrix = _csr(offsets, place.to(offsets), values, len(touched))

        def product(signal: Tensor) -> Tensor:
            found: Tensor = _SparseProduct.apply(signal, matrix)
            return found

        return touched.long(), product

    def _product(self, signal: Tensor, nodes: Optional[Tensor]) -> Tensor:
        size = len(self.offsets) - 1
        matrix: Any
        if signal.device.type == "cpu":
            arrays = (self.values.numpy(), self.neighbours.numpy(), self.offsets.numpy())
            from scipy.sparse import csr_matrix

            matrix = csr_matrix(arrays, shape=(size, size))
            matrix = matrix if nodes is None else matrix[nodes.numpy()]
        else:
            matrix = _csr(*self._parts(nodes), size)
        product: Tensor = _SparseProduct.apply(signal, matrix)
        return product

    def _parts(self, nodes: Optional[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(offsets, columns, values) of the rows `nodes` of Ã, or of all."""
        if nodes is None:
            return self.offsets, self.neighbours, self.values
        starts = self.offsets.index_select(0, nodes)
        lengths = (self.offsets.index_select(0, nodes + 1) - starts).long()
        offsets = self.offsets.new_zeros(len(nodes) + 1)
        offsets[1:] = lengths.cumsum(0)
        position = torch.repeat_interleave(starts - offsets[:-1], lengths)
        position += torch.arange(len(position), dtype=position.dtype, device=position.device)
        return offsets, self.neighbours.index_select(0, position), self.values.index_select(0, position)


#: Columns from which sorting a transposed matrix's entries by row takes less time than it saves.
_WIDE = 64


class _SparseProduct(torch.autograd.Function):
    """M signal for a constant sparse matrix M, (n, N) times (N, d); the gradient is M's transpose times its gradient.

    On a CPU the matrix is scipy's. It selects rows in 0.4 ms (torch: 2 ms), and multiplies by a transpose in 1.6 ms,
    because torch sorts the entries first (40 ms), for 2,048 interactions of Gowalla and d = 20.
    """

    @staticmethod
    def forward(ctx: Any, signal: Tensor, matrix: Any) -> Tensor:
        ctx.matrix = matrix
        return graph_product(matrix if isinstance(matrix, Tensor) else _of_scipy(matrix), signal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if isinstance(ctx.matrix, Tensor):
            return ctx.matrix.t() @ gradient, None
        if gradient.shape[1] >= _WIDE:
            return graph_product(_of_scipy(ctx.matrix.T.tocsr()), gradient), None
        return torch.from_numpy(ctx.matrix.T @ gradient.numpy()), None


def _of_scipy(matrix: Any) -> Tensor:
    offsets, columns, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    return _csr(offsets, columns, values, matrix.shape[1])


def _added(adjacency: Tensor, constant: float, factor: float = 0.0) -> Tensor:
    """constant I + factor Ã."""
    size = len(adjacency)
    node = torch.arange(size, device=adjacency.device)
    rows = torch.repeat_interleave(node, adjacency.crow_indices().diff())
    # An adjacency has no loops, so no two of these entries coincide.
    rows, columns = torch.cat([rows, node]), torch.cat([adjacency.col_indices().long(), node])
    values = torch.cat([factor * adjacency.values(), adjacency.values().new_full((size,), constant)])
    order = (rows * size + columns).argsort()
    offsets = adjacency.crow_indices() + torch.arange(size + 1, dtype=torch.int32, device=adjacency.device)
    return _csr(offsets, columns[order].int(), values[order], size)


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, size: int) -> Tensor:
    """A sparse CSR tensor with `size` columns."""
    return torch.sparse_csr_tensor(
        offsets, columns, values, (len(offsets) - 1, size), check_invariants=False, device=values.device
    )
