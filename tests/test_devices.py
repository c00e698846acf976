"""A step of every distiller, model and optimiser on a second device, traced on a machine without one (tests/away.py).

What is computed is what the CPU computes, and no tensor meets one of another device. What crosses between the two makes
a GPU wait: a step may do so where :data:`ALLOWED` says, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
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
from recbole_kd.distiller.rkd import RKDDistiller
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.registry import MODELS, distiller_class
from recbole_kd.testing import (
    Bench,
    DistillerConformance,
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.trainer.kd_trainer import make_trainer
from recbole_kd.trainer.learner import optimizer_factory
from tests.away import DEVICE, Away, Crossing, second_device
from tests.distiller import test_conformance
from tests.distiller.test_sequential import ABLE
from tests.sequential import SequentialBench
from tests.test_matrix import SETTINGS, base_loss

pytestmark = pytest.mark.skipif(
    not hasattr(torch._C, "_only_lift_cpu_tensors"), reason="the tracer needs what torch 2.3 does not have yet"
)

Named = dict[str, Tensor]

#: How often a step may cross between the devices, by kind and module.
ALLOWED = {
    # Distinct users, items or pairs of a batch: their number is a shape.
    ("read", "contracts"): 2,
    # Numbers come from a generator of the CPU, so that a run is the same on any device (CONTRIBUTING.md, 7).
    ("drawn", "distiller.simrec"): 3,
    ("drawn", "distiller.rkd"): 1,
    ("drawn", "distiller.cd"): 1,
    ("drawn", "distiller.base.experts"): 2,
    ("drawn", "distiller.base.projectors"): 8,
    ("drawn", "data.graphs"): 2,
    # How long rows of a graph are, each side's; with dropped edges how many are left, and whose neighbours they are.
    ("read", "data.graphs"): 10,
    # How long a sequence is, of each part of a batch.
    ("to the CPU", "model.trimming"): 1,
    # How many positions sequences have, or hidden ones; for whom negatives are drawn, which items they have, and the draws.
    ("read", "model.every_position"): 1,
    ("to the CPU", "model.every_position"): 1,
    ("drawn", "model.every_position"): 1,
    # What an autoencoder's users have; which pairs of a batch with labels are observed.
    ("read", "data.observed"): 1,
    ("read", "trainer.batches"): 2,
    # Of a batch of an evaluation, the items to find; which of them a user has twice; where they were ranked.
    ("to the device", "evaluation.collector"): 1,
    ("read", "evaluation.collector"): 1,
    ("to the CPU", "evaluation.collector"): 1,
    # Which way is the cheaper one depends on values: how large scores can be; whether each expert has been chosen.
    ("to the CPU", "loss.kernel.streamed"): 5,
    ("read", "distiller.base.experts"): 2,
    # Whether items come in runs, which is IR-RRD's case.
    ("read", "loss.kernel.gather"): 2,
    # Lists of sequences, which RRD draws on the CPU from what the teacher ranks, and which then go back.
    ("to the CPU", "distiller.rrd"): 1,
    ("to the device", "distiller.base.lists"): 1,
    # RD's random items of a step; which users have each, copied in the first step.
    ("drawn", "distiller.rd"): 1,
    ("to the device", "data.observed"): 2,
    # The sizes of the experts' groups, of users and of items, are read and their layout is made of them.
    ("to the CPU", "loss.kernel.layout"): 2,
    ("to the device", "loss.kernel.layout"): 2,
    ("read", "loss.kernel.layout"): 8,
}


def excess(crossed: list[Crossing]) -> dict[tuple[str, str], list[str]]:
    """What crosses more often than it may, with the lines that ask for it. RecBole's own code may as it likes."""
    places: dict[tuple[str, str], list[str]] = {}
    for kind, place in crossed:
        module, line = place.split(":")
        if not module.startswith("recbole."):
            places.setdefault((kind, module.removeprefix("recbole_kd.")), []).append(line)
    return {key: lines for key, lines in places.items() if len(lines) > ALLOWED.get(key, 0)}


@contextmanager
def run_there() -> Iterator[list[Crossing]]:
    """The second device is the one that runs are on."""
    chosen = KDConfig._init_device

    def there(config: KDConfig) -> None:
        chosen(config)
        config.final_config_dict["device"] = DEVICE

    with second_device() as crossed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(KDConfig, "_init_device", there)
        yield crossed


def assert_same(there: Named, here: Named) -> None:
    assert {name: type(value) for name, value in there.items()} == dict.fromkeys(here, Away)
    values = {name: value.here for name, value in there.items() if isinstance(value, Away)}
    torch.testing.assert_close(values, here, rtol=1e-4, atol=1e-6)


def gradients(*modules: nn.Module) -> Named:
    """Of what has one, by place and name."""
    named = [pair for module in modules for pair in module.named_parameters()]
    return {f"{place} {name}": one.grad for place, (name, one) in enumerate(named) if one.grad is not None}


# Distillers

SUITES = {name.removeprefix("Test"): suite for name, suite in vars(test_conformance).items() if name.startswith("Test")}


def general(suite: type[DistillerConformance], backbone: str, path: Path) -> tuple[Any, Distiller[Any]]:
    bench = Bench(write_known_answer(path), backbone, suite.teacher)
    return bench, suite().build(bench)


def sequential(name: str, backbone: str, path: Path) -> tuple[Any, Distiller[Any]]:
    bench = SequentialBench(write_known_sequences(path), backbone)
    kind = distiller_class(name, sequential=True)
    distiller = kind(kind.options_class.parse(name, ABLE[name]), bench.student, bench.teacher, bench.data)
    return bench, distiller.to(bench.data.device)


def distil(bench: Any, distiller: Distiller[Any], batch: Batch) -> Named:
    """A step's losses and gradients."""
    distiller.zero_grad()
    bench.model.zero_grad()
    with bench.student.step():
        losses = distiller(batch)
    torch.stack(list(losses.values())).sum().backward()
    return {**losses, **gradients(bench.model, distiller)}


def assert_it_distils_there(build: Callable[[], tuple[Any, Distiller[Any]]]) -> None:
    """Steps of the first epoch, and of the last one, when experts are chosen for good."""
    found: dict[str, list[Named]] = {"cpu": [], "lazy": []}
    for device, steps in found.items():
        with run_there() if device == "lazy" else nullcontext([]) as crossed:
            bench, distiller = build()
            for epoch in (0, bench.data.epochs - 1):
                distiller.begin_epoch(epoch)
                batch = bench.batch()
                crossed.clear()
                steps.append(distil(bench, distiller, batch))
                assert not excess(crossed)
    for there, here in zip(found["lazy"], found["cpu"]):
        assert_same(there, here)


def case(fast: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        case(place == 0 or (name, backbone) == ("KD", "LightGCN"), name, backbone)
        for name, suite in SUITES.items()
        for place, backbone in enumerate(suite.backbones)
    ],
)
def test_a_distiller(name: str, backbone: str, tmp_path: Path) -> None:
    assert_it_distils_there(partial(general, SUITES[name], backbone, tmp_path))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        case(backbone == "STOSA" and name in ("kd", "dkd", "rrd", "fitnet"), name, backbone)
        for name in ABLE
        for backbone in ("STOSA", "SASRec")
    ],
)
def test_a_distiller_of_sequences(name: str, backbone: str, tmp_path: Path) -> None:
    assert_it_distils_there(partial(sequential, name, backbone, tmp_path))


class _Backwards(torch.autograd.Function):
    """Its gradient meets a constant that was made on the CPU."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 1

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return (gradient[0] * torch.ones(2)).mean()


def _with_a_graph(loss: Tensor) -> Tensor:
    return (torch.eye(2).to_sparse_csr() @ loss.expand(2, 1)).mean()


#: How a distiller's loss is changed -> what is then found.
MISTAKES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a constant of the CPU": (lambda loss: (loss * torch.ones(2)).mean(), "same device"),
    "a constant of the CPU, in the backward pass": (_Backwards.apply, "same device"),
    "a graph that was left on the CPU": (_with_a_graph, "same device"),
    "a constant that each step moves": (
        lambda loss: loss * torch.ones(2).to(loss.device)[0],
        "'to the device', 'elsewhere'",
    ),
    "an index of the CPU": (lambda loss: loss.view(1)[torch.tensor([0])].sum(), "'to the device', 'elsewhere'"),
    "a constant that each step makes of a list": (
        lambda loss: loss * torch.tensor([1.0, 2.0], device=loss.device)[0],
        "'to the device', 'elsewhere'",
    ),
    "a value that is read": (lambda loss: loss * loss.item(), "'read', 'elsewhere'"),
    "a value that decides": (lambda loss: loss if loss > 0 else -loss, "'read', 'elsewhere'"),
    "a shape that depends on values": (lambda loss: loss * len(loss.view(1).nonzero()), "'read', 'elsewhere'"),
    "a hidden .cpu()": (lambda loss: loss * float(loss.detach().cpu()), "'to the CPU', 'elsewhere'"),
    "a result of the CPU": (lambda loss: loss.cpu(), "'to the CPU', 'elsewhere'"),
    "numpy": (lambda loss: loss * float(loss.detach().numpy()), "numpy"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, tmp_path: Path) -> None:
    change, words = MISTAKES[mistake]

    class Careless(RKDDistiller):
        def forward(self, batch: Batch) -> Named:
            return {name: change(loss) for name, loss in super().forward(batch).items()}

    suite = type("Careless", (DistillerConformance,), {"distiller": Careless})
    with pytest.raises((AssertionError, RuntimeError, TypeError), match=words):
        assert_it_distils_there(partial(general, suite, "BPR", tmp_path))


def test_what_is_drawn_on_the_cpu_is_told_from_a_constant() -> None:
    with second_device() as crossed:
        drawn = torch.randperm(5, generator=torch.Generator().manual_seed(0))[:2]
        (drawn + 1).to(DEVICE)
        torch.arange(5).to(DEVICE)
    assert [crossing.kind for crossing in crossed] == ["drawn", "to the device"]


# Models and optimisers


class Training:
    """A model with its trainer, a batch of its loader, and the users that it is validated on."""

    def __init__(self, name: str, path: Path, **settings: Any) -> None:
        known = known_sequences_settings if MODELS[name].sequential else known_answer_settings
        dataset = "known-sequences" if MODELS[name].sequential else "known-answer"
        config = KDConfig(name, dataset, config_dict={**known(path), "distill": [], **settings})
        init_seed(0, True)
        splits = Splits(config)
        train, self.valid, _ = make_loaders(config, splits)
        self.batch: Interaction = next(iter(train)).to(config["device"])
        self.model: Any = build_model(config, splits.train)
        self.trainer = make_trainer(
            config,
            self.model,
            observed=splits.observed,
            optimizer_factory=optimizer_factory(config, splits, self.model),
            fused=False,  # for CPUs and GPUs
        )

    def step(self) -> Named:
        """The loss, the gradients and the weights after the optimiser's step."""
        init_seed(0, True)
        self.model.train()
        self.trainer.optimizer.zero_grad()
        losses = self.trainer._joint_loss(base_loss(self.model))(self.batch)
        loss = torch.stack([each.view(()) for each in losses]).sum()
        loss.backward()
        found = gradients(self.model)
        self.trainer.optimizer.step()
        return {"loss": loss, **found, **{name: value.clone() for name, value in self.model.named_parameters()}}

    @torch.no_grad()
    def scores(self) -> Named:
        """Scores as an evaluation asks for them."""
        self.model.eval()
        try:
            return {"scores": self.model.full_sort_predict(self.batch)}
        except NotImplementedError:  # RecBole then asks for all pairs
            return {"scores": self.model.predict(self.batch)}


def assert_it_trains_there(name: str, path: Path, **settings: Any) -> None:
    write = write_known_sequences if MODELS[name].sequential else write_known_answer
    here = Training(name, write(path), **settings)
    expected = [here.step(), here.step(), here.scores()]
    with run_there() as crossed:
        there = Training(name, path, **settings)
        found = [there.step()]  # it may move what is kept from then on
        for next_one in (there.step, there.scores):
            crossed.clear()
            found.append(next_one())
            assert not excess(crossed)
    for pair in zip(found, expected):
        assert_same(*pair)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SimRecStudent", {}),
        ("SimRecTeacher", {}),
        ("STOSA", {"n_layers": 1}),
        ("STOSA", {"n_layers": 1, "trim_padding": True}),
        ("STOSA", {"n_layers": 1, "every_position": True}),
        ("SASRec", {"n_layers": 1, "every_position": True}),
        ("BERT4Rec", {"n_layers": 1, "every_position": True, "trim_padding": True}),
        ("NeuMF", {"mlp_hidden_size": []}),
    ],
)
def test_a_model_or_objective_of_ours(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_it_trains_there(name, tmp_path, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.gradient])
def test_every_model(name: str, tmp_path: Path) -> None:
    assert_it_trains_there(name, tmp_path, **SETTINGS.get(name, {}))


@pytest.mark.parametrize("name", ["BPR", "NeuMF", "SASRec"])
def test_an_evaluation(name: str, tmp_path: Path) -> None:
    (write_known_sequences if MODELS[name].sequential else write_known_answer)(tmp_path)
    here = Training(name, tmp_path)
    with run_there() as crossed:
        there = Training(name, tmp_path)
        crossed.clear()
        found = there.trainer.evaluate(there.valid, load_best_model=False)
        assert not excess(crossed)
    assert found == here.trainer.evaluate(here.valid, load_best_model=False)


# Without sparse_adam, which needs sparse gradients, and lazy_adam.
@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
def test_an_optimiser(learner: str, tmp_path: Path) -> None:
    assert_it_trains_there("BPR", tmp_path, learner=learner, weight_decay=0.01)


@pytest.mark.parametrize("learner", ["sevo_sgd", "sevo_adam", "sevo_adamw"])
def test_an_optimiser_that_smooths(learner: str, tmp_path: Path) -> None:
    assert_it_trains_there("BPR", tmp_path, learner=learner, weight_decay=0.01, **{"sevo.graph": "bipartite"})


def test_an_optimiser_that_smooths_items_alone(tmp_path: Path) -> None:
    sevo = {"sevo.graph": "consecutive", "sevo.iterative": True}
    assert_it_trains_there("SASRec", tmp_path, n_layers=1, learner="sevo_adamw", **sevo)
