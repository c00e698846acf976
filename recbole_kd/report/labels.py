"""Places the names of the models on the front in a picture of a metric against a cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from recbole_kd.report.looks import wrapped
from recbole_kd.report.view import Point

__all__ = ["NARROW", "SIDES", "WIDE", "front_labels", "label_sides"]

#: Pixels of a picture's width on a telephone and elsewhere, and of its height.
NARROW, WIDE, HEIGHT = 250, 560, 320
#: Pixels of a letter, of a line of text, and of half a point.
LETTER, LINE, HALF = 6.2, 15, 8
#: Position of a name at its point, in plotly's words -> (whether to the right, whether below).
SIDES = {"top left": (False, False), "top right": (True, False), "bottom right": (True, True)}


def front_labels(
    points: Sequence[Point], places: Sequence[float], front: Sequence[Point], low: float, high: float, width: int
) -> list[tuple[str, str]]:
    """The name of each point ("" off the front or without room), and its key of :data:`SIDES`.

    Args:
        places: positions of the points on the logarithmic axis.
        low, high: the ends of the axis.
        width: :data:`NARROW` or :data:`WIDE`.
    """
    values = [point.value for point in points]
    span = (max(values) - min(values)) or 1.0
    spots = [
        (math.log(place / low) / math.log(high / low), 0.1 + 0.8 * (value - min(values)) / span)
        for place, value in zip(places, values)
    ]
    own = [
        wrapped(point.model.name, 20, lines=1)[0] if point in front and point.prefix is None else "" for point in points
    ]
    return [(name if side else "", side or "top left") for name, side in zip(own, label_sides(spots, own, width))]


def label_sides(points: Sequence[tuple[float, float]], names: Sequence[str], width: int = NARROW) -> list[str]:
    """A key of :data:`SIDES` for the name of each point, so that names hide no other name and, if possible, no point.

    It is "" if there is no name or no room. The highest point chooses first.

    Args:
        points: shares of the picture's width and height, from its lower left corner.
        width: width of the picture in pixels.
    """
    places = [(x * width, y * HEIGHT) for x, y in points]
    marks = [(x - HALF, x + HALF, y - HALF, y + HALF) for x, y in places]
    named: list[tuple[float, float, float, float]] = []
    sides = [""] * len(points)
    for index in sorted(range(len(points)), key=lambda index: -places[index][1]):
        if not names[index]:
            continue
        (x, y), length = places[index], LETTER * len(names[index])
        boxes = {}
        for side, (right, below) in SIDES.items():
            left = x + HALF / 2 if right else x - HALF / 2 - length
            bottom = y - HALF - LINE if below else y + HALF
            boxes[side] = left, left + length, bottom, bottom + LINE
        free = [
            side
            for side, box in boxes.items()
            if box[0] >= -HALF / 2 and box[1] <= width + HALF and not any(_meet(box, one) for one in named)
        ]
        free.sort(key=lambda side: any(_meet(boxes[side], one) for one in marks))
        if free:
            sides[index] = free[0]
            named.append(boxes[free[0]])
    return sides


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
