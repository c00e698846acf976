"""Recommendations: what the evaluator ranks, in original ids, for whoever is asked for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_kd.cli import main
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.stages.saved import load_trained
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.trainer.kd_trainer import make_evaluator
from recbole_kd.verbs import recommender
from recbole_kd.verbs.recommend import FORMATS, ids_in, read_ids
from recbole_kd.verbs.recommender import Recommendation, Recommender, rank_items
from recbole_kd.verbs.train import run_recbole_kd


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """User u likes the items i with i % 4 == u % 4: 8 of 10 in training, 1 in validation, 1 in test."""
    return write_known_answer(tmp_path_factory.mktemp("data"))


def test_a_users_first_item_is_not_recommended_again(tmp_path: Path) -> None:
    """Also if the user's first row, which has that item as its history, is one of validation."""
    rows = [(f"u{user}", f"i{(user + step) % 12}", 100 + step) for user in range(30) for step in range(8)]
    rows += [(f"u{user}", f"i{(user + 8) % 12}", 250) for user in range(30)]
    rows += [(f"u{user}", f"i{(user + 9) % 12}", 350) for user in range(30)]
    rows += [("late", "i0", 150), ("late", "i1", 210), ("late", "i2", 220), ("late", "i3", 320)]
    rows += [("later", "i5", 201), ("later", "i6", 202), ("later", "i7", 301)]
    (tmp_path / "shop").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (tmp_path / "shop" / "shop.inter").write_text("\n".join(lines) + "\n")
    split = {"order": "TO", "group_by": "user", "split": {"LS": "valid_and_test"}, "mode": "full"}
    given = known_sequences_settings(tmp_path, epochs=1, split_time=[200, 300], eval_args=split, hidden_size=8)
    given |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "inner_size": 8}
    checkpoint = run_recbole_kd("SASRec", "shop", config_dict=given)["checkpoint"]
    for seen, had in (("train+valid", {"late": [0, 1, 2], "later": [5, 6]}), ("all", {"late": [0, 1, 2, 3]})):
        found = Recommender(checkpoint, seen, {"data_path": str(tmp_path), "use_gpu": False})
        for user, items in had.items():
            (one,) = found.recommend([user], k=12, exclude_seen=True)
            assert {f"i{item}" for item in items}.isdisjoint(one.items)
            assert len(one.items) == 12 - len(items)
    found = Recommender(checkpoint, "train", {"data_path": str(tmp_path), "use_gpu": False})
    assert [one.items for one in found.recommend(["later"], k=12)] == [[]], "nothing follows what is not known"


def test_an_older_checkpoint_that_ranked_seen_items_does_not_recommend_them(tmp_path: Path) -> None:
    data = write_known_sequences(tmp_path / "data")
    given = known_sequences_settings(data, baseline=None, epochs=1, hidden_size=8, inner_size=8, repeatable=True)
    checkpoint = run_recbole_kd("SASRec", "known-sequences", config_dict=given)["checkpoint"]
    assert not Recommender(checkpoint, config_dict={"data_path": str(data)}).exclude_seen
    state = load_checkpoint(checkpoint)
    assert "repeatable" in state["data_settings"]
    kept = [name for name in state["data_settings"] if name != "repeatable"]
    save_checkpoint({**state, "data_settings": kept}, tmp_path / "older.pth")
    assert Recommender(str(tmp_path / "older.pth"), config_dict={"data_path": str(data)}).exclude_seen
    asked = {"data_path": str(data), "repeatable": True}
    assert not Recommender(str(tmp_path / "older.pth"), config_dict=asked).exclude_seen, "who asks for them gets them"


@pytest.fixture(scope="module")
def ease(data: Path) -> str:
    """The checkpoint of a model that needs one pass to know the answer."""
    return _trained("EASE", data)


def _trained(model: str, data: Path, **settings: Any) -> str:
    result = run_recbole_kd(model, "known-answer", config_dict=known_answer_settings(data, baseline=None, **settings))
    return str(result["checkpoint"])


def _pairs(data: Path, *splits: str) -> set[tuple[str, str]]:
    """The interactions of these splits, read from their files."""
    files = [data / "known-answer" / f"known-answer.{split}.inter" for split in splits]
    return {tuple(line.split("\t")) for file in files for line in file.read_text().splitlines()[1:]}  # type: ignore[misc]


# What is recommended


def test_the_items_that_a_user_likes_and_has_not_seen_come_first(ease: str, data: Path) -> None:
    for user, items, scores in Recommender(ease, config_dict={"data_path": str(data)}).recommend(k=2):
        assert set(items) == {item for owner, item in _pairs(data, "valid", "test") if owner == user}
        assert scores == sorted(scores, reverse=True)


def _evaluated(checkpoint: str, settings: dict[str, Any]) -> dict[str, list[str]]:
    """User -> the first 10 items in the evaluator's ranking of the test split."""
    trained, splits = load_trained(checkpoint, {**settings, "metrics": ["NDCG", "ItemCoverage"], "topk": [10]})
    trainer, (_, _, test) = make_evaluator(trained.config, trained.model, splits)
    trainer.evaluate(test, load_best_model=False)
    collected = trainer.eval_collector._collected
    rankings = zip(collected.get("rec.users").tolist(), collected.get("rec.items").tolist())
    return {splits.user_tokens[user]: [splits.item_tokens[item] for item in items] for user, items in rankings}


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SimRecStudent", "NeuMF", "EASE", "ItemKNN", "Pop", "MultiVAE"])
def test_every_kind_of_model_recommends_what_the_evaluator_ranks(model: str, data: Path) -> None:
    settings = {"teacher.epochs": 1, "simrec.triplets": 50} if model == "SimRecStudent" else {}
    checkpoint = _trained(model, data, **settings)
    given = {"data_path": str(data), "valid_metric": "NDCG@10"}
    recommender = Recommender(checkpoint, seen="train+valid", config_dict=given)
    ours = {user: items for user, items, _ in recommender.recommend(k=10)}
    assert ours == _evaluated(checkpoint, given)


def test_a_sequential_model_says_what_comes_next(tmp_path: Path) -> None:
    """After item i comes i + 1, and the evaluator's histories in the test split are those up to validation."""
    settings = known_sequences_settings(
        write_known_sequences(tmp_path), epochs=30, learning_rate=0.02, loss_type="CE", train_neg_sample_args=None
    )
    checkpoint = run_recbole_kd("GRU4Rec", "known-sequences", config_dict=settings)["checkpoint"]
    given = {"data_path": str(tmp_path)}
    for seen, held_out in (("train", 2), ("train+valid", 1), ("all", 0)):
        recommender = Recommender(checkpoint, seen, given)
        for user, items, _ in recommender.recommend(k=1):
            number = int(user[1:])
            taken = 6 + number % 4 - held_out
            assert items == [f"i{(number + taken) % 24}"], (seen, user)
    for way in ({}, {"repeatable": True}):
        ranked = Recommender(checkpoint, "train+valid", {**given, **way}).recommend(k=10)
        assert {user: items for user, items, _ in ranked} == _evaluated(checkpoint, {**given, **way})
    repeatable = Recommender(checkpoint, "train+valid", given).recommend(k=10, exclude_seen=False)
    assert {user: items for user, items, _ in repeatable} == _evaluated(checkpoint, {**given, "repeatable": True})


@pytest.mark.parametrize(
    ("seen", "splits"),
    [("train", ["train"]), ("train+valid", ["train", "valid"]), ("all", ["train", "valid", "test"])],
)
def test_what_was_seen_is_left_out_and_nothing_else(seen: str, splits: list[str], ease: str, data: Path) -> None:
    """Asked for the whole catalogue, a user gets all that is left of it: fewer than were asked for."""
    recommender = Recommender(ease, seen, {"data_path": str(data)})
    recommended = {(user, item) for user, items, _ in recommender.recommend(k=40) for item in items}
    everything = {(f"u{user}", f"i{item}") for user in range(48) for item in range(40)}
    assert recommended == everything - _pairs(data, *splits)
    again = {(user, item) for user, items, _ in recommender.recommend(k=40, exclude_seen=False) for item in items}
    assert again == everything


# For somebody who is not in the data


def test_a_history_is_answered_by_what_those_like_whose_history_it_is(data: Path) -> None:
    path = _trained("BPR", data, epochs=40, learning_rate=0.02)
    recommender = Recommender(path, config_dict={"data_path": str(data)})
    found = recommender.recommend_after(["i1", "i5", "i9", "i13"], k=6)
    assert found.user == "new"
    assert {int(item[1:]) % 4 for item in found.items} == {1}
    assert not {"i1", "i5", "i9", "i13"} & set(found.items)
    assert found.scores == sorted(found.scores, reverse=True)
    again = recommender.recommend_after(["i1", "i5", "i9", "i13"], k=10, exclude_seen=False)
    assert {"i1", "i5", "i9", "i13"} <= set(again.items)


def test_a_sequential_model_reads_the_history_as_a_users_sequence(tmp_path: Path) -> None:
    """The same items as a user's give the same list; a longer one counts from its end."""
    data = write_known_sequences(tmp_path)
    settings = known_sequences_settings(data, epochs=2)
    result = run_recbole_kd("GRU4Rec", "known-sequences", config_dict=settings)
    recommender = Recommender(str(result["checkpoint"]), "train", {"data_path": str(data)})
    user = next(iter(recommender.users))
    items, lengths = (part[recommender.users[user]] for part in recommender.sequences)
    assert lengths < len(items), "shorter than what the model reads"
    history = [recommender.items[item] for item in items[:lengths]]
    (theirs,) = recommender.recommend([user], k=5, exclude_seen=False)
    found = recommender.recommend_after(history, k=5, exclude_seen=False)
    assert (found.items, found.scores) == (theirs.items, pytest.approx(theirs.scores, abs=1e-6))
    longer = [*[history[0]] * len(items), *history]
    cut = recommender.recommend_after(longer[-len(items) :], k=5, exclude_seen=False)
    assert recommender.recommend_after(longer, k=5, exclude_seen=False) == cut


@pytest.mark.parametrize("model", ["MultiVAE", "MultiDAEVariant", "DiffRec", "EASE", "ItemKNN", "SLIMElastic", "Pop"])
def test_a_model_that_ranks_by_a_users_items_reads_the_history_as_a_users_row(model: str, data: Path) -> None:
    """The same items as a user's give the same list, and the user's own list is as before."""
    recommender = Recommender(_trained(model, data, epochs=2), config_dict={"data_path": str(data)})
    user = next(iter(recommender.users))
    had = recommender.seen.indices[recommender.seen.user_ids == recommender.users[user]]
    (theirs,) = recommender.recommend([user], k=5)
    found = recommender.recommend_after([recommender.items[item] for item in had], k=5)
    assert found.scores == pytest.approx(theirs.scores, rel=1e-4, abs=1e-6)
    assert list(recommender.recommend([user], k=5)) == [theirs]
    other = recommender.recommend_after([recommender.items[item] for item in had[:2]], k=5)
    assert (other.scores == found.scores) == (model == "Pop")


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        ([], 1, "The history is empty; give at least one item"),
        (["i1", "other"], 1, "Item 'other' is not in known-answer; leave it out"),
        (["[PAD]"], 1, r"Item '\[PAD\]' is not in known-answer"),
        (["i1"], 41, "--k=41 exceeds the catalogue of 40 items"),
        (["i1"], 0, "--k=0; expected a whole number of at least 1"),
    ],
)
def test_a_history_that_cannot_be_answered(history: list[str], k: int, message: str, ease: str, data: Path) -> None:
    with pytest.raises(UserError, match=message):
        Recommender(ease, config_dict={"data_path": str(data)}).recommend_after(history, k)


def test_a_model_that_needs_the_user_reads_no_history(data: Path) -> None:
    recommender = Recommender(_trained("NeuMF", data, epochs=1), config_dict={"data_path": str(data)})
    with pytest.raises(UserError, match="NeuMF cannot recommend for a user who is not in the data"):
        recommender.recommend_after(["i1"])


def test_a_history_is_asked_for_by_the_verb(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _trained("BPR", data)
    assert main(_command(path, data, users=None, history="i1,other,i5", format="jsonl")) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["user_id"] == "new"
    assert len(found["items"]) == 2
    assert "item 'other' is not in known-answer: skipped" in captured.err


def test_users_come_in_the_order_asked_for(ease: str, data: Path) -> None:
    recommender = Recommender(ease, config_dict={"data_path": str(data)})
    everyone = {one.user: one for one in recommender.recommend(k=3)}
    asked = ["u40", "u3", "u17"]
    assert list(recommender.recommend(asked, k=3)) == [everyone[user] for user in asked]
    with pytest.raises(UserError, match="User 'u99' is not in known-answer"):
        recommender.recommend(["u3", "u99"])


def test_what_counts_as_seen_is_one_of_three(ease: str, data: Path) -> None:
    with pytest.raises(UserError, match="--seen='valid' is not one of train, train"):
        Recommender(ease, "valid", {"data_path": str(data)})


def test_ids_are_a_list_and_may_be_numbers(tmp_path: Path) -> None:
    """A text would be read letter by letter: user 196 as users 1, 9 and 6."""
    config = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "use_gpu": False, "baseline": "none"}
    rows = "".join(f"{user}\t{user % 7 + step}\n" for user in range(30) for step in range(6))
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "numbers.inter").write_text("user_id:token\titem_id:token\n" + rows)
    given = {**config, "load_col": {"inter": ["user_id", "item_id"]}, "topk": [1], "valid_metric": "NDCG@1"}
    checkpoint = run_recbole_kd("EASE", "numbers", config_dict=given)["checkpoint"]
    numbers = Recommender(checkpoint, config_dict={"data_path": str(tmp_path), "use_gpu": False})
    assert list(numbers.recommend([12], k=1)) == list(numbers.recommend(["12"], k=1))
    assert numbers.recommend_after([3, 4], k=1) == numbers.recommend_after(["3", "4"], k=1)  # type: ignore[list-item]
    pairs = pd.DataFrame({"user_id": [12, 3], "item_id": [5, 4]})
    assert numbers.score(pairs).tolist() == numbers.score(pairs.astype(str)).tolist()
    assert list(numbers.recommend([], k=3)) == []
    assert numbers.score(pairs[:0]).shape == (0,)
    with pytest.raises(UserError, match=r"users is the text '12'; expected a list of ids, such as \['12'\]"):
        numbers.recommend("12", k=1)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_of_users_give_what_one_sort_of_a_row_gives(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a slow ranking, one user after another."""
    generator = torch.Generator().manual_seed(rows)
    users, items, k = 8, 50, 4
    table = torch.randn(users, items, generator=generator, dtype=torch.float64)
    had = torch.rand(users, items, generator=generator) < 0.3
    had[5, 3:] = True  # all but two items
    seen = Observed(*had.nonzero().T, users, items)
    monkeypatch.setattr(recommender, "sized_eval_batch", lambda columns: rows * columns)
    asked = torch.tensor([7, 5, 1, 2, 6])
    blocks = list(rank_items(lambda block: table[block], seen, asked, k))
    assert [len(part) for part, _ in blocks] == ([1] * 5 if rows == 1 else [3, 2] if rows == 3 else [5])
    ranked, best = (torch.cat(part) for part in zip(*blocks))
    for row, user in enumerate(asked.tolist()):
        left = [item for item in range(1, items) if not had[user, item]]
        expected = sorted(left, key=lambda item: -float(table[user, item]))[:k]
        kept = best[row] > -torch.inf
        assert ranked[row][kept].tolist() == expected
        assert best[row][kept].tolist() == [float(table[user, item]) for item in expected]


def test_the_bar_counts_users(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    users = torch.tensor([1, 2, 3])
    list(rank_items(lambda block: torch.rand(len(block), 5), Observed(nothing, nothing, 4, 5), users, 2, True))
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float, ease: str, data: Path) -> None:
    recommender = Recommender(ease, config_dict={"data_path": str(data)})
    recommender.score_block = lambda users: torch.full((len(users), 41), value)
    with pytest.raises(UserError, match="scores that are not finite"):
        list(recommender.recommend())


def test_scores_are_the_shortest_numbers_that_say_them(ease: str, data: Path) -> None:
    """Of float32; 0.10000000149 would say no more than 0.1."""
    recommender = Recommender(ease, config_dict={"data_path": str(data)})
    recommender.score_block = lambda users: torch.full((len(users), 41), 0.1)
    (one,) = recommender.recommend(["u1"], k=2)
    assert one.scores == [0.1, 0.1]


# Vectors, and scores of pairs


def test_pairs_are_scored_as_in_the_ranking(ease: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the table, and in blocks of two users."""
    monkeypatch.setattr("recbole_kd.verbs.recommender.sized_eval_batch", lambda items: 2 * items)
    known = Recommender(ease, config_dict={"data_path": str(data)})
    users, items = ["u9", "u3", "u40", "u3", "u7", "u1"], ["i1", "i3", "i0", "i7", "i2", "i39"]
    ranked = known.recommend(list(dict.fromkeys(users)), k=40, exclude_seen=False)
    scores = {(one.user, item): score for one in ranked for item, score in zip(one.items, one.scores)}
    found = known.score(pd.DataFrame({"item_id": items, "user_id": users, "note": "other columns do not matter"}))
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([scores[pair] for pair in zip(users, items)])
    assert len(set(found.tolist())) > 3


def test_pairs_that_cannot_be_scored_are_named(ease: str, data: Path) -> None:
    known = Recommender(ease, config_dict={"data_path": str(data)})
    with pytest.raises(UserError, match="The table has no column 'item_id'; expected user_id and item_id"):
        known.score(pd.DataFrame({"user_id": ["u1"], "item": ["i1"]}))
    for users, items, message in (
        (["u1", "i2"], ["i1", "i1"], "Row 1 has user_id 'i2', which is not in known-answer"),
        (["u1", "u2"], ["i1", "[PAD]"], r"Row 1 has item_id '\[PAD\]', which is not in known-answer"),
    ):
        with pytest.raises(UserError, match=message):
            known.score(pd.DataFrame({"user_id": users, "item_id": items}, index=["a", "b"]))


def test_the_products_of_vectors_are_the_scores(data: Path, ease: str) -> None:
    known = Recommender(_trained("BPR", data, epochs=1), config_dict={"data_path": str(data)})
    users, items = known.vectors()
    pairs = pd.DataFrame({"user_id": ["u5", "u30"], "item_id": ["i11", "i2"]})
    products = [users[known.users[user]] @ items[known.items.index(item)] for user, item in zip(*map(pairs.get, pairs))]
    assert known.score(pairs).tolist() == pytest.approx(products, abs=1e-6)
    with pytest.raises(UserError, match="EASE has no vector for each user and item; ask for its scores"):
        Recommender(ease, config_dict={"data_path": str(data)}).vectors()


# How it is written


AWKWARD = [Recommendation('a "b", c', ["1,5", "é"], [0.1, -2.5e-9]), Recommendation("nobody", [], [])]


def test_csv_has_a_line_for_each_item() -> None:
    text = "".join(FORMATS["csv"](AWKWARD))
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"user_id": 'a "b", c', "rank": "1", "item_id": "1,5", "score": "0.1"},
        {"user_id": 'a "b", c', "rank": "2", "item_id": "é", "score": "-2.5e-09"},
    ]


def test_json_has_a_line_for_each_user() -> None:
    lines = "".join(FORMATS["jsonl"](AWKWARD)).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"user_id": 'a "b", c', "items": ["1,5", "é"], "scores": [0.1, -2.5e-9]},
        {"user_id": "nobody", "items": [], "scores": []},
    ]


def _command(ease: str, data: Path, **settings: Any) -> list[str]:
    given = {"checkpoint": ease, "data_path": data, "users": "u1", "k": 2, **settings}
    return ["recommend", *(f"--{key}={value}" for key, value in given.items() if value is not None)]


def test_the_verb_writes_to_the_standard_output_or_to_a_file(
    ease: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(ease, data, users="u2,u1", format="jsonl")) == 0
    printed = capsys.readouterr().out
    assert [json.loads(line)["user_id"] for line in printed.splitlines()] == ["u2", "u1"]
    assert main(_command(ease, data, users="u2,u1", format="jsonl", output=tmp_path / "lists" / "x.jsonl")) == 0
    assert (tmp_path / "lists" / "x.jsonl").read_text() == printed
    assert capsys.readouterr().out == ""


def test_everyone_is_asked_for_by_all(ease: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_command(ease, data, users="all")) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 48 * 2
    assert {row["user_id"] for row in rows} == {f"u{user}" for user in range(48)}


def test_unknown_users_are_listed_and_the_others_served(
    ease: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(ease, data, users="u98,u1,[PAD],u99", format="jsonl")) == 0
    output, errors = capsys.readouterr()
    assert [json.loads(line)["user_id"] for line in output.splitlines()] == ["u1"]
    for user in ("u98", "[PAD]", "u99"):
        assert f"recbole-kd: user '{user}' is not in known-answer: skipped" in errors


def test_a_file_is_whole_or_as_it_was(
    ease: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield torch.tensor([[1, 2]]), torch.tensor([[1.0, 0.5]])
        raise KeyboardInterrupt

    file = tmp_path / "lists.csv"
    file.write_text("what was there")
    monkeypatch.setattr(recommender, "rank_items", interrupted)
    assert main(_command(ease, data, users="all", output=file)) == 130
    assert file.read_text() == "what was there"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["lists.csv"]


@pytest.mark.parametrize("k", [0, -1])
def test_a_list_has_at_least_one_item(ease: str, data: Path, k: int) -> None:
    recommender = Recommender(ease, config_dict={"data_path": str(data)})
    with pytest.raises(UserError, match=f"--k={k}; expected a whole number of at least 1"):
        next(recommender.recommend(k=k))


# Who is asked for


def test_users_are_read_from_the_line_a_file_or_the_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(text: str, *known: str) -> list[str]:
        return ids_in(read_ids("users", text, "user"), known, commas=not text.startswith("@"))

    assert named("7, 007,x y,7,") == ["7", "007", "x y", "7"]
    (tmp_path / "users.txt").write_bytes("\ufeff7\r\n\n a,b \n7\n".encode())
    assert named(f"@{tmp_path / 'users.txt'}") == ["7", "a,b", "7"]
    assert named(f"@{tmp_path / 'users.txt'}", " a,b ") == ["7", " a,b ", "7"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff9\n10\n"))
    assert named("@-") == ["9", "10"]
    strange = ["a\u2028b", "p\x0bq", "u\x85v", "w\xa0"]
    (tmp_path / "strange.txt").write_text("\n".join(strange))
    assert named(f"@{tmp_path / 'strange.txt'}", *strange) == strange


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({"checkpoint": None}, "set --checkpoint=FILE"),
    "no users": ({"users": None}, "set --users=ID,ID,..., such as --users=196,186, --users=@FILE or --users=all"),
    "missing checkpoint": ({"checkpoint": "none.pth"}, "There is no checkpoint 'none.pth'"),
    "empty users": ({"users": ","}, "--users=, names no user"),
    "missing file": ({"users": "@none.txt"}, "Cannot read 'none.txt' (No such file or directory)"),
    "unknown users": (
        {"users": "7,8"},
        "None of the users is in known-answer; --users takes its original ids, such as u",
    ),
    "a file without @": ({"users": __file__}, f"'{__file__}' is a file; --users=@{__file__} reads its lines"),
    "a file of a history": ({"users": None, "history": __file__}, f"--history=@{__file__} reads its lines"),
    "users and a history": ({"history": "i1"}, "--users and --history cannot be used together; keep one"),
    "a history that nobody knows": (
        {"users": None, "history": "x,y"},
        "None of the items is in known-answer; --history takes its original ids, such as i",
    ),
    "an empty history": ({"users": None, "history": ","}, "--history=, names no item"),
    "k 0": ({"k": 0}, "--k=0; expected a whole number of at least 1"),
    "k of another kind": ({"k": "many"}, "--k='many'; expected a whole number"),
    "k above the catalogue": ({"k": 41}, "--k=41 exceeds the catalogue of 40 items of known-answer"),
    "format": ({"format": "json"}, "--format='json' is not one of csv, jsonl. Did you mean 'jsonl'?"),
    "seen": ({"seen": "valid"}, "--seen='valid' is not one of train, train+valid, all."),
    "exclude_seen": ({"exclude_seen": "test"}, "--exclude_seen='test' is not true or false"),
    "another dataset": ({"dataset": "ml-100k"}, "was trained on known-answer, not on --dataset=ml-100k"),
    "key": ({"formt": "csv"}, "Unknown setting 'formt'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_2(
    case: str, ease: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, message = BAD[case]
    output = tmp_path / "lists.csv"
    assert main(_command(ease, data, output=output, **settings)) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("recbole-kd: ")
    assert message in line
    assert not output.exists()


def test_an_output_that_cannot_be_written(
    ease: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(ease, data, output=tmp_path)) == 2
    assert "choose another place with --output" in capsys.readouterr().err


def test_a_checkpoint_of_another_split_is_refused(tmp_path: Path) -> None:
    data = write_known_answer(tmp_path / "moved")
    checkpoint = _trained("Pop", data)
    train = data / "known-answer" / "known-answer.train.inter"
    train.write_text("\n".join(train.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="trained on another split"):
        Recommender(checkpoint, config_dict={"data_path": str(data)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        ("a, b ,a", ["a", "b", "a"]),
        ("Ann, jr,b", ["Ann, jr", "b"]),
        ("x,Ann, jr", ["x", "Ann, jr"]),
        ("Ann,jr", ["Ann", "jr"]),
        ("one, two, three,Ann, jr", ["one, two, three", "Ann, jr"]),
    ],
)
def test_a_comma_inside_a_known_id_separates_nothing(text: str, expected: list[str]) -> None:
    assert ids_in([text], {"a", "b", "Ann, jr", "one, two, three"}, commas=True) == expected
