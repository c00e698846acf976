"""``--teacher.ranks`` for sequential students: lists after the last training sequence of a user, or after any of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.contracts import Batch, Sequences
from recbole_kd.data.ranked_lists import read_ranked_lists
from recbole_kd.data.sequence_states import SequenceStates, state_keys
from recbole_kd.distiller.cd import CDOptions, CDSequenceDistiller
from recbole_kd.distiller.kd import KDOptions, KDSequenceDistiller
from recbole_kd.distiller.rrd import RRDOptions, RRDSequenceDistiller
from recbole_kd.errors import UserError
from recbole_kd.teacher.ranked_file import SequenceRankFileTeacher
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SequentialBench

LISTS = {"distill": "rrd", "rrd.pool": 6, "rrd.interesting": 3, "rrd.uninteresting": 4, "baseline": "none"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> SequentialBench:
    return SequentialBench(write_known_sequences(tmp_path_factory.mktemp("sequences")), "SASRec")


def written(file: Path, rows: list[tuple[Any, ...]], header: str = "user_id,item_id") -> Path:
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def teacher_of(bench: SequentialBench, file: Path) -> SequenceRankFileTeacher:
    splits, states = bench.splits, SequenceStates.of(bench.splits.train)
    lists = read_ranked_lists(str(file), splits.user_tokens, splits.item_tokens, splits.observed, states=states)
    return SequenceRankFileTeacher(str(file), lists, states)


def test_a_sequence_is_the_same_with_less_padding_and_of_its_user_alone() -> None:
    users, items = torch.tensor([1, 1, 2]), torch.tensor([[3, 4, 0], [3, 4, 5], [3, 4, 0]])
    keys = state_keys(users, items)
    assert len(set(keys.tolist())) == 3
    assert keys[0] == state_keys(users[:1], items[:1, :2])[0]


def test_lists_are_of_the_last_sequence_or_of_that_at_a_position(bench: SequentialBench, tmp_path: Path) -> None:
    """User u5 has had i5, i6, ...: after one item comes position 1. What the training split holds may be listed."""
    rows = bench.splits.train.timed
    mine = rows["user_id"] == list(bench.splits.user_tokens).index("u5")
    users, items, lengths = (rows[name][mine] for name in ("user_id", "item_id_list", "item_length"))
    order = lengths.argsort()
    users, items, lengths = users[order], items[order], lengths[order]
    name = bench.splits.item_tokens
    last = teacher_of(bench, written(tmp_path / "last.csv", [("u5", f"i{n}") for n in (9, 7, 5)]))
    found, weights = last.ranked_after(users, Sequences(items, lengths), 2)
    assert weights is None
    assert not found[:-1].any()
    assert [name[item] for item in found[-1]] == ["i9", "i7"]
    places = [("u5", f"i{n}", position, n / 8) for position in (1, 2) for n in (position, 8)]
    some = teacher_of(bench, written(tmp_path / "some.csv", places, "user_id,item_id,position,weight"))
    found, weights = some.ranked_after(users, Sequences(items, lengths), 2)
    assert [[name[item] for item in row] for row in found[:2]] == [["i1", "i8"], ["i2", "i8"]]
    assert not found[2:].any()
    assert weights is not None
    assert weights[:3].tolist() == [[0.125, 1], [0.25, 1], [0, 0]]


def test_only_sequences_with_a_list_are_in_the_mean(bench: SequentialBench, tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{(user + n) % 24}") for user in range(0, 48, 2) for n in range(6)]
    teacher = teacher_of(bench, written(tmp_path / "some.csv", rows))
    options = RRDOptions(pool=6, interesting=3, uninteresting=0, sampling="top", decay=2.0, consistency=1.5)
    timed = bench.splits.train.timed
    batch = Batch(timed["user_id"], timed["item_id"], None, Sequences(timed["item_id_list"], timed["item_length"]))
    found = RRDSequenceDistiller(options, bench.student, teacher, bench.data)(batch)["rrd"]
    listed = teacher.ranked_after(batch.users, batch.sequences, 6)[0][:, 0] > 0
    assert int(listed.sum()) == 24
    alone = Batch(
        batch.users[listed], batch.items[listed], None, Sequences(*(part[listed] for part in batch.sequences))
    )
    again = RRDSequenceDistiller(options, bench.student, teacher, bench.data)(alone)["rrd"]
    torch.testing.assert_close(found, again)
    nobody = Batch(
        batch.users[~listed], batch.items[~listed], None, Sequences(*(part[~listed] for part in batch.sequences))
    )
    assert RRDSequenceDistiller(options, bench.student, teacher, bench.data)(nobody) == {}


def test_a_sequential_student_learns_from_a_file(tmp_path: Path) -> None:
    data = write_known_sequences(tmp_path)
    rows = [(f"u{user}", f"i{(user + 3 + n) % 24}", n + 1) for user in range(48) for n in range(8)]
    file = written(tmp_path / "lists.csv", rows, "user_id,item_id,rank")
    given = known_sequences_settings(data, epochs=1, hidden_size=8, n_heads=2, n_layers=1, **LISTS)
    result = run_recbole_kd("SASRec", "known-sequences", config_dict={**given, "teacher.ranks": str(file)})
    assert set(result["loss_history"][0]) == {"rec", "rrd"}
    assert result["teacher"]["ranks"] == str(file)
    for settings, message in (
        ({"rrd.pool": 9}, r"the file lists.csv has a list of 8 items, but 9 are needed; lower the pool .--rrd.pool"),
        ({"distill": "fitnet"}, r"fitnet reads a vector for each sequence .* the file lists.csv has none"),
    ):
        mine = {key: value for key, value in given.items() if "fitnet" not in settings.values() or "rrd" not in key}
        with pytest.raises(UserError, match=message):
            run_recbole_kd("SASRec", "known-sequences", config_dict={**mine, "teacher.ranks": str(file), **settings})


SCORED = "user_id,item_id,score,weight"


def scored(file: Path) -> Path:
    """Lists of six items after the last sequences of every second user, with scores, and weights that rise."""
    rows = [
        (f"u{user}", f"i{(user + n) % 24}", 3 - n / 2 + user / 48, (n + 1) / 4)
        for user in range(0, 48, 2)
        for n in range(6)
    ]
    return written(file, rows, SCORED)


def training_batch(bench: SequentialBench) -> Batch:
    timed = bench.splits.train.timed
    return Batch(timed["user_id"], timed["item_id"], None, Sequences(timed["item_id_list"], timed["item_length"]))


def test_kd_reads_the_scores_of_a_file(bench: SequentialBench, tmp_path: Path) -> None:
    """tau^2 times the cross-entropy of the softmax of each listed sequence's scores, weighed item by item."""
    teacher, batch = teacher_of(bench, scored(tmp_path / "scored.csv")), training_batch(bench)
    assert batch.sequences is not None
    options = KDOptions(items=4, temperature=2.0, weight=1.0)
    found = KDSequenceDistiller(options, bench.student, teacher, bench.data)(batch)["kd"]
    items, weights = teacher.ranked_after(batch.users, batch.sequences, 4)
    scores = teacher.listed_scores_after(batch.users, batch.sequences, 4)
    assert weights is not None
    listed = items[:, 0].nonzero().squeeze(1).tolist()
    assert len(listed) == 24
    mean = sum(float(weights[row].sum()) for row in listed) / (4 * 24)
    own, losses = bench.student.sequence_scores(batch.sequences), []
    for row in listed:
        p = [math.exp(float(own[row, item]) / 2) for item in items[row]]
        q = [math.exp(float(score) / 2) for score in scores[row]]
        terms = zip(p, q, weights[row].tolist())
        losses.append(-sum(w / mean * b / sum(q) * math.log(a / sum(p)) for a, b, w in terms))
    assert found.item() == pytest.approx(4 * sum(losses) / 24, rel=1e-4)


def test_cd_draws_from_a_files_lists(bench: SequentialBench, tmp_path: Path) -> None:
    """As many items are drawn as the list has, so that chance decides nothing."""
    teacher, batch = teacher_of(bench, scored(tmp_path / "scored.csv")), training_batch(bench)
    assert batch.sequences is not None
    options = CDOptions(pool=6, samples=6, temperature=1.5, bias=-0.5, weight=1.0)
    found = CDSequenceDistiller(options, bench.student, teacher, bench.data)(batch)["cd"]
    items, weights = teacher.ranked_after(batch.users, batch.sequences, 6)
    scores = teacher.listed_scores_after(batch.users, batch.sequences, 6)
    assert weights is not None
    own, losses, counts = bench.student.sequence_scores(batch.sequences), [], []
    for row in items[:, 0].nonzero().squeeze(1).tolist():
        for item, score, weight in zip(items[row], scores[row].tolist(), weights[row].tolist()):
            q, y = 1 / (1 + math.exp(-(score - 0.5) / 1.5)), float(own[row, item])
            losses.append(q * math.log1p(math.exp(-y)) + (1 - q) * math.log1p(math.exp(y)))
            counts.append(weight)
    mean = sum(counts) / len(counts)
    assert len(losses) == 24 * 6
    expected = sum(w / mean * loss for w, loss in zip(counts, losses)) / len(losses)
    assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_cd_reads_the_scores_of_a_sequential_teacher(bench: SequentialBench, guide: str) -> None:
    options, batch = CDOptions(pool=5, samples=5, temperature=1.0, weight=1.0, guide=guide), bench.batch(12)
    found = CDSequenceDistiller(options, bench.student, bench.teacher, bench.data)(batch)["cd"]
    assert batch.sequences is not None
    own, theirs = (view.sequence_scores(batch.sequences) for view in (bench.student, bench.teacher))
    losses = []
    for row, ranking in enumerate((theirs if guide == "teacher" else own)[:, 1:]):
        for item in (ranking.argsort(descending=True)[:5] + 1).tolist():
            q, y = 1 / (1 + math.exp(-float(theirs[row, item]))), float(own[row, item])
            losses.append(q * math.log1p(math.exp(-y)) + (1 - q) * math.log1p(math.exp(y)))
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


LENGTHS: dict[str, dict[str, Any]] = {"kd": {"kd.items": 6}, "cd": {"cd.pool": 6, "cd.samples": 3}}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_student_takes_over_the_order_of_a_file(name: str, tmp_path: Path) -> None:
    """The file lists six items that do not come next. A student who knows nothing of it has its first one first in a
    sixth of the cases."""
    data = write_known_sequences(tmp_path)
    settings = known_sequences_settings(
        data, epochs=12, hidden_size=16, n_heads=2, n_layers=1, learning_rate=0.01, baseline="none", distill=name
    )
    rows = []
    for user in range(48):
        count = 6 + user % 4 - 2  # validation and test have the last two
        for position in range(1, count):
            later = [(user + position + 2 + step) % 24 for step in range(6)]
            rows += [(f"u{user}", f"i{item}", position, 8.0 - 3 * place) for place, item in enumerate(later)]
    file = written(tmp_path / "later.csv", rows, "user_id,item_id,position,score")
    given = {**settings, **LENGTHS[name], f"{name}.weight": 20.0, "teacher.ranks": str(file)}
    result = run_recbole_kd("SASRec", "known-sequences", config_dict=given)
    assert set(result["loss_history"][0]) == {"rec", name}
    assert result["loss_history"][11][name] < 0.8 * result["loss_history"][0][name]
    recommender = Recommender(result["checkpoint"], "train", {"data_path": str(data), "topk": [1, 5]})
    right = 0
    for user, items, _ in recommender.recommend(k=24, exclude_seen=False):
        number = int(user[1:])
        listed = [f"i{(number + 6 + number % 4 + step) % 24}" for step in range(6)]
        right += next(item for item in items if item in listed) == listed[0]
    assert right > 36


@pytest.mark.parametrize("name", LENGTHS)
def test_a_file_without_scores_or_with_short_lists_is_refused(name: str, tmp_path: Path) -> None:
    data = write_known_sequences(tmp_path)
    rows = [(f"u{user}", f"i{(user + n) % 24}", 9 - n) for user in range(48) for n in range(4)]
    plain = written(tmp_path / "plain.csv", [row[:2] for row in rows])
    short = written(tmp_path / "short.csv", rows, "user_id,item_id,score")
    given = known_sequences_settings(data, epochs=1, hidden_size=8, n_heads=2, baseline="none", distill=name)
    for file, message in (
        (
            plain,
            f"{name} reads scores of the next item after a sequence of the teacher; .* a file with a column 'score'",
        ),
        (short, r"short.csv has a list of 4 items, but 6 are needed; lower the pool .*--cd.pool, --kd.items"),
    ):
        mine = {**given, **LENGTHS[name], "teacher.ranks": str(file)}
        with pytest.raises(UserError, match=message):
            run_recbole_kd("SASRec", "known-sequences", config_dict=mine)
    mine = {**given, **LENGTHS[name], "teacher.ranks": str(short), f"{name}.guide": "student"}
    with pytest.raises(UserError, match=f"{name} reads scores of the next item"):
        run_recbole_kd("SASRec", "known-sequences", config_dict=mine)


def test_no_sequence_and_an_item_twice_are_refused(bench: SequentialBench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lists no unobserved item for any of .* sequences of the training split"):
        teacher_of(bench, written(tmp_path / "none.csv", [("u5", "i1", 99)], "user_id,item_id,position"))
    with pytest.raises(UserError, match="1 row too many for a user and an item, such as 'u5' and 'i1'"):
        teacher_of(bench, written(tmp_path / "twice.csv", [("u5", "i1"), ("u5", "i1")]))
