"""DKD's two terms against loops over the paper's equations 5 to 7."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.decoupled import decoupled_losses
from recbole_kd.loss.kernel import decoupled as kernel


def by_loops(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[float, float]:
    binary, others = [], []
    for row, wanted in enumerate(target.tolist()):
        p, q = (
            [math.exp(float(score) / temperature) for score in scores[row]] for scores in (teacher, student)
        )  # unnormalised probabilities of teacher and student
        p, q = ([value / sum(part) for value in part] for part in (p, q))
        binary.append(
            p[wanted] * math.log(p[wanted] / q[wanted]) + (1 - p[wanted]) * math.log((1 - p[wanted]) / (1 - q[wanted]))
        )
        divergence = 0.0
        for index in range(len(p)):
            if index != wanted:
                a, b = p[index] / (1 - p[wanted]), q[index] / (1 - q[wanted])
                divergence += a * math.log(a / b)
        others.append(divergence)
    scale = temperature**2 / len(target)
    return scale * sum(binary), scale * sum(others)


def scores(seed: int, rows: int = 5, classes: int = 7) -> Tensor:
    return 2 * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_both_terms_are_the_papers(temperature: float) -> None:
    student, teacher, target = scores(0), scores(1), torch.tensor([0, 6, 3, 3, 1])
    found = decoupled_losses(student, teacher, target, temperature)
    assert [part.item() for part in found] == pytest.approx(by_loops(student, teacher, target, temperature))


def test_together_they_are_hintons_loss() -> None:
    """KL = TCKD + (1 - p_t) NCKD (eq. 5), here for one row."""
    student, teacher, target = scores(2, rows=1), scores(3, rows=1), torch.tensor([2])
    binary, others = decoupled_losses(student, teacher, target)
    p = teacher.softmax(1)
    whole = (p * (p.log() - student.log_softmax(1))).sum()
    torch.testing.assert_close(binary + (1 - p[0, 2]) * others, whole)


def test_the_gradient_is_right_and_the_teacher_has_none() -> None:
    student, teacher = scores(4, 3, 5).requires_grad_(), scores(5, 3, 5).requires_grad_()
    target = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda given: decoupled_losses(given, teacher.detach(), target, 2.0), student)
    sum(decoupled_losses(student, teacher, target)).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("decoupled", [decoupled_losses, kernel.decoupled_losses], ids=["formula", "kernel"])
def test_equal_models_lose_nothing_and_certainty_does_no_harm(
    decoupled: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    certain = torch.tensor([[90.0, -90.0, -90.0], [-90.0, 90.0, 0.0]], requires_grad=True)
    losses = decoupled(certain, certain.detach(), torch.tensor([0, 0]))
    for loss in losses:
        torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-5, rtol=0)
    losses = decoupled(certain, -certain.detach(), torch.tensor([0, 0]))
    sum(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses)
    assert torch.isfinite(certain.grad).all()
