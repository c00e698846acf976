"""``--final=true``: the student that validation chose, trained again on every interaction."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recbole_kd import run_recbole_kd
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.stages.final import check_final, final_experiment
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs import train
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.export import run_export
from recbole_kd.verbs.recommender import Recommender

QUICK = {"rrd.pool": 8, "rrd.interesting": 4, "rrd.uninteresting": 4, "baseline": "none", "embedding_size": 8}


def run(folder: Path, model: str, **settings: Any) -> dict[str, Any]:
    return run_recbole_kd(model, "known-answer", config_dict=known_answer_settings(folder, **settings))


def state_of(path: str) -> dict[str, Any]:
    return load_checkpoint(path, schema=ModelState)


@pytest.fixture
def finished(known_answer: Path) -> dict[str, Any]:
    return run(known_answer, "RRDStudent", final=True, epochs=6, **{"teacher.epochs": 4}, **QUICK)


def test_the_run_has_its_figures_and_a_second_file_that_has_none(finished: dict[str, Any]) -> None:
    final, state = finished["final"], state_of(finished["final"]["checkpoint"])
    assert finished["test_result"]
    assert final["checkpoint"] == finished["checkpoint"].replace(".pth", "-final.pth")
    assert final["epochs"] == finished["best_epoch"] + 1
    assert final["train_seconds"] == sum(state["epoch_seconds"])
    assert state["final"]
    assert "test_result" not in state
    assert not state["best_valid_result"]
    assert not state_of(finished["checkpoint"])["final"]


def test_one_that_fails_loses_nothing_of_the_run(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(train, "train_final", fails)
    file = known_answer / "result.json"
    with pytest.raises(UserError, match="no"):
        run(known_answer, "BPR", final=True, epochs=2, result_file=str(file))
    kept = json.loads(file.read_text())
    assert kept["test_result"]
    assert kept["final"] is None


def test_it_knows_every_interaction_and_serves(finished: dict[str, Any], known_answer: Path) -> None:
    path, given = finished["final"]["checkpoint"], {"data_path": str(known_answer)}
    files = (known_answer / "known-answer").glob("*.inter")
    rows = [line for file in files for line in file.read_text().splitlines()[1:]]
    assert finished["final"]["interactions"] == len(rows)
    recommender = Recommender(path, config_dict=given)
    assert len(recommender.seen) == len(set(rows))
    assert len(next(recommender.recommend(k=3)).items) == 3
    with pytest.raises(UserError, match=r"was trained on all of known-answer, so it cannot be evaluated"):
        evaluate_checkpoint(path, given)


def test_an_export_says_that_it_knows_everything(finished: dict[str, Any], known_answer: Path) -> None:
    """And so there are no metrics of it."""
    manifest = run_export(finished["final"]["checkpoint"], "bundle", config_dict={"data_path": str(known_answer)})
    assert manifest["final"]
    assert (manifest["valid_result"], manifest["test_result"]) == ({}, {})


def test_its_teacher_too_is_trained_again_for_as_long_as_was_chosen(finished: dict[str, Any]) -> None:
    before, after = (state_of(one["teacher"]["checkpoint"]) for one in (finished, finished["final"]))
    assert after["final"]
    assert len(after["epoch_seconds"]) == before["best_epoch"] + 1


def test_a_teacher_that_is_a_file_stays_as_it_is(finished: dict[str, Any], known_answer: Path) -> None:
    path = finished["teacher"]["checkpoint"]
    result = run(known_answer, "RRDStudent", final=True, epochs=2, **{"teacher.checkpoint": path}, **QUICK)
    assert result["final"]["teacher"]["checkpoint"] == path


def test_it_is_what_a_run_on_everything_gives(known_answer: Path) -> None:
    result = run(known_answer, "BPR", final=True, epochs=6, learning_rate_schedule="cosine")
    everything = {"eval_args.split": {"RS": [1, 0, 0]}, "stop_after": result["final"]["epochs"]}
    alone = run(known_answer, "BPR", epochs=6, learning_rate_schedule="cosine", **everything)
    theirs = state_of(alone["checkpoint"])["state_dict"]
    for name, weights in state_of(result["final"]["checkpoint"])["state_dict"].items():
        assert torch.equal(weights, theirs[name])
    assert result["final"]["epochs"] > 1
    last = Path(result["final"]["checkpoint"].replace(".pth", "-last.pth"))
    assert not last.exists(), "nothing resumes a final training, so it keeps no state for that"


def test_a_training_that_ends_early_is_the_beginning_of_the_longer_one(known_answer: Path) -> None:
    """The schedule is that of all epochs."""
    whole, part = (run(known_answer, "BPR", epochs=4, learning_rate_schedule="cosine", stop_after=n) for n in (None, 2))
    assert part["epochs_trained"] == 2
    assert part["loss_history"] == {epoch: whole["loss_history"][epoch] for epoch in (0, 1)}


def test_a_resumed_run_trains_its_last_model_from_the_beginning(known_answer: Path) -> None:
    """On everything, it has nothing to go on from."""
    short = run(known_answer, "BPR", epochs=2)
    resumed = run(known_answer, "BPR", epochs=3, final=True, resume=short["checkpoint"].replace(".pth", "-last.pth"))
    whole = run(known_answer, "BPR", epochs=3, final=True)
    first, second = (state_of(one["final"]["checkpoint"])["state_dict"] for one in (resumed, whole))
    assert all(torch.equal(weights, second[name]) for name, weights in first.items())


def test_each_of_several_teachers_is_trained_again_for_as_long_as_was_chosen(known_answer: Path) -> None:
    settings = {"teacher": "BPR,LightGCN", "teacher.0.epochs": 2, "teacher.1.epochs": 3, "epochs": 1}
    experiment = Experiment.of("RRDStudent", "known-answer", given=known_answer_settings(known_answer, **settings))
    trained = [SimpleNamespace(state={"best_epoch": epoch}, model=None) for epoch in (1, 0)]
    members = [SimpleNamespace(trained=one) for one in trained]
    trainer = SimpleNamespace(best_epoch=0, model=None)
    final = final_experiment(experiment, trainer, SimpleNamespace(members=members))
    assert final.settings["stop_after"] == 1
    assert experiment.baseline is not None
    assert final.baseline is None, "nothing is compared any more"
    assert [source.settings["stop_after"] for source in final.teachers if source.settings is not None] == [2, 1]


def test_annealing_that_validation_stopped_ends_at_the_same_value(known_answer: Path) -> None:
    """The last training has no validation, which would stop it."""
    settings = known_answer_settings(known_answer, stop_annealing=True, anneal_cap=1.0)
    model = SimpleNamespace(best_beta=0.05)
    final = final_experiment(
        Experiment.of("MultiVAEVariant", "known-answer", given=settings),
        SimpleNamespace(best_epoch=2, model=model),
        None,
    )
    assert final.settings["anneal_cap"] == 0.05


def test_a_teachers_annealing_ends_there_too_from_the_cache_as_well(known_answer: Path) -> None:
    teacher = {"teacher": "MultiVAEVariant", "teacher.stop_annealing": True, "teacher.epochs": 3, "distill": ["rrd"]}
    teacher = {**teacher, "teacher.anneal_cap": 1.0, "teacher.total_anneal_steps": 40}
    for _ in range(2):
        result = run(known_answer, "BPR", final=True, epochs=1, **teacher, **QUICK)
        stopped = state_of(result["teacher"]["checkpoint"])["other_parameter"]["best_beta"]
        assert 0 < stopped < 1
        assert state_of(result["final"]["teacher"]["checkpoint"])["config"]["anneal_cap"] == stopped
    assert result["teacher"]["from_cache"]


def test_it_is_refused_where_nothing_is_held_out(known_answer: Path) -> None:
    with pytest.raises(
        UserError, match="--final=true trains again with the held-out interactions, but the split holds out none"
    ):
        run(known_answer, "BPR", final=True, **{"eval_args.split": {"RS": [1, 0, 0]}})


@pytest.mark.parametrize("shares", [[9, 1, 0], [9, 0, 1]])
def test_one_split_that_is_held_out_is_enough(shares: list[int]) -> None:
    check_final(KDConfig("BPR", "ml-100k", config_dict={"eval_args.split": {"RS": shares}}))


def test_lists_that_all_interactions_leave_no_room_for_are_refused_before_the_teacher(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 items, a user has had 8 in training and 10 in all: 31 others are there in the run, but not after it."""
    given = {**QUICK, "rrd.pool": 20, "rrd.uninteresting": 11, "teacher.epochs": 1}
    monkeypatch.setattr(
        "recbole_kd.stages.final.shared_teacher", lambda *_: pytest.fail("the teacher is trained again first")
    )
    with pytest.raises(UserError, match="rrd.uninteresting=11 below the 20 of rrd.pool"):
        run(known_answer, "RRDStudent", final=True, epochs=1, **given)


def test_no_epoch_is_no_training_that_could_be_done_again(known_answer: Path) -> None:
    with pytest.raises(UserError, match="--epochs=0 trains none; set --epochs=1 or more, or leave --final out"):
        run(known_answer, "BPR", final=True, epochs=0)
    untrained = run(known_answer, "RRDStudent", final=True, epochs=1, **{"teacher.epochs": 0}, **QUICK)["final"]
    assert state_of(untrained["teacher"]["checkpoint"])["best_epoch"] == -1
