"""What Weights & Biases and MLflow get of a run: three runs of theirs in one group, by RecBole's names.

The two are tested where they are installed, without a server: ``pip install wandb mlflow``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recbole_kd import compat
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.testing import known_answer_settings
from recbole_kd.trainer import trackers
from recbole_kd.trainer.trackers import GROUP, Trackers, check_trackers
from recbole_kd.verbs.train import run_recbole_kd


def distil(data_path: Path, **settings: Any) -> dict[str, Any]:
    """A teacher, a student of two epochs and a baseline."""
    teacher = {"teacher.model": "BPR", "teacher.epochs": 1, "distill": "fitnet", "baseline": "student"}
    return run_recbole_kd(
        "BPR", "known-answer", config_dict=known_answer_settings(data_path, epochs=2, **teacher, **settings)
    )


class Memory:
    """A tracker that remembers."""

    def __init__(self, group: str, role: str) -> None:
        self.group, self.role = group, role
        self.logged: dict[int, dict[str, float]] = {}
        self.finished: list[tuple[dict[str, float], bool]] = []

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.logged.setdefault(epoch, {}).update(values)

    def finish(self, summary: Mapping[str, float], failed: bool = False) -> None:
        self.finished.append((dict(summary), failed))


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """The trackers of a run, in the order in which they begin."""
    begun: list[Memory] = []

    def begin(config: Any, group: str, role: str) -> Memory:
        begun.append(Memory(group, role))
        return begun[-1]

    monkeypatch.setattr(trackers, "KINDS", {"seed": begin})
    return begun


def test_losses_metrics_and_costs_of_each_model(known_answer: Path, memories: list[Memory]) -> None:
    result = distil(known_answer)
    assert [one.role for one in memories] == ["teacher", "student", "baseline"]
    assert len({one.group for one in memories}) == 1
    assert [sorted(one.logged) for one in memories] == [[0], [0, 1], [0, 1]]
    teacher, student, _ = memories
    assert {"train/rec", "train/train_loss", "train/seconds", "valid/ndcg@10"} <= set(teacher.logged[0])
    told = student.logged[1]
    losses = result["loss_history"][1]
    assert {name: told[f"train/{name}"] for name in losses} == losses
    assert told["train/train_loss"] == pytest.approx(sum(losses.values()))
    assert told["valid/ndcg@10"] == result["valid_history"][1]["ndcg@10"]
    ((summary, failed),) = student.finished
    assert not failed
    assert {name: summary[f"eval/{name}"] for name in result["test_result"]} == result["test_result"]
    for cost in ("train_seconds", "evaluate_seconds", "best_epoch", "best_valid_score"):
        assert summary[cost] == result[cost]
    assert summary["parameters"] == result["parameters"]["student"]
    assert summary["peak_memory_bytes"] > 0


def test_a_teacher_from_the_cache_is_in_the_group_too(known_answer: Path, memories: list[Memory]) -> None:
    """It is not trained again: its run has figures of the whole training alone."""
    first = distil(known_answer)
    trained, *_ = memories
    memories.clear()
    distil(known_answer)
    teacher, *_ = memories
    assert teacher.role == "teacher"
    assert teacher.logged == {}
    ((summary, _),) = teacher.finished
    assert summary["eval/ndcg@10"] == first["teacher"]["test_result"]["ndcg@10"]
    assert summary.items() <= trained.finished[0][0].items()


def test_the_trainings_on_all_interactions_are_runs_that_end_without_metrics(
    known_answer: Path, memories: list[Memory]
) -> None:
    distil(known_answer, final=True)
    assert [one.role for one in memories[3:]] == ["teacher", "student"]
    for one in memories[3:]:
        ((summary, failed),) = one.finished
        assert not failed
        assert not [name for name in summary if name.startswith("eval/")]


def test_a_training_that_fails_ends_its_run(known_answer: Path, memories: list[Memory]) -> None:
    with pytest.raises(TrainingError):
        distil(known_answer, learning_rate=1e30, **{"teacher.learning_rate": 0.001})
    assert [one.finished[-1][1] for one in memories] == [False, True]


def test_the_group_can_be_given(memories: list[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """By wandb's own variable, for every tracker."""
    monkeypatch.delenv(GROUP, raising=False)
    Trackers.begin({"seed": 1}, "a-run", "student")
    monkeypatch.setenv(GROUP, "thesis")
    Trackers.begin({"seed": 1}, "a-run", "student")
    assert [one.group for one in memories] == ["a-run", "thesis"]


def test_a_run_ends_once_and_without_a_score_that_nobody_measured() -> None:
    memory = Memory("a-run", "student")
    state = {"valid_history": [], "best_valid_score": float("-inf"), "best_epoch": 1, "epoch_seconds": [1.0, 2.5]}
    running, model = Trackers(memory), nn.Linear(3, 2)
    model.other_parameter = dict  # as a model of RecBole, which has no numbers beside its parameters
    running.finish(model, state, {"ndcg@10": 0.5}, evaluate_seconds=4.0)
    running.finish(model, state, {}, failed=True)
    expected = {"eval/ndcg@10": 0.5, "best_epoch": 1, "parameters": 8, "train_seconds": 3.5, "evaluate_seconds": 4.0}
    assert memory.finished == [(expected, False)]


def test_what_mlflow_gets_has_a_form_that_it_accepts_and_no_password() -> None:
    assert [trackers._name(name) for name in ("valid/recall@10", "a:b")] == ["valid/recall_at_10", "a_b"]
    settings = {"fitnet": {"weight": 1, "more": {"epochs": 2}}, "sevo": {}, "topk": [10]}
    flat = {"fitnet.weight": 1, "fitnet.more.epochs": 2, "sevo": {}, "topk": [10]}
    assert dict(trackers._flat(settings)) == flat
    assert trackers._without_password("http://bob:s3cret@host/api failed") == "http://host/api failed"


# What is refused before anything is trained


def test_nothing_is_asked_for_by_default() -> None:
    check_trackers(KDConfig("BPR", "ml-100k"))


def test_a_package_that_is_missing_or_old(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch, memories: list[Memory]
) -> None:
    monkeypatch.setattr("recbole_kd.trainer.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log_mlflow=true: mlflow is not installed; run: pip install mlflow"):
        distil(known_answer, log_mlflow=True)

    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    version = compat.version
    monkeypatch.setattr(compat, "version", lambda name: absent(name) if name == "wandb" else version(name))
    with pytest.raises(
        UserError, match=r"The package wandb is not installed; run: pip install 'wandb>=0\.30', or leave"
    ):
        distil(known_answer, log_wandb=True)
    monkeypatch.setattr(compat, "version", lambda name: "0.29.0" if name == "wandb" else version(name))
    with pytest.raises(UserError, match=r"wandb 0\.29\.0 is installed; expected 0\.30 or later"):
        distil(known_answer, log_wandb=True)
    assert not memories
    assert not Path("log").exists(), "a refusal writes nothing"


# Weights & Biases, offline


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """wandb without a key, which forgets what it knows afterwards."""
    package = pytest.importorskip("wandb", reason="Weights & Biases: pip install wandb")
    for variable in ("WANDB_API_KEY", "WANDB_MODE", GROUP):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    package.teardown()
    yield package
    package.teardown()


def records(file: Path) -> Iterator[Any]:
    """The records of a run's file: LevelDB's log of protocol buffers, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := -place % 2**15) and left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_gets_three_runs_of_a_group(
    known_answer: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same is learned: it draws from no random stream of ours."""
    plain = distil(known_answer)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = distil(known_answer, log_wandb=True, wandb_project="a-project", quiet=True)
    states = [load_checkpoint(one["checkpoint"])["state_dict"] for one in (plain, result)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "wandb:" not in capsys.readouterr().err, "--quiet=true"

    wandb.teardown()  # its process writes the rest of the files
    groups, told = set(), {}
    for file in Path("wandb").glob("offline-run-*/*.wandb"):
        found = list(records(file))
        run = next(one.run for one in found if one.HasField("run"))
        groups.add((run.project, run.run_group))
        steps = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item} for one in found
        ]
        summaries = [(item.key or item.nested_key[0], item.value_json) for one in found for item in one.summary.update]
        settings = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
        told[run.job_type] = run.display_name, settings, [step for step in steps if step], dict(summaries)
    assert len(groups) == 1
    assert {project for project, _ in groups} == {"a-project"}
    assert set(told) == {"teacher", "student", "baseline"}
    name, settings, steps, summary = told["student"]
    assert name == "BPR student"
    assert settings["distill"] == ["fitnet"]
    assert settings["fitnet"]["weight"] > 0
    assert [step["_step"] for step in steps] == [0, 1]
    assert [step["train/fitnet"] for step in steps] == [result["loss_history"][epoch]["fitnet"] for epoch in (0, 1)]
    assert json.loads(summary["eval/ndcg@10"]) == result["test_result"]["ndcg@10"]


def test_the_users_own_run_stays(wandb: Any, known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook, say; and its group can be given by wandb's own variable."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv(GROUP, "thesis")
    own = wandb.init(project="mine", dir=".")  # otherwise where its service was started
    settings = known_answer_settings(known_answer, epochs=1, log_wandb=True)
    run_recbole_kd("BPR", "known-answer", config_dict=settings)
    assert wandb.run is own
    own.finish()
    wandb.teardown()
    runs = [
        one.run for file in Path("wandb").glob("offline-run-*/*.wandb") for one in records(file) if one.HasField("run")
    ]
    assert {(run.project, run.run_group) for run in runs} == {("mine", "thesis"), ("recbole", "thesis")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a key, but there is none"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid"),
        ({"WANDB_MODE": ""}, "mode Input should be"),
    ],
    ids=str,
)
def test_without_a_key_the_offline_mode_is_offered(
    given: dict[str, str], message: str, wandb: Any, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{message}.*WANDB_MODE=offline"):
        distil(known_answer, log_wandb=True)
    assert not list(known_answer.glob("saved/**/*.pth")), "before anything is trained"


# MLflow, in a file


def test_mlflow_gets_three_runs_of_a_group(known_answer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database is set up in seconds, files at once
    monkeypatch.delenv(GROUP, raising=False)
    result = distil(known_answer, log_mlflow=True, mlflow_experiment="an-experiment")
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("an-experiment").experiment_id
    runs = {run.data.tags["role"]: run for run in client.search_runs([place])}
    assert set(runs) == {"teacher", "student", "baseline"}
    assert len({run.data.tags["group"] for run in runs.values()}) == 1
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    student = runs["student"]
    assert student.info.run_name == "BPR student"
    assert float(student.data.params["fitnet.weight"]) > 0
    history = client.get_metric_history(student.info.run_id, "train/fitnet")
    assert [one.value for one in history] == [result["loss_history"][epoch]["fitnet"] for epoch in (0, 1)]
    assert student.data.metrics["eval/ndcg_at_10"] == result["test_result"]["ndcg@10"]


def test_an_mlflow_that_fails_on_the_way_ends_no_training(
    known_answer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database is set up in seconds, files at once

    def broken(*arguments: Any, **named: Any) -> None:
        raise mlflow.exceptions.MlflowException("the disk is full")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", broken)
    settings = known_answer_settings(known_answer, epochs=2, log_mlflow=True)
    assert run_recbole_kd("BPR", "known-answer", config_dict=settings)["epochs_trained"] == 2
    assert [one.message for one in caplog.records].count(
        "MLflow failed; the rest of this training is not logged there: the disk is full"
    ) == 1


def test_an_mlflow_whose_server_goes_at_the_end_ends_no_training(
    known_answer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And another run that makes the experiment at the same time is no error; a password is not logged."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    create = mlflow.MlflowClient.create_experiment

    def too_late(client: Any, name: str) -> None:
        create(client, name)  # by the other run
        create(client, name)

    def gone(*arguments: Any, **named: Any) -> None:
        raise mlflow.exceptions.MlflowException("http://bob:s3cret@host/api failed")

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", too_late)
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", gone)
    settings = known_answer_settings(known_answer, epochs=1, log_mlflow=True)
    assert run_recbole_kd("BPR", "known-answer", config_dict=settings)["epochs_trained"] == 1
    assert "not logged there: http://host/api failed" in caplog.text
    assert "s3cret" not in caplog.text
