"""The loss of DKD, decoupled knowledge distillation (Zhao et al., CVPR'22), a pure function on scores."""

from __future__ import annotations

import torch
from torch import Tensor


def decoupled_losses(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD), each times temperature^2 (eq. 5-7).

    With p = softmax(y / temperature) and t the target class,

    - TCKD is KL(b_t || b_s) of b = (p_t, 1 - p_t), the teacher's against the student's;
    - NCKD is KL(q_t || q_s) of q = p without the target class, normalised to sum 1.

    Both are computed from logarithms, so that a probability which rounds to 0 or 1 does no harm. The teacher has no
    gradient.

    Args:
        student, teacher: (n, C) finite scores of all classes, at least two.
        target: (n,) int64, the target class of each row.
        temperature: tau, above 0.

    Returns:
        Two scalars: means over rows. Entry: a row.
    """
    student, teacher = student / temperature, teacher.detach() / temperature
    column = target.unsqueeze(1)
    target_student, others_student = _log_pair(student, column)
    target_teacher, others_teacher = _log_pair(teacher, column)
    # The share of the non-target classes within themselves; the target's is 0 and so is its term below.
    share = torch.exp(teacher - others_teacher).scatter_(1, column, 0.0)
    non_target = (share * (teacher - student)).sum(1, keepdim=True) - others_teacher + others_student
    kinds = []
    for teacher_part, student_part in ((target_teacher, target_student), (others_teacher, others_student)):
        whole_teacher = torch.logaddexp(target_teacher, others_teacher)
        whole_student = torch.logaddexp(target_student, others_student)
        log_teacher, log_student = teacher_part - whole_teacher, student_part - whole_student
        kinds.append(log_teacher.exp() * (log_teacher - log_student))
    scale = temperature**2
    return (kinds[0] + kinds[1]).mean() * scale, non_target.mean() * scale


def _log_pair(scores: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) the target's score, and (n, 1) the log-sum-exp of all others."""
    rest = scores.scatter(1, column, -torch.inf)
    return scores.gather(1, column), rest.logsumexp(1, keepdim=True)
