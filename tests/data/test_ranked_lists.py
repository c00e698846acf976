"""Files of scores or ranked items: every form gives the same lists, and what is wrong with a file is one line."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any, Optional

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from recbole_kd.data.observed import Observed
from recbole_kd.data.ranked_lists import RankedLists, read_ranked_lists
from recbole_kd.errors import UserError
from recbole_kd.files import tables

USERS, ITEMS = ["[PAD]", "ann", "bob", "7"], ["[PAD]", "x", "y", "z", "12"]
#: ann has observed x, bob y; the user 7 is not in the training split.
OBSERVED = Observed(torch.tensor([1, 2]), torch.tensor([1, 2]), 4, 5)
#: user, item, score: best first ann z, 12, y and bob 12, x.
ROWS = [("ann", "12", 0.5), ("bob", "12", 9.0), ("ann", "z", 2.0), ("bob", "x", -1.0), ("ann", "y", -0.25)]


def read(path: Path, observed: Observed = OBSERVED) -> RankedLists:
    return read_ranked_lists(str(path), USERS, ITEMS, observed)


def written(folder: Path, header: str, rows: Any = ROWS, separator: str = "\t") -> Path:
    path = folder / "lists.inter"
    path.write_text("\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n")
    return path


def by_user(lists: RankedLists) -> dict[str, list[str]]:
    return {
        USERS[user]: [ITEMS[item] for item in lists.items[lists.offsets[user] : lists.offsets[user + 1]]]
        for user in range(1, 4)
    }


EXPECTED = {"ann": ["z", "12", "y"], "bob": ["12", "x"], "7": []}


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("user_id:token\titem_id:token\tscore:float", "\t"),
        ("user_id,item_id,score", ","),
        ('"user_id","item_id","score"', ","),
        ("\ufeffuser_id\titem_id\tscore", "\t"),
    ],
)
def test_scores_rank_the_highest_first(header: str, separator: str, tmp_path: Path) -> None:
    lists = read(written(tmp_path, header, ROWS, separator))
    assert by_user(lists) == EXPECTED
    assert lists.scores is not None
    assert lists.scores.tolist() == [2.0, 0.5, -0.25, 9.0, -1.0]


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    rows = [(score, "text", item, user) for user, item, score in ROWS]
    assert by_user(read(written(tmp_path, "score:float\tnote:token\titem_id:token\tuser_id:token", rows))) == EXPECTED


def test_ranks_order_the_best_first_and_are_no_scores(tmp_path: Path) -> None:
    ranks = {("ann", "z"): 1, ("ann", "12"): 2, ("ann", "y"): 30, ("bob", "12"): 1, ("bob", "x"): 2}
    lists = read(written(tmp_path, "user_id,item_id,rank", [(*pair, rank) for pair, rank in ranks.items()], ","))
    assert by_user(lists) == EXPECTED
    assert lists.scores is None


def test_a_rank_decides_where_there_is_a_score_too(tmp_path: Path) -> None:
    """A system may rank by more than its score."""
    rows = [
        ("ann", "y", 9.0, 3),
        ("ann", "z", 0.5, 1),
        ("ann", "12", 2.0, 2),
        ("bob", "x", 1.0, 2),
        ("bob", "12", 0.0, 1),
    ]
    lists = read(written(tmp_path, "user_id,item_id,score,rank", rows, ","))
    assert by_user(lists) == EXPECTED
    assert lists.scores is not None
    assert lists.scores.tolist() == [0.5, 2.0, 9.0, 0.0, 1.0], "each beside its item"


def test_without_either_the_rows_are_in_order(tmp_path: Path) -> None:
    rows = [("bob", "12"), ("ann", "z"), ("ann", "12"), ("bob", "x"), ("ann", "y")]
    lists = read(written(tmp_path, "user_id:token\titem_id:token", rows))
    assert by_user(lists) == EXPECTED
    assert lists.scores is None


def test_parquet_is_read_with_ids_of_any_type(tmp_path: Path) -> None:
    users, items, scores = zip(*ROWS)
    path = tmp_path / "lists.parquet"
    pyarrow.parquet.write_table(pa.table({"score": scores, "user_id": users, "item_id": items}), path)
    assert by_user(read(path)) == EXPECTED
    pyarrow.parquet.write_table(pa.table({"user_id": [7], "item_id": [12]}), path)
    assert by_user(read(path, Observed(torch.tensor([3]), torch.tensor([1]), 4, 5)))["7"] == ["12"]


def test_observed_items_are_left_out_and_counted(tmp_path: Path) -> None:
    lists = read(written(tmp_path, "user_id,item_id,score", [("ann", "x", 99), ("bob", "y", 99), *ROWS], ","))
    assert by_user(lists) == EXPECTED
    assert lists.observed_rows == 2


def test_weights_stand_beside_the_items(tmp_path: Path) -> None:
    rows = [(*row, place / 8) for place, row in enumerate(ROWS)]
    lists = read(written(tmp_path, "user_id,item_id,score,weight", rows, ","))
    assert by_user(lists) == EXPECTED
    weights = lists.top_weights(3)
    assert weights is not None
    assert weights.tolist() == [[0, 0, 0], [0.25, 0, 0.5], [0.125, 0.375, 0], [0, 0, 0]]
    assert read(written(tmp_path, "user_id,item_id,score", ROWS, ",")).top_weights(3) is None


def test_users_without_a_list_are_counted(tmp_path: Path) -> None:
    """Who is not in the file, and whose listed items are all observed; not who is in no training pair."""
    assert read(written(tmp_path, "user_id,item_id", [("ann", "z")], ",")).users_without == 1
    lists = read(written(tmp_path, "user_id,item_id", [("ann", "z"), ("bob", "y")], ","))
    assert by_user(lists) == {"ann": ["z"], "bob": [], "7": []}
    assert lists.users_without == 1
    assert read(written(tmp_path, "user_id,item_id,score", ROWS, ",")).users_without == 0


def test_the_digest_is_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "user_id,item_id,score", ROWS, ",")
    assert read(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_best_of_every_user_and_scores_of_pairs(tmp_path: Path) -> None:
    lists = read(written(tmp_path, "user_id,item_id,score", ROWS, ","))
    assert lists.top(2).tolist() == [[0, 0], [3, 4], [4, 1], [0, 0]]
    assert lists.top(4).tolist() == [[0] * 4, [3, 4, 2, 0], [4, 1, 0, 0], [0] * 4]
    assert lists.top(2).dtype == torch.int32
    scores = lists.scores_of(torch.tensor([1, 2]), torch.tensor([[3, 2], [1, 3]]))
    assert scores.tolist()[0] == [2.0, -0.25]
    assert scores[1, 0] == -1.0
    assert math.isnan(scores[1, 1]), "bob's list does not hold z"
    assert lists.scores_of(torch.tensor([2]), torch.tensor([4])).tolist() == [9.0]


def test_many_small_batches_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against sorting in Python, on random lists read a few rows at a time."""
    draw = random.Random(3)
    users, items = ["[PAD]", *(f"u{n}" for n in range(30))], ["[PAD]", *(f"i{n}" for n in range(40))]
    rows = [(user, item, draw.random()) for user in users[1:] for item in draw.sample(items[1:], 15)]
    draw.shuffle(rows)
    observed = Observed(torch.arange(1, 31), torch.arange(1, 31), 31, 41)
    path = written(tmp_path, "user_id:token\titem_id:token\tscore:float", rows)
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 256)
    lists = read_ranked_lists(str(path), users, items, observed)
    dropped = 0
    for user in range(1, 31):
        mine = sorted((-score, item) for name, item, score in rows if name == users[user])
        wanted = [item for _, item in mine if item != items[user]]
        dropped += len(mine) - len(wanted)
        assert [items[item] for item in lists.items[lists.offsets[user] : lists.offsets[user + 1]]] == wanted
    assert lists.observed_rows == dropped


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            "user_id,item_id",
            [("ann", "z"), ("carl", "z"), ("dora", "z")],
            "2 of 3 rows name users that the dataset does not have .* such as 'carl'; drop",
        ),
        ("user_id,item_id", [("ann", "z"), ("bob", "w")], "1 of 2 rows name items .* such as 'w'"),
        ("user_id,item_id", [("[PAD]", "z")], "name users that the dataset does not have"),
        (
            "user_id,item_id",
            [("ann", "z"), ("bob", "z"), ("ann", "z")],
            "1 row too many for a user and an item, such as 'ann' and 'z'",
        ),
        ("user_id,item_id", [("7", "z")], "lists no unobserved item for any of 2 users of the training split"),
        ("user_id,item_id", [("ann", "x"), ("bob", "y")], "lists no unobserved item for any of 2 users"),
        ("user_id,item_id,score", [("ann", "z", 1), ("bob", "z", "nan")], "the score in row 2 is not a finite number"),
        ("user_id,item_id,score", [("ann", "z", "inf")], "the score in row 1 is not a finite number"),
        ("user_id,item_id,score", [("ann", "z", "")], "the score in row 1 is not a finite number"),
        ("user_id,item_id,score", [("ann", "z", "high")], "cannot be read: .*high"),
        (
            "user_id,item_id,weight",
            [("ann", "z", 1), ("bob", "z", -0.5)],
            "the weight in row 2 is -0.5; expected at least 0",
        ),
        ("user_id,item_id,weight", [("ann", "z", "nan")], "the weight in row 1 is not a finite number"),
        ("user_id,item_id,rank", [("ann", "z", "")], "the rank in row 1 is not a finite number"),
        ("user_id,item_id", [("ann", "z", "more")], "cannot be read: .*2 columns"),
        ("user,item_id", [("ann", "z")], "has no column 'user_id' .*names user, item_id"),
        ("user_id,item_id,score,score", [("ann", "z", 1, 1)], "has 2 columns 'score'"),
        ("ann z 0.5", [], "has no column 'user_id'"),
        ("", [], "has no column 'user_id'"),
        ("user_id,item_id", [], "no rows|cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(header: str, rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(written(tmp_path, header, rows, ","))
    assert "--teacher.ranks=" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x00\xff\xfe" * 100, b"PAR1 and then nothing", b"user_id,item_id\n\xff\xfe,z\n", b"x" * (1 << 20)],
)
def test_what_is_no_such_file_is_refused(content: Optional[bytes], tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="--teacher.ranks="):
        read(path)


def test_more_rows_than_pairs_are_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that repeats itself for ever would fill the memory before its duplicates are found."""
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 64)
    with pytest.raises(UserError, match="more rows than users times items"):
        read(written(tmp_path, "user_id,item_id", [("ann", "z")] * 1000, ","))
