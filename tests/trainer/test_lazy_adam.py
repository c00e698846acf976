"""LazyAdam: Adam for the rows that a step reads, and nothing for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recbole_kd.loss.kernel.rows import mark_by_rows, rows_with_gradient
from recbole_kd.testing import known_answer_settings
from recbole_kd.trainer import lazy_adam
from recbole_kd.trainer.lazy_adam import LazyAdam
from recbole_kd.verbs.train import run_recbole_kd

RATE, DECAY = 0.1, 0.01


class Model(nn.Module):
    """A table and a layer."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(7, 3, sparse=sparse)
        self.layer = nn.Linear(3, 1)

    def loss(self, rows: list[int]) -> Tensor:
        loss: Tensor = self.layer(self.table(torch.tensor(rows))).square().sum()
        return loss


def trained(model: Model, optimizer: torch.optim.Optimizer, steps: list[list[int]]) -> Model:
    for rows in steps:
        optimizer.zero_grad()
        model.loss(rows).backward()
        optimizer.step()
    return model


def lazy(model: Model, weight_decay: float = DECAY) -> LazyAdam:
    return LazyAdam(model.parameters(), [model.table.weight], RATE, weight_decay)


def test_it_is_adam_where_every_step_reads_every_row() -> None:
    steps = [[0, 1, 2, 3, 4, 5, 6, 2]] * 5
    adam, own = Model(), Model()
    trained(adam, torch.optim.Adam(adam.parameters(), lr=RATE, weight_decay=DECAY), steps)
    trained(own, lazy(own), steps)
    for name, weight in own.named_parameters():
        torch.testing.assert_close(weight, adam.get_parameter(name), msg=name)


def test_a_row_rests_between_the_steps_that_read_it() -> None:
    model = Model()
    optimizer = lazy(model)
    trained(model, optimizer, [[1, 2], [2, 3]])
    row, moment = model.table.weight[1].clone(), optimizer.state[model.table.weight]["exp_avg"][1].clone()
    assert moment.abs().sum() > 0
    trained(model, optimizer, [[2, 3], [3]])
    assert torch.equal(model.table.weight[1], row)
    assert torch.equal(optimizer.state[model.table.weight]["exp_avg"][1], moment)


def test_a_row_rests_among_rows_that_are_read() -> None:
    """Neighbours are changed together; what was not read is put back, to the bit."""
    model = Model()
    mark_by_rows(model.table, remembered=True)
    optimizer = lazy(model)
    trained(model, optimizer, [[1, 2, 3, 4]])
    table = model.table.weight
    state = optimizer.state[table]
    before = [whole.detach().clone() for whole in (table, state["exp_avg"], state["exp_avg_sq"])]
    trained(model, optimizer, [[1, 2, 4]])
    for was, now in zip(before, (table, state["exp_avg"], state["exp_avg_sq"])):
        changed = (was != now).any(dim=1)
        assert changed.tolist() == [False, True, True, False, True, False, False]


def test_the_steps_of_one_row_by_the_formula() -> None:
    """m and v change where the row is read, in steps 1 and 3; bias is corrected by the number of all steps."""
    table = nn.Parameter(torch.ones(2, 1))
    optimizer = LazyAdam([table], [table], RATE)
    weight, m, v = 1.0, 0.0, 0.0
    for step, gradient in ((1, 0.5), (2, None), (3, -0.25)):
        table.grad = torch.tensor([[1.0], [gradient or 0.0]])
        optimizer.step()
        if gradient is not None:
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            weight -= RATE * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert table[1].item() == pytest.approx(weight, rel=1e-5)


def test_gradients_of_any_form_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, sparse, or dense with the rows that were read known; in one block or in several."""
    steps = [[1, 1, 4], [4, 2], [1, 6, 5, 3]]
    dense, sparse, marked = Model(), Model(sparse=True), Model()
    mark_by_rows(marked.table, remembered=True)
    trained(dense, lazy(dense), steps)
    monkeypatch.setattr(lazy_adam, "BLOCK", 2)
    for model in (sparse, marked):
        trained(model, lazy(model), steps)
        torch.testing.assert_close(model.table.weight, dense.table.weight)
    assert sparse.table.weight.grad is not None
    assert sparse.table.weight.grad.is_sparse
    assert rows_with_gradient(marked.table.weight) is not None


def test_a_row_that_is_read_without_a_gradient_moves_on() -> None:
    """Its moments decay, as in torch's SparseAdam."""
    model = Model()
    mark_by_rows(model.table, remembered=True)
    optimizer = lazy(model, 0.0)
    trained(model, optimizer, [[1]])
    before = model.table.weight[1].clone()
    optimizer.zero_grad()
    (0 * model.loss([1])).backward()
    optimizer.step()
    assert not torch.equal(model.table.weight[1], before)


def test_what_is_not_finite_is_not_hidden() -> None:
    table = nn.Parameter(torch.ones(2, 2))
    table.grad = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])
    LazyAdam([table], [table], RATE).step()
    assert bool(table[0, 0].isnan())
    assert torch.equal(table[1], torch.ones(2))


def run(data_path: Path, model: str, **settings: Any) -> dict[str, Any]:
    given = known_answer_settings(data_path, learner="lazy_adam", **settings)
    return run_recbole_kd(model, "known-answer", config_dict=given)


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_it_learns(model: str, known_answer: Path) -> None:
    result = run(known_answer, model, epochs=40, learning_rate=0.02, stopping_step=40)
    assert result["test_result"]["recall@10"] > 0.8


def test_a_distilled_run_goes_on_to_the_same_numbers(known_answer: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 4,
        "teacher": "LightGCN",
        "teacher.epochs": 1,
        "distill": ["rrd", "fitnet"],
        "rrd.interesting": 2,
        "rrd.uninteresting": 2,
        "rrd.pool": 3,
        "baseline": None,
    }
    whole = run(known_answer, "BPR", **settings)
    resumed = run(known_answer, "BPR", **settings, resume=whole["checkpoint"].replace(".pth", "-last.pth"))
    assert resumed["test_result"] == whole["test_result"]
