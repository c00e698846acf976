"""Distances of projected vectors from their targets, summed over nodes (FitNet, DE, HTD, PHR, FreqD), as formulas.

Training uses ``kernel/regression.py``. Targets are constants. :func:`mean_over_nodes`, which has no kernel, makes a
mean over nodes of the sums of several sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel.layout import GroupLayout

__all__ = [
    "cosine_distances",
    "expert_error",
    "layer_error",
    "linear_error",
    "mean_over_nodes",
    "mixture_error",
    "vector_distances",
]


def linear_error(inputs: Tensor, weight: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """sum_n ||W x_n - t_n||^2 (FitNet; FreqD eq. 8 with filtered vectors). Entry: a node.

    Args:
        inputs: x, (n, inputs); a bias is a column of ones.
        weight: W, (outputs, inputs).
        table: (N, outputs) constants.
        rows: (n,) rows of `table`, the targets t.
    """
    return (inputs @ weight.t() - table[rows].to(inputs)).square().sum()


def layer_error(
    inputs: Tensor, constant: Tensor, weight: Tensor, bias: Tensor, table: Tensor, rows: Tensor, distance: str
) -> Tensor:
    """sum_n distance(W x_n + c_n b, t_n), the last layer of perceptrons (FitNet, FreqD). Entry: a node.

    Args:
        inputs: x, (n, inputs).
        constant: c, constants (n,): what multiplies the bias, 1 unless a filter comes before the layer.
        weight, bias: W, b: (outputs, inputs), (outputs,).
        table, rows: targets, as in :func:`linear_error`.
        distance: of :func:`vector_distances`.
    """
    predicted = inputs @ weight.t() + constant.unsqueeze(1) * bias
    return vector_distances(predicted, table[rows].to(inputs), distance).sum()


def expert_error(
    inputs: Tensor,
    layout: GroupLayout,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    targets: Tensor,
    *,
    squared: bool = True,
) -> Tensor:
    """sum_n ||E_m(x_n) - t_n||^2 with one expert m for each node, E_m(x) = B_m relu(A_m x + a_m) + b_m. Entry: a node.

    This is DE's eq. 4-7 for a one-hot selection.

    Args:
        inputs: x, (n, inputs).
        layout: the layout of the nodes by their experts m, in 0 .. M - 1.
        first, first_bias: A, a: (M, inputs, hidden), (M, hidden).
        second, second_bias: B, b: (M, hidden, outputs), (M, outputs).
        targets: t, constants (R, outputs) in the layout; its padding is not read.
        squared: whether the norm is squared. A norm of 0 that is not squared has gradient 0.
    """
    m = layout.groups
    hidden = (torch.einsum("ni,nih->nh", inputs, first[m]) + first_bias[m]).relu()
    mapped = torch.einsum("nh,nho->no", hidden, second[m]) + second_bias[m]
    return _sum_of_norms(mapped - layout.unpadded(targets).to(mapped), squared)


def mixture_error(
    inputs: Tensor,
    weights: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    table: Tensor,
    rows: Tensor,
    *,
    squared: bool = True,
) -> Tensor:
    """sum_n ||sum_m s_nm E_m(x_n) - t_n||^2 with all experts (DE, eq. 4-7). Entry: a node.

    Args:
        inputs: x, (n, inputs).
        weights: s, (n, M).
        first, first_bias, second, second_bias, squared: as in :func:`expert_error`.
        table, rows: targets, as in :func:`linear_error`.
    """
    hidden = (torch.einsum("ni,mih->nmh", inputs, first) + first_bias).relu()
    mapped = torch.einsum("nmh,mho->nmo", hidden, second) + second_bias
    mixed = (weights.unsqueeze(2) * mapped).sum(1)
    return _sum_of_norms(mixed - table[rows].to(mixed), squared)


def cosine_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(p, t) of each row: (n, d), (n, d) -> (n,), in [0, 2]. Entry: a node. A vector of zeros has cosine 0.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted vectors are {tuple(predicted.shape)} and targets {tuple(target.shape)}")
    return 1 - (unit(predicted) * unit(target.detach())).sum(1)


def vector_distances(predicted: Tensor, target: Tensor, distance: str) -> Tensor:
    """||p - t||^2 (``squared``) or 1 - cos(p, t) (``cosine``) of each row: (n, d), (n, d) -> (n,). Entry: a node."""
    if distance == "cosine":
        return cosine_distances(predicted, target)
    return (predicted - target.detach()).square().sum(1)


def mean_over_nodes(totals: list[Tensor], nodes: int) -> Tensor:
    """The mean over all `nodes` nodes, from the sum of each side in `totals`; all nodes have the same weight."""
    return torch.stack(totals).sum() / max(1, nodes)


def _sum_of_norms(differences: Tensor, squared: bool) -> Tensor:
    return differences.square().sum() if squared else torch.linalg.vector_norm(differences, dim=1).sum()
