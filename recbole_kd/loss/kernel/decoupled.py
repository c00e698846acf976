"""DKD's two terms in one pass over the scores. The formula is in ``loss/decoupled.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

__all__ = ["decoupled_losses"]

#: Rows compared at a time, so that intermediate results stay in cache.
BLOCK = 16


def decoupled_losses(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD). Differentiable once: the probabilities of the other classes are kept for the gradient."""
    teacher, column = teacher.detach(), target.unsqueeze(1)
    others_student, others_teacher, non_target = _Others.apply(student, teacher, column, temperature)
    # The log-odds of the target: b = (sigmoid of them, 1 - that).
    odds_student = student.gather(1, column) / temperature - others_student
    odds_teacher = teacher.gather(1, column) / temperature - others_teacher
    binary = sum(
        odds_teacher.mul(sign).sigmoid() * (logsigmoid(sign * odds_teacher) - logsigmoid(sign * odds_student))
        for sign in (1, -1)
    )
    scale = temperature**2
    return binary.mean() * scale, non_target.mean() * scale


class _Others(torch.autograd.Function):
    """Over all classes except the target: the log-sum-exp of the student and of the teacher, and KL(q_t || q_s).

    Each is (n, 1).
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, column: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        shares = torch.empty_like(student), torch.empty_like(student)
        sums = [student.new_empty(len(student), 1) for _ in range(3)]
        for first in range(0, len(student), BLOCK):
            block = slice(first, first + BLOCK)
            scaled = []
            for scores, share, others in zip((student, teacher), shares, sums):
                part = (scores[block] / temperature).scatter_(1, column[block], -torch.inf)
                largest = part.amax(1, keepdim=True)
                torch.exp(part - largest, out=share[block])
                total = share[block].sum(1, keepdim=True)
                share[block].div_(total)
                others[block] = total.log_().add_(largest)
                scaled.append(part)
            difference = scaled[1].sub_(scaled[0]).scatter_(1, column[block], 0.0)
            expected = difference.mul_(shares[1][block]).sum(1, keepdim=True)
            sums[2][block] = expected - sums[1][block] + sums[0][block]
        ctx.save_for_backward(*shares)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(sums[1])
        return sums[0], sums[1], sums[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_others: Tensor, _: Tensor, of_divergence: Tensor) -> tuple[Any, ...]:
        student, teacher = ctx.saved_tensors
        gradient = student * ((of_others + of_divergence) / ctx.temperature)
        return gradient.addcmul_(teacher, of_divergence / -ctx.temperature), None, None, None
