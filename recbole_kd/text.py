"""What several verbs print and read alike: columns, durations, moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

__all__ = ["columns", "duration", "moment", "unit_of"]


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each as lines of text, cell under cell.

    >>> columns([["model", "gain"], ["BPR", "+1 %"]])
    ['model  gain', 'BPR    +1 %']
    """
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def duration(seconds: float) -> str:
    """In words of at most two units.

    >>> duration(4210), duration(75), duration(8.4)
    ('1 h 10 min', '1 min 15 s', '8 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(value: Any) -> float | datetime | None:
    """A number, or a date in UTC where it names no other zone; None where it is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    try:
        date = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def unit_of(time: float) -> int | None:
    """How many make a second (1, 1000, a million or a milliard), of a time since 1970; None where it can be none."""
    return next((unit for unit in (1, 10**3, 10**6, 10**9) if 10**8 <= abs(time) / unit < 10**10), None)
