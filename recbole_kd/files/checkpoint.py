"""Checkpoint files: written whole or not at all, and read without executing anything that is in them.

Ours hold tensors and plain values only and load with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import secrets
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Union

import numpy as np
import torch
from recbole.utils.enum_type import EvaluatorType, InputType, ModelType
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor

from recbole_kd.errors import UserError

#: What `state["format"]` says in a checkpoint of ours; the number grows when older readers would misread a file.
FORMAT = "recbole-kd/1"

PathLike = Union[str, "os.PathLike[str]"]


def write_atomic(path: PathLike, write: Callable[[BinaryIO], object], setting: str = "checkpoint_dir") -> None:
    """Writes a file so that `path` holds either what it held before or all of what `write` wrote, even across a crash.

    The bytes go to a hidden temporary file (``.*.tmp``) in the same folder, which is made where it does not exist, then
    reach the disk, then take the name. Only a killed process leaves a temporary file behind; no reader looks at it, and
    the next write into the folder removes it.

    Args:
        path: the file.
        write: called once with the open temporary file.
        setting: the one that an error says to change.

    Raises:
        UserError: the file system refused (full disk, read-only folder, `path` is a folder).
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    raw: _RawFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        raw = _claimed(temporary)
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # While the file is still open, and so locked: a sweep leaves it alone.
            os.replace(temporary, path)
    except Exception as error:
        # torch.save hides the file's error behind one of its own.
        refused = error if isinstance(error, OSError) else raw.error if raw else None
        if refused is None:
            raise
        raise UserError(
            f"Cannot write '{path}': {refused.strerror or refused}; make room or permit it, or choose another place "
            f"with --{setting}."
        ) from refused
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # The name is durable only with its folder. Some file systems cannot; the file is whole there all the same.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


#: Names of temporary files: ours alone.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def sweep(folder: PathLike) -> int:
    """Removes the temporary files that killed processes left in `folder`; returns how many.

    A file that is being written is locked by its process, and the system drops the lock when that process ends,
    however it ends: a file that can be locked is nobody's. Where the file system has no locks, files are left.
    """
    swept = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                    swept += 1
                finally:
                    os.close(descriptor)
    return swept


def _claimed(path: Path) -> _RawFile:
    """A new file, locked. A sweep between its making and its lock removes it: then it is made again, once."""
    raw = _RawFile(path, "x")
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
        if not path.exists():
            raw.close()
            raw = _RawFile(path, "x")
            fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
    return raw


class _RawFile(io.FileIO):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def save_checkpoint(state: Mapping[str, Any], path: PathLike) -> None:
    """Writes `state` and its ``format`` atomically, loadable with ``torch.load(weights_only=True)``.

    Parameters are written as tensors without gradient, numpy's scalars and arrays as plain numbers and tensors,
    subclasses of dict and tuple (OrderedDict, torch.Size) as dict and tuple, a torch.device as its name.

    Args:
        state: tensors and plain values (None, bool, int, float, str; list, tuple, and dict with str or int keys).
        path: the file.

    Raises:
        UserError: a value of another type, named by its path of keys; or as :func:`write_atomic`.
    """
    plain = {**_plain(state, "state"), "format": FORMAT}
    write_atomic(path, lambda file: torch.save(plain, file))


def save_json(value: Any, path: PathLike, setting: str = "checkpoint_dir") -> None:
    """Writes plain values (numpy's scalars too) atomically as JSON; a number that is not finite becomes null.

    Raises:
        UserError: a value that is not plain, named by its path of keys; or as :func:`write_atomic`.
    """
    text = json.dumps(_finite(_plain(value, "value")), indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()), setting)


def _plain(value: Any, where: str) -> Any:
    """`value` with everything that :func:`save_checkpoint` converts converted; `where` is its path of keys."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, where)
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise UserError(f"Cannot save {where}: no tensor holds an array of {value.dtype}.") from None
        return _plain_tensor(value, where)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise UserError(f"Cannot save {where}: its key {key!r} is a {_type(key)}; keys are str or int.")
        return {key: _plain(element, f"{where}[{key!r}]") for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        elements = [_plain(element, f"{where}[{index}]") for index, element in enumerate(value)]
        return elements if isinstance(value, list) else tuple(elements)
    raise UserError(
        f"Cannot save {where}: it is a {_type(value)}; a file holds tensors and plain values only "
        "(None, bool, int, float, str, list, tuple, dict)."
    )


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    if value.layout != torch.strided or value.dtype not in _DTYPES.values():
        raise UserError(
            f"Cannot save {where}: it is a {value.layout} tensor of {value.dtype}; a file holds dense tensors of "
            f"{', '.join(str(dtype).replace('torch.', '') for dtype in _DTYPES.values())}."
        )
    value = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    # torch.save writes the whole storage under a view. Tensors that share one whole storage stay shared.
    if value.untyped_storage().nbytes() != value.numel() * value.element_size():
        value = value.clone(memory_format=torch.contiguous_format)
    return value


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Tensor):
        return _finite(value.tolist())
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(element) for element in value]
    return value


def load_checkpoint(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that :func:`save_checkpoint` wrote, its ``format`` included, with tensors on `device`.

    Raises:
        UserError: no such file, not a checkpoint of ours, not whole, or of another format version.
    """
    kind, state = load_any(path, device)
    if kind != "recbole-kd":
        raise UserError(f"'{path}' is a checkpoint of RecBole itself; expected one of recbole-kd.")
    return state


def load_recbole_checkpoint(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint that RecBole's own Trainer wrote, as plain values, with tensors on `device`.

    Nothing in the file is executed. ``config`` is the dict of the final settings, in which enums are their names
    (``MODEL_TYPE`` is "GENERAL") and the device is a string. ``other_parameter`` is what the model's
    ``load_other_parameter`` takes: tensors, numpy arrays and scipy's csr, csc and lil matrices.

    Raises:
        UserError: no such file, not a checkpoint of RecBole, not whole, or one that names a class or function that
            such files do not need.
    """
    kind, state = load_any(path, device)
    if kind != "recbole":
        raise UserError(f"'{path}' is a checkpoint of recbole-kd; expected one of RecBole itself.")
    return state


def load_any(path: PathLike, device: torch.device | str = "cpu") -> tuple[str, dict[str, Any]]:
    """("recbole-kd", state) of :func:`load_checkpoint` or ("recbole", state) of :func:`load_recbole_checkpoint`.

    Raises:
        UserError: as these two.
    """
    try:
        with open(path, "rb") as file:
            archive = _Archive(file, torch.device(device))
            tree = archive.tree()
            if isinstance(tree, dict) and tree.get("format") == FORMAT:
                return "recbole-kd", archive.value(tree)
            if isinstance(tree, dict) and isinstance(tree.get("config"), _Call) and "state_dict" in tree:
                state = archive.value(tree)
                _check(isinstance(state["config"], dict) and isinstance(state["state_dict"], dict), "its content")
                return "recbole", state
            version = tree.get("format") if isinstance(tree, dict) else None
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint '{path}'; give the file of an earlier run.") from None
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint '{path}': {error.strerror or error}.") from None
    except _Refused as error:
        raise UserError(
            f"'{path}' names {_shown(str(error))}, which no checkpoint needs; nothing in it was executed; give a file "
            "that RecBole or recbole-kd wrote."
        ) from None
    except _Malformed as error:
        raise UserError(f"'{path}' is not a whole checkpoint: {error}; give another file.") from None
    except Exception:  # bytes that someone else chose can fail in any of the parsers' ways
        raise UserError(f"'{path}' is not a whole checkpoint: it is cut short or damaged; give another file.") from None
    if isinstance(version, str) and version.startswith(FORMAT.split("/")[0]):
        raise UserError(f"'{path}' has the format {_shown(version)}; this version of recbole-kd reads '{FORMAT}'.")
    raise UserError(f"'{path}' is a checkpoint of neither recbole-kd nor RecBole; give another file.")


def digest(*parts: Any) -> str:
    """The sha256, in hexadecimal, of plain values, bytes, tensors and arrays, as a key of content-addressed caches.

    The order of a dict's keys does not count; types do (1, 1.0, True and "1" differ), except that a tuple equals a
    list, a numpy scalar its plain value, and an array the tensor of the same content. Of a tensor its dtype, shape and
    elements count; where it lives, its strides and its gradient do not.

    Raises:
        TypeError: a part holds a value of another type.
    """
    hasher = hashlib.sha256()
    _feed(hasher, list(parts))
    return hasher.hexdigest()


def _feed(hasher: hashlib._Hash, value: Any) -> None:
    """Feeds `value` as tag, length and content, so that no two different values give the same bytes."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int):
        _feed_bytes(hasher, type(value).__name__, repr(value).encode())
    elif isinstance(value, float):
        _feed_bytes(hasher, "float", struct.pack("<d", value))
    elif isinstance(value, str):
        _feed_bytes(hasher, "str", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, (bytes, bytearray)):
        _feed_bytes(hasher, "bytes", value)
    elif isinstance(value, Tensor) and value.layout == torch.strided:
        flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        name = str(value.dtype).replace("torch.", "")
        _feed_bytes(hasher, f"tensor {name} {tuple(value.shape)}", flat.view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        native = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        _feed_bytes(hasher, f"tensor {value.dtype.name} {value.shape}", native.reshape(-1).view(np.uint8))
    elif isinstance(value, np.ndarray):
        _feed_bytes(hasher, f"array {value.shape}", b"")
        _feed(hasher, value.reshape(-1).tolist())
    elif isinstance(value, Mapping):
        _feed_bytes(hasher, f"dict {len(value)}", b"")
        for _, key in sorted((digest(key), key) for key in value):
            _feed(hasher, key)
            _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        _feed_bytes(hasher, f"list {len(value)}", b"")
        for element in value:
            _feed(hasher, element)
    else:
        raise TypeError(f"digest takes plain values, tensors and arrays, not a {_type(value)}")


def _feed_bytes(hasher: hashlib._Hash, tag: str, content: Any) -> None:
    hasher.update(f"{tag}:{len(content)}:".encode())
    hasher.update(content)


def random_state() -> dict[str, Any]:
    """The states of the global random generators (python, numpy, torch, CUDA where there is one), as tensors and
    plain values for a checkpoint."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the global random generators to what :func:`random_state` gave; CUDA's as far as devices are there.

    Raises:
        UserError: `state` is not of that form.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        keys = numpy["keys"].cpu().numpy().astype(np.uint32)
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
        torch.set_rng_state(state["torch"].cpu())
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator.cpu(), index)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The checkpoint's random states cannot be restored ({error}); resume from another checkpoint."
        ) from None


# Reading. torch.load(weights_only=True) reads our files too, but is not what reads them here: before torch 2.6 it hands
# some archives to TorchScript, which executes them, and it refuses what RecBole pickles. Below, the pickle machine
# calls nothing: a call that a file asks for is noted, and the few kinds of notes that real files hold are then turned
# into values, each by code that checks it.


class _Refused(Exception):
    """A class or function, by its full name, that no checkpoint needs."""


class _Malformed(Exception):
    """What is wrong with a file, as a clause."""


def _shown(text: str) -> str:
    """`text` from a file as a part of one line: the file may have put anything into it."""
    return text[:200] if text.isprintable() else ascii(text[:200])


@dataclass(frozen=True, eq=False)
class _Global:
    """The name of a class or function, never looked up."""

    name: str


@dataclass(eq=False)
class _Call:
    """A call that a pickle asks for, never made, and the state that it asks to put into the result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class _Storage:
    """A tensor's elements: a member of the archive."""

    dtype: torch.dtype
    key: str
    length: int


#: The storages that are read, and so the types of tensors that are saved.
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_STORAGE = re.compile(rf"torch\.(?:cuda\.)?({'|'.join(_DTYPES)})")

_ENUMS = {f"recbole.utils.enum_type.{enum.__name__}": enum for enum in (ModelType, InputType, EvaluatorType)}

#: Names that stand in files without being called: the model's class and the YAML loader in RecBole's Config, and the
#: classes that are arguments of numpy's functions.
_LABEL = re.compile(r"recbole(_kd)?\.model(\.\w+)+|yaml\.loader\.FullLoader|numpy\.(ndarray|matrix)")


class _Unpickler(pickle._Unpickler):
    """The standard library's pickle machine with the opcodes that torch.save writes; it makes notes in place of calls.

    It is the one written in Python, whose memory is bounded by the file (the one in C allocates what a file declares).
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _BUILDERS or full == "collections.OrderedDict" or _STORAGE.fullmatch(full) or _LABEL.fullmatch(full):
            return _Global(full)
        raise _Refused(full)

    def persistent_load(self, pid: Any) -> Any:
        tag, storage, key, _, length = pid
        name = _STORAGE.fullmatch(storage.name) if isinstance(storage, _Global) else None
        if tag != "storage" or name is None or type(key) is not str or type(length) is not int:
            raise _Malformed("it refers to something that is no tensor's storage")
        return _Storage(_DTYPES[name[1]], key, length)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, _Call):
            raise _Refused(function.name)
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise _Malformed("it calls something that is no function")
        if function.name == "collections.OrderedDict" and not arguments:
            self.stack.append({})
        elif function.name in _BUILDERS:
            self.stack.append(_Call(function.name, arguments))
        else:
            raise _Refused(function.name)

    def _build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, _Call) and instance.state is None:
            instance.state = state
        elif type(instance) is not dict:  # the attributes of an OrderedDict (a module's versions) are left out
            raise _Malformed("it sets the state of something that has none")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
            *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
            *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
        )
    }
    dispatch |= {pickle.REDUCE[0]: _reduce, pickle.NEWOBJ[0]: _reduce, pickle.BUILD[0]: _build}


class _Archive:
    """The zip file of a checkpoint, read in place: members are neither unpacked nor larger than the file."""

    _MEMBER = re.compile(r"data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/\w+")

    def __init__(self, file: BinaryIO, device: torch.device) -> None:
        self.device = device
        start = file.read(4)
        if not start:
            raise _Malformed("it is empty")
        if start != b"PK\x03\x04":
            file.seek(257)
            old = start[:1] == b"\x80" or file.read(5) == b"ustar"
            raise _Malformed("it is in the format of PyTorch before 1.6" if old else "it is no PyTorch file")
        self.zip = zipfile.ZipFile(file)
        self.members: dict[str, zipfile.ZipInfo] = {}
        roots = set()
        for member in self.zip.infolist():
            root, _, name = member.filename.partition("/")
            roots.add(root)
            if not self._MEMBER.fullmatch(name) or root in (".", "..") or name in self.members or len(roots) > 1:
                raise _Malformed(f"it holds a member {_shown(member.filename)}")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _Malformed(f"its member {_shown(member.filename)} is compressed")
            self.members[name] = member
        if sum(member.file_size for member in self.members.values()) > file.seek(0, os.SEEK_END):
            raise _Malformed("its members are larger than itself")
        if "byteorder" in self.members and self.zip.read(self.members["byteorder"]).decode() != sys.byteorder:
            raise _Malformed("it comes from a machine of another byte order")
        self._storages: dict[str, Tensor] = {}
        self._values: dict[int, Any] = {}

    def tree(self) -> Any:
        """What is pickled: plain values and notes."""
        if "data.pkl" not in self.members:
            raise _Malformed("it holds no data.pkl")
        self._tree = _Unpickler(io.BytesIO(self.zip.read(self.members["data.pkl"]))).load()
        return self._tree

    def value(self, node: Any) -> Any:
        """A node of :meth:`tree` with every note turned into its value; what was shared stays shared."""
        if node is None or type(node) in (bool, int, float, str):
            return node
        if isinstance(node, _Global):
            return node.name
        if id(node) not in self._values:
            self._values[id(node)] = _UNFINISHED
            self._values[id(node)] = self._build(node)
        value = self._values[id(node)]
        if value is _UNFINISHED:
            raise _Malformed("it refers to itself")
        return value

    def _build(self, node: Any) -> Any:
        if isinstance(node, _Call):
            return _BUILDERS[node.name](self, node)
        if isinstance(node, dict):
            return {self._key(key): self.value(element) for key, element in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)([self.value(element) for element in node])
        raise _Malformed(f"it holds {type(node).__name__} where a value should be")

    def _key(self, node: Any) -> Any:
        key = self.value(node)
        if key is not None and type(key) not in (bool, int, float, str):
            raise _Malformed(f"a key is a {type(key).__name__}")
        return key

    def storage(self, storage: _Storage) -> Tensor:
        """(length,) the elements of a storage."""
        member = self.members[f"data/{storage.key}"]
        if member.file_size != storage.length * torch.empty(0, dtype=storage.dtype).element_size():
            raise _Malformed(f"its member {_shown(member.filename)} is not of {storage.length} {storage.dtype}")
        if storage.key not in self._storages:
            elements = torch.empty(storage.length, dtype=storage.dtype)
            content = elements.view(torch.uint8).numpy()
            position = 0
            with self.zip.open(member) as file:
                # Reading to the end is what checks the member's checksum.
                while chunk := file.read(1 << 22):
                    content[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    position += len(chunk)
            self._storages[storage.key] = elements.to(self.device)
        elements = self._storages[storage.key]
        if elements.dtype != storage.dtype:
            raise _Malformed(f"its member {_shown(member.filename)} is of two types")
        return elements


_UNFINISHED = object()


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise _Malformed(f"{what} does not fit together")


def _sizes(sizes: Any) -> bool:
    """Whether `sizes` is a tuple of whole numbers from 0 on."""
    return type(sizes) is tuple and all(type(size) is int and 0 <= size < 2**63 for size in sizes)


def _build_tensor(archive: _Archive, call: _Call) -> Tensor:
    storage, offset, size, stride = call.arguments[:4]
    _check(isinstance(storage, _Storage) and call.state is None, "a tensor")
    _check(_sizes((offset,)) and _sizes(size) and _sizes(stride) and len(size) == len(stride), "a tensor")
    elements = archive.storage(storage)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    # No more elements than the file holds: a stride of 0 declares any number of them.
    _check(0 in size or (last < elements.numel() and math.prod(size) <= elements.numel()), "a tensor")
    return elements.as_strided(size, stride, offset)


def _build_enum(archive: _Archive, call: _Call) -> str:
    (value,) = call.arguments
    return _ENUMS[call.name](value).name


def _build_enum_by_name(archive: _Archive, call: _Call) -> str:
    # Python 3.11.0 to 3.11.3 pickle a member of an enum as getattr(enum, name).
    enum, name = call.arguments
    if not isinstance(enum, _Global) or enum.name not in _ENUMS:
        raise _Refused(call.name)
    return _ENUMS[enum.name][name].name


def _build_config(archive: _Archive, call: _Call) -> Any:
    return archive.value(call.state["final_config_dict"])


def _build_device(archive: _Archive, call: _Call) -> str:
    return ":".join(str(archive.value(part)) for part in call.arguments)


def _dtype(node: Any) -> np.dtype[Any]:
    """The dtype that a call of numpy.dtype stands for; of objects, only to be filled with lists."""
    _check(isinstance(node, _Call) and node.name == "numpy.dtype", "an array's dtype")
    code, order = node.arguments[0], node.state[1]
    _check(type(code) is str and re.fullmatch(r"[biufc]\d+|O8", code) is not None, "an array's dtype")
    _check(order in ("<", ">", "=", "|"), "an array's dtype")
    return np.dtype(code).newbyteorder(order)


def _build_scalar(archive: _Archive, call: _Call) -> Any:
    dtype, content = _dtype(call.arguments[0]), call.arguments[1]
    _check(type(content) is bytes and len(content) == dtype.itemsize and dtype.kind != "O", "a number")
    return np.frombuffer(content, dtype)[0].item()


def _build_array(archive: _Archive, call: _Call) -> np.ndarray[Any, Any]:
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


def _build_compressed(archive: _Archive, call: _Call) -> Any:
    kind = csr_matrix if call.name.endswith("csr_matrix") else csc_matrix
    content, indices, offsets = (archive.value(call.state[name]) for name in ("data", "indices", "indptr"))
    _check(all(type(part) is np.ndarray and part.ndim == 1 for part in (content, indices, offsets)), "a sparse matrix")
    _check(indices.dtype.kind == offsets.dtype.kind == "i" and content.dtype.kind in "biufc", "a sparse matrix")
    _check(_sizes(call.state["_shape"]), "a sparse matrix")
    matrix = kind((content, indices, offsets), shape=call.state["_shape"])
    matrix.check_format(full_check=True)
    return matrix


def _build_rows(archive: _Archive, call: _Call) -> Any:
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


#: Every call that is found in such files, with what stands for it here.
_BUILDERS: dict[str, Callable[[_Archive, _Call], Any]] = {
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
