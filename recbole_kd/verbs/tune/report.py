"""What a search leaves for people: a table, a CSV, a plot, and the best configuration as YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_kd.experiment.values import merge, nest
from recbole_kd.files.atomic import write_atomic, write_content
from recbole_kd.files.plain import save_json
from recbole_kd.files.tables import csv_text
from recbole_kd.text import columns

#: Rows of the table on the terminal; trials.csv has all.
ROWS = 20


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
    """A line for each trial: what became of it, its settings, and the metrics of its best epoch on validation."""
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
    """The best configuration: what was given, and the winner's settings over it; ``train --config_files`` takes it."""
    best = result["best"]
    kept = {key: value for key, value in given.items() if key not in ("config_files", "result_file", "resume")}
    settings = json.loads(json.dumps(merge(kept, nest(best["settings"])), default=str))
    title = (
        f"# Trial {best['trial']} of {len(result['trials'])}: {result['valid_metric']} {best['score']:.4f} on "
        f"validation, epoch {best['best_epoch']} (0 is the first).\n"
    )
    return title + str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def plot(result: Mapping[str, Any], file: Any) -> None:
    """Draws the objective of each trial and the best so far, as PNG into `file`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [record for record in result["trials"] if record["score"] is not None]
    best = result["best"]
    bigger = all(record["score"] <= best["score"] for record in scored)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = {"finished": ("o", "#1f5fa8"), "pruned": ("x", "#8a8a8a"), "failed": ("v", "#c23b22")}
    for status, (marker, colour) in styles.items():
        points = [(record["trial"], record["score"]) for record in scored if record["status"] == status]
        if points:
            numbers, scores = zip(*points)
            axes.scatter(
                numbers, scores, s=34, marker=marker, color=colour, label=f"{status} ({len(points)})", zorder=3
            )
    so_far: list[float] = []
    for record in scored:
        better = not so_far or (record["score"] > so_far[-1] if bigger else record["score"] < so_far[-1])
        so_far.append(record["score"] if better else so_far[-1])
    axes.step([r["trial"] for r in scored], so_far, where="post", color="#d98200", label="best so far", zorder=2)
    axes.scatter([best["trial"]], [best["score"]], marker="o", s=150, facecolors="none", edgecolors="#d98200", zorder=4)
    axes.set_title(f"{result['model']} on {result['dataset']}: best is trial {best['trial']}, {best['score']:.4f}")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{result['valid_metric']} on validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncol=4, frameon=False)
    figure.savefig(file, format="png")


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
    """The table, what became of the trials, the winner with its test result, and the files."""
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
    return "\n".join([*lines, f"Train it: recbole-kd train --config_files={result['config_file']}", files])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
