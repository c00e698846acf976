"""One run of a comparison: a row with a seed, trained, evaluated user by user, and its costs measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_kd.data.loaders import candidate_loader
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.evaluation.collector import PAIRS_PER_CALL, exact_topk
from recbole_kd.evaluation.costs import CUTOFF, inference_costs, peak_memory, reset_peak_memory, stored_numbers
from recbole_kd.evaluation.per_user import save_per_user
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import read_json
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.stages.testing import evaluate, evaluate_prefixes
from recbole_kd.student.readers import ModelStudent, expanded_scores
from recbole_kd.teacher.frozen import FrozenTeacher
from recbole_kd.trainer.kd_trainer import make_evaluator
from recbole_kd.verbs.compare.plan import Row


class _Prefix(TypedDict):
    test_result: dict[str, Optional[float]]
    parameters: Optional[int]


class _Sized(TypedDict, total=False):
    dimensions: Optional[int]
    prefixes: dict[int, _Prefix]


class _Record(_Sized):
    """The record of a run that :func:`perform` writes."""

    key: str
    seed: int
    test_result: dict[str, Optional[float]]
    best_valid_result: Optional[dict[str, Optional[float]]]
    best_epoch: Optional[int]
    epoch_seconds: list[float]
    loss_history: dict[int, dict[str, Optional[float]]]
    valid_history: list[dict[str, Optional[float]]]
    peak_memory_bytes: Optional[float]
    checkpoint: Optional[str]
    parameters: int
    inference: dict[str, Any]
    threads: int
    per_user: str
    seconds: float


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        row: the model and its settings.
        seed: of initialisation and training; the split has its own.
        key: digest of all that the result depends on.
        folder: gets ``result.json``, ``users.parquet``, ``model.pth``; absolute.
        candidates: ``uni499``: each target is also ranked among so many drawn items.
    """

    row: Row
    seed: int
    key: str
    folder: str
    candidates: Optional[str] = None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.row.name}, seed {self.seed}"

    def result(self) -> Optional[dict[str, Any]]:
        """The record written by :func:`perform` for exactly these settings, if there is one."""
        try:
            written: dict[str, Any] = read_json(Path(self.folder) / "result.json", _Record)
        except (OSError, UserError):
            return None
        return written if written["key"] == self.key and Path(self.folder, "users.parquet").is_file() else None


def perform(job: Job, tell: Callable[[tuple[int, int]], None]) -> None:
    """Makes a run and writes its files, ``result.json`` last: a run is complete if this file exists.

    An interrupted training of a student resumes after its last complete epoch.

    Args:
        tell: called with (epoch, epochs) after each evaluation on validation.

    Raises:
        UserError, TrainingError: as in `run_recbole_kd`.
    """
    began = time.perf_counter()
    experiment = job.row.experiment(job.seed)
    start_logging(experiment.settings)
    splits = load_splits(experiment.settings)
    make = _teacher if job.row.role == "teacher" else _student
    record, trainer = make(job, experiment, splits, tell)
    users, values = trainer.eval_collector.per_user()
    if job.candidates:
        results, of_users = _among_candidates(trainer, splits, job.candidates, users)
        record["test_result"].update(results)
        values = {**values, **of_users}
    folder = Path(job.folder)
    tokens = splits.user_tokens
    save_per_user(folder / "users.parquet", [tokens[user] for user in users.tolist()], values)
    answer, answered = answerer(trainer.model, trainer.config, splits)
    save_json(
        {
            "key": job.key,
            "seed": job.seed,
            **record,
            "parameters": stored_numbers(trainer.model),
            "dimensions": ModelStudent(trainer.model).dimension,
            "inference": inference_costs(answer, answered),
            "threads": torch.get_num_threads(),
            "per_user": str(folder / "users.parquet"),
            "seconds": time.perf_counter() - began,
        },
        folder / "result.json",
        "output",
    )


def among(metric: str, candidates: str) -> str:
    """The name of a metric among drawn candidates."""
    return f"{metric} ({candidates})"


def _among_candidates(
    trainer: Any, splits: Splits, candidates: str, users: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """The test metrics among drawn candidates, by their names, and those of each of the users (n,), in this order."""
    loader = candidate_loader(trainer.config, splits, candidates)
    result = trainer.evaluate(loader, load_best_model=False, show_progress=False)
    found, values = trainer.eval_collector.per_user()
    by_id = np.argsort(found)
    order = by_id[np.searchsorted(found, users, sorter=by_id)]
    assert np.array_equal(found[order], users)
    named = {among(name, candidates): float(value) for name, value in result.items()}
    return named, {among(name, candidates): column[order] for name, column in values.items()}


def _student(
    job: Job, experiment: Experiment, splits: Splits, tell: Callable[[tuple[int, int]], None]
) -> tuple[dict[str, Any], Any]:
    teacher = obtain_teacher(experiment, splits) if experiment.teachers else None
    _, trainer, loaders = build_student(experiment, splits, teacher)
    trainer.saved_model_file = os.path.join(job.folder, "model.pth")
    os.makedirs(job.folder, exist_ok=True)
    if os.path.isfile(trainer.last_file):
        trainer.resume_checkpoint(trainer.last_file)
    reset_peak_memory()
    trainer.fit(
        *loaders[:2], saved=True, callback_fn=lambda epoch, _: tell((epoch + 1, trainer.epochs)), show_progress=False
    )
    peak = peak_memory()
    trainer.load_best()
    prefixes = evaluate_prefixes(trainer, (None, None, loaders[2]), experiment.prefixes[:-1])
    test_result, _ = evaluate(trainer, loaders[2])
    if os.path.isfile(trainer.last_file):
        os.remove(trainer.last_file)
    outcome = trainer.outcome()
    record = _record(outcome, test_result, peak, trainer.saved_model_file)
    for size, found in prefixes.items():
        record.setdefault("prefixes", {})[size] = {**found, "parameters": _prefix_numbers(trainer.model, int(size))}
    return record, trainer


def _prefix_numbers(model: Any, size: int) -> Optional[int]:
    """Number of numbers that serve a prefix: a vector for each user and item.

    None for a sequential student, because its encoder reads the whole table.
    """
    if "representations" not in ModelStudent(model).capabilities:
        return None
    return size * int(model.n_users + model.n_items)


def _teacher(
    job: Job, experiment: Experiment, splits: Splits, tell: Callable[[tuple[int, int]], None]
) -> tuple[dict[str, Any], Any]:
    reset_peak_memory()
    teacher = obtain_teacher(experiment, splits)
    if not isinstance(teacher, FrozenTeacher):
        raise UserError(f"compare evaluates each teacher, but {teacher.name} is not one model; use train instead.")
    if teacher.reordered:
        raise UserError(
            f"The teacher '{teacher.trained.checkpoint}' numbers users or items in another order than this dataset, "
            "so compare cannot evaluate it; give a teacher that was trained on these files, or its settings."
        )
    trained = teacher.trained
    trained_here = not trained.from_cache and experiment.teachers[0].settings is not None
    peak = peak_memory() if trained_here else None
    trainer, (_, _, test) = make_evaluator(trained.config, trained.model, splits)
    result = trainer.evaluate(test, load_best_model=False, show_progress=False)
    test_result = {name: float(value) for name, value in result.items()}
    return _record(trained.state, test_result, peak, trained.checkpoint), trainer


def _record(
    outcome: Mapping[str, Any], test_result: Mapping[str, float], peak: Optional[int], checkpoint: str
) -> dict[str, Any]:
    """The training's part of a run's record; a teacher's file may lack it."""
    return {
        "test_result": dict(test_result),
        "best_valid_result": dict(outcome.get("best_valid_result") or {}),
        "best_epoch": outcome.get("best_epoch"),
        "epoch_seconds": list(outcome.get("epoch_seconds") or []),
        "loss_history": dict(outcome.get("loss_history") or {}),
        "valid_history": list(outcome.get("valid_history") or []),
        "peak_memory_bytes": peak,
        "checkpoint": checkpoint if os.path.isfile(checkpoint) else None,
    }


def answerer(model: Any, config: KDConfig, splits: Splits) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function that answers requests with a trained model, for :func:`inference_costs`.

    Returns:
        A function from positions of users (n,) to their best items (n, 20), on the CPU, and the number of users.
    """
    model.eval()
    device = config["device"]
    # A request for a sequential model is a user's sequence at the test split.
    known = (
        splits.test.inter_feat if config.sequential else Interaction({model.USER_ID: torch.arange(1, model.n_users)})
    )
    cutoff = min(CUTOFF, model.n_items - 1)

    @torch.no_grad()
    def answer(positions: Tensor) -> Tensor:
        scores = scores_of_all(model, known[positions].to(device))
        scores[:, 0] = -torch.inf
        return exact_topk(scores, cutoff)[1].cpu()

    return answer, len(known)


def scores_of_all(model: Any, interaction: Any) -> Tensor:
    """Scores of the users of a request with every item, (n, I); in several calls if the model needs them."""
    try:
        scores: Tensor = model.full_sort_predict(interaction)
        return scores.view(len(interaction), -1)
    except NotImplementedError:
        users, items = interaction[model.USER_ID], torch.arange(model.n_items, device=model.device)
        rows = max(1, PAIRS_PER_CALL // len(items))
        blocks = [expanded_scores(model, part, items.expand(len(part), -1)) for part in users.split(rows)]
        return torch.cat(blocks)
