"""The search: trials drawn from the space, trained by Ray Tune, pruned by ASHA, chosen on the validation split."""

from __future__ import annotations

import fcntl
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Union

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
from recbole_kd.files.atomic import check_place, sweep
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import save_json
from recbole_kd.files.properties import overall_properties
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.log import start_logging
from recbole_kd.stages.needs import check_data, check_models
from recbole_kd.stages.result import Framed
from recbole_kd.stages.student import build_student
from recbole_kd.trainer.trackers import check_trackers
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.options import TuneOptions
from recbole_kd.verbs.tune.journal import Journal, read_record
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
        key=digest(regime, [*splits.content(), *splits.columns()], _teacher_files(experiment)),
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
    settings.update(data_path=config.data_root, show_progress=False, quiet=True)  # the trials told the data
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
    if folder.is_dir():
        sweep(folder)  # what a start that was killed left
        if not record.is_file() and any(path.name != ".lock" for path in folder.iterdir()):
            raise UserError(f"--output={folder} holds other files; choose a new folder or this search's folder.")
    check_place(record, "output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()  # never replaced, so that all starts lock one file
    except OSError as error:
        raise UserError(f"Cannot write '{folder}/.lock': {error.strerror}; set --output to another folder.") from None
    with open(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process is searching in '{folder}'; wait for it, or set --output.") from None
        if read_record(record).get("key", task.key) != task.key:
            raise UserError(
                f"--output={folder} holds another search (other settings, defaults, space, seed or data); "
                "choose another folder."
            )
        save_json({"key": task.key, "model": task.model, "dataset": task.dataset}, record, "output")
        yield


# The search itself


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


__all__ = ["evaluate_winner", "search"]
