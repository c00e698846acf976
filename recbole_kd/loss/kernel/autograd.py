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
    """`value`, whose backward pass hands `gradients`, times the incoming one, to `tensors`.

    Args:
        value: a scalar.
        tensors: what the value depends on.
        gradients: for each tensor one shaped like it, or None where the value does not depend on it.

    Raises:
        ValueError: not one gradient for each tensor, or one of another shape.
    """
    shapes = [tensor.shape for tensor in tensors]
    found = [shape if gradient is None else gradient.shape for gradient, shape in zip(gradients, shapes)]
    if len(gradients) != len(tensors) or found != shapes:
        raise ValueError(f"gradients have shapes {found}; expected those of the tensors, {shapes}.")
    result: Tensor = _WithGradient.apply(value, tuple(gradients), *tensors)
    return result


def own_precision(loss: _Loss) -> _Loss:
    """A loss that takes its gradient itself, computed in its inputs' type inside of autocast too (`enable_amp`)."""

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
