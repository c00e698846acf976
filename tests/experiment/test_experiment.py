"""An experiment: who learns, who teaches, how and beside what, decided once from the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment


def experiment(model: str, dataset: str = "ml-100k", **given: Any) -> Experiment:
    return Experiment.of(model, dataset, given=given)


def test_a_recipe_is_a_student_a_teacher_distillers_and_a_baseline() -> None:
    recipe = experiment("DERRDStudent", **{"rrd.pool": 70, "teacher.embedding_size": 64})
    assert recipe.settings.resolved.backbone == "BPR"
    assert list(recipe.distillers) == ["de", "rrd"]
    assert recipe.distillers["rrd"].pool == 70  # type: ignore[attr-defined]
    (teacher,) = recipe.teachers
    assert teacher.settings is not None
    assert (teacher.settings["model"], teacher.settings["embedding_size"]) == ("BPR", 64)
    assert (teacher.checkpoint, teacher.ranks, teacher.share) == (None, None, 1.0)
    assert recipe.baseline is not None
    assert (recipe.baseline["model"], recipe.baseline.distillers) == ("BPR", [])


def test_a_plain_model_has_none_of_these() -> None:
    plain = experiment("BPR", baseline="student")
    assert (plain.teachers, dict(plain.distillers), plain.baseline) == ((), {}, None)
    unweighted = experiment("RRDStudent", **{"rrd.weight": 0})
    assert (unweighted.teachers, dict(unweighted.distillers), unweighted.baseline) == ((), {}, None)


def test_several_teachers_and_how_they_are_fused() -> None:
    both = experiment("BPR", distill="rrd", teacher="BPR,EASE", **{"teacher.1.share": 0.5, "teacher.fusion": "scores"})
    assert [source.settings["model"] for source in both.teachers if source.settings] == ["BPR", "EASE"]
    assert [source.share for source in both.teachers] == [1.0, 0.5]
    assert [source.prefix for source in both.teachers] == ["teacher.0.", "teacher.1."]
    assert both.fusion == "scores"


def test_a_file_teaches_without_settings_of_a_model() -> None:
    (saved,) = experiment("RRDStudent", **{"teacher.checkpoint": "a.pth"}).teachers
    assert (saved.checkpoint, saved.settings, saved.named) == ("a.pth", None, None), "the recipe's model is not asked"
    (named,) = experiment("BPR", distill="rrd", **{"teacher.checkpoint": "a.pth", "teacher.model": "EASE"}).teachers
    assert named.named == "EASE"
    (lists,) = experiment("BPR", distill="rrd", **{"teacher.ranks": "a.csv"}).teachers
    assert (lists.ranks, lists.settings) == ("a.csv", None)


def test_which_adam() -> None:
    assert not experiment("BPR").optimiser.fused
    assert experiment("RRDStudent").optimiser.fused, "a run that distils takes the fused one"
    assert not experiment("RRDStudent", fused_adam=False).optimiser.fused
    assert experiment("BPR", fused_adam=True).optimiser.fused
    assert experiment("BPR", fast_sampling=True).optimiser.fused
    assert not experiment("BPR", fast_sampling=True, fused_adam=False).optimiser.fused


def test_sevo_may_be_what_reads_the_teacher() -> None:
    smoothed = experiment(
        "BPR", learner="SEvo_AdamW", teacher="LightGCN", **{"sevo.graph": "teacher", "sevo.beta": 0.5}
    )
    assert smoothed.optimiser.learner == "sevo_adamw"
    assert smoothed.optimiser.sevo is not None
    assert (smoothed.optimiser.sevo.beta, len(smoothed.teachers)) == (0.5, 1)
    assert experiment("BPR", learner="sevo_adam").teachers == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": None}, "Distillation (rrd) needs a teacher; set --teacher=NAME"),
        ({"teacher": "GRU4Rec"}, "the teacher GRU4Rec is a sequential model"),
        ({"teacher": "BPR", "teacher.epochs": -1}, "--teacher.epochs=-1"),
        ({"teacher": "BPR", "baseline": "GRU4Rec"}, "the baseline GRU4Rec is a sequential model"),
        ({"teacher": "BPR", "baseline": "BRP"}, "Unknown model 'BRP'. Did you mean 'BPR'?"),
        ({"teacher": "BPR", "teacher.ranks": "a.csv"}, "--teacher.ranks and --teacher.model both name the teacher"),
        (
            {"teacher.checkpoint": "a.pth", "teacher.shar": 1},
            "--teacher.shar is set, but the teacher comes from a file",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_any_model_of_the_run_is_said_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        experiment("BPR", distill="rrd", **settings)
    assert message in str(raised.value)


def test_nothing_of_it_can_be_changed() -> None:
    frozen: Any = experiment("RRDStudent")
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.baseline = None
    with pytest.raises(TypeError):
        frozen.distillers["kd"] = None
    with pytest.raises(TypeError, match="settings are read-only, so epochs cannot be set"):
        frozen.settings["epochs"] = 1


def test_a_variant_differs_in_what_is_named() -> None:
    base = experiment("RRDStudent", epochs=7)
    other = base.variant(**{"rrd.weight": 0.25, "learning_rate": 0.1})
    assert (other.settings["epochs"], other.settings["learning_rate"]) == (7, 0.1)
    assert other.distillers["rrd"].weight == 0.25  # type: ignore[attr-defined]
    assert base.settings["learning_rate"] != 0.1


def test_other_processes_get_paths_that_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = experiment(
        "RRDStudent", data_path="data", **{"teacher.checkpoint": "a.pth", "epochs": 3}
    ).portable_settings()
    assert given["data_path"] == str(tmp_path / "data")
    assert given["teacher"]["checkpoint"] == str(tmp_path / "a.pth")
    assert (given["epochs"], given["checkpoint_dir"]) == (3, str(tmp_path / "saved"))
