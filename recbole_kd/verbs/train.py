"""``recbole-kd train``: a run from settings to result, a line a stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_kd.cluster.group import ALONE, Group, joined, processes_around, take_own_gpu
from recbole_kd.cluster.launch import together
from recbole_kd.errors import Interrupted, UserError
from recbole_kd.experiment.description import describe
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.files.atomic import check_place
from recbole_kd.files.properties import named_files
from recbole_kd.stages.data import fetch, load_splits
from recbole_kd.stages.estimate import estimated
from recbole_kd.stages.final import check_final, train_final
from recbole_kd.stages.log import log_to_file, start_logging
from recbole_kd.stages.needs import check_data, check_files, check_gpus, check_models, check_resumed
from recbole_kd.stages.result import Framed, rows, summarise, table, write_result
from recbole_kd.stages.student import build_student
from recbole_kd.stages.teacher import shared_teacher
from recbole_kd.stages.testing import evaluate, evaluate_prefixes
from recbole_kd.stages.training import resumable, train_baseline, train_student
from recbole_kd.text import counted
from recbole_kd.trainer.board import new_stamp
from recbole_kd.trainer.kd_trainer import check_loop
from recbole_kd.trainer.trackers import check_trackers
from recbole_kd.verbs.options import TrainOptions

__all__ = ["dry_run", "run", "run_recbole_kd", "table"]


def run(options: TrainOptions, settings: dict[str, Any]) -> None:
    """The verb: trains, prints the table and the files; or prints what would be trained."""
    files = named_files(options.config_files)
    if options.dry_run:
        print(dry_run(files, settings), end="")
        return
    result = run_recbole_kd(config_file_list=files, config_dict=settings)
    if not result:
        return  # only the first of several machines prints
    shown = "test split" if result["test_result"] else "no test split"
    chosen = f"epoch {result['best_epoch']}{' chosen on validation' if result['valid_history'] else ', the last'}"
    print(f"\n{result['dataset']}, {shown}, {chosen if result['best_epoch'] >= 0 else 'no epoch was trained'}")
    print(table(result, asked="metrics" in settings))
    print(f"\nresult and checkpoint: {os.path.splitext(result['checkpoint'] or '')[0]}.{{json,pth}}")
    if final := result["final"]:
        epochs = counted(final["epochs"], "epoch")
        print(f"trained on all {final['interactions']:,} interactions, {epochs}: {final['checkpoint']}")


def run_recbole_kd(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Iterable[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> Framed:
    """Gets the teacher, distils it into the student, evaluates, and saves.

    Args:
        model: a student or a recipe, such as ``"SimRecStudent"``.
        dataset: a dataset's name, such as ``"ml-100k"``.
        config_file_list: YAML files with settings.
        config_dict: settings by name; dotted names reach into sections (``{"teacher.epochs": 50}``).
        saved: whether checkpoints and the result file are written.

    Returns:
        The result; the fields are listed in docs/train.md. Its ``to_frame()`` has one row for each model. With several
        machines it is empty on all except the first.

    Raises:
        UserError: a wrong setting, file or dataset.
        TrainingError: a loss that is not finite, or a process that was killed from outside.
    """
    files = list(config_file_list or ())
    experiment = Experiment.of(model, dataset, files, config_dict)
    config, settings = experiment.settings, (model, dataset, files, dict(config_dict or {}), saved)
    if processes_around(config["nproc"]) > 1:
        with joined() as group:
            return Framed(_run_as_one_of_several(*settings, group), rows)
    if config["nproc"] == 1:
        return Framed(_run(experiment, saved, ALONE), rows)
    check_gpus(config)
    check_loop(config, config["nproc"])
    stamp = new_stamp()
    try:
        if config["ray_address"] not in (None, "local"):
            return Framed(_on_cluster(experiment, saved, stamp), rows)
        return Framed(together(config["nproc"], stamp, _run_as_one_of_several, *settings) or {}, rows)
    except KeyboardInterrupt:
        # Process 0 has ended and cannot name the file of its last complete epoch.
        name = f"{config['model']}-{config['dataset']}-{config['seed']}-{stamp}-last.pth"
        last = config["resume"] or os.path.join(config["checkpoint_dir"], name)
        if os.path.isfile(last):
            raise Interrupted(last) from None
        raise


def dry_run(files: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The resolved experiment as YAML for ``--config_files``, with estimated time and memory as comments.

    No model is kept. Data that are read for the estimate stay compiled, as in any run.

    Raises:
        UserError: as in :func:`run_recbole_kd`, before a model is trained.
    """
    experiment = Experiment.of(files=files, given=settings)
    _check(experiment)
    lines = (f"# {line}\n" for line in estimated(experiment))
    return f"{describe(experiment)}# Estimated from a few steps:\n{''.join(lines)}"


def _on_cluster(experiment: Experiment, saved: bool, stamp: str) -> dict[str, Any]:
    """A run with processes on a Ray cluster: paths are absolute, and these processes compute the rankings too."""
    try:
        from recbole_kd.cluster.ray_train import together_on_cluster  # brings Ray
    except ImportError as error:
        raise UserError(
            f"--ray_address with --nproc needs Ray Train ({error}); run: pip install -U 'ray[train]', or leave --nproc "
            "out."
        ) from None
    config = experiment.settings
    given = {**experiment.portable_settings(), "save_last": config["save_last"], "use_gpu": False}
    given.update({key: os.path.abspath(config[key]) for key in ("resume", "result_file", "warm_start") if config[key]})
    given.update(ray_address=None, nproc=1)
    settings: tuple[Any, ...] = (config["model"], config["dataset"], [], given, saved)
    check_models(experiment)
    folder = given["checkpoint_dir"]
    return together_on_cluster(config["ray_address"], config["nproc"], folder, stamp, _run_as_one_of_several, *settings)


def _run_as_one_of_several(
    model: str | None,
    dataset: str | None,
    files: list[str],
    given: dict[str, Any],
    saved: bool,
    group: Group,
) -> dict[str, Any]:
    """One process's part; only process 0 shows progress and writes records."""
    silent = {} if group.is_first else {"show_progress": False, "log_wandb": False, "log_mlflow": False}
    experiment = Experiment.of(model, dataset, files, {**given, **silent})
    take_own_gpu(experiment.settings["device"])
    return _run(experiment, saved, group)


def _check(experiment: Experiment) -> None:
    """Refuses what needs no data to be refused."""
    check_models(experiment)
    check_files(experiment)
    if experiment.settings["final"]:
        check_final(experiment.settings)
    check_trackers(experiment.settings)


def _run(experiment: Experiment, saved: bool, group: Group) -> dict[str, Any]:
    """A run in one process, of which process 0 returns the result."""
    config = experiment.settings
    _check(experiment)
    if saved:
        check_place(os.path.join(config["checkpoint_dir"], f"{config['model']}.pth"), "checkpoint_dir")
    if config["result_file"]:
        check_place(config["result_file"], "result_file")
    if config["ray_address"]:
        from recbole_kd.cluster.ray import check_cluster  # brings Ray

        check_cluster(config["ray_address"])
    if group.is_first:
        start_logging(config)
    with group.first("data"):
        fetch(config)
    splits = load_splits(config)
    check_data(experiment, splits)
    check_resumed(experiment, splits)
    teacher = shared_teacher(experiment, splits, group) if experiment.teachers else None
    if teacher is not None and config["ray_address"]:
        from recbole_kd.stages.shards import rank_in_shards  # brings Ray

        rank_in_shards(teacher, experiment)
    _, trainer, loaders = build_student(experiment, splits, teacher, group)
    with resumable(trainer):
        train_student(trainer, loaders, saved)
        test_result, evaluate_seconds = evaluate(trainer, loaders[2])
        prefixes = evaluate_prefixes(trainer, loaders, experiment.prefixes)
        baseline = train_baseline(experiment, splits) if group.is_first else None
    result: dict[str, Any] = {}
    if group.is_first:
        result = summarise(config, splits, teacher, trainer, test_result, evaluate_seconds, baseline)
        result["final"] = None
        if prefixes:
            result["prefixes"] = prefixes
        if saved:
            write_result(config, trainer, result)
    if config["final"] and saved:  # what fails from here on loses nothing
        final = train_final(experiment, trainer, teacher, group)
        if group.is_first:
            result["final"] = final
            write_result(config, trainer, result)
    if group.is_first:
        log_to_file(f"Result:\n{table(result)}")
    return result
