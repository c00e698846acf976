"""Unit vectors and means over entries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_kd.loss.common import mean_over_entries, same_length, sum_of_squares, unit
from recbole_kd.loss.kernel.contrastive import cosine_infonce
from recbole_kd.loss.kernel.precision import product_precision
from recbole_kd.loss.kernel.topology import all_pairs
from recbole_kd.loss.regression import cosine_distances


def test_unit_vectors_have_length_one_and_zeros_stay_zeros() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-12]])
    assert unit(vectors).tolist() == [pytest.approx([0.6, 0.8]), [0, 0], [0, -1]]
    assert unit(vectors.view(3, 1, 2)).shape == (3, 1, 2)


def test_the_gradient_of_a_unit_vector_is_across_it_and_that_of_zeros_is_the_incoming_one() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit(vectors).backward(torch.tensor([[1.0, 0.0], [7.0, -2.0]]))
    assert vectors.grad is not None
    # (g - u (u·g)) / 5 with u = (0.6, 0.8).
    assert vectors.grad.tolist() == [pytest.approx([0.128, -0.096]), [7, -2]]


def test_the_sum_of_squares_is_not_rounded_where_torch_rounds_the_factors_of_products() -> None:
    """With AMX and ``--precision=bf16`` a dot product of a tensor with itself would be."""
    rows = torch.full((50, 3), 1.001)
    with product_precision("bf16"):
        assert sum_of_squares(rows).item() == pytest.approx(150 * 1.001**2, rel=1e-6)
        assert sum_of_squares(rows.view(5, 10, 3)) == sum_of_squares(rows)


anchor = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
COSINES = {
    "infonce": lambda rows: cosine_infonce(anchor, rows, torch.tensor([0, 1]), 0.1),
    "distance": lambda rows: cosine_distances(rows[:2], anchor).mean(),
    "pairs": lambda rows: all_pairs(rows[:2], anchor),
}


@pytest.mark.parametrize("name", COSINES)
def test_a_row_of_zeros_has_a_bounded_gradient_in_every_cosine_term(name: str) -> None:
    """Divided by a tiny number instead of its length, such a row had a gradient of 5e12 in float32."""
    rows = torch.tensor([[0.0, 0.0], [0.3, -0.1], [0.2, 0.2]], requires_grad=True)
    loss = COSINES[name](rows)
    (gradient,) = torch.autograd.grad(loss, rows)
    assert torch.isfinite(loss)
    assert gradient[0].norm() < 100  # the temperature 0.1 makes it 10 at most, for each anchor


def test_a_mean_is_over_the_entries_that_exist() -> None:
    values: Tensor = torch.tensor([[1.0, 2.0], [torch.nan, 6.0]], requires_grad=True)
    mean = mean_over_entries(values, torch.tensor([[True, True], [False, True]]))
    assert mean.item() == 3
    (gradient,) = torch.autograd.grad(mean, values)
    assert gradient.tolist() == [[pytest.approx(1 / 3)] * 2, [0, pytest.approx(1 / 3)]]


@pytest.mark.parametrize("mask", [None, torch.zeros(0, dtype=torch.bool)])
def test_without_an_entry_a_mean_is_zero_and_on_the_graph(mask: Tensor | None) -> None:
    mean = mean_over_entries(torch.zeros(0, requires_grad=True), mask)
    assert mean.item() == 0
    assert mean.requires_grad


def test_as_many_vectors_of_student_and_teacher_are_expected() -> None:
    same_length(torch.ones(3, 2), torch.ones(3, 5))
    with pytest.raises(ValueError, match="3 vectors and the teacher 2"):
        same_length(torch.ones(3, 2), torch.ones(2, 2))
