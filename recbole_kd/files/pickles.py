"""Reads what torch.save wrote, RecBole's pickled checkpoints among them, without executing anything in the file.

``torch.load(weights_only=True)`` cannot replace it (tried with torch 2.13). RecBole pickles with protocol 4, whose
opcodes (FRAME, MEMOIZE, STACK_GLOBAL, ...) that reader does not know, whatever is on its allow-list. It also does not
check the members' checksums, and makes a tensor of 2^40 elements from a file of 100 KB (a stride of 0).

Here the pickle machine calls nothing. A requested call is recorded. The few kinds of calls in real files are then
turned into values, each by code that checks it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from recbole.utils.enum_type import EvaluatorType, InputType, ModelType
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor

from recbole_kd.files.plain import DTYPES
from recbole_kd.files.schema import inside, require_bounded


class Refused(Exception):
    """A class or function, by its full name, that no checkpoint needs."""


class Malformed(Exception):
    """The error in a file, as a clause."""


def shown(text: str) -> str:
    """`text` from a file, made safe for one line of output: the file may contain anything."""
    return text[:200] if text.isprintable() else ascii(text[:200])


@dataclass(frozen=True, eq=False)
class _Global:
    """The name of a class or function, never looked up."""

    name: str


@dataclass(eq=False)
class _Call:
    """A call that a pickle requests, never made, and the state that it would set in the result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class _Storage:
    """A tensor's elements: a member of the archive."""

    dtype: torch.dtype
    key: str
    length: int


#: Types of a dict's keys; and the largest number of values for each byte of a pickle.
_KEYS, _REPEATED = (type(None), bool, int, float, str), 4
_STORAGE = re.compile(rf"torch\.(?:cuda\.)?({'|'.join(DTYPES)})")

_ENUMS = {f"recbole.utils.enum_type.{enum.__name__}": enum for enum in (ModelType, InputType, EvaluatorType)}

#: Names in files that are not called: the model's class and the YAML loader in RecBole's Config, and classes that are
#: arguments of numpy's functions.
_LABEL = re.compile(r"recbole(_kd)?\.model(\.\w+)+|yaml\.loader\.FullLoader|numpy\.(ndarray|matrix)")


class _Unpickler(pickle._Unpickler):
    """The standard library's pickle machine with the opcodes that torch.save writes; it records calls only.

    It is the version in Python, whose memory is bounded by the file (the C version allocates what a file declares).
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _BUILDERS or full == "collections.OrderedDict" or _STORAGE.fullmatch(full) or _LABEL.fullmatch(full):
            return _Global(full)
        raise Refused(full)

    def persistent_load(self, pid: Any) -> Any:
        tag, storage, key, _, length = pid
        name = _STORAGE.fullmatch(storage.name) if isinstance(storage, _Global) else None
        if tag != "storage" or name is None or type(key) is not str or type(length) is not int:
            raise Malformed("it refers to something that is not a tensor's storage")
        return _Storage(DTYPES[name[1]], key, length)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, _Call):
            raise Refused(function.name)
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise Malformed("it calls something that is not a function")
        if function.name == "collections.OrderedDict" and not arguments:
            self.stack.append({})
        elif function.name in _BUILDERS:
            self.stack.append(_Call(function.name, arguments))
        else:
            raise Refused(function.name)

    def _build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, _Call) and instance.state is None:
            instance.state = state
        elif type(instance) is not dict:  # the attributes of an OrderedDict (a module's versions) are left out
            raise Malformed("it sets the state of something that has none")

    def _setitem(self) -> None:
        self._put([*reversed((self.stack.pop(), self.stack.pop()))])

    def _setitems(self) -> None:
        self._put(self.pop_mark())  # type: ignore[attr-defined]

    def _put(self, items: list[Any]) -> None:
        # Checked before they are hashed, because hashing a tuple reads all of it.
        if any(type(key) not in _KEYS for key in items[::2]) or type(self.stack[-1]) is not dict:
            raise Malformed("it uses an invalid key")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
        )
    }
    dispatch |= {pickle.REDUCE[0]: _reduce, pickle.NEWOBJ[0]: _reduce, pickle.BUILD[0]: _build}
    dispatch |= {pickle.SETITEM[0]: _setitem, pickle.SETITEMS[0]: _setitems}


def _parts(node: Any) -> tuple[Any, ...]:
    return (*node.arguments, node.state) if isinstance(node, _Call) else inside(node)


class Archive:
    """The zip file of a checkpoint, read in place: members are neither unpacked nor larger than the file."""

    _MEMBER = re.compile(r"data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+")

    def __init__(self, file: BinaryIO, device: torch.device) -> None:
        self.device = device
        start = file.read(4)
        if not start:
            raise Malformed("it is empty")
        if start != b"PK\x03\x04":
            file.seek(257)
            old = start[:1] == b"\x80" or file.read(5) == b"ustar"
            raise Malformed("it is in the format of PyTorch before 1.6" if old else "it is no PyTorch file")
        self.zip = zipfile.ZipFile(file)
        self.members: dict[str, zipfile.ZipInfo] = {}
        roots = set()
        for member in self.zip.infolist():
            root, _, name = member.filename.partition("/")
            roots.add(root)
            if not self._MEMBER.fullmatch(name) or root in (".", "..") or name in self.members or len(roots) > 1:
                raise Malformed(f"it holds a member {shown(member.filename)}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise Malformed(f"its member {shown(member.filename)} is compressed")
            self.members[name] = member
        if sum(member.file_size for member in self.members.values()) > file.seek(0, os.SEEK_END):
            raise Malformed("its members are larger than itself")
        if "byteorder" in self.members and self.zip.read(self.members["byteorder"]).decode() != sys.byteorder:
            raise Malformed("it comes from a machine of another byte order")
        self._storages: dict[str, Tensor] = {}
        self._values: dict[int, Any] = {}

    def tree(self) -> Any:
        """The pickled content: plain values and recorded calls; their number is bounded by the pickle's length."""
        if "data.pkl" not in self.members:
            raise Malformed("it holds no data.pkl")
        content = self.zip.read(self.members["data.pkl"])
        self._tree = _Unpickler(io.BytesIO(content)).load()
        require_bounded(self._tree, _REPEATED * len(content), _parts)
        return self._tree

    def recbole(self, tree: Any) -> dict[str, Any] | None:
        """The state of a checkpoint of RecBole's Trainer; None if the tree is something else."""
        if not (isinstance(tree, dict) and isinstance(tree.get("config"), _Call) and "state_dict" in tree):
            return None
        state: dict[str, Any] = self.value(tree)
        _check(isinstance(state["config"], dict) and isinstance(state["state_dict"], dict), "its content")
        return state

    def value(self, node: Any) -> Any:
        """A node of :meth:`tree` with every recorded call replaced by its value; shared parts stay shared."""
        if node is None or type(node) in (bool, int, float, str):
            return node
        if isinstance(node, _Global):
            return node.name
        if id(node) not in self._values:
            self._values[id(node)] = _UNFINISHED
            self._values[id(node)] = self._build(node)
        value = self._values[id(node)]
        if value is _UNFINISHED:
            raise Malformed("it refers to itself")
        return value

    def _build(self, node: Any) -> Any:
        if isinstance(node, _Call):
            return _BUILDERS[node.name](self, node)
        if isinstance(node, dict):
            return {key: self.value(element) for key, element in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)([self.value(element) for element in node])
        raise Malformed(f"it holds {type(node).__name__} where a value should be")

    def storage(self, storage: _Storage) -> Tensor:
        """(length,) the elements of a storage."""
        member = self.members[f"data/{storage.key}"]
        if member.file_size != storage.length * torch.empty(0, dtype=storage.dtype).element_size():
            raise Malformed(f"its member {shown(member.filename)} is not of {storage.length} {storage.dtype}")
        if storage.key not in self._storages:
            elements = torch.empty(storage.length, dtype=storage.dtype)
            content = elements.view(torch.uint8).numpy()
            position = 0
            with self.zip.open(member) as file:
                # Reading to the end checks the member's checksum.
                while chunk := file.read(1 << 22):
                    content[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    position += len(chunk)
            self._storages[storage.key] = elements.to(self.device)
        elements = self._storages[storage.key]
        if elements.dtype != storage.dtype:
            raise Malformed(f"its member {shown(member.filename)} is of two types")
        return elements


_UNFINISHED = object()


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(f"{what} does not fit together")


def _sizes(sizes: Any) -> bool:
    """Whether `sizes` is a tuple of whole numbers from 0 on."""
    return type(sizes) is tuple and all(type(size) is int and 0 <= size < 2**63 for size in sizes)


def _build_tensor(archive: Archive, call: _Call) -> Tensor:
    storage, offset, size, stride = call.arguments[:4]
    _check(isinstance(storage, _Storage) and call.state is None, "a tensor")
    _check(_sizes((offset,)) and _sizes(size) and _sizes(stride) and len(size) == len(stride), "a tensor")
    elements = archive.storage(storage)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    # Not more elements than in the file, because a stride of 0 can declare any number.
    _check(0 in size or (last < elements.numel() and math.prod(size) <= elements.numel()), "a tensor")
    return elements.as_strided(size, stride, offset)


def _build_enum(archive: Archive, call: _Call) -> str:
    (value,) = call.arguments
    return _ENUMS[call.name](value).name


def _build_enum_by_name(archive: Archive, call: _Call) -> str:
    # Python 3.11.0 to 3.11.3 pickle a member of an enum as getattr(enum, name).
    enum, name = call.arguments
    if not isinstance(enum, _Global) or enum.name not in _ENUMS:
        raise Refused(call.name)
    return _ENUMS[enum.name][name].name


def _build_config(archive: Archive, call: _Call) -> Any:
    return archive.value(call.state["final_config_dict"])


def _build_device(archive: Archive, call: _Call) -> str:
    return ":".join(str(archive.value(part)) for part in call.arguments)


def _dtype(node: Any) -> np.dtype[Any]:
    """The dtype of a recorded call of numpy.dtype; a dtype of objects is only for lists."""
    _check(isinstance(node, _Call) and node.name == "numpy.dtype", "an array's dtype")
    code, order = node.arguments[0], node.state[1]
    _check(type(code) is str and re.fullmatch(r"[biufc]\d+|O8", code) is not None, "an array's dtype")
    _check(order in ("<", ">", "=", "|"), "an array's dtype")
    return np.dtype(code).newbyteorder(order)


def _build_scalar(archive: Archive, call: _Call) -> Any:
    dtype, content = _dtype(call.arguments[0]), call.arguments[1]
    _check(type(content) is bytes and len(content) == dtype.itemsize and dtype.kind != "O", "a number")
    return np.frombuffer(content, dtype)[0].item()


def _build_array(archive: Archive, call: _Call) -> np.ndarray[Any, Any]:
    kind = call.arguments[0]
    _check(isinstance(kind, _Global) and kind.name in ("numpy.ndarray", "numpy.matrix"), "an array")
    _, shape, described, columns_first, content = call.state
    dtype = _dtype(described)
    _check(_sizes(shape), "an array")
    if dtype.kind == "O":
        _check(type(content) is list and shape == (len(content),), "an array")
        array = np.empty(shape, dtype=object)
        for index, element in enumerate(content):
            array[index] = archive.value(element)
        return array
    _check(type(content) is bytes and len(content) == math.prod(shape) * dtype.itemsize, "an array")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C").copy(order="K")
    return np.asmatrix(array) if kind.name == "numpy.matrix" else array


def _build_compressed(archive: Archive, call: _Call) -> Any:
    kind = csr_matrix if call.name.endswith("csr_matrix") else csc_matrix
    content, indices, offsets = (archive.value(call.state[name]) for name in ("data", "indices", "indptr"))
    _check(all(type(part) is np.ndarray and part.ndim == 1 for part in (content, indices, offsets)), "a sparse matrix")
    _check(indices.dtype.kind == offsets.dtype.kind == "i" and content.dtype.kind in "biufc", "a sparse matrix")
    _check(_sizes(call.state["_shape"]), "a sparse matrix")
    matrix = kind((content, indices, offsets), shape=call.state["_shape"])
    matrix.check_format(full_check=True)
    return matrix


def _build_rows(archive: Archive, call: _Call) -> Any:
    rows, contents = (archive.value(call.state[name]) for name in ("rows", "data"))
    shape, dtype = call.state["_shape"], _dtype(call.state["dtype"])
    _check(_sizes(shape) and shape[0] == len(rows) == len(contents) and dtype.kind in "biufc", "a sparse matrix")
    _check(all(type(row) is list for row in (*rows, *contents)), "a sparse matrix")
    _check([len(row) for row in rows] == [len(row) for row in contents], "a sparse matrix")
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.array([index for row in rows for index in row], dtype=np.int64)
    content = np.array([element for row in contents for element in row], dtype=dtype)
    matrix = csr_matrix((content, indices, offsets), shape=shape)
    matrix.check_format(full_check=True)
    return matrix.tolil()


#: Every call in such files -> the code that builds its value here.
_BUILDERS: dict[str, Callable[[Archive, _Call], Any]] = {
    "torch._utils._rebuild_tensor_v2": _build_tensor,
    "torch.device": _build_device,
    "recbole.config.configurator.Config": _build_config,
    **dict.fromkeys(_ENUMS, _build_enum),
    "builtins.getattr": _build_enum_by_name,
    "numpy.dtype": lambda archive, call: _dtype(call),
    **{f"numpy.{core}.multiarray.scalar": _build_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _build_array for core in ("core", "_core")},
    **{f"scipy.sparse.{module}.csr_matrix": _build_compressed for module in ("csr", "_csr")},
    **{f"scipy.sparse.{module}.csc_matrix": _build_compressed for module in ("csc", "_csc")},
    **{f"scipy.sparse.{module}.lil_matrix": _build_rows for module in ("lil", "_lil")},
}
