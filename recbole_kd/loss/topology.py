"""How the relations among a student's vectors differ from those among a teacher's: pairs and triplets of nodes.

Vectors are (n, d_s) of the student, through which gradient flows, and (n, d_t) of the teacher, constants. Rows are
distinct nodes. A vector of zeros has cosine 0 with everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.loss.contrastive import own_precision, with_gradient
from recbole_kd.loss.kernel.layout import GroupLayout

__all__ = ["Grouped", "all_pairs", "angles", "distances", "group_means", "group_pairs", "prototype_nodes", "unit"]

#: Cosines of pairs that are held at a time, for each of groups about as long.
BLOCK = 1 << 21


def all_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over ordered pairs a != b of (cos(s_a, s_b) - cos(t_a, t_b))^2 (FTD). Entry: a pair.

    No pair is formed. With S and T the normalised rows, the sum over all pairs of (SS' - TT')^2 is
    ||S'S||^2 - 2 ||S'T||^2 + ||T'T||^2, whose matrices are as small as the dimensions: time grows with n, not n^2. The
    three are of the size of a mean squared cosine, so a loss below 1e-7 is rounding, in float32, and may be negative.
    """
    _same_length(student, teacher)
    s, t = unit(student), unit(teacher.detach())
    loops = (s.square().sum(1) - t.square().sum(1)).square().sum()
    total = (s.t() @ s).square().sum() - 2 * (s.t() @ t).square().sum() + (t.t() @ t).square().sum() - loops
    return total / max(1, len(s) * (len(s) - 1))


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last dimension divided by their norms; those of length 0 stay as they are, gradient and all."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms.masked_fill(norms == 0, 1.0)


@dataclass(frozen=True, eq=False)
class Grouped:
    """Nodes by group, and groups by the lengths that batched products ask for.

    Attributes:
        layout: of the nodes' groups.
        student, teacher: (R, d_s), (R, d_t) vectors in that layout, zeros in its padding.
    """

    layout: GroupLayout
    student: Tensor
    teacher: Tensor

    @cached_property
    def units(self) -> Tensor:
        """The student's as unit vectors."""
        return unit(self.student)

    @cached_property
    def scale(self) -> Tensor:
        """(R, 1) what makes the teacher's unit vectors: scaling products costs less than scaling wide vectors.

        In float32 for lengths between 1e-18 and 1e18, whose squares are numbers.
        """
        norms = torch.linalg.vector_norm(self.teacher.detach(), dim=1, keepdim=True)
        return norms.reciprocal().masked_fill_(norms == 0, 0)


def group_pairs(sides: Sequence[Grouped]) -> Tensor:
    """Mean of (cos(s_a, s_b) - cos(t_a, t_b))^2 over ordered pairs of a group (HTD). Entry: a pair.

    Pairs are those a != b of one group whose teacher's cosine is positive; 0 where there is none. The gradient is taken
    with the value, a block of rows at a time. Differentiable once.

    Args:
        sides: users and items.
    """
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
            # Kept where the teacher's cosine is positive: the one pass that relu's derivative is.
            torch.ops.aten.threshold_backward.grad_input(difference, cosines, 0, grad_input=difference)
            flat = difference.flatten()
            total += torch.dot(flat, flat)
            pairs += torch.count_nonzero(cosines > 0)
            # A pair is met from both of its ends, each time with half of the gradient.
            gradient_r[:, rows] = torch.bmm(difference, s_r)
    return with_gradient(total, [side.units], [gradient.mul_(4)]), pairs


def group_means(sides: Sequence[Grouped]) -> tuple[Tensor, Tensor]:
    """The mean of each group that has nodes, without gradient: (groups with nodes, d_s), (groups with nodes, d_t)."""
    student = torch.cat([side.layout.means(side.student.detach()) for side in sides])
    teacher = torch.cat([side.layout.means(side.teacher.detach()) for side in sides])
    return student, teacher


def prototype_nodes(sides: Sequence[Grouped], student_prototypes: Tensor, teacher_prototypes: Tensor) -> Tensor:
    """Mean of (cos(s_a, p_s) - cos(t_a, p_t))^2 over nodes and prototypes (HTD, second variant). Entry: such a pair.

    Args:
        sides: users and items. Vectors of the padding are 0, and so is what they add.
        student_prototypes, teacher_prototypes: (K, d_s), (K, d_t) unit vectors, constants.
    """
    total = student_prototypes.new_zeros(())
    for side in sides:
        targets = (side.teacher.detach() @ teacher_prototypes.t()).mul_(side.scale)
        found = side.units @ student_prototypes.detach().t()
        total = total + functional.mse_loss(found, targets, reduction="sum")
    return total / max(1, sum(side.layout.nodes for side in sides) * len(student_prototypes))


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D (eq. 5-7): Huber loss between distances divided by their mean, mean over ordered pairs. Entry: a pair.

    Args:
        student, teacher: (n, d_s), (n, d_t). Forms (n, n) distances.
    """
    _same_length(student, teacher)
    of_student, of_teacher = _relative_distances(student), _relative_distances(teacher.detach())
    return functional.smooth_l1_loss(of_student, of_teacher, reduction="sum") / max(1, len(of_student))


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A (eq. 8-9): Huber loss between the cosines of angles, mean over ordered triplets. Entry: a triplet.

    The angle of three different nodes (a, b, c) is the one at b; where b is the same point as another, its cosine is 0.

    Args:
        student, teacher: (n, d_s), (n, d_t). Forms (n, n, n) cosines and (n, n, d) directions.
    """
    _same_length(student, teacher)
    # Where two of the nodes are the same one, both cosines are 0: no part of the sum.
    total = functional.smooth_l1_loss(_angle_cosines(student), _angle_cosines(teacher.detach()), reduction="sum")
    nodes = len(student)
    return total / max(1, nodes * (nodes - 1) * (nodes - 2))


def _relative_distances(vectors: Tensor) -> Tensor:
    """(n (n - 1) / 2,) distances of the pairs divided by their mean; each stands for both orders of its pair."""
    between = functional.pdist(vectors)
    mean = between.sum() / max(1, len(between))
    return between / mean.masked_fill(mean == 0, 1.0)


def _angle_cosines(vectors: Tensor) -> Tensor:
    """(n, n, n): entry (b, a, c) is the cosine of the angle at b between the directions to a and to c."""
    directions = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))
    cosines = directions @ directions.transpose(1, 2)
    # a and c are the same node: its cosine would be 0 where it is also the same point as b, else 1.
    cosines.diagonal(dim1=1, dim2=2).zero_()
    return cosines


def _same_length(student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"the student has {len(student)} vectors and the teacher {len(teacher)}")
