"""Checks a results.json before a report is made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, Optional, TypedDict, Union

from recbole_kd.errors import UserError
from recbole_kd.files.schema import check, inside

#: Version of the results that is read here.
FORMAT = 1
#: The largest cost and the largest value of a metric that a chart can show.
_MOST = 1e15
_MOST_EPOCHS = 10**9
_SOURCE, _ADVICE = "These are not results of compare", "give the results.json that it wrote"

_Number = Optional[float]
_Metrics = Optional[dict[str, Optional[float]]]
_Matrix = Optional[list[list[Optional[float]]]]


class _Epoch(TypedDict):
    epoch: int


class _Run(TypedDict, total=False):
    best_epoch: Optional[int]
    epoch_seconds: Optional[list[float]]
    loss_history: Optional[dict[int, dict[str, Optional[float]]]]
    valid_history: Optional[list[_Epoch]]


class _Prefix(TypedDict, total=False):
    mean: _Metrics
    deviation: _Metrics
    parameters: _Number


class _Sweep(TypedDict):
    of: str
    settings: dict[str, Any]


class _Row(TypedDict, total=False):
    role: Optional[str]
    backbone: Optional[str]
    teacher: Optional[str]
    distillers: Optional[list[str]]
    settings: Optional[dict[str, Any]]
    runs: Optional[list[_Run]]
    deviation: _Metrics
    confidence: Optional[dict[str, Optional[tuple[_Number, _Number]]]]
    relative_gain: _Metrics
    gap_closed: _Metrics
    costs: Optional[dict[str, Union[_Number, dict[str, Union[_Number, dict[str, _Number], list[_Number]]]]]]
    reference: Optional[str]
    dimensions: Optional[int]
    prefixes: Optional[dict[int, _Prefix]]
    sweep: Optional[_Sweep]


class _NamedRow(_Row):
    name: str
    mean: dict[str, Optional[float]]


class _Significance(TypedDict, total=False):
    names: Optional[list[str]]
    p_users_holm: _Matrix
    p_seeds_holm: _Matrix
    difference: _Matrix


class _Budget(TypedDict, total=False):
    sentence: Optional[str]


class _Environment(TypedDict, total=False):
    cpu: Optional[str]
    threads: Optional[int]
    versions: Optional[dict[str, Optional[str]]]


class _About(TypedDict, total=False):
    dataset: Optional[str]
    split: Optional[str]
    valid_metric: Optional[str]
    seeds: Optional[list[int]]
    reference: Optional[str]
    teacher: Optional[str]
    budget: Optional[_Budget]
    environment: Optional[_Environment]
    significance: Optional[dict[str, Optional[_Significance]]]


class _Results(_About):
    """The fields of results.json that are read; docs/compare.md lists all."""

    format: int
    metrics: list[str]
    rows: list[_NamedRow]


def check_results(results: Any) -> None:
    """Refuses data that is not a results.json of ``compare``.

    Raises:
        UserError: the data is not; the message names the field.
    """

    def refuse(what: str) -> NoReturn:
        raise UserError(f"{_SOURCE}: {what}; {_ADVICE}.")

    if isinstance(results, Mapping) and results.get("format") != FORMAT:
        refuse(f"expected format {FORMAT}, found {results.get('format')!r:.50}")
    check(results, _Results, _SOURCE, _ADVICE)
    rows, metrics = results["rows"], results["metrics"]
    if not rows or not metrics:
        refuse(f"'{'metrics' if rows else 'rows'}' lists no {'metric' if rows else 'model'}")
    names = [row["name"] for row in rows]
    if not all(names):
        refuse("a row has no name")
    if len(set(names)) < len(names):
        refuse(f"two rows are named {next(name for name in names if names.count(name) > 1)!r}")
    try:
        json.dumps(results, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        refuse(f"half of a character, {error.object[error.start]!a}, is in one of its texts")
    for row in rows:
        for run in row.get("runs") or []:
            epochs = [run.get("best_epoch") or 0, *map(int, run.get("loss_history") or ())]
            epochs += [one["epoch"] for one in run.get("valid_history") or []]
            if not all(0 <= epoch < _MOST_EPOCHS for epoch in epochs):
                refuse(f"row {row['name']!r} has an epoch that is not between 0 and {_MOST_EPOCHS:,}")
        seconds = [one for run in row.get("runs") or [] for one in run.get("epoch_seconds") or []]
        if any(one is not None and not math.isfinite(one) for one in seconds):
            refuse(f"row {row['name']!r} has epoch_seconds that are not finite")
        tables = (row.get(key) for key in ("mean", "deviation", "confidence", "relative_gain", "gap_closed"))
        values = [value for table in tables for value in _numbers(table)]
        prefixes = [prefix for prefix in (row.get("prefixes") or {}).values() if prefix]
        values += _numbers([prefix.get("mean") for prefix in prefixes])
        costs = _numbers([row.get("costs"), *(prefix.get("parameters") for prefix in prefixes)])
        if any(abs(value) > _MOST for value in (*values, *costs)) or any(cost < 0 for cost in costs):
            refuse(f"row {row['name']!r} has a cost below 0, or a number above {_MOST:g}")
    for metric, table in (results.get("significance") or {}).items():
        compared = (table or {}).get("names") or []
        size = len(compared)
        if unknown := set(compared) - set(names):
            refuse(f"field significance.{metric}.names has {min(unknown)!r}, which is no row; rename it there too")
        for key in ("p_users_holm", "p_seeds_holm", "difference"):
            matrix = (table or {}).get(key) or []
            if matrix and [len(line) for line in matrix] != [size] * size:
                refuse(f"field significance.{metric}.{key} is not a square of {size} numbers, as many as 'names'")


def _numbers(value: Any) -> list[float]:
    """All finite numbers in a value."""
    if isinstance(value, (Mapping, list, tuple)):
        return [found for part in inside(value) for found in _numbers(part)]
    found = number(value)
    return [] if found is None else [found]


def number(value: Any) -> Optional[float]:
    """A finite number as float; None for anything else (JSON has null where a number was not finite)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
