"""SimRec's kernels against the formulas: the same values and gradients, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.loss import contrastive as formula
from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel import contrastive as kernel
from recbole_kd.loss.kernel import streamed
from tests.loss.same import assert_same, draw, gradients

seeds = st.integers(0, 1000)
sizes = st.integers(1, 7)


def rows(seed: int, count: int, high: int) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(seed))


def distinct(seed: int, count: int, high: int) -> Tensor:
    return torch.randperm(high, generator=torch.Generator().manual_seed(seed))[:count]


def sample_of(seed: int, count: int | None, high: int) -> Tensor | None:
    return None if count is None else rows(seed, count, high)


@given(st.integers(0, 9), sizes, sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_mean_score_loss(pairs: int, users: int, items: int, seed: int) -> None:
    tables = draw(seed, users, 3), draw(seed + 1, items, 3)
    chosen = rows(seed, pairs, users), rows(seed + 1, pairs, items)
    assert_same(kernel.mean_score_loss(*tables, *chosen), formula.mean_score_loss(*tables, *chosen), tables)


@given(st.integers(0, 30), sizes, sizes, st.sampled_from([0.03, 1.0]), seeds)
@settings(max_examples=30, deadline=None)
def test_prediction_bce(count: int, users: int, items: int, temperature: float, seed: int) -> None:
    tables = draw(seed, users, 3), draw(seed + 1, items, 3)
    triplets = rows(seed, count, users), rows(seed + 1, count, items), rows(seed + 2, count, items)
    given_ = (*tables, triplets, draw(seed + 2, count).detach(), temperature)
    assert_same(kernel.prediction_bce(*given_), formula.prediction_bce(*given_), tables)


@given(st.integers(0, 5), st.integers(5, 9), st.sampled_from([None, 1, 4]), st.sampled_from([0.1, 1.0]), seeds)
@settings(max_examples=30, deadline=None)
def test_cosine_infonce(count: int, nodes: int, sampled: int | None, temperature: float, seed: int) -> None:
    embeddings, anchors = draw(seed, nodes, 4), unit(draw(seed + 1, count, 4).detach())
    embeddings.data[seed % nodes] *= seed % 2  # now and then a row of zeros
    given_ = (anchors, embeddings, distinct(seed, count, nodes), temperature, sample_of(seed, sampled, nodes))
    assert_same(kernel.cosine_infonce(*given_), formula.cosine_infonce(*given_), [embeddings])


@given(
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(4, 7), st.integers(4, 7)),
    st.sets(st.sampled_from(["uu", "ui", "ii"])),
    st.tuples(st.sampled_from([None, 3]), st.sampled_from([None, 3])),
    st.sampled_from([1.0, 30.0]),
    seeds,
)
@settings(max_examples=40, deadline=None)
def test_contrastive_regularization(
    counts: tuple[int, int],
    totals: tuple[int, int],
    pairs: set[str],
    sampled: tuple[int | None, int | None],
    scale: float,
    seed: int,
) -> None:
    tables = draw(seed, totals[0], 3, scale=scale), draw(seed + 1, totals[1], 3, scale=scale)
    nodes = distinct(seed, counts[0], totals[0]), distinct(seed + 1, counts[1], totals[1])
    weights = draw(seed + 2, counts[0]).detach(), draw(seed + 3, counts[1]).detach()
    samples = sample_of(seed, sampled[0], totals[0]), sample_of(seed + 1, sampled[1], totals[1])
    given_ = (tables, nodes, weights, 0.7, pairs, samples)
    found, expected = kernel.contrastive_regularization(*given_), formula.contrastive_regularization(*given_)
    assert_same(found, expected, tables)


def test_blocks_of_the_catalogue_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "block_shape", lambda keys: (2, 3))
    tables, nodes = (draw(0, 8, 3), draw(1, 7, 3)), (torch.arange(5), torch.arange(4))
    given_ = (tables, nodes, (torch.ones(5).double(), torch.ones(4).double()), 1.0)
    found, expected = kernel.contrastive_regularization(*given_), formula.contrastive_regularization(*given_)
    assert_same(found, expected, tables)
    anchors, positives = unit(draw(2, 5, 3).detach()), torch.arange(5)
    found = kernel.cosine_infonce(anchors, tables[0], positives, 0.1)
    assert_same(found, formula.cosine_infonce(anchors, tables[0], positives, 0.1), [tables[0]])


def test_the_gradient_of_a_cosine_is_across_the_embedding() -> None:
    embeddings = draw(0, 9, 4)
    loss = kernel.cosine_infonce(unit(draw(1, 3, 4).detach()), embeddings, torch.arange(3), 0.1)
    (gradient,) = gradients(loss, [embeddings])
    torch.testing.assert_close((gradient * embeddings.detach()).sum(1), torch.zeros(9, dtype=torch.float64))


def test_an_embedding_of_length_zero_has_cosine_zero_and_a_bounded_gradient() -> None:
    embeddings = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    loss = kernel.cosine_infonce(unit(draw(0, 1, 4).detach()), embeddings, torch.tensor([0]), 0.1)
    assert loss.item() == pytest.approx(math.log(3))
    (gradient,) = gradients(loss, [embeddings])
    assert gradient.norm(dim=1).max() < 10  # 1 / temperature


def test_scores_of_ten_thousand_are_finite_in_float32() -> None:
    tables = [draw(seed, count, 3, scale=100).detach().float().requires_grad_() for seed, count in ((0, 4), (1, 6))]
    triplets = rows(0, 30, 4), rows(1, 30, 6), rows(2, 30, 6)
    loss = kernel.prediction_bce(*tables, triplets, draw(2, 30).detach() * 1e4, 1.0)
    assert loss.isfinite()
    assert loss > 1e3
    assert all(gradient.isfinite().all() for gradient in gradients(loss, tables))


def test_autocast_changes_nothing() -> None:
    """With `enable_amp` a term is computed in the type of its inputs: its own gradient would not follow otherwise."""
    tables = [draw(seed, 6, 3).detach().float().requires_grad_() for seed in (0, 1)]
    ids, ones = torch.arange(4), torch.ones(4)
    anchors = unit(draw(2, 4, 3).detach().float())

    def losses() -> list[Tensor]:
        return [
            kernel.mean_score_loss(*tables, ids, ids),
            kernel.prediction_bce(*tables, (ids, ids, ids + 1), ones, 1.0),
            kernel.cosine_infonce(anchors, tables[0], ids, 0.1),
            kernel.contrastive_regularization((tables[0], tables[1]), (ids, ids), (ones, ones), 1.0),
        ]

    expected = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses()
    for one, other in itertools.chain(
        zip(found, expected), zip(*(gradients(sum(x), tables) for x in (found, expected)))
    ):
        assert torch.equal(one, other)
