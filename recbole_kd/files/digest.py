"""The sha256 of values, for keys of caches and for checks of stored data."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_kd.files.plain import type_name

_TEXTS = 1 << 17  # texts that are hashed at once


def digest(*parts: Any) -> str:
    """The sha256, in hexadecimal, of plain values, bytes, tensors and arrays, as a key of content-addressed caches.

    The order of a dict's keys does not matter; types do (1, 1.0, True and "1" differ). But a tuple and an Arrow array
    of text equal a list, a numpy scalar equals its plain value, and an array equals the tensor of the same content. A
    tensor's dtype, shape and elements matter; its device, strides and gradient do not.

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
    elif type(value).__module__.startswith("pyarrow") and type(value).__name__ == "StringArray":
        _feed_texts(hasher, value)
    elif isinstance(value, (list, tuple)):
        _feed_bytes(hasher, f"list {len(value)}", b"")
        for element in value:
            _feed(hasher, element)
    else:
        raise TypeError(f"digest takes plain values, tensors and arrays, not a {type_name(value)}")


def _feed_texts(hasher: Any, value: Any) -> None:
    """An Arrow array of text, as a list of the same texts."""
    import pyarrow.compute as pc  # takes 0.1 seconds, so only if there is such an array

    _feed_bytes(hasher, f"list {len(value)}", b"")
    for start in range(0, len(value), _TEXTS):
        texts = value.slice(start, _TEXTS)
        lengths = pc.binary_length(texts).cast("string")
        fed = pc.binary_join_element_wise("str", lengths, texts, ":")
        hasher.update("".join(fed.to_pylist()).encode())


def _feed_bytes(hasher: hashlib._Hash, tag: str, content: Any) -> None:
    hasher.update(f"{tag}:{len(content)}:".encode())
    hasher.update(content)
