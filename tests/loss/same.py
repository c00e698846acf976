"""Two ways to compute one loss: the same value, and the same gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal float64 numbers that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()


def assert_same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Also for every input: where the expected value does not depend on it, its gradient is 0 or none."""
    torch.testing.assert_close(found, expected)
    # Times 3: the gradient follows what comes from above.
    pairs = zip(gradients(3 * found, leaves), gradients(3 * expected, leaves))
    for actual, wanted in pairs:
        torch.testing.assert_close(actual, wanted)


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient for each leaf, zeros where there is none."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in zip(found, leaves)]
