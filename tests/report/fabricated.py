"""Results as `compare` writes them, made up: shapes and sizes are realistic, the figures are nobody's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

METRICS = ["recall@10", "recall@20", "ndcg@10", "ndcg@20", "hit@10", "mrr@10"]

#: name, role, backbone, teacher, distillers, quality, embedding size, latency (ms), own losses
MODELS: list[tuple[str, str, str, Any, list[str], float, int, float, dict[str, float]]] = [
    ("SimRecTeacher (teacher)", "teacher", "SimRecTeacher", None, [], 1.00, 400, 1.9, {}),
    ("BPR", "plain", "BPR", None, [], 0.82, 20, 0.21, {}),
    ("LightGCN", "model", "LightGCN", None, [], 0.87, 20, 0.62, {}),
    ("DERRDStudent", "recipe", "BPR", "SimRecTeacher", ["de", "rrd"], 0.93, 20, 0.22, {"de": 40.0, "rrd": 90.0}),
    ("FreqDStudent", "recipe", "BPR", "SimRecTeacher", ["freqd"], 0.90, 20, 0.215, {"freqd": 25.0}),
    (
        "HTDStudent",
        "recipe",
        "BPR",
        "SimRecTeacher",
        ["htd"],
        0.905,
        20,
        0.225,
        {"htd.topology": 3.0, "htd.assignment": 60.0},
    ),
    (
        "SimRecStudent",
        "recipe",
        "SimRecStudent",
        "SimRecTeacher",
        ["simrec"],
        0.97,
        20,
        0.24,
        {"simrec.prediction": 5.0, "simrec.embedding": 30.0, "simrec.regularization": 12.0},
    ),
]


def fabricated(seeds: int = 3, models: Any = None, users: int = 900) -> dict[str, Any]:
    """A comparison of `models` (by default the seven above)."""
    random = np.random.default_rng(7)
    chosen = MODELS if models is None else models
    base = {"recall@10": 0.175, "recall@20": 0.265, "ndcg@10": 0.23, "ndcg@20": 0.245, "hit@10": 0.66, "mrr@10": 0.39}
    rows = [_row(random, base, seeds, *model) for model in chosen]
    plain = next((row for row in rows if row["role"] == "plain"), None)
    teacher = next((row for row in rows if row["role"] == "teacher"), None)
    for row in rows:
        row["relative_gain"] = {m: row["mean"][m] / plain["mean"][m] - 1 if plain else None for m in METRICS}
        row["gap_closed"] = {
            m: (row["mean"][m] - plain["mean"][m]) / (teacher["mean"][m] - plain["mean"][m])
            if plain and teacher
            else None
            for m in METRICS
        }
        if plain:
            row["costs"]["ratio_to_plain"] = row["costs"]["seconds_per_epoch"] / plain["costs"]["seconds_per_epoch"]
    return {
        "format": 1,
        "dataset": "ml-100k",
        "split": "4f2a9c0d" * 8,
        "metrics": METRICS,
        "valid_metric": "NDCG@20",
        "seeds": [2020 + seed for seed in range(seeds)],
        "budget": {
            "tune_trials": 20,
            "epochs": 300,
            "stopping_step": 20,
            "sentence": "Every method was tuned with 20 trials on validation and trained for at most 300 epochs, stopping after 20 evaluations without gain.",
        },
        "reference": plain and plain["name"],
        "teacher": teacher and teacher["name"],
        "environment": {
            "cpu": "Intel(R) Xeon(R) Processor @ 2.10GHz",
            "threads": 2,
            "versions": {
                "python": "3.11.2",
                "recbole-kd": "0.1.0",
                "recbole": "1.2.1",
                "torch": "2.13.0+cpu",
                "numpy": "1.26.4",
                "scipy": "1.12.0",
            },
        },
        "rows": rows,
        "significance": {m: _significance(rows, m, seeds, users) for m in METRICS},
    }


def with_prefixes(results: dict[str, Any], name: str = "DERRDStudent") -> dict[str, Any]:
    """The results where a row of 20 dimensions has prefixes of 5 and 10, which reach 0.8 and 0.995 of its metrics."""
    row = next(row for row in results["rows"] if row["name"] == name)
    row["prefixes"] = {
        str(size): {
            "mean": {metric: share * value for metric, value in row["mean"].items()},
            "deviation": dict(row["deviation"]),
            "parameters": 2627 * size,
        }
        for size, share in ((10, 0.995), (5, 0.8))
    }
    return results


def with_sweep(results: dict[str, Any], **settings: list[Any]) -> dict[str, Any]:
    """The results where the last rows are DERRDStudent with each combination of the settings' values."""
    values = [dict(zip(settings, one)) for one in itertools.product(*settings.values())]
    for row, own in zip(results["rows"][-len(values) :], values):
        row["sweep"] = {"of": "DERRDStudent", "settings": {key.replace("_", "."): one for key, one in own.items()}}
    return results


def _row(
    random: Any,
    base: dict[str, float],
    seeds: int,
    name: str,
    role: str,
    backbone: str,
    teacher: Any,
    distillers: list[str],
    quality: float,
    size: int,
    latency: float,
    losses: dict[str, float],
) -> dict[str, Any]:
    runs = []
    for seed in range(seeds):
        shift = random.normal(0, 0.006)
        result = {m: v * (quality + shift + random.normal(0, 0.002)) for m, v in base.items()}
        epochs = int(60 + 80 * (1 - quality) + random.integers(0, 25))
        speed = 8 + 10 * (1 - quality) + random.uniform(0, 3)
        scale = -600.0 if backbone == "SimRecStudent" else 55.0
        curve = [
            {
                "epoch": e,
                **{m: v * (1 - 0.75 * math.exp(-e / speed)) + random.normal(0, 0.0012) for m, v in result.items()},
            }
            for e in range(epochs)
        ]
        history = {}
        for e in range(epochs):
            own = scale * (1 - math.exp(-e / 15)) if scale < 0 else scale * (0.35 + 0.65 * math.exp(-e / 14))
            terms = {"rec": own, **{n: v * (0.3 + 0.7 * math.exp(-e / 20)) for n, v in losses.items()}}
            history[str(e)] = {n: v * (1 + random.normal(0, 0.01)) for n, v in terms.items()}
        runs.append(
            {
                "seed": 2020 + seed,
                "test_result": result,
                "best_valid_result": curve[-1],
                "best_epoch": epochs - 11,
                "epoch_seconds": [0.3 + 0.05 * len(losses)] * epochs,
                "loss_history": history,
                "valid_history": curve,
                "peak_memory_bytes": 640_000_000,
                "checkpoint": f"saved/{name}-ml-100k-{2020 + seed}.pth",
                "per_user": f"per_user/{name}-{2020 + seed}.parquet",
            }
        )
    mean = {m: float(np.mean([run["test_result"][m] for run in runs])) for m in base}
    deviation = {m: float(np.std([run["test_result"][m] for run in runs], ddof=1)) if seeds > 1 else 0.0 for m in base}
    return {
        "name": name,
        "role": role,
        "backbone": backbone,
        "teacher": teacher,
        "distillers": distillers,
        "settings": {"learning_rate": 0.001, "embedding_size": size, **{f"{d}.weight": 0.1 for d in distillers}},
        "runs": runs,
        "mean": mean,
        "deviation": deviation,
        "confidence": {m: [v * 0.962, v * 1.04] for m, v in mean.items()},
        "costs": {
            "seconds_per_epoch": 0.3 + 0.4 * len(losses) + size / 200,
            "ratio_to_plain": None,
            "peak_memory_bytes": 560_000_000 + 900_000 * size,
            "parameters": 2627 * size,
            "latency_ms": {
                "batch_1": {"p50": latency, "p95": latency * 1.5},
                "batch_1024": {"p50": 30 * latency, "p95": 36 * latency},
            },
            "users_per_second": {"batch_1": 1000 / latency, "batch_1024": 1024 / (30 * latency) * 1000},
        },
    }


def _significance(rows: list[dict[str, Any]], metric: str, seeds: int, users: int) -> dict[str, Any]:
    names = [row["name"] for row in rows]
    difference = [[a["mean"][metric] - b["mean"][metric] for b in rows] for a in rows]
    noise = 0.004 * (0.23 + rows[0]["mean"][metric]) * 30 / math.sqrt(users)

    def p(i: int, j: int, factor: float) -> Any:
        return None if i == j else math.erfc(abs(difference[i][j]) / (noise * factor) / math.sqrt(2))

    size = range(len(rows))
    by_users = [[p(i, j, 1.0) for j in size] for i in size]
    by_seeds = [[p(i, j, 1.6) if seeds > 1 else None for j in size] for i in size]
    pairs = len(rows) * (len(rows) - 1) / 2
    holm = [[None if v is None else min(1.0, v * pairs) for v in line] for line in by_users]
    holm_seeds = [[None if v is None else min(1.0, v * pairs) for v in line] for line in by_seeds]
    return {
        "names": names,
        "p_users": by_users,
        "p_users_holm": holm,
        "p_seeds": by_seeds,
        "p_seeds_holm": holm_seeds,
        "difference": difference,
    }
