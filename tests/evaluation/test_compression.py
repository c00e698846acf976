"""What of a teacher fits into fewer dimensions, against the singular value decompositions of the whole matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_kd.evaluation.compression import principal_scores, principal_vectors


@pytest.fixture
def teacher() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([5.0, 0.3, 2, 1, 0.1, 3], dtype=torch.float64)
    users, items = (torch.randn(n, 6, dtype=torch.float64, generator=generator) * spread + 0.4 for n in (30, 20))
    return users, items


def truncated(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_vectors_are_projected_with_the_least_error(teacher: tuple[Tensor, Tensor], rank: int) -> None:
    users, items = principal_vectors(*teacher)
    best = truncated(torch.cat(teacher), rank)
    # Coordinates in another basis: dot products tell whether the vectors are the same.
    torch.testing.assert_close(users[:, :rank] @ items[:, :rank].t(), best[:30] @ best[30:].t())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_scores_are_approximated_with_the_least_error(teacher: tuple[Tensor, Tensor], rank: int) -> None:
    users, items = principal_scores(*teacher)
    scores = teacher[0] @ teacher[1].t()
    torch.testing.assert_close(users[:, :rank] @ items[:, :rank].t(), truncated(scores, rank))


def test_fewer_users_than_dimensions_have_scores_of_no_higher_rank(teacher: tuple[Tensor, Tensor]) -> None:
    users, items = principal_scores(teacher[0][:4], teacher[1])
    assert users.shape == (4, 4)
    torch.testing.assert_close(users @ items.t(), teacher[0][:4] @ teacher[1].t())


@pytest.mark.parametrize("compress", [principal_vectors, principal_scores])
def test_all_dimensions_are_the_teacher(compress, teacher: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def]
    users, items = compress(*teacher)
    torch.testing.assert_close(users @ items.t(), teacher[0] @ teacher[1].t())
