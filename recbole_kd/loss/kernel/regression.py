"""Distances of projected vectors from their targets; gradients are computed together with the values.

The formulas are in ``loss/regression.py``. Autograd would keep every (n, outputs) intermediate of a batch and read each
several times. Here one block of nodes, or one expert's nodes, is mapped, compared and differentiated while it is in
cache. Each loss is differentiable once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.loss.common import sum_of_squares
from recbole_kd.loss.kernel.autograd import own_precision, with_gradient
from recbole_kd.loss.kernel.layout import HIDDEN_BLOCK, GroupLayout, blocks
from recbole_kd.loss.kernel.precision import exact_products, factor_type

__all__ = ["expert_error", "layer_error", "linear_error", "mixture_error"]

#: Nodes in a block of a linear layer.
BLOCK = 2048
#: If MKL has no masked kernels (AMD's processors), a product over 21 columns takes 1.5 times as long as one over 24.
LANES = 8


@own_precision
def linear_error(inputs: Tensor, weight: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """sum_n ||W x_n - t_n||^2, by blocks of nodes.

    With G = W' W the gradient of x_n is 2 (G x_n - W' t_n), and that of W is 2 sum_n (W x_n - t_n) x_n'. So each
    target is in two products instead of three, and W x_n is not formed. The absolute error is the rounding error of
    sum_n ||t_n||^2, even if the result is much smaller.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, weight.shape[1], weight.shape[0], table, rows)
    width = inputs.shape[1]
    vectors, matrix = (functional.pad(each.detach(), (0, -width % LANES)) for each in (inputs, weight))
    total = vectors.new_zeros(())
    input_gradient, weight_gradient = torch.empty_like(vectors), (vectors.t() @ vectors) @ matrix.t()
    gram = matrix.t() @ matrix
    for block in blocks(len(vectors), BLOCK):
        x, targets, gradient = vectors[block], _targets(table, rows[block], vectors), input_gradient[block]
        across = targets @ matrix
        torch.mm(x, gram, out=gradient).sub_(across)
        total += sum_of_squares(targets) + (x * (gradient - across)).sum()
        _subtract_product_(weight_gradient, x, targets)
    gradients = [input_gradient[:, :width], weight_gradient[:width].t()]
    return 2 * with_gradient(total.clamp_(min=0) / 2, [inputs, weight], gradients)


@own_precision
def layer_error(
    inputs: Tensor, constant: Tensor, weight: Tensor, bias: Tensor, table: Tensor, rows: Tensor, distance: str
) -> Tensor:
    """sum_n distance(W x_n + c_n b, t_n), by blocks of nodes.

    With `product_precision("bf16")` the products' factors are rounded to bfloat16, and the results too where the kernel
    rounds (`factor_type`). So it is in all losses of this module but :func:`linear_error`. Sums over blocks, the loss
    and the gradients are in the inputs' type.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, weight.shape[1], weight.shape[0], table, rows)
    vectors, w, b, constant = inputs.detach(), weight.detach(), bias.detach(), constant.detach().unsqueeze(1)
    total, input_gradient = vectors.new_zeros(()), torch.empty_like(vectors)
    weight_gradient, bias_gradient = torch.zeros_like(w), torch.zeros_like(b)
    factors = factor_type(vectors)
    w = w.to(factors)
    for block in blocks(len(vectors), HIDDEN_BLOCK):
        x = vectors[block].to(factors)
        predicted = _plus_product(constant[block] * b, x, w.t())
        error, difference = _distances_(predicted, _targets(table, rows[block], vectors), distance)
        total += error
        bias_gradient.addmv_(difference.t(), constant[block].squeeze(1))
        difference = difference.to(factors)
        _add_product_(weight_gradient, difference.t(), x)
        _product(difference, w, input_gradient[block])
    return with_gradient(total, [inputs, weight, bias], [input_gradient, weight_gradient, bias_gradient])


@own_precision
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
    """sum_n ||E_m(x_n) - t_n||^2 with one expert m for each node; it costs one expert, whatever their number.

    Nodes are ordered by expert, and experts with similar numbers of nodes share a batched product.

    Raises:
        ValueError: the shapes do not fit.
    """
    w1, b1, w2, b2 = (parameter.detach() for parameter in (first, first_bias, second, second_bias))
    if inputs.shape != (layout.nodes, w1.shape[1]) or targets.shape != (layout.rows, w2.shape[2]):
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} do not fit a map from {w1.shape[1]} to "
            f"{w2.shape[2]} of {layout.nodes} nodes in {layout.rows} rows"
        )
    targets = targets.to(inputs)
    difference, gradients = torch.empty_like(targets), [torch.empty_like(each) for each in (w1, b1, w2, b2)]
    factors = factor_type(inputs)
    x, w2 = layout.padded(inputs.detach()), w2.to(factors)
    hidden, input_gradient = w2.new_empty(len(x), w1.shape[2]), torch.empty_like(x)
    for run in layout.runs:
        x_r, hidden_r, targets_r, difference_r = map(run.nodes, (x, hidden, targets, difference))
        w1_r, b1_r, w2_r, b2_r = map(run.groups, (w1, b1, w2, b2))
        own = hidden_r if hidden.dtype == x.dtype else None  # copied only if rounded
        with exact_products():
            hidden_r.copy_(torch.baddbmm(b1_r.unsqueeze(1), x_r, w1_r, out=own).relu_())
        torch.sub(b2_r.unsqueeze(1), targets_r, out=difference_r)
        _add_product_(difference_r, hidden_r, w2_r)
    layout.blank_(difference)
    total, factor = _error_(difference, squared)
    for run in layout.runs:
        x_r, hidden_r, difference_r, to_x = map(run.nodes, (x, hidden, difference, input_gradient))
        w1_r, w2_r, to_w1, to_b1, to_w2, to_b2 = map(run.groups, (w1, w2, *gradients))
        right = difference_r.to(factors)
        _product(hidden_r.transpose(1, 2), right, to_w2)
        torch.sum(difference_r, 1, out=to_b2)
        back = _through_relu_(right @ w2_r.transpose(1, 2), hidden_r).to(x)
        torch.sum(back, 1, out=to_b1)
        with exact_products():
            torch.bmm(x_r.transpose(1, 2), back, out=to_w1)
            torch.bmm(back, w1_r.transpose(1, 2), out=to_x)
    parameters = [first, first_bias, second, second_bias]
    return factor * with_gradient(total / factor, [inputs, *parameters], [layout.unpadded(input_gradient), *gradients])


@own_precision
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
    """sum_n ||sum_m s_nm E_m(x_n) - t_n||^2, by blocks of nodes.

    The second layer is linear, so the weights multiply the hidden layer and one product sums over the experts. Nothing
    of size n x M x outputs is formed.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(inputs, first.shape[1], second.shape[2], table, rows)
    experts, _, hidden = first.shape
    vectors, shares = functional.pad(inputs.detach(), (0, 1), value=1.0), weights.detach()
    with torch.no_grad():
        layer1 = torch.cat([first, first_bias.unsqueeze(1)], dim=1).transpose(0, 1).flatten(1)
        layer2, bias2 = second.detach().flatten(0, 1), second_bias.detach()
    total, factor = vectors.new_zeros(()), 1
    vector_gradient, share_gradient = torch.empty_like(vectors), torch.empty_like(shares)
    layer1_gradient, layer2_gradient = torch.zeros_like(layer1), torch.zeros_like(layer2)
    factors = factor_type(vectors)
    layer2 = layer2.to(factors)
    bias2_gradient = torch.zeros_like(bias2)
    buffers = [vectors.new_empty(min(HIDDEN_BLOCK, len(vectors)), experts * hidden) for _ in range(3)]
    for block in blocks(len(vectors), HIDDEN_BLOCK):
        x, s = vectors[block], shares[block]
        spread, weighted, back = (buffer[: len(x)] for buffer in buffers)
        by_expert = [matrix.view(len(x), experts, hidden) for matrix in (spread, weighted, back)]
        with exact_products():
            torch.mm(x, layer1, out=spread).relu_()
        torch.mul(by_expert[0], s.unsqueeze(2), out=by_expert[1])
        left = weighted.to(factors)
        difference = _plus_product(s @ bias2, left, layer2).sub_(_targets(table, rows[block], x))
        error, factor = _error_(difference, squared)
        total += error
        right = difference.to(factors)
        _add_product_(layer2_gradient, left.t(), right)
        bias2_gradient.addmm_(s.t(), difference)
        _product(right, layer2.t(), back)
        torch.mul(back, spread, out=weighted)
        torch.addmm(by_expert[1].sum(2), difference, bias2.t(), out=share_gradient[block])
        by_expert[2].mul_(s.unsqueeze(2))
        back = _through_relu_(back, spread)
        with exact_products():
            layer1_gradient.addmm_(x.t(), back)
            torch.mm(back, layer1.t(), out=vector_gradient[block])
    layer1_gradient = layer1_gradient.view(-1, experts, hidden).transpose(0, 1)
    return factor * with_gradient(
        total / factor,
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


def _subtract_product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out -= left' right, (n, a) and (n, b). Each thread multiplies an equal part of the n rows.

    These are the rows that it gathered. A single product would be divided by columns, so that each thread would fetch
    half of its rows from the other's cache, and give them back for the next gather: with two threads that takes longer
    than the product.
    """
    parts = torch.get_num_threads() if left.device.type == "cpu" else 1
    each = len(left) // parts
    if parts > 1 and each:
        lefts, rights = (rows[: parts * each].view(parts, each, -1) for rows in (left, right))
        out.sub_(torch.bmm(lefts.transpose(1, 2), rights).sum(0))
        left, right = left[parts * each :], right[parts * each :]
    if len(left):
        out.addmm_(left.t(), right, alpha=-1)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left right, also batched. Factors of another type than `out` have a result of theirs."""
    if left.dtype == out.dtype:
        torch.matmul(left, right, out=out)
    else:
        out.copy_(left @ right)


def _add_product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left right, likewise."""
    if left.dtype != out.dtype:
        out.add_(left @ right)
    elif out.dim() == 2:
        out.addmm_(left, right)
    else:
        out.baddbmm_(left, right)


def _plus_product(values: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """values + left right, likewise, of matrices."""
    return torch.addmm(values, left, right) if left.dtype == values.dtype else values + left @ right


def _error_(difference: Tensor, squared: bool) -> tuple[Tensor, int]:
    """The sum over rows of ||d||^2, or of ||d||, and the factor that makes `difference` the gradient of it."""
    if squared:
        return sum_of_squares(difference), 2
    norms = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    difference.div_(norms.clamp(min=torch.finfo(norms.dtype).tiny))
    return norms.sum(), 1


def _distances_(predicted: Tensor, targets: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """The sum over rows of the distances, and its gradient for `predicted`, in the place of `predicted`."""
    if distance == "squared":
        error, factor = _error_(predicted.sub_(targets), squared=True)
        return error, predicted.mul_(factor)
    lengths, of_targets = (torch.linalg.vector_norm(each, dim=1, keepdim=True) for each in (predicted, targets))
    lengths, of_targets = (each.masked_fill_(each == 0, 1) for each in (lengths, of_targets))
    inverse = 1 / (lengths * of_targets)
    cosines = (predicted * targets).sum(1, keepdim=True) * inverse
    predicted.mul_(cosines / lengths.square()).sub_(targets.mul_(inverse))
    return len(predicted) - cosines.sum(), predicted


def _through_relu_(gradient: Tensor, output: Tensor) -> Tensor:
    """Turns the gradient of relu's output into that of its input, in place."""
    through: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
    return through


def _targets(table: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return table.index_select(0, rows).to(like)


def _check(inputs: Tensor, expected: int, outputs: int, table: Tensor, rows: Tensor) -> None:
    if inputs.shape[1] != expected or table.shape[1] != outputs or len(rows) != len(inputs):
        raise ValueError(
            f"inputs {tuple(inputs.shape)}, targets {tuple(rows.shape)} of a table {tuple(table.shape)} do not fit a "
            f"map from {expected} to {outputs}"
        )
