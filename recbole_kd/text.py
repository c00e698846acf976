"""What several verbs print alike: columns and durations."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns", "duration"]


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
