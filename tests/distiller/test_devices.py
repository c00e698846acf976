"""A step of every distiller on a second device, traced on a machine without one (tests/away.py).

The losses are those of the CPU, no tensor meets one of another device, and what crosses between the two in a step is
counted: each crossing makes a GPU wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.experiment.settings import KDConfig
from recbole_kd.testing import Bench, DistillerConformance, write_known_answer
from tests.away import DEVICE, Away, second_device
from tests.distiller import test_conformance

SUITES = {name: suite for name, suite in vars(test_conformance).items() if name.startswith("Test")}
CASES = [(name, backbone) for name, suite in SUITES.items() for backbone in suite.backbones]


def step(suite: DistillerConformance, path: Path, backbone: str, device: str) -> tuple[Any, dict[str, Any]]:
    bench = Bench(path, backbone, suite.teacher, device=device)
    distiller = suite.build(bench)
    optimizer = torch.optim.Adam([*bench.model.parameters(), *distiller.parameters()])
    batch = bench.batch()
    with second_device() as crossed:
        losses = suite.losses(bench, distiller, batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    return crossed, losses


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_step_stays_on_its_device(
    name: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, suite = write_known_answer(tmp_path), SUITES[name]()
    _, here = step(suite, path, backbone, "cpu")

    def on_the_device(config: Any) -> None:
        config.final_config_dict["device"] = DEVICE

    monkeypatch.setattr(KDConfig, "_init_device", on_the_device)
    with second_device():
        crossed, there = step(suite, path, backbone, "lazy")
    for key, loss in there.items():
        assert isinstance(loss, Away)
        torch.testing.assert_close(loss.here, here[key], rtol=1e-4, atol=1e-6)
    assert not crossed
