"""Every student with every teacher and every distiller: a cell runs a step, or is refused with what would do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import ModelType, init_seed

from recbole_kd.contracts import CAPABILITIES, DataView
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.model.build import build_model
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class, load_class
from recbole_kd.stages.needs import check_needs
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.cache import train_or_fetch
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.testing import known_answer_settings, write_known_answer
from recbole_kd.trainer.kd_trainer import make_trainer
from recbole_kd.verbs.train import run_recbole_kd

SIZE = 16
GENERAL = [name for name in MODELS if load_class(MODELS[name].path).type != ModelType.SEQUENTIAL]
#: What a model offers beside scores and ranks, which all have.
WITH_VECTORS = {
    *("BPR", "LightGCN", "SimpleX", "SimRecStudent", "SimRecTeacher", "ENMF", "LINE"),
    *("NGCF", "DGCF", "NCL", "SGL", "SpectralCF", "LightGCNVariant", "NGCFVariant"),
}
WITH_PAIRS = {*WITH_VECTORS, "NeuMF", "NNCF", "ConvNCF"}
#: Distiller -> models that can be the student, and the teacher; others need scores and ranks alone.
NEEDS = {
    **dict.fromkeys(("de", "fitnet"), (WITH_PAIRS, WITH_PAIRS)),
    **dict.fromkeys(("freqd", "phr", "ftd", "htd", "rkd"), (WITH_VECTORS, WITH_VECTORS)),
    "simrec": (WITH_VECTORS, WITH_VECTORS),
    "dkd": (set(), set()),  # of next items alone
}
#: Sizes that fit 48 users and 40 items, of which a user has observed 8.
OPTIONS: dict[str, dict[str, Any]] = {
    "rd": {"dynamic_samples": 15, "start_epoch": 0},
    "cd": {"pool": 20},
    "unkd": {"pool": 30, "groups": 2, "pairs": 4},
    "dcd": {"pool": 20, "interesting": 5, "uninteresting": 5},
    "rrd": {"pool": 10, "interesting": 5, "uninteresting": 5},
    "ir_rrd": {"pool": 10, "interesting": 5, "uninteresting": 5},
    "de": {"experts": 3},
    "htd": {"experts": 3},
    "simrec": {"triplets": 200},
}
#: What a model needs to fit the data, or to be trained within a second.
SETTINGS: dict[str, dict[str, Any]] = {
    "NeuMF": {"mf_embedding_size": SIZE, "mlp_embedding_size": SIZE, "mlp_hidden_size": [2 * SIZE, SIZE]},
    "NCL": {"num_clusters": 8, "embedding_size": SIZE},
    "ConvNCF": {"embedding_size": 64},  # its convolutions fit no smaller outer product
    "RaCT": {"pretrain_epochs": 1},
}
STUDENTS = ("BPR", "LightGCN", "SimpleX", "NeuMF", "SimRecStudent", "MultiVAE", "ENMF")


def config_of(model: str, data_path: Path) -> KDConfig:
    settings = SETTINGS.get(model, {"embedding_size": SIZE})
    common = known_answer_settings(data_path, distill=[], epochs=1)
    try:
        return KDConfig(model, "known-answer", config_dict={**common, **settings})
    except UserError:  # no embeddings, no size of them
        return KDConfig(model, "known-answer", config_dict=common)


def base_loss(model: Any) -> Callable[[Any], Any]:
    """The model's own, as its trainer asks for it."""
    if type(model).__name__ == "RecVAE":
        return partial(model.calculate_loss, encoder_flag=True)
    if type(model).__name__ == "NCL":
        model.e_step()
    loss: Callable[[Any], Any] = model.calculate_loss
    return loss


class Workshop:
    """The data, and each teacher trained once."""

    def __init__(self, data_path: Path) -> None:
        self.data_path = data_path
        config = config_of("BPR", data_path)
        init_seed(config["seed"], True)
        self.splits = Splits(config)
        self.data = DataView(self.splits.observed, epochs=4, seed=1, device=torch.device("cpu"))
        self._teachers: dict[str, FrozenTeacher] = {}

    def teacher(self, name: str) -> FrozenTeacher:
        if name not in self._teachers:
            trained = train_or_fetch(config_of(name, self.data_path), self.splits, "teacher")
            self._teachers[name] = FrozenTeacher(trained, self.splits, str(self.data_path / "ranks"))
        return self._teachers[name]


class Student:
    """A student with its trainer and the first batch of its loader."""

    def __init__(self, name: str, workshop: Workshop) -> None:
        self.workshop = workshop
        config = config_of(name, workshop.data_path)
        init_seed(config["seed"], True)
        self.interaction = next(iter(make_loaders(config, workshop.splits)[0]))
        self.model: Any = build_model(config, workshop.splits.train)
        self.view = ModelStudent(self.model)
        self.trainer = make_trainer(config, self.model, observed=workshop.splits.observed, step_context=self.view.step)

    def step(self, name: str, teacher: FrozenTeacher) -> str:
        """Runs a step of the distiller and says "", or gives the sentence that refuses it."""
        kind = distiller_class(name)
        options = kind.options_class.parse(name, OPTIONS.get(name, {}))
        try:
            check_needs(name, options, self.view, teacher)
            distiller = kind(options, self.view, teacher, self.workshop.data)
        except UserError as error:
            return str(error)
        self.model.train().zero_grad()
        self.trainer.distillers = torch.nn.ModuleDict({name: distiller})
        with self.view.step():
            distiller.begin_epoch(0)
        losses = self.trainer._joint_loss(base_loss(self.model))(self.interaction)
        own = [loss for term, loss in zip(self.trainer.loss_names, losses) if term.startswith(name)]
        assert own
        for loss in losses:
            assert torch.isfinite(loss).all(), (name, teacher.name)
        torch.stack(own).sum().backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        assert any(bool(gradient.abs().sum() > 0) for gradient in gradients), (name, teacher.name)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients), (name, teacher.name)
        return ""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(write_known_answer(tmp_path_factory.mktemp("matrix")))


def run_matrix(workshop: Workshop, students: Sequence[str], teachers: Sequence[str]) -> None:
    """Runs every cell, prints them as a table (x: a step was run, -: refused) and holds each against NEEDS."""
    wrong = []
    for student_name in students:
        student = Student(student_name, workshop)
        print(f"\nstudent {student_name}\n{'teacher':<14}" + " ".join(f"{name:>6}" for name in DISTILLERS))
        for teacher_name in teachers:
            cells = []
            for name in DISTILLERS:
                refusal = student.step(name, workshop.teacher(teacher_name))
                learns, teaches = NEEDS.get(name, (GENERAL, GENERAL))
                able = student_name in learns and teacher_name in teaches
                if name == "simrec" and able:  # it compares embeddings as they are
                    able = student.view.dimension == workshop.teacher(teacher_name).dimension
                if able == bool(refusal):
                    wrong.append((student_name, teacher_name, name, refusal))
                if refusal:
                    assert_is_a_refusal(refusal, student_name, teacher_name)
                cells.append("-" if refusal else "x")
            print(f"{teacher_name:<14}" + " ".join(f"{cell:>6}" for cell in cells))
    assert not wrong


def assert_is_a_refusal(sentence: str, student: str, teacher: str) -> None:
    """It says what is missing of whom, and what would do."""
    if "--teacher.embedding_size=" in sentence or "set --distill" in sentence:
        return
    assert any(text in sentence for text in CAPABILITIES.values()), sentence
    assert f"; {student} has none" in sentence or f"; {teacher} has none" in sentence, sentence
    assert "Use " in sentence
    assert re.search(r"another (student \(--model|teacher \(--teacher)=\w+", sentence), sentence


@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_with_teachers_of_each_kind(student: str, workshop: Workshop) -> None:
    run_matrix(workshop, [student], ["BPR", "NeuMF", "EASE", "MultiVAE"])


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_a_student_with_every_teacher(student: str, workshop: Workshop) -> None:
    run_matrix(workshop, [student], GENERAL)


@pytest.mark.slow
@pytest.mark.parametrize("student", [name for name in GENERAL if MODELS[name].gradient])
def test_every_model_trained_by_gradient_learns_from_scores_and_ranks(student: str, workshop: Workshop) -> None:
    run_matrix(workshop, [student], ["LightGCN", "SLIMElastic"])


@pytest.mark.parametrize("student", ["NCL", "RecVAE", "MultiVAE"])
def test_a_student_with_a_training_loop_of_its_own_is_taught(student: str, known_answer: Path) -> None:
    """NCL's trainer drops a loss at first, RecVAE's takes the model's own by turns: neither loses the distiller's."""
    rrd = {f"rrd.{name}": value for name, value in OPTIONS["rrd"].items()}
    settings = known_answer_settings(known_answer, **SETTINGS.get(student, {}), **rrd, epochs=2, baseline="none")
    found = []
    for weight in (0.0, 1.0, 1.0):
        taught = {"teacher": "EASE", "distill": "rrd", "rrd.weight": weight}
        result = run_recbole_kd(student, "known-answer", config_dict={**settings, **taught})
        found.append((result, load_checkpoint(result["checkpoint"])["state_dict"]))
    plain, once, again = (weights for _, weights in found)
    assert any(not torch.equal(value, plain[name]) for name, value in once.items()), "the distiller's loss was stepped"
    assert all(torch.equal(value, again[name]) for name, value in once.items()), "and is seeded"
    history = found[1][0]["loss_history"][1]
    assert "rrd" in history or student == "RecVAE"
    assert all(math.isfinite(value) for value in history.values())
