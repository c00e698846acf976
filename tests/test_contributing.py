"""The distiller that CONTRIBUTING.md shows in full works, as a file of somebody else's package."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from recbole_kd import registry
from recbole_kd.cli import main
from recbole_kd.config import KDConfig
from recbole_kd.errors import UserError
from recbole_kd.quick_start import run_recbole_kd
from recbole_kd.testing import DistillerConformance, known_answer_settings

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
(SOURCE,) = (block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "class CentredMatching(" in block)
PATH = "contributed_centred:CentredMatching"


def _module() -> Any:
    spec = importlib.util.spec_from_loader("contributed_centred", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["contributed_centred"] = module
    exec(SOURCE, module.__dict__)
    return module


MODULE = _module()


class TestCentred(DistillerConformance):
    distiller = MODULE.CentredMatching


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_NAMED_BY_PATH", {})


def test_it_is_used_by_its_path(known_answer: Path) -> None:
    settings = {"distill": PATH, "teacher": "LightGCN", "teacher.epochs": 1, "centred.start_epoch": 1, "epochs": 2}
    result = run_recbole_kd("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **settings))
    assert set(result["loss_history"][0]) == {"rec"}
    assert set(result["loss_history"][1]) == {"rec", "centred"}


def test_it_is_used_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    offered = {"recbole_kd.distillers": {"centred": PATH}}
    monkeypatch.setattr(registry, "_offered", lambda group: offered.get(group, {}))
    assert KDConfig("BPR", "ml-100k", config_dict={"distill": "centred", "centred.weight": 2})["centred"] == {
        "weight": 2
    }
    with pytest.raises(UserError, match="Unknown option 'centred.wait'"):
        KDConfig("BPR", "ml-100k", config_dict={"distill": "centred", "centred.wait": 2})
    assert main(["list", "--kind=distillers"]) == 0
    assert "Centred matching" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.at_all:Class", "There is no distiller at 'nowhere.at_all:Class'"),
        ("contributed_centred:Missing", "There is no distiller at"),
        ("contributed_centred:CentredOptions", "is no distiller; expected a subclass"),
    ],
)
def test_what_is_no_distiller_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        KDConfig("BPR", "ml-100k", config_dict={"distill": path})
