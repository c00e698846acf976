"""What is printed alike by several verbs."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from recbole_kd.text import columns, duration, moment, unit_of


def test_durations_are_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 75, 4210)] == ["0 s", "1 min 15 s", "1 h 10 min"]


def test_cells_stand_under_each_other_and_no_line_ends_in_blanks() -> None:
    assert columns([["", "a"], ["long", ""], ["b", "c"]]) == ["      a", "long", "b     c"]


def test_a_time_since_1970_is_of_this_century_or_the_last() -> None:
    """10^8 seconds are in 1973, 10^10 in 2286."""
    assert [unit_of(one) for one in (1e8 - 1, 1e8, 1e10 - 1, 1e10, 1.7e12)] == [None, 1, 1, None, 1000]


def test_a_date_without_a_zone_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the machine is."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = moment("2020-01-01")
    time.tzset()
    assert found == datetime(2020, 1, 1, tzinfo=timezone.utc)
