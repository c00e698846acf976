"""Text shared by several verbs: columns, durations, times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

__all__ = ["columns", "duration", "moment", "unit_of"]


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows with equal numbers of cells as lines of text, with aligned columns.

    >>> columns([["model", "gain"], ["BPR", "+1 %"]])
    ['model  gain', 'BPR    +1 %']
    """
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def duration(seconds: float) -> str:
    """A duration in words, with at most two units.

    >>> duration(4210), duration(75), duration(8.4)
    ('1 h 10 min', '1 min 15 s', '8 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(value: Any) -> float | datetime | None:
    """A number, or a date (in UTC if it names no zone); None if it is neither."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    try:
        date = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def unit_of(time: float) -> int | None:
    """Units per second (1, 10^3, 10^6 or 10^9) of a time since 1970; None if it cannot be such a time."""
    return next((unit for unit in (1, 10**3, 10**6, 10**9) if 10**8 <= abs(time) / unit < 10**10), None)
