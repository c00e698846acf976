"""Text shared by several modules: columns, durations, times, messages of other libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

__all__ = ["columns", "counted", "duration", "moment", "one_line", "unit_of"]


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


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "epoch"), counted(3000, "epoch")
    ('1 epoch', '3,000 epochs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(message: object, letters: int = 300) -> str:
    r"""The start of another library's message or error, as one line without a full stop.

    >>> one_line(ValueError("d_model = 10\n  must be a multiple of n_heads."))
    'd_model = 10 must be a multiple of n_heads'
    """
    return " ".join(str(message).split()).rstrip(".")[:letters]


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
