"""Models that rank held-out users: nothing is learned of these, and their history is what they are ranked by."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.model.held_out import having_had
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.saved import load_trained
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.testing import ITEMS, TASTES, USERS
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd
from tests.data.test_dataset import write
from tests.student.test_readers import build

LINEAR = ["EASE", "ItemKNN", "SLIMElastic", "ADMMSLIM"]
SMALL: dict[str, Any] = {"mlp_hidden_size": [32], "learning_rate": 0.01}
#: A seed of the split with which the first two users, who have every item between them, are trained on.
SEED = 1


def tastes(folder: Path, swapped: Mapping[str, list[str]] | None = None) -> Path:
    """User u likes the items i with i % 4 == u % 4, but for the first two, each of whom has one half of the items.

    Args:
        swapped: other items of some users, as many.
    """
    pairs = [(f"u{2 * item // ITEMS}", f"i{item}") for item in range(ITEMS)]
    for user in range(2, USERS):
        liked = [f"i{item}" for item in range(ITEMS) if item % TASTES == user % TASTES]
        pairs += [(f"u{user}", item) for item in (swapped or {}).get(f"u{user}", liked)]
    return written(folder, pairs)


def written(folder: Path, pairs: list[Any]) -> Path:
    users, items = zip(*pairs)
    folder.mkdir(exist_ok=True)
    write(folder, "tastes", user_id=list(users), item_id=list(items))
    return folder


def settings_of(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "held_out_users": [6, 0.25],
        "split_seed": SEED,
        "show_progress": False,
        "use_gpu": False,
        "topk": [10],
        "valid_metric": "NDCG@10",
        "baseline": "none",
        "distill": [],
        **settings,
    }


def config_of(model: str, folder: Path, **settings: Any) -> KDConfig:
    return KDConfig(model, "tastes", config_dict=settings_of(folder, **settings))


TAUGHT: dict[str, Any] = {
    **SMALL,
    "latent_dimension": 32,
    "teacher": {"model": "MultiVAEVariant", **SMALL, "latent_dimension": 64, "noise_std": 0.1, "epochs": 30},
}
#: Lists that fit 40 items.
LISTS: dict[str, dict[str, Any]] = {
    "kd": {"kd.items": 12, "kd.consistency": 3.0},
    "cd": {"cd.pool": 12, "cd.samples": 4},
    "rrd": {"rrd.pool": 8, "rrd.interesting": 4, "rrd.uninteresting": 4},
    "rd": {"rd.interesting": 4, "rd.dynamic_samples": 10, "rd.start_epoch": 0},
    "unkd": {"unkd.pool": 20},
    "dcd": {"dcd.pool": 12, "dcd.interesting": 4, "dcd.uninteresting": 4},
}


# What is learned


def held_out_of(folder: Path) -> list[str]:
    splits = load_splits(config_of("EASE", folder))
    held_out = {splits.user_tokens[user] for part in (splits.valid, splits.test) for user in part.inter_feat["user_id"]}
    assert len(held_out) == 18
    assert not {"u0", "u1"} & held_out
    return sorted(held_out)


@pytest.mark.parametrize(("distill", "teachers"), [*((name, 1) for name in LISTS), ("kd", 2)])
def test_no_weight_depends_on_what_held_out_users_had(tmp_path: Path, distill: str, teachers: int) -> None:
    """Student and teachers, with every distiller that autoencoders learn from.

    Of kd also the mean over all lists, and of several teachers the moments of their scores.
    """
    draw = random.Random(0)
    other = {
        user: draw.sample([f"i{item}" for item in range(ITEMS)], 10) for user in held_out_of(tastes(tmp_path / "a"))
    }
    found: list[dict[str, Tensor]] = []
    for folder in (tastes(tmp_path / "a"), tastes(tmp_path / "b", other)):
        given = {**TAUGHT, "distill": [distill], **LISTS[distill], "epochs": 2, "eval_step": 0}
        own = {**TAUGHT["teacher"], "eval_step": 0, "epochs": 3}
        given["teacher"] = own if teachers == 1 else {"fusion": "scores", "0": own, "1": {"model": "EASE"}}
        experiment = Experiment.of("MultiDAEVariant", "tastes", given=settings_of(folder, **given))
        splits = load_splits(experiment.settings)
        teacher: Any = obtain_teacher(experiment, splits)
        model, trainer, (train, *_) = build_student(experiment, splits, teacher)
        trainer.fit(train, None, saved=False, show_progress=False)
        assert trainer.loss_names[1].startswith(distill)
        taught = (teacher.model if teachers == 1 else teacher.members[0].model).state_dict()
        found.append({**model.state_dict(), **{f"teacher {key}": value for key, value in taught.items()}})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("model", LINEAR)
def test_linear_models_are_those_of_the_training_users_alone(tmp_path: Path, model: str) -> None:
    """Weights of items are those of RecBole's model on data without the others; a user's scores follow from both."""
    config = config_of(model, tastes(tmp_path))
    held_out = held_out_of(tmp_path)
    splits = load_splits(config)
    init_seed(0, True)
    ours: Any = build_model(config, splits.train)
    rows = [line.split("\t") for line in (tmp_path / "tastes" / "tastes.inter").read_text().splitlines()[1:]]
    others = written(tmp_path / "alone", [(user, item) for user, item in rows if user not in held_out])
    alone = config_of(model, others, held_out_users=None, **{"eval_args.split": {"RS": [1, 0, 0]}})
    theirs_splits = load_splits(alone)
    assert theirs_splits.item_tokens == splits.item_tokens
    init_seed(0, True)
    theirs: Any = build_model(alone, theirs_splits.train)
    weights, expected = (_dense(one.w if model == "ItemKNN" else one.item_similarity) for one in (ours, theirs))
    assert np.abs(expected).sum() > 0
    assert weights == pytest.approx(expected, rel=1e-5, abs=1e-6)
    history = torch.zeros(splits.train.user_num, splits.train.item_num)
    history[splits.history.inter_feat["user_id"], splits.history.inter_feat["item_id"]] = 1
    mean = ours.item_means if model == "ADMMSLIM" and ours.center_columns else 0
    scores = (history.numpy() - mean) @ weights + mean
    found = ours.full_sort_predict({"user_id": torch.arange(splits.train.user_num)}).view(scores.shape).numpy()
    assert found == pytest.approx(scores, abs=1e-4)
    assert np.abs(scores[splits.test.inter_feat["user_id"].numpy()]).sum() > 0


def _dense(matrix: Any) -> Any:
    return np.asarray(matrix.todense() if hasattr(matrix, "todense") else matrix)


# What is ranked


def slow_metrics(scores: Tensor, seen: set[int], wanted: set[int], k: int) -> tuple[float, float]:
    """Recall@k and NDCG@k of a user, by loops."""
    order = sorted((item for item in range(1, len(scores)) if item not in seen), key=lambda item: -float(scores[item]))
    hits = [place for place, item in enumerate(order[:k]) if item in wanted]
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
    return len(hits) / len(wanted), sum(1 / math.log2(place + 2) for place in hits) / ideal


@pytest.mark.parametrize("model", ["EASE", "MultiDAE"])
def test_an_item_that_was_had_twice_counts_once(model: str, known_answer: Path) -> None:
    """As in the rows of the training users, whose entries are 1."""
    known = build(model, known_answer)
    user = Interaction({"user_id": torch.tensor([0])})
    once, twice = (having_had(known, torch.tensor(items)).full_sort_predict(user) for items in ([3, 8], [8, 3, 8]))
    assert torch.equal(torch.as_tensor(once), torch.as_tensor(twice))


@pytest.mark.parametrize(
    "model",
    ["MultiVAE", "MultiDAE", "MultiVAEVariant", "MultiDAEVariant", "RecVAE", "MacridVAE", "RaCT", "DiffRec", "LDiffRec"]
    + LINEAR,
)
def test_a_held_out_user_and_a_new_one_with_the_same_items_get_the_same_scores(model: str, tmp_path: Path) -> None:
    """For each model that reads a user's items: both are ranked by them, and another history has other scores."""
    config = config_of(model, tastes(tmp_path))
    splits = load_splits(config)
    known = build_model(config, splits.train).eval()
    user = int(splits.test.inter_feat["user_id"][0])
    had = splits.history.inter_feat["item_id"][splits.history.inter_feat["user_id"] == user]
    assert len(had)
    histories = ((known, user), (having_had(known, had), 0), (having_had(known, 1 + had % ITEMS), 0))
    scores = []
    for one, number in histories:
        init_seed(0, True)  # some draw noise
        with torch.no_grad():
            scores.append(one.full_sort_predict(Interaction({"user_id": torch.tensor([number])})).flatten().float())
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(scores[2], scores[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["MultiDAEVariant", "EASE", "ItemKNN"])
def test_metrics_by_loops_and_of_the_file(tmp_path: Path, model: str) -> None:
    """Few epochs, so that figures are not all 1; and held-out users of no single taste."""
    mixed = {
        f"u{user}": [f"i{(7 * user + 5 * place) % ITEMS}" for place in range(5 + user % 3)] for user in range(2, 30)
    }
    given = settings_of(tastes(tmp_path, mixed), epochs=3, metric_decimal_place=9, **(SMALL if model[0] == "M" else {}))
    result = run_recbole_kd(model, "tastes", config_dict=given)
    file = result["checkpoint"]
    here = {"data_path": str(tmp_path)}
    trained, splits = load_trained(file, here)
    known: Any = trained.model.eval()
    history, wanted = ({}, {})
    for part, sets in ((splits.history, history), (splits.test, wanted)):
        for user, item in zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist()):
            sets.setdefault(user, set()).add(item)
    assert len(wanted) == 12
    figures = []
    for user in wanted:
        row = torch.zeros(1, splits.train.item_num)
        row[0, list(history[user])] = 1
        with torch.no_grad():
            weights = known.w.toarray() if model == "ItemKNN" else None if model[0] == "M" else known.item_similarity
            scores = (
                known.forward(row)[0] if weights is None else torch.from_numpy(np.asarray(row.numpy() @ weights))[0]
            )
        figures.append(slow_metrics(scores, history[user], wanted[user], 10))
    recall, ndcg = (sum(column) / len(figures) for column in zip(*figures))
    assert 0 < recall < 1
    assert result["test_result"]["recall@10"] == pytest.approx(recall, abs=1e-6)
    assert result["test_result"]["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
    again = evaluate_checkpoint(file, here)
    assert again["test_result"] == result["test_result"]
    assert again["valid_result"] == result["best_valid_result"]
    recommended = Recommender(file, config_dict=here).recommend(k=ITEMS)
    for user, items, _ in recommended:
        number = splits.user_tokens.index(user)
        assert set(items) == {splits.item_tokens[item] for item in range(1, ITEMS + 1) if item not in history[number]}
    for key in ({"fold_in": 0.5}, {"split_seed": 7}, {"held_out_users": [12, 6]}):
        with pytest.raises(UserError, match="was trained on another split"):
            load_trained(file, {**here, **key})


def test_student_and_teacher_learn(tmp_path: Path) -> None:
    """Held-out users like what others of their taste had; the most popular items are no answer."""
    given = settings_of(tastes(tmp_path), epochs=30, **{**TAUGHT, "distill": ["kd"], "kd.weight": 1.0, "kd.items": 20})
    result = run_recbole_kd("MultiDAEVariant", "tastes", config_dict=given)
    assert result["teacher"]["test_result"]["recall@10"] > 0.9
    assert result["test_result"]["recall@10"] > 0.9
    others = {name: run_recbole_kd(name, "tastes", config_dict=settings_of(tmp_path)) for name in ("EASE", "Pop")}
    recalls = {name: other["test_result"]["recall@10"] for name, other in others.items()}
    assert recalls["EASE"] > 0.9
    assert recalls["Pop"] < 0.6


def test_a_teacher_of_another_split_is_refused(tmp_path: Path) -> None:
    given = settings_of(tastes(tmp_path), epochs=1, **SMALL)
    file = run_recbole_kd("MultiVAEVariant", "tastes", config_dict=given)["checkpoint"]
    taught = {**given, "distill": ["kd"], "kd.items": 20, "teacher.checkpoint": file}
    assert run_recbole_kd("MultiDAEVariant", "tastes", config_dict=taught)["test_result"]
    for key in ({"fold_in": 0.5}, {"split_seed": 7}, {"held_out_users": None}):
        with pytest.raises(UserError, match="was trained on another split of the data and may know test interactions"):
            run_recbole_kd("MultiDAEVariant", "tastes", config_dict={**taught, **key})


@pytest.mark.parametrize("model", ["Pop", "Random"])
def test_models_that_rank_everybody_alike_or_at_random_rank_held_out_users_too(tmp_path: Path, model: str) -> None:
    result = run_recbole_kd(model, "tastes", config_dict=settings_of(tastes(tmp_path)))
    assert 0 < result["test_result"]["recall@10"] < 0.6


# What is refused


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        *(
            (name, {}, f"and {name} cannot rank them; name one that .*EASE")
            for name in ("BPR", "CDAE", "WMF", "SASRec")
        ),
        ("RRDStudent", {"distill": ["rrd"]}, "and BPR cannot rank them"),
        ("MultiDAEVariant", {"distill": ["kd"], "teacher": "LightGCN"}, "and LightGCN cannot rank them"),
        ("MultiDAEVariant", {"distill": ["kd"], "teacher": "EASE", "baseline": "BPR"}, "and BPR cannot rank them"),
        (
            "MultiDAEVariant",
            {"distill": ["ir_rrd"], "teacher": "EASE"},
            "ir_rrd draws users of each item from all users",
        ),
        ("ItemKNN", {"knn_method": "user"}, "--knn_method=user compares users"),
        (
            "MultiDAEVariant",
            {"distill": ["kd"], "teacher": "ItemKNN", "teacher.knn_method": "user"},
            "--teacher.knn_method=user compares users",
        ),
    ],
)
def test_before_anything_is_read(tmp_path: Path, model: str, settings: dict[str, Any], message: str) -> None:
    """There is no data at all."""
    with pytest.raises(UserError, match=message):
        Experiment.of(model, "tastes", given=settings_of(tmp_path / "nowhere", **settings))


def test_a_dry_run_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"--{key}={value}" for key, value in settings_of(tastes(tmp_path), fold_in=0.7).items() if key != "distill"
    ]
    assert main(["train", "--model=MultiDAEVariant", "--dataset=tastes", "--dry_run=true", *words]) == 0
    shown = capsys.readouterr().out
    assert "held_out_users: [6, 0.25] " in shown
    assert "fold_in: 0.7 " in shown
