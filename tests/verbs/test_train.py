"""The whole flow, on data whose answer is known: what comes out, and that learning happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import recbole_kd
from recbole_kd.errors import UserError
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.compare.plan import plan
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd, table
from recbole_kd.verbs.tune import parse_space, search

FIELDS = {
    *("model", "dataset", "seed", "distillers", "teacher", "best_valid_score", "best_valid_result", "test_result"),
    *("best_epoch", "epochs_trained", "epoch_seconds", "train_seconds", "evaluate_seconds", "parameters"),
    *("peak_memory_bytes", "checkpoint", "digests", "versions"),
}
#: Enough for SimRec to learn 48 users and 40 items.
LEARNING = {
    "epochs": 40,
    "learning_rate": 0.02,
    "embedding_size": 16,
    "teacher.embedding_size": 16,
    "teacher.epochs": 60,
    "teacher.learning_rate": 0.02,
    "simrec.triplets": 500,
}


def run(data_path: Path, model: str = "SimRecStudent", **settings: Any) -> dict[str, Any]:
    return run_recbole_kd(model, "known-answer", config_dict=known_answer_settings(data_path, **settings))


def test_a_run_gives_every_field_and_writes_it(known_answer: Path) -> None:
    file = known_answer / "result.json"
    result = run(known_answer, **{"simrec.triplets": 100, "result_file": str(file)})
    assert set(result) >= FIELDS
    assert set(result["teacher"]) >= {"model", "checkpoint", "digest", "from_cache", "test_result"}
    assert result["parameters"] == {"student": 49 * 32 + 41 * 32 + 32 * 32, "teacher": 49 * 32 + 41 * 32}
    assert len(result["epoch_seconds"]) == result["epochs_trained"]
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))
    assert (
        json.loads(Path(result["checkpoint"]).with_suffix(".json").read_text())["test_result"] == result["test_result"]
    )


def test_the_table_names_the_backbone_of_a_recipe(known_answer: Path) -> None:
    settings = {"rrd.pool": 8, "rrd.interesting": 4, "rrd.uninteresting": 4, "baseline": "none"}
    result = run(known_answer, "RRDStudent", student="LightGCN", **{"teacher.epochs": 1, "epochs": 1, **settings})
    assert "RRDStudent (LightGCN)" in table(result)


def test_the_student_learns(known_answer: Path) -> None:
    untrained = run(
        known_answer,
        epochs=0,
        **{"teacher.epochs": 1, "baseline": None, "embedding_size": 16, "teacher.embedding_size": 16},
    )
    taught = run(known_answer, **LEARNING)
    alone = taught["baseline"]["test_result"]["ndcg@10"]
    assert taught["teacher"]["test_result"]["recall@10"] > 0.9, "the teacher learned"
    assert untrained["test_result"]["recall@10"] < 0.6
    assert taught["test_result"]["recall@10"] > 0.9
    assert taught["test_result"]["ndcg@10"] > untrained["test_result"]["ndcg@10"] + 0.3
    assert taught["test_result"]["ndcg@10"] >= alone - 0.05


def test_distillation_alone_teaches_what_the_teacher_knows(known_answer: Path) -> None:
    """With the base loss gone (learning only from L1 and L2), the student still ranks as its teacher does."""
    only = {"simrec.regularization_weight": 0.0, "simrec.prediction_weight": 10.0, "baseline": None}
    result = run(known_answer, **{**LEARNING, **only})
    assert result["test_result"]["recall@10"] > 0.8


def test_the_same_seed_gives_the_same_result(known_answer: Path) -> None:
    settings = {"simrec.triplets": 100, "baseline": None}
    first, second = run(known_answer, **settings), run(known_answer, **settings)
    for key in ("test_result", "best_valid_result", "loss_history"):
        assert first[key] == second[key], key
    other = run(known_answer, **settings, seed=3)
    assert other["loss_history"] != first["loss_history"]


@pytest.mark.parametrize("teacher", ["BPR", "LightGCN", "SimRecTeacher"])
@pytest.mark.parametrize("student", ["SimRecStudent", "BPR", "LightGCN"])
def test_any_of_these_teaches_any_of_these_by_simrec(student: str, teacher: str, known_answer: Path) -> None:
    sizes = {"embedding_size": 16, "teacher.embedding_size": 16, "teacher.model": teacher, "teacher.epochs": 2}
    result = run(known_answer, student, **sizes, **{"distill": "simrec", "simrec.triplets": 100, "baseline": None})
    assert set(result["loss_history"][0]) == {
        *("rec", "simrec.prediction", "simrec.embedding", "simrec.regularization", "simrec.decay")
    }
    assert result["distillers"] == ["simrec"]


def test_a_plain_model_runs_without_teacher(known_answer: Path) -> None:
    result = run(known_answer, "BPR")
    assert result["teacher"] is None
    assert result["distillers"] == []


def test_a_distilled_student_stands_beside_one_of_its_kind_without_a_teacher(known_answer: Path) -> None:
    """Unasked: what a teacher is good for is the gain over that student."""
    taught = {"teacher": "BPR", "teacher.epochs": 1, "distill": "fitnet", "embedding_size": 6}
    result = run(known_answer, "BPR", **taught)
    assert (result["baseline"]["model"], result["baseline"]["parameters"]) == ("BPR", (49 + 41) * 6)
    assert table(result).splitlines()[-1].startswith("gain")
    assert run(known_answer, "BPR", **taught, baseline="none")["baseline"] is None


def test_evaluate_reproduces_the_runs_metrics(known_answer: Path) -> None:
    result = run(known_answer, **{"simrec.triplets": 100, "baseline": None})
    settings = {"data_path": str(known_answer), "show_progress": False, "topk": [10], "valid_metric": "NDCG@10"}
    evaluated = evaluate_checkpoint(result["checkpoint"], settings)
    assert evaluated["test_result"] == result["test_result"]
    assert evaluated["valid_result"] == result["best_valid_result"]
    teacher = evaluate_checkpoint(result["teacher"]["checkpoint"], settings)
    assert teacher["test_result"] == result["teacher"]["test_result"]


def test_metrics_that_read_the_training_data_are_evaluated_after_a_run_too(known_answer: Path) -> None:
    asked = {"metrics": ["ItemCoverage"], "valid_metric": "ItemCoverage@10"}
    result = run(known_answer, "BPR", **asked)
    given = {"data_path": str(known_answer), "topk": [10], **asked}
    assert evaluate_checkpoint(result["checkpoint"], given)["test_result"] == result["test_result"]
    teacher = {"teacher": "BPR", "teacher.epochs": 1, "distill": "fitnet", "baseline": None}
    run(known_answer, "BPR", **teacher)
    assert set(run(known_answer, "BPR", **teacher, **asked)["teacher"]["test_result"]) == {"itemcoverage@10"}


@pytest.mark.parametrize(
    "settings", [{"sevo.graph": "bipartite"}, {"sevo.graph": "teacher", "teacher": "BPR", "teacher.epochs": 1}]
)
def test_what_sevo_trained_is_evaluated_too(known_answer: Path, settings: dict[str, Any]) -> None:
    result = run(known_answer, "BPR", learner="sevo_adamw", epochs=2, **settings)
    given = {"data_path": str(known_answer), "topk": [10], "valid_metric": "NDCG@10"}
    assert evaluate_checkpoint(result["checkpoint"], given)["test_result"] == result["test_result"]


def test_evaluate_refuses_a_checkpoint_of_another_split(known_answer: Path) -> None:
    result = run(known_answer, "BPR", epochs=1)
    train = known_answer / "known-answer" / "known-answer.train.inter"
    train.write_text("\n".join(train.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="trained on another split"):
        evaluate_checkpoint(result["checkpoint"], {"data_path": str(known_answer)})


def test_a_distiller_is_refused_when_the_teacher_lacks_what_it_reads(known_answer: Path) -> None:
    with pytest.raises(UserError, match=r"simrec reads a vector for each user .* of the teacher; NeuMF has none"):
        run(known_answer, "BPR", distill="simrec", **{"teacher.model": "NeuMF", "teacher.epochs": 1})


@pytest.mark.parametrize("space", ["input", "output"])
def test_embeddings_of_another_size_are_refused_before_a_teacher_is_trained(known_answer: Path, space: str) -> None:
    given = {"teacher.epochs": 1, "simrec.space": space}
    with pytest.raises(UserError, match=r"embeddings \(64 dimensions\) with the student's \(32\)"):
        run(known_answer, **given, **{"teacher.model": "BPR"})
    with pytest.raises(UserError, match=r"\(64 dimensions\).*\(32\).* choose ones whose sum is 32"):
        run(
            known_answer,
            **given,
            teacher=[{"model": "BPR", "embedding_size": 32}, {"model": "LightGCN", "embedding_size": 32}],
        )
    assert not list(known_answer.glob("saved/**/*.pth"))
    run(
        known_answer,
        **given,
        teacher=[{"model": "BPR", "embedding_size": 16}, {"model": "LightGCN", "embedding_size": 16}],
    )


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("NeuMF", {"distill": "freqd", "teacher": "BPR"}, "freqd reads a vector .* of the student; NeuMF has none"),
        ("BPR", {"distill": "simrec", "teacher": "NeuMF"}, "simrec reads a vector .* of the teacher; NeuMF has none"),
        ("DEStudent", {"teacher": "EASE"}, "de reads a vector .* of the teacher; EASE has none"),
        ("EASE", {"distill": "rrd", "teacher": "BPR"}, "EASE is computed in closed form: .* not a student"),
        ("RRDStudent", {"student": "ItemKNN"}, "ItemKNN is computed in closed form: .* not a student"),
        ("SASRec", {"distill": "rd", "teacher": "SASRec"}, "rd distils scores or vectors of users"),
    ],
)
def test_models_that_do_not_go_together_are_refused_before_a_teacher_is_trained(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch, model: str, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("recbole_kd.stages.data.Splits", lambda *_: pytest.fail("the data is loaded"))
    with pytest.raises(UserError, match=message):
        run(known_answer, model, **settings)
    with pytest.raises(UserError, match=message):
        plan({"models": model, "dataset": "known-answer", "data_path": str(known_answer), **settings})
    space = parse_space("learning_rate loguniform -7,-4")
    with pytest.raises(UserError, match=message):
        search(model, "known-answer", config_dict={"data_path": str(known_answer), **settings}, space=space)


def test_the_package_offers_the_run() -> None:
    assert recbole_kd.run_recbole_kd is run_recbole_kd
    with pytest.raises(AttributeError):
        _ = recbole_kd.nothing


@pytest.mark.parametrize("setting", ["resume", "warm_start", "teacher.1.checkpoint"])
def test_a_file_that_is_read_late_is_looked_at_before_a_teacher_is_trained(
    setting: str, known_answer: Path, tmp_path: Path
) -> None:
    given = {
        "distill": "kd",
        "kd.items": 8,
        "teacher.0.model": "BPR",
        "teacher.1.model": "BPR",
        "checkpoint_dir": str(tmp_path),
    }
    given |= {"teacher.1.model": None} if setting == "teacher.1.checkpoint" else {}
    with pytest.raises(UserError, match=r"There is no checkpoint 'nowhere\.pth'"):
        run_recbole_kd(
            "BPR", "known-answer", config_dict=known_answer_settings(known_answer, **given, **{setting: "nowhere.pth"})
        )
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize("changed", ["settings", "data"])
def test_a_run_that_cannot_go_on_is_refused_before_its_teacher_is_trained(
    changed: str, known_answer: Path, tmp_path: Path
) -> None:
    given = {"teacher.model": "BPR", "teacher.epochs": 1, "distill": "kd", "kd.items": 8, "baseline": "none"}
    first = run_recbole_kd("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **given))
    given |= {"resume": first["checkpoint"].replace(".pth", "-last.pth"), "checkpoint_dir": str(tmp_path / "second")}
    message = "was trained with --learning_rate="
    if changed == "settings":
        given["learning_rate"] = 0.5
    else:
        file = known_answer / "known-answer" / "known-answer.train.inter"
        file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
        message = "was trained on another split of the data"
    with pytest.raises(UserError, match=message):
        run_recbole_kd("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **given))
    assert not (tmp_path / "second" / "teachers").exists()
