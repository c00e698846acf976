"""The tables of a report: CSV, LaTeX, Markdown and HTML of the same rows, with the same marks."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Optional

from recbole_kd.files.tables import csv_text
from recbole_kd.report.looks import metric_label, percent, with_breaks
from recbole_kd.report.view import Comparison, Model
from recbole_kd.text import duration

TEACHER_ROW = ' class="teacher"'
#: One column of the table of costs: heading and the cell of a row.
CostColumn = tuple[str, Callable[[Model], str]]


def accuracy_cell(comparison: Comparison, model: Model, metric: str) -> Optional[tuple[str, str, int, str]]:
    """(mean, deviation, place, mark) of one cell, or None if the row lacks the metric.

    The deviation is empty with one seed. The place is 1 for the best contender, 2 for the second, 0 for the others. The
    mark is an arrow and stars: "▲**", "▼*".
    """
    mean, deviation = model.mean(metric), model.deviation(metric)
    if mean is None:
        return None
    spread = f"{deviation:.4f}" if deviation and len(model.runs) > 1 else ""
    return (
        f"{mean:.4f}",
        spread,
        comparison.places(metric).get(model.name, 0),
        comparison.arrow(metric, model.name) + comparison.mark(metric, model.name),
    )


def ordered_metrics(comparison: Comparison) -> list[str]:
    """The metrics in the order of tables: the primary metric, with gain and gap, is first."""
    return [comparison.primary, *(metric for metric in comparison.metrics if metric != comparison.primary)]


def accuracy_headings(comparison: Comparison) -> list[str]:
    """The columns after the model's name: size, primary metric, gain, its reference, gap, share, other metrics."""
    first, *others = map(metric_label, ordered_metrics(comparison))
    return ["dimensions", first, f"gain, {first}", "over", "gap closed", "of teacher", *others]


def accuracy_line(
    comparison: Comparison, model: Model, shown: Callable[[str, str, int, str], str], text: Callable[[str], str]
) -> list[str]:
    """A row's cells for :func:`accuracy_headings`; `shown` formats a metric's cell, `text` escapes text."""
    cells = (accuracy_cell(comparison, model, metric) for metric in ordered_metrics(comparison))
    first, *others = [text("–") if cell is None else shown(*cell) for cell in cells]
    base = comparison.reference_of(model)
    dimensions = "–" if model.dimensions is None else str(model.dimensions)
    closed = None if base is None or model.is_teacher else model.gap_closed(comparison.primary)
    gain = "–"
    if base is not None and model.gain(comparison.primary) is not None:
        arrow = comparison.arrow(comparison.primary, model.name)
        gain = f"{arrow}\u00a0{percent(model.gain(comparison.primary))}".lstrip("\u00a0").replace(" ", "\u00a0")
    shares = (closed, comparison.teacher_share(comparison.primary, model))
    words = [gain, "–" if base is None else base.name]
    words += ["–" if share is None else f"{100 * share:.0f}\u00a0%" for share in shares]
    return [text(dimensions), first, *map(text, words), *others]


def cost_columns() -> list[CostColumn]:
    """Headings and cells of the table of costs, in order."""
    return [
        ("s\u00a0/\u00a0epoch", lambda model: figure(model.cost("seconds_per_epoch"), ".2f")),
        ("×\u00a0plain", lambda model: figure(model.cost("ratio_to_plain"), ".2f")),
        ("peak memory", lambda model: memory(model.cost("peak_memory_bytes"))),
        ("training, all epochs", lambda model: "–" if model.train_seconds is None else duration(model.train_seconds)),
        ("stored numbers", lambda model: figure(model.cost("parameters"), ",.0f")),
        ("ms\u00a0/\u00a0user, one at a time (p50 / p95)", lambda model: _latency(model, "batch_1")),
        ("users\u00a0/\u00a0s", lambda model: figure(model.cost("users_per_second", "batch_1"), ",.0f")),
        ("ms\u00a0/\u00a0user, 1,024 at a time (p50 / p95)", lambda model: _latency(model, "batch_1024")),
        ("users\u00a0/\u00a0s", lambda model: figure(model.cost("users_per_second", "batch_1024"), ",.0f")),
    ]


def figure(value: Optional[float], form: str) -> str:
    """A number in a cell; "–" if it was not measured."""
    return "–" if value is None else format(value, form)


def memory(size: Optional[float]) -> str:
    """Bytes as text: in MB below 1,000 MB, otherwise in GB."""
    if size is None:
        return "–"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _latency(model: Model, batch: str) -> str:
    values = [model.cost("latency_ms", batch, quantile) for quantile in ("p50", "p95")]
    if values[0] is None:
        return "–"
    return " / ".join(figure(value, ".3g") for value in values)


def csv_table(comparison: Comparison) -> str:
    """A row for each model: each metric with deviation, interval, gain, share of the gap and p-value; the costs."""
    fields = ["name", "role", "backbone", "dimensions", "teacher", "reference", "distillers", "seeds"]
    for metric in comparison.metrics:
        parts = ("", " deviation", " low", " high", " relative gain", " gap closed", " of teacher", " p")
        fields += [metric + part for part in parts]
    costs = {
        "seconds per epoch": ("seconds_per_epoch",),
        "ratio to plain": ("ratio_to_plain",),
        "peak memory bytes": ("peak_memory_bytes",),
        "parameters": ("parameters",),
        **{
            f"latency ms batch {size} {quantile}": ("latency_ms", f"batch_{size}", quantile)
            for size in (1, 1024)
            for quantile in ("p50", "p95")
        },
        **{f"users per second batch {size}": ("users_per_second", f"batch_{size}") for size in (1, 1024)},
    }
    lines: list[list[object]] = [[*fields, *costs]]
    for model in comparison.models:
        row = model.row
        base = comparison.reference_of(model)
        line: list[object] = [model.name, row.get("role"), row.get("backbone"), model.dimensions, row.get("teacher")]
        line += [base and base.name]
        line += [" ".join(row.get("distillers") or []), len(model.runs)]
        for metric in comparison.metrics:
            low, high = model.confidence(metric) or (None, None)
            against = comparison.base(metric, model.name)
            p = None if against is None else comparison.p_value(metric, model.name, against.name)
            line += [model.mean(metric), model.deviation(metric), low, high]
            line += [model.gain(metric), model.gap_closed(metric), comparison.teacher_share(metric, model), p]
        lines.append([*line, *(model.cost(*path) for path in costs.values())])
    return csv_text(lines)


def latex_table(comparison: Comparison) -> str:
    """Two floats for a paper, with booktabs: accuracy, and costs. Best bold, second underlined, marks raised."""
    dataset = _latex(str(comparison.results.get("dataset", "")))
    headings = accuracy_headings(comparison)
    lines = [
        r"% needs \usepackage{booktabs}; wide tables: \usepackage{graphicx} and \resizebox{\textwidth}{!}{...}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{Test accuracy on {dataset}. {_latex(comparison.marks_say())}}}",
        rf"\begin{{tabular}}{{l{'c' * len(headings)}}}",
        r"\toprule",
        _latex_row(["Model", *headings]),
        r"\midrule",
    ]
    for index, model in enumerate(comparison.models):
        if index and comparison.models[index - 1].is_teacher and not model.is_teacher:
            lines.append(r"\midrule")
        cells = [_latex(model.name), *accuracy_line(comparison, model, _latex_accuracy, _latex)]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    columns = cost_columns()
    lines += [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{Costs on {dataset}.}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        _latex_row(["Model", *(heading for heading, _ in columns)]),
        r"\midrule",
        *(_latex_row([model.name, *(cell(model) for _, cell in columns)]) for model in comparison.models),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_accuracy(mean: str, spread: str, place: int, mark: str) -> str:
    shown = {0: mean, 1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}[place]
    stars = mark.lstrip("▲▼")
    return (
        shown
        + _latex(mark[: len(mark) - len(stars)])
        + (f"$^{{{stars}}}$" if stars else "")
        + (rf" {{\scriptsize $\pm$ {spread}}}" if spread else "")
    )


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "\u00a0": "~",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def markdown_accuracy(comparison: Comparison) -> str:
    """The table of accuracy as Markdown."""
    lines = [["model", *map(markdown, accuracy_headings(comparison))]]
    for model in comparison.models:
        name = markdown(model.name) + (" (teacher)" if _unsaid_teacher(model) else "")
        lines.append([name, *accuracy_line(comparison, model, _markdown_accuracy, markdown)])
    return _markdown_table(lines)


def _markdown_accuracy(mean: str, spread: str, place: int, mark: str) -> str:
    shown = {0: mean, 1: f"**{mean}**", 2: f"<ins>{mean}</ins>"}[place]
    return shown + mark.replace("*", r"\*") + (f" ± {spread}" if spread else "")


def markdown_costs(comparison: Comparison) -> str:
    """The table of costs as Markdown."""
    columns = cost_columns()
    lines = [["model", *(markdown(heading) for heading, _ in columns)]]
    lines += [[markdown(model.name), *(cell(model) for _, cell in columns)] for model in comparison.models]
    return _markdown_table(lines)


def markdown(text: str) -> str:
    """`text` as plain text on one line of Markdown; markup is escaped."""
    line = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#&" else character for character in line)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])) + "\n"


def _unsaid_teacher(model: Model) -> bool:
    return model.is_teacher and "teacher" not in model.name.lower()


def html_accuracy(comparison: Comparison) -> str:
    """The table of accuracy as HTML."""
    body = []
    for model in comparison.models:
        values = accuracy_line(comparison, model, _html_accuracy, _html_word)
        body.append((model, [_name_cell(model), *(f"<td>{value}</td>" for value in values)]))
    return _html_table(accuracy_headings(comparison), body)


def _html_word(text: str) -> str:
    """Text of a cell: arrows are coloured, long names may be broken."""
    for arrow, kind in (("▲", "up"), ("▼", "down")):
        if text.startswith(arrow):
            return f'<span class="{kind}">{arrow}</span>{html.escape(text[1:])}'
    return breakable(text) if len(text) > 12 else html.escape(text)


def _html_accuracy(mean: str, spread: str, place: int, mark: str) -> str:
    shown = {0: mean, 1: f"<b>{mean}</b>", 2: f"<u>{mean}</u>"}[place]
    return f'{shown}<span class="mark">{_html_word(mark)}</span>' + (f"<small>± {spread}</small>" if spread else "")


def html_costs(comparison: Comparison) -> str:
    """The table of costs as HTML."""
    columns = cost_columns()
    body = [
        (model, [_name_cell(model), *(f"<td>{html.escape(cell(model))}</td>" for _, cell in columns)])
        for model in comparison.models
    ]
    return _html_table([heading for heading, _ in columns], body)


def _name_cell(model: Model) -> str:
    role = ' <span class="role">teacher</span>' if _unsaid_teacher(model) else ""
    glyph = f'<i style="color:{model.style.color}">{model.style.symbol[2]}</i>'
    return f'<th scope="row"><div class="name">{glyph}<span>{breakable(model.name)}{role}</span></div></th>'


def breakable(name: str) -> str:
    """A name as HTML whose long words may be broken, so that it fits a narrow place."""
    return html.escape(with_breaks(name, 10, "\u200b")).replace("\u200b", "<wbr>")


def _html_table(headings: Sequence[str], body: Sequence[tuple[Model, Sequence[str]]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    rows = "".join(f"<tr{TEACHER_ROW if model.is_teacher else ''}>{''.join(cells)}</tr>\n" for model, cells in body)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">model</th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )
