"""What response-based distillers share: lists of items for every user, as either model ranks and scores them."""

from __future__ import annotations

from typing import ClassVar, Union

import torch
from torch import Tensor

from recbole_kd.contracts import DataView, Distiller, StudentView, TeacherView
from recbole_kd.data.ranks import build_rank_bank, require_listed, require_unobserved
from recbole_kd.errors import UserError
from recbole_kd.options import Options

__all__ = ["ListDistiller", "list_scores", "require_drawable"]

_PAIRS_AT_ONCE = 1 << 20


class ListDistiller(Distiller):
    """Base of the distillers that read ranked lists of unobserved items and the student's scores of them."""

    #: Options that each ask for so many unobserved items of every user.
    list_lengths: ClassVar[tuple[str, ...]] = ("pool",)

    @classmethod
    def student_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"scores"})

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        return frozenset({"ranks"})

    @classmethod
    def check_data(cls, options: Options, data: DataView) -> None:
        """
        Raises:
            UserError: a user of the training split has fewer unobserved items than one of the `list_lengths`.
        """
        if not data.sequential:
            for name in cls.list_lengths:
                require_unobserved(data.observed, f"{cls.name}.{name}", getattr(options, name))

    def ranked_items(self, setting: str, k: int) -> Tensor:
        """The teacher's k best unobserved items of every user, best first: (U, k) int32 on the CPU.

        Args:
            setting: the option that asks for k, such as ``pool``.

        Raises:
            UserError: the teacher ranks fewer for a user of the training split.
        """
        ranked = self.teacher.ranked_items(k).cpu()
        require_listed(self.data.observed, f"{self.name}.{setting}", ranked, self.teacher.name)
        return ranked

    def ranked_by(self, guide: str, setting: str, k: int) -> Tensor:
        """:meth:`ranked_items` by the guide: ``teacher``, or ``student`` as it is now."""
        if guide == "teacher":
            return self.ranked_items(setting, k)
        return student_ranking(self.student, self.data, k)


class GuidedListDistiller(ListDistiller):
    """Base of those that compare scores of items which the option ``guide`` says whose lists they are of."""

    @classmethod
    def teacher_needs(cls, options: Options) -> frozenset[str]:
        guide: str = getattr(options, "guide")  # noqa: B009
        return frozenset({"ranks", "listed_scores"} if guide == "teacher" else {"scores"})


def student_ranking(student: StudentView, data: DataView, k: int) -> Tensor:
    """The student's k best unobserved items of every user as it is now, best first: (U, k) int32 on the CPU."""

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


def require_drawable(section: str, options: Options, *names: str) -> None:
    """Checks that the items that the options `names` ask for can be drawn from a list of ``pool`` items.

    Raises:
        UserError: one of them is more than the pool.
    """
    pool: int = getattr(options, "pool")  # noqa: B009
    for name in names:
        count = getattr(options, name)
        if count > pool:
            raise UserError(
                f"{section}.{name}={count} items cannot be drawn from a list of {section}.pool={pool}; "
                "lower the one or raise the other."
            )
