"""The report of a comparison: a folder that a person can show.

``results.json`` (everything), ``results.csv`` and ``table.tex`` (tables), ``report.md``, ``report.html`` (one page with
its charts inside, no network) and the charts as PNG.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib as mpl
from matplotlib.figure import Figure

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike, write_atomic
from recbole_kd.files.plain import save_json
from recbole_kd.report.page import findings, html_page
from recbole_kd.report.static import STYLE, pictures
from recbole_kd.report.tables import csv_table, latex_table, markdown_accuracy, markdown_costs
from recbole_kd.report.view import Comparison, metric_label

__all__ = ["read_results", "write_report"]


def write_report(results: Mapping[str, Any], folder: PathLike, setting: str = "output") -> list[Path]:
    """Writes every file of a report.

    Args:
        results: what ``compare`` found (docs/report.md lists the fields).
        folder: made where it does not exist; files of an earlier report are replaced, others are left alone.
        setting: the one that an error says to change.

    Returns:
        The files.

    Raises:
        UserError: these are no results of ``compare``, or the file system refused.
    """
    comparison = Comparison(results)
    folder = Path(folder)
    drawn = pictures(comparison)
    texts = {
        "results.csv": csv_table(comparison),
        "table.tex": latex_table(comparison),
        "report.md": _markdown_report(comparison, list(drawn)),
        "report.html": html_page(comparison),
    }
    save_json(results, folder / "results.json", setting)
    for name, text in texts.items():
        _write(folder / name, text.encode(), setting)
    for name, picture in drawn.items():
        save_picture(picture, folder / f"{name}.png", setting)
    return [folder / name for name in ("results.json", *texts, *(f"{name}.png" for name in drawn))]


def read_results(path: PathLike) -> dict[str, Any]:
    """The results in a results.json.

    Raises:
        UserError: no such file, or no results of ``compare``.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}; give --results=DIR/results.json.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); give the results.json that compare wrote.") from None
    Comparison(results)
    return dict(results)


def save_picture(picture: Figure, path: PathLike, setting: str = "output") -> None:
    """Writes a picture as PNG, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with mpl.rc_context(STYLE):
            # Without the version of matplotlib in it, the same picture is the same file.
            picture.savefig(file, format="png", metadata={"Software": None})

    write_atomic(path, write, setting)


def _write(path: Path, content: bytes, setting: str) -> None:
    write_atomic(path, lambda file: file.write(content), setting)


def _markdown_report(comparison: Comparison, drawn: list[str]) -> str:
    results = comparison.results
    captions = {
        "bars": "Accuracy with 95 % intervals",
        "accuracy-latency": f"{metric_label(comparison.primary)} against latency",
        "accuracy-size": f"{metric_label(comparison.primary)} against size",
        "significance": "Significance of differences",
        "validation": "Learning curves on validation",
        "losses": "Losses",
    }
    environment = results.get("environment") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (environment.get("versions") or {}).items())
    budget = (results.get("budget") or {}).get("sentence")
    parts = [
        f"# {comparison.title}",
        "\n".join(f"- {question}: **{value}** ({text})" for question, value, text in findings(comparison)),
        budget or "",
        "## Accuracy",
        comparison.marks_say().replace("*", r"\*"),
        markdown_accuracy(comparison),
        "## Costs",
        markdown_costs(comparison),
        "## Charts",
        *(f"### {captions[name]}\n\n![{captions[name]}]({name}.png)" for name in drawn),
        "## Environment",
        f"{environment.get('cpu', 'unknown processor')}, {environment.get('threads', '?')} threads; {versions}. "
        f"Seeds {', '.join(map(str, results.get('seeds') or []))}; training split `{results.get('split', '')}`.",
        "The interactive page is [report.html](report.html); every figure is in [results.json](results.json).",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
