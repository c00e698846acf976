"""What tests of files share: equality to the bit, plain values, and pickles put together opcode by opcode."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor


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


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


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
