"""How far mapped vectors are from their targets, summed over nodes, with the gradients computed on the way.

Autograd would keep every (n, outputs) intermediate of a batch and pass over each several times. The sums here take a
block of nodes, or an expert's nodes, at a time, so that vectors are mapped, compared and differentiated while they are
in cache. Targets are constants, given as a table and the rows of it that are wanted.

Each sum divided by the number of nodes is a mean over nodes; :func:`mean_over_nodes` does it for several sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.loss.contrastive import with_gradient

__all__ = ["cosine_distances", "expert_error", "linear_error", "mean_over_nodes", "mixture_error"]

#: Nodes of a block: of a linear layer, and of all experts at once.
BLOCK = 1024
MIXTURE_BLOCK = 256


def linear_error(inputs: Tensor, weight: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """sum_n ||W x_n - t_n||^2, differentiable once in W and x. Entry: a node.

    Args:
        inputs: x, (n, inputs); a bias is a column of ones.
        weight: W, (outputs, inputs).
        table: (N, outputs) constants.
        rows: (n,) rows of `table` that are the targets t.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, weight.shape[1], weight.shape[0], table, rows)
    vectors, matrix = inputs.detach(), weight.detach()
    total = vectors.new_zeros(())
    input_gradient, weight_gradient = torch.empty_like(vectors), torch.zeros_like(matrix)
    for block in _blocks(len(vectors), BLOCK):
        difference = torch.mm(vectors[block], matrix.t()).sub_(_targets(table, rows[block], vectors))
        flat = difference.flatten()
        total += torch.dot(flat, flat)
        torch.mm(difference, matrix, out=input_gradient[block])
        weight_gradient.addmm_(difference.t(), vectors[block])
    return with_gradient(total, [inputs, weight], [input_gradient.mul_(2), weight_gradient.mul_(2)])


def expert_error(
    inputs: Tensor,
    choice: Tensor,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    table: Tensor,
    rows: Tensor,
    *,
    squared: bool = True,
) -> Tensor:
    """sum_n ||E_m(x_n) - t_n||^2 with each node's own expert m, E_m(x) = B_m relu(A_m x + a_m) + b_m. Entry: a node.

    The nodes are sorted by expert, so that the cost is that of one expert whatever their number. Differentiable once.

    Args:
        inputs: x, (n, inputs).
        choice: m, (n,) in 0 .. M - 1.
        first, first_bias: A, a: (M, inputs, hidden), (M, hidden).
        second, second_bias: B, b: (M, hidden, outputs), (M, outputs).
        table, rows: targets, as in :func:`linear_error`.
        squared: whether the norm is squared. Where it is not and is 0, its gradient is 0.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, first.shape[1], second.shape[2], table, rows)
    parameters = (first, first_bias, second, second_bias)
    order = choice.argsort()
    sizes = torch.bincount(choice, minlength=len(first)).tolist()
    x = inputs.detach().index_select(0, order)
    difference = second_bias.detach().index_select(0, choice.index_select(0, order))
    difference -= _targets(table, rows.index_select(0, order), x)
    hidden, input_gradient = x.new_empty(len(x), first.shape[2]), torch.empty_like(x)
    gradients = [torch.empty_like(parameter) for parameter in parameters]
    # One tuple of views for each expert: its nodes' rows, its parameters, their gradients.
    by_node = list(zip(*(rows_of.split(sizes) for rows_of in (x, hidden, difference, input_gradient))))
    by_expert = list(zip(*(parameter.detach().unbind() for parameter in parameters)))
    for (x_m, hidden_m, difference_m, _), (w1, b1, w2, _) in zip(by_node, by_expert):
        torch.addmm(b1, x_m, w1, out=hidden_m).relu_()
        difference_m.addmm_(hidden_m, w2)
    total = _error_(difference, squared)
    by_gradient = zip(*(gradient.unbind() for gradient in gradients))
    for nodes, (w1, _, w2, _), (to_w1, to_b1, to_w2, to_b2) in zip(by_node, by_expert, by_gradient):
        x_m, hidden_m, difference_m, to_x = nodes
        torch.mm(hidden_m.t(), difference_m, out=to_w2)
        torch.sum(difference_m, 0, out=to_b2)
        back = _through_relu(torch.mm(difference_m, w2.t()), hidden_m)
        torch.mm(x_m.t(), back, out=to_w1)
        torch.sum(back, 0, out=to_b1)
        torch.mm(back, w1.t(), out=to_x)
    in_place = torch.empty_like(input_gradient).index_copy_(0, order, input_gradient)
    return with_gradient(total, [inputs, *parameters], [in_place, *gradients])


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
    """sum_n ||sum_m s_nm E_m(x_n) - t_n||^2 with all experts of :func:`expert_error`. Entry: a node.

    The second layer is linear, so the weights multiply the hidden layer and one product sums over the experts: nothing
    of size n x M x outputs is formed. Differentiable once, in the weights too.

    Args:
        inputs: x, (n, inputs).
        weights: s, (n, M).
        first, first_bias, second, second_bias, table, rows, squared: as in :func:`expert_error`.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, first.shape[1], second.shape[2], table, rows)
    experts, _, hidden = first.shape
    vectors, shares = functional.pad(inputs.detach(), (0, 1), value=1.0), weights.detach()
    with torch.no_grad():
        layer1 = torch.cat([first, first_bias.unsqueeze(1)], dim=1).transpose(0, 1).flatten(1)
        layer2, bias2 = second.detach().flatten(0, 1), second_bias.detach()
    total = vectors.new_zeros(())
    vector_gradient, share_gradient = torch.empty_like(vectors), torch.empty_like(shares)
    layer1_gradient, layer2_gradient = torch.zeros_like(layer1), torch.zeros_like(layer2)
    bias2_gradient = torch.zeros_like(bias2)
    buffers = [vectors.new_empty(min(MIXTURE_BLOCK, len(vectors)), experts * hidden) for _ in range(3)]
    for block in _blocks(len(vectors), MIXTURE_BLOCK):
        x, s = vectors[block], shares[block]
        spread, weighted, back = (buffer[: len(x)] for buffer in buffers)
        by_expert = [matrix.view(len(x), experts, hidden) for matrix in (spread, weighted, back)]
        torch.mm(x, layer1, out=spread).relu_()
        torch.mul(by_expert[0], s.unsqueeze(2), out=by_expert[1])
        difference = torch.addmm(s @ bias2, weighted, layer2).sub_(_targets(table, rows[block], x))
        total += _error_(difference, squared)
        layer2_gradient.addmm_(weighted.t(), difference)
        bias2_gradient.addmm_(s.t(), difference)
        torch.mm(difference, layer2.t(), out=back)
        torch.mul(back, spread, out=weighted)
        torch.addmm(by_expert[1].sum(2), difference, bias2.t(), out=share_gradient[block])
        by_expert[2].mul_(s.unsqueeze(2))
        back = _through_relu(back, spread)
        layer1_gradient.addmm_(x.t(), back)
        torch.mm(back, layer1.t(), out=vector_gradient[block])
    layer1_gradient = layer1_gradient.view(-1, experts, hidden).transpose(0, 1)
    return with_gradient(
        total,
        [inputs, weights, first, first_bias, second, second_bias],
        [
            vector_gradient[:, :-1],
            share_gradient,
            layer1_gradient[:, :-1],
            layer1_gradient[:, -1],
            layer2_gradient.view_as(second),
            bias2_gradient,
        ],
    )


def cosine_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - cos(p, t) of each row: (n, d), (n, d) -> (n,), in [0, 2]. Entry: a node. A vector of zeros has cosine 0.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted vectors are {tuple(predicted.shape)} and targets {tuple(target.shape)}")
    return 1 - functional.cosine_similarity(predicted, target.detach(), dim=1)


def mean_over_nodes(totals: list[Tensor], nodes: int) -> Tensor:
    """The mean over `nodes` entries whose sums on each side are `totals`, so that each node counts the same."""
    return torch.stack(totals).sum() / max(1, nodes)


def _error_(difference: Tensor, squared: bool) -> Tensor:
    """The sum over rows of ||d||^2, or of ||d||; `difference` itself becomes the gradient of that sum."""
    if squared:
        flat = difference.flatten()
        total = torch.dot(flat, flat)
        difference.mul_(2)
        return total
    norms = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    difference.div_(norms.clamp(min=torch.finfo(norms.dtype).tiny))
    return norms.sum()


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient of relu(x), given that of its output."""
    through: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0)
    return through


def _targets(table: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return table.index_select(0, rows).to(like)


def _blocks(count: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows from `start` on."""
    for first in range(start, start + count, size):
        yield slice(first, min(first + size, start + count))


def _check(inputs: Tensor, expected: int, outputs: int, table: Tensor, rows: Tensor) -> None:
    if inputs.shape[1] != expected or table.shape[1] != outputs or len(rows) != len(inputs):
        raise ValueError(
            f"inputs {tuple(inputs.shape)}, targets {tuple(rows.shape)} of a table {tuple(table.shape)} do not fit a "
            f"map from {expected} to {outputs}"
        )
