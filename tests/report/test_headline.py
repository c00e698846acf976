"""The first lines of a report: what they recommend, the numbers they give, and what they warn of."""

from __future__ import annotations

from typing import Any

from recbole_kd.report.headline import findings, recommendation, warnings
from recbole_kd.report.view import Comparison
from tests.report.fabricated import METRICS, MODELS, fabricated, with_prefixes


def changed(results: dict[str, Any], **values: float) -> dict[str, Any]:
    """The results with other means of these rows, and with gains and gaps that follow from them."""
    rows = {row["name"]: row for row in results["rows"]}
    for name, value in values.items():
        rows[name]["mean"] = dict.fromkeys(METRICS, value)
    plain, teacher = rows["BPR"]["mean"], rows["SimRecTeacher (teacher)"]["mean"]
    for row in results["rows"]:
        row["relative_gain"] = {m: row["mean"][m] / plain[m] - 1 for m in METRICS}
        row["gap_closed"] = {
            m: (row["mean"][m] - plain[m]) / (teacher[m] - plain[m]) if teacher[m] > plain[m] else None for m in METRICS
        }
    return results


def test_the_first_lines_answer_whether_it_pays() -> None:
    found = {question: (figure, text) for question, figure, text in findings(Comparison(fabricated()))}
    assert list(found) == [
        *("Best student", "Teacher gap closed", "Over the plain student", "Size", "Latency", "Cost of training"),
        "Significance",
    ]
    assert "20 dimensions; best of 4 distilled rows of this size" in found["Best student"][1]
    assert found["Teacher gap closed"][1].startswith("transfer ratio: NDCG@20 from BPR to SimRecTeacher")
    assert found["Size"] == ("20.0× smaller", "52,540 stored numbers; SimRecTeacher (teacher) 1,050,800")
    assert found["Latency"] == ("7.9× faster", "0.24 ms for one user; SimRecTeacher (teacher) 1.9 ms")
    assert found["Cost of training"][0] == "4.0× plain"
    assert found["Significance"] == (
        "for other users and seeds",
        "over users p < 0.001, over seeds p < 0.001, against BPR",
    )


def test_a_recommendation_has_its_numbers() -> None:
    said = recommendation(Comparison(fabricated()))
    assert said.startswith("Take SimRecStudent: NDCG@20 0.2")
    for part in ("% over the plain BPR (over users p < 0.001", "% of the gap to SimRecTeacher", "20.0× smaller"):
        assert part in said
    assert "7.9× faster" in said


def test_a_prefix_that_loses_next_to_nothing_is_told() -> None:
    said = recommendation(Comparison(with_prefixes(fabricated(), "SimRecStudent")))
    assert "Its first 10 of 20 dimensions reach NDCG@20 0.2" in said
    assert "99.5 % of the whole" in said


def test_a_larger_undistilled_row_is_no_best_student() -> None:
    """An undistilled BPR of 64 dimensions beside students of 20: it is told as a larger choice."""
    results = fabricated()
    rows = {row["name"]: row for row in results["rows"]}
    rows["LightGCN"].update(name="BPR 64", dimensions=64)
    rows["LightGCN"]["costs"]["parameters"] = 2627 * 64
    for table in results["significance"].values():
        table["names"] = ["BPR 64" if name == "LightGCN" else name for name in table["names"]]
    results = changed(results, **{"BPR 64": 0.3})
    comparison = Comparison(results)
    assert findings(comparison)[0][1] == "SimRecStudent"
    assert recommendation(comparison).startswith("Take SimRecStudent")
    assert recommendation(comparison).endswith("With 3.2× the stored numbers, BPR 64 reaches NDCG@20 0.3000.")


def test_an_undistilled_row_that_is_better_and_no_larger_is_recommended() -> None:
    said = recommendation(Comparison(changed(fabricated(), LightGCN=0.3)))
    assert said.startswith("Take LightGCN: it is not distilled, and its NDCG@20 0.3000 is ahead of")


def test_without_a_sure_gain_the_plain_student_is_kept() -> None:
    results = fabricated(models=[MODELS[0], MODELS[1], MODELS[3]])
    table = results["significance"]["ndcg@20"]
    table["p_users_holm"] = [[None if a == b else 0.2 for b in range(3)] for a in range(3)]
    said = recommendation(Comparison(results))
    assert said.startswith(
        "Keep the plain BPR: no distilled row of 20 dimensions is surely better. The best, DERRDStudent"
    )
    assert "over users p = 0.20" in said


def test_of_plain_models_the_cheaper_of_two_that_do_not_differ() -> None:
    results = fabricated(models=MODELS[1:3])
    assert recommendation(Comparison(results)).startswith("Take LightGCN: it is better than the second best, BPR")
    for metric in METRICS:
        results["significance"][metric]["p_users_holm"] = [[None, 0.4], [0.4, None]]
    assert "LightGCN and BPR do not surely differ" in recommendation(Comparison(results))


def test_latencies_within_noise_are_equal() -> None:
    results = fabricated()
    rows = {row["name"]: row for row in results["rows"]}
    rows["SimRecTeacher (teacher)"]["costs"]["latency_ms"]["batch_1"]["p50"] = 0.174
    rows["SimRecStudent"]["costs"]["latency_ms"]["batch_1"]["p50"] = 0.164
    found = {question: figure for question, figure, _ in findings(Comparison(results))}
    assert found["Latency"] == "equal within noise"
    assert "its latency equal within noise" in recommendation(Comparison(results))


def test_a_row_that_rose_to_its_last_epoch_is_told() -> None:
    results = fabricated()
    assert warnings(Comparison(results)) == []
    rows = {row["name"]: row for row in results["rows"]}
    for run in rows["DERRDStudent"]["runs"][:2]:
        run["best_epoch"] = run["valid_history"][-1]["epoch"]
    assert warnings(Comparison(results)) == [
        "Not trained to the end, as the best epoch was the last one: DERRDStudent (2 of 3 runs). Give more --epochs."
    ]


def test_a_closed_form_is_trained_in_its_only_epoch() -> None:
    results = fabricated(models=MODELS[1:3])
    for run in results["rows"][1]["runs"]:
        run.update(best_epoch=0, valid_history=run["valid_history"][:1])
    assert warnings(Comparison(results)) == []


def test_a_teacher_that_plain_models_beat_is_told() -> None:
    (found,) = warnings(Comparison(changed(fabricated(), LightGCN=0.4)))
    assert found.startswith("The teacher SimRecTeacher (teacher) is 3")
    assert "worse than LightGCN, which is not distilled" in found


def small_is_better(**values: float) -> dict[str, Any]:
    """Rows by name whose only metric is the Gini index, which should be small."""
    results = fabricated(models=[MODELS[0], MODELS[1], MODELS[3]])
    tests = {"giniindex@10": results["significance"]["ndcg@20"]}
    results.update(metrics=["giniindex@10"], valid_metric="GiniIndex@10", significance=tests)
    for row, value in zip(results["rows"], values.values(), strict=True):
        row.update(mean={"giniindex@10": value}, deviation={}, relative_gain={}, gap_closed={})
    return results


def test_a_prefix_of_a_metric_that_should_be_small_loses_by_a_rise() -> None:
    """The first 5 numbers have 0.8 of the index and lose nothing; at 1.1 of it they lose a tenth, and 10 are told."""
    results = with_prefixes(small_is_better(teacher=0.3, plain=0.6, student=0.5))
    assert "Its first 5 of 20 dimensions reach" in recommendation(Comparison(results))
    results["rows"][2]["prefixes"]["5"]["mean"]["giniindex@10"] = 0.55
    assert "Its first 10 of 20 dimensions reach" in recommendation(Comparison(results))


def test_a_teacher_is_bad_by_a_rise_where_the_metric_should_be_small() -> None:
    assert warnings(Comparison(small_is_better(teacher=0.3, plain=0.6, student=0.5))) == []
    (found,) = warnings(Comparison(small_is_better(teacher=0.9, plain=0.6, student=0.5)))
    assert found.startswith("The teacher SimRecTeacher (teacher) is 50% worse than BPR")
