"""KDConfig: RecBole's Config that finds our units, nests sections, rejects unknown keys and never reads sys.argv."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Optional

import numpy as np
import recbole
import yaml
from recbole.config import Config
from recbole.evaluator import metric_types
from recbole.utils import ModelType, dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from recbole_kd.errors import UserError, closest
from recbole_kd.experiment import known_keys
from recbole_kd.files.checkpoint import load_any
from recbole_kd.files.properties import (
    PROPERTIES,
    Repeated,
    SafeLoader,
    load_yaml,
    overall_properties,
    read_properties,
    read_yaml,
)
from recbole_kd.options import Options
from recbole_kd.registry import MODELS, Resolved, distiller_class, distiller_name, distillers, recipes, resolve_model
from recbole_kd.sevo.graphs import SEvoOptions

#: RecBole's settings that are mappings and replaced as a whole. Of other mappings (the sections of units, eval_args,
#: train_neg_sample_args) the given keys replace and the others stay.
_RECBOLE_MAPPINGS = frozenset({*dataset_arguments, "clip_grad_norm", "split"})
#: As RecBole has them before any Config is made: each Config of its own appends a dataset's keys to its lists.
_DATASET_KEYS = tuple(dataset_arguments)
TEACHER_KEYS = ("model", "checkpoint", "ranks", "allow_other_split", "count", "share", "fusion")
#: Packages of a model's bases that read no settings.
_NO_MODEL = ("torch", "builtins", "abc", "typing")
#: Settings of the machine and of output: whatever they are, the same is learned.
WITHOUT_EFFECT = frozenset(
    (
        *("gpu_id", "use_gpu", "state", "show_progress", "worker", "log_wandb", "wandb_project"),
        *("data_path", "checkpoint_dir", "config_file", "config_files", "result_file", "resume", "save_last"),
        *("baseline", "eval_batch_size", "eval_batch_size_given", "loss_decimal_place", "local_rank", "single_spec"),
    )
)
#: RecBole keeps these as pickles, which execute code when read.
_PICKLES = ("dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders")

#: RecBole's marks of one process among several; given, RecBole would start on nccl and weight metrics by batches.
_PROCESS = ("local_rank", "single_spec", "offset")

#: Files of weights that RecBole's models unpickle.
_WEIGHT_FILES = ("mf_pretrain_path", "mlp_pretrain_path", "pretrain_path", "pre_model_path")

#: Whole numbers below this are the same as floats.
_EXACT = 2**53


def parse_value(text: str) -> Any:
    """A value from the command line, read as a Python or YAML literal; nothing is evaluated.

    >>> parse_value("1e-3"), parse_value("[10,20]"), parse_value("None"), parse_value("BPR")
    (0.001, [10, 20], None, 'BPR')

    Raises:
        UserError: a mapping that names something twice.
    """
    try:
        tree = ast.parse(text.lstrip(" \t"), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    else:
        mappings = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        if any(len(ast.literal_eval(node)) < len(node.keys) for node in mappings):
            raise UserError(f"{text} names something twice; keep one.")
        return list(value) if isinstance(value, tuple) else value  # --topk=10,20
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[:1] in "[{" or text in ("~", "null"):
        try:
            return load_yaml(text)
        except Repeated as error:
            raise UserError(f"{text}: {error.problem}.") from None
        except yaml.YAMLError:
            return text
    return text


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings, and short forms spelt out.

    ``teacher.embedding_size`` goes into section ``teacher``; ``teacher: LightGCN`` is short for ``teacher.model``, and
    ``teacher: "BPR,LightGCN"``, or a list, for ``teacher.0.model`` and ``teacher.1.model``;
    ``distill: "de,rrd"`` is a list.
    """
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str) or not key:
            raise UserError(f"A setting's name is {key!r}; expected a word, such as epochs.")
        section, dot, rest = key.partition(".")
        if dot and not (section and rest):
            raise UserError(f"Setting '{key}' has an empty part; expected section.option, such as teacher.epochs.")
        if section == "teacher" and not dot and not isinstance(value, Mapping) and value is not None:
            value = _teacher_section(value)
        if section == "distill" and isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if dot:
            value = nest({rest: value}) if "." in rest else {rest: value}
        if section == "teacher" and isinstance(value, Mapping):  # teacher.0: LightGCN is short for teacher.0.model
            value = {
                str(name): {"model": one} if str(name).isdigit() and isinstance(one, str) else one
                for name, one in value.items()
            }
        nested = merge(nested, {section: value}) if dot or isinstance(value, Mapping) else {**nested, section: value}
    return nested


def _teacher_section(value: Any) -> dict[str, Any]:
    """Section ``teacher`` from its short forms: a model's name, several with commas, or a list of names or sections.

    ``count`` tells how many there are: those that a source of lower priority names are forgotten.
    """
    given = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        given = [given]
    sections = [nest(element) if isinstance(element, Mapping) else {"model": element} for element in given]
    if len(sections) == 1:
        return sections[0]
    return {"count": len(sections), **{str(index): section for index, section in enumerate(sections)}}


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`; mappings are merged key by key, except those that RecBole takes as a whole.

    What `high` says of all teachers counts for those that `low` numbers too.
    """
    if any(key.isdigit() for key in low):
        if any(key in high for key in ("count", "model", "checkpoint", "ranks")):  # teachers named anew
            low = {key: value for key, value in low.items() if key != "count" and not key.isdigit()}
        low = {
            key: {name: one for name, one in value.items() if name not in high} if key.isdigit() and value else value
            for key, value in low.items()
        }
    merged = dict(low)
    for key, value in high.items():
        whole = key in _RECBOLE_MAPPINGS
        if not whole and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


class KDConfig(Config):
    """The settings of one run, from RecBole's properties, ours, YAML files and a mapping, in rising priority.

    Args:
        model: a model or recipe; otherwise the key ``model`` of the settings.
        dataset: a dataset; otherwise the key ``dataset`` of the settings.
        config_file_list: YAML files.
        config_dict: settings by name; dotted names reach into sections.
        prefix: put before setting names in errors ("teacher." for a teacher's own configuration).

    Raises:
        UserError: an unknown model, dataset, distiller, metric or key, or a value of a wrong type or out of range.
    """

    resolved: Resolved
    data_root: str
    internal_config_dict: dict[str, Any]
    external_config_dict: dict[str, Any]
    final_config_dict: dict[str, Any]
    #: Settings that a properties file of the model, recipe or student gives.
    preset_keys: set[str]

    def __init__(
        self,
        model: Optional[str] = None,
        dataset: Optional[str] = None,
        config_file_list: Optional[Iterable[str]] = None,
        config_dict: Optional[Mapping[str, Any]] = None,
        prefix: str = "",
    ) -> None:
        self.prefix = prefix
        try:
            super().__init__(
                model=model,
                dataset=dataset,
                config_file_list=list(config_file_list or ()),
                config_dict=dict(config_dict or {}),
            )
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"RecBole refuses the settings: {str(error).strip()}") from error
        self._check_files()

    # What RecBole's constructor calls, in its order.

    def _init_parameters_category(self) -> None:
        # RecBole appends a dataset's keys to these lists, and its own are shared by every Config of the process.
        self.parameters = {
            "General": list(general_arguments),
            "Training": list(training_arguments),
            "Evaluation": list(evaluation_arguments),
            "Dataset": list(_DATASET_KEYS),
        }

    def _build_yaml_loader(self) -> type[SafeLoader]:
        return SafeLoader

    def _load_config_files(self, file_list: Iterable[str]) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for file in file_list:
            settings = merge(settings, nest(read_yaml(Path(file))))
        return settings

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        return nest(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}  # Only the command line reads sys.argv.

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = merge(self.file_config_dict, self.variable_config_dict)

    def _get_model_and_dataset(self, model: Optional[str], dataset: Optional[str]) -> tuple[str, type[Any], str]:
        given = self.external_config_dict
        model = model or given.get("model")
        dataset = dataset or given.get("dataset")
        if not isinstance(model, str):
            raise UserError(f"No {self.prefix}model is given; set --{self.prefix}model=NAME, such as SimRecStudent.")
        if dataset is None:
            raise UserError("No dataset is given; set --dataset=NAME, such as ml-100k.")
        dataset = str(dataset)
        if Path(dataset).name != dataset or dataset in (".", ".."):
            raise UserError(f"--dataset={dataset} is not a name; put the folder above it in --data_path.")
        self.resolved = resolve_model(model, given.get("student"), f"{self.prefix}model")
        return self.resolved.name, self.resolved.model_class, dataset

    def _load_internal_config_dict(self, model: str, model_class: type[Any], dataset: str) -> None:
        backbone = self.resolved.backbone
        self.preset_keys = set()
        super()._load_internal_config_dict(backbone, model_class, dataset)
        settings = merge(self.internal_config_dict, overall_properties())
        settings = merge(settings, read_properties("dataset", dataset))
        if backbone not in MODELS:  # another package's: what it has by default is in a file beside its module
            own = model_class.__mro__[1] if self.resolved.recipe else model_class
            beside = Path(inspect.getfile(own)).with_name(f"{backbone}.yaml")
            settings = merge(settings, nest(read_yaml(beside)) if beside.is_file() else {})
        for file in dict.fromkeys((backbone, model)):
            always, for_dataset = _layers("model", file, dataset)
            layers = [always, for_dataset]
            if file in recipes():
                # A recipe is for any student; what suits this one is a file of its own.
                student, student_for_dataset = _layers("student", backbone, dataset)
                layers = [always, student, for_dataset, student_for_dataset]
            for layer in layers:
                self.preset_keys |= set(layer)
                settings = merge(settings, layer)
        settings["student"] = backbone
        learner = str(self.external_config_dict.get("learner", settings["learner"])).lower()
        section = settings.pop("sevo", None) or {}
        if learner.startswith("sevo_"):
            settings["sevo"] = {**read_properties("optimizer", "sevo"), **section}
        elif "sevo" in self.external_config_dict:
            raise UserError(
                f"Section 'sevo' is set but not used: --{self.prefix}learner is {learner}. "
                f"Set --{self.prefix}learner=sevo_adamw or leave it out."
            )
        names = self.external_config_dict.get("distill", settings.get("distill")) or []
        if not isinstance(names, (list, tuple)):
            raise UserError(f"--distill={names!r} is no list of distillers; expected names, such as --distill=simrec.")
        names = _distiller_names(names)
        for name in names:
            settings[name] = {**read_properties("distiller", name), **settings.get(name, {})}
        for name in distillers():
            if name not in names:
                settings.pop(name, None)
        self.internal_config_dict = settings

    def _get_final_config_dict(self) -> dict[str, Any]:
        self._check_known()
        final = merge(self.internal_config_dict, self.external_config_dict)
        for key in self.external_config_dict:
            final[key] = _like(final[key], self.internal_config_dict.get(key))
        if self.resolved.recipe and final.get("teacher"):
            final["teacher"] = _with_presets(final["teacher"], self.dataset)
        self.data_root = final["data_path"]
        final["student"] = self.resolved.backbone
        final["distill"] = _distiller_names(final.get("distill") or [])
        # RecBole compares this with a number before a dataset is there; the flow sets it when the catalogue is known.
        final["eval_batch_size_given"] = final.get("eval_batch_size") is not None
        final["eval_batch_size"] = final.get("eval_batch_size") or 4096
        if self.sequential:
            self._set_next_item_training(final)
        self._check_metrics(final)
        return final

    def _set_next_item_training(self, final: dict[str, Any]) -> None:
        """Cross-entropy over all items (``loss_type: CE``) draws no negatives; RecBole leaves the user to say so."""
        negatives = final.get("train_neg_sample_args")
        none = negatives is None or (isinstance(negatives, Mapping) and negatives.get("distribution") in (None, "none"))
        given = self.external_config_dict.get("train_neg_sample_args") is not None and not none
        if final.get("loss_type") == "CE":
            if given:
                raise UserError(
                    f"--{self.prefix}train_neg_sample_args is set, and --{self.prefix}loss_type=CE compares with every "
                    f"item and draws no negatives; leave it out, or set --{self.prefix}loss_type=BPR."
                )
            final["train_neg_sample_args"] = None
        elif none and (final.get("loss_type") == "BPR" or hasattr(self.resolved.model_class, "input_type")):
            raise UserError(
                f"{self.resolved.backbone} compares with negatives (loss_type BPR), and "
                f"--{self.prefix}train_neg_sample_args draws none; leave it out."
            )

    def _init_device(self) -> None:
        gpu = self.final_config_dict["gpu_id"]
        if isinstance(gpu, list):
            self.final_config_dict["gpu_id"] = tuple(gpu)
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:
            import torch

            self.final_config_dict["device"] = torch.device("cpu")

    # Our checks.

    def _check_known(self) -> None:
        given = self.external_config_dict
        for key in _PROCESS:
            if key in given:
                raise UserError(f"--{key} is what each process of a run is told; set --nproc=2 for two processes.")
        for key in _PICKLES:
            if given.get(key):
                raise UserError(
                    f"--{key} is not supported: RecBole keeps datasets as pickles, which execute code. Leave it out."
                )
        names = _distiller_names(given.get("distill", self.internal_config_dict.get("distill")) or [])
        if given.get("teacher") and not names and "sevo" not in self.internal_config_dict:
            raise UserError(
                "Section 'teacher' is set but not used: --distill is empty. Set --distill=NAME, such as rrd, or leave "
                "--teacher out."
            )
        for key in given:
            if key in distillers() and key not in names:
                raise UserError(
                    f"Section '{key}' is set but not used: --distill is {', '.join(names) or 'empty'}. "
                    f"Add {key} to --distill or leave it out."
                )
            if key in self.internal_config_dict or key in ("model", "dataset", "config_files"):
                continue
            if key not in self._readable_keys():
                own = TEACHER_KEYS if self.prefix else ()
                known = [self.prefix + name for name in [*own, *self.internal_config_dict, *names]]
                raise UserError(
                    f"Unknown setting '{self.prefix}{key}': no part of the program reads it."
                    f"{closest(self.prefix + key, known)}"
                )
        sections = merge(self.internal_config_dict, given)
        known_keys.check({key: sections[key] for key in given}, self.internal_config_dict, self.prefix)
        if "sevo" in self.internal_config_dict:
            SEvoOptions.parse("sevo", merge(self.internal_config_dict, given)["sevo"])
        for name in names:
            distiller_class(name).options_class.parse(name, merge(self.internal_config_dict, given).get(name))
        # What the teacher reads beyond these is checked when its own configuration is made.

    def knows(self, key: str) -> bool:
        """Whether any part of the program reads a setting of that name from this model's configuration."""
        return key in self.internal_config_dict or key in self._readable_keys()

    def _readable_keys(self) -> set[str]:
        keys = {key for category in self.parameters.values() for key in category}
        return keys | _keys_read_by_recbole() | _keys_read_by_model(self.resolved.model_class)

    def _check_metrics(self, final: Mapping[str, Any]) -> None:
        metrics = [final["metrics"]] if isinstance(final["metrics"], str) else list(final["metrics"])
        for metric in metrics:
            if str(metric).lower() not in metric_types:
                raise UserError(
                    f"Unknown metric '{metric}' in --metrics.{closest(str(metric), metric_types)} "
                    f"Choices: {', '.join(sorted(metric_types))}."
                )
        cutoffs = final["topk"] if isinstance(final["topk"], (list, tuple)) else [final["topk"]]
        name, _, cutoff = str(final["valid_metric"]).partition("@")
        computed = name.lower() in [str(metric).lower() for metric in metrics]
        if not computed or (cutoff and cutoff not in map(str, cutoffs)):
            raise UserError(
                f"--valid_metric={final['valid_metric']} is not computed: --metrics={metrics}, --topk={list(cutoffs)}; "
                f"expected one of them, such as {metrics[0]}@{cutoffs[0]}."
            )

    def _check_files(self) -> None:
        """Looks at the files that RecBole's models unpickle, as that executes what is in them."""
        for key in _WEIGHT_FILES:
            if self.final_config_dict.get(key):
                load_any(str(self.final_config_dict[key]))
        if self.resolved.backbone == "LDiffRec":
            path = Path(self.final_config_dict["data_path"]) / "item_emb.npy"
            try:
                if path.exists():
                    np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                raise UserError(
                    f"'{path}' is no plain array, and RecBole would execute what is in it; save the items' vectors as "
                    "numbers, with numpy.save."
                ) from None

    # Views of the settings.

    @property
    def sequential(self) -> bool:
        """Whether the model predicts the next item of a sequence."""
        return bool(self.resolved.model_class.type == ModelType.SEQUENTIAL)

    def reads(self, key: str) -> bool:
        """Whether a setting, by its dotted name or its section's, has a meaning for this run's model and distillers."""
        section = key.partition(".")[0]
        if section in distillers():
            return section in self.distillers
        if section in ("student", "teacher"):
            return bool(self.resolved.recipe if section == "student" else self.distillers or self["sevo"])
        return section in self.internal_config_dict or section in self._readable_keys()

    @property
    def split_seed(self) -> int:
        """The seed of a random split: of the run, where none is given."""
        return int(self["seed"] if self["split_seed"] is None else self["split_seed"])

    @property
    def distillers(self) -> list[str]:
        """Names of the distillers, in the order given."""
        return [str(name) for name in self["distill"]]

    def active_distillers(self) -> dict[str, Options]:
        """Checked options of the distillers whose weights are not all 0, by name."""
        options = {name: distiller_class(name).options_class.parse(name, self[name]) for name in self.distillers}
        return {name: value for name, value in options.items() if not distiller_class(name).is_off(value)}

    def teacher_sections(self) -> dict[str, dict[str, Any]]:
        """Settings of each teacher, by what stands before their names: ``teacher.``, or ``teacher.0.`` and so on.

        What section ``teacher`` says without a number holds for every teacher.

        Raises:
            UserError: settings of a teacher that there is not.
        """
        sections = _teacher_sections(self["teacher"] or {})
        return {f"teacher.{index}." if index else "teacher.": section for index, section in sections.items()}

    @property
    def teacher_fusion(self) -> str:
        """How the rankings of several teachers become one: ``ranks`` or ``scores``."""
        return str(self["teacher"]["fusion"])

    def teacher_config(self, section: Optional[Mapping[str, Any]] = None, prefix: str = "teacher.") -> KDConfig:
        """A teacher's configuration: its model's defaults, this run's data and evaluation, and its section.

        What says how the student is built and trained (sizes, epochs, learning rate, batch size) is not inherited.

        Args:
            section: one of :meth:`teacher_sections`; by default the section ``teacher`` of a single teacher.
            prefix: what stands before the names of its settings.
        """
        section = self["teacher"] or {} if section is None else section
        model = str(section.get("model"))
        if model in recipes():
            raise UserError(
                f"--{prefix}model={model} is a recipe, a student with a teacher of its own; name its backbone "
                f"({recipes()[model]['student']}), or train it first and give --{prefix}checkpoint=FILE."
            )
        if section.get("distill"):
            raise UserError(f"--{prefix}distill is set, and a teacher is trained alone; leave it out.")
        own = {key: value for key, value in section.items() if key not in TEACHER_KEYS}
        # Adam takes most of the time that large tables need.
        return self._derived(model, {"fused_adam": True, **own}, prefix)

    def checkpoint_config(self, model: str, stored: Mapping[str, Any]) -> KDConfig:
        """The configuration of a model in a checkpoint: its stored settings, this run's data and evaluation."""
        probe = self._derived(model, {})
        keys = set(probe.final_config_dict) - _shared_keys() - set(overall_properties()) - {"model", "dataset"}
        keys -= {key for key in probe.final_config_dict if key.isupper() or key.endswith("_neg_sample_args")}
        settings = {key: stored[key] for key in keys if key in stored and key in probe.internal_config_dict}
        if model not in MODELS:  # one of another package may have no properties file that lists what it reads
            read = _keys_read_by_model(probe.resolved.model_class) - _shared_keys()
            settings |= {key: stored[key] for key in read if key in stored and not key.isupper()}
        return self._derived(model, settings)

    def baseline_config(self) -> KDConfig:
        """The plain model to stand beside the student, of its size.

        ``baseline: student`` is the student's own backbone with all of its settings, less teacher and distillers.
        Another model trains as it would alone, with RecBole's defaults; of the run's settings it takes those that were
        given for the length of training.
        """
        name = str(self["baseline"])
        backbone = self.resolved.backbone
        model = backbone if name == "student" else name
        if model == backbone:
            keys = {*training_arguments, "learning_rate_schedule", "fused_adam", *self.model_keys()}
            if self["sevo"] is not None:
                keys.add("sevo")
            settings = {key: self[key] for key in keys if key in self}
            if settings["fused_adam"] is None:
                settings["fused_adam"] = bool(self.active_distillers())  # as the student's is
            if model in MODELS:
                # A recipe's own words for sizes may mean nothing to this backbone, whose file lists what it reads.
                listed = self._derived(model, {}, prefix="").internal_config_dict
                settings = {key: settings[key] for key in settings if key in listed or key not in self.preset_keys}
            if (settings.get("train_neg_sample_args") or {}).get("distribution") == "none":
                # What RecBole makes of None, and refuses to be given.
                settings["train_neg_sample_args"] = None
            return self._derived(model, settings, prefix="")
        lengths = ("epochs", "stopping_step", "eval_step")
        settings = {key: self[key] for key in lengths if key in self.external_config_dict}
        probe = self._derived(model, {}, prefix="")
        for key in ("embedding_size", "mf_embedding_size", "mlp_embedding_size"):
            if key in probe and self["embedding_size"] is not None:
                settings[key] = self["embedding_size"]
        return self._derived(model, settings, prefix="")

    def model_keys(self) -> set[str]:
        """Settings that belong to the backbone itself, and those of its training."""
        keys = set(self.internal_config_dict) - _shared_keys() - set(overall_properties()) - set(distillers())
        return {key for key in keys if key not in ("model", "dataset", "MODEL_TYPE")}

    def _derived(self, model: str, settings: Mapping[str, Any], prefix: str = "teacher.") -> KDConfig:
        inherited = {key: self[key] for key in _shared_keys() - set(_PICKLES) if key in self}
        inherited["data_path"] = self.data_root
        if not self["eval_batch_size_given"]:
            del inherited["eval_batch_size"]
        own = nest(settings)
        preset = resolve_model(model, setting=f"{prefix}model")
        if (preset.model_class.type == ModelType.SEQUENTIAL) != self.sequential:
            inherited.pop("repeatable", None)  # RecBole refuses the other kind's; that one of them is, is said later
        if preset.recipe or any(key in read_properties("model", model) for key in ("distill", "teacher")):
            own = {"distill": [], **own}
        return KDConfig(model, self.dataset, config_dict=merge(inherited, own), prefix=prefix)

    def plain_values(self) -> dict[str, Any]:
        """The settings as plain values, for checkpoints, digests and results."""
        return {key: _plain(value) for key, value in self.final_config_dict.items()}


def _distiller_names(given: Iterable[Any]) -> list[str]:
    return [distiller_name(str(name)) for name in given]


def _layers(kind: str, name: str, dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A properties file's settings: for all datasets, and for this one, which replace those."""
    file = dict(read_properties(kind, name))
    cases = file.pop("for_dataset", {})
    return nest(file), nest(cases.get(dataset, {}))


def _teacher_sections(teacher: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of each teacher by its number; of a single one that has none by an empty text."""
    section = dict(teacher)
    numbered = {key: section.pop(key) for key in list(section) if key.isdigit()}
    count = section.pop("count", None) or max(map(int, numbered), default=0) + 1
    for key in numbered:
        if key != str(int(key)) or int(key) >= count:
            raise UserError(
                f"teacher.{key} is set, and there are {count} teachers, counted from 0; name them all, as in "
                "--teacher=BPR,LightGCN."
            )
    if not numbered:
        return {"": section}
    return {str(index): merge(section, numbered.get(str(index)) or {}) for index in range(count)}


def _with_presets(teacher: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Section `teacher` of a recipe, over what suits each model as a teacher (properties/teacher/)."""
    complete = dict(teacher)
    for index, section in _teacher_sections(teacher).items():
        if section.get("checkpoint") or section.get("ranks"):
            continue
        preset: dict[str, Any] = {}
        for layer in _layers("teacher", str(section.get("model")), dataset):
            preset = merge(preset, layer)
        missing = {key: value for key, value in preset.items() if key not in section}
        if index:
            complete[index] = {**missing, **(complete.get(index) or {})}
        else:
            complete = {**missing, **complete}
    return complete


def _shared_keys() -> set[str]:
    """Settings of data, evaluation and machine, which every model of a run shares."""
    return (
        set(general_arguments)
        | set(evaluation_arguments)
        | set(_DATASET_KEYS)
        | {"worker", "save_last", "split_seed", "trim_padding"}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _like(value: Any, default: Any) -> Any:
    """A whole number as its default is written, 0 as 0.0: one setting has one digest, and RecBole counts by ints."""
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        return {key: _like(one, default.get(key)) for key, one in value.items()}
    plain = {type(value), type(default)} == {int, float} and abs(value) < _EXACT
    return type(default)(value) if plain and value == int(value) else value


def _keys_read(source: str) -> set[str]:
    return set(re.findall(r"""config(?:\.final_config_dict)?\[["'](\w+)["']\]""", source)) | set(
        re.findall(r"""config\.get\(["'](\w+)["']""", source)
    )


def _keys_read_by_model(model_class: type[Any]) -> frozenset[str]:
    """Settings that the modules of a model and of its bases read, RecBole's and any other package's."""
    bases = (base for base in model_class.__mro__ if base.__module__.split(".")[0] not in _NO_MODEL)
    found: set[str] = set()
    for module in set(map(inspect.getmodule, bases)):
        with suppress(OSError, TypeError):  # what has no source tells nothing
            found |= _keys_read(inspect.getsource(module))  # type: ignore[arg-type]
    return frozenset(found)


@cache
def _keys_read_by_recbole() -> frozenset[str]:
    """Settings that RecBole's data, evaluation, sampling and training code reads, found in its sources."""
    root = Path(recbole.__file__).parent
    folders = ("data", "evaluator", "sampler", "trainer", "utils", "quick_start")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    return frozenset().union(*(_keys_read(file.read_text(encoding="utf-8")) for file in files))


def dataset_names(data_path: str) -> list[str]:
    """Datasets that can be named: folders under `data_path`, those we know, those RecBole downloads, ml-100k."""
    folder = Path(data_path)
    local = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    ours = [path.stem for path in (PROPERTIES / "dataset").glob("*.yaml")]
    downloads = read_yaml(Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml")
    return sorted({"ml-100k", *local, *ours, *downloads})


__all__ = ["TEACHER_KEYS", "WITHOUT_EFFECT", "KDConfig", "dataset_names", "merge", "nest", "parse_value", "recipes"]
