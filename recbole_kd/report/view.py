"""What a report shows of a comparison, worked out once for tables, page and pictures: rows, colours, curves."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Optional, TypedDict, Union

from recbole.evaluator.register import metrics_dict

from recbole_kd.errors import UserError
from recbole_kd.files.schema import check, inside

#: Version of the results that is read here.
FORMAT = 1
#: A p-value below this is called significant.
LEVEL = 0.05

#: Okabe and Ito's palette and three of Tol's muted one, told apart by colour-blind readers; no yellow, which is
#: invisible on white. The teacher and the plain student are greys, so that colour means distillation.
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
#: (plotly's dash, matplotlib's line style): changes when the colours have been used up.
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))

#: Where a model's name may be broken without a space.
BREAKS = re.compile(r"(?<=[a-z0-9)])(?=[A-Z(])|(?<=[-_.,+/])(?=\S)")

Curve = tuple[list[int], list[float]]


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


@dataclass(frozen=True)
class Model:
    """One row of a comparison: its name, how it looks, and everything that results.json says of it."""

    name: str
    style: Style
    row: Mapping[str, Any]

    @property
    def is_teacher(self) -> bool:
        """Whether it is a teacher: shown as an upper bound, not ranked among the students."""
        return self.row.get("role") == "teacher"

    def mean(self, metric: str) -> Optional[float]:
        """The metric's mean over seeds."""
        return number((self.row.get("mean") or {}).get(metric))

    def deviation(self, metric: str) -> Optional[float]:
        """The metric's sample deviation over seeds."""
        return number((self.row.get("deviation") or {}).get(metric))

    def confidence(self, metric: str) -> Optional[tuple[float, float]]:
        """The metric's 95 % interval over users."""
        low, high = (number(bound) for bound in (self.row.get("confidence") or {}).get(metric) or (None, None))
        return None if low is None or high is None else (low, high)

    def gain(self, metric: str) -> Optional[float]:
        """Relative gain over the plain student; 0.05 is 5 %."""
        return number((self.row.get("relative_gain") or {}).get(metric))

    def gap_closed(self, metric: str) -> Optional[float]:
        """Share of the gap between plain student and teacher that is closed."""
        return number((self.row.get("gap_closed") or {}).get(metric))

    def cost(self, *path: str) -> Optional[float]:
        """A number under ``costs``, such as ``cost("latency_ms", "batch_1", "p50")``; None where not measured."""
        value: Any = self.row.get("costs")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return number(value)

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """One entry for each seed."""
        return self.row.get("runs") or []

    def validation_curves(self, metric: str) -> list[Curve]:
        """(epochs, values) of the metric on validation, for each seed that has it."""
        curves = []
        for run in self.runs:
            history = [entry for entry in run.get("valid_history") or [] if number(entry.get(metric)) is not None]
            if history:
                curves.append(([int(entry["epoch"]) for entry in history], [float(entry[metric]) for entry in history]))
        return curves

    def loss_curves(self) -> dict[str, list[Curve]]:
        """Loss name -> (epochs, values) for each seed."""
        curves: dict[str, list[Curve]] = {}
        for run in self.runs:
            history = run.get("loss_history") or {}
            by_name: dict[str, Curve] = {}
            for epoch in sorted(history, key=int):
                for name, value in history[epoch].items():
                    if number(value) is not None:
                        epochs, values = by_name.setdefault(name, ([], []))
                        epochs.append(int(epoch))
                        values.append(float(value))
            for name, curve in by_name.items():
                curves.setdefault(name, []).append(curve)
        return curves


class Comparison:
    """Checked results of a comparison.

    Attributes:
        results: what results.json holds.
        models: the rows, teachers first, each with its style.
        metrics: names of the metrics shown.
        primary: the metric that is shown first: the one that epochs were chosen by, where it is among the metrics.
        reference, teacher: the plain student's and the teacher's row, or None.
    """

    def __init__(self, results: Any) -> None:
        """
        Raises:
            UserError: these are no results of ``compare``.
        """
        _check(results)
        self.results: Mapping[str, Any] = results
        rows = sorted(results["rows"], key=lambda row: row.get("role") != "teacher")
        styles = _styles(rows, results.get("teacher"), results.get("reference"))
        self.models = [Model(row["name"], style, row) for row, style in zip(rows, styles)]
        self.metrics: list[str] = list(results["metrics"])
        wanted = str(results.get("valid_metric") or "").lower()
        self.primary = wanted if wanted in self.metrics else self.metrics[0]
        by_name = {model.name: model for model in self.models}
        self.reference: Optional[Model] = by_name.get(str(results.get("reference")))
        self.teacher: Optional[Model] = by_name.get(str(results.get("teacher")))

    @property
    def title(self) -> str:
        """What the report calls itself."""
        count = len(self.models)
        return f"{count} recommender{'' if count == 1 else 's'} on {self.results.get('dataset', 'a dataset')}"

    @property
    def students(self) -> list[Model]:
        """Every row but the teachers'."""
        return [model for model in self.models if not model.is_teacher]

    def ranked(self, metric: str) -> list[Model]:
        """Students that have the metric, the best first."""
        having = [model for model in self.students if model.mean(metric) is not None]
        return sorted(having, key=lambda model: model.mean(metric) or 0.0, reverse=not smaller_is_better(metric))

    def places(self, metric: str) -> dict[str, int]:
        """Student -> 1 or 2, where it is the best or second in the four digits that are printed."""
        shown = {model.name: f"{model.mean(metric):.4f}" for model in self.ranked(metric)}
        distinct = list(dict.fromkeys(shown.values()))[:2]
        return {name: distinct.index(value) + 1 for name, value in shown.items() if value in distinct}

    def p_value(self, metric: str, first: str, second: str, unit: str = "users") -> Optional[float]:
        """Holm's adjusted p-value of a pair of rows, paired by ``users`` or by ``seeds``; None where not known."""
        return self._entry(metric, f"p_{unit}_holm", first, second)

    def difference(self, metric: str, first: str, second: str) -> Optional[float]:
        """First row's mean less the second's."""
        return self._entry(metric, "difference", first, second)

    def _entry(self, metric: str, key: str, first: str, second: str) -> Optional[float]:
        table = (self.results.get("significance") or {}).get(metric) or {}
        names, matrix = table.get("names") or [], table.get(key)
        if not matrix or first not in names or second not in names:
            return None
        return number(matrix[names.index(first)][names.index(second)])

    def has_significance(self, metric: str) -> bool:
        """Whether any pair of rows was tested."""
        names = [model.name for model in self.models]
        return any(self.p_value(metric, a, b) is not None for a in names for b in names)

    def mark(self, metric: str, name: str) -> str:
        """``*`` where the row differs from :meth:`base` over users (Holm's correction), ``**`` where over seeds too."""
        base = self.base(metric)
        if base is None or base.name == name:
            return ""
        users, seeds = (self.p_value(metric, name, base.name, unit) for unit in ("users", "seeds"))
        if users is None or users >= LEVEL:
            return ""
        return "*" if seeds is None or seeds >= LEVEL else "**"

    def base(self, metric: str) -> Optional[Model]:
        """The row that the tables' marks compare with: the plain student, or the second best where there is none."""
        if self.reference is not None:
            return self.reference
        ranked = self.ranked(metric)
        return ranked[1] if len(ranked) > 1 else None

    def marks_say(self) -> str:
        """The legend of the tables' marks, one sentence."""
        base = f"the plain student {self.reference.name}" if self.reference else "the second best"
        seeds = len(self.results.get("seeds") or [])
        return (
            f"Best student in bold, second underlined. Differs from {base} (p < {LEVEL}, paired, Holm's correction): "
            "* for other users with these trained models, ** also for models trained anew. "
            f"{f'Mean ± deviation over {seeds} seeds' if seeds > 1 else 'One seed'}."
        )

    def loss_panels(self) -> dict[str, list[tuple[Model, list[Curve]]]]:
        """Title -> the models that have the loss, with a curve for each seed.

        A model's own loss (``rec``) is a different function for each architecture: it gets a panel for each.
        """
        panels: dict[str, list[tuple[Model, list[Curve]]]] = {}
        for model in self.models:
            for name, curves in model.loss_curves().items():
                own = re.fullmatch(r"rec\d*", name) is not None
                title = f"{name} of {model.row.get('backbone') or model.name}" if own else name
                panels.setdefault(title, []).append((model, curves))
        return dict(sorted(panels.items(), key=lambda panel: not panel[0].startswith("rec")))

    def front(self, metric: str, *cost: str) -> list[Model]:
        """The models that no other beats in cost and metric at once, the cheapest first."""
        points = [(model, model.cost(*cost), model.mean(metric)) for model in self.models]
        known = [(model, price, value) for model, price, value in points if price and value is not None]
        sign = -1.0 if smaller_is_better(metric) else 1.0
        chosen = pareto_front([price for _, price, _ in known], [sign * value for _, _, value in known])
        return [known[index][0] for index in chosen]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that none dominates (costs no more, is worth no less, one of them strictly), by cost."""
    points = list(zip(costs, values))
    front = [
        index
        for index, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    ]
    return sorted(front, key=lambda index: points[index])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the epochs that every seed has: those after the first stopped would jump."""
    if not curves:
        return [], []
    tables = [dict(zip(*curve)) for curve in curves]
    epochs = sorted(set(tables[0]).intersection(*tables[1:]))
    return epochs, [math.fsum(table[epoch] for table in tables) / len(tables) for epoch in epochs]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers; only powers of ten where they span over three."""
    if high / low > 1e3:
        steps: tuple[int, ...] = (1,)
    elif high / low > 4:
        steps = (1, 2, 5)
    else:
        steps = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in exponents for step in steps if low <= step * 10.0**power <= high]


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


def smaller_is_better(metric: str) -> bool:
    """Whether RecBole calls a smaller value of the metric better (GiniIndex, AveragePopularity)."""
    return bool(getattr(metrics_dict.get(metric.partition("@")[0].lower()), "smaller", False))


def stars(p: Optional[float]) -> str:
    """``***`` below 0.001, ``**`` below 0.01, ``*`` below 0.05, otherwise nothing."""
    if p is None:
        return ""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < LEVEL else ""


def p_text(p: Optional[float]) -> str:
    """A p-value for reading."""
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def ink_on(color: str) -> str:
    """Black or white, whichever is the better to read on "#rrggbb"."""
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return "#FFFFFF" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2 else "#222222"


def percent(share: Optional[float]) -> str:
    """A share with its sign, such as "+4.1 %"; "–" where there is none."""
    return "–" if share is None else f"{100 * share:+.1f} %"


def wrapped(name: str, width: int = 18, lines: int = 3) -> list[str]:
    """A long model name in lines of at most `width`, broken at spaces, punctuation and inner capitals.

    Of a name that takes more than `lines`, the middle is left out: names of variants differ at their ends.
    """
    if lines == 1:
        half = (width - 1) // 2
        return [name if len(name) <= width else f"{name[:half].rstrip()}…{name[-half:].lstrip()}"]
    pieces = BREAKS.sub("\u200b", name)
    found: list[str] = []
    for piece in re.split("(\u200b| )", pieces):
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


def number(value: Any) -> Optional[float]:
    """A finite number as float; None for anything else (JSON has null where a number was not finite)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _styles(rows: Sequence[Mapping[str, Any]], teacher: Any, reference: Any) -> list[Style]:
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


#: The largest cost, and the largest value of a metric, that a chart has room for.
_MOST = 1e15
_SOURCE, _ADVICE = "These are no results of compare", "give the results.json that it wrote"

_Number = Optional[float]
_Metrics = Optional[dict[str, Optional[float]]]
_Matrix = Optional[list[list[Optional[float]]]]


class _Epoch(TypedDict):
    epoch: int


class _Run(TypedDict, total=False):
    best_epoch: Optional[int]
    loss_history: Optional[dict[int, dict[str, Optional[float]]]]
    valid_history: Optional[list[_Epoch]]


class _Row(TypedDict, total=False):
    role: Optional[str]
    backbone: Optional[str]
    teacher: Optional[str]
    distillers: Optional[list[str]]
    settings: Optional[dict[str, Any]]
    runs: Optional[list[_Run]]
    deviation: _Metrics
    confidence: Optional[dict[str, Optional[tuple[_Number, _Number]]]]
    relative_gain: _Metrics
    gap_closed: _Metrics
    costs: Optional[dict[str, Union[_Number, dict[str, Union[_Number, dict[str, _Number]]]]]]


class _NamedRow(_Row):
    name: str
    mean: dict[str, Optional[float]]


class _Significance(TypedDict, total=False):
    names: Optional[list[str]]
    p_users_holm: _Matrix
    p_seeds_holm: _Matrix
    difference: _Matrix


class _Budget(TypedDict, total=False):
    sentence: Optional[str]


class _Environment(TypedDict, total=False):
    cpu: Optional[str]
    threads: Optional[int]
    versions: Optional[dict[str, Optional[str]]]


class _About(TypedDict, total=False):
    dataset: Optional[str]
    split: Optional[str]
    valid_metric: Optional[str]
    seeds: Optional[list[int]]
    reference: Optional[str]
    teacher: Optional[str]
    budget: Optional[_Budget]
    environment: Optional[_Environment]
    significance: Optional[dict[str, Optional[_Significance]]]


class _Results(_About):
    """What is read of results.json; docs/compare.md says what else is in it."""

    format: int
    metrics: list[str]
    rows: list[_NamedRow]


def _check(results: Any) -> None:
    def refuse(what: str) -> NoReturn:
        raise UserError(f"{_SOURCE}: {what}; {_ADVICE}.")

    if isinstance(results, Mapping) and results.get("format") != FORMAT:
        refuse(f"expected format {FORMAT}, found {results.get('format')!r:.50}")
    check(results, _Results, _SOURCE, _ADVICE)
    rows, metrics = results["rows"], results["metrics"]
    if not rows or not metrics:
        refuse(f"'{'metrics' if rows else 'rows'}' lists no {'metric' if rows else 'model'}")
    names = [row["name"] for row in rows]
    if not all(names):
        refuse("a row has no name")
    if len(set(names)) < len(names):
        refuse(f"two rows are named {next(name for name in names if names.count(name) > 1)!r}")
    for row in rows:
        tables = (row.get(key) for key in ("mean", "deviation", "confidence", "relative_gain", "gap_closed"))
        values = [value for table in tables for value in _numbers(table)]
        costs = _numbers(row.get("costs"))
        if any(abs(value) > _MOST for value in (*values, *costs)) or any(cost < 0 for cost in costs):
            refuse(f"row {row['name']!r} has a cost below 0, or a number above {_MOST:g}")
    for metric, table in (results.get("significance") or {}).items():
        size = len((table or {}).get("names") or [])
        for key in ("p_users_holm", "p_seeds_holm", "difference"):
            matrix = (table or {}).get(key) or []
            if matrix and [len(line) for line in matrix] != [size] * size:
                refuse(f"field significance.{metric}.{key} is not a square of {size} numbers, as many as 'names'")


def _numbers(value: Any) -> list[float]:
    """All finite numbers in a value."""
    if isinstance(value, (Mapping, list, tuple)):
        return [found for part in inside(value) for found in _numbers(part)]
    found = number(value)
    return [] if found is None else [found]
