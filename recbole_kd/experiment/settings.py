"""KDConfig: RecBole's Config that finds our units, nests sections, rejects unknown keys and never reads sys.argv."""

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
from recbole_kd.experiment.presets import Layer, distiller_names, merged, precedence, teacher_presets, teacher_sections
from recbole_kd.experiment.values import DATASET_KEYS, like, merge, nest, plain
from recbole_kd.files.properties import SafeLoader, overall_properties, read_properties, read_yaml
from recbole_kd.model.every_position import AT_EVERY_POSITION
from recbole_kd.registry import MODELS, Resolved, distillers, recipes, resolve_model
from recbole_kd.sevo.graphs import SEvoOptions

#: Settings that a baseline of another architecture takes from the student's where they were given.
BASELINE_LENGTHS = ("epochs", "stopping_step", "eval_step")
#: Settings of the machine and of output: whatever they are, the same is learned.
WITHOUT_EFFECT = frozenset(
    (
        *("gpu_id", "use_gpu", "state", "show_progress", "worker", "log_wandb", "wandb_project"),
        *("data_path", "checkpoint_dir", "config_file", "config_files", "result_file", "resume", "save_last", "final"),
        *("baseline", "eval_batch_size", "eval_batch_size_given", "loss_decimal_place", "local_rank", "single_spec"),
    )
)
#: Settings that no checkpoint keeps and no digest counts.
_OF_THE_LOG = ("quiet", "log_mlflow", "mlflow_experiment")
#: Losses of sequential models for which RecBole's loader draws no negatives, and why.
_WITHOUT_NEGATIVES = {
    "CE": "compares with every item and draws no negatives",
    "BCE": "draws one negative for each position, uniformly",
}
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
    #: Settings that a properties file of the model, recipe or student gives.
    preset_keys: set[str]
    #: Where each setting comes from, by dotted name.
    sources: dict[str, str]
    #: Checked options of the distillers, in the order given.
    options: dict[str, DistillerOptions]
    #: Sets that get the names of settings which are read, see :meth:`noting_reads`.
    _noting: tuple[set[str], ...] = ()
    #: Checked options of SEvo, where the learner is one of its optimisers.
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

    # What RecBole's constructor calls, in its order.

    def _init_parameters_category(self) -> None:
        # RecBole appends a dataset's keys to these lists, and its own are shared by every Config of the process.
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
            self.internal_config_dict["repeatable"] = None  # as the data says, once it is read
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
        final["distill"] = distiller_names(final.get("distill") or [])
        # RecBole compares this with a number before a dataset is there; the loaders size it from the catalogue.
        final["eval_batch_size_given"] = final.get("eval_batch_size") is not None
        final["eval_batch_size"] = final.get("eval_batch_size") or 4096
        if "show_progress" not in self.external_config_dict:
            watched = sys.stderr.isatty() or "ipykernel" in sys.modules
            final["show_progress"] = bool(final["show_progress"] and watched and not final["quiet"])
            self.sources["show_progress"] = "whether this is a terminal or a notebook"
        if self.sequential:
            self._set_next_item_training(final)
        if self._loss_is_unbounded() and final.get("train_neg_sample_args") is None:
            final["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
            self.sources["train_neg_sample_args"] = "the loss without its distiller"
        checks.check_metrics(final)
        checks.check_transform(final, self.internal_config_dict.get("transform"), self.sequential, self.prefix)
        return final

    def _set_next_item_training(self, final: dict[str, Any]) -> None:
        """Cross-entropy over all items (``loss_type: CE``) draws no negatives; RecBole leaves the user to say so.

        Nor does the loader for ``BCE``, whose negatives are drawn for each position of a sequence.
        """
        negatives = final.get("train_neg_sample_args")
        none = negatives is None or (isinstance(negatives, Mapping) and negatives.get("distribution") in (None, "none"))
        given = self.external_config_dict.get("train_neg_sample_args") is not None and not none
        objective = final.get("loss_type")
        able = any(base.__name__ in AT_EVERY_POSITION for base in self.resolved.model_class.__mro__)
        if objective == "BCE" and not able:
            raise UserError(
                f"--{self.prefix}loss_type=BCE learns at every position of a sequence. That is for models which read "
                f"no later item there ({', '.join(AT_EVERY_POSITION)}), not for {self.resolved.backbone}; set it to CE "
                "or BPR."
            )
        if objective in _WITHOUT_NEGATIVES:
            if given:
                raise UserError(
                    f"--{self.prefix}train_neg_sample_args is set, and --{self.prefix}loss_type={objective} "
                    f"{_WITHOUT_NEGATIVES[objective]}; leave it out, or set --{self.prefix}loss_type=BPR."
                )
            final["train_neg_sample_args"] = None
        elif none and (objective == "BPR" or hasattr(self.resolved.model_class, "input_type")):
            raise UserError(
                f"{self.resolved.backbone} compares with negatives (loss_type BPR), and "
                f"--{self.prefix}train_neg_sample_args draws none; leave it out."
            )

    def _loss_is_unbounded(self) -> bool:
        """Whether the model's own loss needs a distiller that bounds it, and the run has not that one."""
        bounding = getattr(self.resolved.model_class, "bounded_by", None)
        return bounding is not None and bounding not in self.active_distillers()

    def _set_default_parameters(self) -> None:
        repeatable = self.final_config_dict["repeatable"]
        # RecBole refuses sequential models that leave out what was seen; the loaders do it here.
        self.final_config_dict["repeatable"] = repeatable or self.sequential
        super()._set_default_parameters()
        self.final_config_dict["repeatable"] = repeatable
        if self.sequential and self.final_config_dict.get("loss_type") == "BCE":
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
        """Refuses a GPU that was asked for by name and is not there; RecBole computes on the CPU in silence.

        Where a file says ``use_gpu: true``, another machine may have written it. It is dropped, so that nobody who
        takes these settings further asks for a GPU.
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
                    f"{setting} asks for a GPU, and torch sees none there; set --use_gpu=false for the CPU, or leave "
                    "all of these out, which takes a GPU where there is one."
                )
        if self.external_config_dict.get("use_gpu"):
            del self.external_config_dict["use_gpu"]

    def __getitem__(self, key: str) -> Any:
        for noted in self._noting:
            noted.add(key)
        return super().__getitem__(key)

    @contextmanager
    def noting_reads(self) -> Iterator[set[str]]:
        """Within the block, the set that it gives gets the names of all settings that are read."""
        noted: set[str] = set()
        self._noting = (*self._noting, noted)
        try:
            yield noted
        finally:
            self._noting = tuple(one for one in self._noting if one is not noted)

    def __setitem__(self, key: str, value: Any) -> None:
        """Refuses: settings are made once. RecBole's transforms alone write here, the names of the columns they add.

        A model such as BERT4Rec reads these names from its settings.
        """
        if key not in _COLUMNS:
            raise TypeError(f"settings are read-only, and {key} would be written; make another KDConfig")
        self.final_config_dict[key] = value

    # Our checks.

    def knows(self, key: str) -> bool:
        """Whether any part of the program reads a setting of that name from this model's configuration."""
        return key in self.internal_config_dict or key in checks.readable_keys(self)

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
        return section in self.internal_config_dict or section in checks.readable_keys(self)

    @property
    def split_seed(self) -> int:
        """The seed of a random split: of the run, where none is given."""
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
        """Settings of each teacher, by what stands before their names: ``teacher.``, or ``teacher.0.`` and so on.

        What section ``teacher`` says without a number holds for every teacher.

        Raises:
            UserError: settings of a teacher that there is not.
        """
        sections = teacher_sections(self["teacher"] or {})
        return {f"teacher.{index}." if index else "teacher.": section for index, section in sections.items()}

    @property
    def teacher_fusion(self) -> str:
        """How the rankings of several teachers become one: ``ranks`` or ``scores``."""
        return str(self["teacher"]["fusion"])

    def teacher_config(self, section: Mapping[str, Any] | None = None, prefix: str = "teacher.") -> KDConfig:
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
        if section.get("warm_start"):
            raise UserError(f"--{prefix}warm_start is set, and only the student begins from a file; leave it out.")
        if section.get("matryoshka"):
            raise UserError(f"--{prefix}matryoshka is set, and only the student has prefixes; leave it out.")
        own = {key: value for key, value in section.items() if key not in checks.TEACHER_KEYS}
        # Adam takes most of the time that large tables need, and RecBole's loader most of what small ones do.
        return self._derived(
            model, {"fused_adam": True, "fast_sampling": self._samples_fast(model, prefix), **own}, prefix
        )

    def _samples_fast(self, model: str, prefix: str = "") -> bool:
        """Whether a plain model beside a student that distils draws its batches fast, where it does not say so itself.

        Where the run says nothing, a model that needs RecBole's loader has it without a word.
        """
        if self["fast_sampling"] is not None:
            return bool(self["fast_sampling"])
        resolved = resolve_model(model, setting=f"{prefix}model")
        return samples_fast(resolved.backbone, resolved.model_class.type)

    def checkpoint_config(self, model: str, stored: Mapping[str, Any]) -> KDConfig:
        """The configuration of a model in a checkpoint: its stored settings, this run's data and evaluation.

        The checkpoint holds all weights, so the files that training began from are not looked for.
        """
        probe = self._derived(model, {})
        keys = set(probe.final_config_dict) - shared_keys() - set(overall_properties()) - {"model", "dataset"}
        keys -= {key for key in probe.final_config_dict if key.isupper() or key.endswith("_neg_sample_args")}
        keys -= set(checks.WEIGHT_FILES)
        settings = {key: stored[key] for key in keys if key in stored and key in probe.internal_config_dict}
        shares = checks.TRANSFORMED_SHARES.values() if settings.get("transform") else ()
        settings |= {key: stored[key] for key in shares if stored.get(key) is not None}
        if model not in MODELS:  # one of another package may have no properties file that lists what it reads
            read = checks.keys_read_by_model(probe.resolved.model_class) - shared_keys()
            settings |= {key: stored[key] for key in read if key in stored and not key.isupper()}
        return self._derived(model, {**settings, **checks.WITHOUT_FILES.get(model, {})})

    def baseline_config(self) -> KDConfig:
        """The plain model to stand beside the student, of its size.

        ``baseline: student``, the default, is the student's own backbone with all of its settings, less teacher,
        distillers, and SEvo where its graph is the teacher's.
        Another model trains as it would alone, with RecBole's defaults; of the run's settings it takes those that were
        given for the length of training.
        """
        name = str(self["baseline"])
        backbone = self.resolved.backbone
        model = backbone if name == "student" else name
        if model == backbone:
            keys = {*training_arguments, "learning_rate_schedule", "fused_adam", "fast_sampling", *self.model_keys()}
            keys |= set(checks.TRANSFORMED_SHARES.values()) if self["transform"] else set()
            settings = {key: self[key] for key in keys - {"sevo"} if key in self}
            if self.sevo is not None and self.sevo.graph == "teacher":
                settings["learner"] = str(settings["learner"]).lower().removeprefix("sevo_")
            elif self.sevo is not None:
                settings["sevo"] = self["sevo"]
            if settings["fused_adam"] is None:
                settings["fused_adam"] = bool(self.active_distillers())  # as the student's is
            if settings["fast_sampling"] is None:
                settings["fast_sampling"] = bool(self.active_distillers()) and self._samples_fast(model)
            if model in MODELS:
                # A recipe's own words for sizes may mean nothing to this backbone, whose file lists what it reads.
                listed = self._derived(model, {}, prefix="").internal_config_dict
                settings = {key: settings[key] for key in settings if key in listed or key not in self.preset_keys}
            if (settings.get("train_neg_sample_args") or {}).get("distribution") == "none":
                # What RecBole makes of None, and refuses to be given.
                settings["train_neg_sample_args"] = None
            return self._derived(model, settings, prefix="")
        taken = (*BASELINE_LENGTHS, "fast_sampling")
        settings = {key: self[key] for key in taken if key in self.external_config_dict}
        probe = self._derived(model, {}, prefix="")
        for key in ("embedding_size", "mf_embedding_size", "mlp_embedding_size"):
            if key in probe and self["embedding_size"] is not None:
                settings[key] = self["embedding_size"]
        return self._derived(model, settings, prefix="")

    def model_keys(self) -> set[str]:
        """Settings that belong to the backbone itself, and those of its training."""
        keys = set(self.internal_config_dict) - shared_keys() - set(overall_properties()) - set(distillers())
        return {key for key in keys if key not in ("model", "dataset", "MODEL_TYPE")}

    def _derived(self, model: str, settings: Mapping[str, Any], prefix: str = "teacher.") -> KDConfig:
        inherited = {key: self[key] for key in shared_keys() - set(checks.PICKLES) if key in self}
        inherited["data_path"] = self.data_root
        if self["use_gpu"]:  # the default, which asks for nothing
            del inherited["use_gpu"]
        if not self["eval_batch_size_given"]:
            del inherited["eval_batch_size"]
        own = nest(settings)
        preset = resolve_model(model, setting=f"{prefix}model")
        if preset.recipe or any(key in read_properties("model", model) for key in ("distill", "teacher")):
            own = {"distill": [], **own}
        return KDConfig(model, self.dataset, config_dict=merge(inherited, own), prefix=prefix)

    def plain_values(self) -> dict[str, Any]:
        """The settings as plain values, for checkpoints, digests and results; without those of the log."""
        return {key: plain(value) for key, value in self.final_config_dict.items() if key not in _OF_THE_LOG}


def shared_keys() -> set[str]:
    """Settings of data, evaluation and machine, which every model of a run shares."""
    return (
        set(general_arguments)
        | set(evaluation_arguments)
        | set(DATASET_KEYS)
        | {"worker", "save_last", *SPLIT_KEYS, "trim_padding", "wandb_project", *_OF_THE_LOG}
    )


__all__ = ["BASELINE_LENGTHS", "WITHOUT_EFFECT", "KDConfig", "shared_keys"]
