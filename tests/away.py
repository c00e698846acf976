"""A second device where there is none: tensors that compute on the CPU and say that they are elsewhere.

Inside :func:`second_device`, whatever is made on device ``lazy`` or moved there is an :class:`Away`. An operation on
such a tensor and one of the CPU fails, as it would on a GPU; what crosses between the two is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("lazy")
aten = torch.ops.aten
#: Operations whose index may lie on the CPU, on a GPU too.
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
#: Reads of a value: the GPU is waited for.
_READS = {aten._local_scalar_dense.default, aten.equal.default}


class Away(Tensor):
    """A tensor of the second device. `here` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, Counter())


def _away(value: Any) -> Any:
    dense = isinstance(value, Tensor) and not isinstance(value, Away) and value.layout == torch.strided
    return Away(value) if dense else value


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Away) else value


def _compute(func: Any, args: Any, kwargs: dict[str, Any], crossed: Counter[str]) -> Any:
    given, spec = tree_flatten((args, kwargs))
    tensors = [value for value in given if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Away)]
    target = kwargs.get("device")
    to_there = torch.device(target) == DEVICE if target is not None else bool(there)
    if func is aten._to_copy.default and target is not None and to_there != bool(there):
        crossed["to the device" if to_there else "to the CPU"] += 1
    elif func is aten.copy_.default and isinstance(args[0], Away) != isinstance(args[1], Away):
        crossed["to the device" if isinstance(args[0], Away) else "to the CPU"] += 1
    elif func in _READS and there:
        crossed["read"] += 1
    elif there and func is not aten._to_copy.default:
        checked = tree_flatten(args[0])[0] if func in _INDEXED else tensors
        for tensor in checked:
            if isinstance(tensor, Tensor) and not isinstance(tensor, Away) and tensor.dim() and not _sparse(tensor):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cpu and {DEVICE}")
    if target is not None and to_there:
        given = [torch.device("cpu") if value is target else value for value in given]
    plain_args, plain_kwargs = tree_unflatten([_here(value) for value in given], spec)
    found = func(*plain_args, **plain_kwargs)
    if not to_there and not (there and target is None):
        return found
    wrapped = tree_map(_away, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there and target is None else wrapped


def _sparse(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.crossed: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self.crossed)


@contextmanager
def second_device() -> Iterator[Counter[str]]:
    """Makes the device; gives what crosses: ``to the device``, ``to the CPU``, and single values that are ``read``."""
    with _Mode() as mode:
        yield mode.crossed
