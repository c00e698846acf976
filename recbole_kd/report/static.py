"""The same charts as pictures, drawn by matplotlib without a display."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from recbole_kd.errors import UserError
from recbole_kd.report.frame import INK, MUTED
from recbole_kd.report.interactive import MATRIX_COLORS, MOST_NUMBERED, matrix
from recbole_kd.report.labels import SIDES, WIDE, front_labels
from recbole_kd.report.looks import ink_on, is_numeric, log_ticks, metric_label, short, spans_decades, wrapped
from recbole_kd.report.sweeps import HEAT_COLORS
from recbole_kd.report.view import LEVEL, Comparison, Curve, Model, is_wide, mean_curve, side_by_side

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
#: Largest height or width of a picture in inches: the renderer needs less than 2^16 pixels.
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
        "sweep": _sweep,
        "validation": _validation,
        "losses": _losses,
    }
    with mpl.rc_context(STYLE):
        found = {name: make(comparison) for name, make in makers.items()}
    return {name: picture for name, picture in found.items() if picture is not None}


def new_figure(width: float, height: float) -> Figure:
    """An empty picture of this size in inches, without a window and without global state.

    Raises:
        UserError: it is too large to draw.
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
        for base in comparison.references():
            if (level := base.mean(metric)) is not None:
                axes.axvline(level, color=MUTED, lw=1, ls=":")
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
    points = comparison.points(metric, *cost)
    if not points:
        return None
    figure = new_figure(6.5, 4.2)
    axes = figure.subplots()
    front = comparison.front(metric, *cost)
    if len(front) > 1:
        steps = [point.price for point in front], [point.value for point in front]
        axes.step(*steps, where="post", color="#98A2B3", ls="--", lw=1.3, zorder=1)
    models = [model for model in comparison.models if any(point.model is model for point in points)]
    for model in models:
        own = [point for point in points if point.model is model]
        axes.plot([p.price for p in own], [p.value for p in own], color=model.style.color, lw=1, zorder=2)
    prices = [point.price for point in points]
    by_size = cost == ("parameters",)
    places = side_by_side(points, front) if by_size else prices
    labels = front_labels(points, places, front, min(prices) / 1.35, max(prices) * 1.35, WIDE)
    for point, x, (name, side) in zip(points, places, labels):
        y, style = point.value, point.model.style
        right, below = SIDES[side]
        offset, aligned = (5 if right else -5, -12 if below else 6), "left" if right else "right"
        axes.annotate(name, (x, y), offset, textcoords="offset points", ha=aligned, fontsize=8, zorder=4)
        low, high = (point.prefix is None and point.model.confidence(metric)) or (y, y)
        axes.errorbar(x, y, yerr=[[max(0, y - low)], [max(0, high - y)]], color=style.color, lw=1, zorder=2)
        edge, width = (INK, 1.6) if point in front else ("white", 0.8)
        area = 95 if point.prefix is None else 45
        axes.scatter(x, y, s=area, color=style.color, marker=style.symbol[1], edgecolors=edge, lw=width, zorder=3)
    log_axis(axes, min(prices), max(prices))
    axes.set_xlabel(title)
    axes.set_ylabel(metric_label(metric))
    said = "Dashed and ringed: the Pareto front" + (". Models of one size stand side by side" if by_size else "")
    axes.set_title(said, fontsize=9, color=MUTED, fontweight="normal")
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


def _sweep(comparison: Comparison) -> Optional[Figure]:
    metric, sweeps = comparison.primary, comparison.sweeps()
    if not sweeps or not sweeps[0].cells(metric):
        return None
    figure, grid = panels(1 if len(sweeps[0].settings) == 1 else len(sweeps), 2, 6.4, 3.8)
    if len(sweeps[0].settings) == 1:
        (axes,) = grid
        for each in sweeps:
            rows = each.along(metric)
            means = [model.mean(metric) or 0.0 for _, model in rows]
            deviations = [model.deviation(metric) or 0.0 for _, model in rows]
            draw_line(axes, [value for value, _ in rows], means, deviations, rows[0][1].style.color, each.base)
        order = list(map(str, sweeps[0].values(0)))
        for level in comparison.levels_beside(sweeps[0], metric):
            look = {"color": level.color, "lw": 1.2, "ls": ":", "label": level.label}
            if level.is_one:
                axes.axhline(level.means[0][1], **look)
            else:
                places = [value if is_numeric(value) else order.index(str(value)) for value, _ in level.means]
                axes.plot(places, [mean for _, mean in level.means], marker=".", **look)
        axes.set_ylabel(metric_label(metric))
        axes.set_xlabel(sweeps[0].settings[0])
        _put_legend(figure, *axes.get_legend_handles_labels())
        return figure
    for axes, each in zip(grid, sweeps):
        draw_heat(axes, list(map(str, each.values(0))), list(map(str, each.values(1))), each.cells(metric))
        axes.set_ylabel(each.settings[0])
        axes.set_xlabel(each.settings[1])
        axes.set_title(f"{metric_label(metric)} of {each.base}")
    return figure


def draw_line(
    axes: Any, values: Sequence[Any], means: Sequence[float], deviations: Sequence[float], color: str, label: str
) -> None:
    """A line of means with deviations over a setting's values, on a logarithmic, linear or categorical axis."""
    numeric = all(map(is_numeric, values))
    places = list(values) if numeric else list(range(len(values)))
    axes.errorbar(places, means, yerr=deviations, color=color, marker="o", ms=5, lw=1.8, capsize=3, label=label)
    if not numeric:
        axes.set_xticks(places, list(map(str, values)))
    elif spans_decades(values):
        log_axis(axes, min(values), max(values), values if len(values) <= 8 else None)


def draw_heat(axes: Any, down: Sequence[str], across: Sequence[str], cells: Mapping[tuple[str, ...], float]) -> None:
    """A heat map of a value over two settings with a number in each cell; missing combinations are empty."""
    table = [[cells.get((one, other), math.nan) for other in across] for one in down]
    axes.imshow(table, cmap=LinearSegmentedColormap.from_list("heat", HEAT_COLORS), aspect="auto", origin="lower")
    low, high = min(cells.values()), max(cells.values())
    for row, line in enumerate(table):
        for column, value in enumerate(line):
            if math.isfinite(value):
                color = ink_on(HEAT_COLORS[-1 if high > low and (value - low) / (high - low) > 0.5 else 0])
                axes.text(column, row, f"{value:.4f}", ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    axes.tick_params(length=0)
    axes.grid(False)


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
        if is_wide(seed for _, seeds in models for seed in seeds):
            axes.set_yscale("log")
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
    """The models under the picture, as lines or as points."""
    handles = [
        Line2D([], [], color=model.style.color, ls=model.style.dash[1], lw=2)
        if lines
        else Line2D([], [], color=model.style.color, marker=model.style.symbol[1], ls="", ms=8)
        for model in models
    ]
    _put_legend(figure, handles, [model.name for model in models])


def _put_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Puts names under the picture, in as many columns as the longest name allows; the picture grows by the rows."""
    names = [wrapped(label, 24, lines=1)[0] for label in labels]
    width, height = figure.get_size_inches()
    columns = max(1, min(len(names), int(width / (0.7 + 0.085 * max(map(len, names))))))
    figure.set_size_inches(width, height + 0.2 * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)
