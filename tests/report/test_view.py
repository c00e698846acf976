"""What a report shows: places and marks, the Pareto front, curves over seeds, names, bad input."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_kd.errors import UserError
from recbole_kd.evaluation.metrics import smaller_is_better
from recbole_kd.report.interactive import bars
from recbole_kd.report.looks import log_ticks, metric_label, wrapped
from recbole_kd.report.view import (
    Comparison,
    is_wide,
    mean_curve,
    pareto_front,
    side_by_side,
)
from tests.report.fabricated import METRICS, MODELS, fabricated, with_prefixes, with_sweep

small = st.integers(0, 5)


@given(st.lists(st.tuples(small, small), max_size=8))
def test_the_front_is_what_no_other_point_dominates(points: list[tuple[int, int]]) -> None:
    front = pareto_front([cost for cost, _ in points], [value for _, value in points])
    for index, (cost, value) in enumerate(points):
        beaten = False
        for other_cost, other_value in points:
            no_worse = other_cost <= cost and other_value >= value
            beaten = beaten or (no_worse and (other_cost < cost or other_value > value))
        assert (index in front) == (not beaten)
    assert [points[index] for index in front] == sorted(points[index] for index in front)


def test_costs_within_noise_put_no_point_on_the_front() -> None:
    """0.164 and 0.174 ms are one latency: the better of the two models stands alone."""
    costs, values = [0.164, 0.174, 0.4], [0.20, 0.21, 0.25]
    ranges = [(0.95 * cost, 1.05 * cost) for cost in costs]
    assert pareto_front(costs, values) == [0, 1, 2]
    assert pareto_front(costs, values, ranges) == [1, 2]


def test_a_chain_of_equal_latencies_leaves_both_ends_of_it() -> None:
    """Each equals the next. The first and the last do not, so that neither beats the other."""
    ranges = [(0.95 * cost, 1.05 * cost) for cost in (1.0, 1.08, 1.17)]
    assert pareto_front([1.0, 1.08, 1.17], [0.1, 0.2, 0.3], ranges) == [0, 2]


def test_the_measured_spread_of_a_latency_counts_as_noise() -> None:
    results = fabricated()
    for row in results["rows"]:
        row["costs"]["latency_ms"]["batch_1"]["p50"] = {"DERRDStudent": 0.20, "SimRecStudent": 0.30}.get(row["name"], 5)
    front = ["latency_ms", "batch_1", "p50"]
    assert [m.name for m in Comparison(results).front("ndcg@20", *front)][:2] == ["DERRDStudent", "SimRecStudent"]
    by_name = {row["name"]: row for row in results["rows"]}
    by_name["SimRecStudent"]["costs"]["latency_range_ms"] = {"batch_1": [0.19, 0.5]}
    assert next(m.name for m in Comparison(results).front("ndcg@20", *front)) == "SimRecStudent"


def test_prefixes_stand_beside_the_whole_student_in_the_picture_of_size() -> None:
    comparison = Comparison(with_prefixes(fabricated()))
    points = [point for point in comparison.points("ndcg@20", "parameters") if point.model.name == "DERRDStudent"]
    assert [point.prefix for point in points] == [5, 10, None]
    assert [point.price for point in points] == [2627 * 5, 2627 * 10, 2627 * 20]
    assert points[1].value == pytest.approx(0.995 * points[2].value)
    assert points[0].name == "DERRDStudent, first 5 of 20 dimensions"
    assert "DERRDStudent, first 5 of 20 dimensions" in [
        point.name for point in comparison.front("ndcg@20", "parameters")
    ]
    latency = comparison.points("ndcg@20", "latency_ms", "batch_1", "p50")
    assert all(point.prefix is None for point in latency), "a prefix's latency is not measured"


def test_a_rows_share_of_its_teacher() -> None:
    comparison = Comparison(fabricated())
    student, teacher = comparison.by_name["SimRecStudent"], comparison.models[0]
    share = student.row["mean"]["ndcg@20"] / teacher.row["mean"]["ndcg@20"]
    assert comparison.teacher_share("ndcg@20", student) == pytest.approx(share)
    assert comparison.teacher_share("ndcg@20", teacher) is None
    assert Comparison(fabricated(models=MODELS[1:3])).teacher_share("ndcg@20", comparison.by_name["BPR"]) is None


def test_rows_of_one_sweep_are_in_the_order_of_their_values() -> None:
    (sweep,) = Comparison(with_sweep(fabricated(), rrd_weight=[0.1, 0.001, 0.01])).sweeps()
    assert (sweep.base, sweep.settings) == ("DERRDStudent", ("rrd.weight",))
    assert sweep.values(0) == [0.001, 0.01, 0.1]
    assert [value for value, _ in sweep.along("ndcg@20")] == [0.001, 0.01, 0.1]
    assert [model.name for _, model in sweep.along("ndcg@20")] == ["HTDStudent", "SimRecStudent", "FreqDStudent"]
    assert Comparison(fabricated()).sweeps() == []


def test_a_sweep_over_two_settings_has_a_cell_for_each_pair() -> None:
    results = with_sweep(fabricated(), rrd_weight=[0.1, 0.01], rrd_sampling=["top", "exponential"])
    (sweep,) = Comparison(results).sweeps()
    assert sweep.values(1) == ["top", "exponential"], "words stay in the order given"
    cells = sweep.cells("ndcg@20")
    assert len(cells) == 4
    assert cells["0.1", "top"] == results["rows"][3]["mean"]["ndcg@20"]


def test_the_mean_over_seeds_ends_where_the_first_seed_stopped() -> None:
    assert mean_curve([([0, 1, 2], [1.0, 2.0, 3.0]), ([0, 1], [3.0, 5.0])]) == ([0, 1], [2.0, 3.5])
    assert mean_curve([]) == ([], [])


def test_best_and_second_are_among_the_students() -> None:
    comparison = Comparison(fabricated())
    assert comparison.places("ndcg@20") == {"SimRecStudent": 1, "DERRDStudent": 2}


def test_only_distilled_rows_of_one_size_compete() -> None:
    """A larger or an undistilled row is shown, and is neither bold nor underlined."""
    results = fabricated()
    rows = {row["name"]: row for row in results["rows"]}
    rows["SimRecStudent"]["dimensions"] = 64
    rows["LightGCN"]["mean"] = dict.fromkeys(METRICS, 0.9)
    comparison = Comparison(results)
    assert [model.name for model in comparison.contest("ndcg@20")] == ["DERRDStudent", "FreqDStudent", "HTDStudent"]
    assert comparison.places("ndcg@20") == {"DERRDStudent": 1, "FreqDStudent": 2}
    assert "Best distilled row of 20 dimensions in bold" in comparison.marks_say()


def test_where_nothing_is_distilled_all_students_compete() -> None:
    comparison = Comparison(fabricated(models=MODELS[:3]))
    assert [model.name for model in comparison.contest("ndcg@20")] == ["LightGCN", "BPR"]


def test_a_size_is_told_in_dimensions_or_stored_numbers() -> None:
    results = fabricated(models=MODELS[:3])
    results["rows"][1]["dimensions"] = None
    comparison = Comparison(results)
    assert comparison.by_name["LightGCN"].size == "20 dimensions", "by its settings, in results of older programs"
    assert comparison.by_name["BPR"].size == "52,540 stored numbers"


def test_equal_in_print_is_equal_in_place() -> None:
    results = fabricated()
    for row in results["rows"]:
        if row["name"] in ("FreqDStudent", "SimRecStudent"):
            row["mean"]["ndcg@20"] = 0.5 + 1e-6 * len(row["name"])
    places = Comparison(results).places("ndcg@20")
    assert places == {"FreqDStudent": 1, "SimRecStudent": 1, "DERRDStudent": 2}


def test_of_a_metric_that_should_be_small_the_smallest_is_best() -> None:
    assert smaller_is_better("giniindex@10")
    assert not smaller_is_better("ndcg@10")
    results = fabricated()
    results["metrics"] = ["giniindex@10"]
    for place, row in enumerate(results["rows"]):
        row["mean"] = {"giniindex@10": 0.5 + place / 10}
    assert Comparison(results).ranked("giniindex@10")[0].name == "BPR"


def test_a_mark_is_a_difference_from_the_plain_student() -> None:
    results = fabricated()
    table = results["significance"]["ndcg@20"]
    names = table["names"]
    for key in ("p_users_holm", "p_seeds_holm"):
        table[key] = [[None if a == b else 0.6 for b in names] for a in names]
    table["p_users_holm"][names.index("SimRecStudent")][names.index("BPR")] = 0.049
    assert {name: mark for name in names if (mark := Comparison(results).mark("ndcg@20", name))} == {
        "SimRecStudent": "*"
    }
    table["p_users_holm"][names.index("DERRDStudent")][names.index("BPR")] = 0.05
    table["p_seeds_holm"] = [[None if a == b else 0.02 for b in names] for a in names]
    marks = {name: Comparison(results).mark("ndcg@20", name) for name in ("SimRecStudent", "DERRDStudent", "BPR")}
    assert marks == {"SimRecStudent": "**", "DERRDStudent": "", "BPR": ""}, "the seeds alone make no mark"


@pytest.mark.parametrize(
    ("users", "seeds", "expected"), [(0.01, 0.01, "**"), (0.01, 0.2, "*"), (0.01, None, "*"), (0.2, 0.01, "")]
)
def test_stars(users: float, seeds: Optional[float], expected: str) -> None:
    matrices = {"p_users_holm": [[None, users], [users, None]], "p_seeds_holm": [[None, seeds], [seeds, None]]}
    rows = [{"name": name, "mean": {"recall@20": 0.1}, "reference": "plain"} for name in ("plain", "recipe")]
    results = {"format": 1, "metrics": ["recall@20"], "rows": rows}
    comparison = Comparison({**results, "significance": {"recall@20": {"names": ["plain", "recipe"], **matrices}}})
    assert comparison.mark("recall@20", "recipe") == expected
    assert comparison.mark("recall@20", "plain") == ""


def test_each_row_is_marked_against_its_own_plain_student() -> None:
    results = fabricated()
    table = results["significance"]["ndcg@20"]
    names = table["names"]
    table["p_users_holm"] = [[None if a == b else 0.6 for b in names] for a in names]
    table["p_users_holm"][names.index("HTDStudent")][names.index("LightGCN")] = 0.001
    assert Comparison(results).mark("ndcg@20", "HTDStudent") == "", "BPR is the first recipe's"
    next(row for row in results["rows"] if row["name"] == "HTDStudent")["reference"] = "LightGCN"
    comparison = Comparison(results)
    base = comparison.reference_of(comparison.by_name["HTDStudent"])
    assert base is not None
    assert base.name == "LightGCN"
    assert comparison.mark("ndcg@20", "HTDStudent") == "*"
    assert {model.name for model in comparison.references()} == {"BPR", "LightGCN"}
    chart = bars(comparison, "ndcg@20")
    assert chart is not None
    hovers = {trace["meta"]: trace["hovertemplate"] for trace in chart["data"]}
    assert "over LightGCN" in hovers["HTDStudent"]
    assert "over BPR" in hovers["FreqDStudent"]
    assert sorted(line["x0"] for line in chart["layout"]["shapes"]) == sorted(
        base.mean("ndcg@20") for base in comparison.references()
    )


def test_an_arrow_tells_a_significant_loss_from_a_gain() -> None:
    results = fabricated()
    rows = {row["name"]: row for row in results["rows"]}
    rows["FreqDStudent"]["mean"]["ndcg@20"] = 0.01
    table = results["significance"]["ndcg@20"]
    names = table["names"]
    table["p_users_holm"] = [[None if a == b else 0.001 for b in names] for a in names]
    table["p_users_holm"][names.index("HTDStudent")][names.index("BPR")] = 0.3
    comparison = Comparison(results)
    arrows = {
        name: comparison.arrow("ndcg@20", name) for name in ("SimRecStudent", "FreqDStudent", "HTDStudent", "BPR")
    }
    assert arrows == {"SimRecStudent": "▲", "FreqDStudent": "▼", "HTDStudent": "", "BPR": ""}


def test_of_a_metric_that_should_be_small_a_rise_is_a_loss() -> None:
    results = fabricated(models=MODELS[1:4])
    results["metrics"] = ["giniindex@10"]
    for row, value in zip(results["rows"], (0.5, 0.6, 0.4)):
        row["mean"] = {"giniindex@10": value}
    comparison = Comparison(results)
    assert comparison.better("giniindex@10", "DERRDStudent", "BPR")
    assert not comparison.better("giniindex@10", "LightGCN", "BPR")


def test_settings_shown_are_those_that_differ() -> None:
    results = fabricated(models=MODELS[1:4])
    for row, settings in zip(
        results["rows"],
        (
            {"learning_rate": 0.1, "epochs": 3},
            {"learning_rate": 0.1, "epochs": 3, "n_layers": 2},
            {"learning_rate": 0.2, "epochs": 3, "rrd": {"weight": 0.5, "pool": 8}},
        ),
    ):
        row["settings"] = settings
    results["rows"].append({**fabricated(models=MODELS[:1])["rows"][0], "settings": {"epochs": 9}})
    assert Comparison(results).differing_settings() == {
        "SimRecTeacher (teacher)": {"epochs": 9},
        "BPR": {"learning_rate": 0.1},
        "LightGCN": {"learning_rate": 0.1, "n_layers": 2},
        "DERRDStudent": {"learning_rate": 0.2, "rrd.weight": 0.5, "rrd.pool": 8},
    }


def test_options_of_a_distiller_are_compared_among_the_rows_that_have_it() -> None:
    """What a row is, and its teacher's settings, stand elsewhere; what is not set says nothing."""
    results = fabricated(models=[MODELS[0], *MODELS[3:6]])
    rrd = {"weight": 0.1, "pool": 100, "decay": None}
    for row, own in zip(results["rows"][1:], ({"rrd": rrd}, {"rrd": {**rrd, "weight": 1}}, {"kd": {"weight": 0.3}})):
        teacher = {"model": "SimRecTeacher", "epochs": 9}
        row["settings"] = {"student": "BPR", "distill": list(own), "epochs": 3, "teacher": teacher, **own}
        row["teacher"] = "SimRecTeacher (teacher)"
    differing = Comparison(results).differing_settings()
    assert list(differing.values())[1:] == [{"rrd.weight": 0.1}, {"rrd.weight": 1}, {"kd.weight": 0.3}]


def test_without_a_plain_student_the_mark_is_the_best_against_the_second() -> None:
    results = fabricated()
    results["reference"] = None
    comparison = Comparison(results)
    base = comparison.base("ndcg@20")
    assert base is not None
    assert base.name == "DERRDStudent"
    assert "second best" in comparison.marks_say()


def test_one_colour_for_each_model_and_grey_for_what_is_not_distilled() -> None:
    models = {model.name: model for model in Comparison(fabricated()).models}
    colors = [model.style.color for model in models.values()]
    assert len(set(colors)) == len(colors)
    assert models["BPR"].style.color == "#7F7F7F"
    assert models["SimRecTeacher (teacher)"].style.color == "#222222"


def test_many_models_differ_in_colour_symbol_or_line() -> None:
    rows = [{"name": f"M{index}", "mean": {"ndcg@10": 0.1}} for index in range(40)]
    results = {"format": 1, "dataset": "d", "metrics": ["ndcg@10"], "rows": rows}
    styles = [model.style for model in Comparison(results).models]
    assert len({(style.color, style.symbol) for style in styles}) == 40
    assert len({(style.color, style.dash) for style in styles[:36]}) == 36


def test_a_models_own_loss_has_a_panel_for_each_architecture() -> None:
    panels = Comparison(fabricated()).loss_panels()
    assert [model.name for model, _ in panels["rec of BPR"]] == ["BPR", "DERRDStudent", "FreqDStudent", "HTDStudent"]
    assert [model.name for model, _ in panels["simrec.prediction"]] == ["SimRecStudent"]
    assert len(panels["rrd"][0][1]) == 3, "a curve for each seed"


def test_a_closed_form_has_no_loss_curve() -> None:
    """It is solved in one step: a lone point at (0, 0) would say nothing."""
    results = fabricated(models=MODELS[1:3])
    for run in results["rows"][1]["runs"]:
        run["loss_history"] = {"0": {"rec": 0.0}}
    assert list(Comparison(results).loss_panels()) == ["rec of BPR"]


def test_models_of_one_size_stand_side_by_side() -> None:
    """Of points that would hide each other one stays at its price; one far above stays too."""
    results = fabricated()
    by_name = {row["name"]: row for row in results["rows"]}
    for name, value in {"BPR": 0.2, "LightGCN": 0.2001, "FreqDStudent": 0.1999, "DERRDStudent": 0.3}.items():
        by_name[name]["mean"]["ndcg@20"] = value
    comparison = Comparison(results)
    points = comparison.points("ndcg@20", "parameters")
    front = comparison.front("ndcg@20", "parameters")
    drawn = {point.name: place for point, place in zip(points, side_by_side(points, front))}
    price = points[1].price
    assert drawn["DERRDStudent"] == pytest.approx(price), "on the front"
    close = sorted(drawn[name] / price for name in ("BPR", "LightGCN", "FreqDStudent"))
    assert close[1] == pytest.approx(1)
    assert close[0] < 0.99 < 1.01 < close[2]


def test_losses_of_different_sizes_have_a_logarithmic_axis() -> None:
    assert is_wide([([0, 1], [600.0, 400.0]), ([0, 1], [6.0, 5.0])])
    assert not is_wide([([0, 1], [600.0, 400.0]), ([0, 1], [60.0, 50.0])])
    assert not is_wide([([0, 1], [600.0, -4.0])])
    assert not is_wide([])


def test_names_are_broken_where_words_end() -> None:
    assert wrapped("BPR") == ["BPR"]
    assert wrapped("DERRDStudent", 8) == ["DERRD", "Student"]
    assert wrapped("KD from LightGCN", 14) == ["KD from", "LightGCN"], "a word that fits stays whole"
    assert wrapped("SimRecTeacher (teacher)", 14) == ["SimRecTeacher", "(teacher)"]
    assert wrapped("x" * 40, 18, lines=3) == ["x" * 18, "x" * 18, "x" * 4]
    long = wrapped("DERRDStudentWithAVeryLongName (teacher LightGCN, d=64)", 18, lines=2)
    assert len(long) == 2
    assert all(len(line) <= 18 for line in long)
    assert long[1].endswith("d=64)"), "variants differ at the end"
    assert wrapped("DERRDStudent (teacher LightGCN)", 15, lines=1) == ["DERRDSt…ghtGCN)"]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.15, 2.5), (30_000, 1.4e6), (1e-3, 1e4), (0.2, 0.36)])
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)


def test_words() -> None:
    assert [metric_label(name) for name in ("recall@20", "ndcg@5", "mrr@10")] == ["Recall@20", "NDCG@5", "MRR@10"]


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in fabricated(seeds=1).items() if name != key}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "it is a list; expected values by name"),
        ({**fabricated(seeds=1), "format": 7}, "expected format 1, found 7"),
        (_without("rows"), "field rows is missing; expected a list"),
        ({**fabricated(seeds=1), "rows": []}, "'rows' lists no model"),
        ({**fabricated(seeds=1), "metrics": "ndcg@10"}, "field metrics is the text 'ndcg@10'; expected a list"),
        ({**fabricated(seeds=1), "metrics": []}, "'metrics' lists no metric"),
        ({**fabricated(seeds=1), "rows": [{"mean": {}}]}, "field rows[0].name is missing; expected text"),
        ({**fabricated(seeds=1), "rows": [{"name": "A"}]}, "field rows[0].mean is missing; expected values by name"),
        ({**fabricated(seeds=1), "rows": [{"name": "A", "mean": {}}] * 2}, "two rows are named 'A'"),
        (
            {**fabricated(seeds=1), "rows": [{"name": "A", "mean": {}}], "significance": {"ndcg@10": {"names": ["B"]}}},
            "field significance.ndcg@10.names has 'B', which is no row; rename it there too",
        ),
        (
            {**fabricated(seeds=1), "rows": [{"name": "A", "mean": {}, "settings": {"x": "\ud800"}}]},
            r"half of a character, '\ud800', is in one of its texts",
        ),
        (
            {
                **fabricated(seeds=1),
                "rows": [{"name": "A", "mean": {}, "runs": [{"loss_history": {"10000000000": {}}}]}],
            },
            "has an epoch",
        ),
        (
            {**fabricated(seeds=1), "rows": [{"name": "A", "mean": {}, "runs": [{"valid_history": [{"epoch": -1}]}]}]},
            "has an epoch",
        ),
    ],
)
def test_what_is_no_result_of_compare_is_refused(results: Any, message: str) -> None:
    with pytest.raises(UserError, match="not results of compare") as raised:
        Comparison(results)
    assert message in str(raised.value)
