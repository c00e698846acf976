"""The page: one HTML file that contains charts, tables and plotly's javascript; it needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from recbole_kd.report.headline import findings, recommendation, warnings
from recbole_kd.report.interactive import MATRIX_COLORS, MOST_NUMBERED, charts
from recbole_kd.report.looks import DEPTHS, metric_label
from recbole_kd.report.tables import breakable, html_accuracy, html_costs
from recbole_kd.report.view import LEVEL, Comparison


def html_page(comparison: Comparison) -> str:
    """The report as one HTML file."""
    figures = charts(comparison)
    sections = [
        _headline(comparison, figures),
        _section(
            "Accuracy",
            f"{_escaped(comparison.marks_say())} Test split, {_escaped(_ranking(comparison))}.",
            html_accuracy(comparison),
            _chart(figures, "bars", "Bars with 95 % intervals (bootstrap over users). Dotted: the plain student."),
        ),
        _section(
            "What accuracy costs",
            "Latencies whose ranges meet are equal: a difference within noise puts no model on the front.",
            _chart(figures, "latency", "Accuracy against latency"),
            html_costs(comparison),
        ),
        _section(
            "Are the differences real?",
            f"Row less column, each pair once. Grey: not shown to differ (p ≥ {LEVEL} over users, Holm's correction). "
            f"Stars are those of the table of accuracy. {_key()}",
            # Narrower than this the numbers would run into each other: it scrolls, as the tables do.
            f'<div class="scroll"><div style="min-width:{150 + 64 * min(len(comparison.models), MOST_NUMBERED)}px">',
            _chart(figures, "significance", ""),
            "</div></div>",
        )
        if "significance" in figures
        else "",
        _section(
            "What a setting does",
            "Means over seeds, with deviations; dotted: the plain student and the teacher. Choose on validation, "
            "not here.",
            _chart(figures, "sweep", ""),
        ),
        _section(
            "Learning curves",
            "Thick: mean over seeds, as far as every seed was trained; thin: each seed.",
            _chart(figures, "validation", ""),
            _losses(figures),
        ),
        _section("How it was measured", "", _settings(comparison), _environment(comparison)),
    ]
    data = {"primary": comparison.primary, "charts": figures}
    return Template(_beside("page.html")).substitute(
        title=_escaped(comparison.title),
        style=_beside("page.css"),
        subtitle=_subtitle(comparison),
        toolbar=_toolbar(comparison),
        sections="\n".join(section for section in sections if section),
        plotly=get_plotlyjs(),
        # In a script element only "</" and "<!--" could end or confuse it.
        figures=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        script=_beside("page.js"),
    )


def _headline(comparison: Comparison, figures: Mapping[str, Any]) -> str:
    cards = "".join(
        f'<div class="card"><div class="question">{_escaped(question)}</div>'
        f'<div class="figure">{breakable(value)}</div><div class="explanation">{_escaped(text)}</div></div>'
        for question, value, text in findings(comparison)
    )
    advice = recommendation(comparison)
    lead = f'<p class="advice">{_escaped(advice)}</p>' if advice else ""
    doubts = "".join(f"<li>{_escaped(warning)}</li>" for warning in warnings(comparison))
    listed = f'<ul class="warnings">{doubts}</ul>' if doubts else ""
    budget = (comparison.results.get("budget") or {}).get("sentence")
    sentence = f'<p class="budget"><b>Equal budgets.</b> {_escaped(budget)}</p>' if budget else ""
    picture = _chart(
        figures,
        "size",
        "Accuracy against size. Up and to the left is better. The dashed line joins the models that no other beats in "
        "both (the Pareto front); they have a ring. Vertical lines are 95 % intervals. Models "
        "of one size that would hide each other stand side by side."
        + (" Small points on a line are a student's prefixes." if any(m.prefixes for m in comparison.models) else ""),
    )
    head = f'<div class="head">{picture}<div class="cards">{cards}</div></div>'
    return f"<section>{lead}{head}{listed}{sentence}</section>"


def _ranking(comparison: Comparison) -> str:
    """What the rows rank; results of an earlier version do not say it."""
    mode = str(comparison.results.get("mode") or "full")
    return "full ranking" if mode == "full" else f"--eval_args.mode={mode}"


def _subtitle(comparison: Comparison) -> str:
    seeds = comparison.results.get("seeds") or []
    parts = [f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"] if seeds else []
    if comparison.results.get("splits"):
        parts.append(f"{len(comparison.results['splits'])} random splits")
    elif comparison.results.get("split"):
        parts.append(f"one split for all ({str(comparison.results['split'])[:12]})")
    if comparison.results.get("valid_metric"):
        parts.append(f"epochs chosen by {metric_label(str(comparison.results['valid_metric']).lower())} on validation")
    return _escaped(" · ".join(parts))


def _toolbar(comparison: Comparison) -> str:
    options = "".join(
        f'<option value="{_escaped(metric)}"{" selected" if metric == comparison.primary else ""}>'
        f"{_escaped(metric_label(metric))}</option>"
        for metric in comparison.metrics
    )
    chips = "".join(
        f'<button type="button" class="chip" aria-pressed="true" data-model="{_escaped(model.name)}">'
        f'<span style="color:{model.style.color}">{model.style.symbol[2]}</span> {_escaped(model.name)}</button>'
        for model in comparison.models
    )
    return f'<label>Metric <select id="metric">{options}</select></label><div class="chips">{chips}</div>'


def _section(title: str, introduction: str, *content: str) -> str:
    if not any(part for part in content if not part.startswith(('<div class="pair"', "</div>"))):
        return ""
    lead = f"<p>{introduction}</p>" if introduction else ""
    return f"<section><h2>{title}</h2>{lead}{''.join(content)}</section>"


def _chart(figures: Mapping[str, Any], name: str, caption: str) -> str:
    if name not in figures:
        return ""
    height = max(figure["layout"]["height"] for figure in figures[name].values())
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="chart" id="{name}" style="min-height:{height}px"></div>{words}</figure>'


def _losses(figures: Mapping[str, Any]) -> str:
    panels = "".join(_chart(figures, name, "") for name in figures if name.startswith("loss-"))
    if not panels:
        return ""
    return (
        "<h3>Losses</h3><p>Weighted, summed over an epoch's batches as RecBole logs them; <code>rec</code> is a "
        "model's own.</p>"
        f'<div class="grid">{panels}</div>'
    )


def _key() -> str:
    few, many = (f"{100 * depth:.0f} %" for depth in DEPTHS)
    swatches = "".join(f'<i style="background:{color}"></i>' for color in MATRIX_COLORS)
    return (
        f'<span class="key">row is worse {swatches} row is better</span> (a step at {few} and at {many} of the column).'
    )


def _settings(comparison: Comparison) -> str:
    rows = []
    differing = comparison.differing_settings()
    for model in comparison.models:
        row = model.row
        parts = [
            f"{word} {_escaped(str(value))}"
            for word, value in (
                ("backbone", row.get("backbone")),
                ("teacher", row.get("teacher")),
                ("distilled by", ", ".join(row.get("distillers") or [])),
            )
            if value
        ]
        settings = ", ".join(f"{key}={value}" for key, value in differing[model.name].items())
        epochs = ", ".join(str(run.get("best_epoch", "–")) for run in model.runs)
        rows.append(
            f'<tr><th scope="row">{breakable(model.name)}</th><td class="text">{"; ".join(parts)}</td>'
            f'<td class="text">{_folded(settings)}</td><td>{_escaped(epochs)}</td></tr>'
        )
    return (
        "<h3>Models</h3><p>Settings that differ between rows; results.json has all.</p>"
        '<div class="scroll"><table><thead><tr><th>model</th><th class="text">what it is</th>'
        f'<th class="text">settings</th><th>best epochs</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _folded(settings: str) -> str:
    """Settings as code; a long list is folded."""
    code = f"<code>{_escaped(settings) or '–'}</code>"
    if len(settings) <= 200:
        return code
    return f"<details><summary>{settings.count('=')} settings</summary>{code}</details>"


def _environment(comparison: Comparison) -> str:
    environment = comparison.results.get("environment") or {}
    facts = [("processor", environment.get("cpu")), ("threads", environment.get("threads"))]
    facts += list((environment.get("versions") or {}).items())
    facts += [("training split", comparison.results.get("split"))]
    items = "".join(
        f"<dt>{_escaped(str(name))}</dt><dd>{_escaped(str(value))}</dd>" for name, value in facts if value is not None
    )
    return f"<h3>Environment</h3><dl>{items}</dl>"


def _escaped(text: str) -> str:
    return html.escape(str(text))


def _beside(name: str) -> str:
    """A file of this folder: the page's frame, style and script."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
