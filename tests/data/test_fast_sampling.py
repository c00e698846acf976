"""Batches drawn many at once have RecBole's columns, and negatives of exactly RecBole's distributions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import ModelType
from scipy.stats import chisquare
from torch import Tensor

from recbole_kd.data import fast_sampling
from recbole_kd.data.fast_sampling import FastTrainDataLoader, Negatives, samples_fast
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.observed import Observed
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)

USERS, ITEMS = 6, 9
#: User 1 has nearly everything, user 5 nothing.
OBSERVED = Observed(
    torch.tensor([1] * 7 + [2, 2, 3, 4, 4, 4]), torch.tensor([1, 2, 3, 4, 5, 6, 8, 1, 4, 2, 2, 3, 7]), USERS, ITEMS
)


def loaders(
    folder: Path, model: str = "BPR", sequential: bool = False, train: str = "", **settings: Any
) -> tuple[Any, Any]:
    """RecBole's training loader and ours, of the same data; `train`: another text of the training split."""
    if sequential:
        name, given = "known-sequences", known_sequences_settings(write_known_sequences(folder), **settings)
    else:
        name, given = "known-answer", known_answer_settings(write_known_answer(folder), **settings)
        if train:
            (folder / name / f"{name}.train.inter").write_text(train)
    config = KDConfig(model, name, config_dict={**given, "distill": []})
    splits = Splits(config)
    theirs, ours = (make_loaders(config, splits, fast)[0] for fast in (False, True))
    assert type(theirs) is TrainDataLoader
    assert type(ours) is FastTrainDataLoader
    return theirs, ours


def epoch(loader: Any) -> dict[str, Tensor]:
    """The columns of all batches."""
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0].columns}


def negatives(num: int = 1, **others: Any) -> dict[str, Any]:
    return {"train_neg_sample_args": {"distribution": "uniform", "sample_num": num, **others}}


CASES: dict[str, dict[str, Any]] = {
    "pairs": {},
    "three negatives a pair": negatives(3),
    "labels": {"model": "NeuMF"},
    "labels, four negatives": {"model": "NeuMF", **negatives(4)},
    "popularity": negatives(2, distribution="popularity", alpha=0.5),
    "more than a batch of negatives": {**negatives(30), "train_batch_size": 20},
    "sequences": {"model": "GRU4Rec", "sequential": True, "loss_type": "BPR", **negatives(2)},
    "sequences without negatives": {"model": "SASRec", "sequential": True, "loss_type": "CE"},
    "masked sequences": {"model": "BERT4Rec", "sequential": True, "loss_type": "CE"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_looks_like_recboles(case: str, tmp_path: Path) -> None:
    """Columns in their order, types, sizes of batches, and which rows repeat which."""
    theirs, ours = loaders(tmp_path, **CASES[case])
    expected, found = list(theirs), list(ours)
    assert len(ours) == len(theirs) == len(found) == len(expected)
    for batch, like in zip(found, expected):
        assert batch.columns == like.columns
        assert {name: (batch[name].dtype, batch[name].shape) for name in batch.columns} == {
            name: (like[name].dtype, like[name].shape) for name in like.columns
        }
        if "label" in like.columns:
            assert torch.equal(batch["label"], like["label"])
            assert not batch["label"][batch["item_id"] == 0].any()
    users, times = found[0]["user_id"], ours.times
    blocks = users.view(times, -1)
    assert torch.equal(blocks, blocks[:1].expand_as(blocks)), "the pairs are repeated block by block"


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_has_every_pair_once_and_no_false_negative(case: str, tmp_path: Path) -> None:
    theirs, ours = loaders(tmp_path, **CASES[case])
    found, times = epoch(ours), ours.times
    rows = theirs._dataset.inter_feat
    pairs = Counter(zip(rows["user_id"].tolist(), rows["item_id"].tolist()))
    if "label" in found:
        positive = found["label"] == 1
        had = Counter(zip(found["user_id"][positive].tolist(), found["item_id"][positive].tolist()))
        assert had == pairs
        drawn = list(zip(found["user_id"][~positive].tolist(), found["item_id"][~positive].tolist()))
    else:
        had = Counter(zip(found["user_id"].tolist(), found["item_id"].tolist()))
        assert had == Counter({pair: count * times for pair, count in pairs.items()})
        drawn = list(zip(found["user_id"].tolist(), found["neg_item_id"].tolist())) if "neg_item_id" in found else []
    assert all(item > 0 for _, item in drawn)
    if case == "sequences":
        assert not any((found["item_id"] == found.get("neg_item_id", torch.tensor(-1))).tolist())
    else:
        assert not pairs.keys() & set(drawn)


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_features_of_users_and_items_are_joined(model: str, tmp_path: Path) -> None:
    """Also those of the negatives, as RecBole does."""
    folder = write_known_answer(tmp_path) / "known-answer"
    lines = ["item_id:token\tclass:token", *(f"i{item}\tc{item % 4}" for item in range(40))]
    (folder / "known-answer.item").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\tage:float", *(f"u{user}\t{user}" for user in range(48))]
    (folder / "known-answer.user").write_text("\n".join(lines) + "\n")
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "class"], "user": ["user_id", "age"]}
    theirs, ours = loaders(tmp_path, model, load_col=columns)
    found, expected = epoch(ours), epoch(theirs)
    assert {name: column.dtype for name, column in found.items()} == {n: c.dtype for n, c in expected.items()}
    dataset = theirs._dataset
    of_item, of_user = dataset.item_feat["class"], dataset.user_feat["age"]
    assert torch.equal(found["class"], of_item[found["item_id"]])
    assert torch.equal(found["age"], of_user[found["user_id"]])
    if model == "BPR":
        assert torch.equal(found["neg_class"], of_item[found["neg_item_id"]])


def test_without_shuffling_rows_keep_their_order(tmp_path: Path) -> None:
    theirs, ours = loaders(tmp_path, shuffle=False)
    assert torch.equal(epoch(ours)["item_id"], theirs._dataset.inter_feat["item_id"])


def test_an_epoch_is_decided_by_the_loaders_generator_alone(tmp_path: Path) -> None:
    """What a checkpoint keeps of the loader is that generator, and no other random stream moves."""
    _, ours = loaders(tmp_path)
    epoch(ours)
    state, others = ours.generator.get_state(), torch.get_rng_state()
    second, third = epoch(ours), epoch(ours)
    assert torch.equal(torch.get_rng_state(), others)
    assert not torch.equal(second["neg_item_id"], third["neg_item_id"])
    ours.generator.set_state(state)
    next(iter(ours))  # an epoch that was broken off
    ours.generator.set_state(state)
    again = epoch(ours)
    assert all(torch.equal(again[name], second[name]) for name in second)


def test_the_size_of_a_chunk_changes_no_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of one batch is the smallest; every pair is still had once."""
    monkeypatch.setattr(fast_sampling, "CHUNK", 1)
    theirs, ours = loaders(tmp_path, **negatives(3))
    found = epoch(ours)
    assert len(found["user_id"]) == 3 * len(theirs._dataset)
    assert len(list(ours)) == len(theirs)


def test_switched_off_it_is_recboles_to_the_bit(tmp_path: Path) -> None:
    import numpy as np

    theirs, ours = loaders(tmp_path, **negatives(2))
    ours.fast = False
    drawn = []
    for loader in (theirs, ours):
        np.random.seed(3)
        drawn.append([epoch(loader) for _ in range(2)])
    for one, other in zip(*drawn):
        assert all(torch.equal(one[name], other[name]) for name in one)


# Distributions


def frequencies(drawn: Tensor, users: Tensor, user: int) -> Tensor:
    return torch.bincount(drawn[users == user], minlength=ITEMS)


def check(found: Tensor, probabilities: Tensor) -> None:
    """Chi-square at one in a thousand, and nothing where the probability is 0."""
    possible = probabilities > 0
    assert not found[~possible].any()
    if int(possible.sum()) > 1:
        expected = probabilities[possible] / probabilities.sum() * found.sum()
        assert chisquare(found[possible].numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [None, 1.0, 0.5])
def test_negatives_are_drawn_by_weight_among_the_unobserved(alpha: float | None) -> None:
    weights = torch.tensor([0.0, 9, 1, 3, 0, 5, 2, 4, 7]) ** alpha if alpha else torch.ones(ITEMS)
    weights[0] = 0
    users = torch.arange(1, USERS).repeat(20_000)
    drawing = Negatives(ITEMS, OBSERVED, weights if alpha else None)
    drawn = drawing.draw(users, torch.zeros_like(users), torch.Generator().manual_seed(7))
    for user in range(1, USERS):
        allowed = weights.double().clone()
        allowed[OBSERVED.indices[OBSERVED.offsets[user] : OBSERVED.offsets[user + 1]]] = 0
        check(frequencies(drawn, users, user), allowed)


def test_a_sequences_negatives_leave_out_its_next_item_alone() -> None:
    positives = torch.arange(1, ITEMS).repeat(10_000)
    drawn = Negatives(ITEMS, None, None).draw(positives, positives, torch.Generator().manual_seed(1))
    for item in range(1, ITEMS):
        allowed = torch.ones(ITEMS, dtype=torch.float64)
        allowed[[0, item]] = 0
        check(frequencies(drawn, positives, item), allowed)


def test_the_marks_hide_no_observed_pair() -> None:
    """Whatever the hash: 3 million random pairs are never drawn for their users."""
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randint(1, 400, (60_000,), generator=generator) for _ in range(2))
    observed = Observed(users, items, 400, 400)
    asked = torch.arange(1, 400).repeat_interleave(2_000)
    drawn = Negatives(400, observed, None).draw(asked, asked, generator)
    assert not observed.contains(asked, drawn).any()


def test_millions_of_users_and_items_need_no_table_of_both() -> None:
    many = 3_000_000
    observed = Observed(torch.tensor([1, 2, many - 1]), torch.tensor([5, 6, many - 1]), many, many)
    users = torch.full((1_000,), many - 1)
    drawn = Negatives(many, observed, None).draw(users, users, torch.Generator().manual_seed(0))
    assert drawn.min() > 0
    assert drawn.max() < many


def test_popularity_is_that_of_recboles_sampler(tmp_path: Path) -> None:
    """The share of each item in the pairs of all three splits, to the power alpha; some items are rarer here."""
    write_known_answer(tmp_path)
    file = tmp_path / "known-answer" / "known-answer.train.inter"
    heading, *rows = file.read_text().splitlines()
    kept = [row for place, row in enumerate(rows) if place % 3 == 0 or int(row.split("\t")[1][1:]) % 2]
    text = "\n".join([heading, *kept]) + "\n"
    _, ours = loaders(tmp_path, train=text, **negatives(20, distribution="popularity", alpha=0.7))
    splits = ours._sampler.datasets
    assert len(torch.bincount(splits[0].inter_feat["item_id"])[1:].unique()) > 1
    counts = sum(torch.bincount(part.inter_feat["item_id"], minlength=41) for part in splits).double()
    weights = torch.where(counts > 0, (counts / counts.sum()) ** 0.7, 0.0)
    drawn = torch.zeros(49, 41)
    for _ in range(20):
        found = epoch(ours)
        drawn += torch.bincount(found["user_id"] * 41 + found["neg_item_id"], minlength=49 * 41).view(49, 41)
    observed = ours._sampler.used_ids.own
    for user in (1, 20, 48):
        allowed = weights.clone()
        allowed[observed.indices[observed.offsets[user] : observed.offsets[user + 1]]] = 0
        check(drawn[user].double(), allowed)


class Known:
    """A model that scores an item by its id."""

    device = torch.device("cpu")
    training = True

    def eval(self) -> None:
        self.training = False

    def train(self) -> None:
        self.training = True

    def predict(self, interaction: Any) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return interaction["item_id"].float()


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_the_hardest_of_several_candidates_is_taken(model: str, tmp_path: Path) -> None:
    """With 3 candidates among n unobserved items the r-th best is taken with ((n-r+1)^3 - (n-r)^3) / n^3."""
    _, ours = loaders(tmp_path, model, **negatives(2, dynamic=True, candidate_num=3))
    ours.get_model(Known())
    drawn = torch.zeros(41)
    observed = ours._sampler.used_ids.own
    for _ in range(150):
        found = epoch(ours)
        chosen = found["neg_item_id"] if model == "BPR" else found["item_id"]
        wanted = found["user_id"] == 7
        if model != "BPR":
            wanted &= found["label"] == 0
        drawn += torch.bincount(chosen[wanted], minlength=41)
    assert ours.model.training
    allowed = torch.ones(41)
    allowed[0] = 0
    allowed[observed.indices[observed.offsets[7] : observed.offsets[8]]] = 0
    place = allowed.cumsum(0).double()
    check(drawn.double(), torch.where(allowed > 0, place**3 - (place - 1) ** 3, 0.0))


def test_a_user_of_all_popular_items_is_one_line() -> None:
    weights = torch.zeros(ITEMS)
    weights[[1, 4]] = 1.0
    with pytest.raises(UserError, match=r"a user has interacted with all items that anyone has; set --train_neg_"):
        Negatives(ITEMS, OBSERVED, weights)


# Who draws fast


@pytest.mark.parametrize(
    ("model", "kind", "fast"),
    [
        ("BPR", ModelType.GENERAL, True),
        ("SASRec", ModelType.SEQUENTIAL, True),
        ("MultiVAE", ModelType.GENERAL, False),
        ("KGAT", ModelType.KNOWLEDGE, False),
    ],
)
def test_who_can_draw_fast(model: str, kind: ModelType, fast: bool) -> None:
    assert samples_fast(model, kind) is fast


@pytest.mark.parametrize("asked", [True, None])
def test_a_model_with_a_loader_of_its_own_keeps_it(
    asked: bool | None, known_answer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so where fast sampling was asked for, and only there."""
    given = known_answer_settings(known_answer, fast_sampling=asked, distill=[])
    config = KDConfig("MultiVAE", "known-answer", config_dict=given)
    loader = make_loaders(config, Splits(config), True)[0]
    assert not isinstance(loader, FastTrainDataLoader)
    told = [one.message for one in caplog.records if "fast_sampling" in one.message]
    assert told == (
        ["--fast_sampling=true: MultiVAE reads batches of its own kind, which RecBole's loader draws."] * bool(asked)
    )
