"""The verb analyse: pictures and tables of a pair of checkpoints, and what it refuses."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

from recbole_kd.cli import main
from recbole_kd.data import spectra
from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.verbs.analyse import analyse
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.options import PARTS
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL


class Runs:
    """A DE student of a BPR teacher with a plain student beside it, and a student without vectors."""

    def __init__(self, folder: Path) -> None:
        self.data = write_known_answer(folder)
        self.settings = known_answer_settings(self.data)
        distilled = {
            "distill": ["de"],
            "de.experts": 3,
            "teacher": "BPR",
            "teacher.epochs": 4,
            "teacher.embedding_size": 16,
        }
        distilled = {**distilled, "baseline": "student", "embedding_size": 6, "epochs": 4}
        self.result = run_recbole_kd("BPR", "known-answer", config_dict={**self.settings, **distilled})
        neural = {"embedding_size": None, "mf_embedding_size": 4, "mlp_embedding_size": 4, "mlp_hidden_size": [4]}
        neural = {key: value for key, value in neural.items() if value is not None}
        pairs = {"distill": ["de"], "de.experts": 3, "teacher.checkpoint": self.result["teacher"]["checkpoint"]}
        settings = {**self.settings, **neural, "epochs": 1, **pairs}  # its experts are of pairs
        self.neural = run_recbole_kd("NeuMF", "known-answer", config_dict=settings)["checkpoint"]

    @property
    def pair(self) -> dict[str, Any]:
        return {
            "student": self.result["checkpoint"],
            "teacher": self.result["teacher"]["checkpoint"],
            "config_dict": self.quiet,
        }

    @property
    def quiet(self) -> dict[str, Any]:
        return {"data_path": str(self.data), "use_gpu": False, "topk": [10], "valid_metric": "NDCG@10"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Runs(folder)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_part_is_a_picture_and_a_table(runs: Runs, tmp_path: Path) -> None:
    parts, left_out = analyse(**runs.pair, output=tmp_path, baseline=runs.result["baseline"]["checkpoint"], groups=4)
    assert [part.name for part in parts] == list(PARTS)
    assert left_out == {}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"{p}.{e}" for p in PARTS for e in ("csv", "png")
    }
    for name in PARTS:
        assert min(imread(tmp_path / f"{name}.png").shape[:2]) > 300
        assert len(table(tmp_path / f"{name}.csv")) > (2 if name == "compression" else 4)


def test_the_spectrum_adds_up_to_the_distance_of_the_vectors(runs: Runs, tmp_path: Path) -> None:
    analyse(**runs.pair, output=tmp_path, parts=["spectrum"])
    rows = table(tmp_path / "spectrum.csv")
    states = [load_checkpoint(runs.pair[role])["state_dict"] for role in ("student", "teacher")]
    student, teacher = (
        torch.cat([state["user_embedding.weight"][1:], state["item_embedding.weight"][1:]]).double().numpy()
        for state in states
    )
    inputs = np.concatenate([student, np.ones((len(student), 1))], axis=1)
    residual = teacher - inputs @ np.linalg.lstsq(inputs, teacher, rcond=None)[0]
    assert sum(float(row["student loss"]) for row in rows) == pytest.approx((residual**2).sum(1).mean(), rel=1e-4)
    assert sum(float(row["teacher energy"]) for row in rows) == pytest.approx((teacher**2).sum(1).mean(), rel=1e-4)
    assert sum(float(row["frequencies"]) for row in rows) == len(teacher)


def test_groups_of_equally_many_frequencies_add_up_to_the_same_distance(runs: Runs, tmp_path: Path) -> None:
    (bands,), _ = analyse(**runs.pair, output=tmp_path / "bands", parts=["spectrum"])
    (groups,), _ = analyse(**runs.pair, output=tmp_path / "groups", parts=["spectrum"], equal_bands=4)
    found = {how: table(tmp_path / how / "spectrum.csv") for how in ("bands", "groups")}
    assert len(found["groups"]) == 4
    assert {row["frequencies"] for row in found["groups"]} == {str(88 / 4)}
    for column in ("student loss", "teacher energy"):
        totals = [sum(float(row[column]) for row in rows) for rows in found.values()]
        assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    assert "frequency 1 occurs" in groups.finding


def test_the_projector_that_was_trained_explains_less_than_the_best_one(runs: Runs, tmp_path: Path) -> None:
    """The best linear map is the one that leaves least; the trained one's distance is that of its own weights."""
    settings = {**runs.settings, "baseline": "none", "embedding_size": 6, "epochs": 2, "distill": ["fitnet"]}
    teacher = {"teacher.checkpoint": runs.pair["teacher"]}
    student = run_recbole_kd("BPR", "known-answer", config_dict={**settings, **teacher})["checkpoint"]
    pair = {**runs.pair, "student": student}
    losses = {}
    for projector in ("fitted", "trained"):
        analyse(**pair, output=tmp_path / projector, parts=["spectrum"], projector=projector)
        losses[projector] = sum(float(row["student loss"]) for row in table(tmp_path / projector / "spectrum.csv"))
    own, taught = (load_checkpoint(pair[role]) for role in ("student", "teacher"))
    squares = []
    for side in ("user", "item"):
        weight, bias = (own["distillers"][f"fitnet.{side}_projector.{name}"] for name in ("weight", "bias"))
        mapped = own["state_dict"][f"{side}_embedding.weight"] @ weight.T + bias
        squares.append((taught["state_dict"][f"{side}_embedding.weight"] - mapped)[1:].square().sum(1))
    assert losses["trained"] == pytest.approx(float(torch.cat(squares).mean()), rel=1e-4)
    assert losses["fitted"] < losses["trained"]
    with pytest.raises(UserError, match="the checkpoint of the student has no projector; freqd and fitnet"):
        analyse(**runs.pair, output=tmp_path / "other", parts=["spectrum"], projector="trained")

    plain = {"baseline": runs.result["baseline"]["checkpoint"], "others": [runs.pair["student"]]}
    (part,), _ = analyse(**pair, **plain, output=tmp_path / "beside", parts=["spectrum"], projector="trained")
    assert "the best linear map for the baseline, the student 2" in part.finding
    beside = table(tmp_path / "beside" / "spectrum.csv")
    assert sum(float(row["student loss"]) for row in beside) == pytest.approx(losses["trained"], rel=1e-4)
    analyse(**{**runs.pair, **plain}, output=tmp_path / "fitted2", parts=["spectrum"])
    expected = table(tmp_path / "fitted2" / "spectrum.csv")
    assert [row["baseline loss"] for row in beside] == [row["baseline loss"] for row in expected]


@pytest.mark.parametrize("distiller", ["freqd", "fitnet"])
def test_of_a_matryoshka_student_the_projector_of_the_whole_vectors_is_read(
    distiller: str, runs: Runs, tmp_path: Path
) -> None:
    settings = {**runs.settings, "baseline": "none", "embedding_size": 6, "epochs": 1, "distill": [distiller]}
    settings = {**settings, "matryoshka": [3, 6], "teacher.checkpoint": runs.pair["teacher"]}
    student = run_recbole_kd("BPR", "known-answer", config_dict=settings)["checkpoint"]
    pair = {**runs.pair, "student": student}
    analyse(**pair, output=tmp_path, parts=["spectrum"], projector="trained")
    own, taught = (load_checkpoint(pair[role]) for role in ("student", "teacher"))
    names = ["freqd.prefixes.6.projectors.0"] * 2
    names = [f"fitnet.prefixes.6.{side}_projector" for side in ("user", "item")] if distiller == "fitnet" else names
    total = 0.0
    for side, name in zip(("user", "item"), names):
        vectors = own["state_dict"][f"{side}_embedding.weight"]
        mapped = torch.nn.functional.linear(
            vectors, own["distillers"][f"{name}.weight"], own["distillers"][f"{name}.bias"]
        )
        total += float((taught["state_dict"][f"{side}_embedding.weight"] - mapped)[1:].square().sum())
    found = sum(float(row["student loss"]) for row in table(tmp_path / "spectrum.csv"))
    assert found == pytest.approx(total / 88, rel=1e-4)


def test_several_students_stand_in_one_picture(runs: Runs, tmp_path: Path) -> None:
    others = [runs.result["baseline"]["checkpoint"]]
    parts, _ = analyse(**runs.pair, output=tmp_path, parts=["spectrum", "smoothing", "gain"], groups=3, others=others)
    assert "student 2 loss" in table(tmp_path / "spectrum.csv")[0]
    assert {row["role"] for row in table(tmp_path / "smoothing.csv")} == {"student", "student 2", "teacher"}
    assert "student - student 2" in table(tmp_path / "gain.csv")[0]
    assert "the student 2 leaves" in parts[0].finding


def test_every_part_takes_other_students(runs: Runs, tmp_path: Path) -> None:
    others = [runs.result["baseline"]["checkpoint"]]
    parts, _ = analyse(**runs.pair, output=tmp_path, groups=3, others=others)
    assert "compression" in {part.name for part in parts}
    assert "the student 2 has" in next(part.finding for part in parts if part.name == "compression")


def test_a_projector_of_another_teacher_is_refused(runs: Runs, tmp_path: Path) -> None:
    """Its outputs have the size of the teacher that it was trained for, which is 4 here and 16 there."""
    small = {"distill": ["fitnet"], "teacher": "BPR", "teacher.embedding_size": 4, "teacher.epochs": 1}
    settings = {**runs.settings, **small, "baseline": "none", "embedding_size": 2, "epochs": 1}
    student = run_recbole_kd("BPR", "known-answer", config_dict=settings)["checkpoint"]
    with pytest.raises(UserError, match="has 4 dimensions and the teacher's vectors 16, so it was trained for another"):
        analyse(**{**runs.pair, "student": student}, output=tmp_path, parts=["spectrum"], projector="trained")


def test_the_finding_on_smoothing_is_about_the_most_popular_tenth(runs: Runs, tmp_path: Path) -> None:
    """Of 40 users the tenth is 4; smaller shares than that fall together."""
    (part,), _ = analyse(**runs.pair, output=tmp_path, parts=["smoothing"])
    for side in ("users", "items"):
        rows = [row for row in part.table[1:] if row[0] == "student" and row[2] == side]
        whole = rows[-1][3]
        (value,) = (row[4] for row in rows if row[3] == round(whole / 10))
        assert f"{side}: student {float(value):.3f}" in part.finding


def test_a_map_has_a_place_for_each_item_of_each_model(runs: Runs, tmp_path: Path) -> None:
    path = runs.data / "known-answer" / "known-answer.item"
    lines = [f"i{item}\t{['even', 'odd'][item % 2]} {'small' if item < 10 else ''}\t{item}" for item in range(40)]
    path.write_text("\n".join(["item_id:token\tkind:token_seq\tsize:float", *map(str.rstrip, lines)]) + "\n")
    try:
        (part,), _ = analyse(**runs.pair, output=tmp_path, parts=["map"], category="kind")
        with pytest.raises(UserError, match=r"--category=size is not a column of words in .*Expected one of: kind"):
            analyse(**runs.pair, output=tmp_path, parts=["map"], category="size")
    finally:
        path.unlink()
    rows = table(tmp_path / "map.csv")
    assert [row["role"] for row in rows] == ["student"] * 40 + ["teacher"] * 40
    assert {row["id"]: row["category"] for row in rows}["i3"] == "odd small"
    assert all(np.isfinite(float(row["x"])) for row in rows)
    # The distances that the finding tells, pair by pair.
    items = load_checkpoint(runs.pair["student"])
    tokens, vectors = items["item_tokens"], items["state_dict"]["item_embedding.weight"]
    units = {token: vector / vector.norm() for token, vector in zip(tokens, vectors.double()) if token.startswith("i")}

    def distance(names: list[str]) -> float:
        return float(np.mean([1 - float(units[a] @ units[b]) for a in names for b in names if a != b]))

    whole = distance(list(units))
    classes = [
        [f"i{n}" for n in range(40) if n % 2 == 0],
        [f"i{n}" for n in range(40) if n % 2],
        [f"i{n}" for n in range(10)],
    ]
    inside = np.mean([distance(names) for names in classes])
    assert f"student {whole:.3f} ({inside:.3f} within a category, {inside / whole:.2f} of it)" in part.finding
    parts, _ = analyse(**runs.pair, output=tmp_path, parts=["map"], map_side="users")
    assert len(table(tmp_path / "map.csv")) == 2 * 48
    assert "48 of 48 users" in parts[0].finding


def test_a_large_graph_is_estimated(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (exact,), _ = analyse(**runs.pair, output=tmp_path / "exact", parts=["spectrum"], bands=5)
    monkeypatch.setattr(spectra, "EXACT_SIZE", 10)
    (estimated,), _ = analyse(**runs.pair, output=tmp_path / "estimated", parts=["spectrum"], bands=5)
    assert "exact" in exact.finding
    assert "estimated" in estimated.finding
    shares = [
        [float(row["student share of loss"]) for row in table(tmp_path / how / "spectrum.csv")]
        for how in ("exact", "estimated")
    ]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.05)
    (groups,), _ = analyse(**runs.pair, output=tmp_path / "groups", parts=["spectrum"], equal_bands=4)
    assert "estimated, frequency 1 occurs at least" in groups.finding


def test_a_model_is_at_no_distance_from_itself(runs: Runs, tmp_path: Path) -> None:
    teacher = runs.pair["teacher"]
    parts, _ = analyse(teacher, teacher, tmp_path, parts=["spectrum", "gain"], groups=3, config_dict=runs.quiet)
    assert all(float(row["student loss"]) < 1e-9 for row in table(tmp_path / "spectrum.csv"))
    assert all(float(row["student - teacher"]) == 0 for row in table(tmp_path / "gain.csv"))


def test_gains_are_the_evaluators_metric_split_by_group(runs: Runs, tmp_path: Path) -> None:
    analyse(**runs.pair, output=tmp_path, parts=["gain"], groups=3, metric="recall@10")
    rows = table(tmp_path / "gain.csv")
    for role in ("student", "teacher"):
        expected = evaluate_checkpoint(runs.pair[role], runs.quiet)["test_result"]["recall@10"]
        for grouping in ("taste", "activity"):
            own = [row for row in rows if row["grouping"] == grouping]
            users = sum(int(row["users"]) for row in own)
            assert users == 48
            mean = sum(float(row[role]) * int(row["users"]) for row in own) / users
            assert mean == pytest.approx(expected, abs=1e-4)
    assert {(row["least active"], row["most active"]) for row in rows} == {("8", "8")}, "training interactions"


def test_compression_ends_at_the_teacher_itself(runs: Runs, tmp_path: Path) -> None:
    (part,), _ = analyse(**runs.pair, output=tmp_path, parts=["compression"])
    rows = table(tmp_path / "compression.csv")
    assert [row["dimensions"] for row in rows] == ["6", "12", "16"], "the student's, doubled, and the teacher's"
    levels = {
        role: evaluate_checkpoint(runs.pair[role], runs.quiet)["test_result"]["ndcg@10"]
        for role in ("student", "teacher")
    }
    for column in ("by the teacher's vectors", "by the teacher's scores"):
        assert float(rows[-1][column]) == pytest.approx(levels["teacher"], abs=1e-4)
        assert 0 < float(rows[0][column]) != float(rows[-1][column])
    assert [float(row["student"]) for row in rows] == [pytest.approx(levels["student"], abs=1e-4)] * 3
    assert "of the teacher's" in part.finding
    teacher = runs.pair["teacher"]
    with pytest.raises(UserError, match="the student's 16 dimensions are no fewer than the teacher's 16"):
        analyse(teacher, teacher, tmp_path, parts=["compression"], config_dict=runs.quiet)


def test_prefixes_stand_beside_students_trained_alone(runs: Runs, tmp_path: Path) -> None:
    given = {**runs.settings, "baseline": "none", "epochs": 2}
    nested, alone = (
        run_recbole_kd("BPR", "known-answer", config_dict={**given, **own})
        for own in ({"embedding_size": 8, "matryoshka": [2, 4]}, {"embedding_size": 3})
    )
    pair = {**runs.pair, "student": nested["checkpoint"]}
    (part,), _ = analyse(**pair, output=tmp_path, parts=["compression"], alone=[alone["checkpoint"]])
    rows = {row["dimensions"]: row for row in table(tmp_path / "compression.csv")}
    assert list(rows) == ["2", "3", "4", "8", "16"]
    for size, row in rows.items():
        assert bool(row["prefixes"]) == (size in ("2", "4", "8"))
        if row["prefixes"]:
            expected = nested["prefixes"][size]["test_result"]["ndcg@10"]
            assert float(row["prefixes"]) == pytest.approx(expected, abs=1e-4)
    assert float(rows["3"]["alone"]) == pytest.approx(alone["test_result"]["ndcg@10"], abs=1e-4)
    assert "its prefixes have" in part.finding
    with pytest.raises(UserError, match="NeuMF, of --alone, has no vector for each user and each item"):
        analyse(**pair, output=tmp_path, parts=["compression"], alone=[runs.neural])


def test_experts_are_those_of_every_epoch(runs: Runs, tmp_path: Path) -> None:
    analyse(**runs.pair, output=tmp_path, parts=["experts"])
    rows = table(tmp_path / "experts.csv")
    assert [row["side"] for row in rows] == ["user"] * 48 + ["item"] * 40
    assert {row["id"] for row in rows} == {f"u{user}" for user in range(48)} | {f"i{item}" for item in range(40)}
    epochs = [key for key in rows[0] if key and key.startswith("epoch")]
    assert epochs[:3] == ["epoch 0", "epoch 1", "epoch 2"]
    state = load_checkpoint(runs.pair["student"])
    network = state["distillers"]["de.users.selection.network.weight"]
    assert {row[key] for row in rows for key in epochs} <= {str(expert) for expert in range(len(network))}


def test_experts_of_a_matryoshka_student_are_those_of_the_whole_vectors(runs: Runs, tmp_path: Path) -> None:
    settings = {**runs.settings, "baseline": "none", "embedding_size": 6, "epochs": 1, "distill": ["de"]}
    settings = {**settings, "matryoshka": [3, 6], "de.experts": 8, "teacher.checkpoint": runs.pair["teacher"]}
    student = run_recbole_kd("BPR", "known-answer", config_dict=settings)["checkpoint"]
    (part,), _ = analyse(**{**runs.pair, "student": student}, output=tmp_path, parts=["experts"])
    assert part.finding.startswith("de, 1 epochs")
    kept = load_checkpoint(student)["distillers"]
    whole, first = (kept[f"de.prefixes.{size}.user_history._extra_state"][-1].tolist() for size in (6, 3))
    assert whole != first
    users = [row for row in table(tmp_path / "experts.csv") if row["side"] == "user"]
    assert [int(row["epoch 0"]) for row in users] == whole


def test_experts_have_a_place_by_the_teachers_vectors(runs: Runs, tmp_path: Path) -> None:
    """DE-RRD, figure 6: two nodes of equal vectors lie together. Without a teacher there are no places."""
    analyse(**runs.pair, output=tmp_path, parts=["experts"])
    rows = table(tmp_path / "experts.csv")
    assert len({(row["x"], row["y"]) for row in rows}) == len(rows) == 88
    analyse(**{**runs.pair, "teacher": None}, output=tmp_path / "alone", parts=["experts"])
    alone = table(tmp_path / "alone" / "experts.csv")
    assert "x" not in alone[0]
    assert [row["epoch 0"] for row in alone] == [row["epoch 0"] for row in rows]


def test_a_model_alone_has_a_map_smoothing_and_gain(runs: Runs, tmp_path: Path) -> None:
    alone = {**runs.pair, "teacher": None}
    parts, left_out = analyse(**alone, output=tmp_path)
    assert [part.name for part in parts] == ["smoothing", "experts", "map"]
    assert left_out["spectrum"] == left_out["compression"] == "it compares with a teacher; give --teacher=FILE."
    assert {row["role"] for row in table(tmp_path / "map.csv")} == {"student"}
    baseline = runs.result["baseline"]["checkpoint"]
    (part,), _ = analyse(**alone, output=tmp_path, parts=["gain"], baseline=baseline)
    assert "against the baseline" in part.finding


def test_experts_are_told_to_the_last_epoch_where_the_best_was_earlier(runs: Runs, tmp_path: Path) -> None:
    """The checkpoint of an early best epoch, made of the run's own; its state after the last epoch lies beside it."""
    best = Path(runs.pair["student"])
    early, last = tmp_path / best.name, f"{best.stem}-last.pth"
    save_checkpoint({**load_checkpoint(best), "epoch": 0, "distillers": {}}, early)
    (tmp_path / last).write_bytes(best.with_name(last).read_bytes())
    analyse(**{**runs.pair, "student": str(early)}, output=tmp_path / "later", parts=["experts"])
    epochs = [key for key in table(tmp_path / "later" / "experts.csv")[0] if key.startswith("epoch")]
    state = load_checkpoint(tmp_path / last)
    assert len(epochs) == len(state["distillers"]["de.user_history._extra_state"]) > 1


def test_what_the_models_do_not_allow_is_left_out_with_its_reason(runs: Runs, tmp_path: Path) -> None:
    teacher = runs.pair["teacher"]
    parts, left_out = analyse(runs.neural, teacher, tmp_path, groups=3, config_dict=runs.quiet)
    assert [part.name for part in parts] == ["gain"]
    assert "no record of experts; de and htd write one" in left_out["experts"]
    assert left_out["spectrum"] == "the student NeuMF has no vector for each user and each item."
    assert "no record of experts" in left_out["experts"]
    with pytest.raises(UserError, match="--parts=spectrum is not possible here: the student NeuMF has no vector"):
        analyse(runs.neural, teacher, tmp_path / "other", parts=["spectrum"], config_dict=runs.quiet)
    assert not (tmp_path / "other").exists()
    parts, _ = analyse(teacher, runs.neural, tmp_path, parts=["gain"], config_dict=runs.quiet)
    assert {row["grouping"] for row in table(tmp_path / "gain.csv")} == {"activity"}, "no vectors, no tastes"


def test_the_log_says_what_each_file_is(runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    files = {"baseline": runs.result["baseline"]["checkpoint"], "others": [runs.pair["student"]]}
    analyse(**runs.pair, **files, output=tmp_path / "out", parts=["smoothing"])
    told = dict(re.findall(r"The (\w+) BPR comes from (\S+)", caplog.text))
    assert told == {role: runs.result[role]["checkpoint"] for role in ("teacher", "baseline")} | {
        "student": files["others"][0]
    }


def test_a_checkpoint_of_recbole_itself_is_a_teacher_too(runs: Runs, tmp_path: Path) -> None:
    settings = {**runs.settings, "checkpoint_dir": str(tmp_path), "epochs": 1, "state": "ERROR", "embedding_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["recbole"])
        config = Config(model="BPR", dataset="known-answer", config_dict=settings)
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    trainer = Trainer(config, get_model("BPR")(config, train.dataset))
    trainer.fit(train, valid, saved=True, show_progress=False)
    parts, _ = analyse(runs.pair["student"], trainer.saved_model_file, tmp_path / "out", config_dict=runs.quiet)
    assert [part.name for part in parts] == list(PARTS)


def test_the_command_line(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--{role}={runs.pair[role]}" for role in ("student", "teacher")]
    words += [
        f"--data_path={runs.data}",
        "--use_gpu=false",
        f"--output={tmp_path / 'out'}",
        "--parts=smoothing,experts",
    ]
    assert main(["analyse", *words]) == 0
    text = capsys.readouterr().out
    assert "smoothing: among the most popular tenth" in text
    assert "experts: de" in text
    assert (tmp_path / "out" / "smoothing.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": None}, "analyse needs a checkpoint; set --student=FILE"),
        ({"teacher": None, "parts": ["spectrum"]}, "it compares with a teacher; give --teacher=FILE"),
        ({"equal_bands": 89, "parts": ["spectrum"]}, "--equal_bands=89 is more than the 88 frequencies of the graph"),
        ({"teacher": None, "parts": ["gain"]}, "it compares with a baseline or a teacher; give --baseline=FILE or"),
        ({"output": None}, "set --output=DIR"),
        ({"teacher": "nowhere.pth"}, "There is no checkpoint 'nowhere.pth'"),
        ({"baseline": "nowhere.pth"}, "There is no checkpoint 'nowhere.pth'"),
        (
            {"parts": "spectrun"},
            "--parts='spectrun' is not one of spectrum, smoothing, experts, gain, compression, map. Did you mean 'spectrum'?",
        ),
        ({"equal_bands": 1}, "--equal_bands=1; expected a whole number of at least 2"),
        ({"projector": "best"}, "--projector='best' is not one of fitted, trained"),
        ({"map_side": "both"}, "--map_side='both' is not one of items, users"),
        ({"category": "genre"}, "--category=genre needs a column of "),
        ({"others": "nowhere.pth"}, "There is no checkpoint 'nowhere.pth'"),
        ({"bands": 10}, "--bands=10; expected an odd number of at least 3"),
        ({"bands": 1}, "--bands=1; expected an odd number of at least 3"),
        ({"groups": 1}, "--groups=1; expected a whole number of at least 2"),
        ({"groups": 2.5}, "--groups=2.5; expected a whole number of at least 2"),
        ({"metric": "ndgc@10"}, "--metric=ndgc@10 is not computed for each user. Did you mean 'ndcg@10'?"),
        ({"epoch": 3}, "Unknown setting 'epoch'"),
        ({"output": f"{__file__}/there"}, "is not a folder; make room"),
    ],
)
def test_bad_input(
    changes: dict[str, Any], message: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"student": runs.pair["student"], "teacher": runs.pair["teacher"], "output": tmp_path / "out", **runs.quiet}
    given = {key: value for key, value in {**given, **changes}.items() if value is not None}
    assert main(["analyse", *(f"--{key}={value}" for key, value in given.items())]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_sequential_models_the_items_are_shown(tmp_path: Path) -> None:
    """They have no vectors of users; a map's places are those of the models' item tables."""
    settings = known_sequences_settings(write_known_sequences(tmp_path / "data"), **SMALL["SASRec"], epochs=1)
    paths = [
        run_recbole_kd("SASRec", "known-sequences", config_dict={**settings, "seed": seed})["checkpoint"]
        for seed in (1, 2)
    ]
    given = {"data_path": str(tmp_path / "data"), "use_gpu": False}
    parts, left_out = analyse(paths[0], paths[1], tmp_path / "out", groups=3, config_dict=given)
    assert [part.name for part in parts] == ["smoothing", "gain", "map"]
    assert "has no vector for each user and each item" in left_out["spectrum"]
    smoothing, places = (table(tmp_path / "out" / f"{name}.csv") for name in ("smoothing", "map"))
    assert {row["side"] for row in smoothing} == {"items"}
    vectors = load_checkpoint(paths[0])["state_dict"]["item_embedding.weight"][1:]
    units = torch.nn.functional.normalize(vectors.double())
    count = len(units)
    expected = 1 - (float((units @ units.T).sum()) - count) / (count * (count - 1))
    found = [float(row["mean average distance"]) for row in smoothing if row["role"] == "student"]
    assert found[-1] == pytest.approx(expected, rel=1e-5)
    assert len(places) == 2 * count
    with pytest.raises(UserError, match="the student SASRec has no vector for each user"):
        analyse(*paths, tmp_path / "other", parts=["map"], map_side="users", config_dict=given)


@pytest.mark.parametrize("setting", ["teacher", "baseline"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset", "was trained on elsewhere and"),
        ("split", "were trained on different splits of known-answer"),
    ],
)
def test_a_checkpoint_of_other_data(change: str, message: str, setting: str, runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    name = "elsewhere" if change == "dataset" else "known-answer"
    write_known_answer(folder, name, seed=1)
    other = run_recbole_kd("BPR", name, config_dict={**known_answer_settings(folder), "epochs": 1})["checkpoint"]
    with pytest.raises(UserError, match=message) as raised:
        analyse(**{**runs.pair, setting: other}, output=tmp_path / "out")
    assert f"--{setting}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_map_holds_the_most_popular_nodes(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,), _ = analyse(**runs.pair, output=tmp_path, parts=["map"])
    monkeypatch.setattr(sys.modules["recbole_kd.verbs.analyse.maps"], "MAP_NODES", 10)
    (part,), _ = analyse(**runs.pair, output=tmp_path, parts=["map"])
    assert part.finding == whole.finding.replace("40 of 40 items", "10 of 40 items"), "distances are among all"
    shown = {row["id"] for row in table(tmp_path / "map.csv")}
    lines = (runs.data / "known-answer" / "known-answer.train.inter").read_text().splitlines()[1:]
    counts = Counter(line.split("\t")[1] for line in lines)
    assert len(shown) == 10
    assert min(counts[item] for item in shown) >= max(counts[item] for item in set(counts) - shown)
    assert len(set(counts.values())) > 1
