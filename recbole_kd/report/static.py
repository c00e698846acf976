"""The same charts as pictures, drawn by matplotlib without a display."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from recbole_kd.errors import UserError
from recbole_kd.report.interactive import INK, MATRIX_COLORS, MOST_NUMBERED, MUTED, matrix
from recbole_kd.report.view import (
    LEVEL,
    Comparison,
    Curve,
    Model,
    ink_on,
    log_ticks,
    mean_curve,
    metric_label,
    short,
    wrapped,
)

#: Settings of every picture of this package: light, and readable at half its size.
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#98A2B3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.8,
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a dollar in a name is a dollar
}
#: Inches that a picture may be high or wide: the renderer takes fewer than 2^16 pixels.
_MOST_INCHES = 420


def pictures(comparison: Comparison) -> dict[str, Figure]:
    """File name without its ending -> picture, of the primary metric; ``bars`` has a panel for each metric."""
    makers: dict[str, Callable[[Comparison], Optional[Figure]]] = {
        "accuracy-size": lambda view: _trade_off(view, ("parameters",), "stored numbers"),
        "bars": _bars,
        "accuracy-latency": lambda view: _trade_off(
            view, ("latency_ms", "batch_1", "p50"), "latency of one user, ms (median)"
        ),
        "significance": _significance,
        "validation": _validation,
        "losses": _losses,
    }
    with mpl.rc_context(STYLE):
        found = {name: make(comparison) for name, make in makers.items()}
    return {name: picture for name, picture in found.items() if picture is not None}


def new_figure(width: float, height: float) -> Figure:
    """An empty picture of that many inches, which no window and no global state knows.

    Raises:
        UserError: it is too large to be drawn.
    """
    if max(width, height) > _MOST_INCHES:
        raise UserError("There are too many rows, metrics or losses for one picture; leave some of them out.")
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A picture with `count` axes in rows of at most `columns`; width and height of one panel in inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(width * columns, height * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _bars(comparison: Comparison) -> Optional[Figure]:
    metrics = [metric for metric in comparison.metrics if any(m.mean(metric) is not None for m in comparison.models)]
    if not metrics:
        return None
    models = comparison.models
    figure, grid = panels(len(metrics), 3, 3.5 if len(metrics) > 1 else 6.5, 0.9 + 0.36 * len(models))
    columns = min(3, len(metrics))
    for index, (axes, metric) in enumerate(zip(grid, metrics)):
        for place, model in enumerate(models):
            value = model.mean(metric)
            if value is None:
                continue
            low, high = model.confidence(metric) or (value, value)
            axes.barh(place, value, color=model.style.color, height=0.68)
            axes.errorbar(
                value, place, xerr=[[max(0, value - low)], [max(0, high - value)]], color=INK, lw=1, capsize=2.5
            )
            axes.text(0, place, f" {value:.4f}", va="center", color=ink_on(model.style.color), fontsize=8.5)
        if comparison.reference is not None and comparison.reference.mean(metric) is not None:
            axes.axvline(comparison.reference.mean(metric), color=MUTED, lw=1, ls=":")
        names = ["\n".join(wrapped(model.name, 20, lines=2)) for model in models] if index % columns == 0 else []
        axes.set_yticks(range(len(models)), names or [""] * len(models))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(False, axis="y")
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.set_title(metric_label(metric))
    figure.supxlabel("test split, 95 % intervals; dotted: the plain student", fontsize=9, color=MUTED)
    return figure


def _trade_off(comparison: Comparison, cost: tuple[str, ...], title: str) -> Optional[Figure]:
    metric = comparison.primary
    models = [model for model in comparison.models if model.cost(*cost) and model.mean(metric) is not None]
    if not models:
        return None
    figure = new_figure(6.5, 4.2)
    axes = figure.subplots()
    front = comparison.front(metric, *cost)
    prices = {model.name: model.cost(*cost) or 0.0 for model in models}
    values = {model.name: model.mean(metric) or 0.0 for model in models}
    if len(front) > 1:
        steps = [[table[model.name] for model in front] for table in (prices, values)]
        axes.step(*steps, where="post", color="#98A2B3", ls="--", lw=1.3, zorder=1)
    for model in models:
        x, y = prices[model.name], values[model.name]
        low, high = model.confidence(metric) or (y, y)
        axes.errorbar(x, y, yerr=[[max(0, y - low)], [max(0, high - y)]], color=model.style.color, lw=1, zorder=2)
        edge, width = (INK, 1.6) if model in front else ("white", 0.8)
        axes.scatter(
            x, y, s=95, color=model.style.color, marker=model.style.symbol[1], edgecolors=edge, lw=width, zorder=3
        )
    log_axis(axes, min(prices.values()), max(prices.values()))
    axes.set_xlabel(title)
    axes.set_ylabel(metric_label(metric))
    axes.set_title("Dashed and ringed: the Pareto front", fontsize=9, color=MUTED, fontweight="normal")
    _legend(figure, models, lines=False)
    return figure


def log_axis(axes: Any, low: float, high: float, points: Optional[Sequence[float]] = None) -> None:
    """A logarithmic horizontal axis over these values and a little beyond; ticks at `points`, or at round numbers."""
    low, high = low / 1.35, high * 1.35
    ticks = points or log_ticks(low, high)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _significance(comparison: Comparison) -> Optional[Figure]:
    metric, models = comparison.primary, comparison.models
    if len(models) < 2 or not comparison.has_significance(metric):
        return None
    side = 0.5 if len(models) > MOST_NUMBERED else 0.88
    figure = new_figure(1.9 + side * len(models), 1.6 + 0.6 * side * len(models))
    axes = figure.subplots()
    models, entries = matrix(comparison, metric)
    rows, columns = models[1:], models[:-1]
    levels = [[math.nan if level is None else level for level, _ in line] for line in entries]
    axes.imshow(levels, cmap=ListedColormap(MATRIX_COLORS), vmin=-3.5, vmax=3.5, aspect="auto")
    for row, line in enumerate(entries):
        for column, (level, text) in enumerate(line):
            if len(models) <= MOST_NUMBERED:
                color = ink_on(MATRIX_COLORS[3 + (level or 0)])
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color, linespacing=1.3)
    places = range(len(rows))
    if len(models) > MOST_NUMBERED:
        axes.set_yticks(places, [wrapped(model.name, 28, lines=1)[0] for model in rows], fontsize=8)
        axes.set_xticks(places, [wrapped(model.name, 28, lines=1)[0] for model in columns], fontsize=8, rotation=90)
    else:
        axes.set_yticks(places, ["\n".join(wrapped(model.name, 20, lines=2)) for model in rows])
        axes.set_xticks(places, ["\n".join(wrapped(model.name, 13)) for model in columns], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks([place - 0.5 for place in places][1:], minor=True)
    axes.set_yticks([place - 0.5 for place in places][1:], minor=True)
    axes.grid(False, which="major")
    axes.grid(True, which="minor", color="white", lw=2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    figure.supxlabel(
        f"{metric_label(metric)}, row less column; violet: the row is better, grey: not shown to differ\n"
        f"* p < {LEVEL} over users, ** over seeds too (paired, Holm's correction)",
        fontsize=9,
        color=MUTED,
    )
    return figure


def _validation(comparison: Comparison) -> Optional[Figure]:
    metric = comparison.primary
    curves = [(model, model.validation_curves(metric)) for model in comparison.models]
    curves = [(model, seeds) for model, seeds in curves if seeds]
    if not curves:
        return None
    figure = new_figure(7, 4)
    axes = figure.subplots()
    _draw_curves(axes, curves)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{metric_label(metric)}, validation")
    _legend(figure, [model for model, _ in curves])
    return figure


def _losses(comparison: Comparison) -> Optional[Figure]:
    curves = comparison.loss_panels()
    if not curves:
        return None
    figure, grid = panels(len(curves), 3, 3.4, 2.5)
    for axes, (title, models) in zip(grid, curves.items()):
        _draw_curves(axes, models)
        axes.set_title("\n".join(wrapped(title, 34, lines=2)), fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
    shown = {model.name for models in curves.values() for model, _ in models}
    _legend(figure, [model for model in comparison.models if model.name in shown])
    return figure


def _draw_curves(axes: Any, curves: Iterable[tuple[Model, list[Curve]]]) -> None:
    for model, seeds in curves:
        color, style = model.style.color, model.style.dash[1]
        if len(seeds) > 1:
            for epochs, values in seeds:
                axes.plot(epochs, values, color=color, ls=style, lw=0.7, alpha=0.35)
        epochs, values = mean_curve(seeds)
        marker = model.style.symbol[1] if len(epochs) == 1 else None
        axes.plot(epochs, values, color=color, ls=style, lw=1.8, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _legend(figure: Figure, models: Sequence[Model], lines: bool = True) -> None:
    """Names under the picture, which grows by their rows, in as many columns as the longest of them allows."""
    handles = [
        Line2D([], [], color=model.style.color, ls=model.style.dash[1], lw=2)
        if lines
        else Line2D([], [], color=model.style.color, marker=model.style.symbol[1], ls="", ms=8)
        for model in models
    ]
    names = [wrapped(model.name, 40, lines=1)[0] for model in models]
    width, height = figure.get_size_inches()
    columns = max(1, min(len(models), int(width / (0.7 + 0.085 * max(map(len, names))))))
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(models) / columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)
