"""Checks before training: a student or a teacher that lacks what a distiller reads is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_kd.contracts import CAPABILITIES, DataView, DistillerOptions, Needs, Share
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.known_keys import WITHOUT_CUTOFF
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import ModelState, ResumableState, load_any, load_checkpoint
from recbole_kd.model.build import check_sizes
from recbole_kd.registry import MODELS, distiller_class, distillers, load_class, models
from recbole_kd.sevo.graphs import check_columns, check_neighbours
from recbole_kd.stages.teacher import AnyTeacher
from recbole_kd.student.matryoshka import check_prefix_sizes
from recbole_kd.student.readers import ModelStudent, capabilities, dimension_from_settings, is_sequential
from recbole_kd.student.warm import check_backbone
from recbole_kd.teacher.cache import facts
from recbole_kd.teacher.ensemble import joint_capabilities
from recbole_kd.teacher.ranked_file import RankFileTeacher, SequenceRankFileTeacher
from recbole_kd.trainer.learner import require_item_vectors
from recbole_kd.trainer.state import check_model, check_run

__all__ = ["check_data", "check_files", "check_gpus", "check_models", "check_needs", "check_resumed", "data_view"]


def data_view(experiment: Experiment, splits: Splits, share: Share | None = None) -> DataView:
    """The training split as the distillers of an experiment see it."""
    config = experiment.settings
    return DataView(
        splits.observed, config["epochs"], config["seed"], config["device"], share or Share(), splits.repeatable
    )


def check_cutoffs(config: KDConfig, splits: Splits) -> None:
    """
    Raises:
        UserError: a cutoff above the catalogue.
    """
    ranked = [name for name in config["metrics"] if name.lower() not in WITHOUT_CUTOFF]
    cutoff, items = max(config["topk"]), splits.train.item_num - 1
    if ranked and cutoff > items:
        raise UserError(f"--topk={cutoff} exceeds the catalogue of {items:,} items; set --topk to at most that.")


def check_data(experiment: Experiment, splits: Splits, others: bool = False) -> None:
    """Refuses settings that the data cannot meet, before anything is trained.

    Args:
        experiment: the run.
        splits: its data.
        others: whether models of other runs are trained before its student.

    Raises:
        UserError: a cutoff above the catalogue, a model's size that does not fit, lists longer than a user's
            unobserved items, or a graph of columns that are not loaded or of more neighbours than there are.
    """
    config = experiment.settings
    check_cutoffs(config, splits)
    for one in (config, experiment.baseline, *(source.settings for source in experiment.teachers)):
        if one is not None:
            check_sizes(one, splits.train)
    sevo = experiment.settings.sevo
    if sevo is not None:
        check_columns(sevo.graph, sevo.category, splits.train)
        if sevo.graph == "teacher":
            check_neighbours(sevo.neighbours, splits.train.item_num - 2)
    at_once = all(source.settings is None for source in experiment.teachers)  # the student is built next and checks it
    if not experiment.distillers or (at_once and not others):
        return
    data = data_view(experiment, splits)
    for name, options in experiment.distillers.items():
        distiller_class(name, experiment.settings.sequential).check_data(options, data)


@dataclass(frozen=True)
class _Named:
    """A model that is not built yet, with the attributes that :func:`check_needs` reads."""

    name: str
    model: Any
    capabilities: frozenset[str]
    setting: str = "model"
    dimension: int | None = None

    @classmethod
    def of(cls, config: KDConfig) -> _Named:
        resolved = config.resolved
        setting = "student" if resolved.recipe else "model"
        kind = resolved.model_class
        return cls(resolved.backbone, kind, capabilities(kind), setting, dimension_from_settings(kind, config))


def _check_towers(config: KDConfig) -> None:
    """
    Raises:
        UserError: NeuMF starts from two trained towers and has no file of one, or freezes towers that nobody trained.
    """
    if "mf_pretrain_path" not in config.model_keys():
        return
    missing = [name for name in ("mf_pretrain_path", "mlp_pretrain_path") if not config[name]]
    if config["use_pretrain"] and missing:
        raise UserError(
            f"--{config.prefix}use_pretrain=true starts from two trained towers; set "
            f"--{config.prefix}{missing[0]}=FILE."
        )
    if config["freeze_towers"] and not config["use_pretrain"]:
        raise UserError(
            f"--{config.prefix}freeze_towers=true would keep the towers' random weights; set "
            f"--{config.prefix}use_pretrain=true with the two files of trained towers, or leave it out."
        )


def check_models(experiment: Experiment) -> None:
    """Refuses a student that cannot learn from the distillers, or a teacher's model that cannot serve them.

    Checkpoints and files of ranks are checked when they are read.

    Raises:
        UserError: such a student or teacher.
    """
    for config in (experiment.settings, experiment.baseline, *(source.settings for source in experiment.teachers)):
        if config is not None:
            _check_towers(config)
    sevo = experiment.settings.sevo
    if sevo is not None and sevo.graph == "teacher" and (teacher := _named_teacher(experiment)):
        require_item_vectors(teacher.capabilities)
    if not experiment.distillers:
        return
    backbone = experiment.settings.resolved.backbone
    if not models()[backbone].gradient:
        raise UserError(
            f"{backbone} is computed in closed form: it can be a teacher but not a student. Set --model to a "
            "student that 'recbole-kd list --kind=students' names, or leave --distill out."
        )
    student, teacher = _Named.of(experiment.settings), _named_teacher(experiment)
    for name, options in experiment.distillers.items():
        check_needs(name, options, student, teacher)
        size = teacher.dimension if teacher else None
        check_prefix_sizes(name, options, experiment.prefixes, size, student.dimension)


def check_files(experiment: Experiment) -> None:
    """Reads the checkpoints that a run needs after its teacher's training, to refuse a wrong one before it.

    Raises:
        UserError: as :func:`~recbole_kd.files.checkpoint.load_any`.
    """
    if all(source.settings is None for source in experiment.teachers):
        return  # they are read at once
    config = experiment.settings
    if config["resume"]:
        check_model(config["resume"], load_checkpoint(config["resume"], schema=ResumableState), config["model"])
    if config["warm_start"]:
        state = load_checkpoint(config["warm_start"], schema=ModelState)
        check_backbone(config["warm_start"], state, config.resolved.backbone)
    for source in experiment.teachers:
        if source.checkpoint:
            load_any(source.checkpoint)


def check_resumed(experiment: Experiment, splits: Splits) -> None:
    """Compares a run that is to go on with this one, before a teacher is trained.

    Raises:
        UserError: other data, or other settings of training, than the file's.
    """
    config = experiment.settings
    if config["resume"] and any(source.settings is not None for source in experiment.teachers):
        state = load_checkpoint(config["resume"], schema=ResumableState)
        check_run(config["resume"], state, config, facts(config, splits))


def _named_teacher(experiment: Experiment) -> _Named | None:
    """The teacher, or several as one, as far as the settings determine it; None if a file determines it."""
    members = []
    for source in experiment.teachers:
        if source.settings is not None:
            members.append(_Named.of(source.settings))
        elif source.ranks and len(experiment.teachers) > 1:  # with several teachers its scores are not read
            members.append(_Named("a file of ranks", None, frozenset({"ranks"})))
        elif source.vectors and len(experiment.teachers) > 1:  # whether it has users is known when it is read
            offered = frozenset({"representations", "pair_representations", "side_vectors", "item_representations"})
            members.append(_Named("a file of vectors", None, offered))
        else:
            return None
    if len(members) < 2:
        return members[0] if members else None
    together = joint_capabilities([member.capabilities for member in members])
    sizes = [member.dimension for member in members]
    side_by_side = None if None in sizes else sum(size or 0 for size in sizes)
    return _Named(" + ".join(member.name for member in members), None, together, dimension=side_by_side)


def check_needs(name: str, options: Any, student: ModelStudent | _Named, teacher: AnyTeacher | _Named | None) -> None:
    """Refuses a student or a teacher that lacks what a distiller reads, as far as the models are known."""
    sequential = is_sequential(student.model)
    needs = _needs(name, options, sequential)
    if needs is None:
        able = _able("student", frozenset(CAPABILITIES), sequential)
        raise UserError(
            f"{name} distils scores or vectors of users, but {student.name} predicts the next item of a sequence; "
            f"set --distill to one of {', '.join(able)}, or another --{getattr(student, 'setting', 'model')}."
        )
    for role, view in (("student", student), ("teacher", teacher)):
        if view is None:
            continue
        for need in sorted(needs.lacking(role, view.capabilities)):
            able = _able(role, view.capabilities, sequential)
            advice = f"Use a distiller that does not ({', '.join(able)}) or" if able else "Use"
            if name in able:
                advice = f"With its default options (properties/distiller/{name}.yaml) it does not; set them, or use"
            setting = getattr(student, "setting", "model") if role == "student" else "teacher"
            offering = [one for one in _EXAMPLES if need in capabilities(load_class(MODELS[one].path))]
            other = f"another {role} (--{setting}={'|'.join(offering) or 'NAME'})"
            found = "none"
            lists = isinstance(view, SequenceRankFileTeacher) and needs.otherwise == "sequence_listed_scores"
            if lists or (need == "listed_scores" and isinstance(view, RankFileTeacher)):
                other = "a file with a column 'score'"
            if need == "representations" and "item_representations" in view.capabilities:
                found, other = "only vectors of items", "a file with vectors of users too"
            raise UserError(
                f"{name} reads {CAPABILITIES[need]} of the {role}; {view.name} has {found}. {advice} {other}."
            )


#: Models that a message names as examples, if they have what is needed.
_EXAMPLES = ("BPR", "LightGCN", "SimpleX", "NeuMF", "SASRec", "GRU4Rec")


def _needs(name: str, options: DistillerOptions, sequential: bool) -> Needs | None:
    """What a distiller reads; None if `sequential` is true and it has no version for next-item prediction."""
    if not sequential:
        return options.needs
    return options.sequence_needs if distillers()[name].sequential else None


def _able(role: str, capabilities: frozenset[str], sequential: bool) -> list[str]:
    """Distillers whose needs, with default options, a student or teacher with these capabilities meets."""
    able = []
    for name in distillers():
        try:
            distiller_class(name)
        except UserError:  # a broken class of another package
            continue
        needs = _needs(name, distiller_class(name).options_class(), sequential)
        if needs is not None and not needs.lacking(role, capabilities):
            able.append(name)
    return able


def check_gpus(config: KDConfig) -> None:
    """Refuses more processes than there are GPUs for.

    Raises:
        UserError: there are too few GPUs; the message has both numbers.
    """
    given = [part for part in str(config["gpu_id"]).split(",") if part.strip()]
    if config["device"].type == "cuda" and len(given) < config["nproc"]:
        raise UserError(
            f"--nproc={config['nproc']} needs as many GPUs, but --gpu_id={config['gpu_id']} names {len(given)}; "
            "set --gpu_id=0,1 and so on, or --use_gpu=False."
        )
