"""Checkpoint files: what goes in comes out, a write that fails loses nothing, and a hostile file executes nothing."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import errno
import functools
import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import pickletools
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_kd.errors import UserError
from recbole_kd.files import checkpoint
from recbole_kd.files.checkpoint import (
    FORMAT,
    digest,
    load_any,
    load_checkpoint,
    load_recbole_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_json,
    write_atomic,
)

# ------------------------------------------------------------------------------------------- what goes in comes out


def assert_same(found: Any, expected: Any, where: str = "state") -> None:
    """Equality of types, of keys in their order, and of values to the bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(found, expected, err_msg=where)
    elif type(expected).__module__.startswith("scipy.sparse"):
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        np.testing.assert_array_equal(found.toarray(), expected.toarray(), err_msg=where)
    else:
        assert found == expected, where


DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_a_tensor_comes_back_as_it_went(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {"tensor": (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)}
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), {**state, "format": FORMAT})


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("_no_sync")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(max_size=5).filter(lambda key: key != "format"), plain_values, max_size=4))
def test_plain_values_come_back_as_they_went(state: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), {**state, "format": FORMAT})


def test_torch_reads_the_file_with_weights_only(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"student": layer.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state(), "epoch": 3}
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), torch.load(tmp_path / "x.pth", weights_only=True))


class Marked(Tensor):
    """A kind of tensor that only this file knows."""


def test_values_that_have_a_plain_form_are_saved_in_it(tmp_path: Path) -> None:
    state = {
        "parameter": nn.Parameter(torch.arange(3.0)),
        "marked": torch.arange(2.0).as_subclass(Marked),
        "array": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "point": np.array(2.5),
        "score": np.float64(0.25),
        "count": np.int32(3),
        "flag": np.bool_(True),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "modules": OrderedDict(a=1),
    }
    save_checkpoint(state, tmp_path / "x.pth")
    expected = {
        "parameter": torch.arange(3.0),
        "marked": torch.arange(2.0),
        "array": torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32),
        "point": torch.tensor(2.5, dtype=torch.float64),
        "score": 0.25,
        "count": 3,
        "flag": True,
        "size": (2, 3),
        "device": "cuda:1",
        "modules": {"a": 1},
        "format": FORMAT,
    }
    assert_same(load_checkpoint(tmp_path / "x.pth"), expected)
    assert_same(torch.load(tmp_path / "x.pth", weights_only=True), expected)
    assert not torch.load(tmp_path / "x.pth", weights_only=True)["parameter"].requires_grad


def test_shared_tensors_stay_shared_and_a_view_does_not_drag_its_table_along(tmp_path: Path) -> None:
    table = torch.randn(10_000, 8)
    save_checkpoint({"encoder": table, "decoder": table}, tmp_path / "tied.pth")
    tied = load_checkpoint(tmp_path / "tied.pth")
    assert tied["encoder"].data_ptr() == tied["decoder"].data_ptr()
    assert (tmp_path / "tied.pth").stat().st_size < 1.1 * table.numel() * 4

    save_checkpoint({"row": table[7], "column": table[:3, 2], "constant": torch.ones(1).expand(5)}, tmp_path / "v.pth")
    assert (tmp_path / "v.pth").stat().st_size < 10_000
    views = load_checkpoint(tmp_path / "v.pth")
    assert_same(views["row"], table[7])
    assert_same(views["column"], table[:3, 2])
    assert_same(views["constant"], torch.ones(5))


def test_a_transposed_tensor_keeps_its_strides(tmp_path: Path) -> None:
    save_checkpoint({"t": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["t"].stride() == (1, 3)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [0, {1, 2}]}}, r"state\['a'\]\['b'\]\[1\]: it is a builtins.set"),
        ({"f": len}, r"state\['f'\]: it is a builtins.builtin_function"),
        ({"m": nn.Linear(1, 1)}, r"state\['m'\]: it is a torch.nn.modules.linear.Linear"),
        ({"k": {(1, 2): 3}}, r"state\['k'\]: its key \(1, 2\) is a builtins.tuple"),
        ({"k": {True: 3}}, r"state\['k'\]: its key True is a builtins.bool"),
        ({"z": 1j}, r"state\['z'\]: it is a builtins.complex"),
        ({"p": Path("x")}, r"state\['p'\]: it is a pathlib"),
        ({"o": np.array([None])}, r"state\['o'\]: no tensor holds an array of object"),
        ({"s": torch.eye(2).to_sparse()}, r"state\['s'\]: it is a torch.sparse_coo tensor"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_path_of_keys(state: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        save_checkpoint(state, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


def test_json_holds_numbers_that_every_reader_understands(tmp_path: Path) -> None:
    result = {"recall@20": np.float64(0.5), "best": float("-inf"), "curve": (1.0, float("nan")), "n": np.int64(3)}
    save_json(result, tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"recall@20": 0.5, "best": None, "curve": [1.0, None], "n": 3}
    assert text.endswith("}\n")
    with pytest.raises(UserError, match=r"value\['x'\]: it is a builtins.object"):
        save_json({"x": object()}, tmp_path / "other.json")


# ------------------------------------------------------------------------------- a write that fails loses nothing


OLD = {"epoch": 1, "weights": torch.arange(1000.0)}
NEW = {"epoch": 2, "weights": torch.arange(100_000.0)}


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    path = tmp_path / "saved" / "model.pth"
    save_checkpoint(OLD, path)
    return path


def assert_untouched(path: Path) -> None:
    assert_same(load_checkpoint(path), {**OLD, "format": FORMAT})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "a temporary file was left behind"


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to write past a size, as it does on a full disk, in the middle of a file.

    It holds for every file of the process: pytest's own output must not fall under it.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 10_000, 390_000])
def test_the_disk_ends_in_the_middle_of_a_file(size: int, previous: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': File too large.*--checkpoint_dir"):  # noqa: SIM117
        with file_size_limit(size):
            save_checkpoint(NEW, previous)
    assert_untouched(previous)


def test_a_full_disk(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_file = checkpoint._RawFile
    monkeypatch.setattr(checkpoint, "_RawFile", lambda path, mode: raw_file("/dev/full", "w"))
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': No space left on device.*--checkpoint_dir"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_the_system_refuses_the_last_steps(name: str, previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match="Cannot write '.*model.pth': Input/output error"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_the_writer_fails_halfway(error: BaseException, seen: type[BaseException], previous: Path) -> None:
    def write(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(seen):
        write_atomic(previous, write)
    assert_untouched(previous)


def test_a_read_only_folder(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real one does not stop the administrator, who may be running this.
    def refuse(path: Path, mode: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(checkpoint, "_RawFile", refuse)
    with pytest.raises(UserError, match=r"Cannot write '.*model.pth': Read-only file system.*--checkpoint_dir"):
        save_checkpoint(NEW, previous)
    assert_untouched(previous)


@pytest.mark.parametrize(("path", "reason"), [("saved", "Is a directory"), ("saved/model.pth/x.pth", "File exists")])
def test_a_path_that_cannot_be_a_file(path: str, reason: str, previous: Path) -> None:
    with pytest.raises(UserError, match=reason):
        save_checkpoint(NEW, previous.parent.parent / path)
    with pytest.raises(UserError, match=reason):
        save_json({}, previous.parent.parent / path)
    assert_untouched(previous)


def test_a_written_file_has_reached_the_disk_before_it_takes_the_name(
    previous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, call=call: (done.append(name), call(*a))[1])
    save_checkpoint(NEW, previous)
    assert done == ["fsync", "replace", "fsync"]
    assert (previous.stat().st_mode & 0o777) == 0o666 & ~_umask(), "others may read it as any other file"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_for_ever(path: Path, states: list[dict[str, Any]]) -> None:
    while True:
        for state in states:
            save_checkpoint(state, path)


def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    states = [{"epoch": epoch, "weights": torch.full((50_000,), float(epoch))} for epoch in range(4)]
    save_checkpoint(states[0], path)
    moments = random.Random(0)
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, states))
        process.start()
        time.sleep(moments.uniform(0.005, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        state = load_checkpoint(path)
        assert_same(state, {**states[state["epoch"]], "format": FORMAT})


# ---------------------------------------------------------------------------------- a file that is not what it should


def test_files_that_are_no_checkpoint_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"There is no checkpoint '.*x.pth'"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"Cannot read the checkpoint '.*': Is a directory"):
        load_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(UserError, match="is not a whole checkpoint: it is empty"):
        load_checkpoint(path)
    path.write_text("epoch,loss\n" * 50)
    with pytest.raises(UserError, match="it is no PyTorch file"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is a checkpoint of neither recbole-kd nor RecBole"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="is a checkpoint of neither recbole-kd nor RecBole"):
        load_checkpoint(path)
    torch.save({"format": "recbole-kd/2"}, path)
    with pytest.raises(UserError, match="has the format recbole-kd/2; this version of recbole-kd reads 'recbole-kd/1'"):
        load_checkpoint(path)
    save_checkpoint(OLD, path)
    with pytest.raises(UserError, match="is a checkpoint of recbole-kd; expected one of RecBole itself"):
        load_recbole_checkpoint(path)


def test_no_part_of_a_file_is_taken_for_the_whole(previous: Path, tmp_path: Path) -> None:
    whole = previous.read_bytes()
    part = tmp_path / "part.pth"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        part.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a whole checkpoint"):
            load_checkpoint(part)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_harmlessly_damaged(data: st.DataObject, previous: Path, tmp_path: Path) -> None:
    content = bytearray(previous.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content)
    try:
        state = load_checkpoint(damaged)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert_same(state, {**OLD, "format": FORMAT})


# ------------------------------------------------------------------------------------------ what RecBole itself wrote

MODELS = ["BPR", "LightGCN", "NeuMF", "SimpleX", "MultiVAE", "EASE", "ItemKNN", "AsymKNN", "SLIMElastic"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Any, Any, Path]]]:
    """(model, dataset, checkpoint) of one epoch of RecBole on a slice of its bundled ml-100k, by the model's name."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer

    folder = tmp_path_factory.mktemp("recbole")
    settings = {
        "val_interval": {"timestamp": "[892500000,inf)"},
        "item_inter_num_interval": "[4,inf)",
        "epochs": 1,
        "train_batch_size": 512,
        "eval_batch_size": 100_000,
        "checkpoint_dir": str(folder),
        "embedding_size": 4,
        "mlp_embedding_size": 4,
        "mlp_hidden_size": [8],
        "latent_dimension": 4,
        "use_gpu": False,
        "gpu_id": "",
        "state": "CRITICAL",
        "show_progress": False,
    }

    @functools.cache
    def dataset() -> Any:
        return create_dataset(Config("BPR", "ml-100k", config_dict=dict(settings)))

    @functools.cache
    def train(name: str) -> tuple[Any, Any, Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pytest"])
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.chdir(folder)
            sampling = {"train_neg_sample_args": None} if name == "MultiVAE" else {}
            config = Config(name, "ml-100k", config_dict={**settings, **sampling})
            train_data, valid_data, _ = data_preparation(config, copy.deepcopy(dataset()))
            model = get_model(name)(config, train_data._dataset)
            trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
            trainer.saved_model_file = str(folder / f"{name}.pth")
            trainer.fit(train_data, valid_data, verbose=False)
            return model, train_data._dataset, folder / f"{name}.pth"

    logging.disable(logging.CRITICAL)
    yield train
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_recbole_is_read_whole(name: str, trained: Callable[[str], tuple[Any, Any, Path]]) -> None:
    model, dataset, path = trained(name)
    kind, state = load_any(path)
    assert kind == "recbole"
    assert_same(load_recbole_checkpoint(path), state)

    # RecBole's own way: it executes what the file holds, which this test may do with a file of its own.
    theirs = torch.load(path, weights_only=False)
    assert list(state) == list(theirs)
    assert_same(state["state_dict"], dict(theirs["state_dict"]))
    assert_same(state["other_parameter"], theirs["other_parameter"])
    assert_same(state["optimizer"], theirs["optimizer"])
    assert_same(state["best_valid_score"], float(theirs["best_valid_score"]))
    settings = dict(theirs["config"].final_config_dict)
    plain = {"MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type"}
    settings = {key: value.name if key in plain else value for key, value in settings.items()}
    assert_same(state["config"], {**settings, "device": "cpu"})

    # Another model that is given this state gives this model's scores.
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    for other in state["other_parameter"]:
        setattr(copied, other, None)
    copied.load_state_dict(state["state_dict"])
    copied.load_other_parameter(state["other_parameter"])
    users = {model.USER_ID: torch.arange(1, 6), model.ITEM_ID: torch.arange(1, 6)}
    with torch.no_grad():
        expected = torch.as_tensor(model.eval().predict(users))
        assert torch.equal(torch.as_tensor(copied.eval().predict(users)), expected)
    assert expected.abs().sum() > 0


def test_the_enums_of_early_python_311_are_read(tmp_path: Path) -> None:
    # Python 3.11.0 to 3.11.3 pickle ModelType.GENERAL as getattr(ModelType, "GENERAL"), later ones as ModelType(1).
    enum = "recbole.utils.enum_type.ModelType"
    config = {"early": call("builtins.getattr", named(enum), "GENERAL"), "later": call(enum, 1)}
    state = {
        "config": call("recbole.config.configurator.Config", state={"final_config_dict": config}),
        "state_dict": {},
    }
    assert load_recbole_checkpoint(archive(tmp_path, state))["config"] == {"early": "GENERAL", "later": "GENERAL"}


# --------------------------------------------------------------------------------- a hostile file executes nothing
#
# The samples are put together opcode by opcode, so that each says what it would do, and none needs what it names.


class Code(bytes):
    """Opcodes of a pickle that leave one value on its stack."""


def code(value: Any) -> Code:
    if isinstance(value, Code):
        return value
    if isinstance(value, (tuple, list)):
        start, end = (b"", pickle.TUPLE) if isinstance(value, tuple) else (pickle.EMPTY_LIST, pickle.APPENDS)
        return Code(start + pickle.MARK + b"".join(map(code, value)) + end)
    if isinstance(value, dict):
        content = b"".join(code(part) for item in value.items() for part in item)
        return Code(pickle.EMPTY_DICT + pickle.MARK + content + pickle.SETITEMS)
    return Code(pickle.dumps(value, 3)[2:-1])


def named(full: str) -> Code:
    """The class or function of that name."""
    module, _, attribute = full.rpartition(".")
    return Code(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


def stack_named(module: str, attribute: str) -> Code:
    """The same in the form of protocol 4, which also goes through attributes."""
    return Code(code(module) + code(attribute) + pickle.STACK_GLOBAL)


def call(function: str | Code, *arguments: Any, state: Any = None) -> Code:
    """A call of a function or class, and then the state that is put into its result."""
    function = named(function) if isinstance(function, str) else function
    made = function + code(arguments) + pickle.REDUCE
    return Code(made if state is None else made + code(state) + pickle.BUILD)


def storage(key: str = "0", length: Any = 4, kind: Any = "torch.FloatStorage") -> Code:
    return Code(
        code(("storage", named(kind) if isinstance(kind, str) else kind, key, "cpu", length)) + pickle.BINPERSID
    )


def tensor(stored: Code, size: Any = (4,), stride: Any = (1,), offset: Any = 0) -> Code:
    return call("torch._utils._rebuild_tensor_v2", stored, offset, size, stride, False, {})


def pickled(value: Any) -> bytes:
    return pickle.PROTO + b"\x04" + code(value) + pickle.STOP


def archive(folder: Path, value: Any, **members: bytes) -> Path:
    """A file such as torch.save writes, with one storage of four floats, around any pickle."""
    path = folder / "sample.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled(value))
        file.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        for member, content in members.items():
            file.writestr(member, content)
    return path


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that each sample would make, if anything in it were executed."""
    return tmp_path / "canary"


def assert_refused(path: Path, reason: str, canary: Path) -> None:
    """All readers refuse the file, in one line that says why, and execute and allocate nothing."""
    for load in (load_any, load_checkpoint, load_recbole_checkpoint):
        tracemalloc.start()
        with pytest.raises(UserError, match=reason) as refused:
            load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(str(refused.value).splitlines()) == 1
        assert peak < 10_000_000
    assert not canary.exists()


#: What does harm where pickles are trusted, as a function of the canary's path, by the name that refuses it.
EXECUTING: dict[str, Callable[[Path], Any]] = {
    "builtins.eval": lambda canary: call("builtins.eval", f"open({str(canary)!r}, 'w')"),
    "builtins.exec": lambda canary: call("builtins.exec", f"open({str(canary)!r}, 'w')"),
    "os.system": lambda canary: call("os.system", f"touch '{canary}'"),
    "subprocess.check_call": lambda canary: call("subprocess.check_call", ["touch", str(canary)]),
    "functools.partial": lambda canary: call(call("functools.partial", named("builtins.open"), str(canary), "w")),
    "operator.methodcaller": lambda canary: call(
        call("operator.methodcaller", "touch"), call("pathlib.Path", str(canary))
    ),
    "importlib.import_module": lambda canary: call("importlib.import_module", "module_with_a_canary"),
    "module_with_a_canary.anything": lambda canary: named("module_with_a_canary.anything"),
    "pickle.loads": lambda canary: call("pickle.loads", pickled(EXECUTING["os.system"](canary))),
    "torch.storage._load_from_bytes": lambda canary: call(
        "torch.storage._load_from_bytes", pickled(EXECUTING["os.system"](canary))
    ),
    "yaml.unsafe_load": lambda canary: call("yaml.unsafe_load", f"!!python/object/apply:os.mkdir ['{canary}']"),
    # RecBole's Config evaluates settings that are strings. This calls that method of a class which real files name.
    "builtins.getattr": lambda canary: call(
        call("builtins.getattr", named("recbole.config.configurator.Config"), "_convert_config_dict"),
        *(None, {"seed": f"open({str(canary)!r}, 'w')"}),
    ),
    "recbole.model.general_recommender.ldiffrec.os.system": lambda canary: call(
        stack_named("recbole.model.general_recommender.ldiffrec", "os.system"), f"touch '{canary}'"
    ),
    f"{__name__}.SetsState": lambda canary: call(f"{__name__}.SetsState", state=str(canary)),
    "inside an array": lambda canary: call(
        *("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b"),
        state=(1, (1,), OBJECTS, False, [EXECUTING["os.system"](canary)]),
    ),
    "by opcode OBJ": lambda canary: Code(pickle.MARK + named("os.system") + code(f"touch '{canary}'") + pickle.OBJ),
    "by opcode INST": lambda canary: Code(pickle.MARK + code(f"touch '{canary}'") + pickle.INST + b"os\nsystem\n"),
    "by opcode EXT1": lambda canary: call(Code(pickle.EXT1 + b"\xf0"), f"touch '{canary}'"),
}
OTHER_REASONS = {
    "inside an array": "names os.system, ",
    "by opcode OBJ": "names os.system, ",
    "by opcode INST": "is not a whole checkpoint",
    "by opcode EXT1": "is not a whole checkpoint",
}


class SetsState:
    """A class whose state does harm."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()


@pytest.fixture
def harm(canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the samples need to be able to do harm."""
    (tmp_path / "module_with_a_canary.py").write_text(f"anything = open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)
    sys.modules.pop("module_with_a_canary", None)


@pytest.mark.usefixtures("harm")
@pytest.mark.parametrize("sample", EXECUTING)
def test_what_pickle_would_execute_is_refused_by_name(sample: str, canary: Path, tmp_path: Path) -> None:
    hostile = EXECUTING[sample](canary)
    reason = OTHER_REASONS.get(sample, f"names {re.escape(sample)}, which no checkpoint needs; nothing in it was")
    settings = call("recbole.config.configurator.Config", state={"final_config_dict": {"seed": hostile}})
    assert_refused(archive(tmp_path, {"format": FORMAT, "epoch": hostile}), reason, canary)
    assert_refused(archive(tmp_path, {"config": settings, "state_dict": {}}), reason, canary)

    with contextlib.suppress(Exception):
        pickle.loads(pickled(hostile))
    assert canary.exists(), "the sample is harmless: it proves nothing"


@pytest.mark.parametrize(
    "function",
    [
        *("torch.load", "torch.serialization.load", "torch.hub.load", "torch.jit.load", "torch.FloatStorage"),
        *("torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_wrapper_subclass", "torch.utils.data.Dataset"),
        *("recbole.utils.utils.get_model", "recbole.utils.enum_type.Enum", "recbole.data.utils.load_split_dataloaders"),
        *("recbole.model.general_recommender.bpr.BPR", "recbole.model.layers.FeatureSeqEmbLayer"),
        *("yaml.load", "yaml.loader.UnsafeLoader", "yaml.loader.FullLoader", "numpy.load", "numpy.ndarray"),
        *("scipy.sparse.load_npz", "collections.OrderedDict", "collections.defaultdict", "copyreg._reconstructor"),
        *("__builtin__.eval", "nt.system", "_codecs.encode", "types.CodeType", "builtins.setattr", "webbrowser.open"),
    ],
)
def test_no_other_function_is_called(function: str, canary: Path, tmp_path: Path) -> None:
    state = {"format": FORMAT, "epoch": call(function, str(canary))}
    assert_refused(archive(tmp_path, state), f"names {re.escape(function)}, which", canary)


def test_getattr_is_for_the_members_of_enums_alone(canary: Path, tmp_path: Path) -> None:
    state = {"format": FORMAT, "epoch": call("builtins.getattr", named("torch.device"), "__init__")}
    assert_refused(archive(tmp_path, state), "names builtins.getattr, which", canary)


def test_a_hostile_name_stays_on_one_line(canary: Path, tmp_path: Path) -> None:
    state = {"format": FORMAT, "epoch": stack_named("os\n\x1b[2Jall is well", "x" * 10_000)}
    assert_refused(archive(tmp_path, state), r"names 'os\\n\\x1b\[2Jall is well", canary)
    for hostile in (stack_named("os\n", "x" * 10_000), stack_named("os", "x" * 10_000)):
        with pytest.raises(UserError) as refused:
            load_any(archive(tmp_path, {"format": FORMAT, "epoch": hostile}))
        assert len(str(refused.value)) < 1000


FLOATS = call("numpy.dtype", "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0))
SWAPPED = call("numpy.dtype", "f8", False, True, state=(3, ">", None, None, None, -1, -1, 0))
INTEGERS = call("numpy.dtype", "i4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
OBJECTS = call("numpy.dtype", "O8", False, True, state=(3, "|", None, None, None, -1, -1, 63))


def array(content: Any, described: Code = FLOATS, shape: Any = None, columns_first: bool = False) -> Code:
    shape = (len(content) if isinstance(content, list) else len(content) // 8,) if shape is None else shape
    start = call("numpy.core.multiarray._reconstruct", named("numpy.ndarray"), (0,), b"b")
    return Code(start + code((1, shape, described, columns_first, content)) + pickle.BUILD)


def csr(indices: tuple[int, ...], offsets: tuple[int, ...], shape: Any) -> Code:
    parts = {
        "_shape": shape,
        "data": array(struct.pack("<2d", 1, 2)),
        "indices": array(struct.pack(f"<{len(indices)}i", *indices), INTEGERS, (len(indices),)),
        "indptr": array(struct.pack(f"<{len(offsets)}i", *offsets), INTEGERS, (len(offsets),)),
    }
    return call("scipy.sparse._csr.csr_matrix", state=parts)


def lil(rows: list[Any], contents: list[Any], shape: Any) -> Code:
    parts = {"_shape": shape, "dtype": FLOATS, "rows": array(rows, OBJECTS), "data": array(contents, OBJECTS)}
    return call("scipy.sparse._lil.lil_matrix", state=parts)


def declared(opcode: bytes, length: int, width: int) -> Code:
    """An opcode that declares more bytes than follow."""
    return Code(opcode + length.to_bytes(width, "little") + b"short")


def test_the_samples_below_are_read_where_they_are_sound(tmp_path: Path) -> None:
    state = {
        "format": FORMAT,
        "tensor": tensor(storage(), (2, 2), (1, 2)),
        "array": array(struct.pack("<2d", 1, 2)),
        "columns": array(struct.pack("<4d", 1, 2, 3, 4), shape=(2, 2), columns_first=True),
        "swapped": array(struct.pack(">2d", 1, 2), SWAPPED),
        "score": call("numpy.core.multiarray.scalar", FLOATS, struct.pack("<d", 0.5)),
        "csr": csr((0, 2), (0, 1, 2), (2, 3)),
        "lil": lil([[0, 2], []], [[1.0, 2.0], []], (2, 3)),
    }
    found = load_checkpoint(archive(tmp_path, state))
    assert found["tensor"].tolist() == [[1, 3], [2, 4]]
    assert found["array"].tolist() == [1, 2]
    assert found["columns"].tolist() == [[1, 3], [2, 4]]
    assert found["swapped"].tolist() == [1, 2]
    assert found["score"] == 0.5
    assert found["csr"].toarray().tolist() == [[1, 0, 0], [0, 0, 2]]
    assert found["lil"].toarray().tolist() == [[1, 0, 2], [0, 0, 0]]


#: What declares more than there is, or refers to what is not there.
UNSOUND: dict[str, Any] = {
    "tensor beyond its storage": tensor(storage(), (5,)),
    "tensor of a negative offset": tensor(storage(), (4,), (1,), -1),
    "tensor of a negative size": tensor(storage(), (-4,)),
    "tensor of a negative stride": tensor(storage(), (4,), (-1,)),
    "tensor of an offset too far": tensor(storage(), (4,), (1,), 1),
    "tensor of 2^40 elements by a stride of 0": tensor(storage(), (2**40,), (0,)),
    "tensor of 2^80 elements": tensor(storage(), (2**40, 2**40), (0, 0)),
    "tensor of a size that is no number": tensor(storage(), ("4",)),
    "tensor of sizes without strides": tensor(storage(), (2, 2), (1,)),
    "tensor without a storage": tensor(code(None)),
    "tensor with a state": Code(tensor(storage()) + code({"__class__": 1}) + pickle.BUILD),
    "storage that is larger than its member": tensor(storage(length=2**40)),
    "storage of another type than its member": tensor(storage(kind="torch.DoubleStorage")),
    "storage of two types": [tensor(storage()), tensor(storage(kind="torch.IntStorage"))],
    "storage of a negative length": tensor(storage(length=-4)),
    "storage of a part of its member": tensor(storage(length=3), (3,)),
    "storage without a member": tensor(storage(key="7")),
    "storage outside of the data": tensor(storage(key="../data.pkl")),
    "storage of a class that is none": tensor(storage(kind="torch.device")),
    "persistent id of another kind": tensor(
        Code(code(("module", named("torch.FloatStorage"), "0", "cpu", 4)) + pickle.BINPERSID)
    ),
    "persistent id that is none": Code(code("0") + pickle.BINPERSID),
    "persistent id as text": Code(pickle.PERSID + b"0\n"),
    "array that is larger than its bytes": array(bytes(8), shape=(2**40,)),
    "array of a negative shape": array(bytes(8), shape=(-1,)),
    "array of objects of another shape": array([1, 2], OBJECTS, (2**40,)),
    "array of no dtype": array(bytes(8), code("f8")),
    "array of records": array(bytes(8), call("numpy.dtype", "V8", state=(3, "<", None, None, None, 8, 1, 0))),
    "array of addresses": array(bytes(8), OBJECTS, (1,)),
    "array of no class": call("numpy.core.multiarray._reconstruct", "numpy.ndarray", (0,), b"b"),
    "number of too few bytes": call("numpy.core.multiarray.scalar", FLOATS, b"1234"),
    "number of too many bytes": call("numpy.core.multiarray.scalar", FLOATS, bytes(16)),
    "number that is an address": call("numpy.core.multiarray.scalar", OBJECTS, bytes(8)),
    "matrix with a column too far": csr((0, 3), (0, 1, 2), (2, 3)),
    "matrix with a negative column": csr((0, -1), (0, 1, 2), (2, 3)),
    "matrix with offsets too far": csr((0, 1), (0, 1, 2**30), (2, 3)),
    "matrix of 2^40 rows": csr((0, 1), (0, 1, 2), (2**40, 3)),
    "matrix of lists with a column too far": lil([[7]], [[1.0]], (1, 3)),
    "matrix of lists of other lengths": lil([[0, 1]], [[1.0]], (1, 3)),
    "matrix of lists that shift a value": lil([[0, 1], []], [[1.0], [2.0]], (2, 3)),
    "matrix of lists of too few rows": lil([[0]], [[1.0]], (2**40, 3)),
    "matrix of no lists": lil([(0,)], [(1.0,)], (1, 3)),
    "enum of no such value": call("recbole.utils.enum_type.ModelType", 99),
    "state of a class": Code(named("torch.device") + code({"index": 1}) + pickle.BUILD),
    "state of a list": Code(code([1]) + code({"append": 1}) + pickle.BUILD),
    "state twice": Code(call("torch.device", "cpu", state={}) + code({}) + pickle.BUILD),
    "attribute of a name": Code(named("torch.device") + code("x") + code(1) + pickle.SETITEM),
    "call of a string": call(code("os.system"), "true"),
    "call without a tuple": Code(named("torch.device") + code([1]) + pickle.REDUCE),
    "key that is a list": Code(pickle.EMPTY_DICT + code([1]) + code(1) + pickle.SETITEM),
    "key that is a tuple": {(1, 2): 3},
    "bytes": b"bytes",
    "list in itself": Code(pickle.EMPTY_LIST + pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.APPEND),
    "lists 5000 deep": Code(pickle.EMPTY_LIST * 5000 + pickle.APPEND * 4999),
    "bytes of 2^60": declared(pickle.BINBYTES8, 2**60, 8),
    "bytes of 2^31": declared(pickle.BINBYTES, 2**31 - 1, 4),
    "bytearray of 2^60": declared(pickle.BYTEARRAY8, 2**60, 8),
    "text of 2^60": declared(pickle.BINUNICODE8, 2**60, 8),
    "text of 2^31": declared(pickle.BINUNICODE, 2**31, 4),
    "number of 2^31 bytes": declared(pickle.LONG4, 2**31 - 1, 4),
    "frame of 2^60": declared(pickle.FRAME, 2**60, 8),
    "buffer from outside": Code(pickle.NEXT_BUFFER),
    "memory that was never filled": Code(pickle.LONG_BINGET + (2**31).to_bytes(4, "little")),
    "an opcode that there is not": Code(b"\xff"),
    "nothing on the stack": Code(pickle.TUPLE3),
}


@pytest.mark.parametrize("sample", UNSOUND)
def test_what_does_not_fit_together_is_refused(sample: str, canary: Path, tmp_path: Path) -> None:
    path = archive(tmp_path, {"format": FORMAT, "x": UNSOUND[sample]})
    assert_refused(path, "is not a whole checkpoint", canary)


@pytest.mark.parametrize("part", ["config", "state_dict"])
def test_a_checkpoint_of_recbole_has_settings_and_weights(part: str, canary: Path, tmp_path: Path) -> None:
    settings = call("recbole.config.configurator.Config", state={"final_config_dict": {"seed": 1}})
    state: dict[str, Any] = {"config": settings, "state_dict": {"weight": tensor(storage())}}
    assert load_any(archive(tmp_path, state))[0] == "recbole"
    state[part] = call("torch.device", "cpu")
    assert_refused(archive(tmp_path, state), "its content does not fit together", canary)


def test_a_place_far_out_in_the_memory_of_the_machine_costs_nothing(canary: Path, tmp_path: Path) -> None:
    # Python's own reader in C makes room for 2^31 values here.
    far = (2**31).to_bytes(4, "little")
    path = archive(tmp_path, {"format": FORMAT, "x": Code(code(1) + pickle.LONG_BINPUT + far)})
    tracemalloc.start()
    assert load_checkpoint(path)["x"] == 1
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    opcodes=st.lists(st.binary(max_size=4) | st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]))
)
def test_any_opcodes_are_read_or_refused(opcodes: list[bytes], tmp_path: Path) -> None:
    path = archive(tmp_path, {"format": FORMAT, "x": Code(b"".join(opcodes))})
    try:
        assert load_checkpoint(path)["format"] == FORMAT
    except UserError as error:
        assert len(str(error).splitlines()) == 1


MEMBERS: dict[str, tuple[str, bytes]] = {
    "a path that climbs": ("../../canary", b""),
    "a path that climbs inside": ("archive/../../canary", b""),
    "an absolute path": ("/canary", b""),
    "a path of Windows": ("archive/data\\..\\..\\canary", b""),
    "a second root": ("other/data/9", b""),
    "a member twice": ("archive/data/0", b""),
    "a program of TorchScript": ("archive/code/__torch__.py", b""),
    "constants of TorchScript": ("archive/constants.pkl", b""),
    "a file of another kind": ("archive/setup.py", b""),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("sample", MEMBERS)
def test_members_that_no_checkpoint_has(sample: str, canary: Path, tmp_path: Path) -> None:
    member, content = MEMBERS[sample]
    path = archive(tmp_path, {"format": FORMAT}, **{member: content})
    assert_refused(path, "is not a whole checkpoint: it holds a member ", canary)


def test_an_archive_that_climbs_as_a_whole(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../data.pkl", pickled({"format": FORMAT}))
    assert_refused(path, "it holds a member ../data.pkl", canary)


def test_archives_that_grow(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"format": FORMAT, "x": tensor(storage(length=2**24))}))
        file.writestr("archive/data/0", bytes(2**26))
    assert path.stat().st_size < 100_000
    assert_refused(path, "its member archive/data.pkl is compressed", canary)

    # The same 16 bytes, called a hundred members.
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled({"format": FORMAT}))
        file.writestr("archive/data/0", bytes(100_000))
        for number in range(1, 100):
            again = copy.copy(file.getinfo("archive/data/0"))
            again.filename = f"archive/data/{number}"
            file.filelist.append(again)
    assert_refused(path, "its members are larger than itself", canary)

    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/version", b"3")
    assert_refused(path, "it holds no data.pkl", canary)


def test_other_formats_of_pytorch(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.pth"
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    assert_refused(path, "it holds a member ", canary)

    torch.save({"format": FORMAT}, path, _use_new_zipfile_serialization=False)
    assert_refused(path, "in the format of PyTorch before 1.6", canary)

    path.write_bytes(pickled(EXECUTING["os.system"](canary)))
    assert_refused(path, "in the format of PyTorch before 1.6", canary)

    with tarfile.open(path, "w") as file:
        hostile = pickled(EXECUTING["os.system"](canary))
        for member in ("sys_info", "pickle", "tensors", "storages"):
            header = tarfile.TarInfo(member)
            header.size = len(hostile)
            file.addfile(header, io.BytesIO(hostile))
    assert_refused(path, "in the format of PyTorch before 1.6", canary)

    assert_refused(archive(tmp_path, {"format": FORMAT}, **{"archive/byteorder": b"big"}), "another byte order", canary)


# ---------------------------------------------------------------------------------------------------- content's digest


def test_a_digest_is_of_tagged_and_counted_content() -> None:
    expected = hashlib.sha256(b"list 2:0:int:1:7str:2:ab").hexdigest()
    assert digest(7, "ab") == expected
    expected = hashlib.sha256(b"list 1:0:tensor int16 (2, 1):4:" + struct.pack("<2h", 3, 4)).hexdigest()
    assert digest(torch.tensor([[3], [4]], dtype=torch.int16)) == expected


DIFFERENT: list[Any] = [
    *(None, False, True, 0, 1, -1, 0.0, 1.0, "", "1", "None", b"", b"1", 10**30),
    *([], [1], [1, 2], [[1], 2], [1, [2]], [[1, 2]], ["ab", "c"], ["a", "bc"], {}, {"a": 1}, {"a": 2}, {1: "a"}),
    *({"a": None}, [{"a": 1}], [("a", 1)], {"a": {"b": 1}}, float("inf"), float("nan")),
    *(torch.tensor(1), torch.tensor([1]), torch.tensor([[1]]), torch.tensor(1.0), torch.tensor(1, dtype=torch.int32)),
    *(torch.tensor(True), torch.tensor(1, dtype=torch.uint8), torch.empty(0, 3), torch.empty(3, 0), torch.empty(0)),
    *(torch.arange(6).reshape(2, 3), torch.arange(6).reshape(3, 2), torch.arange(6).reshape(3, 2).T),
    *(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16), np.array(["a"]), np.array([["a"]])),
]


def test_what_differs_has_another_digest() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({digest(), digest(1), digest(1, 2), digest([1, 2]), digest((1,), 2)}) == 5


def test_what_is_the_same_has_the_same_digest() -> None:
    table = torch.randn(5, 4)
    same = [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ((1, "x"), [1, "x"]),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.str_("x"), "x"),
        (OrderedDict(a=1), {"a": 1}),
        (torch.Size([2, 3]), (2, 3)),
        (table, table.clone()),
        (table.T, table.T.contiguous()),
        (table[1:4, 2], table[1:4, 2].clone()),
        (nn.Parameter(table), table),
        (table, table.numpy()),
        (table.numpy(), table.numpy().astype(">f4")),
        (table.numpy()[:, ::-1], table.numpy()[:, ::-1].copy()),
        (torch.complex(table, table).conj(), torch.complex(table, -table)),
        (np.array(["a", "b"]), np.array(["a", "b"], dtype=object)),
    ]
    for one, other in same:
        assert digest(one) == digest(other), (one, other)
        assert digest([0, {"x": one}]) == digest([0, {"x": other}])


@settings(max_examples=100, deadline=None)
@given(one=plain_values, other=plain_values)
def test_digests_are_equal_where_values_are(one: Any, other: Any) -> None:
    def canonical(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ("list", tuple(map(canonical, value)))
        if isinstance(value, dict):
            return ("dict", frozenset((canonical(key), canonical(element)) for key, element in value.items()))
        return (type(value), repr(value))

    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))
    assert digest(one) == digest(copy.deepcopy(one))


@pytest.mark.parametrize(
    "value", [{1}, len, object(), 1j, Path("x"), torch.eye(2).to_sparse()], ids=lambda value: type(value).__name__
)
def test_a_digest_of_anything_else_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="digest takes plain values, tensors and arrays"):
        digest([value])


def test_a_large_tensor_is_hashed_in_place() -> None:
    table = np.zeros((1000, 4000), dtype=np.float32)
    tracemalloc.start()
    digest({"array": table, "tensor": torch.from_numpy(table)})
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


# ------------------------------------------------------------------------------------------------------ random states


def draw() -> list[float]:
    """Numbers of every global generator; the normal ones leave half a pair behind in python's and numpy's."""
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]
    if torch.cuda.is_available():
        numbers.append(torch.rand((), device="cuda").item())
    return numbers


@pytest.fixture
def _own_random_state() -> Iterator[None]:
    before = random_state()
    yield
    restore_random_state(before)


@pytest.mark.usefixtures("_own_random_state")
def test_random_states_go_on_where_they_were_saved(tmp_path: Path) -> None:
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw()
        save_checkpoint({"random": random_state()}, tmp_path / "x.pth")
        expected = [draw() for _ in range(3)]
        restore_random_state(load_checkpoint(tmp_path / "x.pth")["random"])
        assert [draw() for _ in range(3)] == expected


@pytest.mark.usefixtures("_own_random_state")
def test_taking_the_random_state_draws_nothing() -> None:
    torch.manual_seed(0)
    before = random_state()
    assert digest(random_state()) == digest(before)


@pytest.mark.usefixtures("_own_random_state")
@pytest.mark.parametrize(
    "broken",
    [
        lambda state: state.pop("python"),
        lambda state: state["python"].update(words=torch.zeros(3, dtype=torch.int64)),
        lambda state: state["numpy"].update(kind="PCG64"),
        lambda state: state["numpy"].update(keys=None),
        lambda state: state.update(torch=torch.zeros(3, dtype=torch.uint8)),
        lambda state: state.update(cuda=None),
    ],
)
def test_random_states_that_are_none_are_refused(broken: Callable[[dict[str, Any]], Any]) -> None:
    state = random_state()
    broken(state)
    with pytest.raises(UserError, match="random states cannot be restored"):
        restore_random_state(state)
