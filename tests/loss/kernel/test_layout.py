"""Groups of unequal sizes in batches of equal ones: nothing is lost, nothing is mixed, little is padded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.loss.kernel.layout import PADDING, SHORT, GroupLayout

groups = st.lists(st.integers(0, 5), max_size=60)


@settings(max_examples=50, deadline=None)
@given(groups)
def test_rows_lie_with_their_group_and_come_back_in_order(of_rows: list[int]) -> None:
    layout = GroupLayout(torch.tensor(of_rows, dtype=torch.long), 6)
    rows = torch.arange(1.0, len(of_rows) + 1).unsqueeze(1)
    padded = layout.padded(rows)
    assert padded.shape == (layout.rows, 1)
    assert torch.equal(layout.unpadded(padded), rows)
    found: dict[int, list[float]] = {}
    for run in layout.runs:
        for index, group in enumerate(run.nodes(padded)):
            found[run.first + index] = [value for value in group.flatten().tolist() if value]  # 0 is padding
    assert sorted(found) == list(range(6)), "each group is in one run"
    for group, values in found.items():
        assert sorted(values) == [row + 1 for row, own in enumerate(of_rows) if own == group]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12))
def test_a_run_of_groups_is_padded_by_a_quarter_at_most(sizes: list[int]) -> None:
    of_rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for run in GroupLayout(of_rows, len(sizes)).runs:
        own = sum(run.groups(torch.tensor(sizes)).tolist())
        assert run.count == 1 or run.count * run.length <= max(PADDING * own, run.count * SHORT)


def test_groups_of_about_one_size_are_one_batch() -> None:
    assert len(GroupLayout(torch.arange(1000) % 30, 30).runs) == 1


def test_lengths_are_multiples_where_that_is_wanted() -> None:
    """A product that prepares itself for each shape wants few shapes."""
    layout = GroupLayout(torch.tensor([0] * 5 + [1] * 33 + [2] * 20), 3, 16)
    assert [run.length for run in layout.runs] == [16, 48]
    rows = torch.arange(58.0).unsqueeze(1)
    assert torch.equal(layout.unpadded(layout.padded(rows)), rows)


def test_means_are_those_of_groups_that_have_rows() -> None:
    layout = GroupLayout(torch.tensor([2, 0, 2]), 3)
    assert layout.means(layout.padded(torch.tensor([[1.0], [7.0], [5.0]]))).tolist() == [[7.0], [3.0]]


def test_blank_empties_the_padding_alone() -> None:
    layout = GroupLayout(torch.tensor([0, 1, 1]), 2)
    assert layout.blank_(torch.full((layout.rows, 1), torch.nan)).nan_to_num(7).sum() == 3 * 7


@pytest.mark.parametrize("groups", [[], [3, 3, 3]])
def test_groups_without_rows_have_room_for_none(groups: list[int]) -> None:
    layout = GroupLayout(torch.tensor(groups, dtype=torch.long), 4)
    assert layout.unpadded(layout.padded(torch.ones(len(groups), 2))).tolist() == [[1.0, 1.0]] * len(groups)
