"""Lists of items for every user, as response-based distillers choose and score them: by either model, in blocks."""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor

from recbole_kd.contracts import DataView, StudentView, TeacherView
from recbole_kd.data.ranks import build_rank_bank

_PAIRS_AT_ONCE = 1 << 20


def guided_ranking(guide: str, student: StudentView, teacher: TeacherView, data: DataView, k: int) -> Tensor:
    """The k best unobserved items of every user, best first, by the student as it is now or by the teacher.

    Args:
        guide: ``teacher`` or ``student``.

    Returns:
        (U, k) int32 on the CPU, filled with 0 where a user has fewer.
    """
    if guide == "teacher":
        return teacher.ranked_items(k).cpu()

    def score_block(users: Tensor) -> Tensor:
        catalogue = torch.arange(data.items, device=data.device).expand(len(users), -1)
        return student.scores(users.to(data.device), catalogue)

    return build_rank_bank(score_block, data.observed, k)


@torch.no_grad()
def list_scores(view: Union[StudentView, TeacherView], lists: Tensor, data: DataView) -> Tensor:
    """Constant scores of every user's list.

    Args:
        view: whose scores.
        lists: (U, k) items, 0 where there is none.

    Returns:
        (U, k) on the data's device; 0 for user 0. What stands at an item 0 means nothing.
    """
    rows = max(1, _PAIRS_AT_ONCE // lists.shape[1])
    users = torch.arange(1, data.users, device=data.device)
    parts = zip(users.split(rows), lists[1:].split(rows))
    scores = torch.cat([view.scores(ids, items.to(data.device).long().clamp(min=1)) for ids, items in parts])
    return torch.cat([scores.new_zeros(1, lists.shape[1]), scores])
