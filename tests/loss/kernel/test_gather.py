"""Dot products of chosen pairs: what indexing both tables gives, and the same gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss.kernel import gather
from recbole_kd.loss.kernel.gather import gathered_dot


def tables(users: int, items: int, dimension: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(count, dimension, generator=generator, dtype=dtype) for count in (users, items)]
    return drawn[0].requires_grad_(), drawn[1].requires_grad_()


def by_indexing(user_embeddings: Tensor, item_embeddings: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """The definition, with every gathered vector at once."""
    vectors = user_embeddings[users]
    return (
        (vectors * item_embeddings[items]).sum(-1) if items.dim() == 1 else item_embeddings[items] @ vectors[:, :, None]
    )


@given(n=st.integers(1, 9), k=st.integers(0, 16), dimension=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("gathered", [0, gather.GATHERED])
@pytest.mark.parametrize("rank", [1, 2])
def test_scores_and_gradients_are_those_of_indexing(
    rank: int, gathered: int, n: int, k: int, dimension: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(0, 5, (n,), generator=generator)
    items = torch.randint(0, 7, (n, k) if rank == 2 else (n,), generator=generator)
    user_embeddings, item_embeddings = tables(5, 7, dimension)
    weights = torch.randn(items.shape, generator=generator, dtype=torch.float64)

    expected = by_indexing(user_embeddings, item_embeddings, users, items).view(items.shape)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gather, "GATHERED", gathered)  # many pairs and few are scored in two ways
        scores = gathered_dot(user_embeddings, item_embeddings, users, items)

    torch.testing.assert_close(scores, expected)
    for actual, wanted in zip(
        torch.autograd.grad((scores * weights).sum(), [user_embeddings, item_embeddings]),
        torch.autograd.grad((expected * weights).sum(), [user_embeddings, item_embeddings]),
    ):
        torch.testing.assert_close(actual, wanted)


def test_a_table_that_is_read_often_is_padded_and_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(0, 50, (400,), generator=generator)
    items = torch.randint(0, 700, (400, 90), generator=generator)
    user_embeddings, item_embeddings = tables(50, 700, 20, torch.float32)
    found = []
    for lanes in (1, gather.LANES):
        monkeypatch.setattr(gather, "LANES", lanes)
        scores = gathered_dot(user_embeddings, item_embeddings, users, items)
        found.append([scores, *torch.autograd.grad(scores.square().sum(), [user_embeddings, item_embeddings])])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_the_items_may_come_as_32_bit_ids() -> None:
    user_embeddings, item_embeddings = tables(5, 7, 3)
    users, items = torch.tensor([4, 1]), torch.tensor([[6, 2], [2, 2]])
    scores = gathered_dot(user_embeddings, item_embeddings, users.int(), items.int())
    torch.testing.assert_close(scores, by_indexing(user_embeddings, item_embeddings, users, items).view(2, 2))
    scores.sum().backward()
    assert item_embeddings.grad is not None
    torch.testing.assert_close(item_embeddings.grad[2], (user_embeddings[4] + 2 * user_embeddings[1]).detach())


def test_one_expanded_row_of_items_stands_for_all_users() -> None:
    user_embeddings, item_embeddings = tables(5, 7, 3)
    users, items = torch.tensor([4, 1, 4]), torch.arange(7).expand(3, 7)
    scores = gathered_dot(user_embeddings, item_embeddings, users, items)
    torch.testing.assert_close(scores, (user_embeddings @ item_embeddings.t())[users])


def test_items_repeated_in_a_row_are_scored_as_users_of_items() -> None:
    user_embeddings, item_embeddings = tables(5, 7, 3)
    users, items = torch.tensor([4, 1, 0, 1, 2, 3]), torch.tensor([6, 6, 2, 2, 5, 5])
    scores = gathered_dot(user_embeddings, item_embeddings, users, items)
    expected = by_indexing(user_embeddings, item_embeddings, users, items)
    torch.testing.assert_close(scores, expected)
    for actual, wanted in zip(
        torch.autograd.grad((scores**2).sum(), [user_embeddings, item_embeddings]),
        torch.autograd.grad((expected**2).sum(), [user_embeddings, item_embeddings]),
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_of_the_tables_is_kept(dtype: torch.dtype) -> None:
    user_embeddings, item_embeddings = tables(5, 7, 3, dtype)
    users, items = torch.tensor([4, 1]), torch.tensor([[6, 2], [0, 2]])
    scores = gathered_dot(user_embeddings, item_embeddings, users, items)
    exact = by_indexing(user_embeddings.double(), item_embeddings.double(), users, items).view(2, 2)
    torch.testing.assert_close(scores, exact.to(dtype), rtol=2e-2, atol=2e-2)
    scores.sum().backward()
    assert user_embeddings.grad is not None
    assert user_embeddings.grad.dtype == dtype


def test_a_table_that_needs_no_gradient_gets_none() -> None:
    user_embeddings, item_embeddings = tables(5, 7, 3)
    gathered_dot(user_embeddings.detach(), item_embeddings, torch.tensor([1]), torch.tensor([[2, 3]])).sum().backward()
    assert user_embeddings.grad is None
    assert item_embeddings.grad is not None
    torch.testing.assert_close(item_embeddings.grad[3], user_embeddings[1].detach())


@pytest.mark.parametrize(("users", "items"), [([5], [[0, 1]]), ([0], [[1, 7]]), ([0], [[-1, 2]])])
def test_an_id_without_a_row_is_refused(users: list[int], items: list[list[int]]) -> None:
    with pytest.raises(IndexError, match="rows"):
        gathered_dot(*tables(5, 7, 3), torch.tensor(users), torch.tensor(items))
