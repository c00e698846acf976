"""The charts of the page, as plotly figures: plain dicts with ``data`` and ``layout``.

A trace's ``meta`` is its model's name; with it the page shows and hides a model in all charts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Optional

from recbole_kd.report.frame import INK, MUTED, Chart, axis_title, chart_layout, escaped, named_axis, rounded
from recbole_kd.report.labels import NARROW, WIDE, front_labels
from recbole_kd.report.looks import (
    DEPTHS,
    ink_on,
    log_ticks,
    metric_label,
    p_text,
    percent,
    short,
)
from recbole_kd.report.sweeps import sweep
from recbole_kd.report.tables import figure, memory
from recbole_kd.report.view import Comparison, Curve, Model, Point, is_wide, mean_curve, side_by_side

#: Colours of the matrix from "row is worse" to "row is better", deeper for larger differences; the middle one means no
#: significant difference.
MATRIX_COLORS = ("#B35806", "#E08214", "#FDB863", "#EDEDED", "#B2ABD2", "#8073AC", "#542788")
#: Largest number of models for which the matrix shows numbers in its cells.
MOST_NUMBERED = 12


def charts(comparison: Comparison) -> dict[str, dict[str, Chart]]:
    """Chart id -> metric -> figure; a chart that does not depend on the metric has the key ``""``."""
    found: dict[str, dict[str, Chart]] = {}
    by_metric = {
        "size": size,
        "bars": bars,
        "latency": latency,
        "significance": significance,
        "sweep": sweep,
        "validation": validation,
    }
    for metric in comparison.metrics:
        for name, make in by_metric.items():
            chart = make(comparison, metric)
            if chart is not None:
                found.setdefault(name, {})[metric] = chart
    for index, (title, curves) in enumerate(comparison.loss_panels().items()):
        found[f"loss-{index}"] = {"": losses(title, curves)}
    return found


def bars(comparison: Comparison, metric: str) -> Optional[Chart]:
    """Horizontal bars from zero with 95 % intervals; a line at the plain student."""
    models = [model for model in comparison.models if model.mean(metric) is not None][::-1]
    if not models:
        return None
    traces = []
    for place, model in enumerate(models):
        value = model.mean(metric) or 0.0
        low, high = model.confidence(metric) or (value, value)
        base = comparison.reference_of(model)
        gain = "" if base is None else f"<br>{percent(model.gain(metric))} over {escaped(base.name)}"
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "meta": model.name,
                "y": [place],
                "x": [rounded(value)],
                "text": [f"{value:.4f}"],
                "textposition": "inside",
                "insidetextanchor": "start",
                "marker": {"color": model.style.color},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [rounded(high - value)],
                    "arrayminus": [rounded(value - low)],
                    "color": INK,
                    "thickness": 1.4,
                    "width": 4,
                },
                "hovertemplate": f"<b>{escaped(model.name)}</b><br>{metric_label(metric)} {value:.4f}"
                f"<br>95 % interval {low:.4f} to {high:.4f}{gain}<extra></extra>",
            }
        )
    layout = chart_layout(height=80 + 36 * len(models))
    layout["xaxis"].update(title=axis_title(metric_label(metric)), rangemode="tozero", nticks=6)
    layout["yaxis"].update(named_axis(models, 22, lines=2), showgrid=False, ticklen=4, tickcolor="rgba(0,0,0,0)")
    layout["bargap"] = 0.28
    levels = [model.mean(metric) for model in comparison.references()]
    layout["shapes"] = [
        {
            "type": "line",
            "x0": level,
            "x1": level,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": MUTED, "width": 1.2, "dash": "dot"},
        }
        for level in levels
        if level is not None
    ]
    return {"data": traces, "layout": layout}


def latency(comparison: Comparison, metric: str) -> Optional[Chart]:
    """Accuracy against the median latency of one user's recommendation."""
    return _trade_off(comparison, metric, ("latency_ms", "batch_1", "p50"), "latency of one user, ms (median)")


def size(comparison: Comparison, metric: str) -> Optional[Chart]:
    """Accuracy against the count of stored numbers."""
    return _trade_off(comparison, metric, ("parameters",), "stored numbers")


def _trade_off(comparison: Comparison, metric: str, cost: tuple[str, ...], title: str) -> Optional[Chart]:
    """A point for each model, its 95 % interval, and the Pareto front as steps; a ring marks the points on it.

    Prefixes of a Matryoshka student are smaller points on a line.
    """
    points = comparison.points(metric, *cost)
    if not points:
        return None
    front = comparison.front(metric, *cost)
    traces: list[Chart] = []
    if len(front) > 1:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [point.price for point in front],
                "y": [rounded(point.value) for point in front],
                "line": {"shape": "hv", "color": "#98A2B3", "width": 1.5, "dash": "dash"},
                "hoverinfo": "skip",
            }
        )
    for model in comparison.models:
        own = [point for point in points if point.model is model]
        if len(own) > 1:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "meta": model.name,
                    "x": [point.price for point in own],
                    "y": [rounded(point.value) for point in own],
                    "line": {"color": model.style.color, "width": 1.2},
                    "hoverinfo": "skip",
                }
            )
    prices = [point.price for point in points]
    low_price, high_price = min(prices) / 1.35, max(prices) * 1.35
    places = side_by_side(points, front) if cost == ("parameters",) else prices
    labels, narrow = (front_labels(points, places, front, low_price, high_price, width) for width in (WIDE, NARROW))
    for point, place, (name, side), (there, elsewhere) in zip(points, places, labels, narrow):
        model, value = point.model, point.value
        low, high = (point.prefix is None and model.confidence(metric)) or (value, value)
        on_front = point in front
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if name else "markers",
                "text": [escaped(name)],
                "textposition": side,
                "customdata": [elsewhere if there else ""],  # on a telephone
                "textfont": {"size": 11, "color": INK},
                "cliponaxis": False,
                "meta": model.name,
                "x": [place],
                "y": [rounded(value)],
                "marker": {
                    "color": model.style.color,
                    "symbol": model.style.symbol[0],
                    "size": 13 if point.prefix is None else 9,
                    "line": {"color": INK if on_front else "white", "width": 2 if on_front else 1},
                },
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [rounded(high - value)],
                    "arrayminus": [rounded(value - low)],
                    "color": model.style.color,
                    "thickness": 1,
                    "width": 0,
                },
                "hovertemplate": f"<b>{escaped(point.name)}</b>{' (on the front)' if on_front else ''}"
                f"<br>{metric_label(metric)} {value:.4f} {f'({low:.4f} to {high:.4f})' if high > low else ''}"
                f"<br>{_costs(point)}<extra></extra>",
            }
        )
    layout = chart_layout(height=400)
    ticks = log_ticks(low_price, high_price)
    layout["xaxis"].update(
        type="log",
        title=axis_title(title),
        tickvals=ticks,
        ticktext=[short(tick) for tick in ticks],
        range=[math.log10(low_price), math.log10(high_price)],
    )
    layout["yaxis"].update(title=axis_title(metric_label(metric)), automargin=True)
    return {"data": traces, "layout": layout}


def _costs(point: Point) -> str:
    """The costs in a point's hover text."""
    model = point.model
    if point.prefix is not None:
        return f"{figure(point.price, ',.0f')} stored numbers"
    return (
        f"{figure(model.cost('latency_ms', 'batch_1', 'p50'), '.3g')} ms a user, "
        f"{figure(model.cost('parameters'), ',.0f')} stored numbers, {model.size}"
        f"<br>{memory(model.cost('peak_memory_bytes'))} peak memory in training"
    )


def significance(comparison: Comparison, metric: str) -> Optional[Chart]:
    """Each row's mean minus the mean of each earlier row; the colour shows the sign and size of the difference."""
    if len(comparison.models) < 2 or not comparison.has_significance(metric):
        return None
    models, entries = matrix(comparison, metric)
    rows, columns = models[1:], models[:-1]
    levels = [[level for level, _ in line] for line in entries]
    texts = [[text for _, text in line] for line in entries]
    hovers = [
        [_pair_text(comparison, metric, row, column) if place <= index else "" for place, column in enumerate(columns)]
        for index, row in enumerate(rows)
    ]
    steps = len(MATRIX_COLORS)
    scale = [[(index + end) / steps, color] for index, color in enumerate(MATRIX_COLORS) for end in (0, 1)]
    places = list(range(len(rows)))
    crowded = len(models) > MOST_NUMBERED
    annotations = [
        {
            "x": column,
            "y": row,
            "text": texts[row][column].replace("\n", "<br>"),
            "showarrow": False,
            "font": {"size": 11, "color": ink_on(MATRIX_COLORS[3 + (levels[row][column] or 0)])},
        }
        for row in places
        for column in places
        if not crowded and column <= row
    ]
    layout = chart_layout(height=max(320, 120 + (26 if crowded else 46) * len(models)))
    names = {**named_axis(columns, 24, lines=1), "tickangle": -90} if crowded else named_axis(columns, 14, lines=3)
    layout["xaxis"].update(names, side="top", showgrid=False)
    layout["yaxis"].update(named_axis(rows, 24, lines=1 if crowded else 2), autorange="reversed", showgrid=False)
    layout["margin"]["b"] = 10
    layout["annotations"] = annotations
    trace = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": levels,
        "zmin": -3.5,
        "zmax": 3.5,
        "colorscale": scale,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "customdata": hovers,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
    }
    return {"data": [trace], "layout": layout}


def matrix(comparison: Comparison, metric: str) -> tuple[list[Model], list[list[tuple[Optional[int], str]]]]:
    """The compared rows, and each pair's (level, text) once: line n has row n + 1 minus rows 0 to n.

    The level is 0 if the difference is not significant. Otherwise it is 1 to 3 by the size of the difference, positive
    if the row is better. It is None if the pair has no cell.
    """
    models = comparison.models
    return models, [
        [
            _matrix_entry(comparison, metric, row, column) if place <= index else (None, "")
            for place, column in enumerate(models[:-1])
        ]
        for index, row in enumerate(models[1:])
    ]


def _matrix_entry(comparison: Comparison, metric: str, row: Model, column: Model) -> tuple[Optional[int], str]:
    difference, base = comparison.difference(metric, row.name, column.name), column.mean(metric)
    if difference is None:
        return None, ""
    mark = comparison.pair_mark(metric, row.name, column.name)
    share = abs(difference / base) if base else math.inf
    depth = 1 + sum(share >= step for step in DEPTHS) if mark else 0
    return depth * (
        1 if comparison.better(metric, row.name, column.name) else -1
    ), f"{difference:+.4f}\n{mark or 'n.s.'}"


def _pair_text(comparison: Comparison, metric: str, row: Model, column: Model) -> str:
    if row is column:
        return ""
    difference = comparison.difference(metric, row.name, column.name)
    users, seeds = (p_text(comparison.p_value(metric, row.name, column.name, unit)) for unit in ("users", "seeds"))
    return (
        f"<b>{escaped(row.name)}</b> less <b>{escaped(column.name)}</b><br>"
        f"{metric_label(metric)} {figure(difference, '+.4f')}<br>over users: {users}; over seeds: {seeds} (Holm)"
    )


def validation(comparison: Comparison, metric: str) -> Optional[Chart]:
    """The metric on the validation split by epoch."""
    curves = [(model, model.validation_curves(metric)) for model in comparison.models]
    traces = [trace for model, seeds in curves for trace in _curves(model, seeds)]
    if not traces:
        return None
    layout = chart_layout(height=400)
    layout["xaxis"].update(_epochs(seed for _, seeds in curves for seed in seeds))
    layout["yaxis"].update(title=axis_title(f"{metric_label(metric)}, validation"), automargin=True)
    return {"data": traces, "layout": layout}


def losses(title: str, curves: Sequence[tuple[Model, list[Curve]]]) -> Chart:
    """One named loss by epoch, for every model that has it."""
    layout = chart_layout(height=250)
    layout["title"] = {"text": escaped(title), "x": 0.02, "y": 0.97, "font": {"size": 14}}
    layout["margin"]["t"] = 34
    layout["xaxis"].update(_epochs(seed for _, seeds in curves for seed in seeds))
    layout["yaxis"].update(automargin=True, nticks=5, exponentformat="SI")
    if is_wide(seed for _, seeds in curves for seed in seeds):
        layout["yaxis"].update(type="log", dtick=1)
    return {"data": [trace for model, seeds in curves for trace in _curves(model, seeds)], "layout": layout}


def _epochs(curves: Iterable[Curve]) -> Chart:
    """An axis of epochs with whole numbers at its ticks."""
    last = max((epochs[-1] for epochs, _ in curves), default=0)
    steps = (step * 10**power for power in range(9) for step in (1, 2, 5))
    return {"title": axis_title("epoch"), "tick0": 0, "dtick": next(step for step in steps if last <= 8 * step)}


def _curves(model: Model, seeds: list[Curve]) -> list[Chart]:
    """A thin line for each seed and, with several seeds, their mean."""
    common: Chart = {"type": "scatter", "mode": "lines", "meta": model.name}
    line = {"color": model.style.color, "dash": model.style.dash[0]}
    named = f"<b>{escaped(model.name)}</b><br>epoch %{{x}}: %{{y:.5~g}}<extra></extra>"
    thin = [
        {
            **common,
            "x": epochs,
            "y": [rounded(value) for value in values],
            "line": {**line, "width": 1},
            "opacity": 0.35,
            "hoverinfo": "skip",
        }
        for epochs, values in seeds
        if len(seeds) > 1
    ]
    epochs, values = mean_curve(seeds)
    if not epochs:
        return thin
    mean = {
        **common,
        "x": epochs,
        "y": [rounded(value) for value in values],
        "line": {**line, "width": 2.2},
        "hovertemplate": named,
    }
    if len(epochs) == 1:
        mean.update(mode="markers", marker={"color": model.style.color, "symbol": model.style.symbol[0], "size": 8})
    return [*thin, mean]
