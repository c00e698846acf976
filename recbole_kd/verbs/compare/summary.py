"""Summarises the runs' records: means, deviations, intervals, tests, gains, costs; and the table for a terminal."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.evaluation.costs import THREADS
from recbole_kd.evaluation.metrics import smaller_is_better
from recbole_kd.evaluation.per_user import load_per_user
from recbole_kd.evaluation.significance import bootstrap_intervals, pairwise, sample_deviation
from recbole_kd.stages.result import versions
from recbole_kd.text import columns, counted
from recbole_kd.verbs.compare.plan import Plan, Row

FORMAT = 1

Record = Mapping[str, Any]
PerUser = dict[str, NDArray[Any]]


def summarise(
    plan: Plan, records: Mapping[str, Sequence[Record]], splits: Sequence[str], ranking: str = ""
) -> dict[str, Any]:
    """results.json; its fields are in docs/compare.md.

    Args:
        records: row name -> the records of :func:`perform`, one for each seed on the first split, and so on.
        splits: digests of the training splits.
        ranking: the text of :func:`ranked`.

    Raises:
        UserError: per-user files of different users.
    """
    per_user, means = _measured(plan, records)
    metrics = list(records[plan.rows[0].name][0]["test_result"])
    average = {name: {metric: float(np.mean(values[metric])) for metric in metrics} for name, values in means.items()}
    reference = next((row.reference for row in plan.rows if row.reference), None)
    teacher = next((row.name for row in plan.rows if row.role == "teacher"), None)
    # A plain student and a teacher belong to the recipes that name them; of several the first counts.
    recipes = [row for row in reversed(plan.rows) if row.role == "recipe"]
    taught = {row.reference: row.teacher for row in recipes}
    surpassed = {row.teacher: row.reference for row in recipes}
    rows = []
    for row in plan.rows:
        own_reference = row.name if row.role == "plain" else row.reference or surpassed.get(row.name, reference)
        own_teacher = {"teacher": row.name, "recipe": row.teacher}.get(row.role, taught.get(row.name, teacher))
        rows.append(
            {
                "name": row.name,
                "role": row.role,
                "backbone": row.backbone,
                "teacher": taught.get(row.name, row.teacher),
                "reference": own_reference,
                # Runs of older versions lack it.
                **{key: records[row.name][0][key] for key in ("dimensions",) if key in records[row.name][0]},
                "distillers": row.distillers,
                "settings": row.chosen(),
                "runs": [{key: record[key] for key in _RUN_FIELDS} for record in records[row.name]],
                "mean": average[row.name],
                "deviation": {metric: sample_deviation(means[row.name][metric]) for metric in metrics},
                "confidence": _confidence(per_user[row.name]),
                "relative_gain": {
                    metric: _relative_gain(average[row.name][metric], _of(average, own_reference, metric))
                    for metric in metrics
                },
                "gap_closed": {
                    metric: _gap_closed(
                        average[row.name][metric],
                        _of(average, own_reference, metric),
                        _of(average, own_teacher, metric),
                        smaller_is_better(metric),
                    )
                    for metric in metrics
                },
                "costs": _costs(records[row.name], records.get(own_reference or "")),
                **_prefixes(records[row.name]),
                **({"sweep": {"of": row.swept_from, "settings": dict(row.swept)}} if row.swept else {}),
            }
        )
    return {
        "format": FORMAT,
        "dataset": plan.dataset,
        "split": splits[0],
        **({"splits": list(splits)} if len(splits) > 1 else {}),
        "mode": plan.students[0].first_config["eval_args"]["mode"]["test"],
        "metrics": metrics,
        "valid_metric": str(plan.students[0].first_config["valid_metric"]).lower(),
        "seeds": list(plan.seeds),
        "budget": {
            "tune_trials": plan.tune_trials,
            "epochs": plan.epochs,
            "stopping_step": plan.stopping_step,
            "sentence": " ".join(filter(None, [budget_sentence(plan), ranking, _candidates(plan)])),
        },
        "reference": reference,
        "teacher": teacher,
        "environment": {
            "cpu": cpu_name(),
            "device": str(plan.students[0].first_config["device"]),
            "threads": max(record["threads"] for runs in records.values() for record in runs),
            "inference_threads": THREADS,
            "parallel_runs": plan.parallel,
            "versions": versions(),
        },
        "rows": rows,
        "significance": {metric: _significance(plan.rows, metric, per_user, means) for metric in metrics},
    }


_RUN_FIELDS = (
    *("seed", "test_result", "best_valid_result", "best_epoch", "epoch_seconds", "loss_history", "valid_history"),
    *("peak_memory_bytes", "checkpoint", "per_user"),
)


def ranked(loaded: Sequence[Splits]) -> str:
    """The sentences on targets and ranked items; empty if all models are general and rank all unseen items.

    Args:
        loaded: the data for sequential models and, if there are any, for other models.
    """
    mode = loaded[0].dataset.config["eval_args"]["mode"]["test"]
    among = ""
    if mode not in ("full", "labeled"):
        among = f"Only drawn candidates are ranked (--eval_args.mode={mode}), the same for all rows and seeds."
    if not loaded[0].sequential:
        return among
    alike = (
        "All models, sequential or not, learn from the same interactions and have the same target for each user, the "
        "last item. "
    )
    repeatable = loaded[0].repeatable
    what = "all items, also those that the user has seen" if repeatable else "the items that the user has not seen"
    return f"{alike if len(loaded) > 1 else ''}{among or f'Every row ranks {what}.'}"


def _candidates(plan: Plan) -> str:
    """The sentence on metrics among drawn candidates; empty if there are none."""
    if not plan.candidates:
        return ""
    return (
        f"Metrics with ({plan.candidates}) rank a user's targets among {plan.candidates[3:]} drawn items for each, the "
        "same for all rows and seeds."
    )


def budget_sentence(plan: Plan) -> str:
    """One sentence on the budget of every method; with several splits two."""
    valid = plan.students[0].first_config["valid_metric"]
    searched = [row for row in plan.students if row.space != "none"]
    left = [row.name for row in plan.students if row.space == "none"]
    tuned = "with the settings of its preset, not tuned"
    if plan.tune_trials:
        tuned = f"with settings chosen on validation among {plan.tune_trials} trials"
        tuned += f" (except {', '.join(left)}, as it is)" if left and searched else ""
    but = "; ".join(f"{name}: {budget}" for name, budget in plan.own_budgets.items())
    teachers = [row for row in plan.rows if row.role == "teacher"]
    splits = len(plan.split_seeds)
    once = "once" if splits == 1 else "once for each split"
    teacher = f"; each teacher was trained {once}, with seed {teachers[0].seeds[0]}" if teachers else ""
    on = "one split" if splits == 1 else f"each of {splits} random splits"
    also = "" if splits == 1 else " What holds over seeds holds over these runs, which differ in their splits too."
    counts = {"seed": len(plan.seeds), "epoch": plan.epochs, "evaluation": plan.stopping_step}
    seeds, epochs, evaluations = (counted(count, name) for name, count in counts.items())
    return (
        f"Every student was trained with {seeds} on {on}, {tuned}, for at most {epochs}, stopped after "
        f"{evaluations} without improvement of {valid} on validation"
        f"{f' (except {but})' if but else ''}{teacher}.{also}"
    )


def _measured(
    plan: Plan, records: Mapping[str, Sequence[Record]]
) -> tuple[dict[str, PerUser], dict[str, dict[str, list[float]]]]:
    """The metrics of each row, from the runs' files.

    Returns:
        Row name -> metric -> (n,) each user's mean over the runs that tested the user, the users in the same order for
        all rows; and row name -> metric -> the mean of each run, unrounded if the metric is a mean over users.

    Raises:
        UserError: runs on one split were evaluated on different users.
    """
    tested: dict[int, NDArray[Any]] = {}  # users of each split, which are the same for all rows
    columns_of: dict[str, list[tuple[int, PerUser]]] = {}
    means: dict[str, dict[str, list[float]]] = {}
    for row in plan.rows:
        means[row.name] = {metric: [] for metric in records[row.name][0]["test_result"]}
        columns_of[row.name] = []
        each = len(records[row.name]) // len(plan.split_seeds)
        for number, record in enumerate(records[row.name]):
            users, values = load_per_user(Path(record["per_user"]))
            order = np.argsort(np.array(users), kind="stable")
            known, split = np.array(users)[order], number // each
            if not np.array_equal(known, tested.setdefault(split, known)):
                raise UserError(
                    f"The runs of {row.name} were evaluated on other users than {plan.rows[0].name}; remove "
                    f"{Path(record['per_user']).parent} and repeat the command."
                )
            columns_of[row.name].append((split, {metric: column[order] for metric, column in values.items()}))
            for metric, kept in means[row.name].items():
                kept.append(float(values[metric].mean()) if metric in values else record["test_result"][metric])
    everyone = np.unique(np.concatenate(list(tested.values())))
    places = {split: np.searchsorted(everyone, users) for split, users in tested.items()}
    return {name: _over_runs(runs, places, len(everyone)) for name, runs in columns_of.items()}, means


def _over_runs(runs: Sequence[tuple[int, PerUser]], places: Mapping[int, NDArray[Any]], users: int) -> PerUser:
    """Each user's means over the runs of the splits that tested the user."""
    count = np.zeros(users)
    total: PerUser = {}
    for split, values in runs:
        count[places[split]] += 1
        for metric, column in values.items():
            total.setdefault(metric, np.zeros(users))[places[split]] += column
    return {metric: column / count for metric, column in total.items()}


def _prefixes(records: Sequence[Record]) -> dict[str, Any]:
    """For a student of ``--matryoshka``, means over seeds of each shorter prefix; empty for other models."""
    found = {}
    known = records[0].get("prefixes") or {} if all(record.get("prefixes") for record in records) else {}
    for size, first in known.items():
        runs = [record["prefixes"][size]["test_result"] for record in records]
        found[size] = {
            "mean": {metric: float(np.mean([run[metric] for run in runs])) for metric in runs[0]},
            "deviation": {metric: sample_deviation([run[metric] for run in runs]) for metric in runs[0]},
            "parameters": first["parameters"],
        }
    return {"prefixes": found} if found else {}


def _of(average: Mapping[str, Mapping[str, float]], name: Optional[str], metric: str) -> Optional[float]:
    return None if name is None else average[name][metric]


def _relative_gain(value: float, reference: Optional[float]) -> Optional[float]:
    """value / reference - 1; None if the reference is missing or 0."""
    return None if not reference else value / reference - 1


def _gap_closed(value: float, reference: Optional[float], teacher: Optional[float], smaller: bool) -> Optional[float]:
    """The gain over the reference as a share of the teacher's gain; None if the teacher is not better.

    With `smaller` the smaller value is the better one.
    """
    if reference is None or teacher is None or (teacher >= reference if smaller else teacher <= reference):
        return None
    return (value - reference) / (teacher - reference)


def _confidence(per_user: PerUser) -> dict[str, list[float]]:
    """95 % intervals of the means over users, for the metrics that are means over users."""
    if not per_user:
        return {}
    intervals = bootstrap_intervals(np.column_stack(list(per_user.values())))
    return {metric: list(interval) for metric, interval in zip(per_user, intervals)}


def _costs(records: Sequence[Record], plain: Optional[Sequence[Record]]) -> dict[str, Any]:
    """Medians: of time over all epochs of all runs, of memory and of answering over runs."""
    epoch = _epoch_seconds(records)
    plain_epoch = None if plain is None else _epoch_seconds(plain)
    peaks = [record["peak_memory_bytes"] for record in records if record["peak_memory_bytes"] is not None]
    answering = [record["inference"] for record in records]
    sizes = list(answering[0]["latency_ms"])
    ranges = {
        size: [bound for one in answering for bound in one.get("latency_range_ms", {}).get(size, [])] for size in sizes
    }
    return {
        "seconds_per_epoch": epoch,
        "ratio_to_plain": epoch / plain_epoch if epoch and plain_epoch else None,
        "peak_memory_bytes": int(np.median(peaks)) if peaks else None,
        "parameters": records[0]["parameters"],
        "latency_ms": {
            size: {
                quantile: float(np.median([one["latency_ms"][size][quantile] for one in answering]))
                for quantile in ("p50", "p95")
            }
            for size in sizes
        },
        # The lowest and the highest of the medians of parts of a run's requests.
        "latency_range_ms": {size: [min(bounds), max(bounds)] for size, bounds in ranges.items() if bounds},
        "users_per_second": {
            size: float(np.median([one["users_per_second"][size] for one in answering])) for size in sizes
        },
    }


def _epoch_seconds(records: Sequence[Record]) -> Optional[float]:
    """Median training seconds of an epoch; None if no run recorded them."""
    seconds = [epoch for record in records for epoch in record["epoch_seconds"]]
    return float(np.median(seconds)) if seconds else None


def _significance(
    rows: Sequence[Row], metric: str, per_user: Mapping[str, PerUser], means: Mapping[str, Mapping[str, list[float]]]
) -> dict[str, Any]:
    users = pairwise([per_user[row.name].get(metric) for row in rows])
    seeds = pairwise([np.array(means[row.name][metric]) for row in rows])
    average = [float(np.mean(means[row.name][metric])) for row in rows]
    return {
        "names": [row.name for row in rows],
        **dict(zip(("p_users", "p_users_holm"), users)),
        **dict(zip(("p_seeds", "p_seeds_holm"), seeds)),
        "difference": [[one - other for other in average] for one in average],
    }


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(results: Mapping[str, Any]) -> str:
    """The comparison for a terminal: size, two metrics with deviation, gain and gap; costs; an explanation."""
    from recbole_kd.report.headline import recommendation, warnings
    from recbole_kd.report.view import LEVEL, Comparison

    view = Comparison(results)
    valid = results["valid_metric"]
    cutoff = valid.partition("@")[2]
    twins = [metric for metric in results["metrics"] if metric.startswith(f"{valid} (")]
    shown = [valid, *twins] + [
        metric for metric in (f"recall@{cutoff}", f"ndcg@{cutoff}") if metric in results["metrics"]
    ]
    shown = list(dict.fromkeys(metric for metric in shown if metric in results["metrics"]))[:2]
    several = max(len(row["runs"]) for row in results["rows"]) > 1
    head = ["", "dimensions"]
    for metric in shown:
        head += [metric + (" ± deviation" if several else ""), "gain", "gap closed"]
    head += ["of teacher", "over", "stored numbers", "s/epoch", "x plain", "peak MB", "ms/user", "users/s"]
    lines = [head]
    for row in results["rows"]:
        size, base = view.by_name[row["name"]].dimensions, view.reference_of(view.by_name[row["name"]])
        cells = [row["name"], "-" if size is None else str(size)]
        for metric in shown:
            deviation = f" ± {row['deviation'][metric]:.4f}" if several else ""
            gain, closed = row["relative_gain"][metric], row["gap_closed"][metric]
            marks = view.arrow(metric, row["name"]), view.mark(metric, row["name"])
            cells += [
                f"{row['mean'][metric]:.4f}{deviation}",
                "" if gain is None or base is None else f"{marks[0] or ' '} {gain:+.1%} {marks[1]}".rstrip(),
                "" if closed is None or base is None or row["role"] == "teacher" else f"{closed:.0%}",
            ]
        costs, share = row["costs"], view.teacher_share(shown[0], view.by_name[row["name"]])
        cells += [
            "" if share is None else f"{share:.0%}",
            "" if base is None else base.name,
            f"{costs['parameters']:,}",
            _number(costs["seconds_per_epoch"], "{:.2f}"),
            _number(costs["ratio_to_plain"], "{:.2f}"),
            _number(costs["peak_memory_bytes"], "{:,.0f}", 1e-6),
            _number(costs["latency_ms"]["batch_1"]["p50"], "{:.3f}"),
            _number(costs["users_per_second"]["batch_1024"], "{:,.0f}"),
        ]
        lines.append(cells)
    notes = [recommendation(view), *warnings(view), results["budget"]["sentence"]]
    if results["reference"]:
        notes += [
            "gain: over the row's plain student (column over); gap closed: the gain divided by the teacher's. "
            f"▲ better, ▼ worse, where p < {LEVEL} after Holm: * for other users with these trained models, ** also "
            "for models trained anew (other seeds)."
        ]
    if results["teacher"]:
        notes += [f"of teacher: {shown[0]} divided by the teacher's."]
    notes += ["ms/user: median of one user at a time; users/s: 1,024 at a time; both with one thread."]
    return "\n".join([*columns(lines), "", *filter(None, notes)])


def _number(value: Optional[float], form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(value * factor)
