"""SASRec and GRU4Rec with the objective of SASRec's authors: an item against a drawn one, at every position."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from recbole_kd.data.fast_sampling import Negatives
from recbole_kd.data.loaders import make_loaders
from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.model.build import build_model
from recbole_kd.student.matryoshka import prefix
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL, SequentialBench

MODELS = ("SASRec", "GRU4Rec")


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_known_sequences(tmp_path / "data")


def run(data_path: Path, model: str, **settings: Any) -> dict[str, Any]:
    given = {**SMALL.get(model, {}), "epochs": 2, "loss_type": "BCE", **settings}
    return run_recbole_kd(model, "known-sequences", config_dict=known_sequences_settings(data_path, **given))


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(result["checkpoint"])["state_dict"]
    return state


def drawing(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(users, positives, negatives) of every draw from now on."""
    drawn = []
    draw = Negatives.draw

    def noted(self: Negatives, users: Any, positives: Any, generator: Any) -> torch.Tensor:
        found = draw(self, users, positives, generator)
        drawn.append((users, positives, found))
        return found

    monkeypatch.setattr(Negatives, "draw", noted)
    return drawn


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_the_mean_over_all_positions(
    model: str, trim: bool, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula, each beginning of a sequence read by itself: an output knows no later item."""
    bench = SequentialBench(data_path, model, loss_type="BCE", trim_padding=trim)
    known = SequentialBench(data_path, model)
    known.model.load_state_dict(bench.model.state_dict())
    drawn = drawing(monkeypatch)
    (rows,) = list(bench.train)
    loss = bench.model.calculate_loss(rows)
    ((_, positives, negatives),) = drawn
    losses, place = [], 0
    for items, length, last in zip(rows["item_id_list"], rows["item_length"].tolist(), rows["item_id"].tolist()):
        following = [*items[1:length].tolist(), last]
        for position, item in enumerate(following, start=1):
            beginning = torch.zeros_like(items)
            beginning[:position] = items[:position]
            output = known.model.forward(beginning.unsqueeze(0), torch.tensor([position]))[0]
            table = known.model.item_embedding.weight
            assert item == positives[place]
            scores = [float((output @ table[one]).detach()) for one in (item, int(negatives[place]))]
            losses.append(-math.log(sigmoid(scores[0])) - math.log(1 - sigmoid(scores[1])))
            place += 1
    assert place == len(negatives)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_user_is_one_row_with_all_training_items(data_path: Path) -> None:
    """Of which the model reads the last; every epoch has each user once, in another order."""
    bench = SequentialBench(data_path, "SASRec", loss_type="BCE", train_batch_size=10)
    init_seed(3, True)
    epochs = [torch.cat([batch["user_id"] for batch in bench.train]) for _ in range(2)]
    assert len(bench.train) == 5
    assert not torch.equal(*epochs)
    for users in epochs:
        assert sorted(users.tolist()) == list(range(1, 49))
    for batch in bench.train:
        assert "neg_item_id" not in batch.columns
        for user, items, length, last in zip(*(batch[name].tolist() for name in COLUMNS)):
            number = int(bench.splits.user_tokens[user][1:])
            training = [f"i{(number + step) % 24}" for step in range(6 + number % 4 - 2)]
            read = [bench.splits.item_tokens[item] for item in [*items[:length], last]]
            assert read == training[-7:]


COLUMNS = ("user_id", "item_id_list", "item_length", "item_id")


def test_negatives_are_items_that_the_user_has_not_had(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training: what is held out may be drawn. Another one at each position, and anew in each epoch."""
    bench, drawn = SequentialBench(data_path, "GRU4Rec", loss_type="BCE"), drawing(monkeypatch)
    (rows,) = list(bench.train)
    for _ in range(200):
        bench.model.calculate_loss(rows)
    users, _, items = (torch.cat(part) for part in zip(*drawn))
    assert not bench.splits.observed.contains(users, items).any()
    assert len(torch.unique(users * 25 + items)) == sum(24 - int(count) for count in bench.splits.observed.counts[1:])
    assert not torch.equal(drawn[0][2], drawn[1][2])


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_what_comes_next(model: str, data_path: Path) -> None:
    result = run(data_path, model, epochs=60, learning_rate=0.02, stopping_step=100)
    losses = [epoch["rec"] for epoch in result["loss_history"].values()]
    assert losses[-1] < 0.7 * losses[0]
    assert result["test_result"]["recall@5"] > 0.6
    here = {"data_path": str(data_path), "use_gpu": False, "topk": [1, 5], "valid_metric": "NDCG@5"}
    assert evaluate_checkpoint(result["checkpoint"], here)["test_result"] == result["test_result"]


def test_in_all_else_it_is_the_same_model(data_path: Path) -> None:
    """Untrained it is RecBole's, weight for weight and score for score."""
    ours, theirs = (SequentialBench(data_path, "SASRec", loss_type=loss) for loss in ("BCE", "CE"))
    rows = ours.interaction(20)
    assert torch.equal(ours.model.eval().full_sort_predict(rows), theirs.model.eval().full_sort_predict(rows))
    assert ours.student.capabilities == theirs.student.capabilities


@pytest.mark.parametrize("learner", ["adam", "sevo_adamw"])
def test_as_teacher_student_and_baseline(learner: str, data_path: Path) -> None:
    """The baseline of the same backbone has the student's objective; one that is asked for another has its own."""
    settings = {
        **{f"teacher.{key}": value for key, value in SMALL["SASRec"].items()},
        "distill": "kd,fitnet",
        "kd.items": 5,
        "teacher": "SASRec",
        "teacher.epochs": 1,
        "baseline": "student",
    }
    result = run(data_path, "GRU4Rec", learner=learner, **settings, **{"teacher.loss_type": "BCE"})
    assert set(result["loss_history"][0]) == {"rec", "kd", "fitnet"}
    for role in ("teacher", "baseline"):
        assert load_checkpoint(result[role]["checkpoint"])["config"]["loss_type"] == "BCE"
    other = run(data_path, "GRU4Rec", learner=learner, **settings)
    assert load_checkpoint(other["teacher"]["checkpoint"])["config"]["loss_type"] == "CE"


def test_a_resumed_run_ends_as_one_never_stopped(data_path: Path) -> None:
    whole = run(data_path, "SASRec", epochs=4, hidden_dropout_prob=0.5)
    expected = weights(whole)
    short = run(data_path, "SASRec", epochs=2, hidden_dropout_prob=0.5)
    last = short["checkpoint"].replace(".pth", "-last.pth")
    resumed = run(data_path, "SASRec", epochs=4, hidden_dropout_prob=0.5, resume=last)
    assert resumed["valid_history"] == whole["valid_history"]
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_prefixes_of_a_matryoshka_student_learn_so_too(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a prefix is that of the first numbers of outputs and items."""
    assert list(run(data_path, "SASRec", matryoshka=[4, 8])["prefixes"]) == ["4", "8"]
    bench, drawn = SequentialBench(data_path, "SASRec", loss_type="BCE"), drawing(monkeypatch)
    (rows,) = list(bench.train)
    with prefix(bench.model, 4):
        loss = bench.model.calculate_loss(rows)
    ((_, positives, negatives),) = drawn
    there = torch.arange(6) < rows["item_length"].unsqueeze(1)
    outputs = bench.model.outputs(rows["item_id_list"], rows["item_length"])[there][:, :4]
    table = bench.model.item_embedding.weight[:, :4]
    near, far = ((outputs * table[items]).sum(dim=1) for items in (positives, negatives))
    expected = -(near.sigmoid().log() + (1 - far.sigmoid()).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("BERT4Rec", {}, "--loss_type=BCE learns at every position of a sequence"),
        ("SRGNN", {}, "(GRU4Rec, SASRec), not for SRGNN; set it to CE or BPR"),
        (
            "SASRec",
            {"train_neg_sample_args": {"sample_num": 2}},
            "--loss_type=BCE draws one negative for each position",
        ),
        ("STOSA", {}, "loss_type"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(model: str, settings: dict[str, Any], message: str, data_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run(data_path, model, **settings)
    assert message in " ".join(str(raised.value).split())


def test_a_user_who_has_had_everything_leaves_no_negative(data_path: Path) -> None:
    file = data_path / "known-sequences" / "known-sequences.inter"
    everything = "".join(f"all\ti{time % 24}\t{time}\n" for time in range(26))
    file.write_text(file.read_text() + everything)
    with pytest.raises(UserError, match="SASRec refuses its settings: some users have all items"):
        run(data_path, "SASRec")


def test_loaders_are_recboles_for_the_other_losses(data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec", loss_type="CE")
    assert len(make_loaders(bench.config, bench.splits)[0].dataset) == sum(len(batch) for batch in bench.train)
    assert build_model(bench.config, bench.splits.train).loss_type == "CE"
