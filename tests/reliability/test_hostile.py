"""Files and words that would execute code, climb out of their folder or fill the memory: refused by name, nothing done.

Each sample is given to the command line as a user would give it, and would make the file `canary` if anything in it
were executed. What checkpoints in particular can hold is tested opcode by opcode in tests/files/test_pickles.py.
"""

from __future__ import annotations

import gzip
import io
import pickle
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union

import numpy as np
import pytest
import torch

from recbole_kd.cli import main
from tests.files.samples import archive, call, named, storage, tensor
from tests.test_cli import quick

Words = list[str]
#: A sample: makes its file in a folder, given the data path and the canary; returns words, and a part of what is said.
Sample = Callable[[Path, Path], tuple[Words, str]]

SAMPLES: dict[str, Sample] = {}
#: Samples that are refused, or a text like any other: Python where a value belongs, bytes that some readers take.
EITHER: dict[str, Sample] = {}
#: Samples that are harmless where they lie: they are not read, or read as plain values.
IGNORED: dict[str, Sample] = {}


def sample(name: str, table: dict[str, Sample] = SAMPLES) -> Callable[[Sample], Sample]:
    def put(function: Sample) -> Sample:
        table[name] = function
        return function

    return put


class Gadget:
    """An object that makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def _bytes(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Checkpoints, through every verb and setting that reads one


@sample("checkpoint: a plain pickle")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _bytes(data, "x.pth", pickle.dumps({"format": "recbole-kd/1", "epoch": Gadget(canary)}))
    return ["evaluate", f"--checkpoint={path}"], "is not a whole checkpoint"


@sample("checkpoint: a call by reduce")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = archive(data, {"format": "recbole-kd/1", "epoch": call("os.system", f"touch '{canary}'")})
    return ["evaluate", f"--checkpoint={path}"], "names os.system, which no checkpoint needs"


@sample("checkpoint: torch.save of an object")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    torch.save({"format": "recbole-kd/1", "x": Gadget(canary)}, data / "x.pth")
    return quick(data, model="SimRecStudent", **{"teacher.checkpoint": data / "x.pth"}), "names __builtin__.getattr"


@sample("checkpoint: a state set by build")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    hostile = call("tests.files.test_pickles.SetsState", state=str(canary))
    path = archive(data, {"format": "recbole-kd/1", "epoch": hostile})
    return quick(data, model="BPR", resume=path), "names tests.files.test_pickles.SetsState"


@sample("checkpoint: a persistent id that names a function")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    hostile = tensor(storage(kind=call("os.system", f"touch '{canary}'")))
    return ["evaluate", f"--checkpoint={archive(data, {'format': 'recbole-kd/1', 'x': hostile})}"], "names os.system"


@sample("checkpoint: RecBole's own eval of settings")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    config = named("recbole.config.configurator.Config")
    hostile = call(
        call("builtins.getattr", config, "_convert_config_dict"), None, {"seed": f"open({str(canary)!r}, 'w')"}
    )
    path = archive(data, {"config": hostile, "state_dict": {}})
    return quick(data, model="SimRecStudent", **{"teacher.checkpoint": path}), "names builtins.getattr"


@sample("checkpoint: TorchScript")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(data / "x.pth"))
    return ["evaluate", f"--checkpoint={data / 'x.pth'}"], "is not a whole checkpoint"


@sample("checkpoint: a zip within a zip")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    inner = archive(data, {"x": call("os.system", f"touch '{canary}'")}).read_bytes()
    with zipfile.ZipFile(data / "x.pth", "w") as file:
        file.writestr("archive/inner.zip", inner)
    return ["evaluate", f"--checkpoint={data / 'x.pth'}"], "it holds a member archive/inner.zip"


@sample("checkpoint: a tar, as PyTorch once wrote")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    with tarfile.open(data / "x.pth", "w") as file:
        content = pickle.dumps(Gadget(canary))
        member = tarfile.TarInfo("pickle")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return ["evaluate", f"--checkpoint={data / 'x.pth'}"], "is in the format of PyTorch before 1.6"


@sample("checkpoint: a tensor of a terabyte")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    hostile = tensor(storage(length=1 << 38), size=(1 << 38,))
    return ["evaluate", f"--checkpoint={archive(data, {'format': 'recbole-kd/1', 'x': hostile})}"], "is not of 27"


@sample("checkpoint: a terabyte by a stride of 0")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    hostile = tensor(storage(), size=(1 << 38,), stride=(0,))
    return ["evaluate", f"--checkpoint={archive(data, {'format': 'recbole-kd/1', 'x': hostile})}"], "does not fit"


@sample("checkpoint: a compressed bomb")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    with zipfile.ZipFile(data / "x.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * (64 << 20))
    return ["evaluate", f"--checkpoint={data / 'x.pth'}"], "is compressed"


@sample("checkpoint: a member that climbs")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = archive(data, {"format": "recbole-kd/1"}, **{f"archive/../../{canary.name}": b"x"})
    return ["recommend", f"--checkpoint={path}", "--users=u1"], "it holds a member"


@sample("checkpoint: exported from a hostile file")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = archive(data, {"format": "recbole-kd/1", "x": call("builtins.exec", f"open({str(canary)!r}, 'w')")})
    return ["export", f"--checkpoint={path}", f"--output={data / 'out'}"], "names builtins.exec"


@sample("weights that NeuMF unpickles")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = archive(data, {"state_dict": call("os.system", f"touch '{canary}'")})
    return quick(data, model="NeuMF", mf_pretrain_path=path), "names os.system"


@sample("vectors that LDiffRec unpickles")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    np.save(data / "known-answer" / "item_emb.npy", np.array([Gadget(canary)], dtype=object), allow_pickle=True)
    return quick(data, model="LDiffRec", n_cate=2), "item_emb.npy' is not a plain array"


# Caches and what lies beside them


@sample("cache: the teacher replaced by a pickle", IGNORED)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    words = quick(data, model="FreqDStudent", **{"teacher.epochs": 1, "teacher.embedding_size": 8})
    assert main(words) == 0
    (teacher,) = (data / "saved" / "teachers").glob("*.pth")
    teacher.write_bytes(pickle.dumps(Gadget(canary)))
    return words, "test split"


@sample("cache: an interrupted teacher replaced by a pickle", IGNORED)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    words = quick(data, model="FreqDStudent", **{"teacher.epochs": 1, "teacher.embedding_size": 8})
    assert main(words) == 0
    (teacher,) = (data / "saved" / "teachers").glob("*.pth")
    teacher.with_name(f"{teacher.stem}-training-last.pth").write_bytes(pickle.dumps(Gadget(canary)))
    teacher.unlink()
    return words, "test split"


@sample("cache: ranked lists replaced by pickled objects", IGNORED)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    small = {"rrd.interesting": 5, "rrd.uninteresting": 5, "rrd.pool": 8, "teacher.epochs": 1}
    words = quick(data, model="RRDStudent", **small, **{"teacher.embedding_size": 8})
    assert main(words) == 0
    (bank,) = (data / "saved" / "ranks").glob("*.npy")
    np.save(bank, np.array([Gadget(canary)], dtype=object), allow_pickle=True)
    return words, "test split"


@sample("cache: RecBole's pickled dataset and loaders", IGNORED)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    for name in ("known-answer-Dataset.pth", "known-answer-for-BPR-dataloader.pth"):
        _bytes(data, f"saved/{name}", pickle.dumps(Gadget(canary)))
    return quick(data, model="BPR"), "test split"


@sample("cache: a pickled dataset by name")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _bytes(data, "set.pth", pickle.dumps(Gadget(canary)))
    return quick(data, model="BPR", dataset_save_path=path), "--dataset_save_path is not supported"


# Settings


def _yaml(name: str, text: str, message: str) -> None:
    @sample(f"yaml: {name}")
    def _(data: Path, canary: Path) -> tuple[Words, str]:
        path = data / "x.yaml"
        path.write_text(text.replace("CANARY", str(canary)))
        return quick(data, model="BPR", config_files=path), message


_yaml("python/object/apply", "seed: !!python/object/apply:os.system ['touch CANARY']", "is not plain YAML (line 1)")
_yaml("python/object/new", "seed: !!python/object/new:os.system ['touch CANARY']", "is not plain YAML (line 1)")
_yaml("python/name", "seed: !!python/name:os.system", "is not plain YAML (line 1)")
_yaml("python/module", "seed: !!python/module:os", "is not plain YAML (line 1)")
_yaml("a tag of its own", "seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch CANARY']", "not plain YAML")
_LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij")
)
_yaml("a billion laughs", f"{_LAUGHS}eval_args: *j\n", "unfold to more than 262,144 values")
_yaml("an alias of itself", "eval_args: &a [*a]", "it refers to itself")
_yaml("ten thousand brackets", f"seed: {'[' * 10_000}", "is not plain YAML")
_yaml("a date that is none", "seed: 2020-13-45", "is not plain YAML")
_yaml("a number of ten thousand digits", f"seed: {'9' * 10_000}", "x.yaml is not plain YAML")
_yaml("more than any settings", "# " + "x" * (5 << 20), "is longer than")
_yaml("bytes that are no text", "seed: \x00", "is not plain YAML")


#: Python that makes the canary, in the forms in which eval would run it.
_PYTHON = (
    "__import__('pathlib').Path('CANARY').touch()",
    "[__import__('pathlib').Path('CANARY').touch()]",
    "{'split': __import__('pathlib').Path('CANARY').touch()}",
    "(lambda: open('CANARY', 'w'))()",
)
_TARGETS = ("epochs", "topk", "eval_args", "learning_rate", "embedding_size", "metrics", "train_neg_sample_args")
for _place in ("word", "yaml"):
    for _key in _TARGETS:

        @sample(f"python in {_key}, as a {_place}", EITHER)
        def _(data: Path, canary: Path, key: str = _key, place: str = _place) -> tuple[Words, str]:
            text = _PYTHON[_TARGETS.index(key) % len(_PYTHON)].replace("CANARY", str(canary))
            if place == "word":
                return [
                    *(word for word in quick(data, model="BPR") if not word.startswith(f"--{key}=")),
                    f"--{key}={text}",
                ], ""
            path = data / "x.yaml"
            path.write_text(f'{key}: "{text}"\n')
            words = [word for word in quick(data, model="BPR") if not word.startswith(f"--{key}=")]
            return [*words, f"--config_files={path}"], ""


@sample("python in a dotted option")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    text = _PYTHON[0].replace("CANARY", str(canary))
    return quick(data, model="SimRecStudent", **{"simrec.epsilon": text}), "simrec.epsilon="


@sample("python in the interval of a filter", EITHER)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    text = f"[0,{_PYTHON[0].replace('CANARY', str(canary))}]"
    return quick(data, model="BPR", user_inter_num_interval=text), ""


@sample("python in a search space")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = data / "x.hyper"
    path.write_text(f"learning_rate choice [{_PYTHON[0].replace('CANARY', str(canary))}]\n")
    return ["tune", *quick(data, model="BPR", params_file=path, trials=1)], "x.hyper"


@sample("a model whose teacher RecBole evaluates")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    return quick(data, model="KD_DAGFM", teacher=_PYTHON[0].replace("CANARY", str(canary))), "--model=KD_DAGFM"


@sample("a model by a path through packages")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    return quick(data, model="os.path"), "Unknown model 'os.path'"


# Datasets


def _train_file(data: Path) -> Path:
    return data / "known-answer" / "known-answer.train.inter"


def _inter(name: str, content: Union[bytes, Callable[[bytes], bytes]], message: str) -> None:
    @sample(f"dataset: {name}")
    def _(data: Path, canary: Path) -> tuple[Words, str]:
        path = _train_file(data)
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
        return quick(data, model="BPR"), message


_inter("a pickle", pickle.dumps({"x": 1}), "is not UTF-8")
_inter("a header of one line of 50 MB", b"user_id:token\t" + b"x" * (50 << 20), "expected columns as name:type")
_inter("a type that is none", lambda text: text.replace(b"item_id:token", b"item_id:__import__('os')", 1), "item_id")
_inter("NUL bytes in the header", lambda text: b"\0" * 64 + text, "has no column 'user_id'; it has \\x00")
_inter("a column twice", lambda text: text.replace(b"user_id:token", b"item_id:token", 1), "called 'item_id'")


@sample("dataset: NUL bytes in a row", EITHER)
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _train_file(data)
    path.write_bytes(path.read_bytes() + b"u1\ti\0\0\n")
    return quick(data, model="BPR"), "test split"


@sample("dataset: a field of 10 MB")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _train_file(data)
    path.write_bytes(path.read_bytes() + b"u1\t" + b"i" * (10 << 20) + b"\n")
    return quick(data, model="BPR"), "field larger than field limit"


@sample("dataset: a name that climbs")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    return quick(data, model="BPR", dataset="../../etc"), "is not a name"


# What prepare is given


def _prepare(name: str, make: Callable[[Path, Path], Path], message: str) -> None:
    @sample(f"prepare: {name}")
    def _(data: Path, canary: Path) -> tuple[Words, str]:
        return ["prepare", "--dataset=gowalla", f"--data_path={data / 'to'}", f"--source={make(data, canary)}"], message


def _zip(data: Path, canary: Path) -> Path:
    with zipfile.ZipFile(data / "raw.zip", "w") as file:
        file.writestr(f"../../{canary.name}", b"x")
    return data / "raw.zip"


def _tar(data: Path, canary: Path) -> Path:
    with tarfile.open(data / "raw.tar.gz", "w:gz") as file:
        member = tarfile.TarInfo(f"../../{canary.name}")
        member.size = 1
        file.addfile(member, io.BytesIO(b"x"))
    return data / "raw.tar.gz"


_prepare("a zip that climbs", _zip, "raw.zip', line 1")
_prepare("a tar that climbs", _tar, "raw.tar.gz', line 1")
_prepare("a pickle", lambda data, canary: _bytes(data, "raw.txt", pickle.dumps(Gadget(canary))), "raw.txt', line 1")
_prepare(
    "an endless line, compressed",
    lambda data, canary: _bytes(data, "raw.gz", gzip.compress(b"0" * (80 << 20))),
    "raw.gz",
)
_prepare(
    "a gzip that declares nothing", lambda data, canary: _bytes(data, "raw.gz", b"\x1f\x8b" + b"\xff" * 99), "raw.gz"
)


@sample("prepare: a zip of atomic files that climbs")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    words = ["prepare", "--dataset=movies", f"--data_path={data / 'to'}", f"--source={_zip(data, canary)}"]
    return words, "which lies outside of its folder"


_prepare("an address of a local device", lambda data, canary: Path("/dev/zero"), "is not a file")


# Lists from other systems, results of comparisons


@sample("ranks: a pickle")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _bytes(data, "lists.csv", pickle.dumps(Gadget(canary)))
    return quick(data, model="RRDStudent", **{"teacher.ranks": path}), "lists.csv"


@sample("ranks: Parquet that is none")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    path = _bytes(data, "lists.parquet", b"PAR1" + struct.pack("<q", 1 << 60) + b"PAR1")
    return quick(data, model="RRDStudent", **{"teacher.ranks": path}), "lists.parquet"


@sample("report: a pickle")
def _(data: Path, canary: Path) -> tuple[Words, str]:
    return ["report", f"--results={_bytes(data, 'results.json', pickle.dumps(Gadget(canary)))}"], "results.json"


def _run(make: Sample, data: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str, str]:
    canary = data / "canary"
    words, message = make(data, canary)
    capsys.readouterr()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = main(words)
    captured = capsys.readouterr()
    assert not canary.exists(), "something in it was executed"
    assert not list(data.parent.rglob("canary*")), "a file climbed out of its folder"
    assert "Traceback" not in captured.err + captured.out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1 << 20, "it took a gigabyte"
    return code, captured.out, captured.err, message


@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_refused_in_one_line(name: str, known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors, message = _run(SAMPLES[name], known_answer, capsys)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("recbole-kd:")]
    assert message in line
    assert len(line) < 2000, "it does not repeat what it was given at length"


@pytest.mark.parametrize("name", EITHER)
def test_nothing_that_is_given_is_evaluated(name: str, known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(EITHER[name], known_answer, capsys)[0] in (0, 2)


@pytest.mark.parametrize("name", IGNORED)
def test_it_does_no_harm_where_it_lies(name: str, known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _, message = _run(IGNORED[name], known_answer, capsys)
    assert code == 0
    assert message in output
