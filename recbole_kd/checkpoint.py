"""Checkpoint files: written whole or not at all, and read without executing anything that is in them.

Ours hold tensors and plain values only and load with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import secrets
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from torch import Tensor

from recbole_kd.errors import UserError

#: What `state["format"]` says in a checkpoint of ours; the number grows when older readers would misread a file.
FORMAT = "recbole-kd/1"

PathLike = Union[str, "os.PathLike[str]"]


def write_atomic(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that `path` holds either what it held before or all of what `write` wrote, even across a crash.

    The bytes go to a hidden temporary file (``.*.tmp``) in the same folder, which is made where it does not exist, then
    reach the disk, then take the name. Only a killed process leaves a temporary file behind, and no reader looks at it.

    Args:
        path: the file.
        write: called once with the open temporary file.

    Raises:
        UserError: the file system refused (full disk, read-only folder, `path` is a folder).
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    disk_error: OSError | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # torch.save raises an error of its own from the one that the file raised.
        disk_error = error if isinstance(error, OSError) else _cause(error)
        if disk_error is None:
            raise
    if disk_error is not None:
        raise UserError(
            f"Cannot write '{path}': {disk_error.strerror or disk_error}; make room or permit it, or choose another "
            "folder with --checkpoint_dir=FOLDER."
        ) from disk_error
    # The name is durable only with its folder. Some file systems cannot; the file is whole there all the same.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _cause(error: BaseException) -> OSError | None:
    """The OSError that `error` was raised from or while handling, if any."""
    seen = error.__cause__ or error.__context__
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen


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


def save_json(value: Any, path: PathLike) -> None:
    """Writes plain values (numpy's scalars too) atomically as JSON; a number that is not finite becomes null.

    Raises:
        UserError: a value that is not plain, named by its path of keys; or as :func:`write_atomic`.
    """
    text = json.dumps(_finite(_plain(value, "value")), indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


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
            return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise UserError(f"Cannot save {where}: no tensor holds an array of {value.dtype}.") from None
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
    if value.layout != torch.strided or value.is_quantized:
        raise UserError(f"Cannot save {where}: it is a {value.layout} tensor of {value.dtype}; expected a dense one.")
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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint '{path}'; give the file of an earlier run.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in members):
            raise ValueError("a TorchScript archive")
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"'{path}' is not a whole checkpoint ({reason}); give another file.") from None
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"'{path}' is not a checkpoint of recbole-kd; give another file.")
    if state["format"] != FORMAT:
        raise UserError(f"'{path}' has format {state['format']!r}; this version of recbole-kd reads {FORMAT!r}.")
    return state


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
    if value is None or isinstance(value, (bool, int)):
        _feed_bytes(hasher, type(value).__name__, repr(value).encode())
    elif isinstance(value, float):
        _feed_bytes(hasher, "float", struct.pack("<d", value))
    elif isinstance(value, str):
        _feed_bytes(hasher, "str", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, (bytes, bytearray)):
        _feed_bytes(hasher, "bytes", value)
    elif isinstance(value, Tensor):
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
