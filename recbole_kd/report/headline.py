"""The first lines of a report: the recommended model, its gain and costs, and warnings about the results."""

from __future__ import annotations

from typing import Optional

from recbole_kd.evaluation.metrics import smaller_is_better
from recbole_kd.report.looks import metric_label, p_text, percent
from recbole_kd.report.schema import number
from recbole_kd.report.view import Comparison, Model
from recbole_kd.text import duration

#: A teacher is called bad if it is below the best undistilled row by more than this share.
FAR = 0.02
#: The share of the metric that a smaller prefix may lose.
LITTLE = 0.01

#: (question, figure, explanation).
Finding = tuple[str, str, str]


def findings(comparison: Comparison) -> list[Finding]:
    """(question, figure, explanation) for the head of a report; unknown ones are left out."""
    metric = comparison.primary
    contest = comparison.contest(metric)
    if not contest:
        return []
    best = contest[0]
    base, teacher = comparison.reference_of(best), comparison.teacher_of(best)
    label, interval = metric_label(metric), best.confidence(metric)
    between = f", 95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    rivals = f"; best of {len(contest)} distilled rows of this size" if best.is_distilled and len(contest) > 1 else ""
    found = [("Best student", best.name, f"{label} {best.mean(metric):.4f}{between}; {best.size}{rivals}")]
    closed, gain = best.gap_closed(metric), best.gain(metric)
    if base is not None and teacher is not None and closed is not None:
        found.append(
            (
                "Teacher gap closed",
                f"{100 * closed:.0f} %",
                f"transfer ratio: {label} from {base.name} to {teacher.name}",
            )
        )
    if base is not None and gain is not None:
        found.append(("Over the plain student", percent(gain), f"{label}, {base.name}"))
    found += [part for part in (_size(best, teacher), _latency(best, teacher), _training(best, base, teacher)) if part]
    if base is not None and comparison.p_value(metric, best.name, base.name) is not None:
        found.append(_significance(comparison, best, base))
    return found


def _size(best: Model, teacher: Optional[Model]) -> Optional[Finding]:
    stored = best.cost("parameters")
    if stored is None:
        return None
    other = None if teacher is None else teacher.cost("parameters")
    if teacher is None or not other or not stored:
        return "Size", f"{stored:,.0f}", "stored numbers"
    ratio = f"{other / stored:.1f}× smaller" if other >= stored else f"{stored / other:.1f}× larger"
    return "Size", ratio, f"{stored:,.0f} stored numbers; {teacher.name} {other:,.0f}"


def _latency(best: Model, teacher: Optional[Model]) -> Optional[Finding]:
    median = best.cost("latency_ms", "batch_1", "p50")
    if not median:
        return None
    other = None if teacher is None else teacher.cost("latency_ms", "batch_1", "p50")
    if teacher is None or not other:
        return "Latency", f"{median:.3g} ms", "median for one user"
    return "Latency", compared_latency(best, teacher), f"{median:.3g} ms for one user; {teacher.name} {other:.3g} ms"


def compared_latency(model: Model, other: Model) -> str:
    """The first row's latency compared with the second's; differences within noise count as equal."""
    mine, its = model.latency_range(), other.latency_range()
    first, second = (one.cost("latency_ms", "batch_1", "p50") for one in (model, other))
    if mine is None or its is None or not first or not second:
        return "not measured"
    if mine[0] <= its[1] and its[0] <= mine[1]:
        return "equal within noise"
    return f"{second / first:.1f}× faster" if first < second else f"{first / second:.1f}× slower"


def _training(best: Model, base: Optional[Model], teacher: Optional[Model]) -> Optional[Finding]:
    ratio, whole = best.cost("ratio_to_plain"), best.train_seconds
    taught = None if teacher is None else teacher.train_seconds
    parts = [] if whole is None else [f"{duration(whole)} in all"]
    if taught is not None and teacher is not None:
        parts.append(f"{duration(taught)} more for {teacher.name}")
    if base is not None and ratio is not None:
        return "Cost of training", f"{ratio:.1f}× plain", ", ".join(["for an epoch", *parts])
    return ("Cost of training", duration(whole), "all epochs") if whole is not None else None


def _significance(comparison: Comparison, best: Model, base: Model) -> Finding:
    metric = comparison.primary
    figure = {
        "": "not shown",
        "*": "for other users",
        "**": "for other users and seeds",
    }[comparison.pair_mark(metric, best.name, base.name)]
    return "Significance", figure, f"{_p_values(comparison, best, base)}, against {base.name}"


def _p_values(comparison: Comparison, first: Model, second: Model) -> str:
    users, seeds = (
        comparison.p_value(comparison.primary, first.name, second.name, unit) for unit in ("users", "seeds")
    )
    return f"over users {p_text(users)}, over seeds {p_text(seeds)}"


def recommendation(comparison: Comparison) -> str:
    """The recommended model, in one or two sentences with numbers; empty if nothing was measured."""
    metric = comparison.primary
    contest = comparison.contest(metric)
    if not contest:
        return ""
    best = contest[0]
    if not best.is_distilled:
        return _among_plain(comparison, contest)
    base = comparison.reference_of(best)
    stored = best.cost("parameters")
    sentences = []
    rivals = [
        model
        for model in comparison.ranked(metric)
        if not model.is_distilled and _beats(comparison, model, best) and _no_larger(model, stored)
    ]
    if rivals:
        rival = rivals[0]
        sentences.append(
            f"Take {rival.name}: it is not distilled, and its {_value(rival, metric)} is ahead of "
            f"{_value(best, metric)} of {best.name}, the best distilled row of {best.size} "
            f"({_p_values(comparison, rival, best)})."
        )
        chosen = rival
    elif base is not None and comparison.arrow(metric, best.name) != "▲":
        sentences.append(
            f"Keep {_plain(base)}: no distilled row of {best.size} is surely better. The best, {best.name}, "
            f"differs by {percent(best.gain(metric))} in {metric_label(metric)} ({_p_values(comparison, best, base)})."
        )
        chosen = base
    else:
        sentences.append(f"Take {best.name}: {', '.join(_reasons(comparison, best, base))}.")
        chosen = best
    sentences += _smaller_prefix(chosen, metric)
    larger = [
        model
        for model in comparison.ranked(metric)
        if _beats(comparison, model, chosen) and not _no_larger(model, chosen.cost("parameters"))
    ]
    if larger and chosen.cost("parameters"):
        times = (larger[0].cost("parameters") or 0.0) / (chosen.cost("parameters") or 1.0)
        sentences.append(f"With {times:.1f}× the stored numbers, {larger[0].name} reaches {_value(larger[0], metric)}.")
    return " ".join(sentences)


def _smaller_prefix(model: Model, metric: str) -> list[str]:
    """A sentence on the smallest prefix that loses at most :data:`LITTLE` of a Matryoshka student's metric."""
    whole = model.mean(metric)
    for size, found in model.prefixes.items():
        value = number((found.get("mean") or {}).get(metric))
        if not whole or value is None:
            continue
        share = value / whole
        if (share - 1 if smaller_is_better(metric) else 1 - share) <= LITTLE:
            said = f"{metric_label(metric)} {value:.4f}, {100 * share:.1f} % of the whole"
            return [f"Its first {size} of {model.size} reach {said}."]
    return []


def _reasons(comparison: Comparison, best: Model, base: Optional[Model]) -> list[str]:
    metric = comparison.primary
    reasons = [_value(best, metric)]
    if base is not None and best.gain(metric) is not None:
        p = _p_values(comparison, best, base)
        reasons[0] += f" is {percent(best.gain(metric))} over {_plain(base)} ({p})"
    teacher, closed = comparison.teacher_of(best), best.gap_closed(metric)
    if teacher is not None:
        if closed is not None:
            reasons.append(f"it closes {100 * closed:.0f} % of the gap to {teacher.name}")
        reasons += [f"its size is {size[1]} than that teacher's" for size in [_size(best, teacher)] if size]
        if best.latency_range() and teacher.latency_range():
            reasons.append(f"its latency {compared_latency(best, teacher)}")
    ratio = best.cost("ratio_to_plain")
    if base is not None and ratio is not None:
        reasons.append(f"its epoch costs {ratio:.1f}× the plain student's")
    return reasons


def _among_plain(comparison: Comparison, contest: list[Model]) -> str:
    metric = comparison.primary
    if len(contest) == 1:
        return ""
    best, second = contest[:2]
    against = f"{_value(best, metric)} against {_value(second, metric)} ({_p_values(comparison, best, second)})"
    if comparison.pair_mark(metric, best.name, second.name):
        return f"Take {best.name}: it is better than the second best, {second.name}: {against}."
    return f"{best.name} and {second.name} do not surely differ, {against}: take the cheaper one."


def _plain(base: Model) -> str:
    return base.name if "plain" in base.name else f"the plain {base.name}"


def _value(model: Model, metric: str) -> str:
    mean = model.mean(metric)
    return f"{metric_label(metric)} {'unknown' if mean is None else f'{mean:.4f}'}"


def _beats(comparison: Comparison, model: Model, other: Model) -> bool:
    """Whether a row is better in the printed digits."""
    metric = comparison.primary
    return _value(model, metric) != _value(other, metric) and comparison.better(metric, model.name, other.name)


def _no_larger(model: Model, stored: Optional[float]) -> bool:
    own = model.cost("parameters")
    return own is not None and stored is not None and own <= stored


def warnings(comparison: Comparison) -> list[str]:
    """Warnings about the results, one sentence each."""
    metric = comparison.primary
    found = []
    unfinished = [model for model in comparison.models if model.unfinished]
    if unfinished:
        names = [
            model.name + (f" ({model.unfinished} of {len(model.runs)} runs)" if len(model.runs) > 1 else "")
            for model in unfinished
        ]
        found.append(
            f"Not trained to the end, as the best epoch was the last one: {', '.join(names)}. Give more --epochs."
        )
    contest = comparison.contest(metric)
    plain = [model for model in comparison.ranked(metric) if not model.is_distilled]
    for teacher in comparison.models:
        if not teacher.is_teacher or teacher.mean(metric) is None or not plain:
            continue
        value, best = teacher.mean(metric) or 0.0, plain[0].mean(metric) or 0.0
        below = value / best - 1 if best else 0.0
        if smaller_is_better(metric):
            below = -below
        if below < -FAR:
            found.append(
                f"The teacher {teacher.name} is {-below:.0%} worse than {plain[0].name}, which is not distilled "
                f"({metric_label(metric)} {value:.4f} against {best:.4f}): a student can take nothing better from it."
            )
    best_one = contest[0] if contest and contest[0].is_distilled else None
    base = None if best_one is None else comparison.reference_of(best_one)
    if best_one is not None and base is not None and not comparison.better(metric, best_one.name, base.name):
        found.append(f"No distilled row of {best_one.size} is better than {_plain(base)}.")
    return found
