"""The state of a run beside weights: random generators go on where they were saved."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.trainer.state import load_optimizer, random_state, restore_random_state, restored, storable


def draw() -> list[float]:
    """Numbers of every global generator; the normal ones leave half a pair behind in python's and numpy's."""
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]
    if torch.cuda.is_available():
        numbers.append(torch.rand((), device="cuda").item())
    return numbers


@pytest.fixture
def _own_random_state() -> Iterator[None]:
    before = random_state()
    yield
    restore_random_state(before)


@pytest.mark.usefixtures("_own_random_state")
def test_random_states_go_on_where_they_were_saved(tmp_path: Path) -> None:
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw()
        save_checkpoint({"random": random_state()}, tmp_path / "x.pth")
        expected = [draw() for _ in range(3)]
        restore_random_state(load_checkpoint(tmp_path / "x.pth")["random"])
        assert [draw() for _ in range(3)] == expected


@pytest.mark.usefixtures("_own_random_state")
def test_taking_the_random_state_draws_nothing() -> None:
    torch.manual_seed(0)
    before = random_state()
    assert digest(random_state()) == digest(before)


@pytest.mark.usefixtures("_own_random_state")
@pytest.mark.parametrize(
    "broken",
    [
        lambda state: state.pop("python"),
        lambda state: state["python"].update(words=torch.zeros(3, dtype=torch.int64)),
        lambda state: state["numpy"].update(kind="PCG64"),
        lambda state: state["numpy"].update(keys=None),
        lambda state: state.update(torch=torch.zeros(3, dtype=torch.uint8)),
        lambda state: state.update(cuda=None),
    ],
)
def test_random_states_that_are_none_are_refused(broken: Callable[[dict[str, Any]], Any]) -> None:
    state = random_state()
    broken(state)
    with pytest.raises(UserError, match="random states cannot be restored"):
        restore_random_state(state)


def test_a_matrix_comes_back_and_one_that_reaches_outside_is_refused() -> None:
    kept = {
        "w": scipy.sparse.csr_matrix([[0, 1.5], [2, 0]]),
        "v": np.arange(3),
        "restore_user_e": torch.ones(1),
        "n": 3,
    }
    found = restored(storable(kept))
    assert found["w"].toarray().tolist() == [[0, 1.5], [2, 0]]
    assert found["v"].tolist() == [0, 1, 2]
    assert (found["restore_user_e"], found["n"]) == (None, 3)
    broken = storable(kept)
    broken["w"]["indices"] = torch.tensor([7, 0], dtype=torch.int32)
    with pytest.raises(ValueError, match="indices|index"):
        restored(broken)


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"][0].update(exp_avg=None),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(7, 7)),
        lambda state: state["state"].update({0: 5}),
        lambda state: state["param_groups"][0].update(betas=("x", 0.9)),
        lambda state: state["param_groups"][0].update(lr=None),
        lambda state: state["param_groups"][0].update(amsgrad=True),
        lambda state: state["param_groups"].pop(),
        lambda state: state.pop("state"),
    ],
)
def test_an_optimisers_state_is_that_of_such_an_optimiser(broken: Callable[[dict[str, Any]], Any]) -> None:
    weights = [torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = torch.optim.Adam(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    other = torch.optim.Adam([weight.detach().clone().requires_grad_() for weight in weights])
    load_optimizer(other, copy.deepcopy(state))
    assert other.state_dict()["state"].keys() == state["state"].keys()
    broken(state)
    with pytest.raises((ValueError, TypeError, AttributeError, LookupError)):
        load_optimizer(other, state)
