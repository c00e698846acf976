"""Gradients by rows: those of a dense table, without the rows that nothing reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.kernel import gather
from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.loss.kernel.rows import (
    by_rows,
    distinct_rows,
    mark_by_rows,
    remembers_rows,
    rows_at,
    rows_with_gradient,
)

USERS, ITEMS = torch.tensor([4, 2, 4]), torch.tensor([[1, 1, 5], [5, 3, 0], [6, 2, 1]])


def parameters(marked: bool) -> list[torch.nn.Embedding]:
    torch.manual_seed(0)
    drawn = [torch.nn.Embedding(rows, 3) for rows in (6, 40)]
    for table in drawn if marked else []:
        mark_by_rows(table, remembered=True)
    return drawn


def read_by(kind: str, marked: bool) -> list[Tensor]:
    """The tables after one backward pass."""
    tables = parameters(marked)
    users, items = (table.weight for table in tables)
    if kind == "vectors":
        (rows_at(users, USERS).square().sum() + rows_at(items, ITEMS[0]).square().sum()).backward()
    elif kind == "modules":
        (tables[0](USERS).square().sum() + tables[1](ITEMS).square().sum()).backward()
    elif kind == "several losses":
        whole = users.square().sum() + items.square().sum()
        rows = rows_at(users, USERS).sum() + gathered_dot(users, items, USERS, ITEMS).square().sum()
        (whole + rows + tables[1](ITEMS).square().sum()).backward()
    elif kind == "one list for all":
        gathered_dot(users, items, USERS, ITEMS[:1].expand(3, -1)).square().sum().backward()
    else:
        pairs = (USERS, ITEMS) if kind == "lists" else (USERS, ITEMS[:, 2])
        gathered_dot(users, items, *pairs).square().sum().backward()
    return [users, items]


def test_a_table_need_not_remember() -> None:
    """Lists are then added to the whole table."""
    users, items = parameters(True)
    mark_by_rows(items)
    gathered_dot(users.weight, items.weight, USERS, ITEMS).square().sum().backward()
    torch.testing.assert_close(items.weight.grad, read_by("lists", False)[1].grad)
    assert by_rows(items.weight)
    assert not remembers_rows(items.weight)
    assert rows_with_gradient(items.weight) is None
    assert rows_with_gradient(users.weight) is not None


@pytest.mark.parametrize("kind", ["vectors", "modules", "lists", "one list for all", "pairs", "several losses"])
def test_they_sum_to_the_dense_gradients(kind: str) -> None:
    for found, dense in zip(read_by(kind, True), read_by(kind, False)):
        torch.testing.assert_close(found.grad, dense.grad)
        assert rows_with_gradient(dense) is None


def test_many_lists_are_read_in_the_order_of_a_table_that_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, dense = (read_by("lists", marked) for marked in (True, False))
    monkeypatch.setattr(gather, "GATHERED", 0)
    monkeypatch.setattr(gather, "ROWS", 2)
    found = read_by("lists", True)
    for table, other, exact in zip(found, expected, dense):
        torch.testing.assert_close(table.grad, exact.grad)
        assert torch.equal(rows_with_gradient(table), rows_with_gradient(other))  # type: ignore[arg-type]
    users, items = (table.weight for table in parameters(True))
    assert "DotByItem" in gathered_dot(users, items, USERS, ITEMS).grad_fn.name()  # type: ignore[union-attr]
    torch.testing.assert_close(
        gathered_dot(users, items, USERS, ITEMS), (users[USERS].unsqueeze(1) * items[ITEMS]).sum(2)
    )


def test_the_rows_that_were_read_are_known_unless_something_else_changed_the_gradient() -> None:
    users, items = read_by("lists", True)
    assert [rows_with_gradient(table).tolist() for table in (users, items)] == [[2, 4], [0, 1, 2, 3, 5, 6]]  # type: ignore[union-attr]
    assert rows_with_gradient(read_by("several losses", True)[1]) is None
    users.grad.mul_(2)  # type: ignore[union-attr]
    assert rows_with_gradient(users) is None


def test_distinct_rows_are_ascending() -> None:
    assert distinct_rows(9, torch.tensor([4, 2, 4]), torch.tensor([8, 0, 2])).tolist() == [0, 2, 4, 8]


def test_added_gradients_make_no_table_of_their_own() -> None:
    """What a first loss left in ``grad`` is the tensor that later ones add to."""
    users, items = (table.weight for table in parameters(True))
    for table in (users, items):
        table.grad = torch.zeros_like(table)
    places = users.grad.data_ptr(), items.grad.data_ptr()  # type: ignore[union-attr]
    (gathered_dot(users, items, USERS, ITEMS).sum() + rows_at(items, ITEMS[0]).sum()).backward()
    assert (users.grad.data_ptr(), items.grad.data_ptr()) == places  # type: ignore[union-attr]


def test_where_more_entries_are_read_than_there_are_rows() -> None:
    found, dense = torch.nn.Embedding(4, 3), torch.nn.Embedding(4, 3)
    dense.load_state_dict(found.state_dict())
    mark_by_rows(found)
    for few in (found, dense):
        gathered_dot(parameters(True)[1].weight, few.weight, USERS, ITEMS.clamp(max=3)).sum().backward()
    torch.testing.assert_close(found.weight.grad, dense.weight.grad)


def test_what_is_computed_from_a_marked_table_has_a_gradient_of_its_own() -> None:
    users = parameters(True)[0].weight
    assert by_rows(users)
    assert not by_rows(users[:, :2])
    assert not by_rows(users.detach())
    rows_at(users[:, :2], USERS).sum().backward()
    assert users.grad is not None
    assert rows_with_gradient(users) is None


@pytest.mark.parametrize("between", ["nothing", "a dense gradient", "a change by hand"])
def test_the_next_step_begins_with_zeros_in_the_same_memory_if_only_rows_were_added(between: str) -> None:
    """A gradient that something else changed too is not known to be zero elsewhere: it is made anew."""
    table, plain = (parameters(marked)[1].weight for marked in (True, False))
    places = []
    for step, ids in enumerate((USERS, ITEMS[0], ITEMS[2])):
        for weights in (table, plain):
            weights.grad = None
            rows_at(weights, ids).square().sum().backward()
            if step == 0 and between == "a dense gradient":
                weights.sum().backward()
            assert weights.grad is not None
            if step == 0 and between == "a change by hand":
                weights.grad.mul_(2).add_(1)
        assert table.grad is not None
        places.append(table.grad.data_ptr())
        torch.testing.assert_close(table.grad, plain.grad)
    assert places[1] == places[2]
    assert (places[0] == places[1]) == (between == "nothing")
