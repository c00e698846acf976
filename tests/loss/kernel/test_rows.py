"""Gradients by rows: those of a dense table, without the rows that nothing reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.loss.kernel.rows import ADDED, SPARSE, by_rows, mark_by_rows, rows_at

USERS, ITEMS = torch.tensor([4, 2, 4]), torch.tensor([[1, 1, 5], [5, 3, 0], [6, 2, 1]])


def parameters(kind: str | None) -> list[torch.nn.Embedding]:
    torch.manual_seed(0)
    drawn = [torch.nn.Embedding(rows, 3) for rows in (6, 40)]
    for table in drawn if kind else []:
        mark_by_rows(table, str(kind))
    return drawn


def gradients(kind: str | None, read: str) -> list[Tensor]:
    tables = parameters(kind)
    users, items = (table.weight for table in tables)
    if read == "vectors":
        (rows_at(users, USERS).square().sum() + rows_at(items, ITEMS[0]).square().sum()).backward()
    elif read == "modules":
        (tables[0](USERS).square().sum() + tables[1](ITEMS).square().sum()).backward()
    elif read == "several losses":
        whole = users.square().sum() + items.square().sum()
        rows = rows_at(users, USERS).sum() + gathered_dot(users, items, USERS, ITEMS).square().sum()
        (whole + rows + tables[1](ITEMS).square().sum()).backward()
    elif read == "one list for all":
        gathered_dot(users, items, USERS, ITEMS[:1].expand(3, -1)).square().sum().backward()
    else:
        pairs = (USERS, ITEMS) if read == "lists" else (USERS, ITEMS[:, 2])
        gathered_dot(users, items, *pairs).square().sum().backward()
    assert users.grad is not None
    assert items.grad is not None
    return [users.grad, items.grad]


@pytest.mark.parametrize("kind", [ADDED, SPARSE])
@pytest.mark.parametrize("read", ["vectors", "modules", "lists", "one list for all", "pairs", "several losses"])
def test_they_sum_to_the_dense_gradients(read: str, kind: str) -> None:
    for found, dense in zip(gradients(kind, read), gradients(None, read)):
        assert found.is_sparse == (kind == SPARSE and read != "several losses")
        torch.testing.assert_close(found.to_dense(), dense)


def test_only_rows_that_were_read_are_kept() -> None:
    _, items = gradients(SPARSE, "lists")
    assert set(items._indices()[0].tolist()) == {0, 1, 2, 3, 5, 6}


def test_added_gradients_make_no_table_of_their_own() -> None:
    """What a first loss left in ``grad`` is the tensor that later ones add to."""
    users, items = (table.weight for table in parameters(ADDED))
    for table in (users, items):
        table.grad = torch.zeros_like(table)
    places = users.grad.data_ptr(), items.grad.data_ptr()  # type: ignore[union-attr]
    (gathered_dot(users, items, USERS, ITEMS).sum() + rows_at(items, ITEMS[0]).sum()).backward()
    assert (users.grad.data_ptr(), items.grad.data_ptr()) == places  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [ADDED, SPARSE])
def test_where_more_entries_are_read_than_there_are_rows_the_gradient_is_dense(kind: str) -> None:
    few = torch.nn.Embedding(4, 3)
    mark_by_rows(few, kind)
    gathered_dot(parameters(kind)[1].weight, few.weight, USERS, ITEMS.clamp(max=3)).sum().backward()
    assert few.weight.grad is not None
    assert not few.weight.grad.is_sparse


@pytest.mark.parametrize("kind", [ADDED, SPARSE])
def test_what_is_computed_from_a_marked_table_has_a_gradient_of_its_own(kind: str) -> None:
    users = parameters(kind)[0].weight
    assert by_rows(users) == kind
    assert not by_rows(users[:, :2])
    assert not by_rows(users.detach())
    rows_at(users[:, :2], USERS).sum().backward()
    assert users.grad is not None
    assert not users.grad.is_sparse


@pytest.mark.parametrize("between", ["nothing", "a dense gradient", "a change by hand"])
def test_the_next_step_begins_with_zeros_in_the_same_memory_if_only_rows_were_added(between: str) -> None:
    """A gradient that something else changed too is not known to be zero elsewhere: it is made anew."""
    table, plain = (parameters(kind)[1].weight for kind in (ADDED, None))
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
