"""The table at the end of a run: what was asked for, the gain over a baseline, or how to get one."""

from __future__ import annotations

from typing import Any

from recbole_kd.stages.result import table


def result(metrics: dict[str, float], **changed: Any) -> dict[str, Any]:
    """A result with these metrics, as far as a table reads it."""
    model = {"model": "BPR", "test_result": metrics, "train_seconds": 1.0, "parameters": 10}
    return {
        **model,
        "student": "BPR",
        "distillers": ["rrd"],
        "teacher": model,
        "baseline": None,
        "parameters": {"student": 10, "teacher": 20},
        **changed,
    }


USUAL = {"recall@10": 0.1, "ndcg@10": 0.2, "hit@10": 0.3, "mrr@10": 0.4}


def test_the_metrics_that_were_asked_for_are_shown() -> None:
    assert "hit@10" in table(result({"hit@10": 0.3, "ndcg@10": 0.2}))
    assert "hit@10" not in table(result(USUAL)), "of the usual four the first two fit a line"
    assert "hit@10" in table(result(USUAL), asked=True)


def test_a_baseline_has_a_row_and_the_gain_over_it() -> None:
    baseline = {"model": "BPR", "test_result": {"ndcg@10": 0.16, "hit@10": 0.0}, "train_seconds": 1.0, "parameters": 10}
    lines = table(result({"ndcg@10": 0.2, "hit@10": 0.3}, baseline=baseline)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["teacher", "student", "baseline", "gain"]
    assert lines[-1].split()[-2:] == ["+25.0%", "-"], "nothing is a share of 0"


def test_each_prefix_has_a_row_and_the_whole_vector_is_the_students() -> None:
    prefixes = {size: {"test_result": {"ndcg@10": value}} for size, value in (("2", 0.1), ("4", 0.15), ("8", 0.2))}
    lines = table(result({"ndcg@10": 0.2}, prefixes=prefixes)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["student", "BPR", "0.2000", "10", "1.0"],
        ["its", "first", "2", "0.1000"],
        ["its", "first", "4", "0.1500"],
    ]
