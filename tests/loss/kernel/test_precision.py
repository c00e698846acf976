"""Which products are rounded to bf16, and where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from recbole_kd.loss.kernel import precision
from recbole_kd.loss.kernel.precision import factor_type, multiplies_bf16, product_precision, rounds

FLOATS = torch.ones(1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def known_devices() -> Iterator[None]:
    """What a processor supports is remembered: tests that pretend forget it."""
    multiplies_bf16.cache_clear()
    yield
    multiplies_bf16.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(precision, "_supports", lambda name: name in instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("instructions", "by_the_kernel", "by_torch"),
    [
        ([], torch.float32, "highest"),
        (["avx512_bf16"], torch.bfloat16, "highest"),
        (["avx512_bf16", "amx_tile"], torch.float32, "medium"),
    ],
    ids=["none", "AVX-512's", "AMX"],
)
def test_kernels_round_large_products_with_bf16_instructions_and_torch_rounds_all_with_amx(
    instructions: list[str], by_the_kernel: torch.dtype, by_torch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *instructions)
    with product_precision("bf16"):
        assert factor_type(FLOATS) == by_the_kernel
        assert torch.get_float32_matmul_precision() == by_torch
        assert rounds(FLOATS) == bool(instructions)
    assert not rounds(FLOATS)
    assert multiplies_bf16(CPU) == bool(instructions)


def test_only_float32_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx512_bf16")
    with product_precision("bf16"):
        assert factor_type(FLOATS.double()) == torch.float64


def test_fp32_inside_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx512_bf16")
    with product_precision("bf16"):
        with product_precision("fp32"):
            assert factor_type(FLOATS) == torch.bfloat16
        assert factor_type(FLOATS) == torch.bfloat16
    assert factor_type(FLOATS) == torch.float32


def test_the_precision_before_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "amx_tile")
    torch.set_float32_matmul_precision("high")
    try:
        with product_precision("bf16"):
            assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of fp32, bf16"), product_precision("fp16"):
        pass
