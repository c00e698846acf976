"""Held-out users: who is trained on, what is folded in, what is ranked, and what no training batch holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.parts import parts_of_users
from recbole_kd.data.splits import Splits
from recbole_kd.data.summary import table
from recbole_kd.errors import UserError
from recbole_kd.stages.data import load_splits
from tests.data.test_dataset import config_of, write

#: Interactions of each user of the shop, items in the order of the file.
ROWS = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 10, "f": 11, "g": 4, "h": 4}
Pairs = set[tuple[str, str]]


def shop(folder: Path) -> list[tuple[str, str]]:
    pairs = [(user, f"i{(2 * place + number) % 15}") for number, user in enumerate(ROWS) for place in range(ROWS[user])]
    pairs = [pair for pair, _ in sorted(zip(pairs, range(len(pairs))), key=lambda one: one[1] % 5)]  # users in turns
    users, items = zip(*pairs)
    write(folder, "shop", user_id=list(users), item_id=list(items))
    return pairs


def split(folder: Path, held_out: Any, model: str = "EASE", seed: int = 1, **settings: Any) -> Splits:
    given = {"data_path": str(folder), "split_seed": seed, "held_out_users": held_out, **settings}
    return load_splits(config_of(model, "shop", folder, **given))


def pairs_of(splits: Splits, part: Any) -> Pairs:
    users, items = (part.inter_feat[field].tolist() for field in ("user_id", "item_id"))
    return {(splits.user_tokens[user], splits.item_tokens[item]) for user, item in zip(users, items)}


def parts_of(splits: Splits) -> tuple[Pairs, Pairs, Pairs, Pairs]:
    """Training, validation and test pairs, and those that are folded in."""
    known, train = pairs_of(splits, splits.history), pairs_of(splits, splits.train)
    return train, pairs_of(splits, splits.valid), pairs_of(splits, splits.test), known - train


def test_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is mixed up, the first users with two rows are held out, and the first rows of each folded in."""
    rows = shop(tmp_path)
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    splits = split(tmp_path, [2, 0.25])
    order = [user for user in dict.fromkeys(user for user, _ in rows) if user != "a"]
    valid, test = order[:2], order[2:4]  # a quarter of 8
    folded = {"b": 1, "c": 2, "d": 4, "e": 8, "f": 9, "g": 3, "h": 3}  # 80 %, rounded up; one at least is left
    first = {
        (user, item)
        for user, item in rows
        if [own for own in rows if own[0] == user].index((user, item)) < folded.get(user, 0)
    }
    assert parts_of(splits) == (
        {pair for pair in rows if pair[0] not in (*valid, *test)},
        {pair for pair in rows if pair[0] in valid} - first,
        {pair for pair in rows if pair[0] in test} - first,
        {pair for pair in first if pair[0] in (*valid, *test)},
    )
    assert splits.asked_for == (True, True)


@pytest.mark.parametrize(("share", "left"), [(0.8, 2), (0.7, 3), (0.5, 5), (0.99, 1), (0.01, 9), (0.3, 7), (0.25, 7)])
def test_how_many_of_ten_are_ranked(tmp_path: Path, share: float, left: int) -> None:
    shop(tmp_path)
    splits = split(tmp_path, [3, 4], fold_in=share)
    _, valid, test, _ = parts_of(splits)
    assert Counter(user for user, _ in valid | test)["e"] == left


def test_a_share_is_exact(tmp_path: Path) -> None:
    """0.28 x 25 is 7, and a little more in float64."""
    config = config_of("EASE", "shop", tmp_path, held_out_users=[1, 0], fold_in=0.28)
    assert parts_of_users(config, torch.tensor([1] * 25 + [2])).bincount().tolist() == [1, 18, 0, 7]


@pytest.mark.parametrize("seed", range(4))
def test_users_are_drawn_by_the_seed_of_the_split(tmp_path: Path, seed: int) -> None:
    rows = shop(tmp_path)
    splits = split(tmp_path, [2, 3], seed=seed)
    train, valid, test, folded = parts = parts_of(splits)
    assert train | valid | test | folded == set(rows)
    assert sum(map(len, parts)) == len(rows)
    roles = [{user for user, _ in part} for part in parts]
    assert [len(users) for users in roles] == [3, 2, 3, 5]
    assert roles[3] == roles[1] | roles[2]
    assert not roles[0] & roles[3]
    assert "a" in roles[0], "with one row nothing can be folded in and ranked"
    assert parts_of(split(tmp_path, [2, 3], seed=seed)) == parts
    assert parts_of(split(tmp_path, [2, 3], seed=seed + 10)) != parts
    lines = table(splits).splitlines()
    for name, count in (
        ("rows to fold in", len(folded)),
        ("held out to validate", 2),
        ("held out to test", 3),
        ("pairs twice in training", 0),
    ):
        assert any(name in line and line.split()[-1] == str(count) for line in lines)
    assert splits.unknown["users"] == 0


@pytest.mark.parametrize(("held_out", "there"), [([0, 2], (False, True)), ([0.2, 0], (True, False))])
def test_either_may_be_left_out(tmp_path: Path, held_out: Any, there: tuple[bool, bool]) -> None:
    shop(tmp_path)
    splits = split(tmp_path, held_out)
    assert splits.asked_for == there
    assert tuple(loader is not None for loader in make_loaders(splits.dataset.config, splits)[1:]) == there
    whole = split(tmp_path, held_out, **{"eval_args.split": {"RS": [1, 0, 0]}})
    assert whole.asked_for == (False, False)
    assert len(whole.train) == sum(ROWS.values())
    assert whole.history is whole.train


def test_the_digest_tells_what_is_folded_in(tmp_path: Path) -> None:
    shop(tmp_path)
    one, other, without = (
        split(tmp_path, *given, **more) for given, more in (([[2, 2]], {}), ([[2, 2]], {"fold_in": 0.4}), ([None], {}))
    )
    assert pairs_of(one, one.train) == pairs_of(other, other.train), "the same users"
    assert len({splits.training_digest for splits in (one, other, without)}) == 3
    assert one.training_digest == split(tmp_path, [2, 2]).training_digest


@pytest.mark.parametrize("model", ["MultiVAEVariant", "RecVAE", "EASE", "Pop"])
@pytest.mark.parametrize("fast", [False, True])
def test_no_training_batch_holds_a_held_out_user(tmp_path: Path, model: str, fast: bool) -> None:
    shop(tmp_path)
    splits = split(tmp_path, [2, 2], model, train_batch_size=2)
    loader, *_ = make_loaders(splits.dataset.config, splits, fast)
    users = {splits.user_tokens[user] for batch in loader for user in batch["user_id"].tolist()}
    assert users == {user for user, _ in pairs_of(splits, splits.train)}


@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_evaluation_ranks_held_out_users_without_their_history(tmp_path: Path, mode: str) -> None:
    shop(tmp_path)
    splits = split(tmp_path, [2, 2], **{"eval_args.mode": mode})
    *_, folded = parts_of(splits)
    for loader, part in zip(make_loaders(splits.dataset.config, splits)[1:], (splits.valid, splits.test)):
        ranked = pairs_of(splits, part)
        users = {user for user, _ in ranked}
        if mode == "full":
            positive, masked = set(), set()
            for batch, (row, item), positive_row, positive_item in loader:
                names = [splits.user_tokens[user] for user in batch["user_id"].tolist()]
                masked |= {(names[at], splits.item_tokens[one]) for at, one in zip(row.tolist(), item.tolist())}
                pairs = zip(positive_row.tolist(), positive_item.tolist())
                positive |= {(names[at], splits.item_tokens[one]) for at, one in pairs}
            assert positive == ranked
            assert masked == {pair for pair in folded if pair[0] in users}
        else:
            candidates = {
                (splits.user_tokens[user], splits.item_tokens[item])
                for batch, *_ in loader
                for user, item in zip(batch["user_id"].tolist(), batch["item_id"].tolist())
            }
            assert ranked < candidates
            assert not candidates & folded
            assert {user for user, _ in candidates} == users


@pytest.mark.parametrize(
    ("held_out", "settings", "message"),
    [
        ([4, 4], {}, r"\[4, 4\] holds out 4 and 4 users, and shop has 8, 7 of them with two"),
        ([0.01, 2], {}, "holds out 0 and 2 users, .* expected one at least where any are asked for"),
        ([0, 0], {}, r"--held_out_users=\[0, 0\]; expected two shares of the users or two numbers"),
        *((wrong, {}, "expected two shares") for wrong in ([0.1], 0.1, [1.5, 1], [-1, 1], [True, 1], ["a", 1])),
        ([1, 1], {"fold_in": 1.0}, "--fold_in=1.0; expected a number above 0 and below 1"),
        ([1, 1], {"split_time": 3}, "--split_time=3 and --held_out_users=.* both say how the data is split; keep one"),
        ([1, 1], {"benchmark_filename": ["a", "b", "c"]}, "--benchmark_filename=.* and --held_out_users=.* both say"),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    tmp_path: Path, held_out: Any, settings: dict[str, Any], message: str
) -> None:
    shop(tmp_path)
    with pytest.raises(UserError, match=message):
        split(tmp_path, held_out, **settings)


def test_in_other_ids_the_history_is_the_same(tmp_path: Path) -> None:
    shop(tmp_path)
    splits = split(tmp_path, [2, 2])
    users, items = (["[PAD]", *reversed(tokens[1:])] for tokens in (splits.user_tokens, splits.item_tokens))
    other = splits.in_order_of(users, items)
    for ours, theirs in ((splits.train, other), (splits.history, other.history)):
        columns = (theirs.inter_feat[field].tolist() for field in ("user_id", "item_id"))
        assert pairs_of(splits, ours) == {(users[user], items[item]) for user, item in zip(*columns)}
