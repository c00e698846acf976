"""Public datasets become atomic files: what is kept, how a download survives, and what is refused.

The raw files are small, in SNAP's format, and served on the loopback address by a server that misbehaves as it is told.
"""

from __future__ import annotations

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
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.data.prepare import PREPARABLE, can_prepare, k_core, prepare
from recbole_kd.errors import UserError

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


class Server:
    """Serves one file and keeps the headers of every request.

    Attributes:
        cuts: after how many bytes the next responses break, one entry a response; those after the last are whole.
        validator_name, validator: the header that identifies the file's state.
        ranges: whether a Range is honoured (if If-Range still holds) or ignored.
        sized: whether the response says how long it is.
        status: an error that is answered instead.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.validator_name, self.validator = "ETag", '"first"'
        self.cuts: list[int] = []
        self.ranges, self.sized = True, True
        self.status: Optional[int] = None
        self.requests: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data/loc-gowalla_totalCheckins.txt.gz"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(request.headers))
        if self.status is not None:
            request.send_error(self.status)
            return
        body, start = self.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if self.ranges and asked and request.headers.get("If-Range") == self.validator:
            start = int(asked[1])
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            request.send_response(200)
        request.send_header(self.validator_name, self.validator)
        if self.sized:
            request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(body)
        request.wfile.write(body[start:end])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(ZIPPED)
    yield server
    server.http.shutdown()
    server.http.server_close()


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


def test_a_file_of_many_blocks_gives_the_same(tmp_path: Path, raw_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make(tmp_path / "one", raw_file).read_bytes()
    monkeypatch.setattr(module, "_BLOCK", 501)
    monkeypatch.setattr(module, "_ROWS", 30)
    assert make(tmp_path / "many", raw_file).read_bytes() == reference


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


def test_a_transfer_that_breaks_goes_on_where_it_stopped(tmp_path: Path, raw_file: Path, server: Server) -> None:
    server.cuts = [3000, 1000]
    path = make(tmp_path / "broken", server.url)
    assert "Range" not in server.requests[0]
    assert [(r["Range"], r["If-Range"]) for r in server.requests[1:]] == [
        ("bytes=3000-", server.validator),
        ("bytes=4000-", server.validator),
    ]
    assert path.read_bytes() == make(tmp_path / "whole", raw_file).read_bytes()


def test_the_next_call_goes_on_where_the_last_one_gave_up(tmp_path: Path, raw_file: Path, server: Server) -> None:
    server.cuts = [3000, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"ended after 3,000 of [\d,]+ bytes; the next run goes on after the 3,000"
    ) as error:
        make(tmp_path, server.url)
    assert "`recbole-kd prepare --dataset=gowalla --source=FILE`" in str(error.value)
    assert files_of(tmp_path) == {f"{DOWNLOAD}.part", f"{DOWNLOAD}.part.json"}
    server.requests.clear()
    path = make(tmp_path, server.url)
    assert [request["Range"] for request in server.requests] == ["bytes=3000-"]
    assert path.read_bytes() == make(tmp_path / "whole", raw_file).read_bytes()


def test_a_slow_but_growing_transfer_is_not_given_up(tmp_path: Path, server: Server) -> None:
    server.cuts = [500] * 10
    assert rows_of(make(tmp_path, server.url)) == expected_rows(RAW, 10)
    assert len(server.requests) == 11


def test_a_server_that_ignores_ranges_sends_it_all_again(tmp_path: Path, server: Server) -> None:
    server.ranges, server.cuts = False, [3000]
    assert rows_of(make(tmp_path, server.url)) == expected_rows(RAW, 10)
    assert server.requests[1]["Range"] == "bytes=3000-"


def test_a_file_that_changed_meanwhile_is_not_pieced_together(tmp_path: Path, server: Server) -> None:
    server.cuts = [3000, 0, 0, 0]
    with pytest.raises(UserError):
        make(tmp_path, server.url)
    changed = checkins(seed=1)
    server.content, server.validator = gzip.compress(changed, mtime=0), '"second"'
    assert rows_of(make(tmp_path, server.url)) == expected_rows(changed, 10)


def test_without_a_strong_validator_a_download_starts_over(tmp_path: Path, server: Server) -> None:
    server.validator, server.cuts = 'W/"weak"', [3000] * 4
    message = refused(tmp_path, server.url, "ended after 3,000")
    assert "goes on" not in message
    assert rows_of(make(tmp_path / "out", server.url)) == expected_rows(RAW, 10)
    assert not any("Range" in request for request in server.requests)


def test_a_date_serves_where_there_is_no_tag(tmp_path: Path, server: Server) -> None:
    server.validator_name, server.validator = "Last-Modified", "Tue, 19 Oct 2010 23:55:27 GMT"
    server.cuts = [3000]
    assert rows_of(make(tmp_path, server.url)) == expected_rows(RAW, 10)
    assert (server.requests[1]["Range"], server.requests[1]["If-Range"]) == ("bytes=3000-", server.validator)


def test_the_beginning_of_another_address_is_not_gone_on_with(tmp_path: Path, server: Server) -> None:
    server.cuts = [3000, 0, 0, 0]
    with pytest.raises(UserError):
        make(tmp_path, server.url)
    server.requests.clear()
    make(tmp_path, f"{server.url}?mirror=2")
    assert "Range" not in server.requests[0]


def test_more_bytes_than_the_server_has_start_over(tmp_path: Path, server: Server) -> None:
    server.cuts = [3000, 0, 0, 0]
    with pytest.raises(UserError):
        make(tmp_path, server.url)
    with open(tmp_path / "gowalla" / f"{DOWNLOAD}.part", "ab") as file:
        file.write(bytes(2 * len(ZIPPED)))
    original = server.answer

    def answer(request: BaseHTTPRequestHandler) -> None:
        server.status = 416 if "Range" in request.headers else None
        original(request)

    server.answer = answer  # type: ignore[method-assign]
    assert rows_of(make(tmp_path, server.url)) == expected_rows(RAW, 10)


def test_an_interrupt_leaves_what_was_received(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = module._next_block, []

    def interrupted(response: Any) -> bytes:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(response)

    monkeypatch.setattr(module, "_next_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, server.url)
    assert files_of(tmp_path) == {f"{DOWNLOAD}.part", f"{DOWNLOAD}.part.json"}
    received = (tmp_path / "gowalla" / f"{DOWNLOAD}.part").read_bytes()
    assert received
    assert ZIPPED.startswith(received)


def test_an_interrupt_of_the_conversion_keeps_the_download_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, server.url)
    assert files_of(tmp_path) == {f"{DOWNLOAD}.part", f"{DOWNLOAD}.part.json"}
    server.requests.clear()
    assert rows_of(make(tmp_path, server.url)) == expected_rows(RAW, 10)
    assert server.requests == []  # it was complete


# What is refused: one line, and nothing under a final name


def refused(tmp_path: Path, source: object, pattern: str, minimum: int = 10) -> str:
    with pytest.raises(UserError, match=pattern) as error:
        make(tmp_path / "out", source, minimum)
    assert "\n" not in str(error.value)
    assert not files_of(tmp_path / "out") & {"gowalla.inter", "prepare.json", DOWNLOAD}
    assert not list(tmp_path.rglob("*.tmp"))
    return str(error.value)


def test_an_unknown_dataset_names_the_closest(tmp_path: Path) -> None:
    assert can_prepare("gowalla")
    assert not can_prepare("gowala")
    with pytest.raises(UserError, match="Did you mean 'gowalla'"):
        prepare("gowala", tmp_path)


def test_no_network_says_what_to_do_instead(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4), (429, 4)])
def test_errors_of_the_server_that_may_pass_are_tried_again(
    tmp_path: Path, server: Server, status: int, requests: int
) -> None:
    server.status = status
    refused(tmp_path, server.url, f"the server answered {status}")
    assert len(server.requests) == requests


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


def test_a_file_address_is_read_in_place(tmp_path: Path, raw_file: Path) -> None:
    assert rows_of(make(tmp_path / "out", raw_file.as_uri())) == expected_rows(RAW, 10)
    assert files_of(tmp_path / "out") == {"gowalla.inter", "prepare.json"}
    assert raw_file.exists()


GOOD = checkin(1, "2010-10-19T23:55:27Z", 2).strip("\n")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "1\t2010-10-19T23:55:27Z\t30.2\t-97.7",
        f"{GOOD}\t7",
        GOOD.replace("\t", " "),
        GOOD.replace("1\t", "\t", 1),
        GOOD.replace("1\t", "one\t", 1),
        GOOD.replace("1\t", "99999999999999999999\t", 1),
        GOOD.replace("2010-10-19T23:55:27Z", ""),
        GOOD.replace("2010-10-19T23:55:27Z", "1287532527"),
        GOOD.replace("2010-10-19", "2010-13-19"),
        "user_id:token\titem_id:token\ttimestamp:float",
    ],
)
@pytest.mark.parametrize("row", [1, 7, 19])
@pytest.mark.parametrize("block", [200, 1 << 24])
def test_a_malformed_line_is_named(
    tmp_path: Path, bad: str, row: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    lines = [GOOD] * 20
    lines[row - 1] = bad
    raw = tmp_path / "raw.txt"
    raw.write_text("\n".join(lines) + "\n")
    message = refused(tmp_path, raw, f"^Line {row} of ")
    assert f"is {bad!r}; expected user, time such as 2010-10-19T23:55:27Z, latitude, longitude, location" in message


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1000)
    raw = tmp_path / "raw.txt"
    raw.write_text(GOOD + "\n" + "9" * 5000)
    refused(tmp_path, raw, "has a longer line; expected lines of at most 1,000 bytes")


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
    refused(tmp_path, server.url, "truncated gzip .*delete it to download it again")


def test_too_large_downloads(tmp_path: Path, server: Server, entry: Any) -> None:
    entry(download_limit=2000)
    refused(tmp_path, server.url, f"is {len(ZIPPED):,} bytes long; expected a download of at most 2,000 bytes")
    assert files_of(tmp_path / "out") == set()
    server.sized = False
    refused(tmp_path, server.url, "is longer; expected a download of at most 2,000 bytes")
    assert files_of(tmp_path / "out") == set()


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
    message = refused(tmp_path, None, f"has sha256 {hashlib.sha256(ZIPPED).hexdigest()}; expected {'0' * 64}")
    assert f"{DOWNLOAD}.part" in message


def test_a_folder_that_cannot_be_made(tmp_path: Path, raw_file: Path) -> None:
    (tmp_path / "out").write_text("a file stands in the folder's place")
    with pytest.raises(
        UserError, match=r"Cannot prepare gowalla in .*; set --data_path to a folder that can be written"
    ):
        make(tmp_path / "out", raw_file)


def test_a_full_disk_leaves_nothing(tmp_path: Path, raw_file: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # writing more fails, as on a full disk
    try:
        with pytest.raises(UserError, match=r"Cannot prepare gowalla in .*; set --data_path"):
            make(tmp_path / "out", raw_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out" / "gowalla").exists()


# The record


def test_the_record_tells_what_the_result_was_made_from(tmp_path: Path, server: Server) -> None:
    path = make(tmp_path, server.url)
    rows = rows_of(path)
    assert json.loads((path.parent / "prepare.json").read_text()) == {
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"source": "x", "minimum": 10, "raw": 3, "result": {}}'])
def test_a_record_that_is_none(tmp_path: Path, raw_file: Path, content: str) -> None:
    path = make(tmp_path, raw_file)
    (path.parent / "prepare.json").write_text(content)
    with pytest.raises(UserError, match="not a record that `recbole-kd prepare` wrote"):
        make(tmp_path, raw_file)


def test_the_table_can_be_listed() -> None:
    for name, entry in PREPARABLE.items():
        assert entry.description, name
        assert "\n" not in entry.description, name
