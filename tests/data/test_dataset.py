"""Data comes out of the reader as RecBole would give it, but for what RecBole gets wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType, init_seed

from recbole_kd.data import dataset as dataset_module
from recbole_kd.data.dataset import KDDataset, KDSequentialDataset
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig

#: The folder of the research data sets, for the slow tests.
REAL = os.environ.get("RECBOLE_KD_DATA", "")


def config_of(model: str, dataset: str, folder: Path, **settings: Any) -> KDConfig:
    return KDConfig(
        model,
        dataset,
        config_dict={
            "checkpoint_dir": str(folder / "saved"),
            "show_progress": False,
            "use_gpu": False,
            "distill": [],
            **settings,
        },
    )


def made_by(kind: type[Dataset], config: KDConfig) -> list[Any]:
    """The whole dataset and its splits, of a fixed seed."""
    init_seed(7, True)
    dataset = kind(config)
    return [dataset, *dataset.build()]


def assert_same_features(ours: Interaction | None, theirs: Interaction | None) -> None:
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return
    assert ours.columns == theirs.columns
    for field in ours:
        assert ours[field].dtype == theirs[field].dtype
        assert torch.equal(ours[field], theirs[field]), field
    assert len(ours) == len(theirs)


def assert_recboles_own(model: str, dataset: str, folder: Path, **settings: Any) -> None:
    sequential = config_of(model, dataset, folder, **settings).sequential
    kinds = (KDSequentialDataset, SequentialDataset) if sequential else (KDDataset, Dataset)
    ours, theirs = (made_by(kind, config_of(model, dataset, folder, **settings)) for kind in kinds)
    after = torch.rand(1)
    made_by(kinds[0], config_of(model, dataset, folder, **settings))  # now from the compiled file
    assert torch.equal(torch.rand(1), after)
    for one, other in zip(ours, theirs, strict=True):
        assert_same_features(one.inter_feat, other.inter_feat)
        assert_same_features(one.user_feat, other.user_feat)
        assert_same_features(one.item_feat, other.item_feat)
        for fact in ("field2type", "field2source", "field2seqlen", "field2bucketnum"):
            assert dict(getattr(one, fact)) == dict(getattr(other, fact)), fact
        assert set(one.field2id_token) == set(other.field2id_token)
        for field, tokens in other.field2id_token.items():
            assert one.field2id_token[field].dtype == tokens.dtype
            assert np.array_equal(one.field2id_token[field], tokens)
            assert one.field2token_id[field] == other.field2token_id[field]


ALL = {"inter": ["user_id", "item_id", "rating", "timestamp"], "user": "*", "item": ["item_id", "release_year"]}
SPLIT = {"order": "RO", "group_by": "user", "mode": "full"}

#: Settings under which RecBole reads and splits ml-100k right. It ties times that differ, so that order: TO is elsewhere.
CLEAN: dict[str, dict[str, Any]] = {
    "as it is": {},
    "all features": {"load_col": ALL},
    "filters": {
        "load_col": ALL,
        "user_inter_num_interval": "[20,200]",
        "item_inter_num_interval": "[10,inf)",
        "val_interval": {
            "rating": "[3,inf)",
            "gender": ["M"],
            "release_year": [str(year) for year in range(1990, 2000)],
        },
    },
    "several intervals": {"user_inter_num_interval": "(20,50];[100,inf)", "item_inter_num_interval": None},
    "no filter by features": {"load_col": ALL, "filter_inter_by_user_or_item": False},
    "labels": {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "threshold": {"rating": 4}},
    "normalised": {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "normalize_all": True},
    "one split for all users": {"eval_args": {**SPLIT, "group_by": None, "split": {"RS": [0.7, 0.1, 0.2]}}},
    "uneven ratios": {"eval_args": {**SPLIT, "split": {"RS": [5, 1, 2]}}},
    "leave one out": {"eval_args": {**SPLIT, "split": {"LS": "valid_and_test"}}},
    "leave one out for the test": {"eval_args": {**SPLIT, "split": {"LS": "test_only"}}},
}


@pytest.mark.parametrize("case", CLEAN)
def test_clean_files_give_recboles_ids_splits_and_features_to_the_bit(tmp_path: Path, case: str) -> None:
    assert_recboles_own("BPR", "ml-100k", tmp_path, **CLEAN[case])


def test_batches_are_recboles_to_the_bit(tmp_path: Path) -> None:
    batches = []
    for kind in (KDDataset, Dataset):
        config = config_of("BPR", "ml-100k", tmp_path)
        splits = Splits(config)
        splits.dataset, splits.train, splits.valid, splits.test = made_by(kind, config)
        loader = make_loaders(config, splits)[0]
        init_seed(3, True)
        batches.append([batch for _, batch in zip(range(5), loader)])
    for one, other in zip(*batches, strict=True):
        assert_same_features(one, other)


@pytest.mark.parametrize("order", ["RO", "TO"])
def test_a_split_is_kept_and_is_that_of_its_rows_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(dataset_module, "_MANY", 1)
    settings = {"eval_args": {**SPLIT, "order": order, "split": {"RS": [0.8, 0.1, 0.1]}}, "load_col": ALL}

    def items(seed: int, **more: Any) -> list[list[int]]:
        init_seed(seed, True)
        splits = Splits(config_of("BPR", "ml-100k", tmp_path, **settings, **more))
        return [part.inter_feat["item_id"].tolist() for part in (splits.dataset, splits.train, splits.valid)]

    first = items(1)
    monkeypatch.setattr(Dataset, "build", lambda *_: pytest.fail("the data is split again"))
    assert items(1) == first
    if order == "TO":
        assert items(2) == first
    monkeypatch.undo()
    monkeypatch.setattr(dataset_module, "_MANY", 1)
    assert (items(2) == first) == (order == "TO")
    settings["eval_args"] = {**settings["eval_args"], "group_by": "none"}
    assert items(1) != first
    settings["eval_args"] = {**settings["eval_args"], "group_by": "user"}
    assert items(1, user_inter_num_interval="[50,inf)") != first
    assert items(1) == first


def test_sequences_are_recboles_to_the_bit_where_its_times_are_exact(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    write(
        tmp_path,
        "shop",
        user_id=[f"u{user}" for user in generator.integers(40, size=2000)],
        item_id=[f"i{item}" for item in generator.integers(90, size=2000)],
        timestamp=list(generator.integers(300, size=2000)),  # many rows of one time
    )
    for split in ({"LS": "valid_and_test"}, {"RS": [0.8, 0.1, 0.1]}):
        settings = {"eval_args": {"order": "TO", "group_by": "user", "mode": "full", "split": split}}
        for model in ("GRU4Rec", "BPR"):
            more = {"train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 9} if model == "GRU4Rec" else {}
            assert_recboles_own(
                model, "shop", tmp_path, data_path=str(tmp_path), load_col={"inter": "*"}, **settings, **more
            )


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="RECBOLE_KD_DATA names no folder of research data")
def test_research_data_is_recboles_to_the_bit(tmp_path: Path) -> None:
    assert_recboles_own("BPR", "gowalla", tmp_path, data_path=REAL, load_col={"inter": "*"})
    core = {"user_inter_num_interval": "[15,inf)", "item_inter_num_interval": "[15,inf)"}
    assert_recboles_own("BPR", "gowalla", tmp_path, data_path=REAL, load_col={"inter": "*"}, **core)
    files = {"benchmark_filename": ["train", "valid", "test"]}
    assert_recboles_own("BPR", "citeulike-freqd", tmp_path, data_path=REAL, load_col={"inter": "*"}, **files)
    sequences = {
        "load_col": {"inter": "*"},
        "train_neg_sample_args": None,
        "eval_args": {"order": "TO", "group_by": "user", "mode": "full", "split": {"LS": "valid_and_test"}},
    }
    assert_recboles_own("SASRec", "amazon-beauty", tmp_path, data_path=REAL, **sequences)


# What RecBole gets wrong: small files after what people report.


def write(folder: Path, dataset: str, suffix: str = "inter", **columns: list[Any]) -> None:
    """An atomic file; a column's type follows from its values."""
    kinds = {name: "token" if isinstance(values[0], str) else "float" for name, values in columns.items()}
    lines = ["\t".join(f"{name}:{kind}" for name, kind in kinds.items())]
    lines += ["\t".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    (folder / dataset).mkdir(exist_ok=True)
    (folder / dataset / f"{dataset}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs_of_shop() -> list[tuple[str, str]]:
    """12 of 60 items for each of 40 users."""
    return [(f"u{user}", f"i{(5 * user + 7 * step) % 60}") for user in range(40) for step in range(12)]


def shop(folder: Path, pairs: list[tuple[str, str]], model: str = "BPR", **settings: Any) -> Splits:
    users, items = zip(*pairs)
    write(folder, "shop", user_id=list(users), item_id=list(items))
    return Splits(config_of(model, "shop", folder, data_path=str(folder), **settings))


def renamed(pairs: list[tuple[str, str]], names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(names.get(user, user), names.get(item, item)) for user, item in pairs]


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", "007", '"Alien', "#9", " x ", "-", "日本"])
def test_any_text_is_an_id_like_any_other(tmp_path: Path, name: str) -> None:
    plain = shop(tmp_path, pairs_of_shop())
    splits = shop(tmp_path, renamed(pairs_of_shop(), {"u3": name, "i7": name}))
    assert (splits.dataset.user_num, splits.dataset.item_num, len(splits.dataset)) == (41, 61, 480)
    assert set(splits.user_tokens) == set(plain.user_tokens) - {"u3"} | {name}
    assert set(splits.item_tokens) == set(plain.item_tokens) - {"i7"} | {name}


@pytest.mark.parametrize("scale", [1, 1000, 1_000_000_000], ids=["seconds", "milliseconds", "nanoseconds"])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_rows_are_in_the_order_of_their_exact_times(tmp_path: Path, scale: int, model: str) -> None:
    """float32 holds a time of this decade to 128 s, in milliseconds to 131,072 ms."""
    generator = np.random.default_rng(1)
    users, items, times = [], [], []
    for user in range(40):
        for place in generator.permutation(12):
            users.append(f"u{user}")
            items.append(f"{user}-{place}")
            times.append((1_700_000_000 + 20 * int(place)) * scale + (scale > 1) * int(place))
    order = generator.permutation(len(users))
    columns = {"user_id": users, "item_id": items, "timestamp": times}
    write(tmp_path, "shop", **{name: [values[row] for row in order] for name, values in columns.items()})
    splits = Splits(
        config_of(
            model,
            "shop",
            tmp_path,
            data_path=str(tmp_path),
            load_col={"inter": ["user_id", "item_id", "timestamp"]},
            eval_args={"order": "TO", "group_by": "user", "mode": "full", "split": {"LS": "valid_and_test"}},
            **({"train_neg_sample_args": None} if model == "SASRec" else {}),
        )
    )
    for part, place in ((splits.valid, 10), (splits.test, 11)):
        tokens = {(splits.user_tokens[user], splits.item_tokens[item]) for user, item in zip(*splits.pairs(part))}
        assert tokens == {(f"u{user}", f"{user}-{place}") for user in range(40)}
    if model == "SASRec":
        for row, user in zip(splits.test.inter_feat["item_id_list"], splits.test.inter_feat["user_id"]):
            own = splits.user_tokens[user][1:]
            assert [splits.item_tokens[item] for item in row[:11]] == [f"{own}-{place}" for place in range(11)]


def test_rows_of_one_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    count = 200
    write(
        tmp_path,
        "shop",
        user_id=["ann"] * count,
        item_id=[f"i{place}" for place in range(count)],
        timestamp=[1_700_000_000_000 + (place >= 150) for place in range(count)],
    )
    settings = {"eval_args": {"order": "TO", "group_by": "user", "mode": "full", "split": {"RS": [0.5, 0.25, 0.25]}}}
    splits = Splits(config_of("BPR", "shop", tmp_path, data_path=str(tmp_path), load_col={"inter": "*"}, **settings))
    items = [splits.item_tokens[item] for item in splits.train.inter_feat["item_id"]]
    assert items == [f"i{place}" for place in range(100)]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_of_duplicates_the_first_or_last_in_time_is_kept(tmp_path: Path, keep: str) -> None:
    rows = 400
    users = [f"u{row % 10}" for row in range(rows)]
    items = [f"i{row % 20}" for row in range(rows)]
    write(
        tmp_path,
        "shop",
        user_id=users,
        item_id=items,
        timestamp=[1_700_000_000_000 + row // 100 for row in range(rows)],
        rating=list(range(rows)),
    )
    config = config_of("BPR", "shop", tmp_path, data_path=str(tmp_path), load_col={"inter": "*"}, rm_dup_inter=keep)
    ratings = sorted(int(rating) for rating in KDDataset(config).inter_feat["rating"])
    assert ratings == list(range(20) if keep == "first" else range(rows - 20, rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_inter_num_interval": 50}, "--user_inter_num_interval=50 is not an interval"),
        ({"val_interval": {"rating": ">=3"}}, "--val_interval=.* expected an interval or a list of ids"),
        ({"val_interval": {"rating": "[5,3]"}}, "--val_interval=.* expected an interval or a list of ids"),
        ({"val_interval": {"rating": ["3"]}}, "for 'rating', a column of type float; expected an interval"),
        ({"val_interval": {"gender": "[1,2]"}}, "for 'gender', a column of type token; .* a list of tokens to keep"),
        ({"val_interval": {"stars": "[3,4]"}}, "names 'stars', which is not loaded; expected one of user_id"),
    ],
)
def test_a_filter_that_filters_nothing_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KDDataset(config_of("BPR", "ml-100k", tmp_path, load_col=ALL, **settings))


def test_features_may_be_missing(tmp_path: Path) -> None:
    pairs = pairs_of_shop()
    write(tmp_path, "shop", "item", item_id=[f"i{item}" for item in range(50)], city=["", "Bonn"] * 25, size=[1.5] * 50)
    settings = {"load_col": {"inter": "*", "item": "*"}, "filter_inter_by_user_or_item": False}
    dataset = shop(tmp_path, pairs, **settings).dataset
    ids = {token: index for index, token in enumerate(dataset.field2id_token["item_id"])}
    cities = dataset.item_feat["city"]
    assert [int(cities[ids[f"i{item}"]]) for item in (0, 1, 2, 55)] == [0, 1, 0, 0]
    assert dataset.field2id_token["city"].tolist() == ["[PAD]", "Bonn"]
    assert shop(tmp_path, pairs, load_col={"inter": "*", "item": "*"}).dataset.item_num == 51


def test_of_a_user_who_stands_twice_the_first_row_counts(tmp_path: Path) -> None:
    write(tmp_path, "shop", "user", user_id=["u1", "u1", "u2"], city=["Bonn", "Rome", "Oslo"])
    settings = {"load_col": {"inter": "*", "user": "*"}, "filter_inter_by_user_or_item": False}
    dataset = shop(tmp_path, pairs_of_shop(), **settings).dataset
    assert dataset.field2id_token["city"].tolist() == ["[PAD]", "Bonn", "Oslo"]


def test_sequences_of_tokens_share_their_ids_with_an_alias(tmp_path: Path) -> None:
    items = [f"i{item}" for item in range(60)]
    write(tmp_path, "shop", "item", item_id=items, like=[f"i{item + 1} i{item + 2}" for item in range(60)])
    path = tmp_path / "shop" / "shop.item"
    path.write_text(path.read_text().replace("like:token", "like:token_seq"))
    settings = {"load_col": {"inter": "*", "item": "*"}, "alias_of_item_id": ["like"]}
    dataset = shop(tmp_path, pairs_of_shop(), **settings).dataset
    assert dataset.field2type["like"] == FeatureType.TOKEN_SEQ
    tokens = dataset.field2id_token["item_id"]
    assert tokens.tolist() == dataset.field2id_token["like"].tolist()
    for row in range(1, 61):
        number = int(tokens[dataset.item_feat["item_id"][row]][1:])
        assert tokens[dataset.item_feat["like"][row]].tolist() == [f"i{number + 1}", f"i{number + 2}"]


def test_items_that_nobody_had_keep_their_features(tmp_path: Path) -> None:
    names = ["new", *(f"i{item}" for item in range(60)), "newer"]
    write(tmp_path, "shop", "item", item_id=names, city=["Rome", *["Bonn"] * 60, "Oslo"])
    dataset = shop(tmp_path, pairs_of_shop(), load_col={"inter": "*", "item": "*"}).dataset
    assert dataset.item_num == 63
    ids, towns = dataset.field2token_id["item_id"], dataset.field2id_token["city"]
    found = {name: towns[dataset.item_feat["city"][ids[name]]] for name in ("new", "i0", "i59", "newer")}
    assert found == {"new": "Rome", "i0": "Bonn", "i59": "Bonn", "newer": "Oslo"}
