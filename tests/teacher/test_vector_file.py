"""``--teacher.vectors=FILE``: vectors of another system as the teacher of a run, alone and beside other teachers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.cli import main
from recbole_kd.data.observed import Observed
from recbole_kd.data.vectors import read_vectors
from recbole_kd.errors import UserError
from recbole_kd.experiment.values import nest
from recbole_kd.teacher.ensemble import TeacherEnsemble, joint_capabilities
from recbole_kd.teacher.vector_file import VectorFileTeacher
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.verbs.compare.plan import Row
from recbole_kd.verbs.train import run_recbole_kd
from tests.distiller.fakes import FakeTeacher

CPU = torch.device("cpu")
#: One of each family; the others are in tests/distiller/test_known_vectors.py.
DISTILLERS = {"distill": "fitnet,freqd,htd", "epochs": 1, "baseline": "none"}


def taste_vectors(file: Path, items: int = 40, users: int = 0, kinds: int = 4) -> Path:
    """A file of another system that knows the tastes: vectors of the first items, and of the first users."""
    generator = torch.Generator().manual_seed(0)
    tastes = 3 * torch.eye(kinds, 6)
    lines = ["item_id,user_id,vector" if users else "item_id,vector"]
    for side, count in (("i", items), ("u", users)):
        for one in range(count):
            vector = tastes[one % kinds] + 0.1 * torch.randn(6, generator=generator)
            ids = f"{side}{one}" if not users else f"i{one}," if side == "i" else f",u{one}"
            lines.append(f"{ids},{' '.join(f'{x:.4f}' for x in vector.tolist())}")
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_answer(tmp_path_factory.mktemp("data"))


def run(data: Path, **settings: Any) -> dict[str, Any]:
    given = {**known_answer_settings(data), **DISTILLERS, **settings}
    return run_recbole_kd(given.pop("model", "BPR"), "known-answer", config_dict=given)


def teacher_of(file: Path) -> VectorFileTeacher:
    tokens = [["[PAD]", *(f"{side}{one}" for one in range(count))] for side, count in (("u", 48), ("i", 40))]
    return VectorFileTeacher(str(file), read_vectors(str(file), *tokens), CPU)


def test_a_student_learns_from_a_file_of_vectors(data: Path, tmp_path: Path) -> None:
    """Vectors of users and items whose products are the answer: a student that imitates them alone finds it."""
    file = taste_vectors(tmp_path / "vectors.csv", 40, 48)
    settings = {"distill": "ftd", "ftd.weight": 100.0, "epochs": 30, "learning_rate": 0.02}
    taught = run(data, **settings, **{"teacher.vectors": str(file)})
    assert taught["test_result"]["recall@10"] > 0.9
    told = taught["teacher"]
    assert (told["vectors"], told["checkpoint"], taught["parameters"]["teacher"]) == (str(file), None, 0)
    assert len(told["digest"]) == 64


@pytest.mark.parametrize(("items", "users"), [(40, 0), (38, 44)])
def test_some_vectors_or_items_alone_are_told_at_the_start(
    items: int, users: int, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = taste_vectors(tmp_path / "vectors.csv", items, users)
    with caplog.at_level("INFO"):
        losses = run(data, **{"teacher.vectors": str(file)})["loss_history"][0]
    assert set(losses) == {"rec", "fitnet", "freqd", "htd.topology", "htd.assignment"}
    assert all(loss == loss and loss < 1e6 for loss in losses.values())
    counted = f"vectors of 6 numbers for {items} of 40 items" + (" and 44 of 48 users" if users else "")
    assert counted in caplog.text
    assert ("freqd: the teacher has no users" in caplog.text) == (not users)


def test_sevo_smooths_on_the_files_graph(data: Path, tmp_path: Path) -> None:
    file = taste_vectors(tmp_path / "vectors.csv", 30)
    smoothed = {"distill": [], "learner": "sevo_adamw", "sevo.graph": "teacher", "sevo.neighbours": 3}
    assert run(data, **smoothed, **{"teacher.vectors": str(file)})["teacher"]["vectors"] == str(file)


def test_items_vectors_teach_a_sequential_student(tmp_path: Path) -> None:
    """A text encoder's vectors beside SASRec's own items; its sequences have no counterpart."""
    data = write_known_sequences(tmp_path)
    file = taste_vectors(tmp_path / "vectors.csv", 20)
    given = known_sequences_settings(
        data, epochs=1, distill="fitnet,rkd", baseline="none", hidden_size=8, n_heads=2, n_layers=1
    )
    result = run_recbole_kd("SASRec", "known-sequences", config_dict={**given, "teacher.vectors": str(file)})
    assert set(result["loss_history"][0]) == {"rec", "fitnet", "rkd.distance", "rkd.angle"}


def test_beside_other_teachers(tmp_path: Path) -> None:
    both = teacher_of(taste_vectors(tmp_path / "both.csv", 38, 44))
    alone = teacher_of(taste_vectors(tmp_path / "alone.csv", 40))
    model: Any = FakeTeacher(49, 41, 3, dtype=torch.float32)
    model.digest = model.ranks_key = "a model"

    def ensemble(*members: Any) -> TeacherEnsemble:
        nothing = Observed(torch.tensor([1]), torch.tensor([1]), 49, 41)
        return TeacherEnsemble(members, nothing, CPU, [1.0] * len(members), "ranks", str(tmp_path))

    side_by_side = ensemble(model, both)
    assert side_by_side.item_embeddings().shape == (41, 9)
    assert side_by_side.user_embeddings().shape == (49, 9)
    assert side_by_side.known_users is not None
    assert int(side_by_side.known_users.sum()) == 44
    assert {"ranks", "scores"} <= side_by_side.capabilities, "who ranks is asked for ranks"
    assert side_by_side.ranked_items(5).tolist() == model.ranked_items(5).tolist()
    items = ensemble(model, alone)
    assert items.known_items is None
    assert "representations" not in items.capabilities
    with pytest.raises(UserError, match="has no a vector for each user"):
        items.user_embeddings()
    ranks = frozenset({"ranks"})
    assert joint_capabilities([ranks, alone.capabilities]) == ranks | alone.capabilities


def test_another_content_is_another_run(data: Path, tmp_path: Path) -> None:
    """A comparison that is run again trains anew what a changed file teaches."""
    file = taste_vectors(tmp_path / "vectors.csv")
    settings = {**known_answer_settings(data), "distill": "de", "teacher.vectors": str(file)}

    def key() -> str:
        return Row("student", "model", "BPR", "known-answer", nest(settings), (1,)).key(1, "data")

    first, digest = key(), teacher_of(file).digest
    assert key() == first
    assert teacher_of(taste_vectors(file, 39)).digest != digest
    assert key() != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--distill=simrec", "--simrec.prediction_weight=0"], r"simrec reads a vector for each user and each item of the teacher; the file items\.csv has only vectors of items\..* or a file with vectors of users too\."),
        (["--distill=fitnet", "--model=NeuMF"], r"NeuMF has vectors of pairs of a user and an item, but the file items\.csv has only vectors of items"),
        (["--distill=rrd"], r"rrd reads a ranking .* of the teacher; the file items\.csv has none"),
        (["--distill=de", "--teacher.ranks=x.csv"], r"--teacher\.vectors and --teacher\.ranks both name the teacher; keep one"),
        (["--distill=de", "--teacher=BPR"], r"--teacher\.vectors and --teacher\.model both name the teacher"),
        (["--distill=de", "--teacher.foo=3"], r"--teacher\.foo is set, but the teacher comes from a file"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_teach_is_one_line(
    words: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = taste_vectors(tmp_path / "items.csv")
    given = {**known_answer_settings(data), "baseline": "none", "teacher.vectors": file}
    model = [] if any("--model" in word for word in words) else ["--model=BPR"]
    assert main([*model, "--dataset=known-answer", *(f"--{key}={value}" for key, value in given.items()), *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recbole-kd: ")]
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("i0,1 2\ni1,1 2 3", "the vector in row 2 has 3 numbers, but that in row 1 has 2"),
        ("i0,1 2\ni1,1 nan", "the vector in row 2 holds nan"),
        ("i0,1 2\nnowhere,1 2", "1 of 2 rows name items that the dataset does not have"),
    ],
)
def test_a_bad_file_is_one_line(
    content: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(f"item_id,vector\n{content}\n")
    given = {**known_answer_settings(data), "distill": "de", "baseline": "none", "teacher.vectors": file}
    assert main(["--model=BPR", "--dataset=known-answer", *(f"--{key}={value}" for key, value in given.items())]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert message in captured.err
