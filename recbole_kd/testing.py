"""Tests for any distiller: a data set with a known answer, and a conformance suite.

A distiller of ours or of another package is tested in three lines (see CONTRIBUTING.md)::

    class TestMine(DistillerConformance):
        distiller = MyDistiller
        options = {"weight": 0.1}

The suite needs pytest; nothing else in the package imports this module.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Optional

import pytest
import torch
from recbole.utils import init_seed
from torch import Tensor, nn

from recbole_kd.contracts import Batch, DataView, Distiller
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.cache import Trained
from recbole_kd.teacher.frozen import FrozenTeacher

USERS, ITEMS, TASTES = 48, 40, 4


def write_known_answer(folder: Path, name: str = "known-answer", seed: int = 0) -> Path:
    """Writes a data set whose answer is known: user u likes exactly the items i with i % 4 == u % 4.

    Four fifths of the liked pairs are observed in training; the rest is divided between validation and test. A model
    that has learned ranks held-out items first (recall@10 near 1). One that has not has a recall@10 of about 10 / 40.

    Args:
        folder: the folder for ``name/name.{train,valid,test}.inter``.

    Returns:
        The value for ``data_path``.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[tuple[int, int]]] = {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        liked = [item for item in range(ITEMS) if item % TASTES == user % TASTES]
        order = torch.randperm(len(liked), generator=generator).tolist()
        for place, index in enumerate(order):
            part = "train" if place < 8 else "valid" if place == 8 else "test"
            parts[part].append((user, liked[index]))
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    for part, pairs in parts.items():
        lines = ["user_id:token\titem_id:token", *(f"u{user}\ti{item}" for user, item in pairs)]
        (target / f"{name}.{part}.inter").write_text("\n".join(lines) + "\n")
    return folder


def known_answer_settings(data_path: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a quick, quiet run on :func:`write_known_answer`'s data."""
    return {
        "data_path": str(data_path),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "checkpoint_dir": str(data_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "topk": [10],
        "valid_metric": "NDCG@10",
        "train_batch_size": 128,
        "epochs": 3,
        **settings,
    }


class Bench:
    """A student and a frozen teacher on the known-answer data, without files."""

    def __init__(
        self,
        data_path: Path,
        student: str,
        teacher: str,
        size: int = 8,
        teacher_size: int = 8,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        settings = known_answer_settings(data_path, use_gpu=device != "cpu", distill=[])
        self.config = KDConfig(student, "known-answer", config_dict={**settings, **_sized(student, size)})
        init_seed(0, True)
        self.splits = Splits(self.config)
        config = KDConfig(teacher, "known-answer", config_dict={**settings, **_sized(teacher, teacher_size)})
        model = _typed(build_model(config, self.splits.train), dtype)
        with torch.no_grad():
            for parameter in model.parameters():  # gives the untrained teacher distinct scores
                parameter.mul_(3.0)
        trained = Trained(config, model, "none", False, {"test_result": {}})
        self.teacher = FrozenTeacher(trained, self.splits, str(data_path / "ranks"))
        self.model = _typed(build_model(self.config, self.splits.train), dtype)
        self.student = ModelStudent(self.model)
        self.data = DataView(self.splits.observed, epochs=4, seed=1, device=self.config["device"])

    def batch(self, size: int = 64) -> Batch:
        """The first `size` training pairs, with negatives."""
        users, items = self.splits.pairs(self.splits.train)
        negatives = torch.randint(
            1, self.splits.train.item_num, (len(users),), generator=torch.Generator().manual_seed(2)
        )
        users, items, negatives = (ids[:size].to(self.data.device) for ids in (users, items, negatives))
        return Batch(users, items, negatives)


def _typed(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in another floating-point type, including the graphs that RecBole's models keep."""
    for name, value in vars(model).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(model, name, value.to(dtype))
    return model.to(dtype)


def _sized(model: str, size: int) -> dict[str, Any]:
    if model == "NeuMF":
        sizes = {"mf_embedding_size": size, "mlp_embedding_size": size, "mlp_hidden_size": [2 * size, size]}
        return {**sizes, "dropout_prob": 0.0}  # what is compared must not differ by dropout
    return {"embedding_size": size}


class DistillerConformance:
    """Tests that every distiller must pass, on every backbone that it supports.

    Set :attr:`distiller`. Set :attr:`options` if the defaults do not fit 48 users and 40 items. Set :attr:`backbones`
    if it does not support BPR, LightGCN and SimRecStudent, and :attr:`teacher` if it cannot use a SimRecTeacher.
    """

    distiller: ClassVar[type[Distiller[Any]]]
    options: ClassVar[Mapping[str, Any]] = {}
    backbones: ClassVar[Sequence[str]] = ("BPR", "LightGCN", "SimRecStudent")
    teacher: ClassVar[str] = "SimRecTeacher"

    @pytest.fixture(scope="class")
    def data_path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_known_answer(tmp_path_factory.mktemp("conformance"))

    @pytest.fixture
    def bench(self, backbone: str, data_path: Path) -> Bench:
        return Bench(data_path, backbone, self.teacher)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "backbone" in metafunc.fixturenames:
            metafunc.parametrize("backbone", self.backbones)

    def build(self, bench: Bench, options: Optional[Mapping[str, Any]] = None) -> Distiller[Any]:
        """The distiller over the bench's student and teacher, in its first epoch."""
        values = dict(self.options if options is None else options)
        parsed = self.distiller.options_class.parse(self.distiller.name, values)
        built = self.distiller(parsed, bench.student, bench.teacher, bench.data).to(bench.data.device)
        built.begin_epoch(0)
        return built

    def losses(self, bench: Bench, distiller: Distiller[Any], batch: Batch) -> dict[str, Tensor]:
        """The losses of one step, as the trainer computes them."""
        with bench.student.step():
            return distiller(batch)

    def test_it_declares_what_it_needs(self, bench: Bench) -> None:
        needs = self.build(bench).options.needs
        assert needs.student <= bench.student.capabilities
        assert needs.teacher <= bench.teacher.capabilities

    def test_losses_are_finite_scalars(self, bench: Bench) -> None:
        losses = self.losses(bench, self.build(bench), bench.batch())
        assert losses
        for name, loss in losses.items():
            assert loss.dim() == 0, name
            assert torch.isfinite(loss), name

    def test_weight_0_is_no_distillation(self, bench: Bench) -> None:
        fields = [field.name for field in dataclasses.fields(self.distiller.options_class)]
        weights = [name for name in fields if name == "weight" or name.endswith("_weight")]
        distiller, batch = self.build(bench, {**self.options, **dict.fromkeys(weights, 0)}), bench.batch()
        assert distiller.options.is_off
        gradients = []
        for distilled in (False, True):
            bench.model.zero_grad()
            with bench.student.step():
                total = bench.student.scores(batch.users, batch.items).square().mean()
                if distilled:
                    total = total + sum(distiller(batch).values())
                total.backward()
            gradients.append([parameter.grad for parameter in bench.model.parameters()])
        for plain, taught in zip(*gradients):
            assert (plain is None or not plain.any()) if taught is None else torch.equal(taught, plain + 0 * taught)

    def test_in_float64_everything_is_float64(self, backbone: str, data_path: Path) -> None:
        bench = Bench(data_path, backbone, self.teacher, dtype=torch.float64)
        distiller = self.build(bench)
        tensors = {**self.losses(bench, distiller, bench.batch()), **dict(distiller.named_parameters())}
        assert {name for name, tensor in tensors.items() if tensor.dtype != torch.float64} == set()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no second device")
    def test_on_a_second_device_losses_are_the_same(self, backbone: str, bench: Bench, data_path: Path) -> None:
        here = self.losses(bench, self.build(bench), bench.batch())
        other = Bench(data_path, backbone, self.teacher, device="cuda")
        for name, loss in self.losses(other, self.build(other), other.batch()).items():
            assert loss.is_cuda, name
            torch.testing.assert_close(loss.cpu(), here[name], rtol=1e-3, atol=1e-6)

    def test_it_draws_from_its_own_generator_alone(self, bench: Bench) -> None:
        before = torch.get_rng_state()
        self.losses(bench, self.build(bench), bench.batch())
        assert torch.equal(torch.get_rng_state(), before), "draw from `self.generator`, parameters too"

    def test_the_loss_falls_on_data_with_a_known_answer(self, bench: Bench) -> None:
        distiller, batch = self.build(bench), bench.batch(256)
        optimizer = torch.optim.Adam([*bench.model.parameters(), *distiller.parameters()], lr=0.02)
        values = []
        for _ in range(60):
            optimizer.zero_grad()
            total = torch.stack(list(self.losses(bench, distiller, batch).values())).sum()
            total.backward()
            optimizer.step()
            values.append(float(total))
        assert sum(values[-10:]) < sum(values[:10])

    def test_the_teacher_is_unchanged_to_the_bit(self, bench: Bench) -> None:
        before = copy.deepcopy(bench.teacher.model.state_dict())
        distiller = self.build(bench)
        torch.stack(list(self.losses(bench, distiller, bench.batch()).values())).sum().backward()
        for name, value in bench.teacher.model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(parameter.grad is None for parameter in bench.teacher.model.parameters())
        assert not bench.teacher.model.training

    def test_gradients_reach_the_student_and_the_distiller_alone(self, bench: Bench) -> None:
        distiller = self.build(bench)
        torch.stack(list(self.losses(bench, distiller, bench.batch()).values())).sum().backward()
        reached = [parameter.grad for parameter in bench.model.parameters() if parameter.grad is not None]
        assert any(bool(gradient.abs().sum() > 0) for gradient in reached)
        mine = {id(parameter) for parameter in distiller.parameters()}
        assert not mine & {id(parameter) for parameter in bench.model.parameters()}
        assert not mine & {id(parameter) for parameter in bench.teacher.model.parameters()}

    def test_duplicating_the_batch_leaves_the_loss_unchanged(self, bench: Bench) -> None:
        batch = bench.batch()
        negatives = batch.negatives
        assert negatives is not None
        double = Batch(batch.users.repeat(2), batch.items.repeat(2), negatives.repeat(2))
        distiller = self.build(bench)
        state = distiller.get_extra_state()
        once = self.losses(bench, distiller, batch)
        distiller.set_extra_state(state)
        twice = self.losses(bench, distiller, double)
        for name, loss in once.items():
            torch.testing.assert_close(twice[name], loss, rtol=1e-4, atol=1e-6)

    def test_its_samples_are_seeded(self, bench: Bench) -> None:
        first = self.losses(bench, self.build(bench), bench.batch())
        second = self.losses(bench, self.build(bench), bench.batch())
        for name, loss in first.items():
            torch.testing.assert_close(second[name], loss)

    def test_its_state_is_restored(self, bench: Bench) -> None:
        distiller = self.build(bench)
        self.losses(bench, distiller, bench.batch())
        other = self.build(bench)
        other.load_state_dict(distiller.state_dict())
        for name, value in distiller.state_dict().items():
            if isinstance(value, Tensor):
                assert torch.equal(other.state_dict()[name], value), name


def write_known_sequences(folder: Path, name: str = "known-sequences", users: int = 48, items: int = 24) -> Path:
    """Writes sequences whose next item is known: after item i comes item (i + 1) % items, wherever a user begins.

    User u starts at item u % items and has 6 + u % 4 items, one in each time step. A sequential model that has learned
    ranks the next item first. One that has not ranks it first once in `items` times.

    Args:
        folder: the folder for ``name/name.inter`` with columns user_id, item_id and timestamp.

    Returns:
        The value for ``data_path``.
    """
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        lines += [f"u{user}\ti{(user + step) % items}\t{step}" for step in range(6 + user % 4)]
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.inter").write_text("\n".join(lines) + "\n")
    return folder


def known_sequences_settings(data_path: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a quick, quiet run of a sequential model on :func:`write_known_sequences`'s data."""
    return {
        "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "checkpoint_dir": str(data_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "topk": [1, 5],
        "valid_metric": "NDCG@5",
        "train_batch_size": 64,
        "MAX_ITEM_LIST_LENGTH": 6,
        "epochs": 3,
        **settings,
    }
