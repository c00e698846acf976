"""Rows of unequal groups laid out for batched matrix products.

Thirty products of sixty rows each take nearly twice as long as one batched product of the same size, whose groups are
divided among threads. A batched product needs groups of one length. So neighbouring groups of similar length are padded
to the longest of them; if lengths differ much, the run of groups is halved until they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recbole_kd.loss.common import unit

__all__ = ["HIDDEN_BLOCK", "GroupLayout", "Grouped", "Run", "blocks"]

#: Largest ratio of a run's rows with padding to its rows without.
PADDING = 1.25
#: Groups of at most this length are always padded to the longest of them.
SHORT = 8
#: Rows of a hidden layer that are computed at a time, so that they stay in the processor's cache.
HIDDEN_BLOCK = 512


@dataclass(frozen=True)
class Run:
    """Neighbouring groups with the same padded length.

    Attributes:
        first, count: the first group and the number of groups.
        start, length: the run's first row, and the number of rows of each group.
    """

    first: int
    count: int
    start: int
    length: int

    def nodes(self, rows: Tensor) -> Tensor:
        """The run's part of padded rows: (R, d) -> (count, length, d), a view."""
        return rows[self.start : self.start + self.count * self.length].view(self.count, self.length, -1)

    def groups(self, values: Tensor) -> Tensor:
        """The run's part of a tensor with one entry for each group: (G, ...) -> (count, ...), a view."""
        return values[self.first : self.first + self.count]


class GroupLayout:
    """Places of a batch's rows after rows of one group are put together and groups are padded.

    Attributes:
        groups: (n,) the group of each row.
        runs: the groups' runs.
        nodes, rows: the number of rows, n, and with padding, R.
    """

    def __init__(self, groups: Tensor, count: int, multiple: int = 1) -> None:
        """
        Args:
            groups: (n,) the group of each row, in 0 .. G - 1.
            count: G, the number of groups; groups may be empty.
            multiple: padded lengths are multiples of it.
        """
        self._sizes = torch.bincount(groups, minlength=count)
        sizes: list[int] = self._sizes.tolist()
        self.groups, self.runs, self.nodes = groups, list(_runs(sizes, multiple)), len(groups)
        self.rows = sum(run.count * run.length for run in self.runs)
        starts = [run.start + index * run.length for run in self.runs for index in range(run.count)]
        before = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        order = groups.argsort()
        shift = (torch.tensor(starts) - before).to(groups.device)
        places = torch.arange(len(groups), device=groups.device) + shift.index_select(0, groups.index_select(0, order))
        self._places = torch.empty_like(places).index_copy_(0, order, places)
        padding = torch.ones(self.rows, dtype=torch.bool, device=groups.device).index_fill_(0, places, False)
        self._padding = padding.nonzero().squeeze(1)

    def padded(self, rows: Tensor) -> Tensor:
        """(n, ...) -> (R, ...), zeros in the padding."""
        return rows.new_zeros(self.rows, *rows.shape[1:]).index_copy_(0, self._places, rows)

    def unpadded(self, rows: Tensor) -> Tensor:
        """(R, ...) -> (n, ...), in the order of the batch."""
        return rows.index_select(0, self._places)

    def means(self, rows: Tensor) -> Tensor:
        """The means of the groups that are not empty: (R, d), zeros in the padding -> (groups, d)."""
        sums = torch.cat([run.nodes(rows).sum(1) for run in self.runs])
        return (sums / self._sizes.clamp(min=1).unsqueeze(1))[self._sizes > 0]

    def blank_(self, rows: Tensor) -> Tensor:
        """Sets the padding of (R, ...) to zeros, in place."""
        return rows.index_fill_(0, self._padding, 0)


@dataclass(frozen=True, eq=False)
class Grouped:
    """Vectors of student and teacher, laid out by the groups of their nodes.

    Attributes:
        layout: the layout of the nodes by group.
        student, teacher: (R, d_s), (R, d_t) vectors in that layout, zeros in its padding.
    """

    layout: GroupLayout
    student: Tensor
    teacher: Tensor

    @cached_property
    def units(self) -> Tensor:
        """(R, d_s) the student's unit vectors."""
        return unit(self.student)

    @cached_property
    def scale(self) -> Tensor:
        """(R, 1) factors that make the teacher's vectors unit vectors; scaling products costs less than scaling them.

        In float32 it is right for lengths between 1e-18 and 1e18, whose squares neither overflow nor underflow.
        """
        norms = torch.linalg.vector_norm(self.teacher.detach(), dim=1, keepdim=True)
        return norms.reciprocal().masked_fill_(norms == 0, 0)


def _runs(sizes: Sequence[int], multiple: int = 1, first: int = 0, start: int = 0) -> Iterator[Run]:
    """Runs of neighbouring groups with a padded length close to their sizes."""
    count, length = len(sizes), max([1, *sizes])
    if count == 1 or length <= max(SHORT, PADDING * sum(sizes) / count):
        yield Run(first, count, start, -(-length // multiple) * multiple)
        return
    left = list(_runs(sizes[: count // 2], multiple, first, start))
    yield from left
    yield from _runs(
        sizes[count // 2 :], multiple, first + count // 2, left[-1].start + left[-1].count * left[-1].length
    )


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
