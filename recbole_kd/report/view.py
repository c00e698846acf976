"""The content of a report, computed once for tables, page and pictures: rows, colours, curves."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from recbole_kd.evaluation.metrics import smaller_is_better
from recbole_kd.experiment.values import at, leaves
from recbole_kd.report.looks import Style, is_numeric, styles_of
from recbole_kd.report.schema import check_results, number
from recbole_kd.text import counted

#: A p-value below this is called significant.
LEVEL = 0.05
#: Latencies closer than this share are called equal, even if each was measured exactly: processes differ by as much.
NOISE = 0.1
#: Distances, as shares of a picture's width and height, within which a point would hide another.
BESIDE, OVER = 0.03, 0.04
#: A panel's axis is logarithmic if its largest value is more than this many times its smallest.
WIDE = 30

Curve = tuple[list[int], list[float]]
_NONE = object()


@dataclass(frozen=True)
class Model:
    """One row of a comparison: its name, its style, and its entries in results.json."""

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
        """A number under ``costs``, such as ``cost("latency_ms", "batch_1", "p50")``; None if not measured."""
        value: Any = self.row.get("costs")
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return number(value)

    @property
    def is_distilled(self) -> bool:
        """Whether distillers trained it."""
        return bool(self.row.get("distillers")) and not self.is_teacher

    @property
    def dimensions(self) -> Optional[int]:
        """The size of its vectors; in results of older versions from the settings. None without vectors."""
        if "dimensions" in self.row:
            return self.row["dimensions"]
        value = number((self.row.get("settings") or {}).get("embedding_size"))
        return None if value is None else int(value)

    @property
    def size(self) -> str:
        """Its size in words: dimensions, or stored numbers if it has no vectors."""
        if self.dimensions is not None:
            return f"{self.dimensions} dimensions"
        stored = self.cost("parameters")
        return "unknown size" if stored is None else f"{stored:,.0f} stored numbers"

    def latency_range(self) -> Optional[tuple[float, float]]:
        """(lowest, highest) median latency of one user in milliseconds, with :data:`NOISE`."""
        median = self.cost("latency_ms", "batch_1", "p50")
        if median is None:
            return None
        measured = ((self.row.get("costs") or {}).get("latency_range_ms") or {}).get("batch_1") or []
        known = [median, *(value for value in map(number, measured) if value is not None)]
        half = NOISE / 2
        return min(*known, median * (1 - half)), max(*known, median * (1 + half))

    @property
    def train_seconds(self) -> Optional[float]:
        """Training seconds (epochs only), the mean over seeds; None if no run recorded them."""
        sums = [sum(run.get("epoch_seconds") or []) for run in self.runs]
        known = [total for total in sums if total > 0]
        return sum(known) / len(known) if known else None

    @property
    def unfinished(self) -> int:
        """Number of its runs whose best epoch was the last one, so that more epochs might help."""
        count = 0
        for run in self.runs:
            best, history = run.get("best_epoch"), run.get("valid_history") or []
            last = max((entry["epoch"] for entry in history), default=0)
            count += bool(best is not None and last > 0 and best >= last)
        return count

    @property
    def prefixes(self) -> dict[int, Mapping[str, Any]]:
        """For a student of ``--matryoshka``: dimensions of each shorter prefix -> mean, deviation, parameters."""
        found = self.row.get("prefixes") or {}
        return {int(size): found[size] for size in sorted(found, key=int)}

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


@dataclass(frozen=True)
class Point:
    """A model in a picture of a metric against a cost, or one of its prefixes.

    Attributes:
        model: the row.
        price, value: cost and metric.
        prefix: number of first dimensions that it uses; None: the whole model.
    """

    model: Model
    price: float
    value: float
    prefix: Optional[int] = None

    @property
    def name(self) -> str:
        """The model's name, with the prefix."""
        if self.prefix is None:
            return self.model.name
        return f"{self.model.name}, first {self.prefix} of {self.model.size}"


@dataclass(frozen=True)
class Sweep:
    """One model trained with every value of one or two settings.

    Attributes:
        base: the model's name.
        settings: their dotted names.
        rows: (values of the settings, the row trained with them), in the given order.
    """

    base: str
    settings: tuple[str, ...]
    rows: list[tuple[tuple[Any, ...], Model]]

    def values(self, place: int) -> list[Any]:
        """The distinct values of a setting: numbers ascending, others in the given order."""
        found = list(dict.fromkeys(str(values[place]) for values, _ in self.rows))
        by_text = {str(values[place]): values[place] for values, _ in self.rows}
        distinct = [by_text[text] for text in found]
        return sorted(distinct) if all(map(is_numeric, distinct)) else distinct

    def along(self, metric: str) -> list[tuple[Any, Model]]:
        """(value, row) of a sweep of one setting, in the order of :meth:`values`, if the metric is known."""
        order = list(map(str, self.values(0)))
        having = [(values[0], model) for values, model in self.rows if model.mean(metric) is not None]
        return sorted(having, key=lambda row: order.index(str(row[0])))

    def cells(self, metric: str) -> dict[tuple[str, ...], float]:
        """Values in words -> the metric."""
        means = {tuple(map(str, values)): model.mean(metric) for values, model in self.rows}
        return {values: mean for values, mean in means.items() if mean is not None}


class Level(NamedTuple):
    """What a sweep's rows are compared with: one row for all, or one for each value of the setting."""

    label: str
    color: str
    means: list[tuple[Any, Any]]

    @property
    def is_one(self) -> bool:
        """Whether it is the same at every value."""
        return len({mean for _, mean in self.means}) == 1


class Comparison:
    """Checked results of a comparison.

    Attributes:
        results: the content of results.json.
        models: the rows, teachers first, each with its style.
        metrics: names of the metrics shown.
        primary: the metric that is shown first: the one that chose the epochs, if it is among the metrics.
        by_name: name -> row.
        reference, teacher: the first recipe's plain student's and teacher's row, or None.
    """

    def __init__(self, results: Any) -> None:
        """
        Raises:
            UserError: these are not results of ``compare``.
        """
        check_results(results)
        self.results: Mapping[str, Any] = results
        rows = sorted(results["rows"], key=lambda row: row.get("role") != "teacher")
        styles = styles_of(rows, results.get("teacher"), results.get("reference"))
        self.models = [Model(row["name"], style, row) for row, style in zip(rows, styles)]
        self.metrics: list[str] = list(results["metrics"])
        wanted = str(results.get("valid_metric") or "").lower()
        self.primary = wanted if wanted in self.metrics else self.metrics[0]
        self.by_name = {model.name: model for model in self.models}
        self.reference: Optional[Model] = self.by_name.get(str(results.get("reference")))
        self.teacher: Optional[Model] = self.by_name.get(str(results.get("teacher")))

    @property
    def title(self) -> str:
        """The report's title."""
        count = len(self.models)
        return f"{counted(count, 'recommender')} on {self.results.get('dataset', 'a dataset')}"

    @property
    def students(self) -> list[Model]:
        """All rows except teachers."""
        return [model for model in self.models if not model.is_teacher]

    def ranked(self, metric: str) -> list[Model]:
        """Students that have the metric, the best first."""
        having = [model for model in self.students if model.mean(metric) is not None]
        return sorted(having, key=lambda model: model.mean(metric) or 0.0, reverse=not smaller_is_better(metric))

    @property
    def contenders(self) -> list[Model]:
        """The rows that are ranked: distilled rows of one size, or all students if nothing is distilled.

        The size is the most frequent one among distilled rows; among equally frequent ones the smallest.
        """
        distilled = [model for model in self.students if model.is_distilled]
        if not distilled:
            return self.students
        sizes: dict[str, list[Model]] = {}
        for model in sorted(distilled, key=lambda model: (model.dimensions or 0, model.cost("parameters") or 0)):
            sizes.setdefault(model.size, []).append(model)
        return max(sizes.values(), key=len)

    def contest(self, metric: str) -> list[Model]:
        """:attr:`contenders` that have the metric, the best first."""
        competing = {model.name for model in self.contenders}
        return [model for model in self.ranked(metric) if model.name in competing]

    def places(self, metric: str) -> dict[str, int]:
        """Contender -> 1 or 2, if it is the best or second in the four printed digits."""
        shown = {model.name: f"{model.mean(metric):.4f}" for model in self.contest(metric)}
        distinct = list(dict.fromkeys(shown.values()))[:2]
        return {name: distinct.index(value) + 1 for name, value in shown.items() if value in distinct}

    def p_value(self, metric: str, first: str, second: str, unit: str = "users") -> Optional[float]:
        """Holm's adjusted p-value of a pair of rows, paired by ``users`` or by ``seeds``; None if not known."""
        return self._entry(metric, f"p_{unit}_holm", first, second)

    def difference(self, metric: str, first: str, second: str) -> Optional[float]:
        """The first row's mean minus the second's."""
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
        """``*`` if the row differs from :meth:`base` over users (Holm's correction), ``**`` if over seeds too."""
        base = self.base(metric, name)
        return "" if base is None else self.pair_mark(metric, name, base.name)

    def pair_mark(self, metric: str, first: str, second: str) -> str:
        """:meth:`mark` for any two rows; stars have the same meaning everywhere in a report."""
        users, seeds = (self.p_value(metric, first, second, unit) for unit in ("users", "seeds"))
        if first == second or users is None or users >= LEVEL:
            return ""
        return "*" if seeds is None or seeds >= LEVEL else "**"

    def arrow(self, metric: str, name: str) -> str:
        """``▲`` if a marked row is better than :meth:`base`, ``▼`` if it is worse, otherwise empty."""
        base = self.base(metric, name)
        if base is None or not self.mark(metric, name):
            return ""
        return "▲" if self.better(metric, name, base.name) else "▼"

    def better(self, metric: str, first: str, second: str) -> bool:
        """Whether the first row's mean is better than the second's."""
        one, other = self.by_name[first].mean(metric), self.by_name[second].mean(metric)
        if one is None or other is None or one == other:
            return False
        return (one < other) == smaller_is_better(metric)

    def reference_of(self, model: Model) -> Optional[Model]:
        """The plain student that a row's gain is relative to; None for that student itself."""
        found = self.by_name.get(str(model.row.get("reference"))) or self.reference
        return None if found is model else found

    def references(self) -> list[Model]:
        """The plain students that gains are relative to, in the order of the rows."""
        wanted = {base.name for model in self.models if (base := self.reference_of(model)) is not None}
        return [model for model in self.models if model.name in wanted]

    def teacher_of(self, model: Model) -> Optional[Model]:
        """The teacher for a row's gap; None for a teacher."""
        return None if model.is_teacher else self.by_name.get(str(model.row.get("teacher"))) or self.teacher

    def levels_beside(self, sweep: Sweep, metric: str) -> list[Level]:
        """The plain students, and the teachers, of the rows of a sweep over one setting."""
        found = []
        for name, beside in (("plain student", self.reference_of), ("teacher", self.teacher_of)):
            pairs = [(value, beside(model)) for value, model in sweep.along(metric)]
            known = [(value, one) for value, one in pairs if one is not None and one.mean(metric) is not None]
            if known:
                names = {one.name for _, one in known}
                label = names.pop() if len(names) == 1 else f"each one's {name}"
                found.append(Level(label, known[0][1].style.color, [(value, one.mean(metric)) for value, one in known]))
        return found

    def teacher_share(self, metric: str, model: Model) -> Optional[float]:
        """The row's metric divided by its teacher's; None for a teacher or without a teacher."""
        teacher = self.teacher_of(model)
        value, whole = model.mean(metric), None if teacher is None else teacher.mean(metric)
        return value / whole if value is not None and whole else None

    def base(self, metric: str, name: Optional[str] = None) -> Optional[Model]:
        """The row that marks compare with: the row's plain student, or the second best if there is none."""
        row = self.by_name.get(str(name))
        found = self.reference if row is None else self.reference_of(row)
        if found is not None or self.reference is not None or (row is not None and row.row.get("reference")):
            return found
        ranked = self.contest(metric)
        return ranked[1] if len(ranked) > 1 and ranked[1] is not row else None

    def marks_say(self) -> str:
        """The legend of the tables' marks."""
        base = "its plain student (column over)" if self.reference else "the second best"
        seeds, splits = (len(self.results.get(name) or [""]) for name in ("seeds", "splits"))
        over = f"{seeds} seeds" if splits == 1 else f"{seeds * splits} runs on {splits} splits"
        sizes = {model.size for model in self.contenders}
        distilled = any(model.is_distilled for model in self.contenders)
        among = f"distilled row of {sizes.pop()}" if distilled and len(sizes) == 1 else "student"
        return (
            f"Best {among} in bold, second underlined. ▲ better, ▼ worse than {base}, where p < {LEVEL} (paired, "
            "Holm's correction): * for other users with these trained models, ** also for models trained anew. "
            f"{f'Mean ± deviation over {over}' if seeds * splits > 1 else 'One seed'}."
        )

    def differing_settings(self) -> dict[str, dict[str, Any]]:
        """Row -> its settings by dotted name, without settings that are equal in all students, or in all teachers.

        Options of a distiller are compared among the rows with this distiller. The model's name, and a teacher with its
        own row, are shown elsewhere.
        """
        settings = {}
        for model in self.models:
            own = model.row.get("settings") or {}
            left_out = ["student", "distill", *(["teacher"] if str(model.row.get("teacher")) in self.by_name else [])]
            given = {key: at(own, key) for key in leaves(own) if key.partition(".")[0] not in left_out}
            settings[model.name] = {key: value for key, value in given.items() if value is not None}
        found: dict[str, dict[str, Any]] = {}
        for model in self.models:
            peers = [settings[other.name] for other in self.models if other.is_teacher is model.is_teacher]
            found[model.name] = {}
            for key, value in settings[model.name].items():
                section = key.partition(".")[0] + "." if "." in key else ""
                comparable = [other for other in peers if any(name.startswith(section) for name in other)]
                if len(comparable) < 2 or any(other.get(key, _NONE) != value for other in comparable):
                    found[model.name][key] = value
        return found

    def loss_panels(self) -> dict[str, list[tuple[Model, list[Curve]]]]:
        """Title -> the models that have the loss, with a curve for each seed.

        A model's own loss (``rec``) is a different function for each architecture: it gets a panel for each. A closed
        form is solved in one step and has no curve: a single loss of 0 is left out.
        """
        panels: dict[str, list[tuple[Model, list[Curve]]]] = {}
        for model in self.models:
            for name, curves in model.loss_curves().items():
                if all(values == [0.0] for _, values in curves):
                    continue
                own = re.fullmatch(r"rec\d*", name) is not None
                title = f"{name} of {model.row.get('backbone') or model.name}" if own else name
                panels.setdefault(title, []).append((model, curves))
        return dict(sorted(panels.items(), key=lambda panel: not panel[0].startswith("rec")))

    def sweeps(self) -> list[Sweep]:
        """The models that were trained with several values of the same one or two settings as the first such model."""
        found: dict[str, Sweep] = {}
        for model in self.models:
            swept = model.row.get("sweep") or {}
            if swept.get("settings"):
                names = tuple(swept["settings"])
                sweep = found.setdefault(str(swept.get("of")), Sweep(str(swept.get("of")), names, []))
                if sweep.settings == names:
                    sweep.rows.append((tuple(swept["settings"].values()), model))
        sweeps = [sweep for sweep in found.values() if len(sweep.rows) > 1 and len(sweep.settings) <= 2]
        return [sweep for sweep in sweeps if sweep.settings == sweeps[0].settings]

    def points(self, metric: str, *cost: str) -> list[Point]:
        """Every model with this cost and metric; for stored numbers also the prefixes of Matryoshka students."""
        found = []
        for model in self.models:
            price, value = model.cost(*cost), model.mean(metric)
            for size, prefix in model.prefixes.items() if cost == ("parameters",) else ():
                stored, mean = number(prefix.get("parameters")), number((prefix.get("mean") or {}).get(metric))
                if stored and mean is not None:
                    found.append(Point(model, stored, mean, size))
            if price and value is not None:
                found.append(Point(model, price, value))
        return found

    def front(self, metric: str, *cost: str) -> list[Point]:
        """The points that no other point beats in both cost and metric, the cheapest first.

        Latencies that differ by no more than noise are equal.
        """
        points = self.points(metric, *cost)
        sign = -1.0 if smaller_is_better(metric) else 1.0
        ranges = [(point.price, point.price) for point in points]
        if cost[0] == "latency_ms":
            ranges = [point.model.latency_range() or exact for point, exact in zip(points, ranges)]
        chosen = pareto_front([point.price for point in points], [sign * point.value for point in points], ranges)
        return [points[index] for index in chosen]


def side_by_side(points: Sequence[Point], front: Sequence[Point]) -> list[float]:
    """Each point's position on a logarithmic axis: its price, or beside a point that it would hide.

    Points of the front are always at their price.
    """
    tall = max((point.value for point in points), default=0) - min((point.value for point in points), default=0)
    prices = [math.log(point.price) for point in points]
    step = max(max(prices, default=0) - min(prices, default=0), 1.0) * BESIDE
    drawn: list[tuple[float, float]] = []
    found = dict.fromkeys(range(len(points)), 0.0)
    for index in sorted(found, key=lambda index: (points[index] not in front, -points[index].value)):
        slots = (prices[index] + (-1) ** turn * ((turn + 1) // 2) * step for turn in itertools.count())
        value = points[index].value
        place = next(
            slot
            for slot in slots
            if points[index] in front
            or all(abs(slot - x) > step * 0.9 or abs(value - y) > OVER * tall for x, y in drawn)
        )
        drawn.append((place, value))
        found[index] = math.exp(place)
    return list(found.values())


def pareto_front(
    costs: Sequence[float], values: Sequence[float], ranges: Optional[Sequence[tuple[float, float]]] = None
) -> list[int]:
    """Indices of the points that none dominates (costs no more, is worth no less, one of them strictly), by cost.

    Args:
        costs, values: of each point.
        ranges: (low, high) of each cost: costs whose ranges meet are equal. By default costs are exact.
    """
    ranges = ranges or [(cost, cost) for cost in costs]
    front: list[int] = []
    # Best first: a point beaten by a point off the front is also beaten by a point on it.
    for index in sorted(range(len(costs)), key=lambda index: (-values[index], costs[index])):
        low, high = ranges[index]
        beaten = any(
            ranges[other][0] <= high if values[other] > values[index] else ranges[other][1] < low for other in front
        )
        if not beaten:
            front.append(index)
    return sorted(front, key=lambda index: (costs[index], values[index]))


def is_wide(curves: Iterable[Curve]) -> bool:
    """Whether values above 0 differ so much that small ones would be invisible on a linear axis."""
    values = [value for _, of_epochs in curves for value in of_epochs]
    return bool(values) and min(values) > 0 and max(values) > WIDE * min(values)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the epochs that all seeds have; after the first seed stops, the mean would jump."""
    if not curves:
        return [], []
    tables = [dict(zip(*curve)) for curve in curves]
    epochs = sorted(set(tables[0]).intersection(*tables[1:]))
    return epochs, [math.fsum(table[epoch] for table in tables) / len(tables) for epoch in epochs]
