"""The program gives today, to the last digit, what it gave before it was rebuilt; :mod:`tests.frozen.runs` says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.frozen.runs import EXPECTED, OLD, RUNS, difference, machine, make


def expected(name: str) -> Any:
    return json.loads((EXPECTED / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gave(name: str) -> None:
    """On the machine and torch that wrote what is expected, to the last digit; elsewhere up to rounding."""
    told = difference(expected(name), make(name), exact=expected("machine") == machine())
    assert told is None, f"{name}{told}"


def test_what_is_expected_belongs_to_the_runs() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == {*RUNS, "machine"}
    for name, run in RUNS.items():
        assert set(expected(name)) == {*(step.name for step in run.steps), "cache"}, name


def test_a_resumed_run_was_frozen_as_equal_to_one_never_stopped() -> None:
    whole, resumed = expected("resume")["whole"], expected("resume")["resumed"]
    assert difference(whole, resumed) == ".teacher.from_cache: expected False, found True"
    resumed["teacher"]["from_cache"] = False
    assert difference(whole, resumed) is None


def test_old_files_are_small() -> None:
    assert sum(path.stat().st_size for path in Path(OLD).rglob("*")) < 300_000


# How records are compared


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"a": [1, {"b": 0.5}]}, {"a": [1, {"b": 0.5}]}, None),
        ({"a": [1, {"b": 0.5}]}, {"a": [1, {"b": 0.25}]}, ".a[1].b: expected 0.5, found 0.25"),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, ".a: expected 0.30000000000000004, found 0.3"),
        ({"a": 1}, {"a": True}, ".a: expected 1, found True"),
        ({"a": 1}, {"a": 1.0}, ".a: expected 1, found 1.0"),
        ({"a": [1]}, {"a": [1, 2]}, ".a: expected [1], found [1, 2]"),
        ({"a": 1, "b": 2}, {"a": 1}, ".b: missing"),
        ({"a": 1}, {"a": 1, "b": 2}, ".b: not expected"),
        ({"bits": {"sha256": "x"}}, {"bits": {"sha256": "y"}}, ".bits.sha256: expected 'x', found 'y'"),
    ],
)
def test_the_first_difference_is_told_with_both_values(one: Any, other: Any, told: str | None) -> None:
    assert difference(one, other) == told


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"rec": 1.0}, {"rec": 1.0001}, None),
        ({"rec": 1.0}, {"rec": 1.001}, ".rec: expected 1.0, found 1.001"),
        ({"recall@10": 0.5}, {"recall@10": 0.51}, None),
        ({"recall@10": 0.5}, {"recall@10": 0.55}, ".recall@10: expected 0.5, found 0.55"),
        ({"bits": {"sha256": "x"}}, {"bits": {"sha256": "y"}}, None),
        ({"epoch": 1}, {"epoch": 2}, ".epoch: expected 1, found 2"),
    ],
)
def test_on_another_machine_rounding_is_allowed(one: Any, other: Any, told: str | None) -> None:
    assert difference(one, other, exact=False) == told
