"""Whatever is in a file that a verb reads, the verb reads it, refuses it in one line, or makes it anew.

A case is a whole file of some format with one to three changes: of its bytes, its lines and cells, or its parts where
it is JSON. How to try more than these: :mod:`tests.reliability.fuzzing`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.cli import main
from tests.data.test_archive import zipped
from tests.data.test_raw_forms import YELP
from tests.reliability.fuzzing import VALUES, Fuzzer, examples, within_bounds, within_time
from tests.reliability.test_formats import LEFT_OUT, changed, places
from tests.reliability.test_formats import VALUES as PARTS
from tests.reliability.test_tiny import ITEMS, SHORT, USERS, tiny_settings, write_tiny
from tests.report.fabricated import fabricated
from tests.test_cli import quick


class Format(NamedTuple):
    """Files of one format, and the commands that read them.

    Attributes:
        files: name -> content, of a folder of their own; the first is changed most.
        commands: the folder -> the words of each command.
        kept: whether the program wrote them for itself, so that a damaged one is made anew.
    """

    files: Mapping[str, bytes]
    commands: Callable[[Path], list[list[str]]]
    kept: bool = False


def taught(folder: Path, **given: Any) -> list[str]:
    return quick(folder, **{**tiny_settings("BPR"), **given})


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    data = write_tiny(tmp_path_factory.mktemp("data"))
    inter = (data / "tiny" / "tiny.inter").read_bytes()
    users = b"user_id:token\tage:float\tjob:token\n" + b"".join(b"u%d\t%d\tj%d\n" % (n, n, n % 3) for n in range(USERS))
    items = b"item_id:token\tclass:token_seq\tv:float_seq\n" + b"".join(b"i%d\ta b\t1 2\n" % n for n in range(ITEMS))
    rrd = {f"rrd.{key}": value for key, value in SHORT["rrd"].items()}
    kept = {
        "distill": "rrd",
        "teacher": "BPR",
        "teacher.epochs": 1,
        **rrd,
        "learner": "sevo_adamw",
        "sevo.graph": "bipartite",
    }
    assert main(taught(data, checkpoint_dir=data / "kept", **kept)) == 0
    (made,) = (data / "kept").glob("BPR-*[0-9].pth")
    assert main(["export", f"--checkpoint={made}", f"--data_path={data}", f"--output={data / 'bundle'}"]) == 0
    listed = pd.DataFrame([(f"u{u}", f"i{i}", 1 / (i + 1), 0.5) for u in range(USERS) for i in range(ITEMS)])
    listed.columns = pd.Index(["user_id", "item_id", "score", "weight"])
    listed.to_parquet(data / "lists.parquet")
    vectors = pd.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "vector": [[0.1, n] for n in range(ITEMS)]})
    vectors.to_parquet(data / "vectors.parquet")
    text = vectors.assign(vector=[f"0.1 {n}" for n in range(ITEMS)]).to_csv(index=False)
    events = "who,what,when,stars\n" + "".join(f"a{n % 5},b{n % 7},{n},3\n" for n in range(30))
    dated = events.replace(",3\n", ",3,2026-11-29T08:30\n").replace("stars", "stars,date")
    columns = [*("--user=who", "--item=what", "--time=when", "--rating=stars"), "--dataset=own"]
    model = [f"--checkpoint={made}", f"--data_path={data}"]
    lists = {"distill": "rrd", **rrd, "teacher.ranks": data / "case" / "lists"}
    matched = {"distill": "fitnet", "fitnet.weight": 1}

    def read_data(folder: Path) -> list[list[str]]:
        loaded = "{inter: [user_id,item_id,rating,timestamp], user: [user_id,age,job], item: [item_id,class,v]}"
        shared = {"checkpoint_dir": folder / "saved", "load_col": loaded}
        return [
            quick(folder, **tiny_settings("BPR", **shared, val_interval="{rating: '[1,inf)'}")),
            quick(folder, **tiny_settings("SASRec", **shared)),
        ]

    def read_lists(folder: Path) -> list[list[str]]:
        return [taught(data, **{**lists, "teacher.ranks": next(folder.glob("lists*"))})]

    def read_vectors(folder: Path) -> list[list[str]]:
        return [taught(data, **matched, **{"teacher.vectors": next(folder.glob("vectors.*"))})]

    def read_bundle(folder: Path) -> list[list[str]]:
        copied = folder.parent / "bundle"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(folder, copied)
        return [*read_vectors(folder), ["export", *model, f"--output={copied}", "--overwrite=true"]]

    def prepare(folder: Path) -> list[list[str]]:
        (source,) = folder.glob("events*")
        return [["prepare", f"--source={source}", f"--data_path={folder / 'made'}", *columns]]

    def prepare_public(dataset: str, *more: str) -> Callable[[Path], list[list[str]]]:
        words = ["prepare", f"--dataset={dataset}", *more]
        return lambda folder: [[*words, f"--source={next(folder.glob('raw*'))}", f"--data_path={folder / 'made'}"]]

    def recommend(folder: Path) -> list[list[str]]:
        (file,) = folder.iterdir()
        return [["recommend", *model, "--k=3", f"--{file.name}=@{file}"]]

    def read_kept(folder: Path) -> list[list[str]]:
        return [taught(data, checkpoint_dir=folder, **kept)]

    for_itself = sorted(path for path in (data / "kept").rglob("*/*.*") if path.suffix in (".npy", ".arrow", ".pth"))
    assert {path.parent.name for path in for_itself} == {"data", "graphs", "ranks", "teachers"}
    bundle = {path.name: path.read_bytes() for path in (data / "bundle").iterdir()}
    vectors_first = {name: bundle[name] for name in ("vectors.safetensors", "items.jsonl", "users.jsonl")}
    return {
        "data": Format({"tiny/tiny.inter": inter, "tiny/tiny.user": users, "tiny/tiny.item": items}, read_data),
        "csv": Format({"events.csv": events.encode()}, prepare),
        "tsv": Format({"events.tsv": dated.replace(",", "\t").encode()}, prepare),
        "zip": Format({"raw.zip": zipped({"x.inter": inter.decode()})}, prepare_public("movies")),
        "lists of items": Format({"raw": b"3 1 2 3\n2 2 9\n" * 4}, prepare_public("citeulike", "--minimum=2")),
        "reviews": Format({"raw": YELP[:9000].rpartition(b"\n")[0]}, prepare_public("yelp2018", "--minimum=1")),
        "lists": Format({"lists.csv": listed.to_csv(index=False).encode()}, read_lists),
        "lists in parquet": Format({"lists.parquet": (data / "lists.parquet").read_bytes()}, read_lists),
        "vectors": Format({"vectors.csv": text.encode()}, read_vectors),
        "vectors in parquet": Format({"vectors.parquet": (data / "vectors.parquet").read_bytes()}, read_vectors),
        "vectors in safetensors": Format(vectors_first, read_vectors),
        "bundle": Format({"manifest.json": bundle["manifest.json"], **bundle}, read_bundle),
        "results": Format(
            {"results.json": json.dumps(fabricated(seeds=1)).encode()},
            lambda folder: [["report", f"--results={folder / 'results.json'}", f"--output={folder / 'out'}"]],
        ),
        "users": Format({"users": b"u1\nu2\n"}, recommend),
        "history": Format({"history": b"i1\ni3\n"}, recommend),
        "settings": Format(
            {"x.yaml": b"epochs: 1\nlearner: adam\ntopk: [5]\nteacher: {model: BPR, epochs: 1}\ndistill: [rrd]\nrrd: {pool: 4, interesting: 2, uninteresting: 3}\neval_args: {order: RO}\n"},
            lambda folder: [taught(data, config_files=folder / "x.yaml")],
        ),
        "checkpoint": Format(
            {"x.pth": made.read_bytes()},
            lambda folder: [["evaluate", f"--checkpoint={folder / 'x.pth'}", f"--data_path={data}", "--topk=[5]"]],
        ),
        "kept": Format({str(one.relative_to(data / "kept")): one.read_bytes() for one in for_itself}, read_kept, True),
    }  # fmt: skip


# Changes


def of_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    place = draw(st.integers(0, max(0, len(whole) - 1)))
    until = place + draw(st.sampled_from([1, 1, 2, 8, 100, len(whole)]))
    part = whole[place:until]
    put = draw(st.sampled_from(["flip", "cut", "leave out", "twice", "zeros", "ones", "insert"]))
    new = (
        {
            "flip": bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in part[:1]) + part[1:],
            "cut": b"",
            "leave out": b"",
            "twice": part * 2,
            "zeros": bytes(len(part)),
            "ones": b"\xff" * len(part),
        }.get(put)
        if put != "insert"
        else draw(st.binary(max_size=8)) + part
    )
    return whole[:place] + (new or b"") + (b"" if put == "cut" else whole[until:])


def of_lines(draw: st.DrawFn, whole: bytes) -> bytes:
    lines = whole.split(b"\n")
    place = draw(st.integers(0, min(len(lines) - 1, 5)) | st.integers(0, len(lines) - 1))
    separator = next((one for one in (b"\t", b",", b": ", b" ") if one in lines[place]), b",")
    cells = lines[place].split(separator)
    cell = draw(st.integers(0, len(cells) - 1))
    value = draw(st.sampled_from(VALUES) | st.text(max_size=8)).encode("utf-8", "surrogatepass")
    put = draw(st.sampled_from(["cell", "cell", "cell", "more", "fewer", "no line", "line twice", "line", "first"]))
    if put == "cell":
        cells[cell] = value
    elif put == "more":
        cells.insert(cell, value)
    elif put == "fewer":
        del cells[cell]
    lines[place] = separator.join(cells)
    if put == "no line":
        del lines[place]
    elif put == "line twice":
        lines.insert(place, lines[place])
    elif put == "line":
        lines.insert(place, value)
    elif put == "first":
        lines[0], lines[place] = lines[place], lines[0]
    return b"\n".join(lines)


def of_json(draw: st.DrawFn, whole: bytes) -> bytes:
    """A part of JSON is another value; of safetensors, of their header."""
    head = len(whole)
    if whole[:1] != b"{":
        head, whole = int.from_bytes(whole[:8], "little"), whole[8:]
    value = json.loads(whole[:head])
    path = draw(st.sampled_from(list(places(value))))
    part = draw(st.sampled_from([*PARTS, LEFT_OUT, [0, 10**15], [2, 2**62], "I64", "F64", "BF16"]))
    text = json.dumps(changed(value, path, part)).encode()
    return text if head == len(whole) else len(text).to_bytes(8, "little") + text + whole[head:]


@st.composite
def damaged(draw: st.DrawFn, name: str, whole: bytes) -> bytes:
    """A file with one to three changes."""
    kinds = (
        [of_bytes] if name.endswith((".npy", ".arrow", ".pth", ".parquet", ".zip")) else [of_bytes, of_lines, of_lines]
    )
    if name.endswith((".json", ".safetensors")):
        kinds = [of_bytes, of_json, of_json]
    for _ in range(draw(st.integers(1, 3))):
        try:
            whole = draw(st.sampled_from(kinds))(draw, whole)
        except ValueError:  # no JSON any more
            whole = of_bytes(draw, whole)
    return whole


def written(files: Mapping[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Cases


def test_whole_files_are_read(
    formats: dict[str, Format], tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
) -> None:
    for one in formats.values():
        for words in one.commands(written(one.files, tmp_path / "case")):
            within_bounds(words, capsys, code=0)


@within_time
@settings(**examples(175))
@given(draw=st.data())
def test_a_damaged_file(
    draw: st.DataObject, formats: dict[str, Format], tmp_path: Path, fuzzer: Fuzzer, undrawn: None
) -> None:
    one = formats[draw.draw(st.sampled_from(list(formats)))]
    name = draw.draw(st.sampled_from([next(iter(one.files)), *one.files]))
    content = draw.draw(damaged(name, one.files[name]))
    for words in one.commands(written({**one.files, name: content}, tmp_path / "case")):
        fuzzer.tries(words, f"{name}: {content[:3000]!r}", code=0 if one.kept else None)
