"""Which interaction is in which split: by ratio, by each user's last ones, by time, by files, or all in training."""

from __future__ import annotations

import os
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits, interactions_of
from recbole_kd.errors import UserError
from recbole_kd.files.digest import digest
from tests.data.test_dataset import config_of, pairs_of_shop, write

PARTS = ("train", "valid", "test")
DAY = 86_400
FIRST = int(datetime(2025, 1, 1, tzinfo=timezone.utc).timestamp())
SEQUENTIAL = {
    "train_neg_sample_args": None,
    "load_col": {"inter": "*"},
    "eval_args": {"order": "TO", "split": {"LS": "valid_and_test"}},
}


def timed_shop(folder: Path, times: list[Any]) -> list[tuple[str, str]]:
    """The shop, each row at its time; the rows are returned."""
    users, items = zip(*pairs_of_shop())
    write(folder, "shop", user_id=list(users), item_id=list(items), timestamp=times)
    path = folder / "shop" / "shop.inter"
    path.write_text(path.read_text().replace("timestamp:token", "timestamp:float"))
    return list(zip(users, items))


def split(folder: Path, model: str = "BPR", **settings: Any) -> Splits:
    return Splits(config_of(model, "shop", folder, data_path=str(folder), **settings))


def pairs(splits: Splits) -> dict[str, set[tuple[str, str]]]:
    """The pairs of each split in original ids; of sequences, each row's next item."""
    found = {}
    for name in PARTS:
        rows = getattr(splits, name).inter_feat
        users, items = rows["user_id"].tolist(), rows["item_id"].tolist()
        found[name] = {(splits.user_tokens[user], splits.item_tokens[item]) for user, item in zip(users, items)}
    return found


# What a kept result is found by


def test_what_is_learned_beside_ids_is_content_too(tmp_path: Path) -> None:
    """Labels teach pointwise models; SEvo's graphs read times and categories. The order of a loader's rows is none."""

    def contents(rating: int = 5, day: int = 0, genre: str = "drama") -> tuple[str, str]:
        times = [FIRST + DAY * (row % 12) + (DAY * day if row == 7 else 0) for row in range(480)]
        timed_shop(tmp_path, times)
        path = tmp_path / "shop" / "shop.inter"
        head, *lines = path.read_text().splitlines()
        rows = [f"{line}\t{rating if place == 3 else 5}" for place, line in enumerate(lines)]
        path.write_text("\n".join([f"{head}\trating:float", *rows, ""]))
        items = sorted({item for _, item in pairs_of_shop()})
        genres = [f"{item}\t{genre if item == items[0] else 'drama'}" for item in items]
        (tmp_path / "shop" / "shop.item").write_text("\n".join(["item_id:token\tgenre:token", *genres, ""]))
        columns = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "genre"]}
        torch.manual_seed(1)
        splits = split(tmp_path, "NeuMF", load_col=columns, threshold={"rating": 4})
        found = [digest(splits.content()), digest(splits.columns())]
        make_loaders(splits.dataset.config, splits)  # which order their rows
        assert [digest(splits.content()), digest(splits.columns())] == found
        return found[0], found[1]

    usual, label, time, category = contents(), contents(rating=1), contents(day=-2), contents(genre="comedy")
    assert label[0] != usual[0]
    assert (time[0], category[0]) == (usual[0], usual[0])
    assert len({usual[1], time[1], category[1]}) == 3


def test_a_label_belongs_to_its_pair(tmp_path: Path) -> None:
    """Two users exchange their labels: as many are 0 as before."""
    contents = set()
    for low in (3, 40):
        rows = timed_shop(tmp_path, [FIRST + DAY * (row % 12) for row in range(480)])
        users, items = zip(*rows)
        ratings = [1 if row == low else 5 for row in range(480)]
        write(tmp_path, "shop", user_id=list(users), item_id=list(items), rating=ratings)
        torch.manual_seed(1)
        columns = {"inter": ["user_id", "item_id", "rating"]}
        splits = split(tmp_path, "NeuMF", load_col=columns, threshold={"rating": 4})
        assert int((splits.train.inter_feat["label"] == 0).sum()) == 1
        contents.add(digest(splits.content()))
    assert len(contents) == 2


def test_the_validation_split_is_content_and_the_test_split_is_not(tmp_path: Path) -> None:
    """A teacher's epoch is chosen on validation, and nothing of it on test."""

    def content(part: str = "") -> str:
        files = files_of_shop(tmp_path)
        if part:  # two users exchange an item
            (one, first), *others, (other, last) = files[part]
            users, items = zip((one, last), *others, (other, first))
            write(tmp_path, "shop", f"{part}.inter", user_id=list(users), item_id=list(items))
        settings = {"benchmark_filename": list(PARTS), "load_col": {"inter": ["user_id", "item_id"]}}
        return digest(split(tmp_path, **settings).content())

    usual = content()
    assert content("test") == usual
    assert content("valid") != usual
    assert content("train") != usual


def test_the_order_of_a_sequence_is_content(tmp_path: Path) -> None:
    """Two items in the middle of a user's training sequence change places; the pairs stay."""
    days = [row % 12 for row in range(480)]
    timed_shop(tmp_path, [FIRST + DAY * day for day in days])
    usual = split(tmp_path, "SASRec", **SEQUENTIAL)
    days[3], days[4] = days[4], days[3]
    timed_shop(tmp_path, [FIRST + DAY * day for day in days])
    other = split(tmp_path, "SASRec", **SEQUENTIAL)
    assert pairs(other) == pairs(usual)
    assert digest(other.content()) != digest(usual.content())
    assert other.training_digest != usual.training_digest


@pytest.mark.parametrize("longest", [3, 12, 50])
def test_the_latest_items_are_kept_where_there_is_no_room_for_all(tmp_path: Path, longest: int) -> None:
    timed_shop(tmp_path, [FIRST + DAY * (row % 12) for row in range(480)])
    splits = split(tmp_path, "SASRec", MAX_ITEM_LIST_LENGTH=longest, **SEQUENTIAL)
    own = [item for user, item in pairs_of_shop() if user == "u0"]
    user = splits.user_tokens.index("u0")
    for parts, happened in (([splits.train], 10), ([splits.train, splits.valid, splits.test], 12)):
        items, lengths = splits.sequences_after(parts)
        assert lengths[user] == min(happened, longest)
        found = [splits.item_tokens[item] for item in items[user, : lengths[user]]]
        assert found == own[max(0, happened - longest) : happened]


def test_other_columns_of_the_test_split_are_told_too(tmp_path: Path) -> None:
    """Labels of the test split decide metrics, though nothing that is learned."""
    given = {"benchmark_filename": list(PARTS), "load_col": {"inter": "*"}}
    files_of_shop(tmp_path)
    usual = split(tmp_path, **given)
    path = tmp_path / "shop" / "shop.test.inter"
    path.write_text(path.read_text().replace("\t10\t", "\t1\t"))  # the ratings of the users' items 10
    other = split(tmp_path, **given)
    assert digest(other.content()) == digest(usual.content())
    assert digest(other.columns()) != digest(usual.columns())


def test_ids_alone_have_no_other_columns(tmp_path: Path) -> None:
    users, items = zip(*pairs_of_shop())
    write(tmp_path, "shop", user_id=list(users), item_id=list(items))
    assert split(tmp_path).columns() == []


@pytest.mark.parametrize("longest", [1, 2, 50])
def test_histories_of_one_item_name_each_interaction_once(tmp_path: Path, longest: int) -> None:
    """A user's first item is in the history of the second row alone, however few items a history keeps."""
    rows = timed_shop(tmp_path, [FIRST + DAY * (row % 12) for row in range(480)])
    splits = split(tmp_path, "SASRec", MAX_ITEM_LIST_LENGTH=longest, **SEQUENTIAL)
    assert (splits.repeated, splits.repeatable) == (0, False)
    assert len(interactions_of(splits.train)[0]) == len(splits.observed) == len(rows) - 2 * 40
    assert splits.training_digest == split(tmp_path, "SASRec", **SEQUENTIAL).training_digest


# In time


@pytest.mark.parametrize(
    ("unit", "bounds"),
    [
        (1, ["2025-01-11", "2025-01-13"]),
        (1, ["2025-01-11 00:00:00", "2025-01-13T00:00:00"]),
        (1000, ["2025-01-11T01:00:00+01:00", "2025-01-13"]),
        (10**6, ["2025-01-11", "2025-01-13"]),
        (10**9, ["2025-01-11", "2025-01-13"]),
        (1, [FIRST + 10 * DAY, FIRST + 12 * DAY]),
        ("dates", ["2025-01-11", "2025-01-13"]),
        ("small numbers", [10, 12]),
    ],
)
def test_a_date_or_a_number_in_the_unit_of_the_data(tmp_path: Path, unit: Any, bounds: list[Any]) -> None:
    """Row r is of day r // 30, of 16 days; no column need be named to be read."""
    days = [row // 30 for row in range(480)]
    if unit == "dates":
        times: list[Any] = [
            datetime.fromtimestamp(FIRST + day * DAY, timezone.utc).strftime("%Y-%m-%d") for day in days
        ]
    else:
        times = days if unit == "small numbers" else [(FIRST + day * DAY) * unit for day in days]
    rows = timed_shop(tmp_path, times)
    found = pairs(split(tmp_path, split_time=bounds))
    assert found == {"train": set(rows[:300]), "valid": set(rows[300:360]), "test": set(rows[360:])}
    found = pairs(split(tmp_path, split_time=bounds[0]))
    assert found == {"train": set(rows[:300]), "valid": set(), "test": set(rows[300:])}


def test_times_are_compared_exactly(tmp_path: Path) -> None:
    """float32 has one number for times of a minute."""
    rows = timed_shop(tmp_path, [FIRST + row for row in range(480)])
    found = pairs(split(tmp_path, split_time=[FIRST + 401, FIRST + 402]))
    assert (found["train"], found["valid"]) == (set(rows[:401]), {rows[401]})


def test_a_sequence_goes_on_from_one_split_into_the_next(tmp_path: Path) -> None:
    rows = timed_shop(tmp_path, [FIRST + DAY * (row % 12) for row in range(480)])  # each user an item a day
    splits = split(tmp_path, "SASRec", split_time=["2025-01-09", "2025-01-11"], **SEQUENTIAL)
    own = rows[:12]
    found = {name: {pair for pair in part if pair[0] == "u0"} for name, part in pairs(splits).items()}
    assert found == {"train": set(own[1:8]), "valid": set(own[8:10]), "test": set(own[10:])}
    last = splits.test.inter_feat[splits.test.inter_feat["user_id"] == splits.user_tokens.index("u0")]
    assert sorted(last["item_length"].tolist()) == [10, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_time": "2024-12-01"}, r"leaves a split empty: the times of shop are from 17\d+ \(2025-01-01\) to 17"),
        ({"split_time": [FIRST + DAY, FIRST + 99 * DAY]}, "leaves a split empty"),
        ({"split_time": "soon"}, "--split_time='soon'; expected a date, a number in the unit of the data, or two"),
        ({"split_time": ["2025-01-03", "2025-01-02"]}, "expected a date"),
        ({"split_time": ["2025-01-03", 5]}, "expected a date"),
        (
            {"split_time": [date(2025, 1, 3), date(2025, 1, 2)]},  # as YAML reads dates
            r"--split_time=\[2025-01-03,2025-01-02\]; expected .* or two, the earlier first",
        ),
        ({"split_time": 5, "benchmark_filename": list(PARTS)}, "both say how the data is split; keep one"),
        ({"split_time": 5, "TIME_FIELD": "when"}, "has no column 'when'; it has user_id, item_id, timestamp"),
        ({"eval_args.split": {"TS": [0.8, 0.1, 0.1]}}, "says order RO, in which RecBole mixes up rows; set"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    timed_shop(tmp_path, [FIRST + row // 30 * DAY for row in range(480)])
    with pytest.raises(UserError, match=message):
        split(tmp_path, **settings)


def test_a_date_among_times_that_are_none_is_refused(tmp_path: Path) -> None:
    timed_shop(tmp_path, list(range(480)))
    with pytest.raises(UserError, match="is a date, but the times of shop are from 0 to 479; give a number"):
        split(tmp_path, split_time="2025-01-01")


def test_order_in_time_reads_the_column_of_time_unasked(tmp_path: Path) -> None:
    """The last tenth of all rows in time, whoever's they are; and each user's own last ones."""
    rows = timed_shop(tmp_path, [FIRST + DAY * (row % 12) for row in range(480)])
    everyone = {"order": "TO", "group_by": "none", "split": {"RS": [0.8, 0.1, 0.1]}}
    late = {rows[row] for row in range(480) if row % 12 == 11}
    assert late < pairs(split(tmp_path, eval_args=everyone))["test"] | late
    assert len(pairs(split(tmp_path, eval_args=everyone))["test"] - late) == 8
    last = pairs(split(tmp_path, eval_args={"order": "TO", "split": {"LS": "valid_and_test"}}))
    assert last["test"] == late
    assert last["valid"] == {rows[row] for row in range(480) if row % 12 == 10}


def test_who_has_few_interactions_is_trained_on_first(tmp_path: Path) -> None:
    """The last item is for the test, the one before it for validation, and one at least for training."""
    rows = [("one", "a"), ("two", "a"), ("two", "b"), ("three", "a"), ("three", "b"), ("three", "c")]
    users, items = zip(*rows)
    write(tmp_path, "shop", user_id=list(users), item_id=list(items), timestamp=list(range(6)))
    found = pairs(split(tmp_path, eval_args={"order": "TO", "split": {"LS": "valid_and_test"}}))
    assert found == {
        "train": {("one", "a"), ("two", "a"), ("three", "a")},
        "valid": {("three", "b")},
        "test": {("two", "b"), ("three", "c")},
    }


# By files


def files_of_shop(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Each user's items 0-7, 8-9 and 10-11 in files of their own, rated by their place; in a file the last comes first."""
    rows = pairs_of_shop()
    found = {}
    for name, places in zip(PARTS, (range(8), range(8, 10), range(10, 12))):
        numbers = [row for row in range(480) if row % 12 in places]
        found[name] = [rows[row] for row in numbers]
        users, items = zip(*found[name])
        columns = {"rating": [row % 12 for row in numbers], "timestamp": [99 - row % 12 % 8 for row in numbers]}
        write(folder, "shop", f"{name}.inter", user_id=list(users), item_id=list(items), **columns)
    return found


def test_files_are_splits_whatever_is_filtered(tmp_path: Path) -> None:
    """RecBole passes over the filters in silence."""
    files = files_of_shop(tmp_path)
    given = {"benchmark_filename": list(PARTS), "load_col": {"inter": "*"}}
    assert pairs(split(tmp_path, **given)) == {name: set(rows) for name, rows in files.items()}
    few = pairs(split(tmp_path, val_interval={"rating": "[4,10]"}, **given))
    assert {name: len(rows) for name, rows in few.items()} == {"train": 160, "valid": 80, "test": 40}
    assert all(few[name] <= set(files[name]) for name in PARTS)


def test_files_are_splits_for_sequential_models_too(tmp_path: Path) -> None:
    """In a file rows come in time; a later file's rows come after all of an earlier one's."""
    files_of_shop(tmp_path)
    splits = split(tmp_path, "SASRec", benchmark_filename=list(PARTS), **SEQUENTIAL)
    own = [item for user, item in pairs_of_shop() if user == "u0"]
    order = [*reversed(own[:8]), own[9], own[8], own[11], own[10]]
    user = splits.user_tokens.index("u0")
    for name, places in zip(PARTS, (range(1, 8), range(8, 10), range(10, 12))):
        rows = getattr(splits, name).inter_feat
        rows = rows[rows["user_id"] == user]
        assert [splits.item_tokens[item] for item in rows["item_id"]] == [order[place] for place in places]
        for history, place in zip(rows["item_id_list"], places):
            assert [splits.item_tokens[item] for item in history[:place]] == order[:place]
    assert splits.sequences_after([splits.train, splits.valid, splits.test])[1][user] == 12


# Without validation or test


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({"eval_args.split": {"RS": [0.9, 0.1, 0]}}, (True, False)),
        ({"eval_args.split": {"RS": [0.9, 0, 0.1]}}, (False, True)),
        ({"eval_args.split": {"LS": "valid_only"}}, (True, False)),
        ({"eval_args.split": {"LS": "test_only"}}, (False, True)),
        ({"eval_args.split": {"RS": [1, 0, 0]}}, (False, False)),
        ({"split_time": 400}, (False, True)),
        ({"split_time": 400, "eval_args.split": {"RS": [1, 0, 0]}}, (False, False)),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_split_that_is_not_asked_for_has_no_loader(
    tmp_path: Path, model: str, settings: dict[str, Any], there: tuple[bool, bool]
) -> None:
    timed_shop(tmp_path, list(range(480)))
    own = {"eval_args.order": "TO", "train_neg_sample_args": None} if model == "SASRec" else {}
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    config = config_of(model, "shop", tmp_path, data_path=str(tmp_path), load_col=columns, **own, **settings)
    splits = Splits(config)
    assert splits.asked_for == there
    assert tuple(loader is not None for loader in make_loaders(config, splits)[1:]) == there
    assert sum(len(getattr(splits, name)) for name in PARTS) == (440 if model == "SASRec" else 480)
    if there != (True, True):
        with pytest.raises(UserError, match=r"compare needs a (validation|test) split, and the settings leave none"):
            splits.require("compare")


def test_files_are_all_trained_on_where_nothing_is_left_out(tmp_path: Path) -> None:
    files = files_of_shop(tmp_path)
    splits = split(tmp_path, benchmark_filename=list(PARTS), **{"eval_args.split": {"RS": [1, 0, 0]}})
    assert pairs(splits) == {"train": {pair for rows in files.values() for pair in rows}, "valid": set(), "test": set()}
    assert splits.asked_for == (False, False)


def test_a_split_that_is_asked_for_and_empty_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "shop", user_id=["a", "b"], item_id=["x", "y"])
    config = config_of("BPR", "shop", tmp_path, data_path=str(tmp_path))
    with pytest.raises(UserError, match="The validation split of shop is empty"):
        make_loaders(config, Splits(config))


# Files that are not as said


def test_a_file_of_items_that_load_col_names_is_read_or_refused(tmp_path: Path) -> None:
    """RecBole passes over one that is not there, over a pipe, and over a column that the file lacks."""
    timed_shop(tmp_path, list(range(480)))
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "kind"]}
    with pytest.raises(UserError, match=r"There is no file '.*shop\.item'; expected .* that --load_col names"):
        split(tmp_path, load_col=columns)
    path = tmp_path / "shop" / "shop.item"
    os.mkfifo(path)
    for asked in (columns, None):
        with pytest.raises(UserError, match=r"shop\.item' is a pipe or a device; expected"):
            split(tmp_path, load_col=asked)
    assert split(tmp_path).dataset.item_feat is None, "nobody asks for it"
    path.unlink()
    write(tmp_path, "shop", "item", item_id=["i1"], price=["3"])
    with pytest.raises(UserError, match=r"shop\.item' has no column 'kind'; it has item_id, price"):
        split(tmp_path, load_col=columns)
