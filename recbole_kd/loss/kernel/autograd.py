"""Losses that compute their gradient together with their value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Optional, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["own_precision", "with_gradient"]

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def with_gradient(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Optional[Tensor]]) -> Tensor:
    """`value` with a backward pass that gives `tensors` the `gradients`, multiplied by the incoming gradient.

    Args:
        value: a scalar.
        tensors: what the value depends on.
        gradients: one for each tensor, of its shape, or None if the value does not depend on the tensor.

    Raises:
        ValueError: a gradient is missing or has another shape than its tensor.
    """
    shapes = [tensor.shape for tensor in tensors]
    found = [shape if gradient is None else gradient.shape for gradient, shape in zip(gradients, shapes)]
    if len(gradients) != len(tensors) or found != shapes:
        raise ValueError(f"gradients have shapes {found}; expected those of the tensors, {shapes}.")
    result: Tensor = _WithGradient.apply(value, tuple(gradients), *tensors)
    return result


def own_precision(loss: _Loss) -> _Loss:
    """Makes a loss compute in its inputs' type inside autocast (`enable_amp`) too, as its own gradient requires."""

    @wraps(loss)
    def computed(*arguments: Any, **named: Any) -> Any:
        if not (torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()):
            return loss(*arguments, **named)
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return loss(*arguments, **named)

    return cast(_Loss, computed)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Optional[Tensor], ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Optional[Tensor], ...]:
        return (None, None, *(None if gradient is None else gradient * incoming for gradient in ctx.saved_tensors))
