"""A second device where there is none: tensors that compute on the CPU and say that they are elsewhere.

Inside :func:`second_device`, whatever is made on device ``lazy`` or moved there is an :class:`Away`. An operation on
such a tensor and one of the CPU fails, as it would on a GPU. What crosses between the two is noted, with its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("lazy")
aten = torch.ops.aten
#: Operations whose indices may lie on the CPU: a GPU gets them moved without a word.
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
#: Operations whose values or shape the CPU needs, so that it waits for the device: `item`, `nonzero`, `unique`.
_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Crossing(NamedTuple):
    """Something that crosses between the devices.

    Attributes:
        kind: "to the device"; "drawn", the same of numbers that come from a generator, which is the CPU's by contract;
            "to the CPU"; "read", of a value or of a shape that depends on values.
        place: "module:line", the innermost of the package or of RecBole that asked for it.
    """

    kind: str
    place: str


class Away(Tensor):
    """A tensor of the second device. `here` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        strided = here.layout == torch.strided
        compressed = here.layout not in (torch.strided, torch.sparse_coo)
        strides = {"strides": here.stride(), "storage_offset": here.storage_offset()} if strided else {}
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            **strides,
            dtype=here.dtype,
            device=DEVICE,
            layout=torch.strided if compressed else here.layout,
            dispatch_layout=compressed,  # torch has no wrapper of such a layout, so each question is passed on
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, [])


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.crossed: list[Crossing] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self.crossed)


@contextmanager
def second_device() -> Iterator[list[Crossing]]:
    """Makes the device; gives what crosses, in its order. Clear the list where the part of interest begins."""
    before = torch._C._only_lift_cpu_tensors()
    # `torch.tensor([...], device=...)` then makes a tensor of the CPU and moves it, where it is seen.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode() as mode:
            yield mode.crossed
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _compute(func: Any, args: Any, kwargs: dict[str, Any], crossed: list[Crossing]) -> Any:
    if func is torch.ops.prim.layout.default:
        return args[0].here.layout
    given = list(_leaves([args, *kwargs.values()]))
    tensors = [value for value in given if isinstance(value, Tensor)]
    there = any(isinstance(tensor, Away) for tensor in tensors)
    target = kwargs.get("device")
    to_there = torch.device(target).type == DEVICE.type if target is not None else there
    kind = _crossing(func, args, there, to_there)
    if kind is not None:
        crossed.append(Crossing(kind, _place()))
    elif there and target is None:
        _refuse_others(func, tensors)

    def plain(value: Any) -> Any:
        return value.here if isinstance(value, Away) else value

    named = {name: _mapped(value, plain) for name, value in kwargs.items()}
    found = func(*_mapped(args, plain), **({**named, "device": "cpu"} if target is not None else named))
    if to_there:
        wrapped = _mapped(found, lambda value: Away(value) if isinstance(value, Tensor) else value)
        dense = all(tensor.layout == torch.strided for tensor in tensors)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if target is None and dense else wrapped
    if any(isinstance(value, torch.Generator) for value in given) or any(map(_is_drawn, tensors)):
        for value in _leaves(found):
            if isinstance(value, Tensor):
                value.drawn = True  # type: ignore[attr-defined]
    return found


def _crossing(func: Any, args: Any, there: bool, to_there: bool) -> str | None:
    """Which kind of crossing an operation is."""
    moved = args[:1]
    if func is aten.copy_.default:
        to_there, there, moved = isinstance(args[0], Away), isinstance(args[1], Away), args[1:2]
    elif func in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        if there and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "read"
        to_there, moved = there, [index for index in indices if not isinstance(index, Away)]
        there = not moved
    elif func is not aten._to_copy.default:
        return "read" if there and not _WAITS.isdisjoint(func.tags) else None
    if there == to_there:
        return None
    return "to the CPU" if there else "drawn" if all(map(_is_drawn, moved)) else "to the device"


def _is_drawn(tensor: Tensor) -> bool:
    return getattr(tensor, "drawn", False)


def _refuse_others(func: Any, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        # A number that is a tensor goes along with the call.
        if not isinstance(tensor, Away) and tensor.dim():
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cpu and {DEVICE}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    return tuple(_mapped(each, change) for each in value) if isinstance(value, (list, tuple)) else change(value)


def _place() -> str:
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_globals["__name__"]
        if name.startswith(("recbole_kd.", "recbole.")):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere:0"
