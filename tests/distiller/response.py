"""What the tests of response-based distillers share: a bench of tables, and a student that notes what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, DataView, Distiller
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS = 12, 40


class RecordingStudent(FakeStudent):
    """Keeps the users and items of every call of `scores`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        self.asked.append((users, items))
        return super().scores(users, items)


class Bench(NamedTuple):
    student: RecordingStudent
    teacher: FakeTeacher
    data: DataView
    batch: Batch

    def build(self, distiller: type[Distiller], **options: Any) -> Distiller:
        """The distiller over this student and teacher, before its first epoch."""
        parsed = distiller.options_class.parse(distiller.name, options)
        return distiller(parsed, self.student, self.teacher, self.data)

    def asked(self, distiller: Distiller, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Users and items that the student is asked for, first, in a step of an epoch."""
        distiller.begin_epoch(epoch)
        self.student.asked.clear()
        distiller(self.batch)
        return self.student.asked[0]

    def observed(self, user: int) -> set[int]:
        """The user's items of the training split."""
        offsets = self.data.observed.offsets
        return set(self.data.observed.indices[offsets[user] : offsets[user + 1]].tolist())


def bench(pairs: Optional[Sequence[tuple[int, int]]] = None, *, users: int = USERS, items: int = ITEMS) -> Bench:
    """A student and a teacher of different sizes on a random split; the padding rows are NaN: whatever reads one shows."""
    data = data_view(users, items, pairs)
    student = RecordingStudent(users, items, 4, poisoned=True)
    teacher = FakeTeacher(users, items, 6, observed=data.observed, poisoned=True)
    return Bench(student, teacher, data, batch_of(data, 30))


def assert_learns(made: Bench, distiller: Distiller) -> None:
    """Gradient descent on the loss alone lowers it, with finite gradients and padding left as it was."""
    optimizer = torch.optim.Adam(made.student.parameters(), lr=0.05)
    distiller.begin_epoch(0)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = torch.stack(list(distiller(made.batch).values())).sum()
        loss.backward()
        for table in made.student.tables():
            assert table.grad is not None
            assert torch.isfinite(table.grad).all()
            assert not table.grad[0].any()
        optimizer.step()
        values.append(float(loss))
    assert values[-1] < values[0]
