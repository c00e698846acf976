"""The report of a search: a table, a CSV, a plot, and the best configuration as YAML."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recbole_kd.evaluation.significance import sample_deviation
from recbole_kd.experiment.values import merge, nest
from recbole_kd.files.atomic import write_atomic, write_content
from recbole_kd.files.plain import save_json
from recbole_kd.files.tables import csv_text
from recbole_kd.report import picture_bytes
from recbole_kd.report.looks import PALETTE, REFERENCE_COLOR, is_numeric, spans_decades, wrapped
from recbole_kd.report.static import STYLE, draw_heat, log_axis, panels
from recbole_kd.text import columns

#: Rows of the table on the terminal; trials.csv has all.
ROWS = 20
#: Largest number of values of a setting for which means are drawn.
MOST_VALUES = 12


def write_report(result: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Writes trials.csv, trials.png, best.yaml and result.json into the search's folder.

    Args:
        result: what `search` returns.
        given: the settings of the run that was tuned, nested, with model and dataset.
    """
    folder = Path(result["folder"])
    write_content(folder / "trials.csv", trials_table(result))
    write_atomic(folder / "trials.png", lambda file: plot(result, file), "output")
    write_content(folder / "best.yaml", best_yaml(result, given))
    save_json(result, folder / "result.json", "output")


def trials_table(result: Mapping[str, Any]) -> str:
    """A line for each trial: its status, its settings, and the validation metrics of its best epoch."""
    settings, metrics = list(result["space"]), list(result["best"]["valid_result"])
    head = ["trial", "status", "score", "best_epoch", "epochs", "seconds"]
    rows: list[list[Any]] = [[*head, *settings, *(f"valid {name}" for name in metrics), "message"]]
    for record in result["trials"]:
        row = [record[key] for key in head]
        row += [record["settings"][name] for name in settings]
        row += [record["valid_result"].get(name) for name in metrics]
        rows.append([*row, record["message"]])
    return csv_text(rows)


def best_yaml(result: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The best configuration, for ``train --config_files``: the given settings with those of the best trial."""
    best = result["best"]
    kept = {key: value for key, value in given.items() if key not in ("config_files", "result_file", "resume")}
    settings = json.loads(json.dumps(merge(kept, nest(best["settings"])), default=str))
    title = (
        f"# Trial {best['trial']} of {len(result['trials'])}: {result['valid_metric']} {best['score']:.4f} on "
        f"validation, epoch {best['best_epoch']} (0 is the first).\n"
    )
    return title + str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


#: Status of a trial -> its colour and marker.
_LOOKS = {"finished": ("o", PALETTE[0]), "pruned": ("X", REFERENCE_COLOR), "failed": ("v", PALETTE[1])}


def plot(result: Mapping[str, Any], file: Any) -> None:
    """Draws the objective by trial with the best so far, and by each setting that was searched, as PNG into `file`."""
    file.write(picture_bytes(picture(result)))


def picture(result: Mapping[str, Any]) -> Figure:
    """The picture of :func:`plot`: a panel for the trials, then one for each setting."""
    scored = [record for record in result["trials"] if record["score"] is not None]
    best, names = result["best"], list(result["space"])
    with mpl.rc_context(STYLE):
        # Two settings with few values each get a map in a separate panel.
        is_map = len(names) == 2 and all(_few(scored, name) for name in names)
        figure, (first, *others) = panels(1 + len(names) + is_map, 2 if is_map else 3, 3.8, 2.9)
        others, last = others[: len(names)], others[len(names) :]
        _points(first, scored, [record["trial"] for record in scored])
        # The best trial shows whether larger or smaller scores are better.
        up = all(record["score"] <= best["score"] for record in scored)
        so_far = itertools.accumulate((record["score"] for record in scored), max if up else min)
        trials = [record["trial"] for record in scored]
        first.step(trials, list(so_far), where="post", color=PALETTE[4], label="best so far", zorder=2)
        first.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        first.set_title("by trial")
        for axes, name in zip(others, names):
            _by_setting(axes, name, scored)
        finished = [record for record in scored if record["status"] == "finished"]
        if is_map:
            _map(last[0], names, finished)
        for axes, place in zip((first, *others), [best["trial"], *(best["settings"][name] for name in names)]):
            x = place if axes is first or is_numeric(place) else axes.categories.index(str(place))
            ring = {"facecolors": "none", "edgecolors": PALETTE[4], "linewidths": 1.6, "zorder": 4}
            axes.scatter([x], [best["score"]], s=110, label="best" if axes is first else None, **ring)
        figure.suptitle(f"{result['model']} on {result['dataset']}: best is trial {best['trial']}, {best['score']:.4f}")
        figure.supylabel(f"{result['valid_metric']} on validation", fontsize=10)
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def _points(axes: Any, scored: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    """A point for each trial: its score over `places`."""
    for status, (marker, color) in _LOOKS.items():
        chosen = [(x, record["score"]) for x, record in zip(places, scored) if record["status"] == status]
        if chosen:
            label = f"{status} ({len(chosen)})"
            axes.scatter(
                *zip(*chosen), s=28, marker=marker, color=color, edgecolors="white", lw=0.6, label=label, zorder=3
            )


def _by_setting(axes: Any, name: str, scored: Sequence[Mapping[str, Any]]) -> None:
    """The score by one setting: over its values if they are numbers, otherwise by category."""
    values = [record["settings"][name] for record in scored]
    distinct = _distinct(scored, name)
    axes.set_title(name)
    _mean_line(axes, name, distinct, [record for record in scored if record["status"] == "finished"])
    if all(map(is_numeric, values)):
        _points(axes, scored, values)
        low, high = min(values), max(values)
        # Numbers drawn from a range can be anywhere, so the ticks are round numbers.
        shown = distinct if len(distinct) <= 5 and _few(scored, name) else None
        if spans_decades(values):
            log_axis(axes, low, high, shown)
        elif shown and min(b - a for a, b in itertools.pairwise(shown)) > (high - low) / 10:
            axes.set_xticks(shown)
        else:
            whole = all(isinstance(value, int) for value in values)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        return
    axes.categories = [str(value) for value in distinct]
    _points(axes, scored, [axes.categories.index(str(value)) for value in values])
    axes.set_xticks(range(len(distinct)), ["\n".join(wrapped(text, 14)) for text in axes.categories])
    axes.set_xlim(-0.5, len(distinct) - 0.5)


def _distinct(records: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The distinct values of a setting: numbers ascending, then others."""
    by_text = {str(record["settings"][name]): record["settings"][name] for record in records}
    return sorted(
        by_text.values(), key=lambda value: (not is_numeric(value), value if is_numeric(value) else str(value))
    )


def _few(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a setting was searched over a few values, not drawn from a range."""
    return 1 < len(_distinct(records, name)) <= min(MOST_VALUES, len(records) // 2)


def _mean_line(axes: Any, name: str, distinct: Sequence[Any], finished: Sequence[Mapping[str, Any]]) -> None:
    """The mean of the finished trials at each of a few values, with their deviation, behind the points."""
    if not _few(finished, name):
        return
    scores = [[one["score"] for one in finished if str(one["settings"][name]) == str(value)] for value in distinct]
    known = [(place, of_value) for place, of_value in enumerate(scores) if of_value]
    numeric = all(map(is_numeric, distinct))
    places = [distinct[place] if numeric else place for place, _ in known]
    means = [sum(one) / len(one) for _, one in known]
    deviations = [sample_deviation(one) for _, one in known]
    axes.plot(places, means, color=PALETTE[0], lw=1.4, alpha=0.6, zorder=1)
    for place, mean, deviation in zip(places, means, deviations):
        axes.plot([place, place], [mean - deviation, mean + deviation], color=PALETTE[0], lw=1.4, alpha=0.6, zorder=1)


def _map(axes: Any, names: Sequence[str], finished: Sequence[Mapping[str, Any]]) -> None:
    """The finished trials' mean score over both settings."""
    down, across = (list(map(str, _distinct(finished, name))) for name in names)
    cells: dict[tuple[str, ...], list[float]] = {}
    for record in finished:
        cells.setdefault(tuple(str(record["settings"][name]) for name in names), []).append(record["score"])
    draw_heat(axes, down, across, {key: sum(found) / len(found) for key, found in cells.items()})
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    axes.set_title("finished trials")


def table(result: Mapping[str, Any]) -> str:
    """The trials as a table, best first, at most :data:`ROWS` of them."""
    best = result["best"]
    scored = [record for record in result["trials"] if record["score"] is not None]
    bigger = all(record["score"] <= best["score"] for record in scored)
    scored.sort(key=lambda record: (-record["score"] if bigger else record["score"], record["trial"]))
    others = [record for record in result["trials"] if record["score"] is None]
    names = list(result["space"])
    lines = [["trial", "status", result["valid_metric"], "epochs", "seconds", *names]]
    for record in [*scored, *others][:ROWS]:
        score = "-" if record["score"] is None else f"{record['score']:.4f}"
        cells = [str(record["trial"]), record["status"], score, str(record["epochs"]), f"{record['seconds']:.1f}"]
        lines.append([*cells, *(_cell(record["settings"][name]) for name in names)])
    left_out = len(result["trials"]) - (len(lines) - 1)
    more = [f"... and {left_out} more in trials.csv"] if left_out > 0 else []
    return "\n".join([*columns(lines), *more])


def summary(result: Mapping[str, Any]) -> str:
    """The table, the numbers of trials by status, the best trial with its test result, and the files."""
    best, counts = result["best"], result["counts"]
    became = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    chosen = ", ".join(f"{name} {_cell(value)}" for name, value in best["settings"].items())
    lines = [
        f"{result['model']} on {result['dataset']}: {became}; best first, by {result['valid_metric']} on validation",
        table(result),
        "",
        f"Best: trial {best['trial']}, {result['valid_metric']} {best['score']:.4f} on validation: {chosen}",
    ]
    if "test_result" in result:
        shown = [f"{name} {value:.4f}" for name, value in result["test_result"].items()]
        lines.append(f"Its test split, which no trial read: {', '.join(shown)}")
    files = f"{result['folder']}: trials.csv, trials.png, result.json"
    return "\n".join([*lines, f"Train it: recbole-kd train --config_files={shlex.quote(result['config_file'])}", files])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
