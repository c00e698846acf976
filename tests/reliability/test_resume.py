"""Stopped and gone on with, every trainable model ends with the bits of a run never stopped.

One table: each model that `recbole-kd list` names, alone, distilled, and as the teacher of another, stopped at three
moments. A few models that keep state outside their parameters are tried whenever the tests run; all of them with
``pytest -m slow tests/reliability/test_resume.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from recbole.utils import ModelType

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.registry import MODELS, load_class
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.trainer.kd_trainer import KDMixin
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL
from tests.test_matrix import SETTINGS

EPOCHS = 4
#: Epoch and step in which a run is stopped: after the first epoch, within one, after the last but one.
MOMENTS = {"first": (1, 0), "middle": (2, 1), "last": (EPOCHS - 1, 0)}
#: They compute, and train nothing.
CLOSED = {"ADMMSLIM", "AsymKNN", "EASE", "ItemKNN", "NCEPLRec", "Pop", "Random", "SLIMElastic"}
TRAINABLE = [name for name in MODELS if name not in CLOSED]
#: A counter; a history of losses; two optimisers that are swapped; a shuffled list; pretraining; a cache of its weights.
REPRESENTATIVES = ["MultiVAE", "DiffRec", "RecVAE", "LINE", "RaCT", "WMF"]
WAYS = ["plain", "distilled", "teacher"]
#: What keeps its state where nothing shows in a run of four epochs.
OWN: dict[str, dict[str, Any]] = {
    "RaCT": {"pretrain_epochs": EPOCHS, "save_step": 100},
    "NCL": {"num_clusters": 8, "embedding_size": 16, "m_step": 3, "warm_up_step": 1},
    "DiffRec": {"history_num_per_term": 1, "steps": 2, "reweight": True},
    "LDiffRec": {"history_num_per_term": 1, "steps": 2, "reweight": True, "n_cate": 1},
}


class Stopped(BaseException):
    """As a kill: nobody catches it, and nothing is written after it."""


def is_sequential(model: str) -> bool:
    return bool(load_class(MODELS[model].path).type == ModelType.SEQUENTIAL)


class Bench:
    """A data set in a folder, and runs on it, whose last weights are looked at."""

    def __init__(self, folder: Path, model: str, way: str) -> None:
        self.model, self.way, self.folder = model, way, folder
        self.sequential = is_sequential(model)
        (write_known_sequences if self.sequential else write_known_answer)(folder / "data")

    def settings(self, folder: str, **more: Any) -> dict[str, Any]:
        make = known_sequences_settings if self.sequential else known_answer_settings
        sizes = SMALL.get(self.model) or {**SETTINGS.get(self.model, {}), **OWN.get(self.model, {})}
        other = "SASRec" if self.sequential else "BPR"
        own: dict[str, Any] = {"epochs": EPOCHS, **sizes, "distill": []}
        if self.way == "distilled":
            lists = {"pool": 8, "interesting": 4, "uninteresting": 4}
            taught = {f"rrd.{name}": value for name, value in lists.items()}
            own = {**own, "distill": ["rrd"], "teacher.model": other, "teacher.epochs": 1, "baseline": "none", **taught}
        elif self.way == "teacher":
            teacher = {f"teacher.{name}": value for name, value in own.items() if name != "distill"}
            own = {
                **teacher,
                "teacher.train_batch_size": 16,
                "teacher.model": self.model,
                "distill": ["kd"],
                "kd.items": 8,
                "epochs": 1,
                "baseline": "none",
            }
        own = {**own, "model": other if self.way == "teacher" else self.model, **more}
        name = "known-sequences" if self.sequential else "known-answer"
        places = {"checkpoint_dir": str(self.folder / folder), "dataset": name, "stopping_step": 100}
        return make(self.folder / "data", **own, **places, train_batch_size=16)

    def run(self, folder: str, moment: tuple[int, int] | None = None, **more: Any) -> dict[str, Any]:
        """The weights, optimisers and losses at the end, or `Stopped` at a moment."""
        with watched("teacher" if self.way == "teacher" else self.model, moment) as ends:
            run_recbole_kd(config_dict=self.settings(folder, **more))
        return ends[-1]


@contextmanager
def watched(role: str, moment: tuple[int, int] | None) -> Iterator[list[dict[str, Any]]]:
    """Stops the training of one model at a moment, and notes how it ends."""
    ends: list[dict[str, Any]] = []
    steps: Counter[int] = Counter()
    own_check, own_fit = KDMixin._check_nan, KDMixin.fit

    def concerned(trainer: Any) -> bool:
        is_teacher = "teachers" in Path(trainer.saved_model_file).parts
        return is_teacher == (role == "teacher")

    def check(self: Any, loss: Any) -> None:
        if concerned(self) and moment is not None:
            if (self._epoch, steps[self._epoch]) == moment:
                raise Stopped
            steps[self._epoch] += 1
        own_check(self, loss)

    def fit(self: Any, *arguments: Any, **named: Any) -> Any:
        found = own_fit(self, *arguments, **named)
        if concerned(self):
            losses = {"losses": self.loss_history, "valid": self.valid_history}
            weights = {
                "weights": digest(dict(self.model.state_dict())),
                "optimizer": digest(self.optimizer.state_dict()),
            }
            ends.append({**losses, **weights, "distillers": digest(dict(self.distillers.state_dict()))})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KDMixin, "_check_nan", check)
        patch.setattr(KDMixin, "fit", fit)
        yield ends


def ends_alike(tmp_path: Path, model: str, way: str, moments: dict[str, tuple[int, int]]) -> None:
    bench = Bench(tmp_path, model, way)
    expected = bench.run("whole")
    assert len(expected["losses"]) == EPOCHS
    for name, moment in moments.items():
        with pytest.raises(Stopped):
            bench.run(name, moment)
        last = [path for path in (tmp_path / name).rglob("*-last.pth") if way == "teacher" or path.parent.name == name]
        assert len(last) == 1
        assert load_checkpoint(last[0])["epoch"] == moment[0] - 1
        again = {} if way == "teacher" else {"resume": str(last[0])}
        assert bench.run(name, **again) == expected, name


@pytest.mark.parametrize("model", REPRESENTATIVES)
def test_state_outside_of_parameters_goes_on(model: str, tmp_path: Path) -> None:
    ends_alike(tmp_path, model, "plain", {"middle": MOMENTS["middle"]})


def test_a_model_with_passes_of_its_own_goes_on_distilled(tmp_path: Path) -> None:
    """RecVAE trains its encoder, then its decoder. What adds the distillers to both is no state of the model."""
    ends_alike(tmp_path, "RecVAE", "distilled", {"middle": MOMENTS["middle"]})


def test_an_interrupted_teacher_goes_on(tmp_path: Path) -> None:
    ends_alike(tmp_path, "MultiVAE", "teacher", {"middle": MOMENTS["middle"]})


def test_the_critic_of_ract_ranks_among_items_that_there_are(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "RaCT", "plain")
    bench.run("first")
    actor = next((tmp_path / "first").glob("*-last.pth"))
    with pytest.raises(UserError, match="--metrics_k=41 is more than the 40 items of the data; lower it"):
        bench.run("critic", metrics_k=41, train_stage="critic_pretrain", pre_model_path=str(actor))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", TRAINABLE)
def test_every_model_goes_on(model: str, way: str, tmp_path: Path) -> None:
    if model == "NCL":
        pytest.importorskip("faiss")
    ends_alike(tmp_path, model, way, MOMENTS)
