"""Relations among nodes, without autograd's (n, n) matrices. The formulas are in ``loss/topology.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.loss.common import same_length, sum_of_squares, unit
from recbole_kd.loss.kernel.autograd import own_precision, with_gradient
from recbole_kd.loss.kernel.layout import Grouped

__all__ = ["all_pairs", "group_means", "group_pairs", "products_error", "prototype_nodes"]

#: Cosines of pairs that are held at a time.
BLOCK = 1 << 21


def all_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over ordered pairs, without forming them.

    The terms of :func:`products_error` have the size of a mean squared cosine. So in float32 a loss below 1e-7 is
    rounding error, and may be negative.
    """
    same_length(student, teacher)
    s, t = unit(student), unit(teacher.detach())
    loops = (s.square().sum(1) - t.square().sum(1)).square().sum()
    return (products_error(s, t) - loops) / max(1, len(s) * (len(s) - 1))


def products_error(student: Tensor, teacher: Tensor) -> Tensor:
    """||SS' - TT'||^2, without forming the pairs.

    It is ||S'S||^2 - 2 ||S'T||^2 + ||T'T||^2. These matrices have the size of the dimensions, so time grows with n, not
    n^2.
    """
    same_length(student, teacher)
    s, t = student, teacher.detach()
    return (s.t() @ s).square().sum() - 2 * (s.t() @ t).square().sum() + (t.t() @ t).square().sum()


def group_pairs(sides: Sequence[Grouped]) -> Tensor:
    """Mean over the pairs inside groups. Value and gradient are computed together, a block of rows at a time."""
    totals, pairs = zip(*map(_pairs_within, sides))
    return torch.stack(totals).sum() / torch.stack(pairs).sum().clamp(min=1)


@own_precision
def _pairs_within(side: Grouped) -> tuple[Tensor, Tensor]:
    """The sum over the pairs of a side, and their number."""
    s, t = side.units.detach(), side.teacher.detach()
    gradient, total, pairs = torch.empty_like(s), s.new_zeros(()), s.new_zeros((), dtype=torch.long)
    for run in side.layout.runs:
        s_r, t_r, scale_r, gradient_r = map(run.nodes, (s, t, side.scale, gradient))
        step = max(1, BLOCK // (run.count * run.length))
        for first in range(0, run.length, step):
            rows = slice(first, first + step)
            cosines = torch.bmm(t_r[:, rows], t_r.transpose(1, 2))
            cosines.mul_(scale_r[:, rows]).mul_(scale_r.transpose(1, 2))
            cosines.diagonal(first, 1, 2).zero_()
            difference = torch.baddbmm(cosines, s_r[:, rows], s_r.transpose(1, 2), beta=-1)
            # Keeps pairs with a positive cosine of the teacher; relu's derivative does it in one pass.
            torch.ops.aten.threshold_backward.grad_input(difference, cosines, 0, grad_input=difference)
            total += sum_of_squares(difference)
            pairs += torch.count_nonzero(cosines > 0)
            # A pair occurs in both orders, each with half of the gradient.
            gradient_r[:, rows] = torch.bmm(difference, s_r)
    return with_gradient(total, [side.units], [gradient.mul_(4)]), pairs


def group_means(sides: Sequence[Grouped]) -> tuple[Tensor, Tensor]:
    """The means of the groups that are not empty, by the batches of the layout."""
    student = torch.cat([side.layout.means(side.student.detach()) for side in sides])
    teacher = torch.cat([side.layout.means(side.teacher.detach()) for side in sides])
    return student, teacher


def prototype_nodes(sides: Sequence[Grouped], student_prototypes: Tensor, teacher_prototypes: Tensor) -> Tensor:
    """Mean over nodes and prototypes. Padding vectors are 0 and add 0."""
    total = student_prototypes.new_zeros(())
    for side in sides:
        targets = (side.teacher.detach() @ teacher_prototypes.t()).mul_(side.scale)
        found = side.units @ student_prototypes.detach().t()
        total = total + functional.mse_loss(found, targets, reduction="sum")
    return total / max(1, sum(side.layout.nodes for side in sides) * len(student_prototypes))
