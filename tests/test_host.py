"""RecBole's own functions, after ``import recbole_kd``: they know our models, and read files without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.data.dataloader import UserDataLoader
from recbole.data.utils import get_dataloader
from recbole.quick_start import load_data_and_model as recboles_load
from recbole.quick_start import run_recbole
from recbole.trainer import Trainer
from recbole.utils import ModelType, get_model

import recbole_kd
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.simrec import SimRecStudent
from recbole_kd.model.stosa import STOSA
from recbole_kd.testing import write_known_answer


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "data_path": str(write_known_answer(tmp_path)),
        "benchmark_filename": ["train", "valid", "test"],
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 2,
        "show_progress": False,
    }


def test_models_of_ours_have_a_name_there() -> None:
    assert get_model("STOSA") is STOSA
    assert get_model("SimRecStudent") is SimRecStudent
    assert get_model("BPR").__module__ == "recbole.model.general_recommender.bpr"


def test_their_settings_are_ours() -> None:
    config = Config(model="STOSA", dataset="ml-100k")
    assert config["pvn_weight"] == KDConfig("STOSA", "ml-100k")["pvn_weight"] is not None


@pytest.mark.parametrize("name", ["MultiVAEVariant", "MultiDAEVariant", "WMF"])
def test_their_batches_are_ours(name: str) -> None:
    """Users, as RecBole gives them to MultiVAE; a batch of pairs would train something else, and say nothing."""
    table = {"model": name, "MODEL_TYPE": ModelType.GENERAL}
    assert get_dataloader(table, "train") is get_dataloader({**table, "model": "MultiVAE"}, "train") is UserDataLoader


@pytest.mark.parametrize("name", ["SimRecStudent", "RRDStudent"])
def test_what_needs_a_teacher_says_what_to_call(name: str) -> None:
    with pytest.raises(UserError, match=rf"call recbole_kd.run_recbole_kd\(model='{name}', dataset=...\)"):
        run_recbole(model=name, dataset="ml-100k")


def test_recbole_trains_our_model_and_its_file_is_read_back(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = run_recbole(model="SimRecTeacher", dataset="known-answer", config_dict=settings)
    (file,) = (tmp_path / "saved").glob("SimRecTeacher-*.pth")
    config, model, dataset, train, valid, test = recbole_kd.load_data_and_model(str(file))
    assert (dataset.user_num, len(train.dataset) + len(valid.dataset) + len(test.dataset)) == (49, 480)
    again = Trainer(config, model).evaluate(test, load_best_model=False)
    assert again == theirs["test_result"]
    with pytest.raises(UserError, match="call recbole_kd.load_data_and_model"):
        recboles_load(str(file))


def test_a_file_of_ours_is_read_the_same_way(settings: dict[str, Any]) -> None:
    result = recbole_kd.run_recbole_kd("BPR", "known-answer", config_dict=settings)
    config, model, _, _, _, test = recbole_kd.load_data_and_model(
        result["checkpoint"], {"data_path": settings["data_path"]}
    )
    again = Trainer(config, model).evaluate(test, load_best_model=False)
    assert again == pytest.approx(result["test_result"])


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    """RecBole's trainer, asked to go on from a file that would make a folder when it is unpickled."""

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.mkdir, (tmp_path / "made",)

    torch.save({"config": Bomb(), "state_dict": {}}, tmp_path / "bomb.pth")
    config = Config(model="BPR", dataset="ml-100k")
    trainer = Trainer(config, torch.nn.Linear(1, 1))
    with pytest.raises(UserError):
        trainer.resume_checkpoint(tmp_path / "bomb.pth")
    assert not (tmp_path / "made").exists()
