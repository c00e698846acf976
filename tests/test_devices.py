"""A step of every distiller, model and optimiser on a second device, traced on a machine without one (tests/away.py).

What is computed is what the CPU computes, and no tensor meets one of another device. What crosses between the two makes
a GPU wait: a step may do so where :data:`ALLOWED` says, and nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor, nn

from recbole_kd.contracts import Batch, Distiller
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.registry import MODELS, distiller_class
from recbole_kd.student.readers import ModelStudent
from recbole_kd.testing import (
    Bench,
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.trainer.kd_trainer import _LEARNERS, _SEVO, make_trainer
from recbole_kd.trainer.learner import optimizer_factory
from tests.away import DEVICE, Away, Crossing, second_device
from tests.distiller import test_conformance
from tests.distiller.test_sequential import ABLE
from tests.sequential import SequentialBench

#: How often a step may cross between the devices, by kind and file.
ALLOWED = {
    # Distinct users, items or pairs of a batch: their number is a shape.
    ("read", "recbole_kd/contracts.py"): 2,
    # Numbers come from a generator of the CPU, so that a run is the same on any device (CONTRIBUTING.md, 7).
    ("drawn", "distiller/simrec.py"): 3,
    ("drawn", "distiller/rkd.py"): 1,
    ("drawn", "base/experts.py"): 2,
    ("drawn", "base/projectors.py"): 8,
    ("drawn", "data/graphs.py"): 2,
    # How long rows of a graph are, each side's; with dropped edges how many are left, and whose neighbours they are.
    ("read", "data/graphs.py"): 10,
    # Which way is the cheaper one depends on values: how large scores can be; whether each expert has been chosen.
    ("to the CPU", "kernel/streamed.py"): 5,
    ("read", "base/experts.py"): 2,
    # Whether items come in runs, which is IR-RRD's case.
    ("read", "kernel/gather.py"): 2,
    # The sizes of the experts' groups, of users and of items, are read and their layout is made of them.
    ("to the CPU", "kernel/layout.py"): 2,
    ("to the device", "kernel/layout.py"): 2,
    ("read", "kernel/layout.py"): 8,
}


def excess(crossed: list[Crossing]) -> list[Crossing]:
    """What crosses more often than it may."""
    times = Counter((kind, place.split(":")[0]) for kind, place in crossed)
    beyond = {key for key, count in times.items() if count > ALLOWED.get(key, 0)}
    return [crossing for crossing in crossed if (crossing.kind, crossing.place.split(":")[0]) in beyond]


@contextmanager
def run_there() -> Iterator[list[Crossing]]:
    """The second device is the one that runs are on."""
    with second_device() as crossed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(KDConfig, "_init_device", lambda config: config.final_config_dict.update(device=DEVICE))
        yield crossed


def assert_same(there: dict[str, Tensor | None], here: dict[str, Tensor | None], tolerance: float = 1e-4) -> None:
    assert there.keys() == here.keys()
    for name, value in there.items():
        assert value is None or isinstance(value, Away), name
        torch.testing.assert_close(value if value is None else value.here, here[name], rtol=tolerance, atol=1e-6, msg=lambda text: f"{name}: {text}")  # type: ignore


def gradients(*modules: nn.Module) -> dict[str, Tensor | None]:
    return {
        f"{number}.{name}": parameter.grad
        for number, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }


# Distillers

SUITES = {name.removeprefix("Test"): suite for name, suite in vars(test_conformance).items() if name.startswith("Test")}
#: Every distiller on its first backbone, and one of each kind that reads the others'.
CASES = [
    pytest.param(name, backbone, marks=[] if place == 0 or name in ("KD", "FitNet") else pytest.mark.slow)
    for name, suite in SUITES.items()
    for place, backbone in enumerate(suite.backbones)
]


def distil(bench: Any, distiller: Distiller[Any], batch: Batch) -> dict[str, Tensor | None]:
    """A step's losses and gradients."""
    distiller.zero_grad()
    bench.model.zero_grad()
    with bench.student.step():
        losses = distiller(batch)
    torch.stack(list(losses.values())).sum().backward()
    return {**losses, **gradients(bench.model, distiller)}


def general(name: str, backbone: str, path: Path) -> tuple[Any, Distiller[Any]]:
    suite = SUITES[name]()
    bench = Bench(path, backbone, suite.teacher)
    return bench, suite.build(bench)


def sequential(name: str, backbone: str, path: Path) -> tuple[Any, Distiller[Any]]:
    bench = SequentialBench(path, backbone)
    kind = distiller_class(name, sequential=True)
    return bench, kind(kind.options_class.parse(name, ABLE[name]), bench.student, bench.teacher, bench.data).to(bench.config["device"])


def assert_it_distils_there(build: Any, name: str, backbone: str, path: Path) -> None:
    """Steps of the first epoch and of the last one, in which annealed experts are chosen."""
    here, first = build(name, backbone, path)
    with run_there() as crossed:
        there, second = build(name, backbone, path)
        for epoch in (0, there.data.epochs - 1):
            first.begin_epoch(epoch)
            second.begin_epoch(epoch)
            batch = there.batch()
            crossed.clear()
            found = distil(there, second, batch)
            assert not excess(crossed)
            assert_same(found, distil(here, first, here.batch()))


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_distiller(name: str, backbone: str, tmp_path: Path) -> None:
    assert_it_distils_there(general, name, backbone, write_known_answer(tmp_path))


@pytest.mark.parametrize("backbone", ["STOSA", "SASRec"])
@pytest.mark.parametrize("name", ABLE)
def test_a_distiller_of_sequences(name: str, backbone: str, tmp_path: Path) -> None:
    assert_it_distils_there(sequential, name, backbone, write_known_sequences(tmp_path))
