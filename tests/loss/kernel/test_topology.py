"""Relations among nodes without pairs in memory against the formulas: the same values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss import topology as formula
from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel import layout
from recbole_kd.loss.kernel import topology as kernel
from recbole_kd.loss.kernel.layout import Grouped, GroupLayout
from recbole_kd.loss.kernel.topology import all_pairs, group_means, group_pairs, prototype_nodes
from tests.loss.same import assert_same, draw


def grouped(student: Tensor, teacher: Tensor, groups: list[int], count: int) -> Grouped:
    """Vectors with the group of each, `count` groups in all."""
    found = GroupLayout(torch.tensor(groups, dtype=torch.long), count)
    return Grouped(found, found.padded(student), found.padded(teacher))


groups = st.lists(st.integers(0, 6), min_size=1, max_size=9)
seeds = st.integers(0, 1000)


def sides_of(users: list[int], items: list[int], student: Tensor, teacher: Tensor) -> list[Grouped]:
    cut = len(users)
    return [grouped(student[:cut], teacher[:cut], users, 7), grouped(student[cut:], teacher[cut:], items, 7)]


def drawn(seed: int, count: int, empty: int) -> tuple[Tensor, Tensor]:
    """Vectors of student and teacher, one row of each student's zeros where `empty` points to one."""
    student, teacher = draw(seed, count, 3), draw(seed + 1, count, 5).detach()
    student.data[empty % count] *= empty % 2
    return student, teacher


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), seeds)
def test_all_pairs(count: int, seed: int) -> None:
    student, teacher = drawn(seed, count, seed)
    assert_same(kernel.all_pairs(student, teacher), formula.all_pairs(student, teacher), [student])
    assert_same(kernel.products_error(student, teacher), formula.products_error(student, teacher), [student])


@settings(max_examples=40, deadline=None)
@given(groups, groups, seeds, st.integers(1, 40))
def test_group_pairs(users: list[int], items: list[int], seed: int, block: int) -> None:
    student, teacher = drawn(seed, len(users) + len(items), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "BLOCK", block)
        patch.setattr(layout, "SHORT", 1)
        sides = sides_of(users, items, student, teacher)
        found = kernel.group_pairs(sides)
    assert_same(found, formula.group_pairs(sides), [student])


@settings(max_examples=20, deadline=None)
@given(groups, groups, seeds)
def test_group_means(users: list[int], items: list[int], seed: int) -> None:
    sides = sides_of(users, items, *drawn(seed, len(users) + len(items), seed))
    for found, expected in zip(kernel.group_means(sides), formula.group_means(sides)):
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad


@settings(max_examples=20, deadline=None)
@given(groups, groups, st.integers(1, 3), seeds)
def test_prototype_nodes(users: list[int], items: list[int], number: int, seed: int) -> None:
    student, teacher = drawn(seed, len(users) + len(items), seed)
    sides = sides_of(users, items, student, teacher)
    prototypes = unit(draw(seed + 2, number, 3).detach()), unit(draw(seed + 3, number, 5).detach())
    found, expected = kernel.prototype_nodes(sides, *prototypes), formula.prototype_nodes(sides, *prototypes)
    assert_same(found, expected, [student])


def test_all_pairs_in_float32_is_exact_to_rounding_where_both_agree() -> None:
    vectors = torch.randn(3000, 20, generator=torch.Generator().manual_seed(0))
    assert abs(all_pairs(vectors, vectors).item()) < 1e-7


def test_group_means_skip_groups_without_nodes_and_carry_no_gradient() -> None:
    vectors = torch.tensor([[1.0, 2], [5, 6], [3, 4]], requires_grad=True)
    student, teacher = group_means([grouped(vectors, vectors.detach() * 2, [0, 2, 0], 3)])
    assert student.tolist() == [[2, 3], [5, 6]]
    assert teacher.tolist() == [[4, 6], [10, 12]]
    assert not student.requires_grad


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e4, 1e9])
def test_extreme_and_equal_vectors_have_finite_losses_and_gradients(scale: float) -> None:
    student = (scale * torch.ones(4, 3)).requires_grad_()
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    losses = [all_pairs(student, teacher)]
    sides = [grouped(student, teacher, [0] * 4, 1)]
    losses += [group_pairs(sides), prototype_nodes(sides, torch.zeros(2, 3), torch.zeros(2, 5))]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_no_more_than_one_node_is_no_relation() -> None:
    one = torch.ones(1, 3, requires_grad=True)
    for loss in (all_pairs(one, one), group_pairs([grouped(one, one, [0], 1)])):
        assert loss.item() == 0


def test_as_many_vectors_of_either_are_expected() -> None:
    with pytest.raises(ValueError, match="3 vectors and the teacher 2"):
        all_pairs(torch.ones(3, 2), torch.ones(2, 2))
