"""Matryoshka students: losses are means over prefixes, and each prefix is a student of its own in every verb."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.registry import distiller_class
from recbole_kd.student.matryoshka import OverPrefixes, PrefixStudent, average_over_prefixes, keep_prefix, prefix
from recbole_kd.student.readers import ModelStudent, representations, sequence_vectors
from recbole_kd.testing import (
    Bench,
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.export import run_export
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SequentialBench
from tests.verbs.export.test_export import _as_written, _assert_ranked_as_by

GENERAL = ("BPR", "LightGCN", "SimRecStudent", "SimpleX")
SIZES = (2, 3, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_answer(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> SequentialBench:
    return SequentialBench(write_known_sequences(tmp_path_factory.mktemp("sequences")), "SASRec")


def general(data: Path, model: str) -> Bench:
    """A student in float64, without chance."""
    bench = Bench(data, model, "BPR", size=8, teacher_size=10, dtype=torch.float64)
    if model == "SimpleX":
        bench.model.dropout.p = 0.0
        bench.model.neg_seq_len = 1
    return bench


def interaction_of(bench: Bench) -> Interaction:
    batch = bench.batch(24)
    return Interaction({"user_id": batch.users, "item_id": batch.items, "neg_item_id": batch.negatives})


# The base loss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def product(one: Tensor, other: Tensor, size: int) -> float:
    return sum(a * b for a, b in zip(one[:size].tolist(), other[:size].tolist()))


def cosine(one: Tensor, other: Tensor, size: int) -> float:
    return product(one, other, size) / math.sqrt(product(one, one, size) * product(other, other, size))


@pytest.mark.parametrize("model", GENERAL)
def test_the_base_loss_is_the_mean_of_the_losses_by_each_prefix(model: str, data: Path) -> None:
    """BPR's loss, and SimpleX's cosine contrastive one, pair by pair from the vectors; penalties are of whole tables."""
    bench = general(data, model)
    rows, own = interaction_of(bench), bench.model
    users, items = representations(own)
    expected, penalty = [], 0.0
    for size in SIZES:
        losses = []
        for user, better, worse in zip(rows["user_id"], rows["item_id"], rows["neg_item_id"]):
            vectors = users[user], items[better], items[worse]
            if model == "SimpleX":
                near, far = (cosine(vectors[0], other, size) for other in vectors[1:])
                losses.append(max(0.0, 1 - near) + own.negative_weight * max(0.0, far - own.margin))
            else:
                near, far = (product(vectors[0], other, size) for other in vectors[1:])
                losses.append(-log_sigmoid(near - far))
        expected.append(sum(losses) / len(losses))
    if model == "LightGCN":
        tables = (
            own.user_embedding(rows["user_id"]),
            own.item_embedding(rows["item_id"]),
            own.item_embedding(rows["neg_item_id"]),
        )
        penalty = own.reg_weight * sum(float(table.norm()) for table in tables) / len(rows)
    if model == "SimpleX":
        history = own.item_emb(own.history_item_id[rows["user_id"]])
        negatives = own.item_emb(rows["neg_item_id"])[:, None]
        tables = (own.user_emb(rows["user_id"]), own.item_emb(rows["item_id"]), history, negatives)
        penalty = own.reg_weight * sum(float(table.norm()) for table in tables) / len(rows)
    whole = own.calculate_loss(rows).sum().item()
    assert whole == pytest.approx(expected[-1] + penalty, rel=1e-6)
    average_over_prefixes(own, SIZES)
    assert own.calculate_loss(rows).sum().item() == pytest.approx(sum(expected) / 3 + penalty, rel=1e-6)


@pytest.mark.parametrize("loss", ["CE", "BPR"])
def test_a_sequential_models_loss_is_that_mean_too(loss: str, sequences: SequentialBench, tmp_path: Path) -> None:
    bench = sequences
    if loss == "BPR":
        bench = SequentialBench(write_known_sequences(tmp_path), "SASRec", loss_type="BPR")
    rows, batch = bench.interaction(20), bench.batch(20)
    if loss == "BPR":
        rows = Interaction({**rows.interaction, "neg_item_id": rows["item_id"] % 20 + 1})
    outputs, table = sequence_vectors(bench.model, batch.sequences), bench.model.item_embedding.weight
    expected = 0.0
    for size in (2, 8):
        for row, (output, item) in enumerate(zip(outputs, rows["item_id"])):
            if loss == "CE":
                scores = [product(output, other, size) for other in table]
                expected += math.log(sum(math.exp(score) for score in scores)) - scores[item]
            else:
                near, far = (product(output, table[one], size) for one in (item, rows["neg_item_id"][row]))
                expected -= log_sigmoid(near - far)
    own = bench.model.calculate_loss
    average_over_prefixes(bench.model, (2, 8))
    try:
        assert bench.model.calculate_loss(rows).item() == pytest.approx(expected / (2 * len(rows)), rel=1e-5)
    finally:
        bench.model.calculate_loss = own


@pytest.mark.parametrize("model", GENERAL)
def test_all_scores_are_those_of_the_first_numbers_and_the_block_leaves_nothing_behind(model: str, data: Path) -> None:
    bench = general(data, model)
    own = bench.model.eval()
    before, whole = set(vars(own)), representations(own)
    users = torch.arange(1, 6)
    scores = own.full_sort_predict(Interaction({"user_id": users})).view(5, -1)
    with prefix(own, 3):
        found = own.full_sort_predict(Interaction({"user_id": users})).view(5, -1)
        pairs = own.predict(Interaction({"user_id": users, "item_id": users + 2}))
        cut = representations(own)
    score = cosine if model == "SimpleX" else product
    for row, user in enumerate(users):
        expected = [score(whole[0][user], item, 3) for item in whole[1][1:]]
        assert found[row, 1:].tolist() == pytest.approx(expected, rel=1e-5)
        assert (cut[0][user] @ cut[1][1:].t()).tolist() == pytest.approx(expected, rel=1e-5)
        assert pairs[row].item() == pytest.approx(expected[user + 1], rel=1e-5)
    assert cut[0].shape[1] == 3
    assert set(vars(own)) == before
    again = own.full_sort_predict(Interaction({"user_id": users})).view(5, -1)
    assert torch.equal(again, scores)


def test_a_step_propagates_once_for_all_prefixes_and_distillers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(data, "LightGCN", "BPR")
    passes, forward = [], type(bench.model).forward
    monkeypatch.setattr(type(bench.model), "forward", lambda model: passes.append(1) or forward(model))
    average_over_prefixes(bench.model, SIZES)
    bench.model.calculate_loss(interaction_of(bench))
    assert len(passes) == 1
    distiller = over_prefixes(bench, "rrd", {"pool": 6, "interesting": 3, "uninteresting": 4})
    passes.clear()
    with bench.student.step():
        bench.model.calculate_loss(interaction_of(bench))
        distiller(bench.batch())
    assert len(passes) == 1
    assert "forward" not in vars(bench.model)


# Distillers

UNITS: dict[str, dict[str, Any]] = {
    "rrd": {"pool": 6, "interesting": 3, "uninteresting": 4},
    "dcd": {"pool": 6, "interesting": 3, "uninteresting": 3},
    "kd": {"items": 5},
    "cd": {"pool": 6, "samples": 3, "guide": "student"},
    "unkd": {"pool": 12, "pairs": 4, "groups": 2},
    "fitnet": {},
    "de": {"experts": 2},
    "freqd": {},
    "ftd": {},
    "rkd": {"nodes": 12},
    "simrec": {"embedding_weight": 0.0, "triplets": 40},
}


def over_prefixes(bench: Bench, name: str, given: dict[str, Any], sizes: tuple[int, ...] = SIZES) -> OverPrefixes:
    kind = distiller_class(name)
    options = kind.options_class.parse(name, given)
    views = {size: PrefixStudent(bench.student, size) for size in sizes}
    built = OverPrefixes({size: kind(options, view, bench.teacher, bench.data) for size, view in views.items()})
    built.begin_epoch(0)
    return built


@pytest.mark.parametrize("name", UNITS)
def test_a_distillers_loss_is_the_mean_over_students_that_have_the_first_numbers_alone(name: str, data: Path) -> None:
    """The first numbers of BPR's tables are the tables of a smaller BPR, which knows nothing of prefixes."""
    bench = Bench(data, "BPR", "SimRecTeacher", size=8)
    found = over_prefixes(bench, name, UNITS[name])(bench.batch())
    kind = distiller_class(name)
    expected: dict[str, Tensor] = {}
    for size in SIZES:
        small = Bench(data, "BPR", "SimRecTeacher", size=size)
        for table in ("user_embedding", "item_embedding"):
            whole = getattr(bench.model, table).weight.detach()
            getattr(small.model, table).weight.data.copy_(whole[:, :size])
        alone = kind(kind.options_class.parse(name, UNITS[name]), small.student, bench.teacher, bench.data)
        alone.begin_epoch(0)
        for term, loss in alone(small.batch()).items():
            expected[term] = expected.get(term, torch.tensor(0.0)) + loss / len(SIZES)
    assert set(found) == set(expected)
    for term in set(found) - {"decay"}:  # which is of the whole tables
        torch.testing.assert_close(found[term], expected[term], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["fitnet", "de"])
def test_each_prefix_has_a_projector_of_its_own_and_all_reach_the_student(name: str, data: Path) -> None:
    bench = Bench(data, "LightGCN", "BPR", size=8, teacher_size=10)
    distiller = over_prefixes(bench, name, UNITS[name])
    sum(distiller(bench.batch()).values()).backward()  # type: ignore[union-attr]
    names = [key for key, parameter in distiller.named_parameters() if parameter.grad is not None]
    assert {key.split(".")[1] for key in names} == {"2", "3", "8"}
    gradient = bench.model.item_embedding.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(0).gt(0).all()


@pytest.mark.parametrize(("name", "given"), [("rrd", UNITS["rrd"]), ("kd", {"items": 5}), ("fitnet", {}), ("rkd", {})])
def test_sequences_have_prefixes_too(name: str, given: dict[str, Any], sequences: SequentialBench) -> None:
    kind, batch = distiller_class(name, sequential=True), sequences.batch(16)
    views = {size: PrefixStudent(sequences.student, size) for size in (2, 8)}
    assert batch.sequences is not None
    vectors, table = sequences.student.sequence_embeddings(batch.sequences), sequences.model.item_embedding.weight
    scores = views[2].sequence_scores(batch.sequences)
    torch.testing.assert_close(scores, vectors[:, :2] @ table[:, :2].t())
    whole = kind(kind.options_class.parse(name, given), sequences.student, sequences.teacher, sequences.data)
    parts = {
        size: kind(kind.options_class.parse(name, given), view, sequences.teacher, sequences.data)
        for size, view in views.items()
    }
    alone = {size: one(batch) for size, one in parts.items()}
    for term, loss in whole(batch).items():
        torch.testing.assert_close(alone[8][term], loss)
        assert not torch.isclose(alone[2][term], loss)


# Whole runs

RUN = {"embedding_size": 8, "epochs": 6, "baseline": "none"}
TAUGHT = {
    "distill": ["rrd", "fitnet"],
    "teacher": "BPR",
    "teacher.epochs": 10,
    "rrd.pool": 8,
    "rrd.interesting": 4,
    "rrd.uninteresting": 6,
    "rrd.weight": 0.05,
}


def run(data: Path, model: str, **given: Any) -> dict[str, Any]:
    return run_recbole_kd(model, "known-answer", config_dict={**known_answer_settings(data), **RUN, **given})


@pytest.mark.parametrize("model", GENERAL)
def test_every_prefix_learns_and_each_verb_answers_with_it(model: str, data: Path, tmp_path: Path) -> None:
    """An order by chance has the item that is looked for among the first ten of 32 for a third of the users."""
    result = run(data, model, matryoshka=[2, 4], epochs=30, learning_rate=0.02, **TAUGHT)
    assert list(result["prefixes"]) == ["2", "4", "8"]
    whole = result["prefixes"]["8"]
    assert (whole["valid_result"], whole["test_result"]) == (result["best_valid_result"], result["test_result"])
    given = {"data_path": str(data), "use_gpu": False}
    for size, found in result["prefixes"].items():
        assert found["test_result"]["recall@10"] > 0.6
        kept = {**given, **{key: known_answer_settings(data)[key] for key in ("topk", "valid_metric")}}
        again = evaluate_checkpoint(result["checkpoint"], kept, dimensions=None if size == "8" else int(size))
        assert {name: again[name] for name in found} == found
    manifest = run_export(result["checkpoint"], str(tmp_path / "bundle"), config_dict=given, dimensions=4)
    assert manifest["dimension"] == 4
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    _assert_ranked_as_by(Recommender(result["checkpoint"], "train", given, dimensions=4), answers, k=20)
    other = Recommender(result["checkpoint"], "train", given)
    assert any(items != answers[user] for user, items, _ in other.recommend(k=20))


def test_a_new_user_is_answered_by_the_prefix(data: Path) -> None:
    checkpoint = run(data, "BPR", matryoshka=[2], **TAUGHT)["checkpoint"]
    recommender = Recommender(checkpoint, config_dict={"data_path": str(data), "use_gpu": False}, dimensions=2)
    assert recommender.vectors()[0].shape[1] == 2
    assert len(recommender.recommend_after(recommender.items[1:4], k=5).items) == 5


def test_a_sequential_student_has_prefixes(tmp_path: Path) -> None:
    given = known_sequences_settings(write_known_sequences(tmp_path), hidden_size=16, n_heads=2, n_layers=1)
    taught = {"distill": "rrd", "teacher": "SASRec", "teacher.epochs": 1, "rrd.pool": 6, "rrd.interesting": 3}
    given |= {**taught, "rrd.uninteresting": 4, "baseline": "none", "matryoshka": [4, 8], "epochs": 8}
    result = run_recbole_kd("SASRec", "known-sequences", config_dict={**given, "learning_rate": 0.01})
    for size, found in result["prefixes"].items():
        assert found["test_result"]["recall@5"] > 0.5, size  # five of 24 items, by chance 0.2
    again = evaluate_checkpoint(result["checkpoint"], {"data_path": str(tmp_path), "topk": [1, 5]}, dimensions=4)
    assert again["test_result"] == result["prefixes"]["4"]["test_result"]
    recommender = Recommender(result["checkpoint"], "train", {"data_path": str(tmp_path), "topk": [1, 5]}, dimensions=4)
    assert len(next(recommender.recommend(["u1"], k=5)).items) == 5


@pytest.mark.parametrize("taught", [{"distill": None}, TAUGHT], ids=["plain", "distilled"])
def test_the_whole_vector_as_the_only_prefix_is_the_plain_run_to_the_bit(taught: dict[str, Any], data: Path) -> None:
    plain, nested = (run(data, "BPR", matryoshka=sizes, **taught) for sizes in (None, [8]))
    states = [load_checkpoint(one["checkpoint"], schema=ModelState) for one in (plain, nested)]
    for key in ("loss_history", "valid_history", "test_result"):
        assert plain[key] == nested[key]
    assert "prefixes" not in nested
    for name, weights in states[0]["state_dict"].items():
        assert torch.equal(weights, states[1]["state_dict"][name])


def test_a_run_without_a_teacher_has_prefixes_and_a_baseline_has_none(data: Path) -> None:
    alone = run(data, "BPR", matryoshka=[2])
    assert list(alone["prefixes"]) == ["2", "8"]
    result = run(data, "BPR", matryoshka=[2], **{**TAUGHT, "baseline": "student"})
    other = run(data, "BPR", **{**TAUGHT, "baseline": "student"})
    assert result["baseline"]["test_result"] == other["baseline"]["test_result"]


def test_a_run_goes_on_exactly(data: Path) -> None:
    whole = run(data, "BPR", matryoshka=[2, 4], **TAUGHT)
    last = whole["checkpoint"].replace(".pth", "-last.pth")
    resumed = run(data, "BPR", matryoshka=[2, 4], resume=last, **TAUGHT)
    assert resumed["loss_history"] == whole["loss_history"]
    assert resumed["prefixes"] == whole["prefixes"]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(data: Path) -> None:
    one, two = (run(data, "BPR", matryoshka=[2, 4], nproc=count, epochs=3, **TAUGHT) for count in (1, 2))
    for epoch, losses in one["loss_history"].items():
        assert two["loss_history"][epoch] == pytest.approx(losses, rel=1e-4)
    assert list(two["prefixes"]) == ["2", "4", "8"]


# What is refused


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], r"--matryoshka=\[\]; expected a list of whole numbers of at least 1"),
        ([0, 8], "--matryoshka=0; expected a whole number of at least 1"),
        ([2.5], "--matryoshka=2.5; expected a whole number of at least 1"),
        ([4, 2], r"--matryoshka=\[4, 2\]; expected sizes in ascending order, each once, such as \[8,16,32\]"),
        ([2, 2], r"--matryoshka=\[2, 2\]; expected sizes in ascending order"),
        (
            [4, 16],
            "--matryoshka=.4, 16. asks for 16 numbers, but --embedding_size=8; lower the first or raise the second",
        ),
        (4, r"--matryoshka=4 is not a list; expected a list, such as --matryoshka=\[1,2\]"),
        ("four", "--matryoshka='four' is not a list"),
    ],
    ids=str,
)
def test_sizes_of_no_prefix_are_refused(sizes: Any, message: str, data: Path) -> None:
    with pytest.raises(UserError, match=message):
        Experiment.of("BPR", "known-answer", given={**known_answer_settings(data), **RUN, "matryoshka": sizes})


@pytest.mark.parametrize("model", ["NeuMF", "MultiDAE", "EASE", "NGCF", "GRU4Rec"])
def test_students_that_cannot_be_cut_are_refused(model: str, data: Path) -> None:
    given = {**known_answer_settings(data), "matryoshka": [4]}
    with pytest.raises(UserError, match=f"which it cannot do for {model}; set --model to one of BPR, Light"):
        Experiment.of(model, "known-answer", given=given)


def test_what_reads_no_prefix_is_refused_before_a_teacher_is_trained(data: Path) -> None:
    given = {"distill": "simrec", "teacher": "SimRecTeacher", "teacher.embedding_size": 8, "matryoshka": [2]}
    with pytest.raises(
        UserError, match="simrec compares .* number by number, but --matryoshka cuts the student's to 2 of 8"
    ):
        run(data, "SimRecStudent", **given)
    taught = run(data, "SimRecStudent", **{**given, "simrec.embedding_weight": 0, "simrec.triplets": 50, "epochs": 1})
    assert set(taught["loss_history"][0]) == {"rec", "simrec.prediction", "simrec.regularization", "simrec.decay"}
    with pytest.raises(UserError, match="--teacher.matryoshka is set, but only the student has prefixes"):
        run(data, "BPR", **{**TAUGHT, "teacher.matryoshka": [2]})


def test_dimensions_that_were_not_trained_are_refused(data: Path) -> None:
    nested, plain = (run(data, "BPR", epochs=1, matryoshka=sizes)["checkpoint"] for sizes in ([2, 4], None))
    given = {"data_path": str(data)}
    with pytest.raises(UserError, match="--dimensions=3: .* was trained for the sizes 2, 4; set --dimensions to one"):
        evaluate_checkpoint(nested, given, dimensions=3)
    with pytest.raises(UserError, match="--dimensions=2: .* was not trained with --matryoshka"):
        Recommender(plain, config_dict=given, dimensions=2)
    with pytest.raises(UserError, match="--dimensions cannot be evaluated on a cluster; leave --ray_address out"):
        evaluate_checkpoint(nested, {**given, "ray_address": "local"}, dimensions=2)


def test_a_model_that_is_cut_stays_so(data: Path) -> None:
    bench = general(data, "BPR")
    keep_prefix(bench.model, 2)
    assert ModelStudent(bench.model).dimension == 2


class _Told(nn.Module):
    """A distiller whose losses are given."""

    shares = True

    def __init__(self, **losses: float) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(loss) for name, loss in self.losses.items()}


def test_a_loss_is_the_mean_over_all_prefixes() -> None:
    """One that a prefix does not have counts as 0 there."""
    found = OverPrefixes({2: _Told(one=1.0, other=3.0), 4: _Told(one=2.0)})(None)
    assert {name: float(loss) for name, loss in found.items()} == {"one": 1.5, "other": 1.5}
