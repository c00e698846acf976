"""DKD's terms in one pass against the formula: the same values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.loss import decoupled as formula
from recbole_kd.loss.kernel import decoupled as kernel
from tests.loss.same import assert_same, draw


@given(
    rows=st.integers(1, 9),
    classes=st.integers(2, 7),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    block=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_decoupled_losses(rows: int, classes: int, temperature: float, block: int, seed: int) -> None:
    student, teacher = draw(seed, rows, classes, scale=2.0), draw(seed + 1, rows, classes, scale=2.0)
    target = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "BLOCK", block)
        found = kernel.decoupled_losses(student, teacher, target, temperature)
    expected = formula.decoupled_losses(student, teacher, target, temperature)
    for term, wanted in zip(found, expected):
        assert_same(term, wanted, [student, teacher])


def test_the_gradient_is_right_and_the_teacher_has_none() -> None:
    student, teacher, target = draw(4, 3, 5), draw(5, 3, 5), torch.tensor([0, 4, 2])
    losses = kernel.decoupled_losses
    assert torch.autograd.gradcheck(lambda given: losses(given, teacher.detach(), target, 2.0), student)
    sum(losses(student, teacher, target)).backward()
    assert teacher.grad is None
