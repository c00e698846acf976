"""CiteULike's lists and Yelp's JSON lines, small and of the same form, become atomic files."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from recbole_kd.data.prepare import PREPARABLE, described, prepare
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import fetch, load_splits
from tests.data.serving import Server, serving


def lists(users: int = 60, items: int = 300) -> bytes:
    draw = random.Random(0)
    lines = [sorted(draw.sample(range(items), draw.choice((3, 4, 5, 6, 30)))) for _ in range(users)]
    return "".join(f"{len(line)} {' '.join(map(str, line))}\n" for line in lines).encode()


LISTS = lists()


def pairs_of(raw: bytes, minimum: int) -> list[tuple[int, int]]:
    """The definition: users by line, those with few items left out, all items kept."""
    rows = enumerate(line.split()[1:] for line in raw.decode().splitlines())
    return [(user, int(item)) for user, items in rows if len(items) >= minimum for item in items]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """CiteULike's address, with the counts of the small file."""
    pairs = pairs_of(LISTS, 5)
    counts = len({user for user, _ in pairs}), len({item for _, item in pairs}), len(pairs)
    with serving(LISTS, "users.dat", monkeypatch) as server:
        entry = dataclasses.replace(PREPARABLE["citeulike"], url=server.url, counts=counts)
        monkeypatch.setitem(PREPARABLE, "citeulike", entry)
        yield server


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def make(folder: Path, dataset: str, source: object = None, **given: Any) -> Path:
    return prepare(dataset, folder, None if source is None else str(source), show_progress=False, **given)


def rows_of(path: Path, columns: str) -> list[list[str]]:
    header, *lines = path.read_text().splitlines()
    assert header == columns
    return [line.split("\t") for line in lines]


# Lists


@pytest.mark.parametrize("minimum", [None, 6, 1])
def test_citeulike_has_the_users_with_enough_items_and_all_their_items(
    tmp_path: Path, server: Server, minimum: int | None
) -> None:
    rows = rows_of(make(tmp_path, "citeulike", minimum=minimum), "user_id:token\titem_id:token")
    pairs = pairs_of(LISTS, minimum or 5)
    assert [(int(user), int(item)) for user, item in rows] == pairs
    assert min(Counter(item for _, item in pairs).values()) == 1


def test_a_file_that_gives_other_counts_is_refused_or_said(tmp_path: Path, server: Server) -> None:
    server.content = LISTS + b"5 1 2 3 4 5\n"
    with pytest.raises(
        UserError, match=r"gives [\d,]+, [\d,]+ and [\d,]+; expected [\d,]+ users, [\d,]+ items, [\d,]+ i"
    ):
        make(tmp_path, "citeulike")
    assert not (tmp_path / "citeulike").exists()
    path = make(tmp_path, "citeulike", write(tmp_path / "users.dat", server.content))
    assert "not as published, which has" in described(path)
    (tmp_path / "citeulike" / "citeulike.inter").unlink()
    (tmp_path / "citeulike" / "prepare.json").unlink()
    assert "not as published" not in described(make(tmp_path, "citeulike", write(tmp_path / "users.dat", LISTS)))


def test_a_training_fetches_citeulike(tmp_path: Path, server: Server) -> None:
    settings = {"data_path": str(tmp_path), "distill": [], "use_gpu": False, "show_progress": False}
    splits = load_splits(KDConfig("BPR", "citeulike", config_dict=settings))
    assert len(splits.user_tokens) == 1 + len({user for user, _ in pairs_of(LISTS, 5)})


@pytest.mark.parametrize("bad", ["4 1 2 3", "2 1 2 3", "2 1 x", "2 1\t2", "two 1 2", "2 1 -2", "", "1 1.5"])
def test_a_list_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    raw = write(tmp_path / "users.dat", f"2 1 2\n1 7\n{bad}\n1 8\n".encode())
    with pytest.raises(UserError, match=f"^'{raw}', line 3: .* expected how many items") as error:
        make(tmp_path, "citeulike", raw)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "citeulike").exists()


# JSON lines


def review(user: str, business: str, date: str, stars: Any = 4.0) -> str:
    whole = {
        "review_id": "r",
        "user_id": user,
        "business_id": business,
        "stars": stars,
        "text": "a\tb\nc",
        "date": date,
    }
    return json.dumps(whole) + "\n"


def reviews(count: int = 4000) -> list[tuple[str, str, str, float]]:
    draw = random.Random(1)
    found = []
    for _ in range(count):
        user, business = (
            f"u-{min(draw.randrange(60), draw.randrange(60))}",
            f"_b{min(draw.randrange(40), draw.randrange(40))}",
        )
        day = f"{draw.randint(2016, 2019)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
        found.append((user, business, draw.choice((day, f"{day} 22:09:11")), float(draw.randint(1, 5))))
    return found


REVIEWS = reviews()
YELP = "".join(review(*one) for one in REVIEWS).encode()
COLUMNS = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def expected_reviews(minimum: int) -> set[tuple[str, str, float, int]]:
    """The definition: reviews until 2018, the first of a pair, then one rare user or business after the other goes."""
    first: dict[tuple[str, str], tuple[int, float]] = {}
    for user, business, date, stars in REVIEWS:
        time = int(datetime.fromisoformat(date).replace(tzinfo=timezone.utc).timestamp())
        if date < "2019" and time < first.get((user, business), (math.inf, 0.0))[0]:
            first[user, business] = time, stars
    while True:
        users, businesses = Counter(user for user, _ in first), Counter(business for _, business in first)
        rare = [pair for pair in first if min(users[pair[0]], businesses[pair[1]]) < minimum]
        if not rare:
            return {(*pair, stars, time) for pair, (time, stars) in first.items()}
        del first[rare[0]]


@pytest.mark.parametrize("form", ["plain", "gzip", "blank lines"])
def test_yelp_keeps_the_first_reviews_with_their_times(tmp_path: Path, form: str) -> None:
    content = {"plain": YELP, "gzip": gzip.compress(YELP), "blank lines": YELP.replace(b"\n", b"\r\n\n")}[form]
    path = make(tmp_path, "yelp2018", write(tmp_path / "review.json", content))
    found = [(user, item, float(stars), int(time)) for user, item, stars, time in rows_of(path, COLUMNS)]
    expected = expected_reviews(10)
    assert 0 < len(expected) < len(expected_reviews(1))
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == expected
    said = dict(re.split(r"\s{2,}", line) for line in described(path).splitlines())
    assert said["dropped: from 2019-01-01 on"] == f"{sum(date >= '2019' for _, _, date, _ in REVIEWS):,}"


def test_the_last_second_of_2018_is_kept(tmp_path: Path) -> None:
    dates = ("2018-12-31 23:59:59", "2019-01-01 00:00:00")
    lines = "".join(review("u", f"b{place}", date) for place, date in enumerate(dates))
    path = make(tmp_path, "yelp2018", write(tmp_path / "review.json", lines.encode()), minimum=1)
    assert [item for _, item, _, _ in rows_of(path, COLUMNS)] == ["b0"]


def test_yelp_cannot_be_downloaded_and_needs_no_file_again(tmp_path: Path) -> None:
    advice = "yelp2018 cannot be downloaded: .*https://www.yelp.com/dataset .*--dataset=yelp2018 --source=FILE"
    settings = {"data_path": str(tmp_path), "distill": [], "use_gpu": False}
    for ask in (lambda: make(tmp_path, "yelp2018"), lambda: fetch(KDConfig("BPR", "yelp2018", config_dict=settings))):
        with pytest.raises(UserError, match=advice):
            ask()
        assert not (tmp_path / "yelp2018").exists()
    path = make(tmp_path, "yelp2018", write(tmp_path / "review.json", YELP))
    assert make(tmp_path, "yelp2018") == path
    path.unlink()
    with pytest.raises(UserError, match=advice):
        make(tmp_path, "yelp2018")


def test_a_sequential_model_reads_yelps_times(tmp_path: Path) -> None:
    make(tmp_path, "yelp2018", write(tmp_path / "review.json", YELP))
    settings = {"data_path": str(tmp_path), "distill": [], "use_gpu": False}
    splits = load_splits(KDConfig("SASRec", "yelp2018", config_dict=settings))
    items, lengths = splits.sequences_after([splits.train, splits.valid, splits.test])
    user = splits.user_tokens.index("u-3")
    own = sorted((time, item) for name, item, _, time in expected_reviews(10) if name == "u-3")
    found = [splits.item_tokens[item] for item in items[user, : lengths[user]]]
    times = {item: time for time, item in own}
    assert [times[item] for item in found] == [time for time, _ in own][-len(found) :]


GOOD = review("u", "b", "2018-07-07 22:09:11")
BAD = {
    "not json": "it is not JSON",
    "[1]": "it is no JSON object",
    "null": "it is no JSON object",
    '{"user_id": "u"}': "'business_id': 'None' is not a text",
    review("u", "b", "2018-07-07", "4").strip(): "'stars': '4' is not a number",
    review("u", "b", "2018-07-07", True).strip(): "'stars': 'True' is not a number",
    review("u", "b\tc", "2018-07-07").strip(): "is not a text without tabs",
    review("u", "b\rc", "2018-07-07").strip(): "is not a text without tabs",
    review("u", "", "2018-07-07").strip(): "column 'item': '' is empty",
    review("u", "b", "2018-13-07").strip(): "column 'timestamp': '2018-13-07' is not a time",
    review("u", "\ud800", "2018-07-07").strip(): "is not UTF-8",
    "[" * 100_000: "it is not JSON",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_review_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    raw = write(tmp_path / "review.json", (GOOD * 4 + "\n" + bad + "\n" + GOOD).encode())
    with pytest.raises(UserError, match=f"^'{raw}', line 6") as error:
        make(tmp_path, "yelp2018", raw)
    assert BAD[bad] in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "yelp2018").exists()


def test_an_endless_line_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_kd.data.raw_forms._LONGEST", 1000)
    raw = write(tmp_path / "review.json", GOOD.encode() + b"{" * 2000)
    with pytest.raises(UserError, match="line 2: it is longer than 1,000 bytes"):
        make(tmp_path, "yelp2018", raw)


def test_an_empty_file(tmp_path: Path) -> None:
    for dataset in ("citeulike", "yelp2018"):
        raw = write(tmp_path / "raw", b"")
        with pytest.raises(UserError, match=f"'{raw}' is empty"):
            make(tmp_path, dataset, raw)
