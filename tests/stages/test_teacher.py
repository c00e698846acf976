"""The teacher: kept by content, frozen, in the student's ids whatever its own."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.quick_start import run_recbole
from recbole.utils import init_seed

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.stages.needs import _named_teacher, check_data
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.teacher import frozen
from recbole_kd.teacher.cache import NO_PART_OF_A_MODEL
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd

PARTS = ("train", "valid", "test")


def settings_of(data_path: Path, **settings: Any) -> KDConfig:
    given = known_answer_settings(data_path, **{"teacher.epochs": 2, "distill": "simrec", **settings})
    return KDConfig(given.pop("model", "BPR"), given.pop("dataset", "known-answer"), config_dict=given)


def data_of(data_path: Path, **settings: Any) -> Splits:
    config = settings_of(data_path, **settings)
    init_seed(config["seed"], True)
    return Splits(config)


def prepared(data_path: Path, **settings: Any) -> tuple[Experiment, Splits]:
    return Experiment.from_settings(settings_of(data_path, **settings)), data_of(data_path, **settings)


def teacher_of(data_path: Path, **settings: Any) -> FrozenTeacher:
    experiment, splits = prepared(data_path, **{"teacher.model": "LightGCN", **settings})
    return obtain_teacher(experiment, splits)


def everything(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    users = torch.arange(1, splits.train.user_num)
    return users, torch.arange(1, splits.train.item_num).expand(len(users), -1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sevo.neighbours": 1000}, "--sevo.neighbours=1000 is more than the"),
        ({"sevo.tables": ["nothing"]}, "sevo.tables names 'nothing', but BPR has no such parameter"),
        ({"sevo.tables": ["user_embedding.weight"]}, "has a node for each of the"),
        ({"teacher": "NeuMF"}, "--sevo.graph=teacher reads a teacher's item vectors, but this teacher has none"),
        ({"model": "MultiVAE"}, "SEvo smooths embedding tables, but none of MultiVAE are known"),
    ],
    ids=str,
)
def test_what_sevo_refuses_is_said_before_the_teacher_is_trained(
    settings: dict[str, Any], message: str, known_answer: Path
) -> None:
    """Which may take hours."""
    asked = {"learner": "sevo_adamw", "sevo.graph": "teacher", "teacher": "BPR", "teacher.epochs": 1, **settings}
    given = known_answer_settings(known_answer, **asked)
    with pytest.raises(UserError, match=message):
        run_recbole_kd(given.pop("model", "BPR"), "known-answer", config_dict=given)
    assert not list(known_answer.rglob("teachers/*.pth"))


def test_an_item_has_at_most_all_others_as_neighbours(known_answer: Path) -> None:
    """There are 40 items."""
    asked = {"distill": [], "learner": "sevo_adamw", "sevo.graph": "teacher", "teacher": "BPR"}
    check_data(*prepared(known_answer, **asked, **{"sevo.neighbours": 39}))
    with pytest.raises(UserError, match="--sevo.neighbours=40 is more than the 39"):
        check_data(*prepared(known_answer, **asked, **{"sevo.neighbours": 40}))


def test_vectors_of_several_teachers_stand_side_by_side(known_answer: Path) -> None:
    sizes = {"teacher.0.embedding_size": 8, "teacher.1.embedding_size": 16}
    together = _named_teacher(prepared(known_answer, distill="rrd", teacher="BPR,LightGCN", **sizes)[0])
    assert together is not None
    assert (together.name, together.dimension) == ("BPR + LightGCN", 24)


def test_a_kept_teacher_is_tested_again_on_other_test_pairs(known_answer: Path) -> None:
    first = teacher_of(known_answer)
    file = known_answer / "known-answer" / "known-answer.test.inter"
    heading, *rows = file.read_text().splitlines()
    file.write_text("\n".join([heading, *rows[: len(rows) // 2]]) + "\n")
    again = teacher_of(known_answer)
    assert again.trained.from_cache
    assert again.trained.test_result != first.trained.test_result


def test_a_kept_teacher_is_tested_again_on_another_tail(known_answer: Path) -> None:
    """The tail has no part in its training."""
    metrics = {"metrics": ["NDCG", "TailPercentage"]}
    found = [teacher_of(known_answer, **metrics, tail_ratio=share) for share in (None, 0.5, 0.5)]
    assert [one.trained.from_cache for one in found] == [False, True, True]
    first, second, third = (one.trained.test_result for one in found)
    assert first["ndcg@10"] == second["ndcg@10"]
    assert first["tailpercentage@10"] < second["tailpercentage@10"] == third["tailpercentage@10"]


def test_ranked_lists_are_those_of_this_split(known_answer: Path, tmp_path: Path) -> None:
    """A kept list of another split may hold items that this one trains on."""
    first = teacher_of(known_answer)
    first.ranked_items(10)
    other = tmp_path / "other" / "known-answer"
    other.mkdir(parents=True)
    texts = {part: (known_answer / "known-answer" / f"known-answer.{part}.inter").read_text() for part in PARTS}
    heading, *rows = texts["test"].splitlines()
    texts["train"] += "\n".join(rows[:20]) + "\n"
    texts["test"] = "\n".join([heading, *rows[20:]]) + "\n"
    for part, text in texts.items():
        (other / f"known-answer.{part}.inter").write_text(text)
    folder = Path(first.trained.checkpoint).parent.parent
    source = {"teacher.checkpoint": first.trained.checkpoint, "teacher.allow_other_split": True}
    experiment, splits = prepared(other.parent, **source, checkpoint_dir=str(folder))
    taught = obtain_teacher(experiment, splits)
    users, _ = everything(splits)
    assert (folder / "ranks").is_dir(), "the lists of the other split are kept there"
    assert not splits.observed.contains(users[:, None], taught.ranked_items(10)[1:].long()).any()


def test_a_second_run_finds_the_teacher(known_answer: Path) -> None:
    first, second = teacher_of(known_answer), teacher_of(known_answer)
    assert not first.trained.from_cache
    assert second.trained.from_cache
    assert first.digest == second.digest
    assert first.trained.test_result == second.trained.test_result
    for table in ("user_embeddings", "item_embeddings"):  # to the bit, or a resumed run would end otherwise
        assert torch.equal(getattr(first, table)(), getattr(second, table)()), table


@pytest.mark.parametrize(
    "change",
    [
        {"teacher.embedding_size": 16},
        {"teacher.learning_rate": 0.01},
        {"teacher.model": "BPR"},
        {"seed": 7},
        {"valid_metric": "Recall@10"},
        {"metric_decimal_place": 1},  # the rounded score chooses the epoch
    ],
    ids=str,
)
def test_another_setting_finds_no_stale_teacher(known_answer: Path, change: dict[str, Any]) -> None:
    teacher_of(known_answer)
    assert not teacher_of(known_answer, **change).trained.from_cache


def test_what_leads_or_ends_a_training_is_part_of_its_key() -> None:
    of_training = {"epochs", "stopping_step", "eval_step", "clip_grad_norm", "weight_decay", "learner", "shuffle"}
    of_training |= {"learning_rate", "learning_rate_schedule", "train_batch_size", "train_neg_sample_args", "transform"}
    assert not NO_PART_OF_A_MODEL & (of_training | {"seed", "reproducibility", "valid_metric", "fused_adam"})


def test_a_teacher_without_epochs_may_be_given_the_schedule_of_one_that_has_them(known_answer: Path) -> None:
    settings = {"teacher.model": "ItemKNN", "teacher.epochs": 0, "teacher.learning_rate_schedule": "cosine"}
    teacher = teacher_of(known_answer, distill="rrd", **settings)
    assert teacher.trained.test_result["ndcg@10"] > 0.1


def test_another_split_finds_no_stale_teacher(known_answer: Path) -> None:
    teacher_of(known_answer)
    train, valid = (known_answer / "known-answer" / f"known-answer.{part}.inter" for part in ("train", "valid"))
    lines = valid.read_text().splitlines()
    train.write_text(train.read_text() + lines.pop() + "\n")
    valid.write_text("\n".join(lines) + "\n")
    assert not teacher_of(known_answer).trained.from_cache


def test_what_does_not_matter_to_the_teacher_finds_it(known_answer: Path) -> None:
    teacher_of(known_answer)
    experiment, splits = prepared(
        known_answer,
        **{"teacher.model": "LightGCN", "embedding_size": 4, "epochs": 9, "learning_rate": 0.5, "topk": [5, 10]},
    )
    teacher = obtain_teacher(experiment, splits)
    assert teacher.trained.from_cache
    assert teacher.dimension == 64, "the student's size is not the teacher's"
    assert "recall@5" in teacher.trained.test_result, "metrics that the cache does not know are computed"


def test_a_student_that_cannot_be_built_is_refused_before_its_teacher_is_trained(known_answer: Path) -> None:
    with pytest.raises(UserError, match="ConvNCF refuses its settings"):
        teacher_of(known_answer, model="ConvNCF", cnn_channels=[1], distill="rrd")
    assert not list(known_answer.rglob("teachers"))


def test_a_teacher_is_identical_to_the_bit_after_distilling(known_answer: Path) -> None:
    settings = known_answer_settings(known_answer, **{"teacher.model": "SimRecTeacher", "simrec.triplets": 500})
    result = run_recbole_kd("SimRecStudent", "known-answer", config_dict={**settings, "baseline": None})
    before = load_checkpoint(result["teacher"]["checkpoint"])["state_dict"]
    teacher = teacher_of(known_answer, model="SimRecStudent", **{"teacher.model": "SimRecTeacher"})
    assert teacher.digest != ""
    again = run_recbole_kd("SimRecStudent", "known-answer", config_dict={**settings, "baseline": None})
    assert again["teacher"]["from_cache"]
    assert again["teacher"]["digest"] == result["teacher"]["digest"]
    for name, value in load_checkpoint(again["teacher"]["checkpoint"])["state_dict"].items():
        assert torch.equal(value, before[name]), name


def test_a_teacher_is_outside_autograd_and_training(known_answer: Path) -> None:
    teacher = teacher_of(known_answer)
    users, items = everything(data_of(known_answer))
    assert not isinstance(teacher, torch.nn.Module)
    assert not teacher.model.training
    for constant in (teacher.user_embeddings(), teacher.item_embeddings(), teacher.scores(users, items)):
        assert not constant.requires_grad


def test_tokens_in_another_order_are_aligned(known_answer: Path, tmp_path: Path) -> None:
    teacher = teacher_of(known_answer)
    splits = data_of(known_answer)
    expected = {
        (splits.user_tokens[user], splits.item_tokens[item]): float(score)
        for user, row, scores in zip(*(everything(splits)), teacher.scores(*everything(splits)))
        for item, score in zip(row.tolist(), scores)
    }
    shuffled = tmp_path / "shuffled"
    for file in (known_answer / "known-answer").iterdir():
        header, *rows = file.read_text().splitlines()
        random.Random(1).shuffle(rows)
        (shuffled / "known-answer").mkdir(parents=True, exist_ok=True)
        (shuffled / "known-answer" / file.name).write_text("\n".join([header, *rows]) + "\n")
    experiment, other = prepared(shuffled, **{"teacher.checkpoint": teacher.trained.checkpoint})
    assert other.item_tokens != splits.item_tokens
    aligned = obtain_teacher(experiment, other)
    users, items = everything(other)
    found = aligned.scores(users, items)
    blocks = aligned.score_block(users)[:, 1:]
    for row, user in enumerate(users.tolist()):
        for column, item in enumerate(items[row].tolist()):
            wanted = expected[other.user_tokens[user], other.item_tokens[item]]
            assert float(found[row, column]) == pytest.approx(wanted, abs=1e-6)
            assert float(blocks[row, column]) == pytest.approx(wanted, abs=1e-6)


def test_other_users_or_items_are_refused_with_counts(known_answer: Path, tmp_path: Path) -> None:
    teacher = teacher_of(known_answer)
    other = tmp_path / "other"
    (other / "known-answer").mkdir(parents=True)
    for file in (known_answer / "known-answer").iterdir():
        (other / "known-answer" / file.name).write_text(file.read_text().replace("u3\t", "newcomer\t"))
    experiment, splits = prepared(other, **{"teacher.checkpoint": teacher.trained.checkpoint})
    with pytest.raises(UserError, match=r"trained on other users: 1 of this dataset's 48 are new to it, 1 of its 48"):
        obtain_teacher(experiment, splits)


def test_a_teacher_of_another_split_is_refused_unless_accepted(known_answer: Path, tmp_path: Path) -> None:
    teacher = teacher_of(known_answer)
    swapped = tmp_path / "swapped"
    (swapped / "known-answer").mkdir(parents=True)
    names = {"train": "train", "valid": "test", "test": "valid"}
    files = {part: (known_answer / "known-answer" / f"known-answer.{part}.inter").read_text() for part in names}
    moved = files["test"].splitlines()
    files["train"] += moved.pop() + "\n"
    files["test"] = "\n".join(moved) + "\n"
    for part, text in files.items():
        (swapped / "known-answer" / f"known-answer.{part}.inter").write_text(text)
    settings = {"teacher.checkpoint": teacher.trained.checkpoint}
    with pytest.raises(UserError, match="another split of the data and may know test interactions"):
        obtain_teacher(*prepared(swapped, **settings))
    assert obtain_teacher(*prepared(swapped, **settings, **{"teacher.allow_other_split": True})).name == "LightGCN"


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "EASE"])
def test_a_checkpoint_of_recboles_own_can_teach(
    model: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *arguments, **named: load(*arguments, **{**named, "weights_only": False}))
    settings = known_answer_settings(known_answer, checkpoint_dir=str(known_answer / "recbole"), eval_batch_size=4096)
    run_recbole(model, "known-answer", config_dict={**settings, "epochs": 1})
    monkeypatch.undo()
    (file,) = (known_answer / "recbole").glob("*.pth")
    experiment, splits = prepared(known_answer, **{"teacher.checkpoint": str(file)})
    teacher = obtain_teacher(experiment, splits)
    assert teacher.name == model
    users, _ = everything(splits)
    assert torch.isfinite(teacher.score_block(users)).all()
    ranked = teacher.ranked_items(5)[1:]
    assert not splits.observed.contains(users[:, None], ranked).any()


@pytest.fixture
def ranked_banks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rankings that were computed rather than read, one for each."""
    computed: list[str] = []
    for name in ("build_rank_bank", "build_user_bank"):
        build = getattr(frozen, name)
        monkeypatch.setattr(frozen, name, lambda *given, name=name, build=build: computed.append(name) or build(*given))
    return computed


def test_ranked_items_are_computed_once_and_kept(known_answer: Path, ranked_banks: list[str]) -> None:
    first = teacher_of(known_answer)
    ranked = first.ranked_items(10)
    splits = data_of(known_answer)
    users, items = everything(splits)
    scores = first.scores(users, items).masked_fill(splits.observed.contains(users[:, None], items), -torch.inf)
    assert torch.equal(scores.topk(10).indices + 1, ranked[1:].long())
    second = teacher_of(known_answer)
    assert torch.equal(second.ranked_items(10), ranked)
    assert torch.equal(second.ranked_items(4), ranked[:, :4])
    assert len(ranked_banks) == 1
    other = teacher_of(known_answer, seed=9)
    assert not torch.equal(other.ranked_items(10), ranked)


@pytest.mark.parametrize("model", ["LightGCN", "EASE"], ids=["vectors", "scores alone"])
def test_ranked_users_of_items_are_kept_too(known_answer: Path, model: str, ranked_banks: list[str]) -> None:
    first = teacher_of(known_answer, distill="ir_rrd", **{"teacher.model": model})
    ranked = first.ranked_users(10)
    splits = data_of(known_answer)
    users, items = everything(splits)
    scores = first.scores(users, items).masked_fill(splits.observed.contains(users[:, None], items), -torch.inf)
    of_ranked = scores[ranked[1:].long() - 1, items[0][:, None] - 1]
    assert torch.allclose(of_ranked, scores.t().topk(10, dim=1).values, atol=1e-6), "the ten best, best first"
    assert all(len(set(row)) == 10 for row in ranked[1:].tolist())
    second = teacher_of(known_answer, distill="ir_rrd", **{"teacher.model": model})
    assert torch.equal(second.ranked_users(10), ranked)
    assert len(ranked_banks) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "There is no checkpoint"),
        (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "not a whole checkpoint"),
        (lambda path: path.write_text("hello"), "not a whole checkpoint"),
    ],
    ids=["missing", "empty", "truncated", "text"],
)
def test_a_damaged_checkpoint_is_refused(known_answer: Path, damage: Any, message: str) -> None:
    path = Path(teacher_of(known_answer).trained.checkpoint)
    damage(path)
    with pytest.raises(UserError, match=message):
        obtain_teacher(*prepared(known_answer, **{"teacher.checkpoint": str(path)}))


def test_a_kept_teacher_that_is_damaged_is_trained_anew(known_answer: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(teacher_of(known_answer).trained.checkpoint)
    whole = load_checkpoint(path)["state_dict"]
    path.write_bytes(path.read_bytes()[:500])
    again = teacher_of(known_answer).trained
    assert not again.from_cache
    assert "it is truncated or damaged. The LightGCN in this file is trained again." in caplog.text
    assert all(torch.equal(load_checkpoint(path)["state_dict"][name], weights) for name, weights in whole.items())


def test_weights_of_another_shape_are_refused(known_answer: Path) -> None:
    path = teacher_of(known_answer).trained.checkpoint
    state = copy.deepcopy(load_checkpoint(path))
    state["state_dict"]["user_embedding.weight"] = state["state_dict"]["user_embedding.weight"][:, :5]
    save_checkpoint(state, path)
    with pytest.raises(UserError, match="do not fit LightGCN on this dataset"):
        obtain_teacher(*prepared(known_answer, **{"teacher.checkpoint": path}))


def test_distillation_without_a_teacher_is_refused(known_answer: Path) -> None:
    with pytest.raises(UserError, match="needs a teacher; set --teacher=NAME"):
        obtain_teacher(*prepared(known_answer))


def interrupted_teacher(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the training of a teacher in its third epoch of four; an epoch is one step."""
    steps, real = 0, torch.optim.Adam.step

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(KeyboardInterrupt):
        teacher_of(data, **{"teacher.epochs": 4})
    monkeypatch.undo()


def test_a_teacher_whose_training_was_interrupted_goes_on(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = teacher_of(known_answer, **{"teacher.epochs": 4, "checkpoint_dir": str(known_answer / "whole")})
    interrupted_teacher(known_answer, monkeypatch)
    resumed = teacher_of(known_answer, **{"teacher.epochs": 4})
    assert resumed.digest == whole.digest
    assert len(resumed.trained.state["epoch_seconds"]) == 4, "of the first two epochs as well"
    assert [path.name.endswith("-training.pth") for path in (known_answer / "saved" / "teachers").iterdir()] == [False]


def test_an_interrupted_teacher_of_other_decimals_is_trained_anew(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best score so far is rounded otherwise than the scores to come."""
    interrupted_teacher(known_answer, monkeypatch)
    teacher = teacher_of(known_answer, **{"teacher.epochs": 4, "metric_decimal_place": 1})
    history = teacher.trained.state["valid_history"]
    scores = [score for epoch in history for name, score in epoch.items() if name != "epoch"]
    assert scores == [round(score, 1) for score in scores]


def test_a_closed_form_teacher_is_told_apart_by_what_it_keeps_beside_weights(
    known_answer: Path, ranked_banks: list[str]
) -> None:
    """EASE has no weights but one that means nothing: another regularisation must not find the first one's ranking."""
    first = teacher_of(known_answer, **{"teacher.model": "EASE", "teacher.reg_weight": 1.0})
    ranked = first.ranked_items(10)
    second = teacher_of(known_answer, **{"teacher.model": "EASE", "teacher.reg_weight": 500.0})
    assert second.digest != first.digest
    second.ranked_items(10)
    assert len(ranked_banks) == 2
    again = teacher_of(known_answer, **{"teacher.model": "EASE", "teacher.reg_weight": 1.0})
    assert again.digest == first.digest
    assert torch.equal(again.ranked_items(10), ranked)
    assert len(ranked_banks) == 2


def test_a_model_that_draws_constants_when_it_is_built_comes_back_the_same(known_answer: Path) -> None:
    """NNCF draws each node's neighbours, and keeps them in no checkpoint."""
    first = teacher_of(known_answer, **{"teacher.model": "NNCF", "teacher.epochs": 1})
    second = teacher_of(known_answer, **{"teacher.model": "NNCF", "teacher.epochs": 1})
    assert second.trained.from_cache
    pairs = torch.arange(1, 41), torch.arange(1, 41)
    torch.testing.assert_close(second.scores(*pairs), first.scores(*pairs))
