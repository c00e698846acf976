"""Shared by all charts of the page: layout, axes and text, for plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Optional

from recbole_kd.report.looks import wrapped
from recbole_kd.report.view import Model

Chart = dict[str, Any]

FONT = '-apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
INK, GRID, MUTED = "#222222", "#E4E7EB", "#667085"


def chart_layout(height: int) -> Chart:
    """A layout of this height in pixels; its axes have no titles yet."""
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#98A2B3",
        "tickfont": {"size": 12},
        "fixedrange": False,
    }
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 14, "b": 50},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "showlegend": False,
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#98A2B3", "font": {"color": INK}, "align": "left"},
        "xaxis": {**axis},
        "yaxis": {**axis},
    }


def axis_title(text: str) -> Chart:
    """The title of an axis."""
    return {"text": text, "font": {"size": 13}, "standoff": 6}


def named_axis(models: Sequence[Model], width: int, lines: int) -> Chart:
    """An axis with model n at n and its name wrapped. (As categories, names with equal wrapped forms would merge.)"""
    names = ["<br>".join(map(escaped, wrapped(model.name, width, lines))) for model in models]
    return {"tickvals": list(range(len(models))), "ticktext": names, "automargin": True}


def escaped(text: str) -> str:
    """Text that plotly shows literally."""
    return html.escape(text, quote=False)


def rounded(value: Optional[float]) -> Optional[float]:
    """A number with six digits, which is enough for a chart and makes the page a third of the size."""
    return None if value is None else float(f"{value:.6g}")
