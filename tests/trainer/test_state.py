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
from torch import nn

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.trainer.state import (
    Attributes,
    check_teacher,
    load_optimizer,
    random_state,
    restore_random_state,
    restored,
    storable,
)


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


@pytest.mark.parametrize("broken", [torch.zeros(5056), torch.zeros(3, dtype=torch.uint8)])
def test_a_state_that_is_none_of_a_loaders_generator_is_refused(broken: torch.Tensor) -> None:
    with pytest.raises(UserError, match="random states cannot be restored"):
        restore_random_state(random_state(), torch.Generator(), broken)


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


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "lil"])
def test_a_matrix_keeps_its_layout(layout: str) -> None:
    found = restored(storable({"w": scipy.sparse.csr_matrix([[0, -1.5], [2, 0]]).asformat(layout)}))["w"]
    assert found.format == layout
    assert found.toarray().tolist() == [[0, -1.5], [2, 0]]


def test_a_sparse_tensor_comes_back() -> None:
    kept = torch.tensor([[0, -1.5], [2, 0]]).to_sparse()
    found = restored(storable({"w": kept}))["w"]
    assert found.layout == torch.sparse_coo
    assert torch.equal(found.to_dense(), kept.to_dense())


def test_a_number_that_no_file_of_ours_has_is_refused() -> None:
    with pytest.raises(ValueError, match="is above 64 bits"):
        restored({"count": 2**63})


class Counting(nn.Module):
    """A model with values in attributes, as some of RecBole's have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.layer.uses = 0
        self.history: list[float] = []
        self.table = torch.zeros(2)
        self.unchanged = {"a": 1}
        self.latest: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer.uses += 1
        self.history.append(0.5)
        self.table = self.table + 1
        self.latest = self.layer(x)
        self.hook = lambda: None
        return self.latest


def test_attributes_that_training_changed_come_back() -> None:
    """Each with its place; what belongs to one step is left out, and what no file can hold is named."""
    model = Counting()
    attributes = Attributes(model)
    model(torch.ones(1, 2))
    kept, lost = attributes.changed()
    assert kept.keys() == {"layer.uses", "history", "table"}
    assert lost == ["hook"]
    other = Counting()
    Attributes(other).restore(kept)
    assert (other.layer.uses, other.history, other.table.tolist()) == (1, [0.5], [1, 1])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("forward", 1),
        ("__class__", 1),
        ("_parameters", {}),
        ("layer.training", 3),
        ("not a name", 1),
        ("nowhere.count", 1),
        ("table", 1),
        ("table", torch.zeros(3)),
        ("history", {"a": 1}),
        ("unchanged", [1]),
    ],
)
def test_no_other_attribute_is_set_from_a_file(path: str, value: Any) -> None:
    """A file may come from anybody: it replaces no method, no part of torch, and no value by one of another kind."""
    with pytest.raises((ValueError, LookupError)):
        Attributes(Counting()).restore({path: value})


@pytest.mark.parametrize(
    "broken",
    [
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"][0].update(exp_avg=None),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(7, 7)),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(3, 2)),
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


TAUGHT_BY = {"teacher": "the file b.csv", "teacher_digest": "1"}


@pytest.mark.parametrize(
    ("kept", "warned"),
    [
        ({"teacher": "the file a.csv", "teacher_digest": "1"}, False),  # the same file under another name
        ({"teacher": "the file b.csv", "teacher_digest": "2"}, True),
        ({"teacher": "the file b.csv"}, False),  # of an older version
        ({}, False),  # of a plain run
    ],
)
def test_a_teacher_is_told_apart_by_its_content(
    kept: dict[str, str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check_teacher("run.pth", kept, TAUGHT_BY)
    assert ("The teacher the file b.csv is not the one of 'run.pth'" in caplog.text) == warned


def test_a_teacher_of_another_name_and_content_is_refused() -> None:
    with pytest.raises(UserError, match=r"whose teacher is BPR, and now it is the file b\.csv; resume it"):
        check_teacher("run.pth", {"teacher": "BPR", "teacher_digest": "2"}, TAUGHT_BY)
