"""Relations among nodes against loops over pairs and triplets, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel.layout import Grouped, GroupLayout
from recbole_kd.loss.topology import all_pairs, angles, distances, group_means, group_pairs, prototype_nodes
from tests.loss.same import assert_same, draw


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def huber(a: Tensor, b: Tensor) -> Tensor:
    difference = (a - b).abs()
    return 0.5 * difference**2 if difference <= 1 else difference - 0.5


def mean(entries: list[Tensor]) -> Tensor:
    return torch.stack(entries).mean() if entries else torch.zeros((), dtype=torch.float64)


def grouped(student: Tensor, teacher: Tensor, groups: list[int], count: int) -> Grouped:
    """Vectors with the group of each, `count` groups in all."""
    found = GroupLayout(torch.tensor(groups, dtype=torch.long), count)
    return Grouped(found, found.padded(student), found.padded(teacher))


sizes = st.integers(3, 8)
seeds = st.integers(0, 1000)


@settings(max_examples=20, deadline=None)
@given(sizes, seeds)
def test_all_pairs_is_the_mean_over_pairs_of_different_nodes(count: int, seed: int) -> None:
    s, t = draw(seed, count, 3), draw(seed + 1, count, 5).detach()
    pairs = itertools.permutations(range(count), 2)
    expected = mean([(cosine(s[a], s[b]) - cosine(t[a], t[b])) ** 2 for a, b in pairs])
    assert_same(all_pairs(s, t), expected, [s])


def test_all_pairs_counts_a_vector_of_zeros_as_unlike_everything() -> None:
    s, t = torch.tensor([[1.0, 0], [1, 0], [0, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    # Pairs (0, 1): 1 and 1. Pairs with 2: 0 in the student, 1 in the teacher; four of the six ordered pairs.
    torch.testing.assert_close(all_pairs(s, t), torch.tensor(4 / 6))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=9),
    seeds,
)
def test_group_pairs_stay_inside_groups_and_follow_the_teachers_likes(
    users: list[int], items: list[int], seed: int
) -> None:
    """Users and items have groups of their own; entries of both are one mean, whatever the order of the nodes."""
    raw, t = draw(seed, len(users) + len(items), 3), draw(seed + 1, len(users) + len(items), 5).detach()
    group_of = users + [7 + group for group in items]
    entries = [
        (cosine(raw[a], raw[b]) - cosine(t[a], t[b])) ** 2
        for a, b in itertools.permutations(range(len(group_of)), 2)
        if group_of[a] == group_of[b] and cosine(t[a], t[b]) > 0
    ]
    cut = len(users)
    sides = [grouped(raw[:cut], t[:cut], users, 7), grouped(raw[cut:], t[cut:], items, 4)]
    assert_same(group_pairs(sides), mean(entries), [raw])


def test_nodes_that_the_teacher_finds_unlike_are_no_pair() -> None:
    """Of three nodes the teacher likes one pair, whose cosines are 1 and 0; the third is at a right angle to both."""
    student = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    teacher = torch.tensor([[2.0, 0], [3, 0], [0, 1]])
    torch.testing.assert_close(group_pairs([grouped(student, teacher, [0, 0, 0], 1)]), torch.tensor(1.0))


def test_group_means_skip_groups_without_nodes_and_carry_no_gradient() -> None:
    vectors = torch.tensor([[1.0, 2], [5, 6], [3, 4]], requires_grad=True)
    student, teacher = group_means([grouped(vectors, vectors.detach() * 2, [0, 2, 0], 3)])
    assert student.tolist() == [[2, 3], [5, 6]]
    assert teacher.tolist() == [[4, 6], [10, 12]]
    assert not student.requires_grad


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(1, 3), seeds)
def test_prototype_nodes_is_the_mean_over_nodes_and_prototypes(count: int, number: int, seed: int) -> None:
    s, t = draw(seed, count, 3), draw(seed + 1, count, 5).detach()
    p, q = draw(seed + 2, number, 3).detach(), draw(seed + 3, number, 5).detach()
    pairs = itertools.product(range(count), range(number))
    expected = mean([(cosine(s[a], p[k]) - cosine(t[a], q[k])) ** 2 for a, k in pairs])
    sides = [grouped(s[:2], t[:2], [1, 0], 2), grouped(s[2:], t[2:], [0] * (count - 2), 2)]
    assert_same(prototype_nodes(sides, unit(p), unit(q)), expected, [s])


@settings(max_examples=20, deadline=None)
@given(sizes, seeds)
def test_distances_are_relative_to_their_mean(count: int, seed: int) -> None:
    s, t = draw(seed, count, 3), draw(seed + 1, count, 5).detach()
    pairs = list(itertools.permutations(range(count), 2))
    mean_s, mean_t = (mean([(x[a] - x[b]).norm() for a, b in pairs]) for x in (s, t))
    expected = mean([huber((s[a] - s[b]).norm() / mean_s, (t[a] - t[b]).norm() / mean_t) for a, b in pairs])
    assert_same(distances(s, t), expected, [s])


@settings(max_examples=10, deadline=None)
@given(st.integers(3, 5), seeds)
def test_angles_are_those_at_the_middle_node(count: int, seed: int) -> None:
    s, t = draw(seed, count, 3), draw(seed + 1, count, 5).detach()
    triplets = itertools.permutations(range(count), 3)
    expected = mean([huber(cosine(s[a] - s[b], s[c] - s[b]), cosine(t[a] - t[b], t[c] - t[b])) for a, b, c in triplets])
    assert_same(angles(s, t), expected, [s])


def test_a_scaled_and_shifted_copy_has_the_same_distances_and_angles() -> None:
    t = draw(0, 7, 4).detach()
    assert distances(3 * t + 1, t).item() == pytest.approx(0, abs=1e-12)
    assert angles(3 * t + 1, t).item() == pytest.approx(0, abs=1e-12)


def test_a_triplet_has_three_nodes_also_where_two_of_them_are_one_point() -> None:
    t = draw(0, 4, 4).detach()
    s = torch.stack([t[0], t[0], t[2], t[3]])
    expected = mean(
        [
            huber(cosine(s[a] - s[b], s[c] - s[b]).nan_to_num(0), cosine(t[a] - t[b], t[c] - t[b]))
            for a, b, c in itertools.permutations(range(4), 3)
        ]
    )
    assert angles(s, t).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e4, 1e9])
def test_extreme_and_equal_vectors_have_finite_losses_and_gradients(scale: float) -> None:
    student = (scale * torch.ones(4, 3)).requires_grad_()
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    losses = [all_pairs(student, teacher), distances(student, teacher), angles(student, teacher)]
    sides = [grouped(student, teacher, [0] * 4, 1)]
    losses += [group_pairs(sides), prototype_nodes(sides, torch.zeros(2, 3), torch.zeros(2, 5))]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_no_more_than_one_node_is_no_relation() -> None:
    one = torch.ones(1, 3, requires_grad=True)
    for loss in (all_pairs(one, one), distances(one, one), angles(one, one), group_pairs([grouped(one, one, [0], 1)])):
        assert loss.item() == 0


def test_as_many_vectors_of_either_are_expected() -> None:
    for loss in (all_pairs, distances, angles):
        with pytest.raises(ValueError, match="3 vectors and the teacher 2"):
            loss(torch.ones(3, 2), torch.ones(2, 2))
