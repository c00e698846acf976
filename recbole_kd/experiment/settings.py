"""KDConfig: a RecBole Config that finds our units, nests sections, rejects unknown keys and never reads sys.argv."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.utils import InputType, ModelType, evaluation_arguments, general_arguments, training_arguments

from recbole_kd.contracts import DistillerOptions
from recbole_kd.data.fast_sampling import samples_fast
from recbole_kd.errors import UserError
from recbole_kd.experiment import checks
from recbole_kd.experiment.known_keys import SPLIT_KEYS
from recbole_kd.experiment.next_item import set_next_item_training
from recbole_kd.experiment.presets import Layer, distiller_names, merged, precedence, teacher_presets, teacher_sections
from recbole_kd.experiment.values import DATASET_KEYS, like, merge, nest, plain
from recbole_kd.files.properties import SafeLoader, overall_properties, read_properties, read_yaml
from recbole_kd.model.every_position import AT_EVERY_POSITION, asks_for_every_position
from recbole_kd.registry import MODELS, Resolved, distillers, recipes, resolve_model
from recbole_kd.sevo.graphs import SEvoOptions

#: If given, a baseline of another architecture takes these settings from the student.
BASELINE_LENGTHS = ("epochs", "stopping_step", "eval_step", "stop_after")
#: Settings of a run's data and results, which none of its models has alone.
_OF_THE_RUN = frozenset(
    {*DATASET_KEYS, *SPLIT_KEYS, "dataset", "data_path", "resume", "result_file", "final", "baseline"}
)
#: Settings of the machine and of output; they do not change the result of training.
WITHOUT_EFFECT = frozenset(
    (
        *("gpu_id", "use_gpu", "state", "show_progress", "worker", "log_wandb", "wandb_project"),
        *("data_path", "checkpoint_dir", "config_file", "config_files", "result_file", "resume", "save_last", "final"),
        *("baseline", "eval_batch_size", "eval_batch_size_given", "loss_decimal_place", "local_rank", "single_spec"),
    )
)
#: Settings that are in no checkpoint and no digest.
_OF_THE_LOG = ("quiet", "log_mlflow", "mlflow_experiment")
#: Names of columns that RecBole's transforms of sequences write into the settings (recbole/data/transform.py).
_COLUMNS = frozenset(
    (
        *("MASK_INDEX", "MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "INVERSE_ITEM_SEQ"),
        *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ"),
    )
)


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
    #: Settings in a properties file of the model, recipe or student.
    preset_keys: set[str]
    #: Source of each setting, by dotted name.
    sources: dict[str, str]
    #: Checked options of the distillers, in the order given.
    options: dict[str, DistillerOptions]
    #: Sets that record the names of settings that are read, see :meth:`noting_reads`.
    _noting: tuple[set[str], ...] = ()
    #: Checked options of SEvo, if the learner is one of its optimisers.
    sevo: SEvoOptions | None

    def __init__(
        self,
        model: str | None = None,
        dataset: str | None = None,
        config_file_list: Iterable[str] | None = None,
        config_dict: Mapping[str, Any] | None = None,
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
        checks.check_files(self)
        checks.check_held_out(self)

    # Methods that RecBole's constructor calls, in order.

    def _init_parameters_category(self) -> None:
        # A copy: RecBole appends a dataset's keys to these lists, which all Configs of the process would share.
        self.parameters = {
            "General": list(general_arguments),
            "Training": list(training_arguments),
            "Evaluation": list(evaluation_arguments),
            "Dataset": list(DATASET_KEYS),
        }

    def _build_yaml_loader(self) -> type[SafeLoader]:
        return SafeLoader

    def _load_config_files(self, file_list: Iterable[str]) -> dict[str, Any]:
        self._given = [Layer(str(file), nest(read_yaml(Path(file))), given=True) for file in file_list]
        return merged(self._given)[0]

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        self._given.append(Layer("command line", nest(config_dict), given=True))
        return dict(self._given[-1].settings)

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}  # Only the command line reads sys.argv.

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = merged(self._given)[0]

    def _get_model_and_dataset(self, model: str | None, dataset: str | None) -> tuple[str, type[Any], str]:
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
        super()._load_internal_config_dict(self.resolved.backbone, model_class, dataset)
        if self.sequential:
            self.internal_config_dict["repeatable"] = None  # decided by the data, once they are read
        layers = precedence(self.internal_config_dict, self.resolved, dataset, self._given)
        self.internal_config_dict = merged(layer for layer in layers if not layer.given)[0]
        self.sources = merged(layers)[1]
        self.preset_keys = {key for layer in layers if layer.preset for key in layer.settings}
        self.internal_config_dict["student"] = self.resolved.backbone
        if not self.resolved.recipe:
            self.sources["student"] = "the model"
        if "sevo" in self.external_config_dict and "sevo" not in self.internal_config_dict:
            learner = self.external_config_dict.get("learner", self.internal_config_dict["learner"])
            raise UserError(
                f"Section 'sevo' is set but not used: --{self.prefix}learner is {str(learner).lower()}. "
                f"Set --{self.prefix}learner=sevo_adamw or leave it out."
            )

    def _get_final_config_dict(self) -> dict[str, Any]:
        self.options, self.sevo = checks.check_known(self)
        final = merge(self.internal_config_dict, self.external_config_dict)
        for key in self.external_config_dict:
            final[key] = like(final[key], self.internal_config_dict.get(key))
        if self.resolved.recipe and final.get("teacher"):
            final["teacher"], added = teacher_presets(final["teacher"], self.dataset)
            self.sources.update(added)
        self.data_root = final["data_path"]
        final["student"] = self.resolved.backbone
        final["learner"] = str(final["learner"]).lower()
        final["distill"] = distiller_names(final.get("distill") or [])
        # RecBole compares this with a number before a dataset is loaded; the loaders compute it from the catalogue.
        final["eval_batch_size_given"] = final.get("eval_batch_size") is not None
        final["eval_batch_size"] = final.get("eval_batch_size") or 4096
        if "show_progress" not in self.external_config_dict:
            watched = sys.stderr.isatty() or "ipykernel" in sys.modules
            final["show_progress"] = bool(final["show_progress"] and watched and not final["quiet"])
            self.sources["show_progress"] = "whether this is a terminal or a notebook"
        if self.sequential:
            set_next_item_training(self, final)
        if self._loss_is_unbounded() and final.get("train_neg_sample_args") is None:
            final["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
            self.sources["train_neg_sample_args"] = "the loss without its distiller"
        checks.check_metrics(final)
        own = None if final.get("every_position") else self.internal_config_dict.get("transform")
        checks.check_transform(final, own, self.sequential, self.prefix)
        return final

    def _loss_is_unbounded(self) -> bool:
        """Whether the model's own loss is unbounded because the run lacks the distiller that bounds it."""
        bounding = getattr(self.resolved.model_class, "bounded_by", None)
        return bounding is not None and bounding not in self.active_distillers()

    def _set_default_parameters(self) -> None:
        repeatable = self.final_config_dict["repeatable"]
        # RecBole refuses to leave out seen items for sequential models; our loaders leave them out.
        self.final_config_dict["repeatable"] = repeatable or self.sequential
        super()._set_default_parameters()
        self.final_config_dict["repeatable"] = repeatable
        if self.every_position:
            self.final_config_dict["MODEL_INPUT_TYPE"] = InputType.POINTWISE
        negatives = self.final_config_dict["train_neg_sample_args"]
        drawn = isinstance(negatives, Mapping) and negatives.get("distribution") not in (None, "none")
        if hasattr(self.resolved.model_class, "bounded_by") and drawn:
            self.final_config_dict["MODEL_INPUT_TYPE"] = InputType.PAIRWISE

    def _init_device(self) -> None:
        gpu = self.final_config_dict["gpu_id"]
        if isinstance(gpu, list):
            self.final_config_dict["gpu_id"] = tuple(gpu)
        super()._init_device()
        import torch

        if not self.final_config_dict["use_gpu"]:
            self.final_config_dict["device"] = torch.device("cpu")
        self._check_gpu(self._given[-1].settings)  # in a file, use_gpu may have been written by another machine

    def _check_gpu(self, given: Mapping[str, Any]) -> None:
        """Refuses a GPU that the user asks for and that does not exist; RecBole would silently use the CPU.

        ``use_gpu: true`` in a file may come from another machine. It is dropped, so that settings derived from these
        do not ask for a GPU.
        """
        if self.final_config_dict["device"].type != "cpu":
            return
        number, device = str(given.get("gpu_id") or "0"), str(given.get("device") or "")
        asked = {
            f"--device={device}": device.startswith("cuda"),
            f"--gpu_id={number}": number != "0" and bool(self.final_config_dict["use_gpu"]),
            "--use_gpu=true": given.get("use_gpu") is True,
        }
        for setting, wanted in asked.items():
            if wanted:
                raise UserError(
                    f"{setting} asks for a GPU, but torch finds none; set --use_gpu=false for the CPU, or leave it out "
                    "to use a GPU if there is one."
                )
        if self.external_config_dict.get("use_gpu"):
            del self.external_config_dict["use_gpu"]

    def __getitem__(self, key: str) -> Any:
        for noted in self._noting:
            noted.add(key)
        return super().__getitem__(key)

    @contextmanager
    def noting_reads(self) -> Iterator[set[str]]:
        """Inside the block, the yielded set records the names of all settings that are read."""
        noted: set[str] = set()
        self._noting = (*self._noting, noted)
        try:
            yield noted
        finally:
            self._noting = tuple(one for one in self._noting if one is not noted)

    def __setitem__(self, key: str, value: Any) -> None:
        """Refuses to change settings. Only RecBole's transforms may write: the names of the columns that they add.

        Models such as BERT4Rec read these names.
        """
        if key not in _COLUMNS:
            raise TypeError(f"settings are read-only, so {key} cannot be set; make another KDConfig")
        self.final_config_dict[key] = value

    # Our checks.

    def knows(self, key: str) -> bool:
        """Whether any code reads a setting of this name from this model's configuration."""
        return key in self.internal_config_dict or key in checks.readable_keys(self)

    # Views of the settings.

    @property
    def sequential(self) -> bool:
        """Whether the model predicts the next item of a sequence."""
        return bool(self.resolved.model_class.type == ModelType.SEQUENTIAL)

    @property
    def every_position(self) -> bool:
        """Whether the model learns at every position of whole sequences."""
        return self.sequential and asks_for_every_position(self.final_config_dict)

    def reads(self, key: str) -> bool:
        """Whether this run's model and distillers read a setting, given by its dotted name or its section's name."""
        section = key.partition(".")[0]
        if section in distillers():
            return section in self.distillers
        if section in ("student", "teacher"):
            return bool(self.resolved.recipe if section == "student" else self.distillers or self["sevo"])
        return section in self.internal_config_dict or section in checks.readable_keys(self)

    @property
    def split_seed(self) -> int:
        """The seed of a random split; by default the run's seed."""
        return int(self["seed"] if self["split_seed"] is None else self["split_seed"])

    @property
    def distillers(self) -> list[str]:
        """Names of the distillers, in the order given."""
        return [str(name) for name in self["distill"]]

    def active_distillers(self) -> dict[str, DistillerOptions]:
        """Checked options of the distillers whose weights are not all 0, by name."""
        return {name: value for name, value in self.options.items() if not value.is_off}

    @property
    def reads_teacher(self) -> bool:
        """Whether a distiller or the optimiser reads a teacher."""
        return bool(self.active_distillers()) or (self.sevo is not None and self.sevo.graph == "teacher")

    def teacher_sections(self) -> dict[str, dict[str, Any]]:
        """Settings of each teacher, by their prefix: ``teacher.``, or ``teacher.0.`` and so on.

        Settings in section ``teacher`` without a number hold for every teacher.

        Raises:
            UserError: settings of a teacher that does not exist.
        """
        sections = teacher_sections(self["teacher"] or {})
        return {f"teacher.{index}." if index else "teacher.": section for index, section in sections.items()}

    @property
    def teacher_fusion(self) -> str:
        """How the rankings of several teachers are combined: ``ranks`` or ``scores``."""
        return str(self["teacher"]["fusion"])

    def teacher_config(self, section: Mapping[str, Any] | None = None, prefix: str = "teacher.") -> KDConfig:
        """A teacher's configuration: its model's defaults, this run's data and evaluation, and its section.

        Settings of the student's model and training (sizes, epochs, learning rate, batch size) are not inherited.

        Args:
            section: one of :meth:`teacher_sections`; by default the section ``teacher`` of a single teacher.
            prefix: prefix of its settings' names.
        """
        section = self["teacher"] or {} if section is None else section
        model = str(section.get("model"))
        if model in recipes():
            raise UserError(
                f"--{prefix}model={model} is a recipe, which has its own teacher; name its backbone "
                f"({recipes()[model]['student']}), or train it first and give --{prefix}checkpoint=FILE."
            )
        if section.get("distill"):
            raise UserError(f"--{prefix}distill is set, but a teacher is trained without a teacher; leave it out.")
        if section.get("warm_start"):
            raise UserError(f"--{prefix}warm_start is set, but only the student can start from a file; leave it out.")
        if section.get("matryoshka"):
            raise UserError(f"--{prefix}matryoshka is set, but only the student has prefixes; leave it out.")
        for key in section:
            if key in _OF_THE_RUN:
                raise UserError(
                    f"--{prefix}{key} is set, but all models of a run share it; set --{key}, or leave it out."
                )
        own = {key: value for key, value in section.items() if key not in checks.TEACHER_KEYS}
        # With large tables Adam takes most of the time, with small ones RecBole's loader.
        return self._derived(
            model, {"fused_adam": True, "fast_sampling": self._samples_fast(model, own, prefix), **own}, prefix
        )

    def _samples_fast(self, model: str, own: Mapping[str, Any], prefix: str = "") -> bool:
        """Whether a teacher or baseline of a distilled student draws its batches fast if its settings do not say.

        By default a model that needs RecBole's loader gets it, without a message.
        """
        if self["fast_sampling"] is not None:
            return bool(self["fast_sampling"])
        resolved = resolve_model(model, setting=f"{prefix}model")
        whole = resolved.backbone in AT_EVERY_POSITION and asks_for_every_position(own)
        return not whole and samples_fast(resolved.backbone, resolved.model_class.type)

    def checkpoint_config(self, model: str, stored: Mapping[str, Any]) -> KDConfig:
        """The configuration of a model in a checkpoint: its stored settings, this run's data and evaluation.

        The checkpoint holds all weights, so files of initial weights are not needed.
        """
        probe = self._derived(model, {})
        keys = set(probe.final_config_dict) - shared_keys() - set(overall_properties()) - {"model", "dataset"}
        keys -= {key for key in probe.final_config_dict if key.isupper() or key.endswith("_neg_sample_args")}
        keys -= set(checks.WEIGHT_FILES)
        settings = {key: stored[key] for key in keys if key in stored and key in probe.internal_config_dict}
        shares = checks.TRANSFORMED_SHARES.values() if settings.get("transform") else ()
        settings |= {key: stored[key] for key in shares if stored.get(key) is not None}
        if model not in MODELS:  # a model of another package may have no properties file that lists its settings
            read = checks.keys_read_by_model(probe.resolved.model_class) - shared_keys()
            settings |= {key: stored[key] for key in read if key in stored and not key.isupper()}
        return self._derived(model, {**settings, **checks.WITHOUT_FILES.get(model, {})})

    def baseline_config(self) -> KDConfig:
        """The plain model to compare the student with; it has the student's size.

        ``baseline: student``, the default, is the student's own backbone with all of its settings, but without teacher,
        distillers, and SEvo if its graph is the teacher's.
        Another model is trained with RecBole's defaults. It takes only the given length of training from the run.
        """
        name = str(self["baseline"])
        if name in recipes():
            raise UserError(
                f"--baseline={name} is a recipe, which needs a teacher; set --baseline=student, or to its backbone "
                f"({recipes()[name]['student']})."
            )
        backbone = self.resolved.backbone
        model = backbone if name == "student" else name
        if model == backbone:
            keys = {*training_arguments, "learning_rate_schedule", "fused_adam", "fast_sampling", "stop_after"}
            keys |= self.model_keys()
            keys |= set(checks.TRANSFORMED_SHARES.values()) if self["transform"] else set()
            settings = {key: self[key] for key in keys - {"sevo"} if key in self}
            if self.sevo is not None and self.sevo.graph == "teacher":
                settings["learner"] = settings["learner"].removeprefix("sevo_")
            elif self.sevo is not None:
                settings["sevo"] = self["sevo"]
            if settings["fused_adam"] is None:
                settings["fused_adam"] = bool(self.active_distillers())  # as for the student
            if settings["fast_sampling"] is None:
                settings["fast_sampling"] = bool(self.active_distillers()) and self._samples_fast(model, settings)
            if model in MODELS:
                # This backbone may not know the recipe's size settings; its file lists the settings that it reads.
                listed = self._derived(model, {}, prefix="").internal_config_dict
                settings = {key: settings[key] for key in settings if key in listed or key not in self.preset_keys}
            if (settings.get("train_neg_sample_args") or {}).get("distribution") == "none":
                # RecBole replaces None by a value that it refuses as input.
                settings["train_neg_sample_args"] = None
            return self._derived(model, settings, prefix="")
        taken = (*BASELINE_LENGTHS, "fast_sampling")
        settings = {key: self[key] for key in taken if key in self.external_config_dict}
        defaults = self._derived(model, {}, prefix="").internal_config_dict
        sizes = ["embedding_size", "mf_embedding_size", "mlp_embedding_size"]
        if defaults.keys().isdisjoint(sizes):
            sizes = ["hidden_size"]  # of SASRec, BERT4Rec and STOSA
        size = self["embedding_size"] or self["hidden_size"] or self["mf_embedding_size"]
        if size is not None:
            settings.update({key: size for key in sizes if key in defaults})
        return self._derived(model, settings, prefix="")

    def model_keys(self) -> set[str]:
        """Settings of the backbone and of its training."""
        keys = set(self.internal_config_dict) - shared_keys() - set(overall_properties()) - set(distillers())
        return {key for key in keys if key not in ("model", "dataset", "MODEL_TYPE")}

    def _derived(self, model: str, settings: Mapping[str, Any], prefix: str = "teacher.") -> KDConfig:
        inherited = {key: self[key] for key in shared_keys() - set(checks.PICKLES) if key in self}
        inherited["data_path"] = self.data_root
        if self["use_gpu"]:  # the default, which does not require a GPU
            del inherited["use_gpu"]
        if not self["eval_batch_size_given"]:
            del inherited["eval_batch_size"]
        own = nest(settings)
        preset = resolve_model(model, setting=f"{prefix}model")
        if preset.recipe or any(key in read_properties("model", model) for key in ("distill", "teacher")):
            own = {"distill": [], **own}
        return KDConfig(model, self.dataset, config_dict=merge(inherited, own), prefix=prefix)

    def plain_values(self) -> dict[str, Any]:
        """The settings as plain values, for checkpoints, digests and results, without those of the log."""
        return {key: plain(value) for key, value in self.final_config_dict.items() if key not in _OF_THE_LOG}


def shared_keys() -> set[str]:
    """Settings of data, evaluation and machine, which every model of a run shares."""
    return (
        set(general_arguments)
        | set(evaluation_arguments)
        | set(DATASET_KEYS)
        | {"worker", "save_last", "tail_ratio", *SPLIT_KEYS, "trim_padding", "wandb_project", *_OF_THE_LOG}
    )


__all__ = ["BASELINE_LENGTHS", "WITHOUT_EFFECT", "KDConfig", "shared_keys"]
