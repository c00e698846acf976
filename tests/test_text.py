"""What is printed alike by several verbs."""

from __future__ import annotations

from recbole_kd.text import columns, duration


def test_durations_are_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 75, 4210)] == ["0 s", "1 min 15 s", "1 h 10 min"]


def test_cells_stand_under_each_other_and_no_line_ends_in_blanks() -> None:
    assert columns([["", "a"], ["long", ""], ["b", "c"]]) == ["      a", "long", "b     c"]
