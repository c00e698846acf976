"""Differences between the relations of nodes (pairs, triplets) in the student's and in the teacher's vectors.

These are the formulas. Training uses ``kernel/topology.py``. RKD's :func:`distances` and :func:`angles` have no kernel;
training uses them directly.

The student's vectors (n, d_s) have gradient, the teacher's (n, d_t) are constants. Rows are distinct nodes. A vector of
zeros has cosine 0 with every vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.loss.common import mean_over_entries, same_length, unit
from recbole_kd.loss.kernel.layout import Grouped

__all__ = ["all_pairs", "angles", "distances", "group_means", "group_pairs", "products_error", "prototype_nodes"]


def all_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over ordered pairs a != b of (cos(s_a, s_b) - cos(t_a, t_b))^2 (FTD). Entry: a pair.

    Raises:
        ValueError: student and teacher have different numbers of vectors.
    """
    same_length(student, teacher)
    different = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    return mean_over_entries((_cosines(student) - _cosines(teacher.detach())).square(), different)


def products_error(student: Tensor, teacher: Tensor) -> Tensor:
    """||SS' - TT'||^2, the sum over ordered pairs, also of a node with itself, of (s_a·s_b - t_a·t_b)^2 (FreqD).

    Raises:
        ValueError: student and teacher have different numbers of vectors.
    """
    same_length(student, teacher)
    return (student @ student.t() - teacher.detach() @ teacher.detach().t()).square().sum()


def group_pairs(sides: Sequence[Grouped]) -> Tensor:
    """Mean of (cos(s_a, s_b) - cos(t_a, t_b))^2 over ordered pairs of a group (HTD). Entry: a pair.

    Only pairs a != b in one group with a positive cosine of the teacher count. The mean over no pairs is 0.

    Args:
        sides: users and items, with separate groups.
    """
    differences, pairs = [], []
    for side in sides:
        student, teacher, groups = _nodes(side)
        cosines = _cosines(teacher)
        together = (groups.unsqueeze(0) == groups.unsqueeze(1)).fill_diagonal_(False)
        differences.append((_cosines(student) - cosines).square().flatten())
        pairs.append((together & (cosines > 0)).flatten())
    return mean_over_entries(torch.cat(differences), torch.cat(pairs))


def group_means(sides: Sequence[Grouped]) -> tuple[Tensor, Tensor]:
    """The means of the groups that are not empty, without gradient: (groups, d_s), (groups, d_t)."""
    means: tuple[list[Tensor], list[Tensor]] = ([], [])
    for side in sides:
        *vectors, groups = _nodes(side)
        for group in groups.unique():
            for found, of_nodes in zip(means, vectors):
                found.append(of_nodes.detach()[groups == group].mean(0))
    return torch.stack(means[0]), torch.stack(means[1])


def prototype_nodes(sides: Sequence[Grouped], student_prototypes: Tensor, teacher_prototypes: Tensor) -> Tensor:
    """Mean of (cos(s_a, p_s) - cos(t_a, p_t))^2 over nodes and prototypes (HTD, second variant). Entry: such a pair.

    Args:
        sides: users and items.
        student_prototypes, teacher_prototypes: (K, d_s), (K, d_t) unit vectors, constants.
    """
    student, teacher = (torch.cat(vectors) for vectors in list(zip(*map(_nodes, sides)))[:2])
    difference = unit(student) @ student_prototypes.detach().t() - unit(teacher) @ teacher_prototypes.t()
    return mean_over_entries(difference.square())


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D (eq. 5-7): Huber loss between distances divided by their mean, mean over ordered pairs. Entry: a pair.

    Args:
        student, teacher: (n, d_s), (n, d_t). Forms (n, n) distances.

    Raises:
        ValueError: student and teacher have different numbers of vectors.
    """
    same_length(student, teacher)
    of_student, of_teacher = _relative_distances(student), _relative_distances(teacher.detach())
    return functional.smooth_l1_loss(of_student, of_teacher, reduction="sum") / max(1, len(of_student))


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A (eq. 8-9): Huber loss between the cosines of angles, mean over ordered triplets. Entry: a triplet.

    The angle of three different nodes (a, b, c) is the one at b. If b is at the same point as a or c, its cosine is 0.

    Args:
        student, teacher: (n, d_s), (n, d_t). Forms (n, n, n) cosines and (n, n, d) directions.

    Raises:
        ValueError: student and teacher have different numbers of vectors.
    """
    same_length(student, teacher)
    # If two of the three nodes are the same node, both cosines are 0 and add nothing.
    total = functional.smooth_l1_loss(_angle_cosines(student), _angle_cosines(teacher.detach()), reduction="sum")
    nodes = len(student)
    return total / max(1, nodes * (nodes - 1) * (nodes - 2))


def _cosines(vectors: Tensor) -> Tensor:
    """(n, d) -> (n, n)."""
    directions = unit(vectors)
    return directions @ directions.t()


def _nodes(side: Grouped) -> tuple[Tensor, Tensor, Tensor]:
    """A side without padding: the student's vectors, the teacher's vectors, and the group of each node."""
    layout = side.layout
    return layout.unpadded(side.student), layout.unpadded(side.teacher.detach()), layout.groups


def _relative_distances(vectors: Tensor) -> Tensor:
    """(n (n - 1) / 2,) distances of the unordered pairs, divided by their mean."""
    between = functional.pdist(vectors)
    mean = between.sum() / max(1, len(between))
    return between / mean.masked_fill(mean == 0, 1.0)


def _angle_cosines(vectors: Tensor) -> Tensor:
    """(n, n, n): entry (b, a, c) is the cosine of the angle at b between the directions to a and to c."""
    directions = unit(vectors.unsqueeze(0) - vectors.unsqueeze(1))
    cosines = directions @ directions.transpose(1, 2)
    # Where a and c are the same node, the cosine would be 1, or 0 if that node is at the same point as b.
    cosines.diagonal(dim1=1, dim2=2).zero_()
    return cosines
