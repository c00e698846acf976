"""The page's chart of a sweep: a metric over the values of one setting, or of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from recbole_kd.report.frame import Chart, axis_title, chart_layout, escaped, rounded
from recbole_kd.report.looks import is_numeric, metric_label, spans_decades
from recbole_kd.report.view import Comparison, Sweep

#: Colours of a heat map from the lowest to the highest value.
HEAT_COLORS = ("#F7F4F9", "#D4B9DA", "#8073AC", "#3F007D")


def sweep(comparison: Comparison, metric: str) -> Optional[Chart]:
    """The metric over one setting's values, a line with deviations for each model; for two settings, a heat map."""
    sweeps = comparison.sweeps()
    if not sweeps or not any(model.mean(metric) is not None for _, model in sweeps[0].rows):
        return None
    return _lines(comparison, sweeps, metric) if len(sweeps[0].settings) == 1 else _heat_map(sweeps[0], metric)


def _lines(comparison: Comparison, sweeps: Sequence[Sweep], metric: str) -> Chart:
    (setting,), values = sweeps[0].settings, sweeps[0].values(0)
    traces = []
    for each in sweeps:
        rows = each.along(metric)
        style = rows[0][1].style
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [value if is_numeric(value) else str(value) for value, _ in rows],
                "y": [rounded(model.mean(metric)) for _, model in rows],
                "text": [escaped(model.name) for _, model in rows],
                "line": {"color": style.color, "width": 2},
                "marker": {"color": style.color, "size": 9, "symbol": style.symbol[0]},
                "error_y": {
                    "type": "data",
                    "array": [rounded(model.deviation(metric) or 0.0) for _, model in rows],
                    "color": style.color,
                    "thickness": 1.2,
                },
                "hovertemplate": f"<b>%{{text}}</b><br>{metric_label(metric)} %{{y:.4f}}<extra></extra>",
            }
        )
    layout = chart_layout(height=360)
    layout["xaxis"].update(title=axis_title(setting))
    if spans_decades(values):
        layout["xaxis"].update(type="log", tickvals=values, ticktext=[f"{value:g}" for value in values])
    elif not all(map(is_numeric, values)):
        layout["xaxis"].update(type="category")
    layout["yaxis"].update(title=axis_title(metric_label(metric)), automargin=True)
    levels = comparison.levels_beside(sweeps[0], metric)
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": level.means[0][1],
            "y1": level.means[0][1],
            "line": {"color": level.color, "width": 1.2, "dash": "dot"},
        }
        for level in levels
        if level.is_one
    ]
    traces += [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [value if is_numeric(value) else str(value) for value, _ in level.means],
            "y": [rounded(mean) for _, mean in level.means],
            "line": {"color": level.color, "width": 1.2, "dash": "dot"},
            "marker": {"color": level.color, "size": 5},
            "hovertemplate": f"{escaped(level.label)} %{{y:.4f}}<extra></extra>",
        }
        for level in levels
        if not level.is_one
    ]
    layout["annotations"] = [
        {
            "text": escaped(level.label),
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": level.means[-1][1],
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 11, "color": level.color},
        }
        for level in levels
    ]
    return {"data": traces, "layout": layout}


def _heat_map(each: Sweep, metric: str) -> Chart:
    down, across = (list(map(str, each.values(place))) for place in (0, 1))
    cells = each.cells(metric)
    low, high = min(cells.values()), max(cells.values())
    table = [[cells.get((one, other)) for other in across] for one in down]
    layout = chart_layout(height=120 + 44 * len(down))
    layout["xaxis"].update(title=axis_title(each.settings[1]), type="category", showgrid=False)
    layout["yaxis"].update(title=axis_title(each.settings[0]), type="category", showgrid=False, automargin=True)
    layout["annotations"] = [
        {
            "x": column,
            "y": row,
            "text": f"{value:.4f}",
            "showarrow": False,
            "font": {
                "size": 12,
                "color": "#FFFFFF" if high > low and (value - low) / (high - low) > 0.5 else "#111111",
            },
        }
        for row, line in enumerate(table)
        for column, value in enumerate(line)
        if value is not None
    ]
    steps = len(HEAT_COLORS) - 1
    trace = {
        "type": "heatmap",
        "x": across,
        "y": down,
        "z": [[rounded(value) for value in line] for line in table],
        "colorscale": [[index / steps, color] for index, color in enumerate(HEAT_COLORS)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": f"{each.settings[0]} %{{y}}, {each.settings[1]} %{{x}}<br>{metric_label(metric)} %{{z:.4f}}"
        "<extra></extra>",
    }
    return {"data": [trace], "layout": layout}
