"""Sequential models with their authors' objectives: a loss at every position of a whole sequence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
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
    objective: dict[str, Any] = {"loss_type": "BCE"} if model in MODELS else {}
    objective = {"every_position": True} if model in ("BERT4Rec", "STOSA") else objective
    given = {**SMALL.get(model, {}), "epochs": 2, **objective, **settings}
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


def cross_entropy(scores: list[float], item: int) -> float:
    return math.log(sum(math.exp(score) for score in scores)) - scores[item]


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("objective", ["BCE", "BPR", "CE"])
@pytest.mark.parametrize("model", [*MODELS, "STOSA"])
def test_the_loss_is_the_mean_over_all_positions(
    model: str, objective: str, trim: bool, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula, each beginning of a sequence read by itself: an output knows no later item.

    STOSA has one loss: BPR on its scores, minus squared distances, and the regulariser.
    """
    if model == "STOSA" and objective != "BPR":
        pytest.skip("not a loss of STOSA")
    named = {} if model == "STOSA" else {"loss_type": objective}
    bench = SequentialBench(data_path, model, every_position=True, trim_padding=trim, **named)
    known = SequentialBench(data_path, model).model
    known.load_state_dict(bench.model.state_dict())
    drawn = drawing(monkeypatch)
    (rows,) = list(bench.train)
    loss = bench.model.calculate_loss(rows)
    assert len(drawn) == (objective != "CE")
    negatives = drawn[0][2].tolist() if drawn else []
    losses = []
    for items, length, last in zip(rows["item_id_list"], rows["item_length"].tolist(), rows["item_id"].tolist()):
        following = [*items[1:length].tolist(), last]
        for position, item in enumerate(following, start=1):
            beginning = torch.zeros_like(items)
            beginning[:position] = items[:position]
            batch = Interaction({"item_id_list": beginning.unsqueeze(0), "item_length": torch.tensor([position])})
            scores = known.full_sort_predict(batch).flatten().tolist()
            if objective == "CE":
                losses.append(cross_entropy(scores, item))
                continue
            negative = negatives[len(losses)]
            near, far = scores[item], scores[negative]
            if objective == "BCE":
                losses.append(-math.log(sigmoid(near)) - math.log(1 - sigmoid(far)))
            else:
                losses.append(-math.log(sigmoid(near - far)))
            if model == "STOSA":
                apart = known.vectors_of(torch.tensor([item, negative])).detach().diff(dim=0).square().sum()
                losses[-1] += 0.005 * max(0.0, -near - float(apart))
    assert len(negatives) in (0, len(losses))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


# BERT4Rec


def hides(bench: SequentialBench, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(sequences, what was hidden) of every loss from now on."""
    seen = []
    hidden = bench.model.hidden

    def noted(items: torch.Tensor) -> torch.Tensor:
        seen.append((items, hidden(items)))
        return seen[-1][1]

    monkeypatch.setattr(bench.model, "hidden", noted)
    return seen


@pytest.mark.parametrize("trim", [False, True])
def test_hidden_items_are_told_from_those_around_them(
    trim: bool, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy with every item at each hidden place, against the formula, one sequence at a time."""
    bench = SequentialBench(data_path, "BERT4Rec", every_position=True, trim_padding=trim)
    known = SequentialBench(data_path, "BERT4Rec").model
    known.load_state_dict(bench.model.state_dict())
    seen = hides(bench, monkeypatch)
    (rows,) = list(bench.train)
    loss = bench.model.calculate_loss(rows)
    ((whole, hidden),) = seen
    mask, table, losses = 25, known.item_embedding.weight, []
    for items, places in zip(whole.tolist(), hidden.tolist()):
        given = [mask if place else item for item, place in zip(items, places)]
        outputs = known.forward(torch.tensor([given]))[0]
        for output, item, place in zip(outputs, items, places):
            if place:
                losses.append(cross_entropy((table[:25] @ output + known.output_bias).tolist(), item))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    for user, items in zip(rows["user_id"].tolist(), whole.tolist()):
        number = int(bench.splits.user_tokens[user][1:])
        training = [f"i{(number + step) % 24}" for step in range(6 + number % 4 - 2)]
        assert [bench.splits.item_tokens[item] for item in items if item] == training[-6:]


@pytest.mark.parametrize("alone", [0.0, 0.5, 1.0])
def test_what_is_hidden_is_drawn_anew(alone: float, data_path: Path) -> None:
    """Each item with `mask_ratio`; a share `ft_ratio` of the rows has only its last item hidden. Never nothing."""
    bench = SequentialBench(data_path, "BERT4Rec", every_position=True, mask_ratio=0.4, ft_ratio=alone)
    torch.manual_seed(0)
    items = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 0, 0, 0, 0]]).repeat(5000, 1)
    hidden = bench.model.hidden(items)
    assert not hidden[items == 0].any()
    assert hidden.any(dim=1).all()
    long, short = hidden[0::2].double(), hidden[1::2].double()
    # Not the last item: hidden where chance decides the row.
    assert long[:, :5].mean().item() == pytest.approx((1 - alone) * 0.4, abs=0.01)
    # The last one: also in the other rows, and where chance hides none of 6 or 2 items.
    for rows, length in ((long, 6), (short, 2)):
        by_chance = 0.4 + 0.6**length
        expected = alone + (1 - alone) * by_chance
        assert rows[:, length - 1].mean().item() == pytest.approx(expected, abs=0.02)


def test_a_whole_sequence_is_learned_with_its_last_item(data_path: Path) -> None:
    """RecBole hides only what was read before the last training item, and never the first."""
    bench = SequentialBench(data_path, "BERT4Rec", every_position=True, ft_ratio=1.0)
    assert bench.config["transform"] is None
    (rows,) = list(bench.train)
    assert sorted(rows["user_id"].tolist()) == list(range(1, 49))
    assert "Mask_item_id_list" not in rows.columns


# All of them


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


@pytest.mark.parametrize("model", [*MODELS, "STOSA", "BERT4Rec"])
def test_it_learns_what_comes_next(model: str, data_path: Path) -> None:
    # With one item in three hidden the next is often a guess, so BERT4Rec's loss stays higher.
    result = run(data_path, model, epochs=100, learning_rate=0.02, stopping_step=100)
    losses = [epoch["rec"] for epoch in result["loss_history"].values()]
    assert losses[-1] < 0.75 * losses[0]
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
@pytest.mark.parametrize(("model", "teacher"), [("GRU4Rec", "SASRec"), ("BERT4Rec", "STOSA"), ("STOSA", "BERT4Rec")])
def test_as_teacher_student_and_baseline(model: str, teacher: str, learner: str, data_path: Path) -> None:
    """The baseline of the same backbone has the student's objective; one that is asked for another has its own."""
    settings = {
        **{f"teacher.{key}": value for key, value in SMALL[teacher].items()},
        "distill": "kd,fitnet",
        "kd.items": 5,
        "teacher": teacher,
        "teacher.epochs": 1,
        "baseline": "student",
    }
    objective: dict[str, Any] = {"teacher.loss_type": "BCE"} if model == "GRU4Rec" else {"teacher.every_position": True}
    result = run(data_path, model, learner=learner, **settings, **objective)
    assert set(result["loss_history"][0]) == {"rec", "kd", "fitnet"}
    checkpoints = [result, result["teacher"], result["baseline"]]
    for made in checkpoints:
        kept = load_checkpoint(made["checkpoint"])["config"]
        assert (kept["loss_type"] == "BCE") if model == "GRU4Rec" else kept["every_position"]
    other = load_checkpoint(run(data_path, model, learner=learner, **settings)["teacher"]["checkpoint"])["config"]
    assert not other["every_position"]
    assert other.get("loss_type") != "BCE"


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec"])
def test_a_resumed_run_ends_as_one_never_stopped(model: str, data_path: Path) -> None:
    whole = run(data_path, model, epochs=4, hidden_dropout_prob=0.5)
    expected = weights(whole)
    short = run(data_path, model, epochs=2, hidden_dropout_prob=0.5)
    last = short["checkpoint"].replace(".pth", "-last.pth")
    resumed = run(data_path, model, epochs=4, hidden_dropout_prob=0.5, resume=last)
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
        ("BERT4Rec", {"loss_type": "BCE"}, "--loss_type=BCE learns at every position of a sequence"),
        ("SRGNN", {"loss_type": "BCE"}, "It is for GRU4Rec, SASRec, not for SRGNN; leave it out."),
        ("SRGNN", {"every_position": True}, "Unknown setting 'every_position': nothing in this run reads it."),
        ("BPR", {"every_position": True}, "Unknown setting 'every_position': nothing in this run reads it."),
        ("BERT4Rec", {"loss_type": "BPR"}, "BERT4Rec learns so by --loss_type=CE, not by BPR"),
        (
            "SASRec",
            {"train_neg_sample_args": {"sample_num": 2}},
            "--loss_type=BCE draws one negative for each position",
        ),
        (
            "STOSA",
            {"train_neg_sample_args": {"sample_num": 2}},
            "--every_position=True draws one negative for each position",
        ),
        ("STOSA", {"loss_type": "BCE"}, "loss_type"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(model: str, settings: dict[str, Any], message: str, data_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run(data_path, model, **settings)
    assert message in " ".join(str(raised.value).split())


def test_a_loader_of_its_own_is_told(data_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With BERT4Rec also a share that is left out: nothing but chance decides then what is hidden."""
    for model in ("SASRec", "BERT4Rec"):
        own = {"ft_ratio": None} if model == "BERT4Rec" else {}
        run(data_path, model, fast_sampling=True, **own)
        assert f"--fast_sampling=true: {model} reads batches of its own kind" in caplog.text


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
