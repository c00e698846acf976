"""A hostile file executes nothing, and costs no more memory or time than it is long."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import io
import pickle
import pickletools
import re
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import FORMAT, load_any, load_checkpoint
from tests.files.samples import (
    Code,
    archive,
    call,
    code,
    named,
    pickled,
    stack_named,
    storage,
    tensor,
)

#
# The samples are put together opcode by opcode, so that each says what it would do, and none needs what it names.


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that each sample would make, if anything in it were executed."""
    return tmp_path / "canary"


def assert_refused(path: Path, reason: str, canary: Path) -> None:
    """All readers refuse the file, in one line that says why, and execute and allocate nothing."""
    for load in (load_any, load_checkpoint):
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
        "device": call("torch.device", "cuda", 1),
    }
    found = load_checkpoint(archive(tmp_path, state))
    assert found["tensor"].tolist() == [[1, 3], [2, 4]]
    assert found["array"].tolist() == [1, 2]
    assert found["columns"].tolist() == [[1, 3], [2, 4]]
    assert found["swapped"].tolist() == [1, 2]
    assert found["score"] == 0.5
    assert found["csr"].toarray().tolist() == [[1, 0, 0], [0, 0, 2]]
    assert found["lil"].toarray().tolist() == [[1, 0, 2], [0, 0, 0]]
    assert found["device"] == "cuda:1"


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

    # A tensor whose second half would be whatever lay in the memory.
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled({"format": FORMAT, "x": tensor(storage(length=8), (8,))}))
        file.writestr("archive/data/0", bytes(16))
        file.getinfo("archive/data/0").file_size = 32
    assert_refused(path, "its member archive/data/0 is compressed", canary)

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


def doubled(first: Code, times: int, opcode: bytes = pickle.TUPLE2) -> Code:
    """A value that holds itself as it was before twice, `times` times over: three bytes each."""
    again = pickle.BINPUT + b"\0" + pickle.BINGET + b"\0"
    return Code(first + (again + opcode) * times)


#: Files of a few KB that would take gigabytes, or for ever, if what they repeat were written out.
BOMBS: dict[str, Any] = {
    "tuples of tuples": doubled(code(()), 60),
    "tuples of tuples as a key": Code(pickle.EMPTY_DICT + doubled(code(()), 60) + code(1) + pickle.SETITEM),
    "tuples of tuples among keys": Code(
        pickle.EMPTY_DICT + pickle.MARK + code(1) + code(1) + doubled(code(()), 60) + code(1) + pickle.SETITEMS
    ),
    "rows of one list": Code(
        code([0] * 1000)
        + pickle.BINPUT
        + b"\1"
        + pickle.MARK
        + (pickle.BINGET + b"\1") * 20_000
        + pickle.TUPLE
        + pickle.TUPLE2
    ),
    "the same bytes in many arrays": Code(
        code(bytes(40_000))
        + pickle.BINPUT
        + b"\1"
        + pickle.MARK
        + (pickle.BINGET + b"\1") * 20_000
        + pickle.TUPLE
        + pickle.TUPLE2
    ),
    "lists 90,000 deep": Code(pickle.EMPTY_LIST * 90_000 + pickle.APPEND * 89_999),
    "settings that are tuples of tuples": {"x": doubled(code(()), 95)},
}


@pytest.mark.parametrize("sample", BOMBS)
def test_what_repeats_itself_is_refused_at_once(sample: str, canary: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    hostile = BOMBS[sample]
    settings = call("recbole.config.configurator.Config", state={"final_config_dict": {"seed": hostile}})
    for state in ({"format": FORMAT, "x": hostile}, {"config": settings, "state_dict": {}}):
        path = archive(tmp_path, state)
        tracemalloc.start()
        with pytest.raises(UserError, match="is not a whole checkpoint: ") as refused:
            load_any(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
        assert len(str(refused.value).splitlines()) == 1
    assert time.perf_counter() - start < 10


def test_what_is_shared_a_little_is_read(tmp_path: Path) -> None:
    twice = Code(code([1, 2, 3]) + pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2)
    one, other = load_checkpoint(archive(tmp_path, {"format": FORMAT, "x": twice}))["x"]
    assert one == [1, 2, 3]
    assert one is other
