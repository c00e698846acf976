"""Gradients by rows: those of a dense table, without the rows that nothing reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.loss.kernel.rows import by_rows, mark_by_rows, rows_at

USERS, ITEMS = torch.tensor([4, 2, 4]), torch.tensor([[1, 1, 5], [5, 3, 0], [6, 2, 1]])


def parameters(marked: bool) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.nn.Parameter(torch.randn(rows, 3, generator=generator)) for rows in (6, 40)]
    for table in drawn if marked else []:
        mark_by_rows(table)
    return drawn


def gradients(marked: bool, read: str) -> list[Tensor]:
    users, items = parameters(marked)
    if read == "vectors":
        (rows_at(users, USERS).square().sum() + rows_at(items, ITEMS[0]).square().sum()).backward()
    else:
        pairs = (USERS, ITEMS) if read == "lists" else (USERS, ITEMS[:, 2])
        gathered_dot(users, items, *pairs).square().sum().backward()
    assert users.grad is not None
    assert items.grad is not None
    return [users.grad, items.grad]


@pytest.mark.parametrize("read", ["vectors", "lists", "pairs"])
def test_they_sum_to_the_dense_gradients(read: str) -> None:
    for sparse, dense in zip(gradients(True, read), gradients(False, read)):
        assert sparse.is_sparse or read != "vectors"
        torch.testing.assert_close(sparse.to_dense(), dense)


def test_only_rows_that_were_read_are_kept() -> None:
    _, items = gradients(True, "lists")
    assert items.is_sparse
    assert set(items._indices()[0].tolist()) == {0, 1, 2, 3, 5, 6}


def test_where_more_entries_are_read_than_there_are_rows_the_gradient_is_dense() -> None:
    users = gradients(True, "pairs")[0]
    assert users.is_sparse  # 3 entries of 6 rows
    table, few = parameters(True)[1], torch.nn.Parameter(torch.ones(4, 3))
    mark_by_rows(few)
    gathered_dot(table, few, USERS, ITEMS.clamp(max=3)).sum().backward()
    assert few.grad is not None
    assert not few.grad.is_sparse


def test_what_is_computed_from_a_marked_table_has_a_gradient_of_its_own() -> None:
    users, _ = parameters(True)
    assert by_rows(users)
    assert not by_rows(users[:, :2])
    assert not by_rows(users.detach())
    rows_at(users[:, :2], USERS).sum().backward()
    assert users.grad is not None
    assert not users.grad.is_sparse
