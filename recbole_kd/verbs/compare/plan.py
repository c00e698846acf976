"""Makes the rows of a comparison from its settings: the named models, each recipe's teacher and its plain student."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from recbole_kd.data.fast_sampling import samples_fast
from recbole_kd.errors import UnknownSetting, UserError, closest
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.known_keys import check, draws_candidates
from recbole_kd.experiment.settings import WITHOUT_EFFECT, KDConfig
from recbole_kd.experiment.values import at, leaves, merge, nest
from recbole_kd.files.digest import digest
from recbole_kd.files.properties import named_files, read_yaml
from recbole_kd.options import checked
from recbole_kd.registry import models as model_entries
from recbole_kd.registry import recipes
from recbole_kd.stages.needs import check_models
from recbole_kd.stages.result import versions
from recbole_kd.verbs.options import MOST, CompareOptions

#: Keys of a model's section that are not settings of the model.
_SECTION_KEYS = ("model", "seeds", "space")
#: Setting that has no meaning here -> what to do instead.
_REFUSED = {
    "model": "list models with --models=A,B",
    "baseline": "the plain student of each recipe is a row already; list other models in --models",
    "resume": "repeat the same command to continue",
    "result_file": "results are written to --output",
    "final": "train the chosen student with 'recbole-kd train --final=true'",
    "nproc": "a comparison makes whole runs in parallel; see --parallel",
}
#: Settings that do not change a run's result; the device changes its costs.
_WITHOUT_EFFECT = WITHOUT_EFFECT | {"model", "student", "ray_address"}
#: Grows when runs of older versions cannot be compared with new ones.
_RUN_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """A line of the table: one model with its settings, trained with every seed.

    Attributes:
        name: its name in the table.
        role: "teacher", "plain" (a recipe's student without its distillers), "recipe" or "model".
        model: an architecture or recipe; for a teacher, the model of one of its students.
        dataset: the dataset's name.
        settings: nested, without the seed.
        seeds: one run for each.
        teacher: name of its teacher's row, or of the first teacher's; None if teachers are files of another system.
        reference: name of the row of the plain student of its size.
        space: a ``.hyper`` file to search instead of the model's own; "none": do not search.
        swept: this row's values of ``sweep``, by dotted name.
        swept_from: the label of the model that was swept.
    """

    name: str
    role: str
    model: str
    dataset: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    teacher: Optional[str] = None
    reference: Optional[str] = None
    space: Optional[str] = None
    swept: Mapping[str, Any] = field(default_factory=dict)
    swept_from: Optional[str] = None

    def config(self, seed: int) -> KDConfig:
        """The settings of the run with this seed; for a teacher, the settings of its student.

        Raises:
            UserError: the model refuses the settings; the message names the row.
        """
        try:
            return KDConfig(self.model, self.dataset, config_dict={**self.settings, "seed": seed})
        except UserError as error:
            if isinstance(error, UnknownSetting):
                error.known += [field.name for field in fields(CompareOptions)]
            raise UserError(f"{self.name}: {error}") from None

    def experiment(self, seed: int) -> Experiment:
        """The run with this seed, resolved."""
        return Experiment.from_settings(self.config(seed))

    @cached_property
    def first_config(self) -> KDConfig:
        """:meth:`config` with the first seed."""
        return self.config(self.seeds[0])

    @property
    def distillers(self) -> list[str]:
        """The distillers that have a weight."""
        return [] if self.role == "teacher" else list(self.first_config.active_distillers())

    @property
    def backbone(self) -> str:
        """The architecture."""
        config = self.first_config
        if self.role != "teacher":
            return config.resolved.backbone
        return str((config["teacher"] or {}).get("model") or Path(config["teacher"]["checkpoint"]).stem)

    def key(self, seed: int, data: str) -> str:
        """Digest of everything that a run's result depends on.

        Args:
            data: digest of the splits.
        """
        experiment = self.experiment(seed)
        config = experiment.settings
        parts: list[Any] = [_RUN_FORMAT, versions(), data, seed]
        for source in experiment.teachers:
            for file in source.files or ("",):
                parts += _stamp(file)
            if source.section.get("model"):
                teacher = source.settings or config.teacher_config(source.section, source.prefix)
                parts += [_effective(teacher), teacher["seed"]]
        if len(experiment.teachers) > 1:
            parts += [experiment.fusion, [source.section["share"] for source in experiment.teachers]]
        if self.role != "teacher":
            parts += [config.resolved.backbone, _effective(config)]
            parts += _stamp(config["warm_start"]) if config["warm_start"] else []
        return digest(*parts)

    def chosen(self) -> dict[str, Any]:
        """Settings from a preset or from the user, with their values: the differences to RecBole's defaults."""
        config = self.first_config
        if self.role == "teacher":
            (section,) = config.teacher_sections().values()
            return {key: value for key, value in section.items() if value is not None}
        given = set(self.settings)
        if self.role == "plain":  # it was made with every value of its recipe
            usual = KDConfig(self.model, self.dataset).plain_values()
            values = config.plain_values()
            given = {key for key in given if values.get(key) != usual.get(key)}
        keys = {*config.preset_keys, *given, *config.distillers}
        keys -= {"data_path", "checkpoint_dir", "show_progress", "baseline"}
        if not config.reads_teacher:
            keys -= {"teacher", "distill"}
        values = config.plain_values()
        return {key: values[key] for key in sorted(keys) if values.get(key) is not None}


@dataclass(frozen=True)
class Plan:
    """The rows, data and budget of a comparison.

    Attributes:
        rows: with the settings of the first split.
        split_seeds: of the splits; each row is trained with each of its seeds on each split.
        candidates: ``uni499``: each target is also ranked among so many drawn items.
    """

    dataset: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    tune_trials: int
    epochs: int
    stopping_step: int
    own_budgets: Mapping[str, str]
    output: Path
    parallel: int
    split_seeds: tuple[int, ...]
    candidates: Optional[str] = None

    @property
    def students(self) -> list[Row]:
        """All rows except the teachers."""
        return [row for row in self.rows if row.role != "teacher"]

    def on_split(self, split_seed: int) -> Plan:
        """The same plan on one of the splits alone."""
        rows = (replace(row, settings={**row.settings, "split_seed": split_seed}) for row in self.rows)
        return replace(self, rows=tuple(rows), split_seeds=(split_seed,))


def plan(settings: Mapping[str, Any]) -> Plan:
    """The comparison of these settings, checked as far as possible without the data.

    Args:
        settings: by dotted name, the verb's options among them; ``config_files`` names YAML files that may hold any of
            them, ``models`` as a mapping of labels to settings.

    Raises:
        UserError: wrong settings; nothing has been trained or written then.
    """
    given = dict(settings)
    common: dict[str, Any] = {}
    for file in named_files(str(given.pop("config_files", "") or "")):
        common = merge(common, nest(read_yaml(Path(file))))
    if common.get("use_gpu") is True:
        del common["use_gpu"]  # its default; another machine may have written the file
    in_files = common.get("models")
    common = merge(common, nest(given))
    for key, instead in _REFUSED.items():
        if key in common:
            raise UserError(f"--{key} is not a setting of compare: {instead}.")
    dataset = common.pop("dataset", None)
    if dataset is None:
        raise UserError("No dataset is given; set --dataset=NAME, such as ml-100k.")
    dataset = str(dataset)
    names = [field.name for field in fields(CompareOptions)]
    own = {name: common.pop(name, None) for name in names}
    options = CompareOptions.parse("--", {name: value for name, value in own.items() if value is not None})
    sections = _sections(options.models, in_files)
    first = common.pop("seed", 2020)
    common["split_seed"] = common.get("split_seed", first)
    check({"seed": first, "split_seed": common["split_seed"]}, {})
    seeds = _seeds(options.seeds, first, "seeds")
    rows = [_row(name, section, common, dataset, seeds) for name, section in sections.items()]
    if options.sweep:
        rows, sections = _swept(rows, sections, options, common, seeds)
    _refuse_unread(common, rows)
    rows = _one_protocol(rows)
    rows, epochs, stopping, exceptions = _equal_budgets(rows, common, sections)
    rows = _with_companions(rows, seeds)
    if options.tune_trials:
        _check_spaces(rows)
    if options.candidates:
        _check_candidates(options.candidates, rows[-1].first_config["eval_args"]["mode"]["test"])
    if options.splits > 1:
        _check_random_split(options.splits, rows[-1].first_config)
    return Plan(
        dataset=dataset,
        rows=tuple(rows),
        seeds=seeds,
        tune_trials=options.tune_trials,
        epochs=epochs,
        stopping_step=stopping,
        own_budgets=exceptions,
        output=Path(options.output),
        parallel=options.parallel,
        split_seeds=tuple(range(common["split_seed"], common["split_seed"] + options.splits)),
        candidates=options.candidates,
    )


def _check_candidates(candidates: str, mode: str) -> None:
    """
    Raises:
        UserError: they are no number of drawn items, or the usual metrics are not among all items.
    """
    if not draws_candidates(candidates):
        raise UserError(f"--candidates={candidates!r}; expected uniN or popN with N of at least 1.")
    if mode != "full":
        raise UserError(
            f"--candidates={candidates} adds metrics among drawn items to those among all, but "
            f"--eval_args.mode={mode} ranks no others; leave one of them out."
        )


def _check_random_split(count: int, config: KDConfig) -> None:
    """
    Raises:
        UserError: the split does not depend on ``split_seed``, so that all splits would be the same.
    """
    order, files = config["eval_args"]["order"], config["benchmark_filename"]
    if files or config["split_time"] or order != "RO":
        found = "--benchmark_filename gives it" if files else "it is made in time"
        raise UserError(
            f"--splits={count} needs a random split, but {found}; leave --splits out and set --seeds={count}, or set "
            "--eval_args.order=RO."
        )


def _sections(models: Any, in_files: Any) -> dict[str, dict[str, Any]]:
    """Label -> its own settings, in the given order.

    ``--models=A,B`` can name labels of a YAML section and models.
    """
    described = in_files if isinstance(in_files, Mapping) else {}
    if isinstance(models, str):
        models = [name.strip() for name in models.split(",") if name.strip()]
    if isinstance(models, Mapping):
        described, models = models, list(models)
    if not isinstance(models, (list, tuple)) or not models:
        raise UserError(f"--models={models!r}; expected names, such as --models=BPR,DERRDStudent.")
    for one in models:
        if isinstance(one, Mapping):
            raise UserError(
                f"models lists {dict(one)}; expected names, or labels with settings "
                "(models: {LABEL: {model: BPR}}): write them without dashes."
            )
    names = [str(name) for name in models]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--models lists '{name}' more than once; give the second one another label in a YAML file "
                f"(models: {{{name}: {{}}, {name} again: {{model: {name}, ...}}}})."
            )
    sections, known = {}, {*model_entries(), *recipes()}
    for name in names:
        section = described.get(name) or {}
        near = "" if name in described or name in known or ":" in name else closest(name, described)
        if near:
            raise UserError(f"--models names '{name}', which is neither a label of the YAML files nor a model.{near}")
        if not isinstance(section, Mapping):
            raise UserError(f"models.{name} is {section!r}; expected the settings of a model, such as {{model: BPR}}.")
        sections[name] = nest(section)
    return sections


def _seeds(value: Any, first: int, name: str) -> tuple[int, ...]:
    """The seeds of a list, or as many seeds as a number says."""
    if not isinstance(value, (list, tuple)):
        return tuple(range(first, first + checked(f"--{name}", value, int, {"minimum": 1, "maximum": MOST})))
    seeds = tuple(checked(f"--{name}", seed, int, {"minimum": 0, "maximum": 2**32 - 1}) for seed in value)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--{name}={list(value)!r}; expected distinct seeds, such as --{name}=[1,2,3], or their number."
        )
    return seeds


def _row(name: str, section: Mapping[str, Any], common: Mapping[str, Any], dataset: str, seeds: Sequence[int]) -> Row:
    """A named model: its own settings, over the common settings that it reads."""
    settings = {key: value for key, value in section.items() if key not in _SECTION_KEYS}
    model = str(section.get("model") or name)
    for key in ("seed", "split_seed", *_REFUSED):
        if key in settings:
            raise UserError(f"models.{name}.{key} is not a setting of a model; set seeds with models.{name}.seeds.")
    own_seeds = (
        tuple(seeds) if section.get("seeds") is None else _seeds(section["seeds"], seeds[0], f"models.{name}.seeds")
    )
    if len(own_seeds) != len(seeds):
        raise UserError(
            f"models.{name}.seeds has {len(own_seeds)} seeds but --seeds has {len(seeds)}; give equally many."
        )
    # What it reads depends on these.
    deciding = ("learner", "distill", "student") if model in recipes() else ("learner", "distill")
    structure = merge(
        {key: common[key] for key in deciding if key in common},
        {key: settings[key] for key in ("learner", "distill", "student") if key in settings},
    )
    row = Row(name, "model", model, dataset, {}, own_seeds, space=section.get("space"))
    probe = replace(row, settings=structure).first_config
    settings = merge({key: value for key, value in common.items() if probe.reads(key)}, settings)
    # All rows use the same Adam and loader, because epochs are compared too; distilled runs use the fast versions.
    fast = samples_fast(probe.resolved.backbone, probe["MODEL_TYPE"]) and not settings.get("every_position")
    base = {"state": "WARNING", "fused_adam": True, "fast_sampling": fast}
    row = replace(row, settings={**base, **settings, "baseline": None, "show_progress": False})
    check_models(Experiment.from_settings(row.first_config))
    if row.first_config.reads_teacher:
        teacher = merge({"seed": seeds[0]}, settings.get("teacher") or {})
        return replace(row, role="recipe", settings={**row.settings, "teacher": teacher})
    return replace(row, settings={key: value for key, value in row.settings.items() if key != "teacher"})


def _swept(
    rows: Sequence[Row],
    sections: Mapping[str, dict[str, Any]],
    options: CompareOptions,
    common: Mapping[str, Any],
    seeds: Sequence[int],
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """A row for every combination of values of ``sweep`` that a model reads; other models have one row."""
    swept = _sweep_values(options.sweep)
    if options.tune_trials:
        raise UserError("--sweep sets what --tune_trials would search; leave one of them out.")
    read = {row.name: [key for key in swept if row.first_config.reads(key)] for row in rows}
    for key in swept:
        if not any(key in keys for keys in read.values()):
            raise UserError(f"--sweep.{key} is read by none of the models {', '.join(read)}.")
    found: list[Row] = []
    described: dict[str, dict[str, Any]] = {}
    for row in rows:
        keys, section = read[row.name], sections[row.name]
        for values in itertools.product(*(swept[key] for key in keys)):
            own = dict(zip(keys, values))
            label = ", ".join([row.name, *(f"{key} {value}" for key, value in own.items())])
            described[label] = merge(section, nest(own))
            again = _row(label, {"model": row.model, **described[label]}, common, row.dataset, seeds)
            found.append(replace(again, swept=own, swept_from=row.name if own else None))
    return found, described


def _sweep_values(sweep: Any) -> dict[str, list[Any]]:
    """Dotted name -> distinct values.

    Raises:
        UserError: not a mapping of one or two settings to lists of at least two distinct values.
    """
    expected = "expected one or two settings with a list of values each, such as --sweep.rrd.weight=[0.001,0.01,0.1]"
    if not isinstance(sweep, Mapping):
        raise UserError(f"--sweep={sweep!r}; {expected}.")
    values = {key: at(sweep, key) for key in leaves(sweep)}
    if not 1 <= len(values) <= 2:
        raise UserError(f"--sweep names {len(values)} settings; {expected}.")
    for key, given in values.items():
        if not isinstance(given, (list, tuple)) or len({str(value) for value in given}) < max(2, len(given)):
            raise UserError(f"--sweep.{key}={given!r}; {expected}, each value once.")
        if key in _SECTION_KEYS or key in _REFUSED or key in ("seed", "split_seed"):
            raise UserError(f"--sweep.{key} is not a model's own setting; {expected}.")
    return {key: list(given) for key, given in values.items()}


def _refuse_unread(common: Mapping[str, Any], rows: Sequence[Row]) -> None:
    for key, value in common.items():
        if key != "split_seed" and not any(row.first_config.reads(key) for row in rows):
            # The configuration's own error is better: it names the closest setting.
            replace(rows[0], settings={**rows[0].settings, key: value}).config(rows[0].seeds[0])
            raise UserError(f"Setting '{key}' is read by none of the models {', '.join(row.name for row in rows)}.")


def _one_protocol(rows: Sequence[Row]) -> list[Row]:
    """Gives general models beside sequential ones the sequential models' split and ranked items.

    Whether users and targets are the same is checked when the data are read.
    """
    settings = next((row.first_config for row in rows if row.first_config.sequential), None)
    if settings is None:
        return list(rows)
    shared = {"eval_args": settings["eval_args"], "repeatable": settings["repeatable"]}
    return [row if row.first_config.sequential else replace(row, settings={**row.settings, **shared}) for row in rows]


def _equal_budgets(
    rows: Sequence[Row], common: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Row], int, int, dict[str, str]]:
    """The same epochs and stopping for every student: the given values, or the largest in their presets."""
    budget = {}
    for key in ("epochs", "stopping_step"):
        open_rows = [row for row in rows if key not in sections[row.name]] or rows
        budget[key] = common.get(key, max(row.first_config[key] for row in open_rows))
    exceptions = {
        name: ", ".join(f"{key} {section[key]}" for key in budget if key in section)
        for name, section in sections.items()
        if any(key in section for key in budget)
    }
    equal = [replace(row, settings={**budget, **row.settings}) for row in rows]
    return equal, budget["epochs"], budget["stopping_step"], exceptions


def _with_companions(rows: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    """Teachers and plain students first, each once, then the named rows, which refer to them."""
    taken = {row.name for row in rows}
    teachers: dict[str, Row] = {}
    plain: dict[str, Row] = {}
    named: list[Row] = []
    for row in rows:
        if row.role != "recipe":
            named.append(row)
            continue
        keys = []
        for teacher in _teachers(row, seeds):
            keys.append(teacher.key(seeds[0], ""))
            if keys[-1] not in teachers:
                teachers[keys[-1]] = replace(teacher, name=_free(f"{teacher.backbone} (teacher)", taken))
        student = _plain_student(row, seeds)
        plain_key = student.key(seeds[0], "")
        twin = next((other for other in rows if other.role == "model" and other.key(seeds[0], "") == plain_key), None)
        if plain_key not in plain:
            plain[plain_key] = twin or replace(student, name=_free(f"{student.backbone} (plain)", taken))
        named.append(replace(row, teacher=teachers[keys[0]].name if keys else None, reference=plain[plain_key].name))
    references = {row.name for row in plain.values()}
    named = [replace(row, role="plain") if row.name in references else row for row in named]
    added = [row for row in plain.values() if row.name not in {other.name for other in named}]
    return [*teachers.values(), *added, *named]


def _teachers(row: Row, seeds: Sequence[int]) -> list[Row]:
    """A row for each of the recipe's teachers that can be evaluated: another system's file has no scores of all."""
    alone = replace(row, role="teacher", seeds=(seeds[0],), swept={})
    sections = list(row.first_config.teacher_sections().values())
    if len(sections) == 1:
        return [] if _is_foreign(sections[0]) else [alone]
    sections = [section for section in sections if not _is_foreign(section)]
    # A checkpoint names its own model, so a model from a preset is ignored.
    own = [{**section, "model": None} if section.get("checkpoint") else section for section in sections]
    return [replace(alone, settings={**row.settings, "teacher": {"count": 1, **section}}) for section in own]


def _is_foreign(section: Mapping[str, Any]) -> bool:
    return bool(section.get("ranks") or section.get("vectors"))


def _plain_student(row: Row, seeds: Sequence[int]) -> Row:
    """The recipe's backbone with the recipe's settings, without teacher and distillers."""
    config = KDConfig(row.model, row.dataset, config_dict={**row.settings, "seed": seeds[0], "baseline": "student"})
    alone = config.baseline_config()
    settings = {key: value for key, value in alone.external_config_dict.items() if key not in ("seed", "baseline")}
    return Row("plain", "plain", config.resolved.backbone, row.dataset, settings, tuple(seeds))


def _free(name: str, taken: set[str]) -> str:
    """`name`, with a number in its bracket if it is taken: "BPR (plain 2)"."""
    candidates = (name if number == 1 else f"{name[:-1]} {number})" for number in itertools.count(1))
    found = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(found)
    return found


def _stamp(file: str) -> list[Any]:
    """Name, size and date of a file, for a digest: its content may be gigabytes."""
    stamp = os.stat(file) if os.path.isfile(file) else None
    return [file or None, None if stamp is None else [stamp.st_size, stamp.st_mtime_ns]]


def _effective(config: KDConfig) -> dict[str, Any]:
    """Settings that a run's result depends on."""
    left_out = _WITHOUT_EFFECT | {"seed"}
    if not config.reads_teacher:
        left_out |= {"teacher", "distill"}
    return {key: value for key, value in config.plain_values().items() if key not in left_out}


def _check_spaces(rows: Iterable[Row]) -> None:
    from recbole_kd.verbs.tune import default_space

    for row in rows:
        if row.role == "teacher" or row.space is not None:
            continue
        try:
            default_space(row.first_config)
        except UserError:
            raise UserError(
                f"--tune_trials is set, but there is no search space for {row.model}. "
                f"Give one as models.{row.name}.space=FILE.hyper in a YAML file; with space: none it is not searched."
            ) from None
