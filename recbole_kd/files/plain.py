"""Plain values, the content of our files, and their JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike, write_content

#: The storages that are read, and so the types of tensors that are saved.
DTYPES = {
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


def save_json(value: Any, path: PathLike, setting: str = "checkpoint_dir") -> None:
    """Writes plain values (numpy's scalars too) atomically as JSON; a number that is not finite becomes null.

    Raises:
        UserError: a value that is not plain, named by its path of keys; or as :func:`write_atomic`.
    """
    text = json.dumps(_finite(plain(value, "value")), indent=2, allow_nan=False) + "\n"
    write_content(path, text, setting)


def plain(value: Any, where: str) -> Any:
    """`value` as plain values and dense tensors.

    Numpy's scalars and arrays become plain numbers and tensors, subclasses of dict and tuple (OrderedDict, torch.Size)
    dict and tuple, a torch.device its name.

    Args:
        value: anything.
        where: its path of keys, for messages.

    Raises:
        UserError: a part of it has no plain form.
    """
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
            raise UserError(f"Cannot save {where}: there is no tensor type for an array of {value.dtype}.") from None
        return _plain_tensor(value, where)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise UserError(f"Cannot save {where}: its key {key!r} is a {type_name(key)}; keys are str or int.")
        return {key: plain(element, f"{where}[{key!r}]") for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        elements = [plain(element, f"{where}[{index}]") for index, element in enumerate(value)]
        return elements if isinstance(value, list) else tuple(elements)
    raise UserError(
        f"Cannot save {where}: it is a {type_name(value)}; a file holds tensors and plain values only "
        "(None, bool, int, float, str, list, tuple, dict)."
    )


def _plain_tensor(value: Tensor, where: str) -> Tensor:
    if value.layout != torch.strided or value.dtype not in DTYPES.values():
        raise UserError(
            f"Cannot save {where}: it is a {value.layout} tensor of {value.dtype}; a file holds dense tensors of "
            f"{', '.join(str(dtype).replace('torch.', '') for dtype in DTYPES.values())}."
        )
    value = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    # torch.save would write the whole storage of a view. Tensors that share one whole storage stay shared.
    if value.untyped_storage().nbytes() != value.numel() * value.element_size():
        value = value.clone(memory_format=torch.contiguous_format)
    return value


def type_name(value: object) -> str:
    """The full name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _finite(value: Any) -> Any:
    """`value` without numbers that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Tensor):
        return _finite(value.tolist())
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(element) for element in value]
    return value
