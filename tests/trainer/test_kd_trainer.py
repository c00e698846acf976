"""The trainer: distillers through RecBole's hooks, checkpoints from which a run goes on exactly."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recbole.trainer.trainer as recboles
import torch
from recbole.model.general_recommender import BPR
from recbole.quick_start import run_recbole
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import Tensor, nn

from recbole_kd import host, registry
from recbole_kd.contracts import Batch, Distiller, DistillerOptions
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_any, load_checkpoint
from recbole_kd.loss.kernel import precision as products
from recbole_kd.loss.kernel.precision import factor_type, multiplies_bf16
from recbole_kd.model.build import build_model
from recbole_kd.options import option
from recbole_kd.testing import known_answer_settings
from recbole_kd.trainer.board import tensorboard_run
from recbole_kd.trainer.kd_trainer import KDMixin, KDTrainer, make_trainer
from recbole_kd.trainer.learner import fused_adam_exists
from recbole_kd.trainer.progress import Bar
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd


@dataclass(frozen=True)
class PullOptions(DistillerOptions):
    weight: float = option(1.0, "weight", minimum=0)
    explode_at: int = option(-1, "epoch from which the loss is infinite")

    @property
    def weights(self) -> dict[str, float]:
        return {"pull": self.weight, "push": 0.1 * self.weight}


class Pull(Distiller[PullOptions]):
    """A toy that pulls projected user vectors towards the teacher's, with noise from its own generator."""

    name = "pull"

    def build(self) -> None:
        self.projector = nn.Linear(self.student.dimension or 0, self.teacher.dimension or 0)
        self.epoch = -1

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        users = batch.distinct_users
        found = self.projector(self.student.user_embeddings()[users])
        noise = torch.randn(found.shape, generator=self.generator)
        loss = (found - self.teacher.user_embeddings()[users] + 0.1 * noise).square().mean()
        if 0 <= self.options.explode_at <= self.epoch:
            loss = loss * float("inf")
        return {"pull": loss, "push": found.square().mean()}


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.DISTILLERS, "pull", registry.DistillerEntry(f"{__name__}:Pull"))


def run(data_path: Path, model: str = "BPR", **settings: Any) -> dict[str, Any]:
    teacher = {"teacher.model": "BPR", "teacher.epochs": 2} if settings.get("distill", model == "SimRecStudent") else {}
    given = known_answer_settings(data_path, **{**teacher, **settings})
    return run_recbole_kd(model, "known-answer", config_dict=given)


def weights(result: dict[str, Any]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_checkpoint(result["checkpoint"])["state_dict"]
    return state


def recboles_own(model: str, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The best epoch's weights and the test metrics of RecBole's own Trainer, from its own flow for its own models."""
    if model != "SimRecStudent":
        result = run_recbole(model, "known-answer", config_dict=settings)
        file = max(Path(settings["checkpoint_dir"]).glob(f"{model}-*.pth"), key=lambda path: path.stat().st_mtime)
        return load_any(file)[1]["state_dict"], result["test_result"]
    config = KDConfig(model, "known-answer", config_dict={**settings, "distill": []})
    init_seed(config["seed"], True)
    splits = Splits(config)
    train, valid, test = make_loaders(config, splits)
    init_seed(config["seed"], True)
    trainer = Trainer(config, build_model(config, splits.train))
    trainer.fit(train, valid)
    return trainer.model.state_dict(), trainer.evaluate(test)


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "SimRecStudent"])
def test_with_every_weight_0_a_run_equals_recboles_own_bit_for_bit(
    model: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_0 = {f"simrec.{name}_weight": 0.0 for name in ("prediction", "embedding", "regularization", "decay")}
    ours = run(known_answer, model, distill="simrec", epochs=5, **weights_0)

    monkeypatch.setattr(sys, "argv", ["pytest"])  # RecBole's Config reads it
    # RecBole's trainer pickles our KDConfig here, which the reader that RecBole gets from us refuses.
    monkeypatch.setattr(host, "load", lambda module, path: torch.load(path, weights_only=False))
    own = known_answer_settings(known_answer, metrics=["Recall", "NDCG", "Hit", "MRR"], eval_batch_size=4096, epochs=5)
    state, test_result = recboles_own(model, {**own, "checkpoint_dir": str(known_answer / "recbole")})
    monkeypatch.undo()

    found = weights(ours)
    assert set(found) == set(state)
    for name, value in found.items():
        assert torch.equal(value, state[name]), name
    assert ours["test_result"] == {name: float(value) for name, value in test_result.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_distillers_multiply_with_the_precision_of_the_run(
    precision: str, known_answer: Path, pull: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A distiller's losses, with the gradients that they compute on the way, and nothing else."""
    found: dict[str, set[tuple[torch.dtype, str]]] = {"distiller": set(), "student": set()}
    own, base = Pull.loss, BPR.calculate_loss

    def noted(role: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def note(*arguments: Any) -> Any:
            found[role].add((factor_type(torch.ones(1)), torch.get_float32_matmul_precision()))
            return work(*arguments)

        return note

    monkeypatch.setattr(Pull, "loss", noted("distiller", own))
    monkeypatch.setattr(BPR, "calculate_loss", noted("student", base))
    run(known_answer, distill=["pull"], epochs=1, precision=precision)
    rounded = precision == "bf16" and multiplies_bf16(torch.device("cpu"))
    amx, gpu = products._supports("amx_tile"), torch.cuda.is_available()
    by_torch = precision == "bf16" and (amx or gpu)
    own = torch.bfloat16 if rounded and not amx else torch.float32, "medium" if by_torch else "highest"
    assert found == {"distiller": {own}, "student": {(torch.float32, "highest")}}
    assert torch.get_float32_matmul_precision() == "highest"
    told = any("has no bf16 instructions" in one.message for one in caplog.records)
    assert told == (precision == "bf16" and not rounded)


@pytest.mark.skipif(not fused_adam_exists(), reason="this torch has none on a CPU")
@pytest.mark.parametrize("learner", ["adam", "adamw"])
def test_a_run_that_distils_takes_the_fused_adam_and_learns_the_same(
    learner: str, known_answer: Path, pull: None
) -> None:
    """It is one pass over weights and moments instead of a dozen; what RecBole trains too stays RecBole's to the bit."""

    def groups(result: dict[str, Any]) -> list[Any]:
        last = load_checkpoint(result["checkpoint"].replace(".pth", "-last.pth"))
        return [group["fused"] for group in last["optimizer"]["param_groups"]]

    common = {"learner": learner, "epochs": 2, "stopping_step": 10}
    fused, unfused = (run(known_answer, distill="pull", fused_adam=value, **common) for value in (None, False))
    assert groups(fused) == [True, True]
    assert groups(unfused) == [None, None]
    for name, value in weights(fused).items():
        torch.testing.assert_close(value, weights(unfused)[name], rtol=1e-3, atol=1e-5)

    assert groups(run(known_answer, distill="pull", **common, **{"pull.weight": 0.0})) == [None]
    assert groups(run(known_answer, distill=[], teacher=None, **common)) == [None]
    assert groups(run(known_answer, distill=[], teacher=None, **common, fused_adam=True)) == [True]


def test_each_loss_is_known_by_name(known_answer: Path, pull: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        result = run(known_answer, distill="pull")
    assert set(result["loss_history"][0]) == {"rec", "pull", "pull.push"}
    assert "pull.push" in caplog.text
    events = [file.read_bytes() for file in Path("log_tensorboard").rglob("events*")]
    assert any(b"Loss/pull.push" in content for content in events)


def test_teacher_student_and_baseline_are_runs_of_one_group(known_answer: Path, pull: None) -> None:
    """Side by side in TensorBoard: each has its own steps, and evaluation alone leaves no run."""
    run(known_answer, distill="pull", baseline="student", epochs=2)
    files = list(Path("log_tensorboard").rglob("events*"))
    assert len({file.parts[1] for file in files}) == 1, "one group"
    found = {"teacher": b"", "student": b"", "baseline": b""}
    assert {file.parts[2] for file in files} == set(found)
    for file in files:
        found[file.parts[2]] += file.read_bytes()
    assert b"Loss/pull.push" in found["student"]
    assert b"Loss/pull.push" not in found["teacher"] + found["baseline"]


def test_each_training_has_its_own_folder_in_tensorboard_and_recbole_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second student of one log is student-2. Evaluation writes nothing, nor does a process that is not the first."""
    replaced = ("get_tensorboard", "WandbLogger", "ensure_dir")
    before = [getattr(recboles, name) for name in replaced]
    logger = logging.Logger("BPR")
    logger.addHandler(logging.FileHandler("BPR-today.log", delay=True))
    for role in ("student", "student", None):
        with tensorboard_run(role):
            writer = recboles.get_tensorboard(logger)
            writer.add_scalar("Loss", 1.0, 0)
            writer.close()
            if role is None:
                recboles.ensure_dir("saved")
    assert [getattr(recboles, name) for name in replaced] == before
    assert {folder.name for folder in Path("log_tensorboard/BPR-today").iterdir()} == {"student", "student-2"}
    assert not Path("saved").exists()

    def nothing(logger: logging.Logger) -> None:
        return None

    monkeypatch.setattr(recboles, "get_tensorboard", nothing)
    with tensorboard_run("student"):
        assert recboles.get_tensorboard is nothing


def test_a_distillers_parameters_are_trained_and_kept(known_answer: Path, pull: None) -> None:
    result = run(known_answer, distill="pull", epochs=3)
    first = load_checkpoint(run(known_answer, distill="pull", epochs=1)["checkpoint"])["distillers"]
    last = load_checkpoint(result["checkpoint"].replace(".pth", "-last.pth"))["distillers"]
    assert not torch.equal(first["pull.projector.weight"], last["pull.projector.weight"])
    assert not [name for name in weights(result) if "projector" in name], (
        "the student's weights are the student's alone"
    )


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd", "sevo_adam"])
def test_weight_decay_is_the_students_alone(learner: str, known_answer: Path) -> None:
    """A loss of next to no weight leaves the projector as it was drawn: decay would end in subnormal numbers, which are slow."""

    def projectors(epochs: int) -> list[Tensor]:
        settings = {"learner": learner, "weight_decay": 0.1, "distill": "fitnet", "fitnet.weight": 1e-30}
        if learner == "sevo_adam":
            settings["sevo.graph"] = "bipartite"
        content = load_checkpoint(run(known_answer, epochs=epochs, **settings)["checkpoint"])
        return [value for value in content["distillers"].values() if value.is_floating_point()]

    one, three = projectors(1), projectors(3)
    assert one
    assert all(map(torch.equal, one, three))


def test_a_checkpoint_holds_tensors_and_plain_values(known_answer: Path, pull: None) -> None:
    result = run(known_answer, distill="pull")
    state = torch.load(result["checkpoint"], weights_only=True)
    assert state["model"] == "BPR"
    assert state["config"]["train_batch_size"] == 128


class Killed(Exception):
    """Stands for a process that ends in the middle of a step."""


@pytest.mark.parametrize(("model", "fast"), [("BPR", True), ("BPR", False), ("SimRecStudent", True), ("NeuMF", True)])
def test_a_resumed_run_ends_as_one_never_stopped(
    model: str, fast: bool, known_answer: Path, pull: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"distill": ["pull"], "epochs": 6, "stopping_step": 3, "dropout_prob": 0.1}
    if model == "SimRecStudent":
        settings = {"distill": ["simrec"], "epochs": 6, "simrec.triplets": 100, "teacher.embedding_size": 32}
    elif model == "NeuMF":  # whose dropout must not reach what ranks by the student before an epoch
        settings.update(distill=["dcd"], mf_embedding_size=4, mlp_embedding_size=4, mlp_hidden_size=[8])
        settings.update({"dcd.pool": 10, "dcd.interesting": 3, "dcd.uninteresting": 3, "embedding_size": None})
    else:
        settings.pop("dropout_prob")
    settings["teacher.fast_sampling"] = fast
    whole = run(known_answer, model, fast_sampling=fast, **settings)

    steps = 0
    real: Callable[..., Any] = torch.optim.Adam.step

    def step(self: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == (20 if model == "NeuMF" else 11):  # within the fourth epoch of three steps, or of six
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(Killed):
        run(known_answer, model, fast_sampling=fast, **settings, checkpoint_dir=str(known_answer / "other"))
    monkeypatch.undo()
    monkeypatch.setitem(registry.DISTILLERS, "pull", registry.DistillerEntry(f"{__name__}:Pull"))
    (last,) = (known_answer / "other").glob("*-last.pth")
    assert load_checkpoint(last)["epoch"] >= 1
    # Without a word it keeps the loader that it began with.
    resumed = run(known_answer, model, **settings, resume=str(last), checkpoint_dir=str(known_answer / "other"))

    for key in ("best_epoch", "best_valid_result", "test_result", "loss_history", "epochs_trained"):
        assert resumed[key] == whole[key], key
    expected = weights(whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_resuming_a_finished_run_trains_nothing_and_leaves_its_files(known_answer: Path) -> None:
    whole = run(known_answer, epochs=3, learning_rate=0.01)
    best = Path(whole["checkpoint"])
    before = best.read_bytes()
    assert whole["best_epoch"] == 2, "the last epoch is the best"
    for _ in range(2):
        again = run(known_answer, epochs=3, learning_rate=0.01, resume=str(best))
        for key in ("best_epoch", "test_result", "loss_history"):
            assert again[key] == whole[key], key
        assert best.read_bytes() == before


def test_the_best_epoch_is_tested(known_answer: Path) -> None:
    """Not the last one, whose weights the model has when training ends."""
    result = run(known_answer, epochs=12, stopping_step=2, learning_rate=0.05, embedding_size=2)
    last = result["checkpoint"].replace(".pth", "-last.pth")
    given = {"data_path": str(known_answer), "use_gpu": False}
    best, later = (evaluate_checkpoint(str(file), given)["test_result"] for file in (result["checkpoint"], last))
    assert result["test_result"] == best != later


def test_what_a_model_keeps_beside_its_weights_is_the_best_epochs(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, load = BPR.calculate_loss, KDTrainer.load_best
    found = []

    def counted(self: Any, interaction: Any) -> Any:
        self.steps += 1
        return loss(self, interaction)

    def noted(self: Any) -> None:
        before = self.model.steps
        load(self)
        found.append((before, self.model.steps))

    monkeypatch.setattr(BPR, "other_parameter_name", ["steps"], raising=False)
    monkeypatch.setattr(BPR, "steps", 0, raising=False)
    monkeypatch.setattr(BPR, "calculate_loss", counted)
    monkeypatch.setattr(KDTrainer, "load_best", noted)
    result = run(known_answer, epochs=12, stopping_step=2, learning_rate=0.3, embedding_size=1)
    epochs, best = result["epochs_trained"], result["best_epoch"] + 1
    assert best < epochs
    before, after = found[0]
    assert after == before * best // epochs


def test_a_last_file_needs_the_best_one_and_the_best_one_nothing(known_answer: Path, tmp_path: Path) -> None:
    """The metrics of a resumed run are those of its best epoch, which lies in the other file."""
    whole = run(known_answer, epochs=12, stopping_step=1, learning_rate=0.05)
    best = Path(whole["checkpoint"])
    last = best.with_name(f"{best.stem}-last.pth")
    assert load_checkpoint(last)["epoch"] > whole["best_epoch"], "otherwise the last epoch is the best"
    alone = shutil.copy(last, tmp_path)
    message = f"'{alone}' continues a run whose best epoch is in '{best.name}', but there is no such file beside it"
    with pytest.raises(UserError, match=re.escape(message)):
        run(known_answer, epochs=12, stopping_step=1, learning_rate=0.05, resume=str(alone))
    renamed = shutil.copy(best, tmp_path / "renamed.pth")
    resumed = run(known_answer, epochs=12, stopping_step=1, learning_rate=0.05, resume=str(renamed))
    assert resumed["test_result"] == whole["test_result"]


def test_losses_are_added_up_by_name_where_some_batches_have_none(known_answer: Path, pull: None) -> None:
    """A distiller of lists has no loss in a batch without a listed user, and RecBole adds up by place."""
    config = KDConfig("BPR", "known-answer", None, known_answer_settings(known_answer))
    init_seed(0, True)
    trainer = make_trainer(config, build_model(config, Splits(config).train))
    steps = [{"rec": 1.0}, {"rec": 2.0, "kd": 10.0, "rrd": 100.0}, {"rec": 3.0, "rrd": 200.0}]
    trainer._terms = lambda base_loss, step: {name: torch.tensor(value) for name, value in step.items()}
    losses_of, total = trainer._joint_loss(trainer.model.calculate_loss), None
    for step in steps:
        found = tuple(loss.item() for loss in losses_of(step))
        total = found if total is None else tuple(map(sum, zip(total, found)))  # as RecBole does
    trainer._generate_train_loss_output(0, 0.0, 1.0, total)
    assert trainer.loss_history[0] == {"rec": 6.0, "kd": 10.0, "rrd": 300.0}


def test_a_fast_run_is_not_resumed_with_recboles_loader(known_answer: Path, pull: None) -> None:
    run(known_answer, distill=["pull"], epochs=3)
    (last,) = (known_answer / "saved").glob("*-last.pth")
    with pytest.raises(UserError, match="used fast sampling, but --fast_sampling is off; set --fast_sampling=true"):
        run(known_answer, distill=["pull"], epochs=5, resume=str(last), fast_sampling=False)


def test_a_checkpoint_of_another_split_is_not_resumed(known_answer: Path) -> None:
    """Its training pairs would be tested."""
    split = {"benchmark_filename": None, "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "mode": "full"}}
    whole = (known_answer / "known-answer").glob("*.inter")
    lines = [line for file in whole for line in file.read_text().splitlines()[1:]]
    (known_answer / "known-answer" / "known-answer.inter").write_text(
        "\n".join(["user_id:token\titem_id:token", *lines, ""])
    )
    run(known_answer, epochs=2, seed=1, **split)
    (last,) = (known_answer / "saved").glob("*-last.pth")
    with pytest.raises(UserError, match=f"'{last}' was trained on another split of the data, so this run's test items"):
        run(known_answer, epochs=3, seed=2, **split, resume=str(last))
    assert run(known_answer, epochs=3, seed=1, **split, resume=str(last))["epochs_trained"] == 3


@pytest.mark.parametrize("shorter", [{"epochs": 2}, {"epochs": 4, "stop_after": 3}], ids=str)
def test_a_run_that_is_resumed_to_end_earlier_tells_of_the_epoch_that_it_evaluates(
    shorter: dict[str, Any], known_answer: Path
) -> None:
    """Its best epoch is in a file that the longer run wrote; it is later than the state that is resumed."""
    longer = run(known_answer, epochs=4, learning_rate=0.05)
    assert longer["best_epoch"] == 3, "the test needs a last epoch that is the best"
    again = run(known_answer, learning_rate=0.05, resume=longer["checkpoint"].replace(".pth", "-last.pth"), **shorter)
    for fact in ("best_epoch", "best_valid_score", "best_valid_result", "test_result"):
        assert again[fact] == longer[fact], fact


def test_training_that_stops_before_its_first_validation_validates_then(known_answer: Path) -> None:
    result = run(known_answer, epochs=20, eval_step=5, stop_after=2)
    assert result["best_epoch"] == 1
    assert Path(result["checkpoint"]).is_file()


def test_a_checkpoint_of_another_model_is_not_resumed(known_answer: Path) -> None:
    result = run(known_answer, epochs=1)
    with pytest.raises(UserError, match="is a checkpoint of BPR, but --model=LightGCN"):
        run(known_answer, "LightGCN", resume=result["checkpoint"])
    with pytest.raises(UserError, match=r"was trained with --embedding_size=\d+, and now it is 12; resume it with"):
        run(known_answer, "BPR", resume=result["checkpoint"], embedding_size=12)


@pytest.mark.parametrize(
    "changed", [{"valid_metric": "Recall@10"}, {"metric_decimal_place": 2}, {"eval_args.mode": "uni5"}], ids=str
)
def test_a_run_does_not_compare_scores_of_two_kinds(changed: dict[str, Any], known_answer: Path) -> None:
    """The best score so far would be of one kind, and all later ones of another."""
    last = run(known_answer, epochs=2)["checkpoint"].replace(".pth", "-last.pth")
    with pytest.raises(UserError, match=rf"was trained with --{next(iter(changed))}"):
        run(known_answer, epochs=3, resume=last, **changed)
    assert run(known_answer, epochs=3, resume=last, topk=[3, 10])["epochs_trained"] == 3


def test_a_run_does_not_go_on_with_another_teacher(
    known_answer: Path, pull: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Another model is refused; the same model with other weights is said."""
    last = run(known_answer, epochs=2, distill=["pull"])["checkpoint"].replace(".pth", "-last.pth")
    with pytest.raises(UserError, match=r"whose teacher is BPR, and now it is LightGCN; resume it with its own"):
        run(known_answer, epochs=3, distill=["pull"], resume=last, **{"teacher.model": "LightGCN"})
    run(known_answer, epochs=3, distill=["pull"], resume=last)
    assert "is not the one of" not in caplog.text
    run(known_answer, epochs=3, distill=["pull"], resume=last, **{"teacher.epochs": 1})
    assert f"The teacher BPR is not the one of '{last}'" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.5),
        ("train_batch_size", 7),
        ("weight_decay", 0.1),
        ("learning_rate_schedule", "cosine"),
        ("distill", ["pull", "kd"]),
        ("precision", "bf16"),
        ("matryoshka", [8, 64]),
    ],
)
def test_a_run_does_not_go_on_with_other_settings_than_it_began_with(
    name: str, value: Any, known_answer: Path, pull: None
) -> None:
    """torch would restore the old rate and RecBole read the new batch size: neither without a word."""
    last = run(known_answer, epochs=2, distill=["pull"])["checkpoint"].replace(".pth", "-last.pth")
    with pytest.raises(
        UserError, match=rf"was trained with --{name}=.+, and now it is {re.escape(str(value))}; resume"
    ):
        run(known_answer, **{"epochs": 3, "distill": ["pull"], "resume": last, name: value})
    assert run(known_answer, epochs=3, distill=["pull"], resume=last, stopping_step=2)["epochs_trained"] == 3


def test_a_loss_that_is_not_finite_is_named(known_answer: Path, pull: None) -> None:
    with pytest.raises(TrainingError, match=r"in epoch 1: the loss is not finite \(pull = inf\); lower"):
        run(known_answer, distill="pull", **{"pull.explode_at": 1})


def test_an_unknown_learner_is_an_error(known_answer: Path) -> None:
    with pytest.raises(UserError, match=r"--learner='adma' is not one of adam, .* Did you mean 'adam'"):
        run(known_answer, learner="adma")


def test_the_cosine_schedule_ends_near_0(known_answer: Path) -> None:
    config = KDConfig(
        "BPR", "known-answer", None, known_answer_settings(known_answer, learning_rate_schedule="cosine", epochs=4)
    )
    init_seed(0, True)
    splits = Splits(config)
    loaders = make_loaders(config, splits)
    trainer = make_trainer(config, build_model(config, splits.train))
    rates = []
    for epoch in range(4):
        trainer._train_epoch(loaders[0], epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 0.5e-3 * (1 + 0.5**0.5), 0.5e-3, 0.5e-3 * (1 - 0.5**0.5)])


def test_the_cosine_schedule_reaches_every_optimiser(known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecVAE's trainer has two, and uses them in turns."""
    rates, own = [], KDMixin._generate_train_loss_output

    def noted(trainer: Any, *arguments: Any) -> str:
        rates.append([one.param_groups[0]["lr"] for one in trainer._other_optimizers().values()])
        return own(trainer, *arguments)

    monkeypatch.setattr(KDMixin, "_generate_train_loss_output", noted)
    run(known_answer, "RecVAE", learning_rate_schedule="cosine", epochs=2)
    assert rates[-1] == pytest.approx([0.5e-3, 0.5e-3])


def test_early_stopping_is_recboles(known_answer: Path) -> None:
    result = run(known_answer, epochs=30, stopping_step=2, learning_rate=0.05)
    assert result["epochs_trained"] < 30
    assert result["best_epoch"] == result["epochs_trained"] - 1 - 3


def test_the_progress_bar_shows_each_loss_and_the_time_left(
    known_answer: Path, pull: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_kd.trainer.progress.Bar.due", lambda self: True)
    run(known_answer, distill="pull", epochs=2, show_progress=True)
    text = capsys.readouterr().err
    for shown in ("BPR: epoch 1 of 2\x1b", r"BPR: epoch 2 of 2, at most \d\d:\d\d left", "rec=", "pull=", "pull.push="):
        assert re.search(shown, text)


def test_the_time_left_is_that_of_the_epochs_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed process knows the time of its own epochs only: here its first two took 10 seconds each."""
    clock = SimpleNamespace(perf_counter=lambda: 120.0, time=lambda: 5.0)
    monkeypatch.setattr("recbole_kd.trainer.progress.time", clock)
    with Bar.of_epoch([1], "BPR", epoch=4, epochs=10, first=2, began=100.0) as bar:
        assert "BPR: epoch 5 of 10, at most 01:00 left" in bar.desc
        bar.mininterval = 0.5
        bar.last_print_t = 4.4
        assert bar.due()
        bar.last_print_t = 4.6
        assert not bar.due()
    with Bar.of_epoch([1], "BPR", epoch=2, epochs=10, first=2, began=100.0) as bar:
        assert "left" not in bar.desc
