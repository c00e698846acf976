"""The report of a comparison: a folder of files to read and show.

``results.json`` (everything), ``results.csv`` and ``table.tex`` (tables), ``report.md``, ``report.html`` (one page that
contains its charts and needs no network), and the charts as PNG.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike, write_content
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import read_json
from recbole_kd.report.headline import findings, recommendation, warnings
from recbole_kd.report.looks import metric_label
from recbole_kd.report.page import html_page
from recbole_kd.report.static import STYLE, pictures
from recbole_kd.report.tables import csv_table, latex_table, markdown, markdown_accuracy, markdown_costs
from recbole_kd.report.view import Comparison

__all__ = ["read_results", "write_report"]


def write_report(results: Mapping[str, Any], folder: PathLike, setting: str = "output") -> list[Path]:
    """Writes every file of a report.

    Args:
        results: the results of ``compare`` (docs/report.md lists the fields).
        folder: created if missing; files of an earlier report are replaced, others are not changed.
        setting: the setting to change, named in errors.

    Returns:
        The files.

    Raises:
        UserError: these are not results of ``compare``, or the file system refused.
    """
    comparison = Comparison(results)
    folder = Path(folder)
    drawn = {name: picture_bytes(picture) for name, picture in pictures(comparison).items()}
    texts = {
        "results.csv": csv_table(comparison),
        "table.tex": latex_table(comparison),
        "report.md": _markdown_report(comparison, drawn),
        "report.html": html_page(comparison),
    }
    save_json(results, folder / "results.json", setting)
    for name, text in texts.items():
        write_content(folder / name, text, setting)
    for name, picture in drawn.items():
        write_content(folder / f"{name}.png", picture, setting)
    return [folder / name for name in ("results.json", *texts, *(f"{name}.png" for name in drawn))]


def read_results(path: PathLike) -> dict[str, Any]:
    """The results in a results.json.

    Raises:
        UserError: no such file, or not results of ``compare``.
    """
    try:
        results = read_json(path, Any, "give the results.json that compare wrote")
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}; give --results=DIR/results.json.") from None
    Comparison(results)
    return dict(results)


def picture_bytes(picture: Figure) -> bytes:
    """A picture as a file of PNG."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        # Without matplotlib's version in the file, equal pictures are equal files.
        picture.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _markdown_report(comparison: Comparison, drawn: Iterable[str]) -> str:
    results = comparison.results
    captions = {
        "accuracy-size": f"{metric_label(comparison.primary)} against size",
        "accuracy-latency": f"{metric_label(comparison.primary)} against latency",
        "bars": "Accuracy with 95 % intervals",
        "significance": "Significance of differences",
        "sweep": "What a setting does",
        "validation": "Learning curves on validation",
        "losses": "Losses",
    }
    environment = results.get("environment") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (environment.get("versions") or {}).items())
    budget = (results.get("budget") or {}).get("sentence")
    processor = (
        f"{environment.get('cpu') or 'unknown processor'}, {environment.get('threads') or '?'} threads; {versions}."
    )
    seeds = ", ".join(map(str, results.get("seeds") or []))
    found = ((question, markdown(value), markdown(text)) for question, value, text in findings(comparison))
    charts = [f"### {markdown(captions[name])}\n\n![{markdown(captions[name])}]({name}.png)" for name in drawn]
    parts = [
        f"# {markdown(comparison.title)}",
        markdown(recommendation(comparison)),
        *charts[:1],
        "\n".join(f"- {question}: **{value}** ({text})" for question, value, text in found),
        "\n".join(f"- {markdown(warning)}" for warning in warnings(comparison)),
        markdown(budget or ""),
        "## Accuracy",
        markdown(comparison.marks_say()),
        markdown_accuracy(comparison),
        "## Costs",
        markdown_costs(comparison),
        "## Charts",
        *charts[1:],
        "## Environment",
        f"{markdown(processor)} Seeds {seeds}; training split {markdown(results.get('split') or '')}.",
        "The interactive page is [report.html](report.html); every figure is in [results.json](results.json).",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
