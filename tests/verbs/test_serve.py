"""A bundle over HTTP: its answers are `recommend`'s, its errors are JSON, and another bundle takes its place unnoticed."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import recbole_kd
from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.files.atomic import whole_folder
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.verbs.export import run_export
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd
from tests.files.test_bundle import ITEMS, USERS, write
from tests.sequential import SMALL

pytest.importorskip("fastapi_offline", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("httpx", reason="httpx, by which FastAPI is tested, is not installed")

from fastapi.testclient import TestClient

from recbole_kd.verbs.serve.app import LARGEST_BODY, application
from recbole_kd.verbs.serve.live import Live, Ready

#: Scores of u1: x 3, y 2, z 1; of u2: x 1.5, y 3, z 8.5. u1 has seen x and z.
VECTORS = {"users": USERS, "items": ITEMS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", VECTORS)


@pytest.fixture
def client(folder: Path) -> TestClient:
    return TestClient(application(Live(folder)), raise_server_exceptions=False)


def exchange(folder: Path, sign: float) -> None:
    """Another bundle takes the place of the folder's, as ``export --overwrite=true`` puts it there."""
    with whole_folder(folder) as new:
        write(new, {"users": USERS * np.float32(sign), "items": ITEMS})


# Answers


def test_a_user_gets_the_best_items_that_are_not_seen(client: TestClient) -> None:
    answer = client.get("/recommend", params={"user": "u2", "k": 2})
    assert answer.json() == {"user": "u2", "items": ["z", "y"], "scores": [8.5, 3.0]}
    assert client.get("/recommend?user=u1").json()["items"] == ["y"]
    assert client.get("/recommend?user=u1&exclude_seen=false").json()["items"] == ["x", "y", "z"]


def test_a_history_is_answered_for_somebody_who_is_not_in_the_data(client: TestClient) -> None:
    answer = client.post("/recommend", json={"history": ["x", "none"], "k": 3}).json()
    assert (answer["user"], answer["unknown"]) == ("new", ["none"])
    assert answer["items"] == ["y", "z"]
    assert "x" in client.post("/recommend", json={"history": ["x"], "exclude_seen": False, "k": 3}).json()["items"]


def test_ids_may_be_written_as_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "numbers", VECTORS)
    client = TestClient(application(Live(folder)))
    assert client.post("/recommend", json={"history": [7, "x"]}).json()["unknown"] == ["7"]


def test_answers_are_those_of_recommend(tmp_path: Path) -> None:
    data = write_known_answer(tmp_path / "data")
    settings = known_answer_settings(data, baseline=None, epochs=20)
    checkpoint = run_recbole_kd("BPR", "known-answer", config_dict=settings)["checkpoint"]
    given = {"data_path": str(data)}
    run_export(checkpoint, "bundle", config_dict=given)
    recommender, client = Recommender(checkpoint, config_dict=given), TestClient(application(Live("bundle")))
    for user, items, scores in recommender.recommend(k=10):
        found = client.get("/recommend", params={"user": user, "k": 10}).json()
        assert found["items"] == items
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-5, atol=1e-6)
    history = ["i1", "i5", "i9", "i13"]
    expected = recommender.recommend_after(history, k=10)
    found = client.post("/recommend", json={"history": history, "k": 10}).json()
    assert found["items"] == expected.items
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-5)


@pytest.mark.parametrize("model", ["GRU4Rec", pytest.param("SASRec", marks=pytest.mark.slow)])
def test_a_graph_answers_for_users_and_for_histories(model: str, tmp_path: Path) -> None:
    """A sequential model's bundle: the encoder runs in onnxruntime, after a user's history or after a new one."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    data = write_known_sequences(tmp_path / "data")
    settings = known_sequences_settings(data, baseline=None, epochs=2, MAX_ITEM_LIST_LENGTH=5, **SMALL[model])
    checkpoint = run_recbole_kd(model, "known-sequences", config_dict=settings)["checkpoint"]
    given = {"data_path": str(data)}
    run_export(checkpoint, "bundle", config_dict=given)
    recommender, client = Recommender(checkpoint, config_dict=given), TestClient(application(Live("bundle")))
    assert client.get("/health").json()["kind"] == "sequence"
    for user, items, scores in itertools.islice(recommender.recommend(k=5), 8):
        found = client.get("/recommend", params={"user": user, "k": 5}).json()
        assert found["items"] == items
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-4, atol=1e-5)
    history = [*recommender.recommend_after(["i1"], k=5).items, "i1", "i2"]  # longer than the encoder reads
    expected = recommender.recommend_after(history, k=5)
    found = client.post("/recommend", json={"history": [*history, "nothing"], "k": 5}).json()
    assert (found["items"], found["unknown"]) == (expected.items, ["nothing"])
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-4, atol=1e-5)
    assert client.post("/recommend", json={"history": ["nothing"]}).status_code == 422
    assert client.post("/recommend", json={"history": []}).status_code == 422


@pytest.mark.parametrize("kind", [np.float16, np.int8])
def test_smaller_numbers_are_served_as_they_are(kind: Any, tmp_path: Path) -> None:
    """These vectors are multiples of 0.5, so that nothing is lost."""
    tensors: dict[str, Any] = {name: (2 * table).astype(kind) for name, table in VECTORS.items()}
    if kind is np.int8:
        tensors |= {f"{name}_scale": np.full(len(table), 0.5, np.float32) for name, table in VECTORS.items()}
    else:
        tensors = {name: table / 2 for name, table in tensors.items()}
    client = TestClient(
        application(Live(write(tmp_path / "small", tensors, format="recbole-kd-export/2", kind="vectors")))
    )
    whole = TestClient(application(Live(write(tmp_path / "whole", VECTORS))))
    for ask in ({"user": "u1"}, {"user": "u2"}):
        assert client.get("/recommend", params=ask).json() == whole.get("/recommend", params=ask).json()
    ask = {"history": ["y", "z"], "exclude_seen": False}
    found, expected = (one.post("/recommend", json=ask).json() for one in (client, whole))
    assert found["items"] == expected["items"]
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-6)


def test_health_says_what_answers(client: TestClient) -> None:
    found = client.get("/health").json()
    assert found.pop("loaded").endswith("+00:00")
    assert found == {
        "status": "ok",
        "model": "BPR",
        "dataset": "three",
        "kind": "vectors",
        "users": 2,
        "items": 3,
        "problem": "",
    }


def test_the_page_of_the_interface_needs_no_other_machine(client: TestClient) -> None:
    page = client.get("/docs").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) == 3
    for part in parts:
        assert part.startswith("/")
        assert client.get(part).status_code == 200
    told = client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/recommend", "/health"}
    assert set(told["paths"]["/recommend"]) == {"get", "post"}
    assert set(told["paths"]["/recommend"]["get"]["responses"]) == {"200", "404", "422"}


# Bad requests


def posted(content: str | bytes) -> dict[str, Any]:
    return {"method": "POST", "content": content, "headers": {"content-type": "application/json"}}


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "unknown user": ("/recommend?user=nobody", {}, 404, "User 'nobody' is not in three."),
    "a NUL": ("/recommend?user=u1%00", {}, 404, r"User 'u1\x00' is not in three."),
    "no text in UTF-8": ("/recommend?user=%ff%fe", {}, 404, "is not in three"),
    "a long id": (f"/recommend?user={'u' * 5000}", {}, 404, "uuu'... is not in three."),
    "no user": ("/recommend", {}, 422, "user: Field required"),
    "k too large": ("/recommend?user=u1&k=4", {}, 422, "k: 4 exceeds the catalogue of 3 items"),
    "k beyond all": (f"/recommend?user=u1&k={'9' * 400}", {}, 422, "k: "),
    "k of 0": ("/recommend?user=u1&k=0", {}, 422, "k: Input should be greater than or equal to 1"),
    "k no number": ("/recommend?user=u1&k=many", {}, 422, "k: Input should be a valid integer"),
    "a misspelling": ("/recommend?user=u1&K=3", {}, 422, "K: Extra inputs are not permitted"),
    "another path": ("/recomend?user=u1", {}, 404, "Not Found"),
    "a slash too many": ("/recommend/?user=u1", {}, 404, "Not Found"),
    "another method": ("/recommend?user=u1", {"method": "DELETE"}, 405, "Method Not Allowed"),
    "a file above": ("/static-offline-docs/../core.py", {}, 404, "Not Found"),
    "10 MB": ("/recommend", posted(b"[" * 10_000_000), 413, "the body is longer than 1,048,576 bytes"),
    "10 MB on GET": ("/recommend?user=u1", {"content": b"x" * 10_000_000}, 413, "the body is longer"),
    "no JSON": ("/recommend", posted('{"history": ['), 400, "the body is not JSON"),
    "NaN": ("/recommend", posted('{"history": ["x"], "k": NaN}'), 422, "k: "),
    "nothing": ("/recommend", posted(""), 422, "the body: Field required"),
    "nested deeply": ("/recommend", posted("[" * 500_000), 400, "body"),
    "another form": ("/recommend", posted('["x"]'), 422, "the body: Input should be"),
    "no text": ("/recommend", posted('{"history": [null]}'), 422, "history.0: Input should be a valid string"),
    "half a letter": ("/recommend", posted('{"history": ["x\\ud800"]}'), 422, "history"),
    "NUL in the history": (
        "/recommend",
        posted('{"history": ["\\u0000"]}'),
        422,
        "history: no item of it is in three.",
    ),
    "an empty history": ("/recommend", posted('{"history": []}'), 422, "history: List should have at least 1 item"),
    "another key": (
        "/recommend",
        posted('{"history": ["x"], "users": 1}'),
        422,
        "users: Extra inputs are not permitted",
    ),
    "JSON that is not said to be": (
        "/recommend",
        {"method": "POST", "content": '{"history": ["x"]}'},
        415,
        "the body needs the header 'content-type: application/json'",
    ),
    "bytes": ("/recommend", posted(b"\xff\xfe\x00"), 400, "body"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_a_line_in_json(case: str, client: TestClient) -> None:
    path, given, status, detail = BAD[case]
    answer = client.request(url=path, **{"method": "GET", **given})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert detail in answer.json()["detail"]
    assert len(answer.json()["detail"].splitlines()) == 1


def test_a_body_whose_length_is_not_announced_is_measured(client: TestClient) -> None:
    def body(size: int) -> Iterator[bytes]:
        yield b'{"history": ["x"], "k": 1'
        for _ in range(size // 1024):
            yield b" " * 1024
        yield b"}"

    headers = {"content-type": "application/json"}
    assert client.post("/recommend", content=body(LARGEST_BODY // 2), headers=headers).json()["items"] == ["y"]
    assert client.post("/recommend", content=body(LARGEST_BODY), headers=headers).status_code == 413


def test_a_body_of_the_largest_size_is_read(client: TestClient) -> None:
    body = b'{"history": ["x"], "k": 1}'
    answers = [
        client.request(url="/recommend", **posted(body.ljust(size))) for size in (LARGEST_BODY, LARGEST_BODY + 1)
    ]
    assert [answer.status_code for answer in answers] == [200, 413]


def test_a_fault_of_ours_is_told_without_its_traceback(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_kd.verbs.serve.live.best", lambda *_: 1 / 0)
    answer = client.get("/recommend?user=u1")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error; the server's log has the details"}


# Another bundle


def test_a_newer_bundle_answers_and_the_old_one_finishes(folder: Path) -> None:
    live = Live(folder)
    before = live.current
    assert not live.outdated()
    exchange(folder, -1)
    assert live.outdated()
    live.renew()
    assert not live.outdated()
    assert live.current.recommend(1, 3, True)[0] == ["x", "y", "z"]
    assert before.recommend(1, 3, True)[0] == ["z", "y", "x"]


def test_another_bundle_of_the_same_time_is_another_bundle(folder: Path) -> None:
    """Such as a copy that keeps the times of its files."""
    live, before = Live(folder), (folder / "manifest.json").stat()
    exchange(folder, -1)
    os.utime(folder / "manifest.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert live.outdated()


def test_a_damaged_bundle_does_not_take_the_place_of_a_good_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = Live(folder)
    client = TestClient(application(live))
    exchange(folder, -1)
    (folder / "items.jsonl").write_text('"x"\n"z"\n"y"\n')
    for _ in range(2):
        live.renew()
    assert live.outdated()
    assert client.get("/recommend?user=u2").json()["items"] == ["z", "y", "x"]
    assert "items.jsonl was changed after the export" in client.get("/health").json()["problem"]
    assert len(caplog.messages) == 1
    exchange(folder, -1)
    live.renew()
    assert client.get("/recommend?user=u2").json()["items"] == ["x", "y", "z"]
    assert client.get("/health").json()["problem"] == ""


def test_a_graph_that_cannot_be_computed_here_ends_no_renewal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime raises errors of its own, such as of a newer export."""

    def fails(*_: Any) -> None:
        raise RuntimeError("opset 99 is not supported.")

    live = Live(folder)
    exchange(folder, -1)
    with monkeypatch.context() as patched:
        patched.setattr(Ready, "recommend", fails)
        live.renew()
        with pytest.raises(UserError, match="cannot be computed here"):
            Live(folder)
    assert "cannot be computed here (opset 99 is not supported)" in live.problem
    assert live.current.recommend(1, 3, True)[0] == ["z", "y", "x"]
    live.renew()
    assert (live.problem, live.current.recommend(1, 3, True)[0]) == ("", ["x", "y", "z"])


def test_a_bundle_may_recommend_what_was_seen(tmp_path: Path) -> None:
    """Also what a history names, unless the request says otherwise."""
    live = Live(write(tmp_path / "again", VECTORS, repeatable=True))
    client = TestClient(application(live))
    assert set(client.post("/recommend", json={"history": ["x"]}).json()["items"]) == {"x", "y", "z"}
    assert set(client.post("/recommend", json={"history": ["x"], "exclude_seen": True}).json()["items"]) == {"y", "z"}


def test_half_a_letter_beside_known_items_is_answered(client: TestClient) -> None:
    answer = client.request(url="/recommend", **posted('{"history": ["x", "\\ud800"], "k": 1}'))
    assert (answer.status_code, answer.json()["unknown"]) == (200, ["?"])


def test_a_folder_that_is_gone_leaves_the_bundle_answering(folder: Path) -> None:
    live = Live(folder)
    shutil.rmtree(folder)
    live.renew()
    assert live.current.recommend(1, 1, True)[0] == ["z"]
    assert "holds no bundle" in live.problem


# The command

#: Begins a process in which nothing can import what a server has no need of.
BARE = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "recbole", "scipy", "pandas", "pyarrow", "ray", "safetensors", "sklearn"}:
            raise ImportError(f"{name} is nothing that a server needs")
sys.meta_path.insert(0, Blocked())
from recbole_kd.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def asked(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON of an answer over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def serving(folder: Path, *words: str, logged: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process of ``recbole-kd serve`` on a free port that answers, and that port. It is stopped as by Ctrl-C."""
    program = folder.parent / "bare.py"
    program.write_text(BARE)
    process = subprocess.Popen(
        [sys.executable, program, "serve", f"--bundle={folder}", "--port=0", *words],
        env={"PYTHONPATH": str(Path(recbole_kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        text = "".join(process.stdout.readline() for _ in range(3))
        found = re.search(r"http://127\.0\.0\.1:(\d+)/docs", text)
        assert found, text + process.communicate()[1]
        assert asked(int(found[1]), "/health")[0] == 200
        yield process, int(found[1])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, logged)
    finally:
        process.kill()


def listening(port: int) -> set[str]:
    """The addresses of this machine on which something listens at a port, as Linux tells them."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


def test_a_bundle_is_exchanged_under_load_without_an_error(folder: Path) -> None:
    """Two processes answer four clients. Each answer is wholly of one bundle, and after a while of the last one."""
    wanted = {("z", "y", "x"): [8.5, 3.0, 1.5], ("x", "y", "z"): [-1.5, -3.0, -8.5]}
    stop, wrong = threading.Event(), []
    counts = [0] * 4

    def ask(number: int, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while not stop.is_set():
                connection.request("GET", "/recommend?user=u2&k=3")
                answer = connection.getresponse()
                found = json.loads(answer.read())
                if answer.status != 200 or wanted.get(tuple(found["items"])) != found["scores"]:
                    wrong.append(found)
                counts[number] += 1
        except Exception as error:
            wrong.append(error)

    with serving(folder, "--workers=2") as (_, port):
        assert listening(port) == {"0100007F"}  # 127.0.0.1 alone
        clients = [threading.Thread(target=ask, args=(number, port)) for number in range(4)]
        for one in clients:
            one.start()
        for sign in (-1, 1, -1):
            exchange(folder, sign)
            time.sleep(0.7)
        time.sleep(2)
        stop.set()
        for one in clients:
            one.join()
        for _ in range(8):  # by either process
            assert asked(port, "/recommend?user=u2&k=3")[1]["items"] == ["x", "y", "z"]
    assert wrong == []
    assert min(counts) > 10


def test_one_process_answers_what_is_no_http_too(folder: Path) -> None:
    with serving(folder, logged="WARNING:  Invalid HTTP request received.\n") as (process, port):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(b"GET /recommend?user=u1\0 HTTP/1.1\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/recommend", b" " * 10_000_000)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (413, b'{"detail":"the body is longer than 1,048,576 bytes"}')
        assert process.poll() is None


def one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["serve", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_a_bundle_that_is_none_is_told_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line([], capsys) == "recbole-kd: serve needs a bundle; set --bundle=DIR, such as served."
    assert "holds no bundle (No such file or directory: manifest.json)" in one_line(["--bundle=none"], capsys)
    (folder / "vectors.safetensors").write_bytes(b"")
    assert "vectors.safetensors was changed after the export" in one_line([f"--bundle={folder}"], capsys)


def test_an_address_that_cannot_be_had_is_told_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = one_line([f"--bundle={folder}", f"--port={port}"], capsys)
        assert (
            line
            == f"recbole-kd: Cannot listen on 127.0.0.1:{port} (Address already in use); choose another --port or --host."
        )
    assert "Cannot listen on no host:8000 (" in one_line([f"--bundle={folder}", "--host=no host"], capsys)
    assert "--port=65536; expected a whole number of at least 0 and at most 65,535" in one_line(
        [f"--bundle={folder}", "--port=65536"], capsys
    )


@pytest.mark.parametrize("name", ["fastapi", "fastapi_offline", "uvicorn"])
def test_a_missing_package_is_named(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [one for one in sys.modules if one.startswith(("recbole_kd.verbs.serve", name))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    line = one_line([f"--bundle={folder}"], capsys)
    assert line == f"recbole-kd: serve needs the package {name}; run: pip install fastapi fastapi-offline uvicorn"


def test_the_files_are_read_by_the_numbers_that_were_written(folder: Path) -> None:
    tables = Live(folder).current.bundle.vectors
    assert isinstance(tables["items"].base.base, np.memmap) or isinstance(tables["items"].base, np.memmap)
    np.testing.assert_array_equal(tables["items"], safetensors.numpy.load_file(folder / "vectors.safetensors")["items"])
