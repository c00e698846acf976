"""Comparisons on data whose answer is known; most runs are made in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow.parquet
import pytest
import scipy.stats
import yaml

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.evaluation.per_user import save_per_user
from recbole_kd.evaluation.significance import paired_t
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import load_splits
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.compare import Job, compare, perform, plan, table
from recbole_kd.verbs.compare.progress import Progress
from recbole_kd.verbs.compare.summary import _gap_closed, summarise
from recbole_kd.verbs.evaluate import evaluate_checkpoint


def settings(data_path: Path, models: str = "BPR,RRDStudent", **given: Any) -> dict[str, Any]:
    """A quick comparison."""
    return {
        **known_answer_settings(data_path),
        "dataset": "known-answer",
        "models": models,
        "epochs": 2,
        "teacher.epochs": 3,
        "teacher.embedding_size": 16,
        "rrd.interesting": 5,
        "rrd.uninteresting": 5,
        "rrd.pool": 8,
        "output": str(data_path / "report"),
        **given,
    }


def without_recipes(data_path: Path, **given: Any) -> dict[str, Any]:
    """The same, of models that have no teacher."""
    return {key: value for key, value in settings(data_path, **{"models": "BPR", **given}).items() if "." not in key}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and one test looks at them."""
    monkeypatch.setattr("recbole_kd.report.write_report", lambda results, folder: [])


class Runner:
    """Makes runs in this process and counts them; stops as Ctrl-C does before the run of that number."""

    def __init__(self, stop_before: Optional[int] = None) -> None:
        self.made: list[str] = []
        self.stop_before = stop_before

    def __call__(self, job: Job, tell: Callable[[tuple[int, int]], None]) -> None:
        if len(self.made) == self.stop_before:
            raise KeyboardInterrupt
        perform(job, tell)
        self.made.append(job.name)


# What is compared


def names(**given: Any) -> list[tuple[str, str]]:
    return [(row.name, row.role) for row in plan({"dataset": "ml-100k", **given}).rows]


def test_recipes_bring_their_teacher_and_the_plain_student_of_their_size() -> None:
    planned = plan({"dataset": "ml-100k", "models": "BPR,RRDStudent,FreqDStudent", "seeds": 2})
    assert [(row.name, row.role) for row in planned.rows] == [
        ("BPR (teacher)", "teacher"),
        ("BPR (plain)", "plain"),
        ("BPR", "model"),
        ("RRDStudent", "recipe"),
        ("FreqDStudent", "recipe"),
    ], "the recipes share both"
    rows = {row.name: row for row in planned.rows}
    assert rows["RRDStudent"].teacher == rows["FreqDStudent"].teacher == "BPR (teacher)"
    assert rows["RRDStudent"].reference == "BPR (plain)"
    recipe, plain = rows["RRDStudent"].config(2020), rows["BPR (plain)"].config(2020)
    assert plain["embedding_size"] == recipe["embedding_size"] == 20
    assert not plain.distillers
    for key in ("epochs", "stopping_step", "learning_rate", "train_batch_size", "learner"):
        assert plain[key] == recipe[key], key
    assert rows["BPR"].config(2020)["embedding_size"] == 64
    assert rows["BPR (teacher)"].seeds == (2020,), "one teacher for all seeds"


def test_each_of_several_teachers_has_a_row() -> None:
    shared = {"teacher": [{"model": "BPR", "embedding_size": 400, "epochs": 200}, "LightGCN"]}
    planned = plan({"dataset": "ml-100k", "models": "RRDStudent,FreqDStudent", **shared})
    rows = {row.name: row for row in planned.rows}
    assert [name for name, row in rows.items() if row.role == "teacher"] == ["BPR (teacher)", "LightGCN (teacher)"]
    assert rows["RRDStudent"].teacher == "BPR (teacher)", "the gap is that to the first"
    assert len(rows["RRDStudent"].config(2020).teacher_sections()) == 2
    (section,) = rows["LightGCN (teacher)"].config(2020).teacher_sections().values()
    assert section["model"] == "LightGCN"
    assert section["seed"] == 2020
    weighted = plan({"dataset": "ml-100k", "models": "RRDStudent,FreqDStudent", **shared, "teacher.1.share": 0.5})
    other = {row.name: row for row in weighted.rows}
    assert other["RRDStudent"].key(2020, "") != rows["RRDStudent"].key(2020, "")
    assert other["BPR (teacher)"].key(2020, "") == rows["BPR (teacher)"].key(2020, "")


def test_one_of_several_teachers_may_be_a_checkpoint() -> None:
    """What it holds is its own to say: the model that the preset names in its place is not held against it."""
    planned = plan({"dataset": "ml-100k", "models": "BestStudent", "teacher.0.checkpoint": "lightgcn.pth"})
    first, second = (row for row in planned.rows if row.role == "teacher")
    assert (first.name, second.name) == ("lightgcn (teacher)", "ItemKNN (teacher)")
    assert first.chosen()["checkpoint"] == "lightgcn.pth"
    assert not first.chosen().get("model")
    assert second.chosen()["share"] == 0.4


def test_a_file_of_ranks_teaches_and_has_no_row() -> None:
    """It has no scores of all items, which the table would need of it: the student is measured against the plain one."""
    given = {"models": "RRDStudent", "distill": ["rrd"], "teacher": {"model": None, "ranks": "lists.csv"}}
    planned = plan({"dataset": "ml-100k", **given})
    plain, recipe = planned.rows
    assert (plain.role, recipe.role) == ("plain", "recipe")
    assert (recipe.teacher, recipe.reference) == (None, plain.name)
    beside = plan({"dataset": "ml-100k", "models": "RRDStudent", "teacher": [{"ranks": "lists.csv"}, "LightGCN"]})
    assert [row.name for row in beside.rows if row.role == "teacher"] == ["LightGCN (teacher)"]
    assert beside.rows[-1].teacher == "LightGCN (teacher)"


def test_a_comparison_with_a_file_of_ranks(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that a file teaches beside one that a model teaches: the gap is told of the second alone."""
    lists = known_answer / "lists.csv"
    items = sorted({line.split("\t")[1] for line in _lines(known_answer)})
    users = sorted({line.split("\t")[0] for line in _lines(known_answer)})
    lists.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user in users for item in items))
    monkeypatch.chdir(known_answer)
    small = {"rrd.pool": 8, "rrd.interesting": 2, "rrd.uninteresting": 2, "rrd.weight": 1, "learning_rate": 0.05}
    models = {
        "by a file": {"model": "BPR", "distill": ["rrd"], "teacher": {"ranks": "lists.csv"}, **small},
        "by a model": {"model": "BPR", "distill": ["rrd"], "teacher": {"model": "BPR", "epochs": 2}, **small},
    }
    found = compare(
        known_answer_settings(known_answer, dataset="known-answer", output="report", seeds=1, models=models)
    )
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["by a file"]["teacher"] is None
    assert rows["by a file"]["gap_closed"]["ndcg@10"] is None
    assert rows["by a file"]["relative_gain"]["ndcg@10"] is not None
    assert rows["by a model"]["teacher"] == "BPR (teacher)"
    assert table(found)
    lists.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user in users for item in items[::-1]))
    changed = compare(
        known_answer_settings(known_answer, dataset="known-answer", output="report", seeds=1, models=models)
    )
    means = {row["name"]: row["mean"] for row in changed["rows"]}
    assert means["by a file"] != rows["by a file"]["mean"], "another file is another teacher"
    assert means["by a model"] == rows["by a model"]["mean"]


def _lines(folder: Path) -> list[str]:
    return (folder / "known-answer" / "known-answer.train.inter").read_text().splitlines()[1:]


def test_recipes_of_another_backbone_have_a_reference_of_their_own() -> None:
    found = names(models="SimRecStudent,RRDStudent")
    assert found[:4] == [
        ("SimRecTeacher (teacher)", "teacher"),
        ("BPR (teacher)", "teacher"),
        ("SimRecStudent (plain)", "plain"),
        ("BPR (plain)", "plain"),
    ]
    assert names(models="BPR,LightGCN") == [("BPR", "model"), ("LightGCN", "model")]


def test_a_plain_student_that_was_named_is_the_reference() -> None:
    found = names(models="BPR,RRDStudent", embedding_size=20, stopping_step=20)
    assert ("BPR", "plain") in found
    assert "BPR (plain)" not in [name for name, _ in found]


def test_every_student_has_the_same_budget_unless_told_otherwise(tmp_path: Path) -> None:
    planned = plan({"dataset": "ml-100k", "models": "BPR,SimRecStudent"})
    assert {row.config(1)["epochs"] for row in planned.students} == {300}, "the most that a preset has"
    assert {row.config(1)["stopping_step"] for row in planned.students} == {10}
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump({"models": {"BPR": {}, "short": {"model": "BPR", "epochs": 5}}, "epochs": 7}))
    planned = plan({"dataset": "ml-100k", "config_files": str(file)})
    assert [row.config(1)["epochs"] for row in planned.rows] == [7, 5]
    assert planned.own_budgets == {"short": "epochs 5"}


def test_a_setting_goes_to_the_models_that_read_it(tmp_path: Path) -> None:
    given = {"dataset": "ml-100k", "models": "BPR,LightGCN,RRDStudent", "n_layers": 3, "rrd.weight": 0.5, "topk": [5]}
    rows = {row.name: row for row in plan({**given, "valid_metric": "NDCG@5"}).rows}
    assert rows["LightGCN"].config(1)["n_layers"] == 3
    assert rows["RRDStudent"].config(1)["rrd"]["weight"] == 0.5
    assert all(row.config(1)["topk"] == [5] for row in rows.values())


def test_a_gpu_in_a_file_may_be_another_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "other.yaml"
    file.write_text("use_gpu: true\n")
    planned = plan({"dataset": "ml-100k", "config_files": str(file), "models": "BPR"})
    assert planned.rows[0].first_config["device"].type == "cpu"
    with pytest.raises(UserError, match="--use_gpu=true asks for a GPU"):
        plan({"dataset": "ml-100k", "use_gpu": True, "models": "BPR"})


def test_a_misspelt_label_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("models: {again: {model: BPR}}")
    with pytest.raises(UserError, match="--models names 'agin', .* Did you mean 'again'"):
        plan({"dataset": "ml-100k", "config_files": str(file), "models": "BPR,agin"})


def test_a_sweep_is_a_row_for_each_value_of_the_models_that_read_it() -> None:
    planned = plan({"dataset": "ml-100k", "models": "BPR,RRDStudent", "sweep.rrd.weight": [0.1, 0.001]})
    assert [row.name for row in planned.rows] == [
        *("BPR (teacher)", "BPR (plain)", "BPR"),
        *("RRDStudent, rrd.weight 0.1", "RRDStudent, rrd.weight 0.001"),
    ]
    rows = planned.rows[-2:]
    assert [row.config(2020)["rrd"]["weight"] for row in rows] == [0.1, 0.001]
    assert [(row.swept_from, dict(row.swept)) for row in rows] == [
        ("RRDStudent", {"rrd.weight": 0.1}),
        ("RRDStudent", {"rrd.weight": 0.001}),
    ]
    assert not planned.rows[2].swept
    assert {row.reference for row in rows} == {"BPR (plain)"}


def test_a_sweep_of_two_settings_has_every_pair(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"sweep": {"learning_rate": [0.1, 0.01], "rrd": {"weight": [1, 2, 3]}}}))
    planned = plan({"dataset": "ml-100k", "models": "RRDStudent", "config_files": str(file)})
    found = [(row.config(1)["learning_rate"], row.config(1)["rrd"]["weight"]) for row in planned.rows if row.swept]
    assert found == [(rate, weight) for rate in (0.1, 0.01) for weight in (1, 2, 3)]


def test_one_model_under_two_labels(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    sections = {"light": {"model": "RRDStudent", "rrd.weight": 0.01}, "heavy": {"model": "RRDStudent", "rrd.weight": 1}}
    file.write_text(yaml.safe_dump({"models": sections}))
    planned = plan({"dataset": "ml-100k", "config_files": str(file), "models": "heavy,light,Pop"})
    assert [row.name for row in planned.rows][-3:] == ["heavy", "light", "Pop"]
    assert [row.config(1)["rrd"]["weight"] for row in planned.rows[-3:-1]] == [1, 0.01]
    assert {row.reference for row in planned.rows[-3:-1]} == {"BPR (plain)"}


def test_seeds_are_a_number_or_a_list() -> None:
    given = {"dataset": "ml-100k", "models": "BPR"}
    assert plan(given).seeds == (2020,)
    assert plan({**given, "seeds": 3, "seed": 7}).seeds == (7, 8, 9)
    planned = plan({**given, "seeds": [5, 1], "split_seed": 3})
    assert planned.seeds == (5, 1)
    assert [planned.rows[0].config(seed).split_seed for seed in (5, 1)] == [3, 3]


def test_the_split_does_not_change_with_the_training_seed() -> None:
    def digest(**given: int) -> str:
        return load_splits(KDConfig("BPR", "ml-100k", config_dict={**given, "show_progress": False})).training_digest

    assert digest(seed=1, split_seed=9) == digest(seed=2, split_seed=9) == digest(seed=9)
    assert digest(seed=1) != digest(seed=9)


def test_what_a_run_depends_on() -> None:
    def keys(**given: Any) -> dict[str, str]:
        planned = plan({"dataset": "ml-100k", "models": "BPR,RRDStudent", **given})
        return {row.name: row.key(row.seeds[0], "data") for row in planned.rows}

    before = keys()
    assert len(set(before.values())) == 4
    assert keys(checkpoint_dir="elsewhere", worker=1, output="there", parallel=2, seeds=3) == before
    changed = keys(**{"rrd.weight": 0.5})
    assert {name for name in before if before[name] != changed[name]} == {"RRDStudent"}
    changed = keys(**{"teacher.epochs": 7})
    assert {name for name in before if before[name] != changed[name]} == {"RRDStudent", "BPR (teacher)"}
    assert set(keys(topk=[20, 30]).values()).isdisjoint(before.values())


def test_another_backbone_of_a_recipe_reads_its_own_settings() -> None:
    planned = plan({"dataset": "ml-100k", "models": "RRDStudent,LightGCN", "student": "LightGCN", "n_layers": 4})
    layers = {row.name: row.first_config["n_layers"] for row in planned.rows if row.role != "teacher"}
    assert set(layers.values()) == {4}, layers


def test_plain_students_stop_as_the_others_do() -> None:
    planned = plan({"dataset": "ml-100k", "models": "RRDStudent", "stop_after": 3})
    assert {row.first_config["stop_after"] for row in planned.rows if row.role != "teacher"} == {3}


def test_other_initial_weights_make_another_run(tmp_path: Path) -> None:
    def key() -> str:
        (row,) = plan({"dataset": "ml-100k", "models": "BPR", "warm_start": str(tmp_path / "warm.pth")}).rows
        return row.key(2020, "data")

    (tmp_path / "warm.pth").write_bytes(b"one")
    before = key()
    assert key() == before
    (tmp_path / "warm.pth").write_bytes(b"another")
    assert key() != before


def test_metrics_without_users_have_no_test_over_them(known_answer: Path, no_report: None) -> None:
    """GAUC ranks nothing and is no mean over users here."""
    results = compare(without_recipes(known_answer, models="BPR,Pop", metrics=["GAUC"], valid_metric="GAUC"), Runner())
    assert [0 < row["mean"]["gauc"] <= 1 for row in results["rows"]] == [True, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "--seeds=0; expected a whole number of at least 1"),
        ({"seeds": [1, 1]}, "expected distinct seeds"),
        ({"seeds": "many"}, "--seeds='many'"),
        ({"models": "BPR,BPR"}, "lists 'BPR' more than once; give the second one another label"),
        ({"models": "BPR,LihgtGCN"}, "LihgtGCN: Unknown model 'LihgtGCN'. Did you mean 'LightGCN'?"),
        ({"models": None}, "--models=None; expected names"),
        (
            {"models": ["BPR", {"A": {"model": "BPR"}}]},
            "models lists {'A': {'model': 'BPR'}}; expected names, or labels",
        ),
        ({"models": {"A": 3}}, "models.A is 3; expected the settings of a model"),
        ({"models": {"A": {"model": "BPR", "seeds": [1, 2]}}}, "models.A.seeds has 2 seeds but --seeds has 1"),
        ({"models": {"A": {"model": "BPR", "seed": 2}}}, "models.A.seed is not a setting of a model"),
        ({"models": {"A": {"model": "BPR", "embeding_size": 2}}}, "A: Unknown setting 'embeding_size'"),
        ({"metrics": ["Recal"]}, "Unknown metric 'Recal'"),
        ({"valid_metric": "AUC"}, "--valid_metric=AUC is not computed"),
        ({"embeding_size": 3}, "Unknown setting 'embeding_size'"),
        ({"rrd.weight": 3}, "Section 'rrd' is set but not used"),
        ({"model": "BPR"}, "--model is not a setting of compare: list models with --models"),
        ({"baseline": "BPR"}, "--baseline is not a setting of compare"),
        ({"tune_trials": -1}, "--tune_trials=-1; expected a whole number of at least 0"),
        ({"sweep": 3}, "--sweep=3; expected one or two settings with a list of values each"),
        ({"sweep.learning_rate": 0.1}, "--sweep.learning_rate=0.1; expected one or two settings"),
        ({"sweep.learning_rate": [0.1, 0.1]}, "each value once"),
        ({"sweep.rrd.weight": [1, 2]}, "--sweep.rrd.weight is read by none of the models BPR"),
        ({"sweep.seed": [1, 2]}, "--sweep.seed is not a model's own setting"),
        ({"sweep.learning_rate": [1, 2], "tune_trials": 2}, "--sweep sets what --tune_trials would search"),
        ({"sweep": {"a": [1, 2], "b": [1, 2], "c": [1, 2]}}, "--sweep names 3 settings"),
        ({"parallel": 0}, "--parallel=0; expected a whole number of at least 1"),
        ({"candidates": "499"}, "--candidates='499'; expected uniN or popN with N of at least 1"),
        ({"candidates": "uni9", "eval_args": {"mode": "uni9"}}, "--eval_args.mode=uni9 ranks no others"),
        ({"models": "Pop", "tune_trials": 2}, "no search space for Pop"),
        ({"models": "NeuMFVariant", "freeze_towers": True}, "--freeze_towers=true would keep the towers' random"),
        (
            {"models": "BPR,SASRec", "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO"}},
            "SASRec predicts the next item of a sequence, but BPR ranks items for a user",
        ),
        ({"dataset": None}, "No dataset is given"),
    ],
)
def test_what_is_refused_before_anything_is_done(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        compare({"dataset": "ml-100k", "models": "BPR", "output": str(tmp_path / "report"), **given})
    assert message in str(raised.value)
    assert not (tmp_path / "report").exists()


def test_models_that_do_not_fit_the_data(known_answer: Path) -> None:
    folder = known_answer / "known-answer"
    (folder / "known-answer.inter").write_text((folder / "known-answer.train.inter").read_text())
    given = without_recipes(known_answer, models="SASRec", benchmark_filename=None)
    with pytest.raises(UserError, match="timestamp"):
        compare(given, Runner())
    assert not (known_answer / "report").exists()


# What comes out


def test_a_comparison_from_settings_to_report(known_answer: Path) -> None:
    results = compare(settings(known_answer, seeds=2), Runner())
    output = known_answer / "report"
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (output / "report.html").is_file()
    assert [row["name"] for row in results["rows"]] == ["BPR (teacher)", "BPR (plain)", "BPR", "RRDStudent"]
    assert results["seeds"] == [2020, 2021]
    assert results["reference"] == "BPR (plain)"
    assert results["teacher"] == "BPR (teacher)"
    for row in results["rows"]:
        assert len(row["runs"]) == (1 if row["role"] == "teacher" else 2)
        for run in row["runs"]:
            values = pyarrow.parquet.read_table(run["per_user"]).to_pydict()
            assert len(values["user"]) == 48
            assert np.mean(values["recall@10"]) == pytest.approx(run["test_result"]["recall@10"], abs=1e-4)
            assert run["peak_memory_bytes"] > 0
            assert len(run["epoch_seconds"]) == (3 if row["role"] == "teacher" else 2)
        own = [np.mean(pyarrow.parquet.read_table(run["per_user"])["ndcg@10"].to_numpy()) for run in row["runs"]]
        assert row["mean"]["ndcg@10"] == pytest.approx(np.mean(own))
        assert row["confidence"]["ndcg@10"][0] <= row["mean"]["ndcg@10"] <= row["confidence"]["ndcg@10"][1]
        assert set(row["costs"]["latency_ms"]) == set(row["costs"]["users_per_second"]) == {"batch_1", "batch_1024"}
    sizes = {row["name"]: row["costs"]["parameters"] for row in results["rows"]}
    assert sizes == {
        "BPR (teacher)": 16 * (49 + 41),
        "BPR (plain)": 20 * (49 + 41),
        "BPR": 64 * (49 + 41),
        "RRDStudent": 20 * (49 + 41),
    }
    plain = results["rows"][1]
    assert plain["costs"]["ratio_to_plain"] == 1.0
    assert set(plain["relative_gain"].values()) <= {0.0, None}
    text = table(results)
    assert "RRDStudent" in text
    assert "for at most 2 epochs" in text
    checkpoint = results["rows"][3]["runs"][1]["checkpoint"]
    evaluated = evaluate_checkpoint(
        checkpoint, {"data_path": str(known_answer), "topk": [10], "valid_metric": "NDCG@10"}
    )
    assert evaluated["test_result"] == results["rows"][3]["runs"][1]["test_result"], "a run's checkpoint is any other's"


def test_targets_are_ranked_among_all_items_and_among_some(known_answer: Path) -> None:
    """Beside the metrics of all items stand those that ``evaluate`` gives among candidates, for each user too."""
    runner, given = Runner(), settings(known_answer, candidates="uni7", topk=[5], valid_metric="NDCG@5")
    results = compare(given, runner)
    made = len(runner.made)
    for row in results["rows"]:
        changed = {"data_path": str(known_answer), "topk": [5], "valid_metric": "NDCG@5", "eval_args": {"mode": "uni7"}}
        expected = evaluate_checkpoint(row["runs"][0]["checkpoint"], changed)["test_result"]
        found = row["runs"][0]["test_result"]
        assert {f"{name} (uni7)": value for name, value in expected.items()}.items() <= found.items()
        assert found["ndcg@5"] < found["ndcg@5 (uni7)"]
        values = pyarrow.parquet.read_table(row["runs"][0]["per_user"]).to_pydict()
        assert np.mean(values["recall@5 (uni7)"]) == pytest.approx(expected["recall@5"], abs=1e-4)
        assert all(among >= whole for whole, among in zip(values["recall@5"], values["recall@5 (uni7)"])), (
            "an item above the target among the candidates is above it among all"
        )
    assert "ndcg@5 (uni7)" in results["significance"]
    text = table(results)
    assert "Metrics with (uni7) rank a user's targets among 7 drawn items for each" in text
    assert "NDCG@5 (uni7)" in (known_answer / "report" / "report.html").read_text()
    compare({**given, "candidates": None}, runner)
    assert len(runner.made) == 2 * made, "runs with other metrics"


@pytest.mark.usefixtures("no_report")
def test_prefixes_and_sweeps_are_in_the_results(known_answer: Path) -> None:
    models = {"nested": {"model": "BPR", "embedding_size": 8, "matryoshka": [2, 4]}, "plain": {"model": "BPR"}}
    given = without_recipes(known_answer, seeds=2, models=models)
    results = compare({**given, "sweep": {"learning_rate": [0.01, 0.02]}}, Runner())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [f"{name}, learning_rate {rate}" for name in ("nested", "plain") for rate in (0.01, 0.02)]
    nested = rows["nested, learning_rate 0.01"]
    assert nested["sweep"] == {"of": "nested", "settings": {"learning_rate": 0.01}}
    assert list(nested["prefixes"]) == ["2", "4"], "the whole is the row itself"
    assert "prefixes" not in rows["plain, learning_rate 0.01"]
    for size, found in nested["prefixes"].items():
        assert found["parameters"] == int(size) * (49 + 41)
        each = [
            evaluate_checkpoint(
                run["checkpoint"],
                {"data_path": str(known_answer), "topk": [10], "valid_metric": "NDCG@10"},
                dimensions=int(size),
            )["test_result"]["ndcg@10"]
            for run in nested["runs"]
        ]
        assert found["mean"]["ndcg@10"] == pytest.approx(np.mean(each))
    values = pyarrow.parquet.read_table(nested["runs"][0]["per_user"])["ndcg@10"].to_numpy()
    assert np.mean(values) == pytest.approx(nested["runs"][0]["test_result"]["ndcg@10"], abs=1e-4), "of the whole"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rrd.pool": 100}, r"^RRDStudent: rrd\.pool=100 is more than the 40 items"),
        ({"topk": [10, 41]}, r"^BPR \(plain\): --topk=41 exceeds the catalogue of 40 items"),
        ({"models": "RRDStudent,NCL", "num_clusters": 41}, r"^NCL: --num_clusters=41 is more than the 40 users"),
    ],
)
def test_what_the_data_cannot_meet_is_refused_before_anything_is_trained(
    given: dict[str, Any], message: str, known_answer: Path
) -> None:
    runner = Runner()
    with pytest.raises(UserError, match=message):
        compare(settings(known_answer, **given), runner)
    assert not runner.made


@pytest.mark.usefixtures("no_report")
def test_the_same_command_goes_on_where_it_was_stopped(known_answer: Path) -> None:
    first, second, third = Runner(stop_before=3), Runner(), Runner()
    with pytest.raises(KeyboardInterrupt, match=r"3 of 4 runs are kept in .*; repeat the command to continue"):
        compare(settings(known_answer), first)
    assert first.made == ["BPR (teacher), seed 2020", "BPR (plain), seed 2020", "BPR, seed 2020"]
    results = compare(settings(known_answer), second)
    assert second.made == ["RRDStudent, seed 2020"]
    compare(settings(known_answer, **{"rrd.weight": 0.5}), third)
    assert third.made == ["RRDStudent, seed 2020"], "only what the setting changes"
    again = Runner()
    assert compare(settings(known_answer, seeds=2), again)["rows"][0]["runs"] == results["rows"][0]["runs"]
    assert again.made == ["BPR (plain), seed 2021", "BPR, seed 2021", "RRDStudent, seed 2021"]


@pytest.mark.usefixtures("no_report")
def test_a_run_goes_on_in_the_middle_of_its_training(known_answer: Path) -> None:
    """Killed in its fifth epoch, a run ends as one that was never stopped."""

    class Killed(Exception):
        pass

    def killed(job: Job, tell: Callable[[tuple[int, int]], None]) -> None:
        def told(epochs: tuple[int, int]) -> None:
            if epochs[0] == 5:
                raise Killed

        perform(job, told)

    whole = compare(without_recipes(known_answer, epochs=8), Runner())
    stopped = {**without_recipes(known_answer, epochs=8), "output": str(known_answer / "other")}
    with pytest.raises(Killed):
        compare(stopped, killed)
    resumed = compare(stopped, Runner())
    for key in ("test_result", "loss_history", "best_epoch"):
        assert resumed["rows"][0]["runs"][0][key] == whole["rows"][0]["runs"][0][key], key
    assert len(resumed["rows"][0]["runs"][0]["epoch_seconds"]) == 8


def test_a_teachers_metrics_may_count_the_catalogue(known_answer: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(settings(known_answer, metrics=["NDCG", "ItemCoverage"]), Runner(stop_before=1))
    (written,) = (known_answer / "report" / "runs").glob("BPR-teacher*/result.json")
    assert 0 < json.loads(written.read_text())["test_result"]["itemcoverage@10"] <= 1


@pytest.mark.usefixtures("no_report")
def test_a_half_written_run_is_made_again(known_answer: Path) -> None:
    compare(without_recipes(known_answer), Runner())
    (folder,) = (known_answer / "report" / "runs").iterdir()
    (folder / "users.parquet").unlink()
    again = Runner()
    compare(without_recipes(known_answer), again)
    assert again.made == ["BPR, seed 2020"]


@pytest.mark.usefixtures("no_report")
def test_two_copies_of_a_model_are_not_called_different(known_answer: Path) -> None:
    models = {"one": {"model": "BPR"}, "other": {"model": "BPR", "seeds": [11, 12, 13]}, "Random": {}}
    given = without_recipes(known_answer, seeds=3, epochs=30, learning_rate=0.02, embedding_size=16)
    # Of equal copies one test in twenty says that they differ; with these seeds and RecBole's loader none does.
    given["fast_sampling"] = False
    results = compare({**given, "models": models}, Runner())
    for metric, tests in results["significance"].items():
        one, other, chance = (tests["names"].index(name) for name in models)
        assert tests["p_users_holm"][one][other] > 0.05, metric
        assert tests["p_seeds_holm"][one][other] > 0.05, metric
        assert tests["p_users_holm"][one][chance] < 0.001, "while a model that learned differs from chance"
        assert tests["p_seeds_holm"][one][chance] < 0.05, metric


@pytest.mark.usefixtures("no_report")
def test_the_same_seeds_give_the_same_copy(known_answer: Path) -> None:
    given = without_recipes(known_answer, seeds=2)
    results = compare({**given, "models": {"one": {"model": "BPR"}, "other": {"model": "BPR"}}}, Runner())
    tests = results["significance"]["ndcg@10"]
    assert tests["difference"] == [[0, 0], [0, 0]]
    assert tests["p_users"] == tests["p_seeds"] == [[None, 1.0], [1.0, None]]


# The arithmetic


def record_of(path: Path, recall: float, **values: Any) -> dict[str, Any]:
    """What a run leaves, with one metric; `values` replace others."""
    return {
        **dict.fromkeys(("best_valid_result", "best_epoch", "loss_history", "valid_history", "checkpoint")),
        "seed": 2020,
        "test_result": {"recall@20": recall},
        "epoch_seconds": [1.0],
        "peak_memory_bytes": None,
        "per_user": str(path),
        "parameters": 7,
        "threads": 1,
        "inference": {"latency_ms": {"batch_1": {"p50": 1.0, "p95": 3.0}}, "users_per_second": {"batch_1": 10.0}},
        **values,
    }


def test_each_recipe_is_compared_with_its_own_plain_student(tmp_path: Path) -> None:
    models = {
        "RRDStudent": {},
        "other": {"model": "RRDStudent", "student": "LightGCN", "teacher": {"model": "LightGCN"}},
    }
    (tmp_path / "two.yaml").write_text(json.dumps({"models": models}))
    measured = {"seeds": 1, "metrics": ["Recall"], "topk": [20], "valid_metric": "Recall@20"}
    planned = plan({"dataset": "ml-100k", "config_files": str(tmp_path / "two.yaml"), **measured})
    records: dict[str, list[Any]] = {}
    for place, row in enumerate(planned.rows, 1):
        path = tmp_path / f"{place}.parquet"
        save_per_user(path, ["a", "b"], {"recall@20": np.array([place / 10, place / 10])})
        records[row.name] = [record_of(path, place / 10, epoch_seconds=[float(place)])]
    found = {row["name"]: row for row in summarise(planned, records, ["split"])["rows"]}
    seconds = {name: one[0]["epoch_seconds"][0] for name, one in records.items()}
    assert len([row for row in planned.rows if row.role == "plain"]) == 2
    own = {row.name: row.reference for row in planned.rows if row.role == "recipe"}
    assert len(set(own.values())) == 2
    for name, reference in own.items():
        assert found[name]["relative_gain"]["recall@20"] == pytest.approx(seconds[name] / seconds[str(reference)] - 1)
        assert found[name]["costs"]["ratio_to_plain"] == pytest.approx(seconds[name] / seconds[str(reference)])
        # The plain student is measured by its recipe's teacher, and the teacher by its recipe's plain student.
        assert found[str(reference)]["teacher"] == found[name]["teacher"]
        assert found[found[name]["teacher"]]["reference"] == reference


def test_users_of_several_splits_by_hand(tmp_path: Path) -> None:
    """A user's metric is the mean over the splits that test the user; the tests over seeds are over all runs."""
    planned = plan(
        {"dataset": "ml-100k", "models": "BPR,ItemKNN", "splits": 2, "metrics": ["Recall"], "topk": [20]}
        | {"valid_metric": "Recall@20", "split_seed": 7}
    )
    assert planned.split_seeds == (7, 8)
    assert [row.first_config.split_seed for row in planned.on_split(8).rows] == [8, 8]
    users = [["a", "b"], ["c", "a"]]
    values = {"BPR": [[0.2, 0.4], [0.6, 0.4]], "ItemKNN": [[0.4, 0.6], [0.7, 0.4]]}
    records: dict[str, list[Any]] = {}
    for name, runs in values.items():
        for split, found in enumerate(runs):
            path = tmp_path / name / f"{split}.parquet"
            save_per_user(path, users[split], {"recall@20": np.array(found)})
            records.setdefault(name, []).append(record_of(path, float(np.mean(found))))
    results = summarise(planned, records, ["one", "two"])
    assert results["splits"] == ["one", "two"]
    assert "on each of 2 random splits" in results["budget"]["sentence"]
    bpr, knn = results["rows"]
    assert bpr["mean"]["recall@20"] == pytest.approx((0.3 + 0.5) / 2)
    assert bpr["deviation"]["recall@20"] == pytest.approx(np.std([0.3, 0.5], ddof=1))
    # a is tested on both splits, 0.3 and 0.4 on average; b and c once.
    differences = np.array([0.4 - 0.3, 0.6 - 0.4, 0.7 - 0.6])
    t = differences.mean() / (differences.std(ddof=1) / 3**0.5)
    expected = 2 * scipy.stats.t.sf(t, 2)
    assert results["significance"]["recall@20"]["p_users"][0][1] == pytest.approx(expected)
    assert knn["mean"]["recall@20"] == pytest.approx((0.5 + 0.55) / 2)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"eval_args.order": "TO"}, "it is made in time"),
        ({"benchmark_filename": ["a", "b", "c"]}, "--benchmark_filename gives it"),
    ],
)
def test_splits_that_would_all_be_the_same_are_refused(given: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError, match=f"--splits=3 needs a random split, but {found}"):
        plan({"dataset": "ml-100k", "models": "BPR", "splits": 3, **given})


def test_means_gains_and_gaps_by_hand(tmp_path: Path) -> None:
    planned = plan(
        {"dataset": "ml-100k", "models": "RRDStudent", "seeds": 2, "metrics": ["Recall"], "topk": [20]}
        | {"valid_metric": "Recall@20"}
    )
    #: Row -> the metric of two users, seed by seed.
    values = {
        "BPR (teacher)": [[0.6, 0.8]],
        "BPR (plain)": [[0.4, 0.4], [0.4, 0.6]],
        "RRDStudent": [[0.5, 0.5], [0.5, 0.8]],
    }
    records: dict[str, list[Any]] = {}
    for name, runs in values.items():
        for seed, users in enumerate(runs):
            path = tmp_path / name / f"{seed}.parquet"
            save_per_user(
                path, ["b", "a"] if seed else ["a", "b"], {"recall@20": np.array(users[::-1] if seed else users)}
            )
            inference = {
                "latency_ms": {"batch_1": {"p50": 1.0 + seed, "p95": 3.0}},
                "latency_range_ms": {"batch_1": [0.5 + seed, 4.0 - seed]},
                "users_per_second": {"batch_1": 10.0},
            }
            record = record_of(
                path,
                round(float(np.mean(users)), 1),
                seed=seed,
                epoch_seconds=[4.0, 2.0, 2.0] if name == "RRDStudent" else [1.0],
                peak_memory_bytes=None if name == "BPR (teacher)" else 100 + seed,
                inference=inference,
            )
            records.setdefault(name, []).append(record)
    results = summarise(planned, records, ["split"])
    teacher, plain, recipe = results["rows"]
    assert plain["mean"]["recall@20"] == pytest.approx(0.45), "of unrounded means"
    assert plain["deviation"]["recall@20"] == pytest.approx(0.05 * 2**0.5)
    assert recipe["mean"]["recall@20"] == pytest.approx(0.575)
    assert recipe["relative_gain"]["recall@20"] == pytest.approx(0.575 / 0.45 - 1)
    assert recipe["gap_closed"]["recall@20"] == pytest.approx(0.125 / 0.25)
    assert teacher["gap_closed"]["recall@20"] == 1.0
    assert teacher["deviation"]["recall@20"] == 0.0
    assert recipe["costs"]["ratio_to_plain"] == 2.0
    assert recipe["costs"]["latency_ms"]["batch_1"] == {"p50": 1.5, "p95": 3.0}
    assert recipe["costs"]["latency_range_ms"] == {"batch_1": [0.5, 4.0]}
    assert teacher["costs"]["peak_memory_bytes"] is None
    tests = results["significance"]["recall@20"]
    assert tests["names"] == ["BPR (teacher)", "BPR (plain)", "RRDStudent"]
    assert tests["difference"][2][1] == pytest.approx(0.125)
    assert tests["p_seeds"][0] == [None, None, None], "a teacher has one run"
    assert tests["p_users"][2][1] == tests["p_users"][1][2]
    of_a_and_b = [np.array(means) for means in ([0.6, 0.8], [0.4, 0.5], [0.5, 0.65])]
    assert tests["p_users"][0][1] == pytest.approx(paired_t(of_a_and_b[0], of_a_and_b[1])), "users in one order"
    assert tests["p_users"][1][2] == pytest.approx(paired_t(of_a_and_b[1], of_a_and_b[2]))


def test_a_gap_is_closed_only_where_the_teacher_is_better() -> None:
    assert _gap_closed(0.5, 0.4, 0.6, smaller=False) == pytest.approx(0.5)
    assert _gap_closed(0.5, 0.4, 0.4, smaller=False) is _gap_closed(0.5, 0.4, 0.3, smaller=False) is None


def test_a_gap_of_a_metric_that_should_be_small_is_closed_by_a_fall() -> None:
    """The Gini index of the plain student is 0.9, of the teacher 0.5, of the student 0.6."""
    assert _gap_closed(0.6, 0.9, 0.5, smaller=True) == pytest.approx(0.75)
    assert _gap_closed(0.7, 0.5, 0.9, smaller=True) is _gap_closed(0.7, 0.5, 0.5, smaller=True) is None


def test_the_time_left_is_a_rows_own_where_it_is_known() -> None:
    planned = plan({"dataset": "ml-100k", "models": "BPR,Pop", "seeds": 2})
    progress = Progress(planned)
    jobs = [Job(row, seed, "", "") for seed in planned.seeds for row in planned.rows]
    progress.kept(jobs[0], {"seconds": 100.0})
    assert progress.seconds_left() == pytest.approx(300, abs=5), "one of its kind, two unknown"
    progress.kept(jobs[1], {"seconds": 2.0})
    assert progress.seconds_left() == pytest.approx(102, abs=5)


def test_the_time_left_includes_what_a_run_takes_around_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run counts 5 s; its process takes 12, as it imports torch and reads the data first."""
    now = 0.0
    monkeypatch.setattr("recbole_kd.verbs.compare.progress.time.monotonic", lambda: now)
    monkeypatch.setattr(Job, "result", lambda self: {"seconds": 5.0, "best_valid_result": {}})
    planned = plan({"dataset": "ml-100k", "models": "BPR", "seeds": 3})
    progress = Progress(planned)
    job = Job(planned.rows[0], 2020, "", "")
    progress.begin([job])
    now = 12.0
    progress.finished(job)
    assert progress.seconds_left() == pytest.approx(24)


# Processes of their own


def words(data_path: Path, **given: Any) -> list[str]:
    given = {**without_recipes(data_path), "benchmark_filename": "[train,valid,test]", "topk": "[10]", **given}
    given.pop("load_col")
    return ["compare", *(f"--{key}={value}" for key, value in given.items())]


def test_from_the_command_line(known_answer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(known_answer)) == 0
    out, err = capfd.readouterr()
    assert "ndcg@10" in out
    assert str(known_answer / "report" / "report.html") in out
    assert "[1/1] BPR, seed 2020: validation ndcg@10" in err
    assert main(words(known_answer, learner="no", epochs=1)) == 2
    assert "--learner='no' is not one of" in capfd.readouterr().err


@pytest.mark.slow
def test_killed_it_goes_on(known_answer: Path) -> None:
    command = [sys.executable, "-m", "recbole_kd.cli", *words(known_answer, models="BPR,Pop,Random")]
    command[1:3] = ["-c", "import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))"]
    process = subprocess.Popen(command)
    runs = known_answer / "report" / "runs"
    while not list(runs.glob("*/result.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in runs.glob("*/result.json")}
    assert 0 < len(kept) < 3
    assert subprocess.run(command).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(runs.glob("*/result.json"))) == 3


@pytest.mark.slow
def test_in_parallel_the_results_are_the_same(known_answer: Path) -> None:
    parallel = compare(without_recipes(known_answer, models="BPR,Pop", parallel=2))
    alone = compare(without_recipes(known_answer, models="BPR,Pop", output=str(known_answer / "other")), Runner())
    for one, other in zip(parallel["rows"], alone["rows"]):
        assert one["mean"] == other["mean"]


@pytest.mark.slow
def test_tuned_rows_have_the_same_number_of_trials(known_answer: Path) -> None:
    given = without_recipes(known_answer, models="BPR,FreqDStudent", tune_trials=2)
    results = compare({**given, "teacher.epochs": 3, "teacher.embedding_size": 16}, Runner())
    assert results["budget"]["tune_trials"] == 2
    rates = [row["settings"]["learning_rate"] for row in results["rows"][1:]]
    assert len(set(rates)) > 1, "each has its own"
    assert "among 2 trials" in results["budget"]["sentence"]
