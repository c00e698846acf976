"""Memory that can be forgotten, and answers timed by a clock that the test turns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_kd.evaluation.costs import THREADS, inference_costs, peak_memory, reset_peak_memory, stored_numbers
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.student import build_student
from recbole_kd.testing import known_answer_settings

MEGABYTE = 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mark can be reset on Linux alone")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its own memory is told")
def test_the_peak_is_that_since_the_reset() -> None:
    reset_peak_memory()
    before = peak_memory()
    held = np.ones(200 * MEGABYTE, dtype=np.uint8)
    during = peak_memory()
    assert during >= before + 199 * MEGABYTE
    del held
    assert peak_memory() > during - MEGABYTE, "what is freed still counts"
    reset_peak_memory()
    assert peak_memory() < during - 100 * MEGABYTE, "what was freed before the reset does not"


class Model:
    """Takes 10 ms for each user, and a second more while it warms up; it turns the clock by that."""

    def __init__(self, per_user: float = 0.01, slow_calls: int = 0) -> None:
        self.now = 0.0
        self.per_user = per_user
        self.slow_calls = slow_calls
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def answer(self, users: Tensor) -> None:
        assert 0 <= int(users.min()) <= int(users.max()) < 30
        self.sizes.append(len(users))
        self.threads.add(torch.get_num_threads())
        self.now += self.per_user * len(users) + (len(self.sizes) <= self.slow_calls)

    def clock(self) -> float:
        return self.now


def test_latency_is_a_users_and_throughput_a_seconds() -> None:
    model = Model()
    costs = inference_costs(model.answer, 30, requests=40, seconds=1e9, clock=model.clock)
    assert costs == {
        "latency_ms": {
            "batch_1": {"p50": pytest.approx(10), "p95": pytest.approx(10)},
            "batch_1024": {"p50": pytest.approx(10), "p95": pytest.approx(10)},
        },
        "latency_range_ms": {"batch_1": [pytest.approx(10)] * 2, "batch_1024": [pytest.approx(10)] * 2},
        "users_per_second": {"batch_1": pytest.approx(100), "batch_1024": pytest.approx(100)},
    }
    assert model.sizes.count(1) == model.sizes.count(1024) == 45, "five to warm up"


def test_the_warm_up_is_not_counted() -> None:
    model = Model(slow_calls=5)
    costs = inference_costs(model.answer, 30, batch_sizes=(1,), requests=20, seconds=60, clock=model.clock)
    assert costs["latency_ms"]["batch_1"]["p95"] == pytest.approx(10)
    late = Model(slow_calls=7)
    costs = inference_costs(late.answer, 30, batch_sizes=(1,), requests=20, seconds=60, clock=late.clock)
    assert costs["latency_ms"]["batch_1"]["p95"] > 500, "two of the twenty that count are slow"
    assert costs["latency_ms"]["batch_1"]["p50"] == pytest.approx(10)


def test_a_slow_model_is_asked_four_times() -> None:
    model = Model(per_user=10.0)
    costs = inference_costs(model.answer, 30, batch_sizes=(1,), clock=model.clock)
    assert len(model.sizes) == 4
    assert costs["users_per_second"]["batch_1"] == pytest.approx(0.1)


def test_the_threads_are_fixed_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = Model(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inference_costs(model.answer, 30, requests=3, clock=model.clock)
        assert model.threads == {THREADS}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_closed_form_counts_what_it_stores(known_answer: Path) -> None:
    """ItemKNN has one parameter that trains nothing; its tables of similarities and scores are its size."""

    def trained(model: str) -> Any:
        given = known_answer_settings(known_answer, dataset="known-answer", show_progress=False)
        config = KDConfig(model, "known-answer", config_dict=given)
        splits = load_splits(config)
        return build_student(Experiment.from_settings(config), splits, None)[0]

    knn = trained("ItemKNN")
    assert stored_numbers(knn) == 1 + knn.w.nnz + knn.pred_mat.nnz
    assert knn.w.nnz > 40
    ease = trained("EASE")
    assert stored_numbers(ease) >= ease.item_similarity.size
    bpr = trained("BPR")
    assert stored_numbers(bpr) == sum(parameter.numel() for parameter in bpr.parameters())
    lightgcn = trained("LightGCN")
    before = stored_numbers(lightgcn)
    lightgcn.restore_user_e = lightgcn.user_embedding.weight
    assert stored_numbers(lightgcn) == before, "a cache of the weights is no more to store"
