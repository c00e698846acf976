"""A run from settings to result: one line per stage."""

from __future__ import annotations

import glob
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Optional, Union

import colorama
import torch
from recbole.utils import init_logger, init_seed
from torch import nn

from recbole_kd.cluster.group import ALONE, Group, Plan, run_processes, share_of_steps
from recbole_kd.contracts import CAPABILITIES, DataView, Distiller, Share
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.prepare import can_prepare, prepare
from recbole_kd.data.splits import Splits, cold_users
from recbole_kd.errors import Interrupted, UserError, closest
from recbole_kd.evaluation.collector import sized_eval_batch
from recbole_kd.evaluation.costs import peak_memory
from recbole_kd.experiment.settings import KDConfig, dataset_names
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import save_json
from recbole_kd.registry import MODELS, distiller_class, distillers, load_class, models
from recbole_kd.sevo.learner import optimizer_factory, reads_a_teacher
from recbole_kd.stages.teacher import (
    AnyTeacher,
    Trained,
    build_model,
    check_sources,
    facts,
    load_weights,
    make_evaluator,
    obtain_teacher,
    require_same_task,
    train_or_fetch,
)
from recbole_kd.student.readers import ModelStudent, capabilities, is_sequential
from recbole_kd.teacher.ensemble import joint_capabilities
from recbole_kd.teacher.ranked_file import RankFileTeacher
from recbole_kd.text import columns
from recbole_kd.trainer.kd_trainer import make_trainer

_VERSIONED = ("recbole-kd", "recbole", "torch", "numpy", "scipy")


def run_recbole_kd(
    model: Optional[str] = None,
    dataset: Optional[str] = None,
    config_file_list: Optional[Iterable[str]] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Gets the teacher, distils it into the student, evaluates, and saves.

    Args:
        model: a student or a recipe, such as ``"SimRecStudent"``.
        dataset: a dataset's name, such as ``"ml-100k"``.
        config_file_list: YAML files with settings.
        config_dict: settings by name; dotted names reach into sections (``{"teacher.epochs": 50}``).
        saved: whether checkpoints and the result file are written.

    Returns:
        The result; the fields are listed in docs/train.md. Empty on all machines but the first of several.

    Raises:
        UserError: a setting, file or dataset that the user can mend.
        TrainingError: a loss that is not finite, or a process that was ended from outside.
    """
    files = list(config_file_list or ())
    config = KDConfig(model, dataset, files, config_dict)
    plan = Plan.of(config)
    if plan is None:
        return _run(config, saved, ALONE)
    name = glob.escape(f"{config['model']}-{config['dataset']}-{config['seed']}")

    def last_files() -> set[tuple[int, str]]:
        files_there = Path(config["checkpoint_dir"]).glob(f"{name}-*-last.pth")
        return {(path.stat().st_mtime_ns, str(path)) for path in files_there}

    before = last_files()
    try:
        return run_processes(plan, _run_as_one_of_several, model, dataset, files, dict(config_dict or {}), saved) or {}
    except KeyboardInterrupt:
        # Process 0 was ended and cannot say where its last whole epoch is. Clocks of files are too coarse to ask when.
        written = last_files() - before
        if written:
            raise Interrupted(max(written)[1]) from None
        raise


def _run_as_one_of_several(
    model: Optional[str],
    dataset: Optional[str],
    files: list[str],
    config_dict: dict[str, Any],
    saved: bool,
    group: Group,
) -> dict[str, Any]:
    return _run(KDConfig(model, dataset, files, config_dict), saved, group)


def _run(config: KDConfig, saved: bool, group: Group) -> dict[str, Any]:
    """One process's part of a run; the result comes from process 0."""
    if group.is_first:
        start_logging(config)
    else:
        config["show_progress"] = False
    check_models(config)
    with group.first("data"):
        fetch(config)
    splits = load_splits(config)
    if any(not (one.get("checkpoint") or one.get("ranks")) for one in config.teacher_sections().values()):
        check_data(config, splits)
    teacher = shared_teacher(config, splits, group) if needs_teacher(config) else None
    if teacher is not None and config["ray_address"]:
        from recbole_kd.cluster.shards import rank_in_shards

        rank_in_shards(teacher, config)
    _, trainer, loaders = build_student(config, splits, teacher, group)
    with _resumable(trainer):
        trainer.fit(*loaders[:2], saved=saved, show_progress=config["show_progress"])
        test_result, evaluate_seconds = evaluate(trainer, loaders[2])
        if not group.is_first:
            return {}
        baseline = train_baseline(config, splits)
    result = summarise(config, splits, teacher, trainer, test_result, evaluate_seconds, baseline)
    if saved:
        write_result(config, trainer, result)
    _log_to_file(f"Result:\n{table(result)}")
    return result


@contextmanager
def _resumable(trainer: Any) -> Iterator[None]:
    """An interrupt inside names the file from which the student goes on, where an epoch of it is done."""
    try:
        yield
    except KeyboardInterrupt:
        if os.path.isfile(trainer.last_file):
            raise Interrupted(trainer.last_file) from None
        raise


def _log_to_file(text: str) -> None:
    """A line of the log's file alone: who runs the program sees it in another place."""
    record = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "msg": text})
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and record.levelno >= handler.level:
            handler.handle(record)


def start_logging(config: KDConfig) -> None:
    """RecBole's logger, and one line on what the run is."""
    if "show_progress" not in config.external_config_dict and not sys.stderr.isatty():
        config["show_progress"] = False
    try:
        init_logger(config)
    except OSError as error:
        raise UserError(
            f"Cannot write the log under {Path('log').absolute()}: {error.strerror}; run from a writable folder."
        ) from None
    colorama.deinit()
    distil = f", distil {', '.join(config.distillers)}" if config.distillers else ""
    logging.getLogger().info(f"{config['model']} on {config['dataset']}{distil}, seed {config['seed']}")
    logging.getLogger().debug(config)


def fetch(config: KDConfig) -> None:
    """Fetches and prepares the dataset of a run where it is missing and can be."""
    folder, name = Path(config["data_path"]), config["dataset"]
    if can_prepare(name) and not config["benchmark_filename"] and not (folder / f"{name}.inter").is_file():
        prepare(name, config.data_root, show_progress=config["show_progress"])


def shared_teacher(config: KDConfig, splits: Splits, group: Group) -> AnyTeacher:
    """:func:`obtain_teacher` in process 0; the others wait for it and read the files that it made.

    Raises:
        UserError: as there; or another machine does not see the file.
    """
    if group.is_first:
        teacher = obtain_teacher(config, splits)
        group.tell("teacher", "\n".join(teacher.files))
        return teacher
    missing = [path for path in group.hear("teacher").split("\n") if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"The teacher '{missing[0]}' of process 0 is not there on the machine of process {group.rank}; run all "
            "machines in a folder that they share, or set --checkpoint_dir to one."
        )
    return obtain_teacher(config, splits)


def load_splits(config: KDConfig) -> Splits:
    """The dataset of a run, fetched and prepared where it is missing and can be, loaded and split once."""
    folder, name = Path(config["data_path"]), config["dataset"]
    fetch(config)
    if not folder.is_dir():
        if name in dataset_names(config.data_root):
            raise UserError(
                f"There is no dataset folder '{folder}'. RecBole offers {name} for download: fetch it from "
                "https://recbole.io/dataset_list.html into that folder, or set --data_path to the folder above it."
            )
        names = dataset_names(config.data_root)
        raise UserError(
            f"Unknown dataset '{name}': there is no folder '{folder}'.{closest(name, names)} "
            "Set --data_path to the folder above the dataset's, or see 'recbole-kd list'."
        )
    init_seed(config.split_seed, config["reproducibility"])
    splits = Splits(config)
    if not config["eval_batch_size_given"]:
        # RecBole counts the batch of a sequential model in sequences, and that of others in scored pairs.
        config["eval_batch_size"] = sized_eval_batch(splits.train.item_num, candidates=1 if config.sequential else None)
        config["eval_batch_size_given"] = True
    cold = cold_users(splits)
    if cold:
        logging.getLogger().warning(
            f"{cold:,} users of the validation and test splits have no training interaction: no model can know them. "
            "--user_inter_num_interval filters users before the split."
        )
    return splits


def needs_teacher(config: KDConfig) -> bool:
    """Whether anything of the run reads a teacher."""
    return bool(config.active_distillers()) or reads_a_teacher(config)


def build_student(
    config: KDConfig, splits: Splits, teacher: Optional[AnyTeacher], group: Group = ALONE
) -> tuple[nn.Module, Any, Any]:
    """The student, its trainer with the distillers, and its loaders."""
    init_seed(config["seed"], config["reproducibility"])
    loaders = make_loaders(config, splits)
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    view = ModelStudent(model)
    distillers: dict[str, Distiller] = {}
    if teacher is not None:
        data = _data_view(config, splits, share_of_steps(model, group))
        # Projectors are initialised from a stream of their own: the student's is as it would be without them. Process 0
        # computes and keeps the ranked lists that the others find.
        with torch.random.fork_rng(), group.first("ranks"):
            torch.manual_seed(config["seed"])
            for name, options in config.active_distillers().items():
                check_needs(name, options, view, teacher)
                distillers[name] = distiller_class(name)(options, view, teacher, data)
    trainer = make_trainer(
        config,
        model,
        distillers=distillers,
        step_context=view.step,
        facts=facts(config, splits),
        optimizer_factory=optimizer_factory(config, splits, model, teacher),
        group=group,
    )
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])
    return model, trainer, loaders


def _data_view(config: KDConfig, splits: Splits, share: Optional[Share] = None) -> DataView:
    return DataView(
        splits.observed, config["epochs"], config["seed"], config["device"], config.sequential, share or Share()
    )


def check_data(config: KDConfig, splits: Splits) -> None:
    """Refuses options that the training split or the models' sizes cannot meet, before a teacher is trained for them.

    Raises:
        UserError: such an option, lists longer than a user's unobserved items say.
    """
    active = [(distiller_class(name), options) for name, options in config.active_distillers().items()]
    data = _data_view(config, splits)
    for kind, options in active:
        kind.check_data(options, data)
    comparing = [(kind, options) for kind, options in active if kind.same_dimensions(options)]
    sections = config.teacher_sections()
    if not comparing or any(section.get(key) for section in sections.values() for key in ("checkpoint", "ranks")):
        return
    configs = [config, *(config.teacher_config(section, prefix) for prefix, section in sections.items())]
    student, *teachers = (ModelStudent(build_model(one, splits.train)) for one in configs)
    dimensions = sum(teacher.dimension or 0 for teacher in teachers)
    for kind, options in comparing:
        kind.check_dimensions(options, student, dimensions or None)


@dataclass(frozen=True)
class _Named:
    """A model that is not built yet, as :func:`check_needs` looks at one."""

    name: str
    model: Any
    capabilities: frozenset[str]
    setting: str = "model"

    @classmethod
    def of(cls, config: KDConfig) -> _Named:
        resolved = config.resolved
        setting = "student" if resolved.recipe else "model"
        return cls(resolved.backbone, resolved.model_class, capabilities(resolved.model_class), setting)


def check_models(config: KDConfig) -> None:
    """Refuses a student that cannot learn from the distillers, or a teacher's model that cannot serve them.

    What a checkpoint or the columns of a file of ranks offer is known when they are read, and checked then.

    Raises:
        UserError: such a student or teacher.
    """
    active = config.active_distillers()
    if not active:
        return
    if not models()[config.resolved.backbone].gradient:
        raise UserError(
            f"{config.resolved.backbone} is computed in closed form: it teaches and does not learn. Set --model to a "
            "student that 'recbole-kd list --kind=students' names, or leave --distill out."
        )
    check_sources(config)
    student, teacher = _Named.of(config), _named_teacher(config)
    for name, options in active.items():
        check_needs(name, options, student, teacher)


def _named_teacher(config: KDConfig) -> Optional[_Named]:
    """The teacher, or several as one, as far as settings tell; None where a file tells."""
    members, sections = [], config.teacher_sections()
    for prefix, section in sections.items():
        if section.get("ranks") and len(sections) > 1:  # beside others its scores are not read
            members.append(_Named("a file of ranks", None, frozenset({"ranks"})))
        elif any(section.get(key) for key in ("checkpoint", "ranks")) or not section.get("model"):
            return None
        else:
            members.append(_Named.of(config.teacher_config(section, prefix)))
    if len(members) < 2:
        return members[0] if members else None
    together = joint_capabilities([member.capabilities for member in members])
    return _Named(" + ".join(member.name for member in members), None, together)


def check_needs(
    name: str, options: Any, student: Union[ModelStudent, _Named], teacher: Union[AnyTeacher, _Named, None]
) -> None:
    """Refuses a student or a teacher, as far as it is known, that lacks what a distiller reads."""
    sequential = is_sequential(student.model)
    needs = _needs(name, options, sequential)
    if needs is None:
        able = _able("student", frozenset(CAPABILITIES), sequential)
        raise UserError(
            f"{name} distils scores or vectors of users, and {student.name} predicts the next item of a sequence; "
            f"set --distill to one of {', '.join(able)}, or another --{getattr(student, 'setting', 'model')}."
        )
    for role, view in (("student", student), ("teacher", teacher)):
        if view is None:
            continue
        for need in sorted(needs[role] - view.capabilities):
            able = _able(role, view.capabilities, sequential)
            advice = f"Use a distiller that does not ({', '.join(able)}) or" if able else "Use"
            if name in able:
                advice = f"With its default options (properties/distiller/{name}.yaml) it does not; set them, or use"
            setting = getattr(student, "setting", "model") if role == "student" else "teacher"
            offering = [one for one in _EXAMPLES if need in capabilities(load_class(MODELS[one].path))]
            other = f"another {role} (--{setting}={'|'.join(offering) or 'NAME'})"
            if need == "listed_scores" and isinstance(view, RankFileTeacher):
                other = "a file with a column 'score'"
            raise UserError(f"{name} reads {CAPABILITIES[need]} of the {role}; {view.name} has none. {advice} {other}.")


#: Models that a message names where one of them would do.
_EXAMPLES = ("BPR", "LightGCN", "SimpleX", "NeuMF", "SASRec", "GRU4Rec")
_ROLES = ("student", "teacher")


def _needs(name: str, options: Any, sequential: bool) -> Optional[dict[str, frozenset[str]]]:
    """What a distiller reads, by role; None where it has no meaning for next-item prediction, which is asked for."""
    kind = distiller_class(name)
    if not sequential:
        return {"student": kind.student_needs(options), "teacher": kind.teacher_needs(options)}
    needs = kind.sequential_needs(options)
    return None if needs is None else dict.fromkeys(_ROLES, needs)


def _able(role: str, capabilities: frozenset[str], sequential: bool) -> list[str]:
    """Distillers that do with what a student or teacher offers, as they are by default."""
    able = []
    for name in distillers():
        try:
            distiller_class(name)
        except UserError:  # another package's, broken
            continue
        needs = _needs(name, distiller_class(name).options_class(), sequential)
        if needs is not None and needs[role] <= capabilities:
            able.append(name)
    return able


def evaluate(trainer: Any, test_data: Any) -> tuple[dict[str, float], float]:
    """Metrics of the best epoch's weights on the test split, and the seconds that they took."""
    trainer.load_best()
    start = time.perf_counter()
    result = _evaluated(trainer, test_data, "test", trainer.saved_model_file, {})
    return {name: float(value) for name, value in result.items()}, time.perf_counter() - start


def _evaluated(trainer: Any, data: Any, split: str, checkpoint: str, given: Mapping[str, Any]) -> Any:
    """Metrics of the trainer's model, which `checkpoint` holds; with ``--ray_address`` computed in shards of users."""
    if trainer.config["ray_address"] and os.path.isfile(checkpoint):
        from recbole_kd.cluster.shards import evaluate_in_shards

        return evaluate_in_shards(trainer, data, split, checkpoint, given)
    return trainer.evaluate(data, load_best_model=False, show_progress=trainer.config["show_progress"])


def train_baseline(config: KDConfig, splits: Splits) -> Optional[Trained]:
    """The plain model that the result stands beside, if the settings name one."""
    name = config["baseline"]
    if name is None or str(name).lower() == "none" or not config.active_distillers():
        return None
    baseline = config.baseline_config()
    require_same_task(config, baseline, "baseline")
    return train_or_fetch(baseline, splits, "baseline")


def summarise(
    config: KDConfig,
    splits: Splits,
    teacher: Optional[AnyTeacher],
    trainer: Any,
    test_result: Mapping[str, float],
    evaluate_seconds: float,
    baseline: Optional[Trained],
) -> dict[str, Any]:
    """The result of a run, as plain values."""
    best_valid_result = trainer.best_valid_result or {}
    return {
        "model": config["model"],
        "student": config.resolved.backbone,
        "dataset": config["dataset"],
        "seed": config["seed"],
        "distillers": list(trainer.distillers),
        "teacher": None if teacher is None else teacher.summary(),
        "baseline": None if baseline is None else _baseline_summary(baseline),
        "best_valid_score": float(trainer.best_valid_score),
        "best_valid_result": {name: float(value) for name, value in best_valid_result.items()},
        "test_result": dict(test_result),
        "best_epoch": trainer.best_epoch,
        "epochs_trained": len(trainer.epoch_seconds),
        "epoch_seconds": list(trainer.epoch_seconds),
        "train_seconds": sum(trainer.epoch_seconds),
        "evaluate_seconds": evaluate_seconds,
        "loss_history": trainer.loss_history,
        "valid_history": trainer.valid_history,
        "parameters": {"student": _size(trainer.model), "teacher": None if teacher is None else teacher.parameters},
        "peak_memory_bytes": peak_memory(),
        "checkpoint": trainer.saved_model_file if os.path.isfile(trainer.saved_model_file) else None,
        "digests": {"config": digest(config.plain_values()), "data": splits.training_digest},
        "versions": versions(),
    }


def _baseline_summary(baseline: Trained) -> dict[str, Any]:
    return {
        "model": baseline.config["model"],
        "checkpoint": baseline.checkpoint,
        "from_cache": baseline.from_cache,
        "test_result": baseline.test_result,
        "parameters": _size(baseline.model),
        "train_seconds": baseline.train_seconds,
    }


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_result(config: KDConfig, trainer: Any, result: Mapping[str, Any]) -> None:
    """The result as JSON beside the checkpoint, and to ``--result_file``."""
    save_json(result, str(Path(trainer.saved_model_file).with_suffix(".json")))
    if config["result_file"]:
        save_json(result, str(config["result_file"]), "result_file")


def table(result: Mapping[str, Any]) -> str:
    """A small table: teacher, student and baseline; metrics, parameters, seconds of training."""
    names = list(result["test_result"])
    shown = [name for name in names if name.startswith(("recall", "ndcg"))] or names
    sizes, teacher, baseline = result["parameters"], result["teacher"], result["baseline"]
    rows = []
    if teacher:
        one = {**teacher, "parameters": sizes["teacher"]}
        rows += [("teacher", member) for member in one.get("members", [one])]
    name = result["model"] if result["student"] == result["model"] else f"{result['model']} ({result['student']})"
    rows.append(("student", {**result, "model": name, "parameters": sizes["student"]}))
    if baseline:
        rows.append(("baseline", baseline))
    lines = [["", "model", *shown, "parameters", "train seconds"]]
    for role, row in rows:
        values = [f"{row['test_result'][key]:.4f}" if key in row["test_result"] else "-" for key in shown]
        lines.append([role, row["model"], *values, f"{row['parameters']:,}", f"{row['train_seconds']:.1f}"])
    return "\n".join(columns(lines))


def load_trained(path: str, config_dict: Optional[Mapping[str, Any]] = None) -> tuple[Trained, Splits]:
    """A saved student, teacher or baseline, and its dataset, read again and compared with what it was trained on.

    Args:
        path: a checkpoint of recbole-kd.
        config_dict: settings over the stored ones (``data_path``, ``metrics``, ``topk``, ...).

    Raises:
        UserError: no checkpoint of ours, or one of another dataset or split.
    """
    state = load_checkpoint(path)
    backbone = state["backbone"]
    given = {"show_progress": sys.stderr.isatty(), **(config_dict or {})}
    dataset = given.pop("dataset", state["dataset"])
    if dataset != state["dataset"]:
        raise UserError(f"'{path}' was trained on {state['dataset']}, and --dataset={dataset}; leave --dataset out.")
    stored = {key: state["config"][key] for key in _DATA_SETTINGS if key in state["config"]}
    if "valid_metric" not in given and ("topk" in given or "metrics" in given):
        # Nothing is chosen here: any metric that is computed will do.
        probe = {key: given.get(key, state["config"].get(key)) for key in ("metrics", "topk")}
        metric, cutoff = (value[0] if isinstance(value, (list, tuple)) and value else value for value in probe.values())
        given["valid_metric"] = f"{metric}@{cutoff}"
    base = KDConfig(backbone, dataset, config_dict={**stored, "distill": [], "teacher": None, **given})
    config = base.checkpoint_config(backbone, state["config"])
    start_logging(config)
    splits = load_splits(config)
    if state["split"] != splits.training_digest:
        raise UserError(
            f"'{path}' was trained on another split of {dataset}: interactions that it should not know may be known "
            "to it; use the data and split settings that it was trained with."
        )
    if state["user_tokens"] != splits.user_tokens or state["item_tokens"] != splits.item_tokens:
        raise UserError(
            f"'{path}' numbers the users and items of {dataset} in another order; use the files it was trained on."
        )
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    load_weights(model, state, path)
    return Trained(config, model, path, False, state), splits


def evaluate_checkpoint(path: str, config_dict: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
    """Full ranking of a saved student, teacher or baseline on its dataset's validation and test split.

    Args and errors are those of :func:`load_trained`.
    """
    trained, splits = load_trained(path, config_dict)
    config = trained.config
    trainer, (_, valid, test) = make_evaluator(config, trained.model, splits)
    results = {}
    for name, data in (("valid_result", valid), ("test_result", test)):
        outcome = _evaluated(trainer, data, name.split("_")[0], path, dict(config_dict or {}))
        results[name] = {metric: float(value) for metric, value in outcome.items()}
    return {"model": trained.state["model"], "dataset": config["dataset"], "checkpoint": path, **results}


#: Settings that say which data a checkpoint was trained on.
_DATA_SETTINGS = (
    "seed",
    "split_seed",
    "eval_args",
    "benchmark_filename",
    "MAX_ITEM_LIST_LENGTH",
    "load_col",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "val_interval",
    "rm_dup_inter",
    "filter_inter_by_user_or_item",
)

__all__ = ["evaluate_checkpoint", "load_trained", "run_recbole_kd", "table"]
