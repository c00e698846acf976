"""The loss of DKD, decoupled knowledge distillation (Zhao et al., CVPR'22), as a formula.

Training uses ``kernel/decoupled.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

__all__ = ["decoupled_losses"]


def decoupled_losses(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD), each times temperature^2 (eq. 5-7).

    p = softmax(y / temperature).

    - TCKD is KL(b_t || b_s) of b = (p of the target class, 1 - p of it), the teacher's against the student's.
    - NCKD is KL(q_t || q_s) of q = p without the target class, normalised to sum 1.

    Both are computed from logarithms, so a probability may round to 0 or 1. The teacher has no gradient.

    Args:
        student, teacher: (n, C) finite scores of all classes, at least two.
        target: (n,) int64, the target class of each row.
        temperature: tau, above 0.

    Returns:
        Two scalars: means over rows. Entry: a row.
    """
    of_student, of_teacher = (_logarithms(scores / temperature, target) for scores in (student, teacher.detach()))
    binary, others = (
        kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2 for q, p in zip(of_student, of_teacher)
    )
    return binary, others


def _logarithms(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log b, (n, 2), and log q, (n, C - 1), of eq. 5."""
    column = target.unsqueeze(1)
    others = scores[torch.ones_like(scores, dtype=torch.bool).scatter(1, column, False)].view(len(scores), -1)
    pair = torch.cat([scores.gather(1, column), others.logsumexp(1, keepdim=True)], dim=1)
    return log_softmax(pair, dim=1), log_softmax(others, dim=1)
