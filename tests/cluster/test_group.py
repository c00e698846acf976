"""Two processes compute what one computes: gradients, metrics, files; and one that dies ends the other."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import nn

from recbole_kd.cluster.group import ALONE, Group, joined, lost, processes_around, take_own_gpu
from recbole_kd.cluster.launch import together
from recbole_kd.contracts import Share
from recbole_kd.data.loaders import FastFullSortEvalDataLoader
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import PartOfBatches
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import shared_teacher
from recbole_kd.testing import known_answer_settings
from recbole_kd.trainer.shared import SharedMixin, _SharedBatches, divides_steps, share_of_steps

#: What is trained: methods whose distillers share, and ones that a process computes whole.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SimRec": ("SimRecStudent", {"simrec.triplets": 101}),
    "SimRec on tables": ("SimRecStudent", {"simrec.triplets": 101, "simrec.space": "input"}),
    "DE-RRD": (
        "DERRDStudent",
        {"rrd.interesting": 5, "rrd.uninteresting": 5, "rrd.pool": 8, "rrd.weight": 0.5, "de.experts": 3},
    ),
    "FreqD": ("FreqDStudent", {}),
    "SEvo": ("BPR", {"learner": "sevo_adamw", "sevo.graph": "bipartite"}),
    "a graph student, distillers that do not share": (
        "SimRecTeacher",
        {"distill": "ftd,rkd,htd", "teacher": "BPR", "htd.experts": 3},
    ),
    "a base loss with dropout, in one process": (
        "NeuMF",
        {
            "distill": "cd,rd,rrd",
            "teacher": "BPR",
            "cd.pool": 20,
            "rrd.interesting": 5,
            "rrd.uninteresting": 5,
            "rrd.pool": 8,
            "rd.start_epoch": 0,
            "rd.dynamic_samples": 9,
            "dropout_prob": 0.2,
            "embedding_size": None,
        },
    ),
    "a last batch of one row": ("BPR", {"distill": [], "train_batch_size": 383, "epochs": 3}),
    "clipped": ("FreqDStudent", {"clip_grad_norm": {"max_norm": 0.01}}),
}
SMALL = {"epochs": 2, "eval_batch_size": 41 * 7, "embedding_size": 8, "train_batch_size": 100, "learning_rate": 0.01}


def trained(data_path: Path, folder: str, group: Group) -> dict[str, Any]:
    """Two epochs of every method: the gradients of each step, and all that is told of a run."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that only an error in what is computed can show
    logging.disable(logging.CRITICAL)
    results: dict[str, Any] = {}
    scored = []
    collate = FastFullSortEvalDataLoader.collate_fn
    FastFullSortEvalDataLoader.collate_fn = lambda self, index: (scored.append(list(index)), collate(self, index))[1]
    try:
        for method, (model, settings) in METHODS.items():
            own = group if group is ALONE else dataclasses.replace(group, store=dist.PrefixStore(method, group.store))
            given = {**SMALL, "baseline": "none", "teacher.epochs": 1, "teacher.embedding_size": 8, **settings}
            if model == "BPR" or given.get("distill") == []:
                given = {key: value for key, value in given.items() if not key.startswith("teacher.")}
            given = {key: value for key, value in given.items() if value is not None}
            given["checkpoint_dir"] = str(data_path / folder)
            experiment = Experiment.of(model, "known-answer", given=known_answer_settings(data_path, **given))
            splits = load_splits(experiment.settings)
            teacher = shared_teacher(experiment, splits, own) if experiment.teachers else None
            _, trainer, (train, valid, test) = build_student(experiment, splits, teacher, own)
            steps = _noted(trainer)
            scored.clear()
            trainer.fit(train, valid, saved=True, show_progress=False)
            trainer.load_best()
            results[method] = {
                "steps": steps,
                "losses": trainer.loss_history,
                "valid": trainer.valid_history,
                "best": (trainer.best_epoch, dict(trainer.best_valid_result)),
                "test": dict(trainer.evaluate(test, load_best_model=False)),
                "users": trainer.eval_collector.per_user()[0].tolist(),
                "batches scored here": len(scored),
                "file": trainer.saved_model_file,
            }
    finally:
        torch.set_default_dtype(torch.float32)
        logging.disable(logging.NOTSET)
        FastFullSortEvalDataLoader.collate_fn = collate
    return results


def _noted(trainer: Any) -> list[dict[str, np.ndarray]]:
    """The gradients of every step of a trainer, as it will have taken them."""
    steps: list[dict[str, np.ndarray]] = []
    named = {**dict(trainer.model.named_parameters()), **dict(trainer.distillers.named_parameters(prefix="kd"))}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: steps.append(
            {name: value.grad.numpy().copy() for name, value in named.items() if value.grad is not None}
        )
    )
    return steps


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """What one process computes, what two compute, and the folder of their files."""
    from recbole_kd.testing import write_known_answer

    path = write_known_answer(tmp_path_factory.mktemp("distributed"))
    before = Path.cwd()
    os.chdir(path)
    try:
        return trained(path, "one", ALONE), together(2, "stamp", trained, path, "two", restarts=0), path
    finally:
        os.chdir(before)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradients_of_two_processes_are_those_of_one(method: str, both: Any) -> None:
    one, two = (result[method]["steps"] for result in both[:2])
    assert len(one) == len(two) > 4
    for step, (expected, found) in enumerate(zip(one, two)):
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-7, atol=1e-12, err_msg=f"{name}, step {step}")


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_equal_to_the_last_digit(method: str, both: Any) -> None:
    one, two = (result[method] for result in both[:2])
    assert two["test"] == one["test"]
    assert two["valid"] == one["valid"]
    assert two["best"] == one["best"]
    assert two["users"] == one["users"], "each user's metrics come in the order of one process"
    assert 0 < two["batches scored here"] < one["batches scored here"], "each process scores its batches alone"


@pytest.mark.parametrize("method", METHODS)
def test_logged_losses_are_of_the_whole_batch(method: str, both: Any) -> None:
    one, two = (result[method]["losses"] for result in both[:2])
    assert one.keys() == two.keys()
    for epoch, losses in one.items():
        assert list(two[epoch]) == list(losses)
        for name, value in losses.items():
            assert two[epoch][name] == pytest.approx(value, rel=1e-6), name


def test_process_0_alone_writes(both: Any) -> None:
    path = both[2]
    for folder, results in (("one", both[0]), ("two", both[1])):
        students = {Path(result["file"]).name for result in results.values()}
        found = {file.name for file in (path / folder).glob("*.pth")}
        assert found == students | {f"{name[:-4]}-last.pth" for name in students}
    names = [sorted(file.name for file in (path / folder / "teachers").iterdir()) for folder in ("one", "two")]
    assert names[0] == names[1]
    lists = [
        sorted(file.name.partition("-")[2] for file in (path / folder / "ranks").iterdir()) for folder in ("one", "two")
    ]
    assert lists[0] == lists[1], "one of each length"


def test_a_checkpoint_of_two_processes_is_that_of_one(both: Any) -> None:
    # FTD and RKD live in one process each: what their owner holds is in process 0's file.
    for method in ("DE-RRD", "a graph student, distillers that do not share"):
        one, two = (load_checkpoint(result[method]["file"].replace(".pth", "-last.pth")) for result in both[:2])
        for key in ("epoch", "cur_step", "best_valid_score"):
            assert one[key] == two[key]
        for key in ("random", "loader"):
            _assert_close(one[key], two[key])
        assert one["distillers"].keys() == two["distillers"].keys()
        for name, value in one["distillers"].items():
            _assert_close(value, two["distillers"][name])


def _assert_close(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            _assert_close(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-10)
    else:
        assert one == two


# One of several processes, whose group is a list of what it asks for


class Asked:
    """A group that notes what it is asked for; process 0 sends `sent`."""

    def __init__(self, rank: int, sent: Any = None) -> None:
        self.rank, self.count, self.is_first, self.sent = rank, 2, rank == 0, sent
        self.aligned: list[torch.Tensor] = []

    def plain(self, value: Any, source: int = 0) -> Any:
        return value if self.rank == source else self.sent

    def tensors(self, values: Any, source: int = 0) -> Any:
        return values if self.rank == source else self.sent

    def align(self, tensors: Any, source: int = 0) -> None:
        self.aligned += tensors


class Alone:
    """What :class:`SharedMixin` adds to: a trainer of one process, which notes how it is called."""

    def __init__(self, config: Any, model: nn.Module, distillers: dict[str, nn.Module]) -> None:
        self.config, self.model, self.distillers = config, model, nn.ModuleDict(distillers)
        self.logger, self.saved_model_file, self.called = logging.getLogger(), "own.pth", []

    def _joint_loss(self, base_loss: Any) -> Any:
        return "summed over processes", base_loss

    def _train_epoch(self, batches: Any, epoch: int, loss: Any, show_progress: bool) -> None:
        self.called.append((loss, show_progress))

    def evaluate(self, data: Any, *arguments: Any) -> Any:
        self.called.append((self.eval_collector.shared, data))
        if self.model.broken:
            raise RuntimeError("interrupted")
        return "own result"


class Together(SharedMixin, Alone):
    """One of several."""


def a_model(name: str, broken: bool = False, **attributes: Any) -> nn.Module:
    """An architecture, as far as its name decides how a step is divided."""
    model: nn.Module = type(name, (nn.Module,), {"broken": broken, **attributes})()
    model.weight = nn.Parameter(torch.ones(1))
    model.register_buffer("mean", torch.ones(2))
    return model


def one_of_two(rank: int, model: nn.Module, sent: Any = None, **distillers: nn.Module) -> Together:
    known = known_answer_settings(Path())
    config = KDConfig("BPR", "known-answer", config_dict=known)
    return Together(config, model, distillers, group=Asked(rank, sent))


@pytest.mark.parametrize(
    ("name", "divides"),
    [("BPR", True), ("LightGCN", True), ("SimRecStudent", True), ("NeuMF", False), ("SGL", False), ("MultiVAE", False)],
)
def test_steps_of_models_without_dropout_are_divided(name: str, divides: bool) -> None:
    group = Group(1, 2)
    assert divides_steps(a_model(name)) == divides
    assert share_of_steps(a_model(name), group) == (group if divides else Share())


def test_distillers_that_do_not_share_are_computed_in_turns() -> None:
    """Process 0 begins, or has the base loss if that is not divided."""
    whole = {name: nn.Linear(1, 1) for name in ("ftd", "rkd", "htd")}
    divided = nn.Linear(1, 1)
    divided.shares = True
    for model, owners in (("BPR", [0, 1, 0]), ("LightGCN", [1, 0, 1]), ("NeuMF", [0, 0, 0, 0])):
        trainer = one_of_two(1, a_model(model), "sent.pth", rrd=divided, **whole)
        assert list(trainer._owners.values()) == owners
        assert sorted(trainer._computed()) == sorted(
            name for name in trainer.distillers if trainer._owners.get(name, 1) == 1
        )


def test_who_evaluates_is_said_where_process_0_computes_the_steps(caplog: pytest.LogCaptureFixture) -> None:
    one_of_two(0, a_model("NeuMF"))
    one_of_two(0, a_model("GRU4Rec", type=ModelType.SEQUENTIAL))
    general, sequential = (one.message for one in caplog.records)
    assert general.endswith("process 0 computes the steps. Evaluation is divided among all processes.")
    assert sequential.endswith("process 0 computes the steps. It also evaluates.")


def test_losses_come_in_the_order_of_one_process() -> None:
    trainer = one_of_two(0, a_model("BPR"), rrd=nn.Linear(1, 1), de=nn.Linear(1, 1))
    assert sorted(["de.user", "rrd", "rec2", "de.item", "rec"], key=trainer._place) == [
        *("rec2", "rec"),
        "rrd",
        *("de.user", "de.item"),
    ]


def test_process_0_names_the_file() -> None:
    assert one_of_two(0, a_model("BPR")).saved_model_file == "own.pth"
    assert one_of_two(1, a_model("BPR"), "sent.pth").saved_model_file == "sent.pth"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_begins_with_equal_replicas_and_process_0_shows_it(rank: int) -> None:
    trainer = one_of_two(rank, a_model("BPR"), "sent.pth", ftd=nn.Linear(1, 1, bias=False))
    trainer._train_epoch([], 0, show_progress=True)
    (weight, mean, own) = trainer.group.aligned
    assert (weight is trainer.model.weight, mean is trainer.model.mean) == (True, True)
    assert own is trainer.distillers["ftd"].weight
    assert trainer.called == [(None, rank == 0)]


def test_the_loss_is_a_sum_over_processes_without_distillers_too() -> None:
    """With distillers, a trainer of one process joins the losses by itself."""
    for distillers, loss in (({}, ("summed over processes", "base")), ({"ftd": nn.Linear(1, 1)}, "base")):
        trainer = one_of_two(0, a_model("BPR"), **distillers)
        trainer._train_epoch([], 0, "base")
        assert trainer.called == [(loss, False)]


class Batches:
    """A loader that draws a random number after its last batch."""

    def __init__(self, batches: int) -> None:
        self.batches, self.ended = batches, False

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Interaction]:
        for number in range(self.batches):
            yield Interaction({"user_id": torch.tensor([number])})
        self.ended = True


def test_process_0_draws_every_batch_to_the_loaders_end() -> None:
    loader = Batches(2)
    first = [batch["user_id"].tolist() for batch in _SharedBatches(loader, Asked(0))]
    assert (first, loader.ended) == ([[0], [1]], True)
    other = _SharedBatches(Batches(2), Asked(1, {"user_id": torch.tensor([7])}))
    assert [batch["user_id"].tolist() for batch in other] == [[7], [7]]
    with pytest.raises(AssertionError, match="more batches than its length"):
        list(_SharedBatches(Batches(3), Asked(0)))


class Ranked(FastFullSortEvalDataLoader):
    """A loader of seven users, three at a time."""

    def __init__(self, is_sequential: bool) -> None:
        self.is_sequential, self.sample_size, self.step = is_sequential, 7, 3


def test_a_process_without_a_batch_takes_part_in_an_evaluation() -> None:
    """RecBole's trainer skips a loader that is false."""
    parts = [PartOfBatches(Ranked(is_sequential=False), Share(rank, 4)) for rank in range(4)]
    assert [len(part) for part in parts] == [0, 1, 1, 1]
    assert all(parts)


@pytest.mark.parametrize("broken", [False, True])
def test_a_general_models_rankings_are_divided(broken: bool) -> None:
    group = Share(1, 2)
    trainer = one_of_two(1, a_model("BPR", broken), "sent.pth")
    trainer.group.part = group.part
    with pytest.raises(RuntimeError, match="interrupted") if broken else contextlib.nullcontext():
        assert trainer.evaluate(Ranked(is_sequential=False)) == "own result"
    ((shared, data),) = trainer.called
    assert shared
    assert len(data) == 2, "of three batches"
    assert not trainer.eval_collector.shared, "the next evaluation may be of another kind"


@pytest.mark.parametrize("data", [Ranked(is_sequential=True), "sampled candidates"])
def test_every_other_evaluation_is_process_0s_and_told_to_all(data: Any) -> None:
    first, second = one_of_two(0, a_model("BPR")), one_of_two(1, a_model("BPR"), "result of process 0")
    assert first.evaluate(data) == "own result"
    assert first.called == [(False, data)]
    assert second.evaluate(data) == "result of process 0"
    assert second.called == []


def test_parts_are_all_and_disjoint() -> None:
    entries = torch.arange(11)
    for count in (1, 2, 3, 16):
        parts = [Share(rank, count).of(entries) for rank in range(count)]
        assert torch.cat([own for own, _ in parts]).equal(entries)
        assert sum(fraction for _, fraction in parts) == pytest.approx(1)
        assert max(len(own) for own, _ in parts) - min(len(own) for own, _ in parts) <= 1
    assert Share().of(entries)[0] is not None
    assert torch.equal(Share().sum(entries), entries)


def test_processes_of_a_machine_take_different_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    take_own_gpu(torch.device("cuda"))  # one process: torch's usual device
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        take_own_gpu(torch.device("cpu"))
        take_own_gpu(torch.device("cuda"))
    assert taken == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError, match="Process 3 of this machine has no GPU of its own, because torch sees 2; start fewer"
    ):
        take_own_gpu(torch.device("cuda"))


def test_torchruns_variables_and_nproc_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's scheduler sets it alone
    assert processes_around() == 1
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes_around() == processes_around(nproc=2) == 4
    with pytest.raises(UserError, match=r"torchrun started 2 processes .* but --nproc=3; leave --nproc out"):
        processes_around(nproc=3)


class Told:
    """A store that says what is asked of it, and is late with its first answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def wait(self, keys: list[str], timeout: Any) -> None:
        self.asked.append(f"wait for {keys[0]}")
        if len(self.asked) == 1:
            raise RuntimeError("Socket Timeout")

    def get(self, key: str) -> bytes:
        return b"done"

    def set(self, key: str, value: str) -> None:
        self.asked.append(f"set {key}")


def test_other_processes_wait_for_the_first_as_long_as_it_takes() -> None:
    second, first = Told(), Told()
    with Group(1, 2, second).first("teacher"):
        second.asked.append("block")
    assert second.asked == ["wait for teacher", "wait for teacher", "block"]
    with Group(0, 2, first).first("teacher"):
        first.asked.append("block")
    assert first.asked == ["block", "set teacher"]


def test_a_wait_ends_if_the_connection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(store: Told, keys: list[str], timeout: Any) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(Told, "wait", broken)
    with pytest.raises(RuntimeError, match="Connection reset") as raised:
        Group(1, 2, Told()).hear("teacher")
    assert lost(raised.value)
    assert not lost(LookupError("a socket of the program's own"))
    assert not lost(RuntimeError("a fault of the program"))


def test_a_process_that_is_not_the_first_is_silent_inside_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", dist.HashStore)
    with joined() as group:
        assert (group.rank, group.count, group.is_first) == (1, 2, False)
        logging.getLogger().error("inside")
    logging.getLogger().error("outside")
    assert [one.message for one in caplog.records] == ["outside"]


def test_under_torchrun_a_process_that_has_ended_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun tells why it ended, and starts all again; the others' errors are no errors of the program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="Process 0 of 1 lost the connection to another process, which has ended"),
        joined(),
    ):
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a fault of the program"), joined():
        raise RuntimeError("a fault of the program")


@pytest.mark.parametrize("setting", ["world_size", "group_offset", "ip", "port", "local_rank"])
def test_several_machines_are_torchruns_to_start(setting: str, known_answer: Path) -> None:
    with pytest.raises(UserError, match=f"--{setting} is set by the launcher only; set --nproc=2 .* torchrun"):
        KDConfig("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **{setting: 2}))


def test_processes_are_counted_from_1(known_answer: Path) -> None:
    with pytest.raises(UserError, match="--nproc=0; expected a whole number"):
        KDConfig("BPR", "known-answer", config_dict=known_answer_settings(known_answer, nproc=0))
