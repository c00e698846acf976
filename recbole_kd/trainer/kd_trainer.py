"""KDTrainer: RecBole's training loop with distillers, added through its hooks, without copying its code.

RecBole's trainer builds its optimiser in `_build_optimizer`; its `fit` calls `_train_epoch` with a loss function, and
saves with `_save_checkpoint`. The mixin below overrides these methods on top of the trainer that RecBole would use for
a model. So a model with a special trainer (RaCT, RecVAE, NCL, closed-form models) keeps it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Optional

import torch
from recbole.trainer import RecVAETrainer, Trainer
from recbole.utils import get_trainer, set_color
from torch import Tensor, nn

from recbole_kd.cluster.group import ALONE, Group
from recbole_kd.data.fast_sampling import go_on_drawing
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.observed import Observed
from recbole_kd.data.splits import Splits
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.evaluation.collector import PAIRS_PER_CALL, FullSortCollector
from recbole_kd.evaluation.metrics import Evaluator
from recbole_kd.files.checkpoint import FORMAT, ModelState, ResumableState, load_checkpoint, save_checkpoint
from recbole_kd.files.pickles import shown
from recbole_kd.loss.kernel.precision import multiplies_bf16, product_precision
from recbole_kd.text import one_line
from recbole_kd.trainer.batches import batch_of
from recbole_kd.trainer.board import group_name, new_stamp, tensorboard_run
from recbole_kd.trainer.candidates import CandidateMixin
from recbole_kd.trainer.eager import without_compiler
from recbole_kd.trainer.learner import compute_faster, lazy_adam, schedule_learning_rate, use_fused_adam
from recbole_kd.trainer.progress import Bar
from recbole_kd.trainer.shared import SharedMixin
from recbole_kd.trainer.state import (
    Attributes,
    check_model,
    check_run,
    load_optimizer,
    random_state,
    restore_random_state,
    restored,
    storable,
)
from recbole_kd.trainer.trackers import Trackers

#: Name of the base model's own loss in logs and TensorBoard.
BASE_LOSS = "rec"


class Unresumable(UserError):
    """A checkpoint cannot be resumed, because a part of the run's state could not be stored."""


class KDMixin(CandidateMixin):
    """Adds distillation to any RecBole trainer; :func:`make_trainer` combines the two."""

    config: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    saved_model_file: str
    best_valid_score: float
    best_valid_result: Optional[Mapping[str, float]]
    cur_step: int
    epochs: int
    eval_step: int
    start_epoch: int
    tensorboard: Any
    device: torch.device
    logger: Any

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        distillers: Optional[Mapping[str, nn.Module]] = None,
        observed: Optional[Observed] = None,
        step_context: Callable[[], AbstractContextManager[None]] = nullcontext,
        facts: Optional[Mapping[str, Any]] = None,
        file_name: Optional[str] = None,
        stamp: str = "",
        optimizer_factory: Optional[Callable[[Iterable[Tensor], float, float], torch.optim.Optimizer]] = None,
        fused: Optional[bool] = None,
        role: Optional[str] = "student",
    ) -> None:
        # All of this before RecBole's constructor, because that builds the optimiser.
        self.distillers = nn.ModuleDict(dict(distillers or {})).to(config["device"])
        self.observed = observed
        self.step_context = step_context
        self.facts = dict(facts or {})
        self.optimizer_factory = optimizer_factory
        self.fused = bool(config["fused_adam"]) if fused is None else fused
        self.loss_names: tuple[str, ...] = (BASE_LOSS,)
        self.loss_history: dict[int, dict[str, float]] = {}
        self.valid_history: list[dict[str, float]] = []
        self.epoch_seconds: list[float] = []
        self.best_epoch = -1
        self._values: tuple[Tensor, ...] = ()
        self._sums: dict[str, Any] = {}
        self._names_vary = False
        self._bar: Optional[Bar] = None
        self._epoch, self._began = 0, 0.0
        self._train_data: Any = None
        self._resumed: Optional[Mapping[str, Any]] = None
        self._attributes: Optional[Attributes] = None
        self.role = role
        self.trackers = Trackers()
        with tensorboard_run(role), without_compiler():
            super().__init__(config, model)  # type: ignore[call-arg]
        self.epochs = min(self.epochs, int(config["stop_after"] or self.epochs))
        self.eval_step = min(self.eval_step, self.epochs)
        self.eval_collector = FullSortCollector(config)
        self.evaluator = Evaluator(config)
        self.test_batch_size = PAIRS_PER_CALL
        name = file_name or f"{config['model']}-{config['dataset']}-{config['seed']}-{stamp or new_stamp()}.pth"
        self.saved_model_file = os.path.join(config["checkpoint_dir"], name)

    # Optimiser

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        learner = kwargs.get("learner", self.config["learner"])
        optimizer: torch.optim.Optimizer
        if self.optimizer_factory is not None and "params" not in kwargs:
            rates = self.config["learning_rate"], self.config["weight_decay"]
            optimizer = self.optimizer_factory(self.model.parameters(), *rates)
        elif learner == "lazy_adam":
            rates = self.config["learning_rate"], self.config["weight_decay"]
            optimizer = lazy_adam(self.model, kwargs.get("params", self.model.parameters()), *rates)
        else:
            optimizer = super()._build_optimizer(**kwargs)  # type: ignore[misc]
        own = list(self.distillers.parameters())
        if own and "params" not in kwargs:
            # Weight decay is for the recommender only. A distiller's loss has a small weight, so decay would shrink its
            # parameters to subnormal numbers. With these a matrix product takes a hundred times as long.
            optimizer.add_param_group({"params": own, "weight_decay": 0.0})
        if self.fused:
            use_fused_adam(optimizer)
            compute_faster(self.model)
        return optimizer

    # One epoch

    def fit(self, train_data: Any, *arguments: Any, **named: Any) -> Any:
        """RecBole's `fit`; it keeps the loader, for checkpoints and for the random state of a resumed run."""
        self._train_data = train_data
        self._began = time.perf_counter()
        self._attributes = self._attributes or Attributes(self.model)
        if self._resumed is not None:
            self._restore_streams(self._resumed)
        if self.role is not None:
            self.trackers = Trackers.begin(self.config, group_name(self.logger), self.role)
        try:
            with without_compiler():
                return super().fit(train_data, *arguments, **named)  # type: ignore[misc]
        except BaseException:
            self.conclude(failed=True)
            raise

    def conclude(self, test_result: Optional[Mapping[str, float]] = None, failed: bool = False, **costs: float) -> None:
        """Ends the training's runs in W&B and MLflow."""
        self.trackers.finish(self.model, self.outcome(), test_result or {}, failed, **costs)

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Optional[Callable[[Any], Any]] = None,
        show_progress: bool = False,
    ) -> Any:
        # Between two epochs no part of the state is changing, so it can be saved exactly.
        if self.config["save_last"] and epoch_idx > self.start_epoch:
            self._save_state(self.last_file, epoch_idx - 1)
        self._epoch = epoch_idx
        for optimizer in (self.optimizer, *self._other_optimizers().values()):
            schedule_learning_rate(optimizer, self.config, epoch_idx)
        self._sums, self._names_vary = {}, False
        if len(self.distillers):
            first = epoch_idx == self.start_epoch
            if first and self.config["precision"] == "bf16" and not multiplies_bf16(self.device):
                self.logger.warning("--precision=bf16: this processor has no bf16 instructions; products are in fp32.")
            self.distillers.train()
            # Distillers rank by the student without dropout; RecBole calls train() after this.
            self.model.eval()
            with self.step_context():  # a student that scores several blocks is propagated once
                for distiller in self._computed().values():
                    distiller.begin_epoch(epoch_idx)
            loss_func = self._joint_loss(loss_func or self.model.calculate_loss)  # type: ignore[arg-type]
        batches = train_data
        if show_progress:
            self._bar = batches = Bar.of_epoch(
                train_data, self.config["model"], epoch_idx, self.epochs, self.start_epoch, self._began
            )
        start = time.perf_counter()
        try:
            losses = super()._train_epoch(batches, epoch_idx, loss_func, show_progress=False)  # type: ignore[misc]
        except RuntimeError as error:
            if self.config["enable_amp"] and re.search("not implemented for|expected scalar type", str(error)):
                raise UserError(
                    f"--enable_amp=true: on this device {self.config['model']} needs operations that torch has only in "
                    f"full precision ({one_line(error, 100)}); leave it out."
                ) from None
            raise
        finally:
            self._bar = None
        self.epoch_seconds.append(time.perf_counter() - start)
        return losses

    def _joint_loss(self, base_loss: Callable[[Any], Any]) -> Callable[[Any], tuple[Tensor, ...]]:
        """The base loss and the losses of all distillers, as the tuple that RecBole sums."""

        def losses_of(interaction: Any) -> tuple[Tensor, ...]:
            with self.step_context():
                named = self._terms(base_loss, interaction)
            # The base model's own last, if it has several: NCL's trainer drops the last one during warm-up.
            several = [name for name in named if name.startswith(BASE_LOSS) and name[len(BASE_LOSS) :].isdigit()]
            named.update({name: named.pop(name) for name in several})
            # A distiller without an entry in a batch has no loss there. RecBole adds up by place, so names are needed.
            self._names_vary |= bool(self._sums) and self._sums.keys() != named.keys()
            for name, loss in named.items():
                self._sums[name] = self._sums.get(name, 0.0) + loss.detach().double()
            self.loss_names = tuple(named)
            self._values = tuple(named.values())
            if self._bar is not None and self._bar.due():
                self._bar.set_postfix({name: f"{loss.item():.4g}" for name, loss in named.items()}, refresh=False)
            return self._values

        return losses_of

    def _terms(self, base_loss: Callable[[Any], Any], interaction: Any) -> dict[str, Tensor]:
        """The losses of a step by name, the base model's first."""
        return {**self._base_terms(base_loss, interaction), **self._distilled_terms(interaction)}

    def _base_terms(self, base_loss: Callable[[Any], Any], interaction: Any) -> dict[str, Tensor]:
        base = base_loss(interaction)
        if isinstance(base, tuple):
            return {f"{BASE_LOSS}{index + 1}": loss for index, loss in enumerate(base)}
        return {BASE_LOSS: base}

    def _distilled_terms(self, interaction: Any) -> dict[str, Tensor]:
        batch, named = batch_of(interaction, self.config, self.observed), {}
        with product_precision(self.config["precision"]):
            for name, distiller in self._computed().items():
                for term, loss in distiller(batch).items():
                    named[name if term == name else f"{name}.{term}"] = loss
        return named

    def _computed(self) -> dict[str, Any]:
        """The distillers that this process computes."""
        return dict(self.distillers.items())

    def _check_nan(self, loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        values = dict(zip(self.loss_names, self._values or (loss,)))
        broken = ", ".join(f"{name} = {value.item():g}" for name, value in values.items() if not torch.isfinite(value))
        raise TrainingError(
            f"Training stopped in epoch {self._epoch}: the loss is not finite ({broken or loss.item()}); "
            "lower --learning_rate or the loss's weight, or raise its temperature."
        )

    # Output of an epoch

    def _generate_train_loss_output(self, epoch_idx: int, s_time: float, e_time: float, losses: Any) -> str:
        values = losses if isinstance(losses, tuple) else (losses,)
        names = self.loss_names
        if len(names) > len(values):  # NCL's trainer drops one at first, RecVAE's returns the sum
            names = names[: len(values)] if isinstance(losses, tuple) else ("total",)
        elif len(names) < len(values):  # the base model has several losses, and there is no distiller
            names = tuple(f"{BASE_LOSS}{index + 1}" for index in range(len(values)))
        named = {name: float(value) for name, value in zip(names, values) if value is not None}
        if self._names_vary:
            named = {name: float(value) for name, value in self._sums.items()}
        self.loss_history[epoch_idx] = named
        places = self.config["loss_decimal_place"] or 4
        parts = [f"{set_color('time', 'blue')}: {e_time - s_time:.2f}s"]
        parts += [f"{set_color(name, 'blue')}: {value:.{places}f}" for name, value in named.items()]
        return f"{set_color(f'epoch {epoch_idx} training', 'green')} [{', '.join(parts)}]"

    def _add_train_loss_to_tensorboard(self, epoch_idx: int, losses: Any, tag: str = "Loss/Train") -> None:
        named = self.loss_history.get(epoch_idx, {})
        for name, value in named.items():
            self.tensorboard.add_scalar(f"Loss/{name}", value, epoch_idx)
        self.trackers.log(
            "train", {**named, "train_loss": sum(named.values()), "seconds": self.epoch_seconds[-1]}, epoch_idx
        )

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> Any:
        score, result = super()._valid_epoch(valid_data, show_progress=show_progress)  # type: ignore[misc]
        self.valid_history.append({"epoch": self._epoch, **{name: float(value) for name, value in result.items()}})
        for name, value in result.items():
            self.tensorboard.add_scalar(f"Valid/{name}", value, self._epoch)
        self.trackers.log("valid", result, self._epoch)
        validated = getattr(self.model, "validated", None)  # exists if the model's loss depends on validation
        if callable(validated):
            validated(score if self.config["valid_metric_bigger"] else -score)
        return score, result

    # Checkpoints

    @property
    def last_file(self) -> str:
        """The file of the state after the last complete epoch, for ``--resume``; the best is `saved_model_file`."""
        return str(Path(self.saved_model_file).with_suffix("")) + "-last.pth"

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if epoch < 0 and self.start_epoch > 0:
            return  # RecBole would write a run that is resumed after its last epoch as an untrained one
        self.best_epoch = epoch
        if self.valid_history and self.valid_history[-1]["epoch"] == epoch:
            # RecBole records it only after saving, so a run resumed from this file would report an older one.
            self.best_valid_result = {name: value for name, value in self.valid_history[-1].items() if name != "epoch"}
        file = kwargs.pop("saved_model_file", self.saved_model_file)
        self._save_state(file, epoch)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {file}")

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Saves a stage of RecBole's pretraining trainers (RaCT, S3Rec) like any other state, without pickle."""
        self._save_state(saved_model_file, epoch)
        self.saved_model_file = saved_model_file

    def outcome(self) -> dict[str, Any]:
        """Weights and history, as tensors and plain values."""
        return {
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": dict(self.best_valid_result or {}),
            "best_epoch": self.best_epoch,
            "state_dict": dict(self.model.state_dict()),
            "other_parameter": storable(self.model.other_parameter()),  # type: ignore[operator]
            "loss_history": self.loss_history,
            "valid_history": self.valid_history,
            "epoch_seconds": self.epoch_seconds,
        }

    def _other_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Other optimisers of RecBole's trainer than `optimizer`, by their attributes' names (RecVAE has two)."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}
        found.pop("optimizer", None)
        return found

    def _save_state(self, file: str, epoch: int) -> None:
        others = self._other_optimizers()
        attributes, unsaved = self._attributes.changed() if self._attributes is not None else ({}, [])
        state = {
            "format": FORMAT,
            **self.facts,
            **self.outcome(),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "attributes": attributes,
            "unsaved": unsaved,
            "optimizer": self.optimizer.state_dict(),
            "optimizers": {name: other.state_dict() for name, other in others.items()},
            "current_optimizer": next((name for name, other in others.items() if other is self.optimizer), "optimizer"),
            "distillers": dict(self.distillers.state_dict()),
            "random": random_state(),
            "loader": self._train_data.generator.get_state() if self._train_data is not None else None,
            "fast_sampling": bool(getattr(self._train_data, "fast", False)),
            "saved_model_file": Path(self.saved_model_file).name,
        }
        save_checkpoint(state, file)

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Resumes from the state in `resume_file`: weights, optimiser, distillers, early stopping, random streams.

        Raises:
            UserError: not a checkpoint of recbole-kd; or as in :meth:`resume`.
        """
        self.resume(resume_file, load_checkpoint(str(resume_file), self.config["device"], ResumableState))

    def resume(self, resume_file: Any, state: Mapping[str, Any]) -> None:
        """Resumes from a state that was read from `resume_file`.

        Raises:
            UserError: it belongs to another model, split or configuration, or the file of its best epoch is missing.
            Unresumable: the model has a value that the checkpoint could not hold.
        """
        check_model(resume_file, state, self.config["model"])
        check_run(resume_file, state, self.config, self.facts)
        if state.get("unsaved"):
            raise Unresumable(
                f"'{resume_file}': {state['model']} has {', '.join(map(shown, state['unsaved'][:3]))}, which a "
                "checkpoint cannot hold, so it cannot be resumed exactly; train it again, without --resume."
            )
        self._attributes = Attributes(self.model)
        try:
            self.model.load_state_dict(state["state_dict"])
            self.model.load_other_parameter(restored(state["other_parameter"]))  # type: ignore[operator]
            self._attributes.restore(state.get("attributes", {}))
            self.distillers.load_state_dict(state["distillers"])
            others = self._other_optimizers()
            for name, kept in state.get("optimizers", {}).items():
                load_optimizer(others[name], kept)
            # RecVAE's trainer swaps its optimiser.
            if (current := state.get("current_optimizer", "optimizer")) != "optimizer":
                self.optimizer = others[current]
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{resume_file}' does not fit this run ({one_line(error, 200)}); "
                "resume it with the settings that it was written with."
            ) from None
        self.start_epoch = state["epoch"] + 1
        for name in ("cur_step", "loss_history", "valid_history", "epoch_seconds"):
            setattr(self, name, state[name])
        best = Path(resume_file).parent / Path(state["saved_model_file"]).name
        if state["epoch"] == state["best_epoch"] and not best.is_file():
            best = Path(resume_file)  # the best checkpoint itself, under another name
        if state["best_epoch"] >= 0 and not best.is_file():
            raise UserError(
                f"'{resume_file}' continues a run whose best epoch is in '{best.name}', but there is no such file "
                "beside it; copy that file to the same folder."
            )
        self.saved_model_file = str(best)
        # The best epoch is the file's: it may be later than the state, and this run may end before it.
        chosen = load_checkpoint(str(best), "cpu", ResumableState) if state["best_epoch"] >= 0 else state
        self.best_epoch, self.best_valid_score = chosen["best_epoch"], chosen["best_valid_score"]
        self.best_valid_result = chosen["best_valid_result"] or None
        self._resumed = state
        self.logger.info(f"Resuming after epoch {state['epoch']} of {resume_file}")

    def _restore_streams(self, state: Mapping[str, Any]) -> None:
        go_on_drawing(self._train_data, bool(state.get("fast_sampling")))
        restore_random_state(state["random"], getattr(self._train_data, "generator", None), state["loader"])
        self._resumed = None

    def load_best(self) -> None:
        """Loads the weights of the best epoch, if one was saved."""
        if self.best_epoch >= 0 and os.path.isfile(self.saved_model_file):
            state = load_checkpoint(self.saved_model_file, self.config["device"], ModelState)
            self.model.load_state_dict(state["state_dict"])
            self.model.load_other_parameter(restored(state["other_parameter"]))  # type: ignore[operator]


class KDTrainer(KDMixin, Trainer):
    """RecBole's Trainer with distillers."""


class _JointPasses(Trainer):
    """RecBole's trainer; it adds the distillers to any loss function that it gets."""

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        if loss_func is not None and len(self.distillers):
            joint = self._joint_loss(loss_func)

            def summed(interaction: Any) -> Tensor:
                return torch.stack([loss.reshape(()) for loss in joint(interaction)]).sum()

            return super()._train_epoch(train_data, epoch_idx, summed, show_progress)
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)


class KDRecVAETrainer(KDMixin, RecVAETrainer, _JointPasses):
    """RecBole's trainer of RecVAE with distillers; each of its passes has its own loss function."""


class SharedTrainer(SharedMixin, KDTrainer):
    """The trainer of one of several processes."""


def make_trainer(config: Any, model: nn.Module, group: Group = ALONE, **settings: Any) -> Any:
    """The trainer of a model: RecBole's for its architecture, with :class:`KDMixin` over it.

    Args:
        config: the run's settings.
        model: the student, or a teacher or baseline without distillers.
        group: the processes that train it together.
        **settings: the other arguments of :class:`KDMixin`.

    Raises:
        UserError: a folder that cannot be written, values that the optimiser refuses.
    """
    base = get_trainer(config["MODEL_TYPE"], config["student"])
    written = {Trainer: KDTrainer, RecVAETrainer: KDRecVAETrainer}
    trainer_class = written.get(base) or type(f"KD{base.__name__}", (KDMixin, base), {})
    if group.count > 1:
        check_loop(config, group.count)
        trainer_class, settings = SharedTrainer, {**settings, "group": group, "stamp": group.stamp}
    try:
        return trainer_class(config, model, **settings)
    except OSError as error:
        raise UserError(
            f"Cannot write to --checkpoint_dir={config['checkpoint_dir']} or to the folder of logs: {error.strerror}."
        ) from None
    except ValueError as error:
        raise UserError(f"The optimiser refuses its settings: {error}. See --learner and --learning_rate.") from None


def check_loop(config: Any, processes: int) -> None:
    """
    Raises:
        UserError: a model with a training loop of its own, which several processes cannot share.
    """
    if get_trainer(config["MODEL_TYPE"], config["student"]) is not Trainer:
        raise UserError(
            f"--nproc={processes}: {config['student']} has its own training loop, which needs one process; "
            "set --nproc=1."
        )


def make_evaluator(config: Any, model: nn.Module, splits: Splits) -> tuple[Any, tuple[Any, Any, Any]]:
    """A trainer that evaluates a trained model, and the training, validation and test loader."""
    loaders = make_loaders(config, splits)
    # It makes no step, so the learner (SEvo's needs a graph) is not built.
    trainer = make_trainer(
        config, model, role=None, optimizer_factory=lambda parameters, rate, _: torch.optim.SGD(parameters, rate)
    )
    trainer.eval_collector.data_collect(loaders[0])  # `fit` would do it: ItemCoverage and others count items
    return trainer, loaders
