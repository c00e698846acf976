"""Lists of some users alone, as a file may have them: the others are in no mean of any distiller that reads lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch, Distiller
from recbole_kd.errors import UserError
from recbole_kd.registry import distiller_class
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS = 12, 40
DATA = data_view(USERS, ITEMS)
BATCH = batch_of(DATA, 40)
SIZES: dict[str, dict[str, Any]] = {
    "rd": {"start_epoch": 0, "dynamic_samples": 10},
    "cd": {"pool": 10, "samples": 5},
    "rrd": {"pool": 10, "interesting": 5, "uninteresting": 5},
    "unkd": {"pool": 20, "groups": 2, "pairs": 6},
    "dcd": {"pool": 10, "interesting": 3, "uninteresting": 3},
    "kd": {"items": 5},
}


class SomeLists(FakeTeacher):
    """Ranks for the users of `listed` alone, and has no score of what it does not list."""

    def __init__(self, listed: Tensor) -> None:
        super().__init__(USERS, ITEMS, 6, observed=DATA.observed)
        self.listed = listed

    def ranked_items(self, k: int) -> Tensor:
        return super().ranked_items(k).masked_fill(~self.listed[:, None], 0)

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        scores = super().scores(users, items)
        return scores.masked_fill(~self.listed[users].view(-1, *[1] * (scores.dim() - 1)), torch.nan)


def build(name: str, listed: Tensor, student: FakeStudent) -> Distiller:
    kind = distiller_class(name)
    built = kind(kind.options_class.parse(name, SIZES[name]), student, SomeLists(listed), DATA)
    built.begin_epoch(0)
    return built


@pytest.mark.parametrize("name", SIZES)
def test_users_without_a_list_are_in_no_mean(name: str) -> None:
    """The loss is that of the batch's other users, to whom alone gradients go."""
    student, listed = FakeStudent(USERS, ITEMS, 4), torch.arange(USERS) % 3 == 1
    (loss,) = build(name, listed, student)(BATCH).values()
    (gradient,) = torch.autograd.grad(loss, student.user_table)
    assert gradient[listed].any(dim=1).sum() >= 3
    assert not gradient[~listed].any()
    kept = listed[BATCH.users]
    (alone,) = build(name, listed, student)(Batch(BATCH.users[kept], BATCH.items[kept])).values()
    torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("name", SIZES)
def test_a_batch_without_lists_has_no_loss(name: str) -> None:
    listed = torch.arange(USERS) == 1
    users = torch.tensor([2, 3, 3])
    assert build(name, listed, FakeStudent(USERS, ITEMS, 4))(Batch(users, users)) == {}


def test_nobodys_list_and_short_ones_are_refused() -> None:
    class Short(SomeLists):
        def ranked_items(self, k: int) -> Tensor:
            ranked = super().ranked_items(k)
            ranked[:, 3:] = 0
            return ranked

    kind = distiller_class("rrd")
    options = kind.options_class.parse("rrd", SIZES["rrd"])
    listed = torch.arange(USERS) % 3 == 1
    for teacher, count in ((Short(listed), 4), (SomeLists(torch.zeros(USERS, dtype=torch.bool)), 11)):
        with pytest.raises(
            UserError, match=rf"rrd.pool=10: FakeTeacher ranks fewer items for {count} of {count} users"
        ):
            kind(options, FakeStudent(USERS, ITEMS, 4), teacher, DATA)
