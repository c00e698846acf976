"""tune: the search space's reader, the search itself, and that it sees validation only.

Most tests train their trials in this process, one after the other, by :func:`one_after_the_other`, which tells the pruner
and the journal what Ray Tune would tell them; one test holds a search by Ray against it.
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from recbole_kd.cli import main
from recbole_kd.cluster.ray import parallel_map, ray_session
from recbole_kd.distiller.rkd import RKDDistiller
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.properties import PROPERTIES
from recbole_kd.registry import recipes
from recbole_kd.testing import known_answer_settings, known_sequences_settings, write_known_sequences
from recbole_kd.verbs.train import run_recbole_kd
from recbole_kd.verbs.tune import default_space, evaluate_winner, parse_space, read_space, search, worker
from recbole_kd.verbs.tune.journal import Journal
from recbole_kd.verbs.tune.report import best_yaml, picture, summary, table
from recbole_kd.verbs.tune.space import Domain, draw_trials

MODULE = sys.modules["recbole_kd.verbs.tune.search"]
SPACES = sorted((PROPERTIES / "tune").glob("*.hyper"))

# The search space


def test_a_space_is_read_line_by_line() -> None:
    space = parse_space(
        "# a comment\n\n"
        "learning_rate loguniform -8,-3   # natural logarithms\n"
        "rrd.weight\tuniform 0.0, 0.5\n"
        "n_layers choice [1, 2, 3]\n"
        "mlp_hidden_size choice [[64, 32], (8,)]  # lists too\n"
        "learner choice ['adam', 'sgd']\n"
        "rrd.pool quniform 50,200,50\n"
    )
    assert space == {
        "learning_rate": Domain("loguniform", (-8, -3)),
        "rrd.weight": Domain("uniform", (0.0, 0.5)),
        "n_layers": Domain("choice", (1, 2, 3)),
        "mlp_hidden_size": Domain("choice", ([64, 32], [8])),
        "learner": Domain("choice", ("adam", "sgd")),
        "rrd.pool": Domain("quniform", (50, 200, 50)),
    }
    assert str(space["learning_rate"]) == "0.0003355 to 0.04979, logarithmic"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate", "line 2: '' after learning_rate; expected one of choice, uniform, loguniform, quniform"),
        ("learning_rate lognormal 1,2", "'lognormal' after learning_rate"),
        ("learning_rate loguniforn -8,-3", "Did you mean 'loguniform'?"),
        ("2x uniform 0,1", "'2x' is not a setting's name"),
        ("rrd. uniform 0,1", "'rrd.' is not a setting's name"),
        ("x uniform 0", "'0' is not 2 numbers with commas between; uniform takes low,high"),
        ("x uniform 0,1,2", "is not 2 numbers"),
        ("x uniform a,b", "is not 2 numbers"),
        ("x uniform 1,1", "the lower bound of '1,1' is not below the upper one"),
        ("x uniform nan,1", "out of range"),
        ("x uniform 0,inf", "out of range"),
        ("x loguniform -1,1000", "out of range"),
        ("x loguniform 0.0001,0.01", "for 0.0001 to 0.01 write -9.21,-4.605"),
        ("x quniform 0,1", "is not 3 numbers"),
        ("x quniform 0,1,0", "the step of '0,1,0' does not fit the range"),
        ("x quniform 1,3,2.5", "does not fit the range"),
        ("x quniform 1,9,6", "fewer than two multiples of the step"),
        ("x choice", "'' is not a list of plain values"),
        ("x choice []", "not a list with at least one value"),
        ("x choice 3", "not a list with at least one value"),
        ("x choice [1,", "is not a list of plain values"),
        ("x choice [open('f')]", "is not a list of plain values"),
        ("x choice [1j]", "has a value that is not a number"),
        ("x choice [1e999]", "has a value that is not a number"),
        ("x choice [{'a': 1}]", "has a value that is not a number"),
        ("x choice " + "[" * 5000, "is not a list of plain values"),
        ("y uniform 0,1", "y is given a second time"),
    ],
)
def test_a_line_that_is_not_understood_is_named(line: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_space(f"y choice [1,2]\n{line}\n", "a.hyper")
    assert str(raised.value).startswith("a.hyper, line 2: ")
    assert message in str(raised.value)


def test_a_space_without_settings_is_refused() -> None:
    for text in ("", "\n \n", "# learning_rate uniform 0,1\n"):
        with pytest.raises(UserError, match="names no setting to search"):
            parse_space(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the search space .* set --params_file"):
        read_space(tmp_path / "missing.hyper")
    (tmp_path / "picture.hyper").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read_space(tmp_path / "picture.hyper")


LINES = st.tuples(
    st.sampled_from(["x", "rrd.weight", "", "#", "1", "x."]) | st.text(max_size=5),
    st.sampled_from(["choice", "uniform", "loguniform", "quniform", ""]) | st.text(max_size=5),
    st.text(max_size=30)
    | st.lists(st.floats() | st.integers(), max_size=4).map(str)
    | st.lists(st.floats() | st.integers(), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(LINES, max_size=4).map("\n".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        space = parse_space(text)
    except UserError:
        return
    for domain in space.values():
        value = domain.draw(np.random.default_rng(0))
        str(domain)
        if domain.kind == "choice":
            assert value in domain.values or value != value
        elif domain.kind == "loguniform":
            assert math.exp(domain.values[0]) <= value <= math.exp(domain.values[1])
        else:
            slack = 1e-9 * max(map(abs, domain.values))
            assert domain.values[0] - slack <= value <= domain.values[1] + slack


def test_draws_follow_the_domains() -> None:
    generator = np.random.default_rng(0)
    logarithmic = [Domain("loguniform", (-8, 0)).draw(generator) for _ in range(2000)]
    assert np.mean(np.log(logarithmic)) == pytest.approx(-4, abs=0.2)
    assert np.std(np.log(logarithmic)) == pytest.approx(8 / math.sqrt(12), abs=0.2)
    steps = {Domain("quniform", (50, 200, 50)).draw(generator) for _ in range(200)}
    assert steps == {50, 100, 150, 200}
    assert all(isinstance(step, int) for step in steps)
    assert {Domain("quniform", (0.0, 0.3, 0.1)).draw(generator) for _ in range(200)} == {0.0, 0.1, 0.2, 0.3}


def test_trials_are_distinct_seeded_and_begin_with_those_of_fewer() -> None:
    space = parse_space("a choice [1,2,3]\nb uniform 0,1")
    assert draw_trials(space, 30, seed=1)[:10] == draw_trials(space, 10, seed=1)
    assert draw_trials(space, 10, seed=1) != draw_trials(space, 10, seed=2)
    exhausted = draw_trials(parse_space("a choice [1,2]\nb choice [1,2,3]"), 50, seed=1)
    assert len(exhausted) == len({str(draw) for draw in exhausted}) == 6


# The spaces under properties/tune


def test_every_recipe_has_a_space() -> None:
    assert set(recipes()) <= {path.stem for path in SPACES}


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_setting_of_a_space_is_read_by_its_model(path: Path) -> None:
    space = read_space(path)
    assert "learning_rate" in space
    lowest = {name: domain.values[0] for name, domain in space.items()}
    highest = {name: domain.values[-1 if domain.kind == "choice" else 1] for name, domain in space.items()}
    for ends in (lowest, highest):
        for name, domain in space.items():
            if domain.kind == "loguniform":
                ends[name] = math.exp(ends[name])
        KDConfig(path.stem, "ml-100k", config_dict=ends)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_notes_of_a_space_say_its_ranges(path: Path) -> None:
    space = read_space(path)
    for line in path.read_text().splitlines():
        name, kind = (line.split() + [""])[:2]
        if kind == "loguniform":
            low, high = (float(number) for number in line.partition("#")[2].split(" to "))
            assert [math.log(low), math.log(high)] == pytest.approx(space[name].values, abs=0.06), line


# The search, trials in this process

SPACE = "learning_rate loguniform -7,-2\nembedding_size choice [4,8,16]\n"
DISTILLED = "learning_rate loguniform -6,-3\nfreqd.weight loguniform -6,0\n"


def one_after_the_other(task: Any, journal: Any, scheduler: Any, *_: Any) -> None:
    """What `_run` has Ray Tune do, one trial after the other."""
    for number in journal.pending:
        trial = SimpleNamespace(trial_id=str(number), config={"number": number})
        scheduler.on_trial_add(None, trial)

        def report(result: dict[str, Any], trial: Any = trial) -> None:
            journal.on_trial_result(0, [], trial, result)
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                raise SystemExit

        with suppress(SystemExit):
            worker.train_trial(task, number, report)
        journal.on_trial_complete(0, [], trial)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_run", one_after_the_other)
    monkeypatch.setattr(MODULE, "ray_session", lambda *_: nullcontext())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the trials that are trained, in order."""
    numbers: list[int] = []
    train_trial = worker.train_trial

    def counted(task: Any, number: int, report: Callable[..., object]) -> None:
        numbers.append(number)
        train_trial(task, number, report)

    monkeypatch.setattr(worker, "train_trial", counted)
    return numbers


def find(data_path: Path, space: str = SPACE, model: str = "BPR", **given: Any) -> dict[str, Any]:
    arguments = {key: given.pop(key) for key in ("trials", "folder", "prune", "grace_epochs", "cpus") if key in given}
    arguments = {"trials": 4, **arguments}
    config = known_answer_settings(data_path, epochs=6, **given)
    return search(model, "known-answer", None, config, parse_space(space), **arguments)


def scores(result: dict[str, Any]) -> list[Any]:
    return [record["score"] for record in result["trials"]]


def test_the_best_on_validation_wins(known_answer: Path, here: None) -> None:
    result = find(known_answer, prune=False)
    best = max(result["trials"], key=lambda record: record["score"])
    assert [record["status"] for record in result["trials"]] == ["finished"] * 4
    assert {key: best[key] for key in ("trial", "settings", "score", "best_epoch")}.items() <= result["best"].items()
    assert len(set(scores(result))) > 1, "the trials must differ for a best one to mean anything"
    assert result["counts"] == {"finished": 4, "pruned": 0, "failed": 0, "broken": 0}
    assert result["best"]["valid_result"]["ndcg@10"] == result["best"]["score"]


def test_the_winners_file_is_taken_by_train_and_gives_the_same_model(known_answer: Path, here: None) -> None:
    result = find(
        known_answer, DISTILLED, "FreqDStudent", trials=3, **{"teacher.epochs": 2, "teacher.embedding_size": 8}
    )
    again = run_recbole_kd(config_file_list=[result["config_file"]])
    assert again["best_valid_score"] == result["best"]["score"]
    assert again["best_epoch"] == result["best"]["best_epoch"]
    assert again["teacher"]["from_cache"], "the search trained it"
    given = known_answer_settings(known_answer, epochs=6)
    assert evaluate_winner(result, None, given) == pytest.approx(again["test_result"])


def test_what_a_search_leaves(known_answer: Path, here: None, tmp_path: Path) -> None:
    result = find(known_answer, folder=tmp_path / "found")
    folder = tmp_path / "found"
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "best.yaml",
        "result.json",
        "search.json",
        "trials",
        "trials.csv",
        "trials.png",
    ]
    with open(folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == scores(result)
    assert rows[0]["learning_rate"] == str(result["trials"][0]["settings"]["learning_rate"])
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    assert chosen["embedding_size"] == result["best"]["settings"]["embedding_size"]
    assert chosen["epochs"] == 6
    weights = [path.name for path in (folder / "trials").glob("*.pth")]
    assert weights == [f"{result['best']['trial']:04d}.pth"], "of the others only the records are kept"


def test_the_test_split_has_no_say(known_answer: Path, tmp_path: Path, here: None) -> None:
    """Its items are dealt anew to its users: every score and the choice stay, and the winner's test result does not."""
    found = find(known_answer, prune=True)
    test_file = known_answer / "known-answer" / "known-answer.test.inter"
    head, *lines = test_file.read_text().splitlines()
    users, items = zip(*(line.split("\t") for line in lines))
    shuffled = random.Random(0).sample(items, len(items))
    test_file.write_text("\n".join([head, *map("\t".join, zip(users, shuffled))]) + "\n")
    again = find(known_answer, prune=True, folder=tmp_path / "shuffled")
    given = known_answer_settings(known_answer, epochs=6)
    assert again["best"]["trial"] == found["best"]["trial"]
    assert again["best"]["settings"] == found["best"]["settings"]
    for before, after in zip(found["trials"], again["trials"]):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}
    assert evaluate_winner(again, None, given)["recall@10"] < 0.6
    test_file.write_text("\n".join([head, *lines]) + "\n")
    assert evaluate_winner(found, None, given)["recall@10"] > evaluate_winner(again, None, given)["recall@10"] - 1e-9


def test_no_trial_evaluates_the_test_split(known_answer: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    build_student = worker.build_student

    def watched(*arguments: Any) -> Any:
        model, trainer, (train, valid, test) = build_student(*arguments)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda data, *given, **named: seen.append(data is valid) or evaluate(data, *given, **named)
        return model, trainer, (train, valid, test)

    monkeypatch.setattr(worker, "build_student", watched)
    find(known_answer, trials=2, prune=False)
    assert seen == [True] * 12


def test_data_and_teacher_are_loaded_once(known_answer: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("load_splits", "obtain_teacher"):
        original = getattr(worker, name)
        monkeypatch.setattr(
            worker, name, lambda *given, name=name, original=original: calls.append(name) or original(*given)
        )
    find(known_answer, DISTILLED, "FreqDStudent", trials=3, **{"teacher.epochs": 1, "teacher.embedding_size": 8})
    # The process that starts the search trains the teacher; the worker, here the same process, fetches it once.
    assert calls == ["obtain_teacher", "load_splits", "obtain_teacher"]


def test_trials_that_are_behind_are_pruned(known_answer: Path, here: None) -> None:
    whole = find(known_answer, trials=5, prune=False)
    pruned = find(known_answer, trials=5, prune=True, grace_epochs=2)
    assert pruned["counts"]["pruned"] > 0
    for all_epochs, fewer in zip(whole["trials"], pruned["trials"]):
        if fewer["status"] == "pruned":
            assert 2 <= fewer["epochs"] < 6
            assert fewer["valid_history"] == all_epochs["valid_history"][: fewer["epochs"]]
            assert fewer["score"] < pruned["best"]["score"]
        else:
            assert {**fewer, "seconds": 0} == {**all_epochs, "seconds": 0}


def test_a_metric_that_is_better_when_smaller(known_answer: Path, here: None) -> None:
    given = {"metrics": ["NDCG", "GiniIndex"], "valid_metric": "GiniIndex@10"}
    result = find(known_answer, trials=5, grace_epochs=1, **given)
    assert result["best"]["score"] == min(scores(result)) < max(scores(result))
    assert "giniindex@10" in summary(result)


def _journal(folder: Path, *ended: tuple[int, float]) -> Journal:
    """The journal of a search whose trials ended with these scores, in this order."""
    (folder / "trials").mkdir()
    draws = tuple({"embedding_size": size} for size in range(1, len(ended) + 1))
    task = worker.Task("key", "BPR", "ml-100k", {}, draws, str(folder), threads=1)
    journal = Journal(task, KDConfig("BPR", "ml-100k"), {})
    for number, score in ended:
        trial = SimpleNamespace(config={"number": number})
        journal.on_trial_result(0, [], trial, {"score": score, "epoch": 1, "ended": True})
        journal.on_trial_complete(0, [], trial)
    return journal


def test_of_equal_scores_the_first_trial_is_the_best(tmp_path: Path) -> None:
    """In whatever order they end."""
    best = _journal(tmp_path, (3, 0.5), (2, 0.5), (1, 0.2)).best()
    assert best is not None
    assert best["trial"] == 2


def test_a_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    journal = _journal(tmp_path, (1, math.nan), (2, -math.inf), (3, 0.1))
    assert [journal.records[number]["score"] for number in (1, 2, 3)] == [None, None, 0.1]


def test_a_score_is_known_after_as_many_epochs_as_were_trained(tmp_path: Path) -> None:
    """The best so far; epochs are counted from 0."""
    journal = _journal(tmp_path)
    name = journal.facts["valid_metric"]
    record = {"valid_history": [{"epoch": epoch, name: score} for epoch, score in ((1, 0.3), (3, 0.1), (5, 0.4))]}
    assert list(journal.history(record)) == [(2, 0.3), (4, 0.3), (6, 0.4)]


def _pruned_by(epochs: int, grace: int) -> Any:
    journal: Any = SimpleNamespace(bigger=True, records={}, task=SimpleNamespace(draws=()))
    base: Any = {"epochs": epochs}
    return MODULE._pruner(base, journal, grace)


def test_no_trial_is_pruned_at_its_end() -> None:
    """Of 9 epochs, trials are compared after 1 and 3; after 9 there is nothing to save."""
    scheduler = _pruned_by(9, 1)
    decisions = []
    for name, scores_of in (("first", {1: 0.1, 3: 0.1, 9: 0.9}), ("second", {1: 0.2, 3: 0.2, 9: 0.2})):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        for epoch, score in scores_of.items():
            decisions.append(scheduler.on_trial_result(None, trial, {"epoch": epoch, "score": score}))
    assert decisions == [TrialScheduler.CONTINUE] * 6
    assert not isinstance(_pruned_by(6, 6), ASHAScheduler)
    assert isinstance(_pruned_by(6, 5), ASHAScheduler)


def test_one_evaluation_at_the_end_is_enough_for_a_search() -> None:
    run: Any = {"eval_step": 6, "epochs": 6, "final": False, "resume": None, "nproc": 1}
    MODULE._check_run(run)
    with pytest.raises(UserError, match="--eval_step=6 with --epochs=5"):
        MODULE._check_run({**run, "epochs": 5})


def test_a_trial_has_a_ninth_of_all_epochs_at_least(
    known_answer: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded up, and one evaluation."""
    asked: list[int] = []

    def noted(base: Any, journal: Any, grace: int) -> None:
        asked.append(grace)
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "_pruner", noted)
    for epochs, eval_step in ((9, 1), (10, 1), (18, 4)):
        config = known_answer_settings(known_answer, epochs=epochs, eval_step=eval_step)
        with pytest.raises(KeyboardInterrupt):
            search("BPR", "known-answer", None, config, parse_space(SPACE), trials=1)
    assert asked == [1, 2, 4]


def test_a_teachers_file_times_and_the_pruners_patience_are_part_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another one the folder of a search is refused."""
    keys: list[str] = []

    def noted(place: Path, task: Any) -> None:
        keys.append(task.key)
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "_claimed", noted)
    data, file = write_known_sequences(tmp_path / "data"), tmp_path / "teacher.pth"
    rows = data / "known-sequences" / "known-sequences.inter"
    config = {**known_sequences_settings(data), "distill": "rrd", "teacher.checkpoint": str(file)}
    config = {key: value for key, value in config.items() if key != "MAX_ITEM_LIST_LENGTH"}
    heading, *lines = rows.read_text().splitlines()
    later = "\n".join([heading, *(f"{line}0" for line in lines)]) + "\n"
    file.write_text("one")
    for change in (lambda: None, lambda: None, lambda: file.write_text("two"), lambda: rows.write_text(later)):
        change()
        with pytest.raises(KeyboardInterrupt):
            search("BPR", "known-sequences", None, config, parse_space(SPACE), trials=1)
    with pytest.raises(KeyboardInterrupt):
        search("BPR", "known-sequences", None, config, parse_space(SPACE), trials=1, grace_epochs=2)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


# Going on


def test_the_same_command_again_trains_nothing(known_answer: Path, here: None, trained: list[int]) -> None:
    first = find(known_answer)
    assert trained == [1, 2, 3, 4]
    assert find(known_answer) == first
    assert trained == [1, 2, 3, 4]


def test_trials_that_are_over_are_not_repeated(known_answer: Path, here: None, trained: list[int]) -> None:
    whole = find(known_answer)
    del trained[:]
    records = Path(whole["folder"]) / "trials"
    lost, cut = [number for number in (1, 2, 3, 4) if number != whole["best"]["trial"]][:2]
    (records / f"{lost:04d}.json").unlink()
    (records / f"{cut:04d}.json").write_text('{"trial": 3, "sett')  # as no writer of ours leaves it
    again = find(known_answer)
    assert trained == [lost, cut]
    assert again["best"] == whole["best"]


def test_more_trials_go_on_from_fewer_and_the_pruner_knows_them(
    known_answer: Path, here: None, trained: list[int]
) -> None:
    at_once = find(known_answer, folder=known_answer / "at-once")
    del trained[:]
    find(known_answer, trials=2)
    found = find(known_answer)
    assert trained == [1, 2, 3, 4]
    for one, other in zip(at_once["trials"], found["trials"]):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_an_interrupted_trial_goes_on_from_its_last_epoch(
    known_answer: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(known_answer, trials=2, prune=False, folder=known_answer / "whole")
    train_trial = worker.train_trial

    def cut(task: Any, number: int, report: Callable[..., object]) -> None:
        def stopped(result: dict[str, Any]) -> None:
            report(result)
            if number == 2 and result["epoch"] == 4:
                raise KeyboardInterrupt

        train_trial(task, number, stopped)

    monkeypatch.setattr(worker, "train_trial", cut)
    with pytest.raises(KeyboardInterrupt):
        find(known_answer, trials=2, prune=False)
    epochs: list[int] = []

    def counted(task: Any, number: int, report: Callable[..., object]) -> None:
        train_trial(task, number, lambda result: (epochs.append(result["epoch"]), report(result)))

    monkeypatch.setattr(worker, "train_trial", counted)
    again = find(known_answer, trials=2, prune=False)
    assert epochs[0] == 4, "epochs 1 to 3 are not trained again"
    for one, other in zip(whole["trials"], again["trials"]):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_winner_whose_weights_are_gone_is_trained_again(known_answer: Path, here: None, trained: list[int]) -> None:
    first = find(known_answer)
    os.remove(first["best"]["checkpoint"])
    del trained[:]
    assert find(known_answer)["best"] == first["best"]
    assert trained == [first["best"]["trial"]]


def test_a_folder_belongs_to_one_search(known_answer: Path, here: None, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    find(known_answer, folder=folder, trials=1)
    for other in ({"seed": 7}, {"train_batch_size": 64}, {"space": "learning_rate uniform 0,1"}):
        with pytest.raises(UserError, match="holds another search"):
            find(known_answer, folder=folder, trials=1, **other)
    valid = known_answer / "known-answer" / "known-answer.valid.inter"
    valid.write_text("\n".join(valid.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="holds another search .*data"):
        find(known_answer, folder=folder, trials=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".0123456789abcdef.tmp").touch()  # of a start that was killed
    find(known_answer, folder=tmp_path / "mine", trials=1)
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        find(known_answer, folder=tmp_path / "mine", trials=1)


def test_a_full_disk_is_no_fault_of_a_trials_settings(
    known_answer: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a trial is tried again by the next search; one whose loss is not finite is not."""
    told: list[dict[str, Any]] = []

    def full(*_: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError(f"Cannot write: {error.strerror}") from error

    def impossible(*_: Any) -> None:
        raise UserError("The optimiser refuses its settings")

    task: Any = SimpleNamespace(threads=1, folder=str(known_answer), experiment=lambda **_: None)
    monkeypatch.setattr(worker, "load_shared", full)
    with pytest.raises(UserError, match="No space left"):
        worker.train_trial(task, 1, told.append)
    assert told == []
    monkeypatch.setattr(worker, "load_shared", impossible)
    worker.train_trial(task, 1, told.append)
    assert told == [{"ended": True, "failed": "The optimiser refuses its settings"}]


def test_two_processes_do_not_search_in_one_folder(known_answer: Path, here: None) -> None:
    result = find(known_answer, trials=1)
    with open(Path(result["folder"]) / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is searching"):
            find(known_answer, trials=2)


# Trials that fail


def test_a_trial_that_fails_does_not_end_the_search(known_answer: Path, here: None) -> None:
    space = "rrd.interesting choice [2,39]\nlearning_rate uniform 0.01,0.02"
    given = {"teacher.epochs": 1, "teacher.embedding_size": 8, "rrd.pool": 8, "rrd.interesting": 2}
    with pytest.raises(UserError, match=r"The search space does not fit RRDStudent: .*rrd\.interesting"):
        find(known_answer, space, "RRDStudent", trials=6, prune=False, **given)
    space = "learning_rate choice [0.01,1e30]"  # the second is as good as infinite
    result = find(known_answer, space, trials=2, prune=False, learner="sgd")
    assert sorted(record["status"] for record in result["trials"]) == ["failed", "finished"]
    (failed,) = (record for record in result["trials"] if record["status"] == "failed")
    assert "the loss is not finite" in failed["message"]
    assert result["best"]["settings"] == {"learning_rate": 0.01}


def test_a_search_in_which_every_trial_fails_says_why(known_answer: Path, here: None) -> None:
    with pytest.raises(UserError, match=r"None of 2 trials could be trained; the first: .*not finite"):
        find(known_answer, "learning_rate choice [1e29,1e30]", trials=2, learner="sgd")


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "--trials=0; expected a whole number of at least 1"),
        ({"trials": 2.5}, "--trials=2.5"),
        ({"trials": True}, "--trials=True"),
        ({"cpus": 0}, "--cpus=0"),
        ({"grace_epochs": "all"}, "--grace_epochs='all'"),
        ({"prune": "maybe"}, "--prune='maybe' is not true or false"),
        ({"valid_metric": "Recal@10"}, "valid_metric"),
        ({"metrics": ["Recal"]}, "Unknown metric 'Recal' in --metrics. Did you mean 'recall'?"),
        ({"eval_step": 7}, "no trial would ever be evaluated on validation"),
        ({"eval_step": 0}, "no trial would ever be evaluated on validation"),
        ({"resume": "x-last.pth"}, "a search continues if the command is repeated"),
        ({"space": "n_layer choice [1,2]"}, "does not fit BPR: Unknown setting 'n_layer'"),
        ({"space": "rrd.weight choice [1,2]"}, "does not fit BPR: Section 'rrd' is set but not used"),
        ({"space": "learning_rate choice ['high','low']"}, "does not fit BPR: --learning_rate="),
        ({"space": "teacher.embedding_size choice [8,16]"}, "searches 'teacher.embedding_size'"),
        ({"space": "seed choice [1,2]"}, "searches 'seed'"),
        ({"space": "topk choice [10,20]"}, "searches 'topk'"),
        ({"space": "eval_step choice [1,2]"}, "searches 'eval_step'"),
        ({"space": "epochs choice [0,4]"}, "epochs=0 is less than --eval_step=1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    known_answer: Path, here: None, trained: list[int], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        find(known_answer, **given)
    assert message in str(raised.value)
    assert not trained
    assert not (known_answer / "saved" / "tune").exists()


def test_the_default_space_is_the_models_and_its_distillers(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever names a student and distillers gets what recipes search of each: weights, and what the method has."""

    def space(model: str, *distillers: str) -> dict[str, Domain]:
        teacher = {"model": "BPR"} if distillers else None
        return default_space(KDConfig(model, "ml-100k", config_dict={"distill": list(distillers), "teacher": teacher}))

    plain = space("BPR")
    assert set(plain) == {"learning_rate", "weight_decay"}
    both = space("BPR", "rrd", "kd")
    rrd, kd = (read_space(PROPERTIES / "tune" / f"{name}Student.hyper") for name in ("RRD", "KD"))
    assert {key: domain for key, domain in both.items() if key in plain} == plain
    assert {key for key in both if key not in plain} == {key for key in (*rrd, *kd) if "." in key}
    assert both["rrd.weight"] == rrd["rrd.weight"]
    # A recipe's own file says all of the distillers that it names; what it distils no more is left out.
    assert space("DERRDStudent", "rrd") == {
        key: domain
        for key, domain in read_space(PROPERTIES / "tune" / "DERRDStudent.hyper").items()
        if not key.startswith("de.")
    }
    # A model without a file is searched as the recipe is.
    assert set(space("ENMF", "kd")) == set(kd)
    assert not caplog.records
    with_other = space("BPR", f"{__name__}:Nothing")
    assert with_other == plain
    assert "There is no search space for nothing" in caplog.text


class Nothing(RKDDistiller):
    """Another package's distiller, for which there is no space."""

    name = "nothing"


def test_a_model_without_a_space_of_ours_takes_a_file(known_answer: Path, here: None, tmp_path: Path) -> None:
    given = known_answer_settings(known_answer, epochs=2)
    with pytest.raises(UserError, match="There is no search space for ENMF, .* set --params_file"):
        search("ENMF", "known-answer", None, given, trials=1)
    with pytest.raises(UserError, match="Cannot read the search space"):
        search("ENMF", "known-answer", None, given, tmp_path / "missing.hyper", trials=1)
    with pytest.raises(UserError, match="search space is empty"):
        search("ENMF", "known-answer", None, given, {}, trials=1)
    (tmp_path / "mine.hyper").write_text("negative_weight uniform 0.1,0.9\n")
    assert search("ENMF", "known-answer", None, given, tmp_path / "mine.hyper", trials=2)["counts"]["failed"] == 0


# The command line


def words(data_path: Path, **given: Any) -> list[str]:
    config = known_answer_settings(data_path, epochs=3, cpus=1, **given)
    return ["tune", "--model=BPR", "--dataset=known-answer", *(f"--{key}={value}" for key, value in config.items())]


def test_the_verb(known_answer: Path, here: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(words(known_answer, trials=3, output=tmp_path / "found", result_file=tmp_path / "result.json")) == 0
    text = capsys.readouterr().out
    assert "Its test split, which no trial read: recall@10" in text
    assert f"--config_files={tmp_path}/found/best.yaml" in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads((tmp_path / "found" / "result.json").read_text())
    assert set(result["test_result"]) == set(result["best"]["valid_result"])
    rows = [line.split() for line in text.splitlines() if re.match(r"\d+ +(finished|pruned)", line)]
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)


def test_the_verbs_mistakes_are_one_line(known_answer: Path, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (({"trials": 0}, "--trials=0"), ({"params_file": "no.hyper"}, "no.hyper")):
        assert main(words(known_answer, **wrong)) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recbole-kd:")]
        assert len(error) == 1
        assert message in error[0]


def test_a_trial_uses_the_devices_that_ray_gave_it() -> None:
    assert worker.device_settings([1]) == {"use_gpu": True, "gpu_id": "1"}
    assert worker.device_settings([0, 3]) == {"use_gpu": True, "gpu_id": "0,3"}
    assert worker.device_settings([]) == {"use_gpu": False, "gpu_id": ""}
    assert worker.device_settings(None) == {}


# Ray


@pytest.fixture(scope="module")
def ray_of_one_core() -> Iterator[None]:
    """One session for the module: a search uses the one that is there. With one core its trials run one by one."""
    with ray_session(cpus=1):
        yield


def test_ray_finds_what_this_process_finds(
    known_answer: Path, ray_of_one_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning included: trials, their scores after each epoch, what became of them, and the choice."""
    given = {"teacher.epochs": 1, "teacher.embedding_size": 8, "grace_epochs": 2, "trials": 5}
    found = find(known_answer, DISTILLED, "FreqDStudent", **given)
    assert ray.is_initialized(), "a session that was there stays"
    assert found["counts"]["pruned"] > 0
    monkeypatch.setattr(MODULE, "_run", one_after_the_other)
    expected = find(known_answer, DISTILLED, "FreqDStudent", folder=known_answer / "here", **given)
    for one, other in zip(expected["trials"], found["trials"]):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert sorted(os.listdir(found["folder"])) == sorted(os.listdir(expected["folder"])), "Ray's own files are gone"


def test_more_than_ray_has_is_refused(known_answer: Path, ray_of_one_core: None) -> None:
    given = known_answer_settings(known_answer)
    with pytest.raises(UserError, match="--cpus_per_trial=3, but Ray has 1; lower it"):
        search("BPR", "known-answer", None, given, parse_space(SPACE), trials=1, cpus_per_trial=3)
    with pytest.raises(UserError, match=r"--gpus_per_trial=0.5, but Ray has 0; lower it"):
        search("BPR", "known-answer", None, given, parse_space(SPACE), trials=1, gpus_per_trial=0.5)


def test_a_function_over_items_in_parallel(ray_of_one_core: None) -> None:
    assert sorted(parallel_map(len, ["", "a", "bb"], 2)) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.slow
def test_a_killed_and_an_interrupted_search_go_on(known_answer: Path, tmp_path: Path) -> None:
    """SIGKILL, then Ctrl-C, then to the end: no trial that was over is trained again."""
    output = tmp_path / "found"
    program = "import sys; from recbole_kd.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *words(known_answer, trials=5, output=output, prune=False)]
    command = [word.replace("--epochs=3", "--epochs=400") for word in command] + ["--stopping_step=400"]
    before: dict[Path, float] = {}

    def records() -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in output.glob("trials/*.json")}

    for blow, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (None, 0)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while blow is not None and process.poll() is None and len(records()) <= len(before):
            time.sleep(0.2)
        if blow is not None:
            process.send_signal(blow)
        _, error = process.communicate()
        assert process.returncode == code, error
        if blow == signal.SIGINT:
            assert "repeat the command to continue" in error
        after = records()
        assert before.items() <= after.items(), "a trial that was over is not trained again"
        before = after
    result = json.loads((output / "result.json").read_text())
    assert [record["epochs"] for record in result["trials"]] == [400] * 5


# The picture


def _result() -> dict[str, Any]:
    """Twelve trials, made up: a rate on a logarithmic range, a choice, and a whole number."""
    trials = [
        {
            "trial": number,
            "status": "pruned" if number % 4 == 3 else "finished",
            "score": None if number == 5 else 0.2 + 0.01 * (number % 5) - 0.002 * number,
            "settings": {
                "learning_rate": 10.0 ** -(1 + number % 4),
                "loss": "BP" if number % 2 else "CE",
                "layers": number % 3,
            },
        }
        for number in range(12)
    ]
    best = max((record for record in trials if record["score"] is not None), key=lambda record: record["score"])
    space = dict.fromkeys(("learning_rate", "loss", "layers"))
    return {"model": "M", "dataset": "d", "valid_metric": "NDCG@10", "trials": trials, "best": best, "space": space}


def test_two_settings_of_few_values_have_a_heat_map() -> None:
    """Its cells are means of the trials that were trained to their end."""
    result = _result()
    for number, record in enumerate(result["trials"]):
        record["settings"] = {"loss": "BP" if number % 2 else "CE", "layers": number % 3}
        record["status"] = "finished"
    result["space"] = dict.fromkeys(("loss", "layers"))
    *_, heat = [axes for axes in picture(result).axes if axes.get_visible()]
    assert (heat.get_ylabel(), heat.get_xlabel()) == ("loss", "layers")
    scores = [r["score"] for r in result["trials"] if r["settings"] == {"loss": "CE", "layers": 0}]
    assert heat.texts[3].get_text() == f"{sum(scores) / len(scores):.4f}", "BP has the first row"
    result["space"] = dict.fromkeys(("loss",))
    _, loss = [axes for axes in picture(result).axes if axes.get_visible()]
    line = loss.lines[0]
    expected = [
        np.mean([r["score"] for r in result["trials"] if r["settings"]["loss"] == name and r["score"] is not None])
        for name in ("BP", "CE")
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_the_picture_shows_what_each_setting_does() -> None:
    by_trial, rate, loss, layers = [axes for axes in picture(_result()).axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in (by_trial, rate, loss, layers)] == [
        *("by trial", "learning_rate", "loss", "layers")
    ]
    assert rate.get_xscale() == "log"
    assert [label.get_text() for label in rate.get_xticklabels()] == ["0.0001", "0.001", "0.01", "0.1"]
    assert [label.get_text() for label in loss.get_xticklabels()] == ["BP", "CE"]
    assert layers.get_xscale() == "linear"
    assert list(layers.get_xticks()) == [0, 1, 2]
    for axes in (by_trial, rate, loss, layers):
        points = sum(len(drawn.get_offsets()) for drawn in axes.collections)
        assert points == 11 + 1, "a trial without a score has no point; the best one has a ring"


def test_ticks_stand_at_chosen_values_and_at_round_ones_of_a_range() -> None:
    result = _result()
    result["trials"] = [record for record in result["trials"] if record["score"] is not None][:4]
    for record, rate, size in zip(result["trials"], (0.00375, 0.0215, 0.0411, 0.256), (10, 40, 40, 40)):
        record["settings"] = {"learning_rate": rate, "layers": size}
    result["best"], result["space"] = result["trials"][0], dict.fromkeys(("learning_rate", "layers"))
    _, rate, layers = [axes for axes in picture(result).axes if axes.get_visible()]
    assert [label.get_text() for label in rate.get_xticklabels()] == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]
    assert list(layers.get_xticks()) == [10, 40]


@pytest.mark.parametrize("choose", [max, min])
def test_the_best_is_the_first_of_the_table_and_the_last_so_far(choose: Callable[..., Any]) -> None:
    """Of a metric that is better when larger, and of one that is better when smaller."""
    result = _result()
    scored = [record["score"] for record in result["trials"] if record["score"] is not None]
    for record in result["trials"]:
        record |= {"epochs": 3, "seconds": 1.0}
    result["best"] = next(record for record in result["trials"] if record["score"] == choose(scored))
    shown = [line.split()[2] for line in table(result).splitlines()[1:]]
    assert shown == [*(f"{score:.4f}" for score in sorted(scored, reverse=choose is max)), "-"]
    so_far = picture(result).axes[0].lines[0].get_ydata()
    assert list(so_far) == [choose(scored[:count]) for count in range(1, len(scored) + 1)]


def test_the_winners_file_writes_over_no_result() -> None:
    result = _result()
    result["best"]["best_epoch"] = 4
    text = best_yaml(result, {"model": "M", "epochs": 6, "result_file": "mine.json", "layers": 9})
    assert yaml.safe_load(text) == {"model": "M", "epochs": 6, **result["best"]["settings"]}
