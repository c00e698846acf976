"""``--dry_run=true``: the resolved experiment as YAML, which gives the same experiment when it is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_kd.cli import main
from recbole_kd.experiment.description import describe
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.files.digest import digest
from recbole_kd.files.properties import load_yaml


def everything(experiment: Experiment) -> list[Any]:
    """All that an experiment is decided by, as plain values."""
    teachers = [source.settings.plain_values() if source.settings else source.section for source in experiment.teachers]
    baseline = experiment.baseline and experiment.baseline.plain_values()
    return [digest(experiment.settings.plain_values()), teachers, baseline, experiment.distillers, experiment.optimiser]


@pytest.mark.parametrize(
    ("model", "dataset", "given"),
    [
        ("BPR", "ml-100k", {}),
        ("MultiVAE", "ml-100k", {}),
        ("DERRDStudent", "citeulike", {"epochs": 3, "learning_rate": 1e-5, "eval_batch_size": 100}),
        ("BestStudent", "citeulike", {"teacher.epochs": 3, "learner": "sevo_adamw", "sevo.graph": "teacher"}),
        ("KDStudent", "amazon-beauty", {"student": "SASRec"}),
        ("RRDStudent", "ml-100k", {"baseline": "LightGCN"}),
        ("RRDStudent", "ml-100k", {"teacher.checkpoint": "a.pth"}),
        (
            "RRDStudent",
            "ml-100k",
            {"teacher.0.ranks": "a.csv", "teacher.1.model": "EASE", "topk": 10, "valid_metric": "MRR@10"},
        ),
        ("RRDStudent", "ml-100k", {"distill": []}),
        ("RRDStudent", "ml-100k", {"distill": ["none"]}),
    ],
    ids=str,
)
def test_read_back_it_is_the_same_experiment(model: str, dataset: str, given: dict[str, Any], tmp_path: Path) -> None:
    first = Experiment.of(model, dataset, given=given)
    file = tmp_path / "resolved.yaml"
    file.write_text(describe(first))
    again = Experiment.of(files=[str(file)])
    assert everything(again) == everything(first)
    assert describe(again).count("\n") == describe(first).count("\n")


def test_each_value_has_its_source() -> None:
    lines = describe(Experiment.of("RRDStudent", "citeulike", given={"epochs": 3})).splitlines()

    def source(beginning: str) -> str:
        return next(line.partition("  # ")[2] for line in lines if line.startswith(beginning))

    assert source("epochs: 3") == "command line"
    assert source("learning_rate:") == "properties/student/BPR.yaml, for citeulike"
    assert source("  pool:") == "properties/distiller/rrd.yaml"
    assert source("seed: 2020") == "RecBole"


def test_teachers_and_baseline_are_told_as_comments() -> None:
    text = describe(Experiment.of("RRDStudent", "ml-100k", given={"teacher": "LightGCN", "teacher.n_layers": 1}))
    told = text[text.index("# teacher, LightGCN, is trained with:") :]
    assert all(line.startswith("#") for line in told.splitlines())
    assert "#   n_layers: 1 " in told
    assert "# The baseline, BPR, is trained with:" in told
    assert "n_layers" not in load_yaml(text[: text.index("# teacher,")])


def test_the_command_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--model=RRDStudent", "--dataset=nowhere", "--dry_run=true"]) == 0
    assert load_yaml(capsys.readouterr().out)["dataset"] == "nowhere"
    assert not list(tmp_path.iterdir())
    assert main(["--model=RRDStudent", "--dataset=nowhere", "--dry_run=perhaps"]) == 2
    assert "--dry_run='perhaps' is not true or false" in capsys.readouterr().err
