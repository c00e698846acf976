"""The search: trials drawn from the space, trained by Ray Tune, pruned by ASHA, chosen on the validation split."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, TypedDict, Union

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from recbole.utils import dataset_arguments, evaluation_arguments, general_arguments
from tqdm import tqdm

from recbole_kd.cluster.ray import check_cluster, environment, ray_session
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import WITHOUT_EFFECT, KDConfig
from recbole_kd.experiment.values import merge, nest
from recbole_kd.files.atomic import write_atomic
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import save_json
from recbole_kd.files.properties import overall_properties
from recbole_kd.files.reading import read_json
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.stages.needs import check_data, check_models
from recbole_kd.stages.result import Framed
from recbole_kd.stages.student import build_student
from recbole_kd.text import duration
from recbole_kd.trainer.trackers import check_trackers
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.options import TuneOptions
from recbole_kd.verbs.tune.report import write_report
from recbole_kd.verbs.tune.space import Domain, default_space, draw_trials, read_space
from recbole_kd.verbs.tune.worker import Task, teacher_of, train_trial

#: ASHA's reduction factor: one in 3 trials at a rung continues, and each rung is 3 times as late as the one before.
REDUCTION = 3
#: Settings that do not change a search.
_WITHOUT_EFFECT = WITHOUT_EFFECT | {"device"}
#: Settings of every run that may be searched; the others are of data, evaluation, teacher or machine.
_SEARCHABLE = frozenset(("learning_rate_schedule",))


def search(
    model: Optional[str] = None,
    dataset: Optional[str] = None,
    config_file_list: Optional[Iterable[str]] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
    space: Union[str, Path, Mapping[str, Domain], None] = None,
    trials: int = 50,
    folder: Union[str, Path, None] = None,
    prune: bool = True,
    grace_epochs: Optional[int] = None,
    cpus: Optional[int] = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: Optional[float] = None,
    ray_address: Optional[str] = None,
) -> Framed:
    """Trains `trials` configurations and returns the best one on the validation split; test is never read.

    The configurations are drawn from `space` with the run's seed; with more trials, the first ones are the same.
    Repeated with the same arguments, a search continues where it stopped, and a finished one returns at once.

    Args:
        model, dataset, config_file_list, config_dict: the run that is tuned, as for `run_recbole_kd`.
        space: the search space, a ``.hyper`` file or a result of `parse_space`; by default :func:`default_space`.
        trials: number of configurations, including those of an earlier search in `folder`.
        folder: the folder for trials.csv, trials.png, best.yaml, result.json and the best checkpoint; by default under
            ``checkpoint_dir``/tune, named by the content of the search.
        prune: whether ASHA stops trials that are behind; otherwise every trial is trained to its end.
        grace_epochs: least epochs of every trial; by default a ninth of all.
        cpus: cores for all trials together, if Ray is started here; by default all.
        cpus_per_trial, gpus_per_trial: cores and GPUs for one trial; fractions share a device. By default 1 core, and
            1 GPU if the settings use one.
        ray_address: address of a running cluster to join, such as ``"auto"``. A Ray session of this process is
            used as it is.

    Returns:
        ``model``, ``dataset``, ``seed``, ``valid_metric``, ``space`` (in words), ``trials`` (a record each), ``counts``
        by status, ``best`` with ``trial``, ``settings`` (by dotted name, to be merged over `config_dict`), ``score``,
        ``best_epoch``, ``valid_result`` and ``checkpoint``; ``folder`` and ``config_file`` (best.yaml, for
        ``train --config_files=``). Its ``to_frame()`` has one row for each trial.

    Raises:
        UserError: wrong settings, space or folder; or no trial could be trained.
        KeyboardInterrupt: interrupted; the message says how to continue.
    """
    own = {"trials": trials, "prune": prune, "grace_epochs": grace_epochs, "cpus": cpus}
    TuneOptions.parse("--", {**own, "cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial})
    experiment = Experiment.of(model, dataset, config_file_list or (), config_dict)
    base = experiment.settings
    start_logging(base)
    domains, source = _space(base, space)
    _check_run(base)
    grace = grace_epochs or max(base["eval_step"], math.ceil(base["epochs"] / REDUCTION**2))
    words = {name: f"{domain.kind} {list(domain.values)}" for name, domain in domains.items()}
    settings = {key: value for key, value in base.plain_values().items() if key not in _WITHOUT_EFFECT}
    regime = [settings, words, f"ASHA {REDUCTION} {grace}" if prune else "random"]
    name = f"{base['model']}-{base['dataset']}-{digest(regime)[:12]}"
    place = Path(folder) if folder is not None else Path(base["checkpoint_dir"]) / "tune" / name
    draws = draw_trials(domains, trials, base["seed"])
    _check_space(base, domains, draws, source)
    check_models(experiment)
    check_trackers(base)
    if not ray.is_initialized():
        check_cluster(ray_address)
    splits = load_splits(base)
    splits.require("tune")
    task = Task(
        key=digest(regime, splits.content(), _teacher_files(experiment)),
        model=base["model"],
        dataset=base["dataset"],
        settings=experiment.portable_settings(),
        draws=tuple(draws),
        folder=str(place.absolute()),
        threads=max(1, int(cpus_per_trial)),
    )
    with _claimed(place, task):
        journal = Journal(task, base, domains)
        if journal.pending:
            check_data(task.experiment(), splits)
            teacher = teacher_of(experiment, splits)
            # Before any worker starts: refused settings are reported, and ranked lists are computed once.
            build_student(task.experiment(), splits, teacher)
            del splits, teacher
            scheduler = _pruner(base, journal, grace) if prune else FIFOScheduler()
            with ray_session(ray_address, cpus):
                _run(task, journal, scheduler, cpus_per_trial, _gpus(base, gpus_per_trial))
        return Framed(journal.result(), _rows)


def _rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each trial: number, status, epochs, score, settings."""
    for record in result["trials"]:
        yield {**{key: record[key] for key in ("trial", "status", "score", "best_epoch")}, **record["settings"]}


def evaluate_winner(
    result: Mapping[str, Any],
    config_file_list: Optional[Iterable[str]] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
) -> dict[str, float]:
    """Metrics of the best trial's checkpoint on the test split, which no trial has read.

    Args:
        result: the result of `search`.
        config_file_list, config_dict: its arguments.
    """
    config = KDConfig(result["model"], result["dataset"], config_file_list, config_dict)
    shared = {*general_arguments, *evaluation_arguments, *dataset_arguments} & set(config.final_config_dict)
    settings = {key: config[key] for key in shared if config[key] is not None}
    settings.update(data_path=config.data_root, show_progress=False)
    if not config["eval_batch_size_given"]:
        del settings["eval_batch_size"]
    if config["use_gpu"]:
        del settings["use_gpu"]  # the default uses a GPU if there is one; a given value would require it
    test_result: dict[str, float] = evaluate_checkpoint(result["best"]["checkpoint"], settings)["test_result"]
    return test_result


# Before the search


def _space(base: KDConfig, space: Union[str, Path, Mapping[str, Domain], None]) -> tuple[Mapping[str, Domain], str]:
    """The search space, and its name in messages."""
    if isinstance(space, Mapping):
        if not space:
            raise UserError("The search space is empty; give at least one setting, as in a .hyper file.")
        return space, "The search space"
    if space is None:
        return default_space(base), "The search space"
    return read_space(Path(space)), str(space)


def _check_run(base: KDConfig) -> None:
    """Refuses settings of the run that have no meaning in a search."""
    if not 0 < base["eval_step"] <= base["epochs"]:
        raise UserError(
            f"--eval_step={base['eval_step']} with --epochs={base['epochs']}: no trial would ever be evaluated on "
            "validation; set --eval_step between 1 and --epochs."
        )
    if base["final"]:
        raise UserError("--final is for one training; train what the search finds with --final=true.")
    if base["resume"]:
        raise UserError("--resume is for one training; a search continues if the command is repeated.")
    if base["nproc"] != 1:
        raise UserError("--nproc is for one training; a search runs whole trials in parallel (--cpus, --ray_address).")


def _check_space(base: KDConfig, space: Mapping[str, Domain], draws: Iterable[Mapping[str, Any]], source: str) -> None:
    """Refuses settings that all trials share, settings that nothing reads, and invalid values."""
    fixed = {*overall_properties(), *general_arguments, *evaluation_arguments, *dataset_arguments} - _SEARCHABLE
    fixed |= {"model", "dataset", "config_files", "worker", "eval_step"}
    for name in space:
        if name.partition(".")[0] in fixed:
            raise UserError(
                f"{source} searches '{name}'; data, evaluation, seed, teacher and distillers are the same for all "
                f"trials. Leave it out and give --{name}=VALUE."
            )
    for settings in draws:
        given = merge(base.external_config_dict, nest(settings))
        try:
            config = KDConfig(base["model"], base["dataset"], config_dict=given)
            if config["eval_step"] > config["epochs"]:
                raise UserError(f"epochs={config['epochs']} is less than --eval_step={config['eval_step']}.")
        except UserError as error:
            raise UserError(f"{source} does not fit {base['model']}: {error}") from None


def _teacher_files(experiment: Experiment) -> list[bytes]:
    """Contents of the teachers' files: with another teacher it is another search."""
    files = [Path(file) for source in experiment.teachers for file in source.files]
    return [file.read_bytes() for file in files if file.is_file()]


@contextmanager
def _claimed(folder: Path, task: Task) -> Iterator[None]:
    """Locks the folder for this process, and checks that it belongs to this search."""
    record = folder / "search.json"
    if folder.is_dir() and not record.is_file() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"--output={folder} holds other files; choose a new folder or this search's folder.")
    if not (folder / ".lock").is_file():
        write_atomic(folder / ".lock", lambda file: None, "output")
    with open(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process is searching in '{folder}'; wait for it, or set --output.") from None
        if _read_json(record).get("key", task.key) != task.key:
            raise UserError(
                f"--output={folder} holds another search (other settings, defaults, space, seed or data); "
                "choose another folder."
            )
        save_json({"key": task.key, "model": task.model, "dataset": task.dataset}, record, "output")
        yield


class _Record(TypedDict):
    """The record of a finished trial."""

    trial: int
    settings: dict[str, Any]
    status: str
    score: Optional[float]
    best_epoch: Optional[int]
    epochs: int
    seconds: float
    valid_result: dict[str, Optional[float]]
    valid_history: list[dict[str, Optional[float]]]
    message: Optional[str]


def _read_json(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path, schema)
    except (OSError, UserError):
        return {}
    return content


# The search itself


class Journal(tune.Callback):
    """The records of the trials: read from the folder, and written there when a trial ends.

    Attributes:
        records: number -> record of an ended trial: ``trial``, ``settings``, ``status`` (finished, pruned or failed),
            ``score``, ``best_epoch``, ``epochs``, ``seconds``, ``valid_result``, ``valid_history``, ``message``.
        broken: number -> reason (a lost worker, no memory) of a trial that will be repeated by another search.
    """

    def __init__(self, task: Task, base: KDConfig, space: Mapping[str, Domain]) -> None:
        self.task = task
        self.bigger = bool(base["valid_metric_bigger"])
        self.facts = {
            "model": task.model,
            "dataset": task.dataset,
            "seed": base["seed"],
            "valid_metric": str(base["valid_metric"]).lower(),
            "space": {name: str(domain) for name, domain in space.items()},
        }
        self.given = base.external_config_dict
        self.shows_progress = bool(base["show_progress"])
        self.records: dict[int, dict[str, Any]] = {}
        self.broken: dict[int, str] = {}
        for number, settings in enumerate(task.draws, 1):
            record = _read_json(self._file(number), _Record)
            if record.get("settings") == json.loads(json.dumps(settings)):
                self.records[number] = record
        best = self.best()
        if best is not None and not os.path.isfile(task.checkpoint(best["trial"])):
            del self.records[best["trial"]]  # its weights are missing, so it is trained again
        self._results: dict[int, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._before = len(self.records)
        self.bar: Any = None

    @property
    def pending(self) -> list[int]:
        """Numbers of the trials that must still be trained."""
        return [number for number in range(1, len(self.task.draws) + 1) if number not in self.records]

    def best(self) -> Optional[dict[str, Any]]:
        """The record with the best score; the first of equal ones."""
        scored = [record for _, record in sorted(self.records.items()) if record["score"] is not None]
        if not scored:
            return None
        return (max if self.bigger else min)(scored, key=lambda record: record["score"])

    def history(self, record: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """(epochs trained, best score so far) after each evaluation of a trial."""
        best = -math.inf if self.bigger else math.inf
        for evaluation in record["valid_history"]:
            best = (max if self.bigger else min)(best, evaluation[self.facts["valid_metric"]])
            yield evaluation["epoch"] + 1, best

    # Calls by Ray Tune

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        number = trial.config["number"]
        self._results[number] = result
        if self.bar is not None and "score" in result:
            self.bar.set_postfix_str(f"trial {number}, epoch {result['epoch']}: {result['score']:.4f}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        result = self._results.get(number, {})
        status = "failed" if "failed" in result else "finished" if "ended" in result else "pruned"
        score = result.get("score")
        record = {
            "trial": number,
            "settings": self.task.draws[number - 1],
            "status": status,
            "score": score if score is not None and math.isfinite(score) else None,
            "best_epoch": result.get("best_epoch"),
            "epochs": result.get("epoch", 0),
            "seconds": result.get("seconds", 0.0),
            "valid_result": result.get("valid_result", {}),
            "valid_history": result.get("valid_history", []),
            "message": result.get("failed"),
        }
        save_json(record, self._file(number), "output")
        before = self.best()
        self.records[number] = record
        best = self.best()
        self.task.last(number).unlink(missing_ok=True)
        for loser in (before, record):  # only the best trial's weights are kept
            if loser is not None and loser is not best:
                self.task.checkpoint(loser["trial"]).unlink(missing_ok=True)
        self._say(record)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        text = "its worker process was lost, perhaps because memory ran out"
        with open(trial.error_file) if trial.error_file else nullcontext() as file:
            lines = [line.strip() for line in (file or ()) if line.strip()]
        self.broken[number] = lines[-1] if lines else text
        logging.getLogger().warning(f"Trial {number} broke off: {self.broken[number]}")

    def _say(self, record: Mapping[str, Any]) -> None:
        total, over = len(self.task.draws), len(self.records)
        left = (time.monotonic() - self._started) / max(1, over - self._before) * (total - over)
        best = self.best()
        epochs = "1 epoch" if record["epochs"] == 1 else f"{record['epochs']} epochs"
        parts = [f"Trial {record['trial']} {record['status']} after {epochs}"]
        if record["score"] is not None:
            parts.append(f"{self.facts['valid_metric']} {record['score']:.4f}")
        if record["message"]:
            parts.append(record["message"])
        if best is not None:
            parts.append(f"best {best['score']:.4f} (trial {best['trial']})")
        parts.append(f"{over} of {total} over" + (f", about {duration(left)} left" if over < total else ""))
        if self.bar is not None:
            self.bar.clear()
        logging.getLogger().info("; ".join(parts))
        if self.bar is not None:
            self.bar.update()

    # The result

    def result(self) -> dict[str, Any]:
        """The search's result; trials.csv, trials.png, best.yaml and result.json are written with it.

        Raises:
            UserError: no trial has a score.
        """
        best = self.best()
        if best is None:
            messages = [record["message"] for record in self.records.values()] + list(self.broken.values())
            raise UserError(f"None of {len(self.task.draws)} trials could be trained; the first: {messages[0]}")
        records = [record for _, record in sorted(self.records.items())]
        counts = {status: sum(r["status"] == status for r in records) for status in ("finished", "pruned", "failed")}
        chosen = {key: best[key] for key in ("trial", "settings", "score", "best_epoch", "valid_result")}
        result = {
            **self.facts,
            "trials": records,
            "counts": {**counts, "broken": len(self.broken)},
            "best": {**chosen, "checkpoint": str(self.task.checkpoint(best["trial"]))},
            "folder": self.task.folder,
            "config_file": str(Path(self.task.folder) / "best.yaml"),
        }
        write_report(result, {"model": self.task.model, "dataset": self.task.dataset, **self.given})
        return result

    def _file(self, number: int) -> Path:
        return self.task.checkpoint(number).with_suffix(".json")


def _pruner(base: KDConfig, journal: Journal, grace: int) -> Union[ASHAScheduler, FIFOScheduler]:
    """ASHA with the scores of the trials before an interruption; no pruning if there are too few epochs for a rung."""
    longest = max([base["epochs"], *(draw.get("epochs", 0) for draw in journal.task.draws)])
    if grace >= longest:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max" if journal.bigger else "min",
        max_t=longest - 1,  # no rung at the end, because it would save nothing
        grace_period=grace,
        reduction_factor=REDUCTION,
        stop_last_trials=False,  # a trial ends by itself, with status finished
    )
    for number, record in sorted(journal.records.items()):
        trial = SimpleNamespace(trial_id=f"before-{number}")
        scheduler.on_trial_add(None, trial)
        for epoch, score in journal.history(record):
            scheduler.on_trial_result(None, trial, {"epoch": epoch, "score": score})
    return scheduler


def _gpus(base: KDConfig, gpus_per_trial: Optional[float]) -> float:
    if gpus_per_trial is not None:
        return gpus_per_trial
    return 1 if base["use_gpu"] and torch.cuda.is_available() else 0


def _run(task: Task, journal: Journal, scheduler: Any, cpus_per_trial: float, gpus_per_trial: float) -> None:
    """Trains the pending trials.

    Raises:
        UserError: a trial needs more cores or GPUs than there are.
        KeyboardInterrupt: interrupted; the message says how to continue.
    """
    for kind, wanted in (("CPU", cpus_per_trial), ("GPU", gpus_per_trial)):
        there = ray.cluster_resources().get(kind, 0)
        if wanted > there:
            raise UserError(f"--{kind.lower()}s_per_trial={wanted:g}, but Ray has {there:g}; lower it.")
    # Switched off: Ray Tune's loggers and tables, its handler of Ctrl-C, which would end as if all trials were done,
    # and its requirement that failed trials have a score.
    quiet = environment(
        RAY_AIR_NEW_OUTPUT="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_DISABLE_SIGINT_HANDLER="1",
        TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    )
    total, over = len(task.draws), len(journal.records)
    logging.getLogger().info(f"Searching: {total} trials, {over} of them over; {task.folder}")
    for left_behind in Path(task.folder).glob(".ray-*"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    storage = tempfile.mkdtemp(prefix=".ray-", dir=task.folder)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trainable, task=task), {"cpu": cpus_per_trial, "gpu": gpus_per_trial}
        ),
        param_space={"number": tune.grid_search(journal.pending)},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(
            name="search",
            storage_path=storage,
            verbose=0,
            callbacks=[journal],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    bar = tqdm(total=total, initial=over, desc="Trials", unit="trial", disable=not journal.shows_progress)
    try:
        with quiet, bar as journal.bar:
            tuner.fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after {len(journal.records)} of {total} trials; repeat the command to continue."
        ) from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _trainable(config: dict[str, Any], task: Task) -> None:
    gpus = ray.get_gpu_ids()
    train_trial(task, config["number"], tune.report, gpus)


__all__ = ["Journal", "evaluate_winner", "search"]
