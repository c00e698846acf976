"""HTD: groups from the teacher, the topology inside and between them, and the experts' reconstruction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.htd import HTDDistiller, HTDOptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)


def build(**values: Any) -> tuple[HTDDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3, poisoned=True), FakeTeacher(USERS, ITEMS, 5, poisoned=True)
    options = HTDOptions(**{"weight": 1.0, "alpha": 0.5, "experts": 2, **values})
    distiller = HTDDistiller(options, student, teacher, DATA)
    distiller.begin_epoch(DATA.epochs)  # one-hot, so that a group is what one node's expert is
    return distiller, student, teacher


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def grouped(distiller: HTDDistiller, student: FakeStudent, teacher: FakeTeacher, batch: Batch) -> list[Any]:
    """(group, student vector, teacher vector, expert's output) of every node; groups drawn as the distiller draws."""
    nodes = []
    for offset, side, table, targets, ids in (
        (0, distiller.users, student.user_table, teacher.user_embeddings(), batch.distinct_users),
        (2, distiller.items, student.item_table, teacher.item_embeddings(), batch.distinct_items),
    ):
        uniform = torch.rand(len(ids), generator=distiller.generator, dtype=torch.float64)
        for draw, node in zip(uniform, ids.tolist()):
            alpha = torch.softmax(side.selection.network(targets[node]), 0)
            group, experts = int(draw > alpha[0]), side.experts
            hidden = torch.relu(table[node] @ experts.first[group] + experts.first_bias[group])
            mapped = hidden @ experts.second[group] + experts.second_bias[group]
            nodes.append((offset + group, table[node], targets[node], mapped))
    return nodes


def reference(nodes: list[Any], variant: str) -> tuple[Tensor, Tensor]:
    """(topology, assignment), pair by pair."""
    inside = [
        (cosine(a[1], b[1]) - cosine(a[2], b[2])) ** 2
        for a, b in itertools.permutations(nodes, 2)
        if a[0] == b[0] and cosine(a[2], b[2]) > 0
    ]
    groups = sorted({node[0] for node in nodes})
    prototypes = []
    for group in groups:
        members = [node for node in nodes if node[0] == group]
        prototypes.append([torch.stack([node[which].detach() for node in members]).mean(0) for which in (1, 2)])
    if variant == "first":
        pairs = itertools.permutations(prototypes, 2)
        between = [(cosine(p[0], q[0]) - cosine(p[1], q[1])) ** 2 for p, q in pairs]
    else:
        mixed = itertools.product(nodes, prototypes)
        between = [(cosine(n[1], p[0]) - cosine(n[2], p[1])) ** 2 for n, p in mixed]
    assignment = torch.stack([((node[3] - node[2]) ** 2).sum() for node in nodes]).mean()
    return torch.stack(inside).mean() + torch.stack(between).mean(), assignment


@pytest.mark.parametrize("variant", ["first", "second"])
def test_loss_and_gradients_are_those_of_the_paper(variant: str) -> None:
    distiller, student, teacher = build(variant=variant, weight=0.7, alpha=0.2)
    batch = batch_of(DATA, 8, negatives=True)
    state = distiller.get_extra_state()
    found = distiller(batch)
    distiller.set_extra_state(state)
    topology, assignment = reference(grouped(distiller, student, teacher, batch), variant)
    torch.testing.assert_close(found["topology"], 0.7 * 0.2 * topology)
    torch.testing.assert_close(found["assignment"], 0.7 * 0.8 * assignment)
    tables = [student.user_table, student.item_table]
    expected = torch.autograd.grad(0.7 * 0.2 * topology + 0.7 * 0.8 * assignment, tables)
    for one, other in zip(torch.autograd.grad(found["topology"] + found["assignment"], tables), expected):
        torch.testing.assert_close(one, other)


def test_groups_carry_no_gradient() -> None:
    """While the selection is still soft, only the reconstruction trains the network that makes the groups."""
    distiller, _, _ = build()
    distiller.begin_epoch(0)
    losses = distiller(batch_of(DATA, 8))
    network = distiller.users.selection.network.weight
    assert torch.autograd.grad(losses["topology"], network, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(losses["assignment"], network)[0].abs().sum() > 0


def test_a_batch_twice_over_has_the_same_losses() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    state = distiller.get_extra_state()
    once = distiller(batch)
    distiller.set_extra_state(state)
    twice = distiller(Batch(batch.users.repeat(2), batch.items.repeat(2)))
    for name in once:
        torch.testing.assert_close(once[name], twice[name])


def test_more_groups_than_nodes_leave_some_empty_and_finite() -> None:
    distiller, _, _ = build(experts=50)
    for loss in distiller(batch_of(DATA, 3)).values():
        assert torch.isfinite(loss)


def test_the_temperature_is_annealed() -> None:
    distiller, _, _ = build(temperature=0.1, end_temperature=1e-3)
    distiller.begin_epoch(DATA.epochs // 2)
    assert distiller.items.selection.temperature == pytest.approx(1e-2)


@pytest.mark.parametrize("values", [{"experts": 0}, {"alpha": 1.5}, {"variant": "third"}, {"temperature": 0}])
def test_wrong_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"htd.{next(iter(values))}"):
        HTDOptions.parse("htd", values)
