"""The distiller that CONTRIBUTING.md shows in full works, as a file of somebody else's package."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recbole_kd
from recbole_kd import registry
from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.testing import DistillerConformance, known_answer_settings
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd

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


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_in_the_working_folder_is_used_by_the_installed_program(
    nproc: int, known_answer: Path, tmp_path: Path
) -> None:
    """As `recbole-kd` starts: Python looks beside the program, which is not the working folder."""
    (tmp_path / "centred.py").write_text(SOURCE)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "recbole-kd"
    program.write_text(
        "import sys\nfrom recbole_kd.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    settings = known_answer_settings(known_answer, epochs=1, nproc=nproc, result_file="result.json")
    settings.update({"distill": "centred:CentredMatching", "teacher": "LightGCN", "teacher.epochs": 1})
    words = ["--model=BPR", "--dataset=known-answer", *(f"--{key}={value}" for key, value in settings.items())]
    environment = {**os.environ, "PYTHONPATH": str(Path(recbole_kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, str(program), *words], **options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["loss_history"]["0"]) == {"rec", "centred"}
    if nproc == 1:
        return  # the rest is slow
    # A trained student needs the file no longer.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ["evaluate", f"--checkpoint={result['checkpoint']}", f"--data_path={known_answer}"]
    done = subprocess.run([sys.executable, str(program), *words], cwd=elsewhere, **options)
    assert done.returncode == 0, done.stderr


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
        ("contributed_centred:CentredOptions", "is not a distiller; expected a subclass"),
    ],
)
def test_what_is_no_distiller_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        KDConfig("BPR", "ml-100k", config_dict={"distill": path})


def test_a_search_in_another_process_finds_it_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    given = KDConfig("BPR", "ml-100k", config_dict={"distill": f"kd,{PATH}"}).external_config_dict
    monkeypatch.setattr(registry, "_NAMED_BY_PATH", {})  # as in a worker that has only the settings
    assert KDConfig("BPR", "ml-100k", config_dict=given).distillers == ["kd", "centred"]


def test_an_entry_point_that_is_broken_breaks_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = {"recbole_kd.distillers": {"gone": "nowhere.gone:Nothing", "other": "collections:OrderedDict"}}
    offered["recbole_kd.models"] = {"Gone": "nowhere.gone:Model"}
    monkeypatch.setattr(registry, "_offered", lambda group: offered.get(group, {}))
    assert main(["list", "--kind=distillers"]) == 0
    assert main(["list", "--kind=students"]) == 0
    listed = capsys.readouterr().out
    assert "There is no distiller at 'nowhere.gone:Nothing'" in listed
    assert "'collections:OrderedDict' is not a distiller" in listed
    assert "[cannot be loaded: No module named 'nowhere']" in listed
    for name, message in {"gone": "There is no distiller at", "other": "is not a distiller"}.items():
        with pytest.raises(UserError, match=message):
            KDConfig("BPR", "ml-100k", config_dict={"distill": name})
    assert main(["--model=BPR", "--dataset=ml-100k", "--teacher=EASE", "--distill=de"]) == 2
    assert "de reads a vector" in capsys.readouterr().err


MODEL = '''
"""BPR with a bias of its own, as a package of somebody else's."""

from recbole.model.general_recommender import BPR


class Biased(BPR):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.bias = config["biased_by"]

    def forward(self, user, item):
        users, items = super().forward(user, item)
        return users + self.bias, items
'''


def test_a_model_of_another_package_has_settings_of_its_own_and_is_read_back(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "somebodys_biased.py").write_text(MODEL)
    (tmp_path / "Biased.yaml").write_text("embedding_size: 12\nbiased_by: 0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    offered = {"recbole_kd.models": {"Biased": "somebodys_biased:Biased"}}
    monkeypatch.setattr(registry, "_offered", lambda group: offered.get(group, {}))
    settings = known_answer_settings(known_answer, epochs=1, biased_by=0.5)
    result = run_recbole_kd("Biased", "known-answer", config_dict=settings)
    assert result["parameters"]["student"] == 12 * (49 + 41), "the size of the file beside its module"
    data = {"data_path": str(known_answer), "use_gpu": False, "topk": [10]}
    read = evaluate_checkpoint(result["checkpoint"], data)
    assert read["test_result"] == result["test_result"]
    taught = {"teacher.checkpoint": result["checkpoint"], "distill": "kd", "kd.items": 10, "student": "Biased"}
    recipe = known_answer_settings(known_answer, epochs=1, baseline="none", biased_by=0.1, embedding_size=6, **taught)
    assert run_recbole_kd("KDStudent", "known-answer", config_dict=recipe)["student"] == "Biased"
    with pytest.raises(UserError, match="Unknown setting 'biased_bye'"):
        KDConfig("Biased", "known-answer", config_dict={"biased_bye": 1})


def test_names_of_ours_stay_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package may offer a model or a distiller of the same name."""
    monkeypatch.setattr(registry, "_offered", lambda group: dict.fromkeys(("BPR", "rrd", "mine"), "other:Mine"))
    assert registry.models()["BPR"] == registry.MODELS["BPR"]
    assert registry.distillers()["rrd"] == registry.DISTILLERS["rrd"]
    assert registry.models()["mine"].path == registry.distillers()["mine"].path == "other:Mine"
