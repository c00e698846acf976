"""The files of a report."""

from __future__ import annotations

import csv
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
from matplotlib.image import imread

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.report import read_results, write_report
from recbole_kd.report.headline import findings, warnings
from recbole_kd.report.interactive import charts
from recbole_kd.report.page import html_page
from recbole_kd.report.tables import csv_table, latex_table, markdown_accuracy
from recbole_kd.report.view import Comparison
from tests.report.fabricated import METRICS, MODELS, fabricated, with_prefixes, with_sweep

FILES = {"results.json", "results.csv", "table.tex", "report.md", "report.html"}
PICTURES = {
    f"{name}.png" for name in ("bars", "accuracy-latency", "accuracy-size", "significance", "validation", "losses")
}


def test_the_folder_holds_tables_page_and_pictures(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == FILES | PICTURES
    for name in PICTURES:
        height, width, _ = imread(report / name).shape
        assert width > 700
        assert height > 400


def test_the_results_come_back_and_make_the_same_report(tmp_path: Path) -> None:
    results = fabricated(seeds=1, models=MODELS[:2])
    write_report(results, tmp_path / "first")
    assert read_results(tmp_path / "first" / "results.json") == json.loads(json.dumps(results))
    assert main(["report", f"--results={tmp_path / 'first' / 'results.json'}", f"--output={tmp_path / 'again'}"]) == 0
    for name in FILES | PICTURES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name


def test_csv_has_a_row_for_each_model(report: Path) -> None:
    rows = list(csv.DictReader((report / "results.csv").open()))
    results = fabricated()
    assert [row["name"] for row in rows] == [row["name"] for row in results["rows"]]
    derrd = rows[3]
    assert float(derrd["ndcg@20"]) == results["rows"][3]["mean"]["ndcg@20"]
    assert float(derrd["latency ms batch 1024 p95"]) == results["rows"][3]["costs"]["latency_ms"]["batch_1024"]["p95"]
    assert derrd["distillers"] == "de rrd"
    assert derrd["seeds"] == "3"


def test_latex_marks_the_best_and_has_as_many_cells_in_every_row(report: Path) -> None:
    text = (report / "table.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        columns, body = block
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row
            assert row.count("{") == row.count("}")
    best = next(line for line in text.splitlines() if line.startswith("SimRecStudent"))
    assert best.count(r"\textbf{") == len(METRICS)
    second = next(line for line in text.splitlines() if line.startswith("DERRDStudent"))
    assert second.count(r"\underline{") == len(METRICS)
    assert "$^{**}$" in best or "$^{*}$" in best


def test_markdown_names_the_finding_and_shows_the_pictures(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert "Best student: **SimRecStudent**" in text
    assert fabricated()["budget"]["sentence"] in text
    for name in re.findall(r"\]\((\S+?)\)", text):
        assert (report / name).is_file()


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_asks_nothing_of_a_network(report: Path) -> None:
    text = (report / "report.html").read_text()
    parser = _Elements()
    parser.feed(text)
    for tag, attributes in parser.found:
        assert tag not in ("iframe", "img", "object", "embed")
        assert "src" not in attributes
        assert not str(attributes.get("href", "")).startswith(("http", "//"))
    assert "@import" not in text.split("</style>")[0]
    assert fabricated()["budget"]["sentence"] in text


def test_a_sweep_has_a_picture(tmp_path: Path) -> None:
    one = with_sweep(fabricated(seeds=2), rrd_weight=[0.001, 0.01, 0.1])
    write_report(one, tmp_path)
    assert (tmp_path / "sweep.png").is_file()
    (chart,) = {
        name: by_metric["ndcg@20"] for name, by_metric in charts(Comparison(one)).items() if name == "sweep"
    }.values()
    (line,) = chart["data"]
    assert line["x"] == [0.001, 0.01, 0.1]
    assert line["error_y"]["array"][0] > 0, "the deviation over seeds"
    assert [mark["text"] for mark in chart["layout"]["annotations"]] == ["BPR", "SimRecTeacher (teacher)"]
    two = with_sweep(fabricated(seeds=2), rrd_weight=[0.1, 0.01], rrd_pool=[50, 100])
    chart = charts(Comparison(two))["sweep"]["ndcg@20"]
    assert [len(line) for line in chart["data"][0]["z"]] == [2, 2]
    assert len(chart["layout"]["annotations"]) == 4
    for drawn in charts(Comparison(one))["sweep"], charts(Comparison(two))["sweep"]:
        plotly.graph_objects.Figure(drawn["hit@10"])


def test_where_each_size_has_its_own_plain_student_these_are_a_line_too(tmp_path: Path) -> None:
    """A sweep over the student's size: 0.01 with the plain student BPR, the others with LightGCN."""
    results = with_sweep(fabricated(seeds=2), rrd_weight=[0.001, 0.01, 0.1])
    rows = {row["name"]: row for row in results["rows"]}
    for row in results["rows"][-3:]:
        row["reference"] = "BPR" if row["sweep"]["settings"]["rrd.weight"] == 0.01 else "LightGCN"
    write_report(results, tmp_path)
    assert (tmp_path / "sweep.png").is_file()
    chart = charts(Comparison(results))["sweep"]["ndcg@20"]
    _, plain = chart["data"]
    assert plain["x"] == [0.001, 0.01, 0.1]
    expected = [rows[name]["mean"]["ndcg@20"] for name in ("LightGCN", "BPR", "LightGCN")]
    assert plain["y"] == pytest.approx(expected, abs=1e-6)
    assert [mark["text"] for mark in chart["layout"]["annotations"]] == [
        "each one's plain student",
        "SimRecTeacher (teacher)",
    ]
    assert len(chart["layout"]["shapes"]) == 1, "the teacher, which is the same for all"


def test_prefixes_are_points_of_the_page(tmp_path: Path) -> None:
    comparison = Comparison(with_prefixes(fabricated(seeds=1)))
    plotly.graph_objects.Figure(charts(comparison)["size"]["ndcg@20"])
    page = html_page(comparison)
    assert "DERRDStudent, first 5 of 20 dimensions" in page
    assert "Small points on a line are a student's prefixes" in page


def test_every_chart_is_one_that_plotly_knows() -> None:
    found = charts(Comparison(fabricated()))
    assert {"bars", "latency", "size", "significance", "validation"} <= set(found)
    for name, by_metric in found.items():
        assert set(by_metric) == ({""} if name.startswith("loss-") else set(METRICS))
        plotly.graph_objects.Figure(by_metric.get("ndcg@20") or by_metric[""])  # raises at an unknown property


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>_&%|*"
    results = fabricated(seeds=1, models=[(name, *MODELS[1][1:]), MODELS[3]])
    comparison = Comparison(results)
    page = html_page(comparison)
    assert "<script>alert" not in page
    assert latex_table(comparison).count(r"\_\&\%") >= 2
    row = next(line for line in markdown_accuracy(comparison).splitlines() if "alert" in line)
    assert r"\<script\>" in row
    assert r"\|" in row
    assert name in csv_table(comparison)


def _bare(**changes: Any) -> dict[str, Any]:
    """The least that a report is made of."""
    row = {"name": "A", "role": "model", "mean": {"ndcg@10": 0.2}}
    return {"format": 1, "dataset": "d", "metrics": ["ndcg@10"], "rows": [row], **changes}


@pytest.mark.parametrize(
    "results",
    [
        _bare(),
        _bare(rows=[{"name": "A", "role": "teacher", "mean": {"ndcg@10": None}, "costs": None, "runs": None}]),
        _bare(rows=[{"name": "A", "mean": {"ndcg@10": 0.2}}, {"name": "B", "mean": {}, "runs": [{"seed": 1}]}]),
        {**fabricated(seeds=1), "significance": {}, "environment": {}, "budget": None, "seeds": []},
        {**fabricated(seeds=1), "reference": None, "teacher": "nobody"},
    ],
)
def test_what_was_not_measured_is_left_out(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(results, tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert "nan" not in text.split("<script>")[0].lower()
    assert "None" not in text.split("<script>")[0]


def test_findings_do_not_praise_a_student_that_gained_nothing() -> None:
    results = fabricated()
    for row in results["rows"]:
        if row["name"] == "BPR":
            row["mean"] = dict.fromkeys(METRICS, 0.9)
    for row in results["rows"]:  # as summarise would
        row["relative_gain"] = {metric: row["mean"][metric] / 0.9 - 1 for metric in METRICS}
        row["gap_closed"] = dict.fromkeys(METRICS)
    found = {question: (value, text) for question, value, text in findings(Comparison(results))}
    assert found["Best student"][0] == "SimRecStudent", "the best of those that are distilled"
    assert found["Over the plain student"][0].startswith("-")
    assert "Teacher gap closed" not in found
    assert "No distilled row of 20 dimensions is better than the plain BPR." in warnings(Comparison(results))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read"),
        ("{", "is not valid JSON"),
        ("[]", "not results of compare"),
        ('{"format": 2}', "expected format 1"),
    ],
)
def test_files_that_are_no_results(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main(["report", f"--results={path}", f"--output={tmp_path / 'report'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        write_report(_bare(), os.fspath(tmp_path / "file" / "report"))


def test_the_p_of_a_row_is_against_its_own_plain_student() -> None:
    results = fabricated()
    table = results["significance"]["ndcg@20"]
    names = table["names"]
    table["p_users_holm"] = [[None if a == b else 0.6 for b in names] for a in names]
    table["p_users_holm"][names.index("HTDStudent")][names.index("LightGCN")] = 0.001
    next(row for row in results["rows"] if row["name"] == "HTDStudent")["reference"] = "LightGCN"
    found = {row["name"]: row for row in csv.DictReader(csv_table(Comparison(results)).splitlines())}
    assert (found["HTDStudent"]["reference"], found["HTDStudent"]["ndcg@20 p"]) == ("LightGCN", "0.001")
    assert (found["FreqDStudent"]["reference"], found["FreqDStudent"]["ndcg@20 p"]) == ("BPR", "0.6")
    assert found["BPR"]["ndcg@20 p"] == "", "with itself it is not compared"
