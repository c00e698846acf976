"""RecBole's own zips: what leaves them, under which names, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recbole_kd.data import archive as archives
from recbole_kd.data import preparable
from recbole_kd.data.events import Columns
from recbole_kd.data.prepare import can_prepare, described, prepare
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import fetch, load_splits
from tests.data.serving import Server, serving

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"u{row % 12}\ti{(5 * row) % 20}\t{row % 5 + 1}\t{row}\n" for row in range(120)
)
ITEM = "item_id:token\tclass:token_seq\n" + "".join(f"i{item}\ta b\n" for item in range(20))
FILES = {"ml-1m.inter": INTER, "ml-1m.item": ITEM}


def zipped(files: dict[str, str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text, compression)  # without today's date
    return content.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """RecBole's address of ml-1m, and of two datasets whose zip has another name than they."""
    with serving(zipped(FILES), "ml-1m.zip", monkeypatch) as server:
        addresses = {
            "ml-1m": server.url,
            "steam-merged": server.url.replace("ml-1m", "steam"),
            "tmall-session": server.url.replace("ml-1m", "tmall_session"),
            "ml-100k": server.url,
            "amazon-beauty": server.url,
        }
        monkeypatch.setattr(preparable, "recbole_downloads", lambda: addresses)
        yield server


def make(folder: Path, dataset: str = "ml-1m", source: object = None) -> Path:
    return prepare(dataset, folder, None if source is None else str(source), show_progress=False)


def names(folder: Path, dataset: str = "ml-1m") -> set[str]:
    return {path.name for path in (folder / dataset).glob("*")}


def test_every_dataset_of_recbole_has_an_address_and_a_name_of_its_own() -> None:
    addresses = preparable.archives()
    assert len(addresses) > 100
    assert all(url.startswith("https://") and url.endswith(".zip") for url in addresses.values())
    assert not {"ml-100k", "amazon-beauty", "gowalla", "yelp2018"} & addresses.keys()
    assert can_prepare("ml-1m")
    assert can_prepare("yelp-2018"), "RecBole's, beside yelp2018 of the papers"


# What leaves a zip


def test_a_download_gives_the_atomic_files_and_a_record(tmp_path: Path, server: Server) -> None:
    server.content = zipped({**FILES, "README.md": "x", "__MACOSX/._ml-1m.inter": "x", "other.item": "x"})
    path = make(tmp_path)
    assert path == tmp_path / "ml-1m" / "ml-1m.inter"
    assert names(tmp_path) == {"ml-1m.inter", "ml-1m.item", "prepare.json"}
    assert path.read_text() == INTER
    assert path.with_suffix(".item").read_text() == ITEM
    record = json.loads((path.parent / "prepare.json").read_text())
    assert record.pop("summary")["ml-1m.item"] == f"{len(ITEM):,} bytes: item_id:token class:token_seq"
    assert record == {
        "dataset": "ml-1m",
        "source": server.url,
        "raw": {"bytes": len(server.content), "sha256": hashlib.sha256(server.content).hexdigest()},
        "files": {
            name: {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for name, text in FILES.items()
        },
    }
    assert "user_id:token item_id:token rating:float timestamp:float" in described(path)


@pytest.mark.parametrize(
    ("dataset", "there", "here"),
    [
        ("steam-merged", {"steam.inter": INTER, "steam.item": ITEM}, {"steam-merged.inter", "steam-merged.item"}),
        ("ml-1m", {"ml-1m/ml-1m.inter": INTER, "ml-1m/": ""}, {"ml-1m.inter"}),
        ("ml-1m", {"movielens.inter": INTER, "movielens.kg": ITEM}, {"ml-1m.inter", "ml-1m.kg"}),
        ("ml-1m", {"movielens.inter": INTER, "__MACOSX/._movielens.inter": "x"}, {"ml-1m.inter"}),
        ("ml-1m", {"a.inter": INTER, "ml-1m.inter": INTER}, {"ml-1m.inter"}),
        ("ml-1m", {"ml-1m-old.inter": INTER, "ml-1m.inter": INTER}, {"ml-1m.inter"}),
        ("ml-1m", {"ml-1m.inter": INTER, "ml-1m.\x1b[2J.item": ITEM}, {"ml-1m.inter"}),
        (
            "tmall-session",
            {"tmall_session.train.inter": INTER, "tmall_session.test.inter": INTER},
            {"tmall-session.train.inter", "tmall-session.test.inter"},
        ),
    ],
)
def test_files_get_the_name_of_the_dataset(
    tmp_path: Path, server: Server, dataset: str, there: dict[str, str], here: set[str]
) -> None:
    server.content = zipped(there)
    path = make(tmp_path, dataset)
    assert names(tmp_path, dataset) == {*here, "prepare.json"}
    assert path.name == min(name for name in here if name.endswith(".inter"))


def test_a_zip_at_hand_needs_no_network(tmp_path: Path, server: Server) -> None:
    given = tmp_path / "fetched"
    given.write_bytes(server.content)
    assert make(tmp_path, "ml-1m", given).read_text() == INTER
    assert given.exists()
    assert not server.requests


def test_a_zip_may_have_any_name_that_is_free(tmp_path: Path, server: Server) -> None:
    assert make(tmp_path, "movies", server.url).read_text() == INTER
    assert names(tmp_path, "movies") == {"movies.inter", "movies.item", "prepare.json"}


def test_a_second_call_does_nothing_and_a_lost_file_is_fetched_again(tmp_path: Path, server: Server) -> None:
    path = make(tmp_path)
    written = path.stat().st_mtime_ns
    assert make(tmp_path) == make(tmp_path, source=server.url) == path
    assert path.stat().st_mtime_ns == written
    assert len(server.requests) == 1
    path.with_suffix(".item").unlink()
    make(tmp_path)
    assert path.with_suffix(".item").read_text() == ITEM
    server.content = zipped({"ml-1m.inter": INTER})
    path.unlink()
    with pytest.raises(UserError, match="which .*prepare.json recorded"):
        make(tmp_path)
    assert names(tmp_path) == {"ml-1m.item", "prepare.json"}


def test_another_zip_than_the_recorded_one_is_refused(tmp_path: Path, server: Server) -> None:
    path = make(tmp_path)
    other = tmp_path / "other.zip"
    other.write_bytes(zipped({"ml-1m.inter": INTER}))
    with pytest.raises(UserError, match="which .*prepare.json recorded"):
        make(tmp_path, source=other)
    assert path.with_suffix(".item").read_text() == ITEM


def test_a_zip_may_expand_as_far_as_text_does_and_up_to_a_limit(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_SMALL", 1)
    assert make(tmp_path / "small").read_text() == INTER
    monkeypatch.setattr(archives, "_LARGEST_CONTENT", 1000)
    refused(tmp_path / "large", "expected at most 1,000")


# What is refused: one line, and nothing is left


def refused(folder: Path, pattern: str, dataset: str = "ml-1m", source: object = None) -> None:
    with pytest.raises(UserError, match=pattern) as error:
        make(folder / "out", dataset, source)
    assert "\n" not in str(error.value)
    assert not (folder / "out" / dataset).exists()
    assert {path.name for path in folder.glob("*")} <= {"out"}, "nothing outside of the folder"


def linked() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("ml-1m.inter", INTER)
        info = zipfile.ZipInfo("ml-1m.item")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return content.getvalue()


def twice() -> bytes:
    return zipped({"ml-1m.inter": INTER, "again/ml-1m.inter": INTER})


def locked() -> bytes:
    content = bytearray(zipped(FILES))
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def changed(mark: bytes, place: int, value: int) -> bytes:
    content = bytearray(zipped(FILES, zipfile.ZIP_STORED))
    content[content.index(mark) + place] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (zipped({**FILES, "../x.inter": INTER}), "holds '../x.inter', which lies outside of its folder"),
        (zipped({**FILES, "a/../../x.txt": "x"}), "lies outside of its folder"),
        (zipped({**FILES, "/tmp/x.inter": INTER}), "lies outside of its folder"),
        (zipped({**FILES, "..\\x.inter": INTER}), "lies outside of its folder"),
        (zipped({**FILES, "C:\\x.inter": INTER}), "lies outside of its folder"),
        (linked(), "holds the link 'ml-1m.item'"),
        (locked(), "under a password"),
        (zipped({"ml-1m.item": ITEM, "readme": "x"}), "holds no .inter file"),
        (zipped({"a.inter": INTER, "b.inter": INTER}), r"holds several datasets \(a, b\)"),
        (twice(), "holds ml-1m.inter twice"),
        (zipped({"ml-1m.inter": "user,item\n1,2\n"}), "'ml-1m.inter' is 'user,item'; expected columns as name:type"),
        (zipped({"ml-1m.inter": INTER + "x" * (20 << 20)}), "unpacks to 20,9.* bytes; expected at most 16,777,216"),
        (INTER.encode(), "is no whole zip file"),
        (zipped(FILES)[:-30], "is no whole zip file"),
        (changed(b"u0\ti0", 1, 0x39), r"is no whole zip file \(Bad CRC-32 for file 'ml-1m.inter'\)"),
        (changed(b"PK\1\2", 42, 255), "is no whole zip file"),
        (zipped({"ml-1m.inter": INTER}, zipfile.ZIP_LZMA).replace(b"\x5d", b"\x5e"), "is no whole zip file"),
        (changed(b"PK\1\2", 10, 99), "is compressed in a way that is not read"),
    ],
)
def test_a_zip_that_is_not_as_expected(tmp_path: Path, server: Server, content: bytes, pattern: str) -> None:
    server.content = content
    refused(tmp_path, pattern)


def test_a_size_that_is_a_lie_is_not_believed(tmp_path: Path, server: Server) -> None:
    content = bytearray(zipped({"ml-1m.inter": INTER + "x" * (40 << 20)}))
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = (1000).to_bytes(4, "little")
    server.content = bytes(content)
    refused(tmp_path, "is no whole zip file")


def test_a_download_that_breaks_or_is_too_large(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [100]
    refused(tmp_path, "Cannot download ml-1m .*`recbole-kd prepare --dataset=ml-1m --source=FILE`")
    server.status = 403
    refused(tmp_path, "the server answered 403")
    server.status = None
    monkeypatch.setattr("recbole_kd.data.archive._LARGEST_DOWNLOAD", 200)
    refused(tmp_path, "expected a download of at most 200 bytes")


@pytest.mark.parametrize("step", ["recbole_kd.data.download._next_block", "recbole_kd.data.archive.save_json"])
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert not (tmp_path / "ml-1m").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, server: Server) -> None:
    resource = pytest.importorskip("resource")
    given = tmp_path / "given.zip"
    given.write_bytes(server.content)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # writing more fails, as on a full disk
    try:
        with pytest.raises(UserError, match=r"Cannot prepare ml-1m in .*; set --data_path"):
            make(tmp_path / "out", source=given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out" / "ml-1m").exists()


def test_interactions_appear_last(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training looks for them alone: where a kill leaves them, no other file is missing."""
    order, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: order.append(target.name) or replace(path, target))
    make(tmp_path)
    assert order == ["ml-1m.item", "ml-1m.inter"]


def test_if_one_file_cannot_get_its_name_none_has_it(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ml-1m").mkdir()
    replace = Path.replace

    def refuse_the_last(path: Path, target: Path) -> Path:
        if target.name == "ml-1m.inter":
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse_the_last)
    with pytest.raises(UserError, match="Cannot prepare ml-1m in .*Input/output error"):
        make(tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["ml-1m.inter", "ml-1m.item"])
def test_a_file_of_somebody_elses_is_not_touched(tmp_path: Path, server: Server, name: str) -> None:
    mine = tmp_path / "ml-1m" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"{name} was not written by"):
        make(tmp_path)
    assert (names(tmp_path), mine.read_text()) == ({name}, "mine")


def test_a_file_that_was_changed_is_not_touched(tmp_path: Path, server: Server) -> None:
    item = make(tmp_path).with_suffix(".item")
    item.write_text("mine")
    with pytest.raises(UserError, match="changed after it was prepared"):
        make(tmp_path)
    assert item.read_text() == "mine"


def test_a_table_and_a_zip_do_not_mix(tmp_path: Path, server: Server) -> None:
    table = tmp_path / "events.csv"
    table.write_text("a,b\n1,2\n")
    columns: dict[str, Any] = {"source": str(table), "columns": Columns("a", "b")}
    prepare("ml-1m", tmp_path / "table", **columns)
    with pytest.raises(UserError, match="was made from a table"):
        make(tmp_path / "table")
    make(tmp_path / "zip")
    with pytest.raises(UserError, match="was unpacked from a zip"):
        prepare("ml-1m", tmp_path / "zip", **columns)


@pytest.mark.parametrize("content", ["{}", '{"source": "x", "raw": {"sha256": "0"}, "files": 3}'])
def test_a_record_that_is_none(tmp_path: Path, server: Server, content: str) -> None:
    make(tmp_path)
    (tmp_path / "ml-1m" / "prepare.json").write_text(content)
    with pytest.raises(UserError, match="not a record that `recbole-kd prepare` wrote"):
        make(tmp_path)


def test_what_a_zip_has_nothing_to_do_with_is_said(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match="--minimum=5 is for tables"):
        prepare("ml-1m", tmp_path, minimum=5)
    refused(tmp_path, "ml-100k is inside RecBole and needs no file", "ml-100k")
    refused(tmp_path, r"Did you mean 'ml-1m'\? .*a zip, with --source=FILE.zip", "ml-2m")
    refused(tmp_path, "a zip, with --source=FILE.zip", "movies", tmp_path / "movies.csv")


@pytest.mark.parametrize("source", [None, "Amazon_Beauty.zip"])
def test_recboles_zip_does_not_stand_in_for_data_of_ours(tmp_path: Path, server: Server, source: str | None) -> None:
    refused(
        tmp_path,
        "amazon-beauty cannot be downloaded: it is the data that properties/dataset/amazon-beauty.yaml describes; put .* "
        f"`recbole-kd prepare --dataset=recbole-amazon-beauty --source={server.url}`",
        "amazon-beauty",
        source,
    )


# In a training


def config_of(folder: Path, dataset: str, **given: Any) -> KDConfig:
    settings = {"data_path": str(folder), "distill": [], "use_gpu": False, "show_progress": False, **given}
    return KDConfig("BPR", dataset, config_dict=settings)


def test_a_training_fetches_what_is_missing_and_says_so(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert set(load_splits(config_of(tmp_path, "ml-1m")).user_tokens[1:]) == {f"u{user}" for user in range(12)}
    assert "ml-1m.inter': preparing it, as `recbole-kd prepare --dataset=ml-1m` does" in caplog.text
    fetch(config_of(tmp_path, "ml-1m"))
    assert len(server.requests) == 1


def test_a_training_fetches_the_files_of_a_session_dataset(tmp_path: Path, server: Server) -> None:
    server.content = zipped({f"tmall_session.{part}.inter": INTER for part in ("train", "valid", "test")})
    fetch(config_of(tmp_path, "tmall-session", benchmark_filename=["train", "valid", "test"]))
    assert len(names(tmp_path, "tmall-session")) == 4


def test_a_training_names_data_that_nobody_offers(tmp_path: Path, server: Server) -> None:
    for name in ("amazon-beauty", "citeulike-freqd"):
        with pytest.raises(UserError, match=f"no dataset folder .*, and {name} cannot be downloaded.*--data_path"):
            load_splits(config_of(tmp_path, name))
    assert not server.requests
