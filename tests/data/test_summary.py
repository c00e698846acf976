"""What is said of the data before a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.data.summary import table, warnings
from recbole_kd.errors import UserError
from tests.data.test_dataset import config_of, pairs_of_shop, shop, write


def numbers(splits: Splits) -> dict[str, int]:
    """The table's lines by name."""
    lines = (line.rsplit(maxsplit=1) for line in table(splits).splitlines())
    return {name.strip(): int(count.replace(",", "")) for name, count in lines}


def rated(folder: Path, model: str = "BPR", **settings: Any) -> Splits:
    users, items = zip(*pairs_of_shop())
    write(folder, "shop", user_id=list(users), item_id=list(items), rating=[1 + row % 5 for row in range(len(users))])
    given = {"load_col": {"inter": ["user_id", "item_id", "rating"]}, **settings}
    return Splits(config_of(model, "shop", folder, data_path=str(folder), **given))


def test_rows_read_dropped_and_left_add_up(tmp_path: Path) -> None:
    splits = rated(
        tmp_path, val_interval={"rating": "[2,inf)"}, user_inter_num_interval="[10,inf)", rm_dup_inter="last"
    )
    said = numbers(splits)
    dropped = [count for name, count in said.items() if name.startswith("dropped by")]
    assert said["rows read"] == 480
    assert said["dropped by --val_interval"] == 96
    assert said["rows to train"] + said["rows to validate"] + said["rows to test"] == 480 - sum(dropped)
    assert "dropped by --rm_dup_inter" not in said
    assert (said["users"], said["items"]) == (splits.dataset.user_num - 1, splits.dataset.item_num - 1)


def test_pairs_on_both_sides_of_the_split_are_counted(tmp_path: Path) -> None:
    splits = shop(tmp_path, pairs_of_shop() + pairs_of_shop()[::2])
    train = set(zip(*(side.tolist() for side in splits.pairs(splits.train))))
    held_out = [
        pair for split in (splits.valid, splits.test) for pair in zip(*(s.tolist() for s in splits.pairs(split)))
    ]
    across = sum(pair in train for pair in held_out)
    said = numbers(splits)
    assert said["pairs of validation and test also in training"] == across > 0
    assert said["pairs twice in training"] == len(splits.train) - len(train) > 0
    (warning,) = warnings(splits)
    assert warning.startswith(f"{across} pairs")
    assert "--rm_dup_inter=first" in warning
    assert not warnings(shop(tmp_path, pairs_of_shop() + pairs_of_shop()[::2], rm_dup_inter="first"))


def test_low_ratings_that_train_as_positives_are_counted(tmp_path: Path) -> None:
    (warning,) = warnings(rated(tmp_path, "LightGCN", threshold={"rating": 4}))
    assert warning.startswith("288 interactions have a rating below 4")
    assert "--val_interval=\"{rating: '[4,inf)'}\"" in warning
    splits = rated(tmp_path, "LightGCN", threshold={"rating": 4}, val_interval={"rating": "[4,inf)"})
    assert not warnings(splits)
    assert numbers(splits)["dropped by --val_interval"] == 288


@pytest.mark.parametrize("named", [{"threshold": {"rating": 4}}, {"val_interval": {"rating": "[4,inf)"}}])
def test_a_column_that_a_setting_names_is_read_unasked(tmp_path: Path, named: dict[str, Any]) -> None:
    asked, unasked = rated(tmp_path, **named), rated(tmp_path, load_col={"inter": ["user_id", "item_id"]}, **named)
    assert unasked.dataset.field2type == asked.dataset.field2type
    assert len(unasked.train) == len(asked.train)


def test_a_pairwise_model_without_negatives_is_refused(tmp_path: Path) -> None:
    splits = rated(tmp_path, "LightGCN", threshold={"rating": 4}, train_neg_sample_args=None)
    with pytest.raises(UserError, match="--train_neg_sample_args draws none"):
        make_loaders(splits.dataset.config, splits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "four", True, None])
def test_a_threshold_is_a_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match="--threshold.rating=.*; expected a number"):
        rated(tmp_path, threshold={"rating": value})


def test_a_threshold_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--threshold names 'item_id'; expected a column of numbers"):
        rated(tmp_path, threshold={"item_id": 3})


def test_users_and_items_that_training_lacks_are_counted(tmp_path: Path) -> None:
    for part, pairs in (
        ("train", pairs_of_shop()),
        ("valid", [("u0", "i1"), ("new", "i2")]),
        ("test", [("u1", "fresh")]),
    ):
        users, items = zip(*pairs)
        write(tmp_path, "shop", f"{part}.inter", user_id=list(users), item_id=list(items))
    files = {"benchmark_filename": ["train", "valid", "test"]}
    splits = Splits(config_of("BPR", "shop", tmp_path, data_path=str(tmp_path), **files))
    said = numbers(splits)
    assert said["rows read"] == 483
    assert said["users of validation and test unknown to training"] == 1
    assert said["items of validation and test unknown to training"] == 1
    assert warnings(splits)[0].startswith("1 users of the validation and test splits have no training interaction")
