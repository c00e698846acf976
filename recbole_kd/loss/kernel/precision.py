"""The precision of distillers' matrix products: fp32, or bf16 where the device multiplies it faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

__all__ = ["PRECISIONS", "exact_products", "factor_type", "multiplies_bf16", "product_precision", "rounds"]

PRECISIONS = ("fp32", "bf16")
_bf16: ContextVar[bool] = ContextVar("whether bf16 products are requested", default=False)


@contextmanager
def product_precision(precision: str) -> Iterator[None]:
    """Sets how float32 matrix products are computed inside the block; "fp32" changes nothing.

    "bf16" acts in two ways. On a GPU or a processor with AMX all float32 products get torch's matmul precision
    "medium": torch rounds the factors by itself. Other processors with bf16 instructions compute such products in fp32,
    so there kernels with products large enough to gain ask :func:`factor_type`. On a GPU they do so too.

    With "medium", ``torch.dot`` of a tensor with itself is rounded too and takes ten times as long; kernels sum squares
    by :func:`~recbole_kd.loss.common.sum_of_squares`.

    With "medium" and 42,712 keys of 32 dimensions, the largest error of ``streamed_logsumexp`` is 1e-4 if the scores
    have a standard deviation of 0.2, and 3e-3 at 1.4.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}.")
    by_torch = precision == "bf16" and (_supports("amx_tile") or torch.cuda.is_available())
    token = _bf16.set(precision == "bf16" or _bf16.get())
    try:
        with _matmul_precision("medium") if by_torch else nullcontext():
            yield
    finally:
        _bf16.reset(token)


def exact_products() -> AbstractContextManager[None]:
    """torch rounds no factors inside the block: for products that are small, or decide what a ReLU lets pass."""
    return _matmul_precision("highest")


@contextmanager
def _matmul_precision(level: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def factor_type(values: Tensor) -> torch.dtype:
    """The type to which a kernel rounds the factors of a large product of `values`: bfloat16 or their own."""
    by_torch = values.device.type == "cpu" and _supports("amx_tile")
    return torch.bfloat16 if rounds(values) and not by_torch else values.dtype


def rounds(values: Tensor) -> bool:
    """Whether factors of products of `values` are rounded to bfloat16, by the kernel or by torch."""
    return _bf16.get() and values.dtype == torch.float32 and multiplies_bf16(values.device)


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether large bf16 products are faster than fp32 on a device: a GPU, or a processor with bf16 instructions."""
    return device.type != "cpu" or _supports("avx512_bf16") or _supports("amx_tile")


def _supports(instructions: str) -> bool:
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)())  # torch before 2.6 does not say
