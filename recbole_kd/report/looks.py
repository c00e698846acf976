"""Appearance of a report: colours and symbols of models, round ticks, formatted names and numbers."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

#: Relative differences from which the colour of a significant difference is deeper.
DEPTHS = (0.02, 0.1)

#: Okabe and Ito's palette and three colours of Tol's muted one, for colour-blind readers; without yellow, which is
#: invisible on white. The teacher and the plain student are grey, so colour means distillation.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933")
TEACHER_COLOR, REFERENCE_COLOR = "#222222", "#7F7F7F"
#: (plotly's symbol, matplotlib's marker, the glyph of legends in text).
SYMBOLS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("diamond", "D", "◆"),
    ("triangle-up", "^", "▲"),
    ("triangle-down", "v", "▼"),
    ("cross", "P", "✚"),
    ("star", "*", "★"),
)
#: (plotly's dash, matplotlib's line style); the next one is used when all colours are taken.
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))

#: Where a model's name may be broken without a space.
BREAKS = re.compile(r"(?<=[a-z0-9)])(?=[A-Z(])|(?<=[A-Z])(?=[A-Z][a-z]{3})|(?<=[-_.,+/])(?=\S)")


@dataclass(frozen=True)
class Style:
    """How one model looks in every chart.

    Attributes:
        color: "#rrggbb".
        symbol: an entry of :data:`SYMBOLS`.
        dash: an entry of :data:`DASHES`.
    """

    color: str
    symbol: tuple[str, str, str]
    dash: tuple[str, str]


def styles_of(rows: Sequence[Mapping[str, Any]], teacher: Any, reference: Any) -> list[Style]:
    """How each row looks: greys for the teacher and the plain student, colours for the others."""
    styles = []
    used = 0
    for index, row in enumerate(rows):
        symbol = SYMBOLS[index % len(SYMBOLS)]
        if row["name"] == teacher:
            styles.append(Style(TEACHER_COLOR, symbol, DASHES[0]))
        elif row["name"] == reference:
            styles.append(Style(REFERENCE_COLOR, symbol, DASHES[0]))
        else:
            dash = DASHES[used // len(PALETTE) % len(DASHES)]
            styles.append(Style(PALETTE[used % len(PALETTE)], symbol, dash))
            used += 1
    return styles


def log_ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two positive ones: powers of ten, with their multiples in a small range."""
    if high / low > 1e3:
        steps: tuple[int, ...] = (1,)
    elif high / low > 20:
        steps = (1, 2, 5)
    elif high / low > 4:
        steps = (1, 2, 3, 5, 7)
    else:
        steps = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in exponents for step in steps if low <= step * 10.0**power <= high]


def is_numeric(value: Any) -> bool:
    """Whether a setting's value is a number that can be placed on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def spans_decades(values: Sequence[Any]) -> bool:
    """Whether the values need a logarithmic axis: all positive, and the largest over ten times the smallest."""
    return all(map(is_numeric, values)) and min(values) > 0 and max(values) > 10 * min(values)


def short(value: float) -> str:
    """A positive number for an axis: 1500000 -> "1.5M", 0.02 -> "0.02"."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def metric_label(metric: str) -> str:
    """A metric as papers write it: "ndcg@20" -> "NDCG@20", "recall@20" -> "Recall@20"."""
    name, at, cutoff = metric.partition("@")
    upper = {"ndcg", "mrr", "map", "auc", "gauc", "rmse", "mae"}
    return (name.upper() if name in upper else name.capitalize()) + at + cutoff


def p_text(p: Optional[float]) -> str:
    """A p-value for reading."""
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on "#rrggbb"."""
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return "#FFFFFF" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2 else "#111111"


def percent(share: Optional[float]) -> str:
    """A share with its sign, such as "+4.1 %"; "–" if there is none."""
    return "–" if share is None else f"{100 * share:+.1f} %"


def with_breaks(name: str, width: int, mark: str) -> str:
    """The name with `mark` where its words of more than `width` letters may be broken."""
    return " ".join(BREAKS.sub(mark, word) if len(word) > width else word for word in name.split(" "))


def wrapped(name: str, width: int = 18, lines: int = 3) -> list[str]:
    """A long model name in lines of at most `width`, broken at spaces, long words at punctuation and inner capitals.

    If a name needs more than `lines`, its middle is left out, because names of variants differ at their ends.
    """
    if lines == 1:
        half = (width - 1) // 2
        return [name if len(name) <= width else f"{name[:half].rstrip()}…{name[-half:].lstrip()}"]
    found: list[str] = []
    for piece in re.split("(\u200b| )", with_breaks(name, width, "\u200b")):
        glue = " " if piece == " " else ""
        if piece in ("\u200b", " "):
            if glue and found:
                found[-1] += " "
            continue
        if found and len(found[-1] + piece) <= width:
            found[-1] += piece
        else:
            found += textwrap.wrap(piece, width) or [piece]
    found = [line.rstrip() for line in found if line.strip()]
    if len(found) > lines:
        return [*found[: lines - 1], "…" + name[1 - width :].lstrip()]
    return found
