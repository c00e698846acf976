"""An experiment: all decisions of a run, resolved once from the settings and frozen.

Stages take an :class:`Experiment`. No stage derives a configuration, parses options or chooses the teacher.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from recbole_kd.contracts import DistillerOptions
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.checks import TEACHER_KEYS
from recbole_kd.experiment.known_keys import TEACHER_FILES
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.experiment.values import merge, nest
from recbole_kd.files.reading import vector_files
from recbole_kd.sevo.graphs import SEvoOptions
from recbole_kd.student.matryoshka import prefix_sizes

__all__ = ["Experiment", "Optimiser", "TeacherSource", "require_same_task"]


@dataclass(frozen=True)
class TeacherSource:
    """Where one teacher comes from: a model that is trained, a checkpoint, or a file of ranked lists or of vectors.

    Attributes:
        prefix: prefix of its settings: ``teacher.``, or ``teacher.0.`` and so on for several teachers.
        section: its settings in section ``teacher``, by name.
        settings: settings of the model to train; None if the teacher is a file.
        named: the model that the user named, if any; a checkpoint must hold this model.
    """

    prefix: str
    section: Mapping[str, Any]
    settings: KDConfig | None = None
    named: str | None = None

    @classmethod
    def of_checkpoint(cls, path: str, prefix: str = "teacher.") -> TeacherSource:
        """The teacher in a saved model's file."""
        return cls(prefix, {"checkpoint": path})

    @classmethod
    def resolved(cls, student: KDConfig, section: Mapping[str, Any], prefix: str) -> TeacherSource:
        """A teacher that the student's settings ask for.

        Raises:
            UserError: no teacher is named, two sources of one teacher are named, or the teacher does not fit.
        """
        everything = dict(student.external_config_dict.get("teacher") or {})
        number = prefix.partition(".")[2].rstrip(".")
        for key in TEACHER_FILES if number else ():
            if everything.get(key):
                raise UserError(
                    f"--teacher.{key} and --{prefix.rstrip('.')} both name the teacher; keep one, or give a file to "
                    f"one of several teachers, such as --{prefix}{key}=FILE."
                )
        # Settings of all teachers do not apply to a file.
        own = dict(everything.get(number) or {}) if number else everything
        given = {**everything, **own}
        sources = [key for key in ("model", *TEACHER_FILES) if given.get(key)]
        if len(sources) > 1 and sources != ["model", "checkpoint"]:
            raise UserError(f"--{prefix}{sources[-1]} and --{prefix}{sources[0]} both name the teacher; keep one.")
        strange = [key for key in own if not (key.isdigit() or key in TEACHER_KEYS or student.knows(key))]
        from_file = any(map(section.get, TEACHER_FILES))
        if strange and from_file:
            raise UserError(
                f"--{prefix}{strange[0]} is set, but the teacher comes from a file, which has its own settings; "
                f"leave it out.{closest(strange[0], TEACHER_KEYS)}"
            )
        if section.get("ranks") and student.teacher_fusion == "scores" and number:
            raise UserError(
                f"--teacher.fusion=scores needs scores of all items, but --{prefix}ranks has only listed items; "
                "set --teacher.fusion=ranks."
            )
        if from_file:
            return cls(prefix, section, named=str(section.get("model")) if given.get("model") else None)
        if not section.get("model"):
            raise UserError(
                f"Distillation ({', '.join(student.distillers) or 'sevo'}) needs a teacher; "
                f"set --{prefix.rstrip('.')}=NAME, such as LightGCN, or one of "
                f"{', '.join(f'--{prefix}{key}=FILE' for key in TEACHER_FILES)}."
                + "".join(f" --{prefix}{key} is none of these.{closest(key, TEACHER_KEYS)}" for key in strange[:1])
            )
        settings = student.teacher_config(section, prefix)
        require_same_task(student, settings, "teacher")
        return cls(prefix, section, settings)

    @property
    def checkpoint(self) -> str | None:
        """The file of a saved model."""
        return None if self.ranks or self.vectors else self._file("checkpoint")

    @property
    def ranks(self) -> str | None:
        """The file of ranked lists."""
        return self._file("ranks")

    @property
    def vectors(self) -> str | None:
        """The file of vectors."""
        return self._file("vectors")

    @property
    def files(self) -> list[str]:
        """The files of this teacher, existing or not; empty if a model is trained."""
        found = self.checkpoint or self.ranks
        return vector_files(self.vectors) if self.vectors else [found] if found else []

    def _file(self, key: str) -> str | None:
        return str(self.section[key]) if self.section.get(key) else None

    @property
    def share(self) -> float:
        """Its weight among several teachers."""
        return float(self.section["share"])

    @property
    def allow_other_split(self) -> bool:
        """Whether a checkpoint of another split is accepted."""
        return bool(self.section.get("allow_other_split"))


@dataclass(frozen=True)
class Optimiser:
    """The student's optimiser.

    Attributes:
        learner: its name, in lower case.
        fused: whether Adam and AdamW are torch's fused versions.
        sevo: SEvo's options, if the learner is one of its optimisers.
    """

    learner: str
    fused: bool
    sevo: SEvoOptions | None


@dataclass(frozen=True)
class Experiment:
    """One run, resolved.

    Attributes:
        settings: the student's settings; those of data, evaluation, machine and files hold for all models of the run.
        teachers: empty if neither a distiller nor the optimiser reads a teacher.
        fusion: how several teachers' rankings are combined: ``ranks`` or ``scores``.
        distillers: checked options by name, of the distillers whose weights are not all 0.
        optimiser: the student's optimiser.
        fast_sampling: whether the student's batches are drawn fast, if its model can.
        baseline: settings of the plain model to compare the student with, if any.
        prefixes: sizes of the student's prefixes, the whole vector last; empty without ``--matryoshka``.
    """

    settings: KDConfig
    teachers: tuple[TeacherSource, ...]
    fusion: str
    distillers: Mapping[str, DistillerOptions]
    optimiser: Optimiser
    fast_sampling: bool
    baseline: KDConfig | None
    prefixes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        model: str | None = None,
        dataset: str | None = None,
        files: Iterable[str] = (),
        given: Mapping[str, Any] | None = None,
    ) -> Experiment:
        """The experiment of given settings; the arguments are those of :class:`KDConfig`.

        Raises:
            UserError: wrong settings of the student, of a teacher or of the baseline.
        """
        return cls.from_settings(KDConfig(model, dataset, files, given))

    @classmethod
    def from_settings(cls, settings: KDConfig) -> Experiment:
        """The experiment of a student's settings."""
        prefixes = prefix_sizes(settings)
        distillers = settings.active_distillers()
        fast = bool(distillers) if settings["fast_sampling"] is None else bool(settings["fast_sampling"])
        # A plain run that draws its own negatives is not RecBole's bit for bit anyway.
        fused = bool(distillers) or fast if settings["fused_adam"] is None else bool(settings["fused_adam"])
        optimiser = Optimiser(settings["learner"], fused, settings.sevo)
        teachers: tuple[TeacherSource, ...] = ()
        if settings.reads_teacher:
            sections = settings.teacher_sections()
            teachers = tuple(TeacherSource.resolved(settings, one, prefix) for prefix, one in sections.items())
        baseline = None
        if distillers and str(settings["baseline"]).lower() != "none":
            baseline = settings.baseline_config()
            require_same_task(settings, baseline, "baseline")
        fusion = settings.teacher_fusion if len(teachers) > 1 else "ranks"
        return cls(settings, teachers, fusion, MappingProxyType(distillers), optimiser, fast, baseline, prefixes)

    @property
    def rank_folder(self) -> str:
        """The folder of ranked lists."""
        return os.path.join(self.settings["checkpoint_dir"], "ranks")

    def variant(self, **settings: Any) -> Experiment:
        """This experiment with some settings, by dotted name, in place of the given ones."""
        given = merge(self.settings.external_config_dict, nest(settings))
        return Experiment.of(self.settings["model"], self.settings["dataset"], given=given)

    def portable_settings(self) -> dict[str, Any]:
        """The given settings with absolute paths, for other processes of this experiment."""
        config = self.settings
        given = {key: value for key, value in config.external_config_dict.items() if key not in ("model", "dataset")}
        given.pop("result_file", None)
        given["data_path"] = os.path.abspath(config.data_root)
        given["checkpoint_dir"] = os.path.abspath(config["checkpoint_dir"])
        if isinstance(given.get("teacher"), Mapping):
            given["teacher"] = _with_absolute_files(given["teacher"])
        return {**given, "show_progress": False, "save_last": True}


def _with_absolute_files(section: Mapping[str, Any]) -> dict[str, Any]:
    """Section ``teacher``, or the section of one of several teachers, with absolute paths."""
    absolute = dict(section)
    for key, value in section.items():
        if isinstance(value, Mapping):
            absolute[key] = _with_absolute_files(value)
        elif key in TEACHER_FILES and value:
            absolute[key] = os.path.abspath(str(value))
    return absolute


def require_same_task(student: KDConfig, other: KDConfig, role: str) -> None:
    """Refuses a sequential model together with a general one: their training and ranking are different tasks.

    Raises:
        UserError: one of the two models is sequential and the other is not.
    """
    kinds = {True: "a sequential model", False: "a general model"}
    ours, theirs = student.sequential, other.sequential
    if ours != theirs:
        raise UserError(
            f"{student.resolved.backbone} is {kinds[ours]} and the {role} {other.resolved.backbone} is {kinds[theirs]}."
            f" A sequential model ranks items after a sequence, a general one for a user. Set --{role} to "
            f"{kinds[ours]}; 'recbole-kd list' shows them."
        )
