"""Public datasets become atomic files: what is kept, how a download survives, and what is refused.

The raw files are small, in SNAP's format, and served on the loopback address by a server that misbehaves as it is told.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import importlib
import json
import random
import re
import socket
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.data.events import Columns
from recbole_kd.data.prepare import PREPARABLE, can_prepare, described, k_core, prepare
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.verbs.train import run_recbole_kd
from tests.data.serving import Server, serving

module: Any = importlib.import_module("recbole_kd.data.prepare")

DOWNLOAD = "gowalla.raw"


def checkin(user: int, time: str, location: int) -> str:
    return f"{user}\t{time}\t30.2359091167\t-97.7951395833\t{location}\n"


def checkins(users: int = 30, locations: int = 20, visits: int = 1500, seed: int = 0) -> bytes:
    """Random check-ins, newest first as SNAP has them, with repeated visits; ids have gaps, as the real ones do."""
    draw = random.Random(seed)
    lines = []
    for _ in range(visits):
        user = 7 * min(draw.randrange(users), draw.randrange(users))
        location = 1000 + 13 * min(draw.randrange(locations), draw.randrange(locations))
        month, day, hour, second = draw.randint(1, 12), draw.randint(1, 28), draw.randint(0, 23), draw.randint(0, 59)
        lines.append((user, f"2010-{month:02}-{day:02}T{hour:02}:00:{second:02}Z", location))
    lines.sort(key=lambda line: line[1], reverse=True)
    lines.sort(key=lambda line: line[0])
    return "".join(checkin(*line) for line in lines).encode()


RAW = checkins()
ZIPPED = gzip.compress(RAW, mtime=0)


def expected_rows(raw: bytes, minimum: int) -> list[tuple[int, int, int]]:
    """The definition, line by line: first visits, then one user or item removed at a time until nobody is rare."""
    first: dict[tuple[int, int], int] = {}
    for line in raw.decode().splitlines():
        user, time, _, _, location = line.split("\t")
        seconds = int(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp())
        pair = (int(user), int(location))
        first[pair] = min(seconds, first.get(pair, seconds))
    pairs = set(first)
    while True:
        users, locations = Counter(user for user, _ in pairs), Counter(location for _, location in pairs)
        rare = [(user, location) for user, location in pairs if min(users[user], locations[location]) < minimum]
        if not rare:
            return sorted(((u, i, first[u, i]) for u, i in pairs), key=lambda row: (row[0], row[2], row[1]))
        pairs.remove(rare[0])


def rows_of(path: Path) -> list[tuple[int, int, int]]:
    header, *lines = path.read_text().splitlines()
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    return [tuple(int(field) for field in line.split("\t")) for line in lines]  # type: ignore[misc]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(ZIPPED, "loc-gowalla_totalCheckins.txt.gz", monkeypatch) as server:
        yield server


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Changes fields of gowalla's entry for one test."""

    def change(**fields: Any) -> None:
        monkeypatch.setitem(PREPARABLE, "gowalla", dataclasses.replace(PREPARABLE["gowalla"], **fields))

    return change


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    path = tmp_path / "given.txt.gz"
    path.write_bytes(ZIPPED)
    return path


def make(folder: Path, source: object = None, minimum: int = 10) -> Path:
    return prepare("gowalla", folder, None if source is None else str(source), show_progress=False, minimum=minimum)


def files_of(folder: Path) -> set[str]:
    return {path.name for path in (folder / "gowalla").glob("*")}


# What is kept


def test_the_result_is_first_visits_of_the_core_with_original_ids(tmp_path: Path, raw_file: Path) -> None:
    expected = expected_rows(RAW, 10)
    assert 0 < len(expected) < len(expected_rows(RAW, 1)) < 1500  # both steps have something to remove
    path = make(tmp_path, raw_file)
    assert path == tmp_path / "gowalla" / "gowalla.inter"
    assert rows_of(path) == expected


def test_the_first_visit_is_the_earliest_wherever_it_stands(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    times = ("2010-10-19T23:55:27Z", "2010-10-17T01:48:53Z", "2010-10-18T00:00:00Z")
    raw.write_text("".join(checkin(5, time, 22847) for time in times))
    assert rows_of(make(tmp_path, raw, minimum=1)) == [(5, 22847, 1287280133)]


def test_visits_of_one_moment_are_in_the_order_of_the_locations(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("".join(checkin(5, "2010-10-17T01:48:53Z", location) for location in (30, 4, 100)))
    assert [location for _, location, _ in rows_of(make(tmp_path, raw, minimum=1))] == [4, 30, 100]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))), st.integers(1, 4))
def test_k_core_is_what_removing_one_pair_at_a_time_leaves(pairs: set[tuple[int, int]], minimum: int) -> None:
    listed = sorted(pairs)
    left = set(listed)
    while True:
        users, items = Counter(user for user, _ in left), Counter(item for _, item in left)
        rare = [pair for pair in sorted(left) if users[pair[0]] < minimum or items[pair[1]] < minimum]
        if not rare:
            break
        left.remove(rare[0])
    array = np.array(listed, dtype=np.int64).reshape(-1, 2)
    assert [listed[position] for position in k_core(array[:, 0], array[:, 1], minimum)] == sorted(left)


def test_plain_text_windows_lines_and_a_missing_last_newline_give_the_same(tmp_path: Path, raw_file: Path) -> None:
    reference = make(tmp_path / "gzip", raw_file).read_bytes()
    variants = {"plain.txt": RAW, "windows.txt": RAW.replace(b"\n", b"\r\n"), "open.txt": RAW.rstrip(b"\n")}
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
        assert make(tmp_path / f"from {name}", tmp_path / name).read_bytes() == reference, name


def test_recbole_loads_the_result(tmp_path: Path, raw_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset

    rows = rows_of(make(tmp_path, raw_file))
    monkeypatch.setattr(sys, "argv", ["pytest"])  # RecBole's Config reads the command line
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # and sets this
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    settings = {"data_path": str(tmp_path), "load_col": columns, "use_gpu": False}
    dataset = create_dataset(Config(model="BPR", dataset="gowalla", config_dict=settings))
    users = dataset.id2token("user_id", dataset.inter_feat["user_id"])
    items = dataset.id2token("item_id", dataset.inter_feat["item_id"])
    times = dataset.inter_feat["timestamp"]
    assert [(int(u), int(i), int(t)) for u, i, t in zip(users, items, times)] == rows


@pytest.mark.slow
def test_as_many_lines_as_gowalla_has(tmp_path: Path) -> None:
    lines, draw = 6_442_892, np.random.default_rng(0)
    users = draw.zipf(1.3, lines) % 107_092
    locations = draw.zipf(1.3, lines) % 1_280_969
    times = np.datetime_as_string(np.datetime64("2009-02-04T00:00:00") + draw.integers(0, 54_000_000, lines))
    raw = tmp_path / "raw.txt"
    with open(raw, "w") as file:
        for user, time, location in zip(users.tolist(), times, locations.tolist()):
            file.write(checkin(user, f"{time}Z", location))
    path = make(tmp_path, raw)
    record = json.loads((path.parent / "prepare.json").read_text())
    rows = np.loadtxt(path, skiprows=1, dtype=np.int64)
    assert record["raw"]["interactions"] == lines
    assert len(rows) == record["result"]["interactions"] > 0
    assert min(np.unique(rows[:, 0], return_counts=True)[1]) >= 10
    assert min(np.unique(rows[:, 1], return_counts=True)[1]) >= 10


# Download


def test_a_download_equals_the_file_itself_and_leaves_nothing_temporary(
    tmp_path: Path, raw_file: Path, server: Server
) -> None:
    path = make(tmp_path / "fetched", server.url)
    assert path.read_bytes() == make(tmp_path / "given", raw_file).read_bytes()
    assert files_of(tmp_path / "fetched") == {"gowalla.inter", "prepare.json", DOWNLOAD}
    assert (tmp_path / "fetched" / "gowalla" / DOWNLOAD).read_bytes() == ZIPPED


def test_without_a_source_the_published_address_is_used(tmp_path: Path, server: Server, entry: Any) -> None:
    entry(url=server.url, sha256=hashlib.sha256(ZIPPED).hexdigest())
    assert rows_of(make(tmp_path)) == expected_rows(RAW, 10)


def test_a_transfer_that_breaks_is_refused_and_leaves_nothing(tmp_path: Path, server: Server) -> None:
    server.cuts = [3000]
    message = refused(tmp_path, server.url, r"the transfer ended after 3,000 of [\d,]+ bytes")
    assert "`recbole-kd prepare --dataset=gowalla --source=FILE`" in message
    assert not (tmp_path / "out" / "gowalla").exists()
    assert rows_of(make(tmp_path / "out", server.url)) == expected_rows(RAW, 10)


def test_an_interrupt_leaves_nothing(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("recbole_kd.data.download._next_block", "recbole_kd.data.prepare._written"):
        with monkeypatch.context() as patch:
            patch.setattr(step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path, server.url)
        assert not (tmp_path / "gowalla").exists()


def test_what_the_server_refuses_is_said(tmp_path: Path, server: Server) -> None:
    server.status = 404
    refused(tmp_path, server.url, "Cannot download gowalla from .*404")


# What is refused: one line, and nothing under a final name


def refused(tmp_path: Path, source: object, pattern: str, minimum: int = 10) -> str:
    with pytest.raises(UserError, match=pattern) as error:
        make(tmp_path / "out", source, minimum)
    assert "\n" not in str(error.value)
    assert not files_of(tmp_path / "out") & {"gowalla.inter", "prepare.json", DOWNLOAD}
    assert not [path for pattern in ("*.tmp", "*.part") for path in tmp_path.rglob(pattern)]
    return str(error.value)


def test_an_unknown_dataset_names_the_closest(tmp_path: Path) -> None:
    assert can_prepare("gowalla")
    assert not can_prepare("gowala")
    with pytest.raises(UserError, match="Did you mean 'gowalla'"):
        prepare("gowala", tmp_path)


def test_no_network_says_what_to_do_instead(tmp_path: Path, server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    message = refused(tmp_path, f"http://127.0.0.1:{port}/raw.txt.gz", "Cannot download gowalla .*refused")
    assert message.endswith("run `recbole-kd prepare --dataset=gowalla --source=FILE`.")
    assert not (tmp_path / "out" / "gowalla").exists()


def test_an_address_that_ends_like_a_file_of_ours_does_no_harm(tmp_path: Path, server: Server) -> None:
    for name in ("gowalla.inter", "prepare.json", "..", ""):
        folder = tmp_path / f"from {name.strip('.')}"
        assert rows_of(make(folder, f"{server.url}/{name}")) == expected_rows(RAW, 10)
        assert files_of(folder) == {"gowalla.inter", "prepare.json", DOWNLOAD}


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        ("missing.txt.gz", "does not exist; expected the raw file of gowalla"),
        (".", "is not a file"),
        ("ftp://localhost/raw.txt.gz", "http, https or file"),
        ("http://[", "not an address"),
        ("http://localhost:port/raw", "not an address"),
    ],
)
def test_a_source_that_cannot_be_read(tmp_path: Path, source: str, pattern: str) -> None:
    refused(tmp_path, source, pattern)


@pytest.mark.parametrize("form", ["file:", "~"])
def test_a_file_is_read_in_place_and_its_folder_is_not_recorded(
    form: str, tmp_path: Path, raw_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = raw_file.rename(tmp_path / "a file.gz")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = make(tmp_path / "out", own.as_uri() if form == "file:" else "~/a file.gz")
    assert rows_of(path) == expected_rows(RAW, 10)
    assert files_of(tmp_path / "out") == {"gowalla.inter", "prepare.json"}
    assert own.exists()
    assert json.loads((path.parent / "prepare.json").read_text())["source"] == "a file.gz"


GOOD = checkin(1, "2010-10-19T23:55:27Z", 2).strip("\n")


MALFORMED = {
    "1\t2010-10-19T23:55:27Z\t30.2\t-97.7": "it has 4 fields; expected 5, separated by '\\t'",
    f"{GOOD}\t7": "it has 6 fields",
    GOOD.replace("\t", " "): "it has 1 fields",
    GOOD.replace("1\t", "\t", 1): "column 'user': '' is empty",
    GOOD.replace("2010-10-19T23:55:27Z", ""): "column 'timestamp': '' is not a time",
    GOOD.replace("2010-10-19T23:55:27Z", "1287532527"): "column 'timestamp': '1287532527' is not a date with a zone",
    GOOD.replace("2010-10-19", "2010-13-19"): "column 'timestamp': '2010-13-19T23:55:27Z' is not a time",
    "user_id:token\titem_id:token\ttimestamp:float": "it has 3 fields",
}


@pytest.mark.parametrize("bad", MALFORMED)
@pytest.mark.parametrize("row", [7, 19])
def test_a_malformed_line_is_named(tmp_path: Path, bad: str, row: int) -> None:
    lines = [GOOD] * 20
    lines[row - 1] = bad
    raw = tmp_path / "raw.txt.gz"
    raw.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    message = refused(tmp_path, raw, f"^'{raw}', line {row}")
    assert MALFORMED[bad] in message


def test_an_empty_file_and_an_empty_core(tmp_path: Path, raw_file: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused(tmp_path, empty, "is empty")
    refused(tmp_path, raw_file, "no users and items with 1000 interactions each", minimum=1000)
    refused(tmp_path, raw_file, "minimum=0; expected a whole number of at least 1", minimum=0)


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt.gz"
    raw.write_bytes(ZIPPED[:-100])
    refused(tmp_path, raw, "truncated gzip")
    raw.write_bytes(ZIPPED[:2000] + bytes(100) + ZIPPED[2100:])
    message = refused(tmp_path, raw, "damaged gzip")
    assert "delete" not in message  # it is the user's own


def test_a_truncated_download_of_unknown_size(tmp_path: Path, server: Server) -> None:
    server.sized, server.cuts = False, [3000]
    refused(tmp_path, server.url, "truncated gzip")


def test_too_large_downloads(tmp_path: Path, server: Server, entry: Any) -> None:
    entry(download_limit=2000)
    refused(tmp_path, server.url, f"is {len(ZIPPED):,} bytes long; expected a download of at most 2,000 bytes")
    assert files_of(tmp_path / "out") == set()
    server.sized = False
    refused(tmp_path, server.url, "is longer; expected a download of at most 2,000 bytes")
    assert files_of(tmp_path / "out") == set()


def test_a_download_that_fails_leaves_no_folder_that_was_made_for_it(tmp_path: Path, entry: Any) -> None:
    entry(url="http://127.0.0.1:1/raw.txt")
    with pytest.raises(UserError, match="Cannot download gowalla"):
        prepare("gowalla", tmp_path / "new" / "data", show_progress=False)
    assert not any(tmp_path.iterdir())


def test_an_endless_download_is_left_at_the_limit(tmp_path: Path, server: Server, entry: Any) -> None:
    entry(download_limit=2000)
    sent, left = [], threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(200):
                request.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            left.set()

    server.answer = answer  # type: ignore[method-assign]
    refused(tmp_path, server.url, "is longer; expected a download of at most 2,000 bytes")
    assert left.wait(10)
    assert len(sent) < 200


def test_a_gzip_bomb(tmp_path: Path, entry: Any) -> None:
    entry(raw_limit=5_000_000)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress((GOOD + "\n").encode() * 150_000, compresslevel=1))
    assert bomb.stat().st_size < 100_000
    refused(tmp_path, bomb, "holds more; expected a decompressed file of at most 5,000,000 bytes")


def test_another_file_at_the_published_address(tmp_path: Path, server: Server, entry: Any) -> None:
    entry(url=server.url, sha256="0" * 64)
    refused(tmp_path, None, f"has sha256 {hashlib.sha256(ZIPPED).hexdigest()}; expected {'0' * 64}")


def test_a_folder_that_cannot_be_made(tmp_path: Path, raw_file: Path) -> None:
    (tmp_path / "out").write_text("a file stands in the folder's place")
    with pytest.raises(
        UserError, match=r"Cannot prepare gowalla in .*; set --data_path to a folder that can be written"
    ):
        make(tmp_path / "out", raw_file)


@pytest.mark.parametrize("step", ["downloading", "writing the result"])
def test_a_full_disk_leaves_nothing(step: str, tmp_path: Path, raw_file: Path, server: Server) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # writing more fails, as on a full disk
    try:
        with pytest.raises(UserError, match=r"Cannot prepare gowalla in .*; set --data_path"):
            make(tmp_path / "out", server.url if step == "downloading" else raw_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out" / "gowalla").exists()


# The record


def test_the_record_tells_what_the_result_was_made_from(tmp_path: Path, server: Server) -> None:
    path = make(tmp_path, server.url)
    rows = rows_of(path)
    record = json.loads((path.parent / "prepare.json").read_text())
    assert record.pop("summary")["rows read"] == "1,500"
    assert record == {
        "dataset": "gowalla",
        "source": server.url,
        "minimum": 10,
        "raw": {"bytes": len(ZIPPED), "sha256": hashlib.sha256(ZIPPED).hexdigest(), "interactions": 1500},
        "result": {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "users": len({user for user, _, _ in rows}),
            "items": len({item for _, item, _ in rows}),
            "interactions": len(rows),
        },
    }


def test_what_is_prepared_is_left_alone_and_another_minimum_needs_no_network(tmp_path: Path, server: Server) -> None:
    path = make(tmp_path, server.url)
    written = path.stat().st_mtime_ns
    assert make(tmp_path) == make(tmp_path, server.url) == path
    assert path.stat().st_mtime_ns == written
    assert rows_of(make(tmp_path, server.url, minimum=5)) == expected_rows(RAW, 5)
    assert len(server.requests) == 1


def test_another_address_is_downloaded_even_if_there_is_a_download(tmp_path: Path, server: Server) -> None:
    make(tmp_path, server.url)
    server.content = gzip.compress(checkins(seed=1))
    with pytest.raises(UserError, match=r"expected [0-9a-f]{64}, which .*prepare.json recorded"):
        make(tmp_path, f"{server.url}?other", minimum=5)
    assert len(server.requests) == 2


def test_a_lost_result_is_made_again(tmp_path: Path, raw_file: Path) -> None:
    path = make(tmp_path, raw_file)
    content = path.read_bytes()
    path.unlink()
    assert make(tmp_path, raw_file).read_bytes() == content


def test_another_raw_file_than_the_recorded_one(tmp_path: Path, raw_file: Path) -> None:
    path = make(tmp_path, raw_file)
    content = path.read_bytes()
    raw_file.write_bytes(gzip.compress(checkins(seed=1)))
    with pytest.raises(UserError, match=r"expected [0-9a-f]{64}, which .*prepare.json recorded.*delete that record"):
        make(tmp_path, raw_file)
    assert path.read_bytes() == content


@pytest.mark.parametrize("minimum", [10, 5])
def test_a_result_that_was_changed_or_is_someone_elses_is_not_touched(
    tmp_path: Path, raw_file: Path, minimum: int
) -> None:
    path = make(tmp_path, raw_file)
    path.write_text("mine")
    with pytest.raises(UserError, match="changed after it was prepared"):
        make(tmp_path, raw_file, minimum)
    (path.parent / "prepare.json").unlink()
    with pytest.raises(UserError, match="was not written by"):
        make(tmp_path, raw_file, minimum)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"source": "x", "minimum": 10, "raw": 3, "result": {}}', "without its summary"]
)
def test_a_record_that_is_none(tmp_path: Path, raw_file: Path, content: str) -> None:
    path = make(tmp_path, raw_file)
    if content == "without its summary":
        record = json.loads((path.parent / "prepare.json").read_text())
        content = json.dumps({key: value for key, value in record.items() if key != "summary"})
    (path.parent / "prepare.json").write_text(content)
    with pytest.raises(UserError, match="not a record that `recbole-kd prepare` wrote"):
        make(tmp_path, raw_file)


def test_the_table_can_be_listed() -> None:
    for name, entry in PREPARABLE.items():
        assert entry.description, name
        assert "\n" not in entry.description, name


# A table of one's own

EVENTS = [
    ("c1", "007", 5, "2024-01-03T10:00:00"),
    ("c2", '"Alien", part 2', 4, "2024-01-02T10:00:00"),
    ("c1", "007", 3, "2024-01-01T10:00:00"),
    ("c2", "NA", 1, "2024-01-05T10:00:00"),
    ("c1", "NA", 4, "2024-01-04T10:00:00"),
]
SHOP = Columns("customer", "sku", "ts", "stars")


def events_file(path: Path, form: str) -> Path:
    """EVENTS as a file, with a column that nobody reads between the others."""
    rows = [{"customer": c, "note": "a;b\tc", "sku": i, "stars": s, "ts": t} for c, i, s, t in EVENTS]
    if form == "parquet":
        table = pa.Table.from_pylist(rows)
        moments = table["ts"].cast(pa.timestamp("ns"))
        pq.write_table(table.set_column(4, "ts", moments), path)
        return path
    with path.open("w", newline="", encoding="utf-8-sig" if form == "marked" else "utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";" if form == "semicolons" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def own(folder: Path, source: Path, columns: Columns = SHOP, minimum: int = 1) -> Path:
    return prepare("shop", folder, str(source), show_progress=False, minimum=minimum, columns=columns)


@pytest.mark.parametrize("form", ["commas", "semicolons", "marked", "parquet"])
def test_a_table_of_events_becomes_an_atomic_file(tmp_path: Path, form: str) -> None:
    path = own(tmp_path / "dataset", events_file(tmp_path / "events", form))
    assert path.read_text().splitlines() == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "c1\t007\t3\t1704103200",
        "c1\tNA\t4\t1704362400",
        'c2\t"Alien", part 2\t4\t1704189600',
        "c2\tNA\t1\t1704448800",
    ]


def test_training_reads_what_was_prepared(tmp_path: Path) -> None:
    source = tmp_path / "events.csv"
    lines = [f"c{row % 40},{'i' if row % 3 else '# '}{(7 * row) % 50}" for row in range(900)]
    source.write_text("\n".join(["customer,sku", *lines]))
    own(tmp_path, source, Columns("customer", "sku"), minimum=4)
    config = KDConfig("BPR", "shop", config_dict={"data_path": str(tmp_path), "distill": [], "use_gpu": False})
    splits = Splits(config)
    assert {line.split(",")[0] for line in lines} == set(splits.user_tokens[1:])
    assert set(splits.item_tokens[1:]) == {line.split(",")[1] for line in lines}


def test_a_sequential_model_trains_on_what_was_prepared_with_times(tmp_path: Path) -> None:
    """No setting names the column of time, which is RecBole's default ``TIME_FIELD``."""
    source = tmp_path / "events.csv"
    lines = [f"c{row % 40},i{(7 * row + row // 40) % 50},{10_000 - row}" for row in range(400)]
    source.write_text("\n".join(["customer,sku,ts", *lines]))
    own(tmp_path, source, Columns("customer", "sku", "ts"))
    settings = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path), "use_gpu": False, "epochs": 1}
    config = KDConfig("SASRec", "shop", config_dict={**settings, "distill": []})
    splits = Splits(config)
    items, lengths = splits.sequences_after([splits.train, splits.valid, splits.test])
    user = splits.user_tokens.index("c3")
    latest_last = [f"i{(7 * row + row // 40) % 50}" for row in range(363, 0, -40)]
    assert [splits.item_tokens[item] for item in items[user, : lengths[user]]] == latest_last
    assert run_recbole_kd("SASRec", "shop", config_dict=settings)["test_result"].keys() >= {"recall@10"}


def test_the_summary_says_what_was_dropped_and_what_is_left(tmp_path: Path) -> None:
    source = events_file(tmp_path / "events.csv", "commas")
    path = own(tmp_path, source, dataclasses.replace(SHOP, minimum_rating=3.0))
    said = dict(re.split(r"\s{2,}", line) for line in described(path).splitlines())
    assert said == {
        "rows read": "5",
        "dropped: rated below 3": "1",
        "dropped: a pair again": "1",
        "dropped: users and items with fewer than 1": "0",
        "rows written": "3",
        "users": "2",
        "items": "3",
        "density": "50.0000%",
        "from": "2024-01-01 10:00:00",
        "to": "2024-01-04 10:00:00",
        "users of the last 10% in time that are not in the rest": "0.0%",
        "items of the last 10% in time that are not in the rest": "100.0%",
    }


@pytest.mark.parametrize("form", ["commas", "parquet"])
def test_an_event_without_a_rating_is_dropped_where_a_rating_is_asked_for(tmp_path: Path, form: str) -> None:
    source = tmp_path / "events"
    if form == "parquet":
        pq.write_table(
            pa.table({"customer": ["c1", "c1", "c2"], "sku": ["a", "b", "a"], "stars": [5, None, 4]}), source
        )
    else:
        source.write_text("customer,sku,stars\nc1,a,5\nc1,b,\nc2,a,4\n")
    columns = Columns("customer", "sku", rating="stars")
    assert own(tmp_path / "all", source, columns).read_text().splitlines()[1:] == ["c1\ta\t5", "c1\tb\t", "c2\ta\t4"]
    rated = own(tmp_path / "rated", source, dataclasses.replace(columns, minimum_rating=1.0))
    assert rated.read_text().splitlines()[1:] == ["c1\ta\t5", "c2\ta\t4"]


def test_the_same_again_is_left_alone_and_new_events_are_read(tmp_path: Path) -> None:
    source = events_file(tmp_path / "events.csv", "commas")
    path = own(tmp_path, source)
    written = path.stat().st_mtime_ns
    assert own(tmp_path, source).stat().st_mtime_ns == written
    with source.open("a") as file:
        file.write("c9,,x,5,2024-02-01\n")
    assert own(tmp_path, source).read_text().endswith("c9\tx\t5\t1706745600\n")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user": "custmer"},
            "has no column 'custmer'; it has customer, note, .* Did you mean 'customer'.* Set --user",
        ),
        ({"item": "customer"}, "--user and --item are both 'customer'"),
        ({"rating": None, "minimum_rating": 3.0}, "--minimum_rating is given without --rating"),
        ({"rating": "note"}, r"line 2, column 'note': .* is not a number"),
        ({"time": "note"}, r"line 2, column 'note': .* is not a time"),
        ({"time": "sku"}, "--item and --time are both 'sku'; expected two columns"),
        ({"rating": "customer"}, "--user and --rating are both 'customer'"),
        ({"separator": "|"}, "has no column 'customer'"),
    ],
)
def test_columns_that_are_not_as_said_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    source = events_file(tmp_path / "events.csv", "commas")
    with pytest.raises(UserError, match=message):
        own(tmp_path / "out", source, dataclasses.replace(SHOP, **columns))
    assert not (tmp_path / "out" / "shop").exists()


def test_an_id_that_an_atomic_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "events.csv"
    source.write_text('customer,sku\nc1,"a\tb"\n')
    with pytest.raises(UserError, match=r"The item 'a\\tb' holds a tab or a line break"):
        own(tmp_path / "out", source, Columns("customer", "sku"))


def test_a_spreadsheet_is_no_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "events.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(UserError, match="is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV"):
        own(tmp_path / "out", tmp_path / "events.xlsx")


def test_a_value_that_parquet_lacks_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"customer": ["c1", None], "sku": ["x", "y"]}), tmp_path / "events")
    with pytest.raises(UserError, match="row 2, column 'customer': it is empty"):
        own(tmp_path / "out", tmp_path / "events", Columns("customer", "sku"))


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"customer": ["", "x"]}, "row 1, column 'customer': it is empty"),
        ({"sku": ["a", "[PAD]"]}, r"row 2, column 'sku': '\[PAD\]' is not an id"),
        ({"sku": ["a", "b\0"]}, "row 2, column 'sku': .* holds a NUL byte"),
        ({"sku": ["a" * 5000, "b"]}, "row 1, column 'sku': .* is longer than 4,096 bytes"),
        ({"customer": [7.0, NAN]}, "row 2, column 'customer': it is empty"),
        ({"ts": [1.5, NAN]}, "row 2, column 'ts': it is empty"),
        ({"ts": [float("inf"), 1.5]}, "row 1, column 'ts': 'inf' is not a time"),
        ({"ts": ["2024-01-02", "soon"]}, "Cannot read"),
        ({"customer": pa.array([], pa.string()), "sku": pa.array([], pa.string()), "ts": pa.array([])}, "has no rows"),
    ],
)
def test_what_training_would_refuse_is_refused_in_parquet(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    usual: dict[str, Any] = {"customer": ["c1", "c2"], "sku": ["x", "y"], "ts": [1.5, 2.5]}
    pq.write_table(pa.table({**usual, **columns}), tmp_path / "events")
    with pytest.raises(UserError, match=message):
        own(tmp_path / "out", tmp_path / "events", Columns("customer", "sku", "ts"))
    assert not (tmp_path / "out" / "shop").exists()


@pytest.mark.parametrize(
    ("times", "written"),
    [
        (pa.array([1_700_000_000_122_999_907, 1_700_000_001_500_000_000], pa.timestamp("ns")), "1700000000.123"),
        (["2023-11-14T22:13:20.122999907", "2023-11-14T22:13:21.5"], "1700000000.123"),
        (["2023-11-14", "2023-11-15"], "1699920000"),
        (["2023-11-14T00:00:00Z", "2023-11-15T00:00:00Z"], "1699920000"),
        (["12", "13"], "12"),
        (pa.array([12.0, 13.0], pa.float32()), "12"),
    ],
)
def test_times_as_pandas_writes_them_are_read(tmp_path: Path, times: Any, written: str) -> None:
    """Nanoseconds are cut to microseconds; a float32 holds no finer ones."""
    table = pa.table({"customer": [12.0, 1e16], "sku": [3, 4], "ts": times})
    pq.write_table(table, tmp_path / "events")
    path = own(tmp_path / "out", tmp_path / "events", Columns("customer", "sku", "ts"))
    head, first, second = (line.split("\t") for line in path.read_text().splitlines())
    assert head[0] == "user_id:token"
    assert [first[0], second[0]] == ["12", "10000000000000000"]
    assert float(first[2]) == pytest.approx(float(written), abs=1e-5)


def test_a_refusal_leaves_the_users_own_files(tmp_path: Path) -> None:
    """Browsers call a download that is not finished NAME.part."""
    folder = tmp_path / "shop"
    folder.mkdir()
    source = events_file(folder / "events.csv.part", "commas")
    with pytest.raises(UserError, match="has no column 'custmer'"):
        own(tmp_path, source, dataclasses.replace(SHOP, user="custmer"))
    assert source.is_file()


@pytest.mark.parametrize("name", ["", "..", "a/b", "."])
def test_a_dataset_has_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a name"):
        prepare(name, tmp_path, "events.csv", columns=SHOP)
