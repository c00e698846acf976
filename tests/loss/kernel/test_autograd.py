"""Losses that bring their gradient along, put back into autograd."""

from __future__ import annotations

import pytest
import torch

from recbole_kd.loss.kernel.autograd import own_precision, with_gradient
from tests.loss.same import draw


def test_with_gradient_hands_its_gradients_back_times_the_incoming_one() -> None:
    a, b, unused = (draw(seed, 2, 3) for seed in range(3))
    value = torch.tensor(7.0, dtype=torch.float64)
    loss = with_gradient(value, (a, b, unused), (torch.ones(2, 3), 2 * torch.ones(2, 3), None))
    assert loss.item() == 7
    (3 * loss).backward()
    assert (a.grad == 3).all()
    assert (b.grad == 6).all()
    assert unused.grad is None


def test_the_gradient_can_be_asked_for_before_the_backward_pass() -> None:
    """SimRec compares its terms' gradients first; the backward pass then finds them as they were."""
    tensor = draw(0, 2, 3)
    loss = 5 * with_gradient(torch.tensor(0.0), (tensor,), (torch.ones(2, 3, dtype=torch.float64),))
    (first,) = torch.autograd.grad(loss, tensor, retain_graph=True)
    (second,) = torch.autograd.grad(loss, tensor)
    assert (first == 5).all()
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, tensor)


def test_with_gradient_refuses_a_gradient_of_another_shape() -> None:
    with pytest.raises(ValueError, match="expected those of the tensors"):
        with_gradient(torch.tensor(0.0), (draw(0, 2, 3),), (draw(1, 3, 2),))


def test_own_precision_computes_in_the_type_of_the_inputs_inside_of_autocast() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.mm(a, b).dtype == torch.bfloat16
        assert own_precision(torch.mm)(a, b).dtype == torch.float32
        assert torch.mm(a, b).dtype == torch.bfloat16
    assert own_precision(torch.mm)(a, b).dtype == torch.float32
