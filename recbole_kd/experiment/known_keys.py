"""Every setting that all models share: type, default, range and meaning (long: one table, in groups).

RecBole ignores most wrong values silently, or fails on them late. :func:`check` refuses them in one line.
Help and docs are made from the same table. Nothing here imports torch or RecBole.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.options import LARGEST_SIZE, Described, Options, checked, described, option
from recbole_kd.text import moment

__all__ = [
    "GROUPS",
    "OF_OTHER_MODELS",
    "OMITTED",
    "SPLIT_KEYS",
    "WITHOUT_CUTOFF",
    "Teacher",
    "check",
    "hint_of",
    "known_keys",
    "of_a_model",
    "result_name",
]

#: About the largest float32.
_LARGEST = 1e38
#: Limit, because a pair's negatives are drawn at once.
_MOST_NEGATIVES = 100_000
#: Values of ``learner``: RecBole's, then ours.
_LEARNERS = (
    *("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    *("lazy_adam", "sevo_sgd", "sevo_adam", "sevo_adamw"),
)
#: Our settings that decide the split, beside RecBole's.
SPLIT_KEYS = ("split_seed", "split_time", "held_out_users", "fold_in")
#: RecBole's metrics that are computed over the whole list.
WITHOUT_CUTOFF = ("auc", "gauc", "logloss", "mae", "rmse")


def result_name(metric: str, cutoff: Any) -> str:
    """A metric's name in results and in ``--valid_metric``, such as NDCG@20; AUC and others have no cutoff."""
    return metric if metric.lower() in WITHOUT_CUTOFF else f"{metric}@{cutoff}"


# Tests of values


def _is_interval(value: Any) -> bool:
    """Whether RecBole can read it as an interval: ``[A,B]``, either end open; several separated by semicolons."""
    number = r"\s*(-?inf|-?\d+(\.\d*)?)\s*"
    parts = [re.fullmatch(rf"\s*[\[(]{number},{number}[\])]\s*", part) for part in str(value).split(";")]
    return isinstance(value, str) and all(part and float(part[1]) <= float(part[3]) for part in parts)


def _are_intervals(value: Mapping[str, Any] | None) -> bool:
    """Whether each column has an interval, or a list of the ids to keep."""
    return all(_is_interval(one) or (isinstance(one, (list, tuple)) and one) for one in (value or {}).values())


def _is_metric(value: str) -> bool:
    name, _, cutoff = value.partition("@")
    whole = name == value or (cutoff.isdigit() and int(cutoff) > 0)
    return bool(name) and whole and value == result_name(name, cutoff)


def _are_cutoffs(value: Any) -> bool:
    cutoffs = value if isinstance(value, (list, tuple)) else [value]
    return bool(cutoffs) and all(
        isinstance(k, int) and not isinstance(k, bool) and 0 < k <= LARGEST_SIZE for k in cutoffs
    )


def draws_candidates(mode: str) -> bool:
    """Whether it is uniN or popN: targets are ranked among N drawn items."""
    return re.fullmatch(r"(uni|pop)[1-9]\d{0,8}", mode) is not None


def _is_mode(value: Any) -> bool:
    return not isinstance(value, str) or value in ("full", "labeled") or draws_candidates(value)


def _is_split(value: Mapping[str, Any]) -> bool:
    """Whether it is {RS: [train, valid, test]}, {TS: the same} or {LS: MODE}."""
    if len(value) != 1:
        return False
    ((how, part),) = value.items()
    if how == "LS":
        return part in ("valid_and_test", "valid_only", "test_only")
    numbers = isinstance(part, (list, tuple)) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one < math.inf for one in part
    )
    return how in ("RS", "TS") and numbers and len(part) == 3 and part[0] > 0


def _are_times(value: Any) -> bool:
    """Whether it is a date or a number, or two dates or two numbers in ascending order."""
    times: list[Any] = [moment(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
    of_a_kind = None not in times and len({*map(type, times)}) == 1
    return value is None or (len(times) < 3 and of_a_kind and times == sorted({*times}))


def _are_users(value: Any) -> bool:
    """Whether it is a share below 1 or a whole number of users for validation, and one for test; not both 0."""
    if not isinstance(value, (list, tuple)):
        return value is None
    fit = (isinstance(one, (int, float)) and one >= 0 and (one < 1 or type(one) is int) for one in value)
    return len(value) == 2 and all(fit) and any(value) and not any(isinstance(one, bool) for one in value)


def _are_columns(value: Mapping[str, Any] | None) -> bool:
    """Whether each file has a list of columns, or "*" for all, and the file of interactions has at least one."""
    if value is None:
        return True
    return bool(value.get("inter")) and all(one == "*" or _are_words(one) for one in value.values())


def _are_words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def _are_three_files(value: Any) -> bool:
    return value is None or (len(value) == 3 and value[0] not in value[1:] and all(value))


def _is_encoding(value: str | None) -> bool:
    try:
        return value is None or bool(codecs.lookup(value))
    except (LookupError, ValueError):
        return False


def _interval(help: str) -> Any:
    return option(
        "[0,inf)", help, noun="an interval, such as [5,inf)", test=lambda text: not text or _is_interval(text)
    )


def _name(default: str, help: str) -> Any:
    return option(default, help, noun="a name", test=bool)


# Sections

#: Settings of section ``teacher`` that name a teacher's file.
TEACHER_FILES = ("checkpoint", "ranks", "vectors")


@dataclass(frozen=True)
class Teacher(Options):
    """Section ``teacher`` without the settings of the teacher's own model."""

    model: str | None = option(None, "the teacher's model; short form: --teacher=NAME", metavar="NAME")
    checkpoint: str | None = option(
        None,
        "a trained teacher: a file of recbole-kd or of RecBole; nothing is trained then",
        metavar="FILE",
        filled=True,
    )
    ranks: str | None = option(
        None, "as the teacher: a file of scores or ranked items from another system", metavar="FILE", filled=True
    )
    vectors: str | None = option(
        None,
        "as the teacher: a file of vectors from another system, of items or of users and items",
        metavar="FILE",
        filled=True,
    )
    allow_other_split: bool = option(False, "accept a checkpoint of another split, which may know the test pairs")
    share: float = option(1, "weight of this teacher among several, relative to the others' shares", above=0)
    fusion: str = option(
        "ranks",
        "how rankings of several teachers are combined: by reciprocal rank, or by mean standardised scores",
        choices=("ranks", "scores"),
    )


@dataclass(frozen=True)
class _Negatives(Options):
    distribution: str | None = option("uniform", "how negatives are drawn", choices=("uniform", "popularity", "none"))
    sample_num: int = option(1, "negatives of each positive pair", minimum=1, maximum=_MOST_NEGATIVES)
    alpha: float = option(1.0, "exponent of an item's popularity, with distribution popularity")
    dynamic: bool = option(False, "take the hardest of candidate_num drawn items")
    candidate_num: int = option(0, "items drawn for each negative, with dynamic", minimum=0, maximum=_MOST_NEGATIVES)

    def check(self, section: str) -> None:
        if self.dynamic and not self.candidate_num:
            raise UserError(f"{section}.candidate_num=0, but dynamic is true; expected a whole number of at least 1.")


@dataclass(frozen=True)
class _Clipping(Options):
    max_norm: float = option(None, "largest norm of the gradient", above=0, metavar="X", needed="a largest norm")
    norm_type: float = option(2.0, "p of the norm", above=0)
    error_if_nonfinite: bool = option(False, "whether training ends at a gradient that is not finite")
    foreach: bool | None = option(None, "whether torch's faster method is used")


_MODE: dict[str, Any] = {"noun": "full, labeled, uniN or popN with N of at least 1", "test": _is_mode}


@dataclass(frozen=True)
class _Modes(Options):
    valid: str = option("full", "items that are ranked on validation", **_MODE)
    test: str = option("full", "items that are ranked on the test split", **_MODE)


@dataclass(frozen=True)
class _Evaluating(Options):
    split: dict[str, Any] = option(
        {"RS": [0.8, 0.1, 0.1]},
        "by random shares (RS), by shares of time (TS), or each user's last pairs (LS: valid_and_test)",
        noun="{RS: [0.8,0.1,0.1]}, {TS: [0.8,0.1,0.1]} or {LS: valid_and_test}",
        test=_is_split,
    )
    group_by: str | None = option(
        "user", "user: each user's pairs are split separately; none: all pairs together", choices=("user", "none")
    )
    order: str = option("RO", "random order, or by time", choices=("RO", "TO"))
    mode: str | _Modes = option("full", "items that are ranked; {valid: uni100, test: full} for each split", **_MODE)


# Groups, in the order of help


@dataclass(frozen=True)
class Who(Options):
    """Student, teacher and distillers"""

    model: str = option(None, "the student: a recipe or any recommender of RecBole", metavar="NAME")
    dataset: str = option(None, "the dataset's name", metavar="NAME")
    student: str | None = option(None, "another backbone for a recipe", metavar="NAME")
    teacher: Teacher | None = option(None, "the teacher, and any setting of its own: --teacher.epochs=50")
    distill: tuple[str, ...] | None = option(None, "distillers by name", metavar="de,rrd")
    baseline: str | None = option(
        "student",
        "plain model to compare with: student, the same backbone without its teacher; another model; none",
        metavar="NAME",
    )


@dataclass(frozen=True)
class FilesAndOutput(Options):
    """Files and output"""

    data_path: str = option("dataset/", "the folder that contains the dataset's folder")
    checkpoint_dir: str = option("saved", "checkpoints, results and the cache of teachers")
    save_last: bool = option(True, "keep the state after the last complete epoch, for --resume")
    resume: str | None = option(
        None, 'continue from a run\'s "-last.pth" file', metavar="FILE", filled=True, noun="the name of a file"
    )
    result_file: str | None = option(
        None, "file to which the result (JSON) is written too", metavar="FILE", filled=True, noun="the name of a file"
    )
    warm_start: str | None = option(
        None,
        "start from a trained student: users and items that it knows keep their vectors",
        metavar="FILE",
        filled=True,
    )
    warm_start_new: str = option(
        "mean",
        "first vectors of new users and items: the mean of the known, or of neighbours by the teacher's vectors",
        choices=("mean", "teacher"),
    )
    final: bool = option(False, "train the chosen student again on all interactions, for serving")
    quiet: bool = option(False, "show only warnings and errors; the log file is complete")
    show_progress: bool = option(True, "progress bars; by default only in a terminal")
    state: str = option(
        "INFO", "lowest level in the log", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), any_case=True
    )
    log_wandb: bool = option(False, "log to Weights & Biases")
    wandb_project: str = option("recbole", "its project")
    log_mlflow: bool = option(False, "log to MLflow")
    mlflow_experiment: str = option("recbole", "its experiment")
    loss_decimal_place: int = option(4, "decimals of losses in the log", minimum=0, maximum=16)


@dataclass(frozen=True)
class Machine(Options):
    """Machine and processes"""

    use_gpu: bool = option(True, "whether to use a GPU if there is one")
    gpu_id: int | str | tuple[int, ...] = option(
        "0", "numbers of the GPUs", noun="a number, or several separated by commas"
    )
    worker: int = option(0, "processes that load batches", minimum=0, maximum=256)
    nproc: int = option(1, "processes, here or at ray_address; they give the results of one", minimum=1, maximum=1024)
    ray_address: str | None = option(
        None, "a Ray cluster that ranks in shards of users; local: this machine's cores", metavar="HOST:PORT"
    )


@dataclass(frozen=True)
class Training(Options):
    """Training"""

    seed: int = option(2020, "seed of all random numbers", minimum=0, maximum=2**32 - 1)
    reproducibility: bool = option(True, "the same result for the same seed on one machine")
    epochs: int = option(300, "at most", minimum=0)
    stop_after: int | None = option(None, "stop after this many epochs, whatever validation says", minimum=1)
    train_batch_size: int = option(2048, "pairs in a step", minimum=1, maximum=LARGEST_SIZE)
    learner: str = option("adam", "optimiser", choices=_LEARNERS, any_case=True)
    learning_rate: float = option(0.001, "learning rate of the optimiser", minimum=1e-12, maximum=_LARGEST)
    learning_rate_schedule: str = option(
        "constant", "cosine: from learning_rate down to 0 over the epochs", choices=("constant", "cosine")
    )
    fused_adam: bool | None = option(
        None,
        "faster steps, the same up to rounding: fused Adam and AdamW; by default if a run distils or draws fast",
    )
    fast_sampling: bool | None = option(
        None, "draw an epoch's batches and negatives at once, same distribution; by default in runs that distil"
    )
    precision: str = option(
        "fp32",
        "large matrix products of distillers: fp32, or bf16 with fp32 sums and weights if the processor has it",
        choices=("fp32", "bf16"),
    )
    weight_decay: float = option(0.0, "weight decay of the optimiser", minimum=0, maximum=_LARGEST)
    train_neg_sample_args: _Negatives | None = option(None, "negatives")
    eval_step: int = option(1, "epochs between evaluations on validation; 0: none", minimum=0, maximum=LARGEST_SIZE)
    stopping_step: int = option(10, "evaluations without improvement before training stops", minimum=0)
    clip_grad_norm: _Clipping | None = option(None, "limit of the gradient's norm; --clip_grad_norm.max_norm=1")
    shuffle: bool = option(True, "whether pairs are shuffled before each epoch")
    matryoshka: tuple[int, ...] | None = option(
        None,
        "sizes of prefixes: the first numbers of the student's vectors are also students; the full size is added",
        minimum=1,
        maximum=LARGEST_SIZE,
        filled=True,
        metavar="[8,16,32]",
    )
    trim_padding: bool = option(
        False, "BERT4Rec, GRU4Rec, SASRec and STOSA skip padding: the same outputs, several times faster"
    )
    require_pow: bool = option(False, "square norms in RecBole's embedding loss")
    enable_amp: bool = option(False, "mixed precision")
    enable_scaler: bool = option(False, "scale the loss of mixed precision")
    transform: str | None = option(
        None,
        "of sequences in a batch",
        choices=("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined"),
        metavar="NAME",
    )


@dataclass(frozen=True)
class Evaluation(Options):
    """Evaluation"""

    metrics: str | tuple[str, ...] = option(("Recall", "NDCG", "Hit", "MRR"), "what is computed", filled=True)
    topk: Any = option((10, 20, 40), "cutoffs", noun="whole numbers above 0, such as [10,20]", test=_are_cutoffs)
    valid_metric: str = option(
        "NDCG@20", "chooses the epoch, on validation", noun="a metric and a cutoff, such as NDCG@20", test=_is_metric
    )
    eval_args: _Evaluating = option(None, "split and ranking")
    split_seed: int | None = option(None, "seed of a random split; by default --seed's", minimum=0, maximum=2**32 - 1)
    split_time: Any = option(
        None,
        "training before this time, test from it on; with two times, validation between them",
        noun="a date, a number in the unit of the data, or two, the earlier first, such as [2025-01-01,2025-02-01]",
        test=_are_times,
        metavar="[2025-01-01,2025-02-01]",
    )
    held_out_users: Any = option(
        None,
        "validation and test users: nothing is trained on them, and what --fold_in leaves of their items is ranked",
        noun="two shares of the users or two numbers of users, such as [0.1,0.1]",
        test=_are_users,
        metavar="[0.1,0.1]",
    )
    fold_in: float = option(0.8, "share of a held-out user's interactions that the model is given", above=0, below=1)
    repeatable: bool | None = option(
        False,
        "whether items that a user has seen are ranked too; by default for sequential models if some user has an item "
        "twice",
    )
    eval_batch_size: int | None = option(
        None,
        "user-item pairs in a block of scores; by default from the size of the catalogue",
        minimum=1,
        maximum=LARGEST_SIZE,
    )
    metric_decimal_place: int = option(4, "decimals of metrics", minimum=1, maximum=16)
    tail_ratio: float | None = option(
        None, "tail items of TailPercentage: a share of all items; above 1, the most training pairs of an item", above=0
    )


@dataclass(frozen=True)
class Data(Options):
    """Data"""

    benchmark_filename: tuple[str, ...] | None = option(
        None,
        "files of a split made in advance",
        noun="names of three files, the first different from the others, such as [train,valid,test]",
        test=_are_three_files,
        metavar="[train,valid,test]",
    )
    load_col: dict[str, Any] | None = option(
        {"inter": ["user_id", "item_id"]},
        "columns to read of each file; * for all",
        noun="columns of each file, such as {inter: [user_id, item_id]}",
        test=_are_columns,
    )
    unload_col: dict[str, tuple[str, ...]] | None = option(None, "columns not to read", metavar="{FILE: [COLUMN]}")
    unused_col: dict[str, tuple[str, ...]] | None = option(
        None, "columns used only to filter", metavar="{FILE: [COLUMN]}"
    )
    additional_feat_suffix: str | tuple[str, ...] | None = option(None, "more files to read", metavar="[SUFFIX]")
    encoding: str | None = option(
        None,
        "encoding of the files; by default the machine's",
        metavar="utf-8",
        noun="an encoding, such as utf-8",
        test=_is_encoding,
    )
    field_separator: str = option("\t", "between columns", noun="a separator", test=bool)
    seq_separator: str = option(" ", "separator inside a sequence", noun="a separator", test=bool)
    user_inter_num_interval: str | None = _interval("number of pairs that a user must have")
    item_inter_num_interval: str | None = _interval("number of pairs that an item must have")
    val_interval: dict[str, Any] | None = option(
        None,
        "values to keep of each column",
        noun="an interval or a list of ids for each column, such as {rating: '[3,inf)'}",
        test=_are_intervals,
        metavar="{COLUMN: INTERVAL}",
    )
    filter_inter_by_user_or_item: bool = option(True, "drop pairs whose user or item is not in a features file")
    rm_dup_inter: str | None = option(None, "which of equal pairs to keep", choices=("first", "last"), metavar="first")
    threshold: dict[str, float] | None = option(
        None, "lowest value of a positive pair, by column", metavar="{COLUMN: X}"
    )
    USER_ID_FIELD: str = _name("user_id", "column of users")
    ITEM_ID_FIELD: str = _name("item_id", "column of items")
    RATING_FIELD: str = _name("rating", "column of ratings")
    TIME_FIELD: str = _name("timestamp", "column of times")
    LABEL_FIELD: str = _name("label", "column of labels, which is created")
    NEG_PREFIX: str = _name("neg_", "prefix of columns of negatives")
    ITEM_LIST_LENGTH_FIELD: str = _name("item_length", "column of sequence lengths, which is created")
    LIST_SUFFIX: str = _name("_list", "suffix of columns of sequences")
    POSITION_FIELD: str = _name("position_id", "column of positions, which is created")
    MAX_ITEM_LIST_LENGTH: int = option(50, "longest sequence", minimum=1, maximum=LARGEST_SIZE)
    seq_len: dict[str, int] | None = option(None, "longest sequence of a column", minimum=1, metavar="{COLUMN: N}")
    numerical_features: tuple[str, ...] = option((), "columns of numbers to embed")
    discretization: dict[str, Any] | None = option(
        None, "discretisation of columns of numbers", metavar="{COLUMN: {method: LD}}"
    )
    normalize_field: tuple[str, ...] | None = option(None, "columns to scale to [0, 1]", metavar="[COLUMN]")
    normalize_all: bool | None = option(None, "scale every column of numbers")
    preload_weight: dict[str, str] | None = option(None, "columns of pretrained vectors", metavar="{IDS: VECTORS}")
    alias_of_user_id: tuple[str, ...] | None = option(None, "more columns that hold users", metavar="[COLUMN]")
    alias_of_item_id: tuple[str, ...] | None = option(None, "more columns that hold items", metavar="[COLUMN]")


#: Groups of settings, in the order of help.
GROUPS: tuple[type[Options], ...] = (Who, FilesAndOutput, Machine, Training, Evaluation, Data)

_OF_KNOWLEDGE_GRAPHS = (
    *("ENTITY_ID_FIELD", "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "kg_reverse_r"),
    *("entity_kg_num_interval", "relation_kg_num_interval", "kge_interval", "train_kg_step", "train_rec_step"),
)
_OF_DECISION_TREES = (
    *("convert_token_to_onehot", "token_num_threshold", "lgb_num_boost_round", "lgb_params"),
    *("xgb_early_stopping_rounds", "xgb_model", "xgb_nthread", "xgb_num_boost_round", "xgb_params"),
    *("xgb_silent", "xgb_verbose_eval"),
)
_OF_SOME_MODELS = (
    *("beta", "eta", "ft_ratio", "mask_ratio", "m_step", "n_dec_epochs", "n_enc_epochs", "pretrain_epochs"),
    *("reg_weight", "save_step", "warm_up_step"),
)
#: Settings that RecBole's trainers read for some models; such a model has them in its own file.
OF_OTHER_MODELS = frozenset((*_OF_KNOWLEDGE_GRAPHS, *_OF_DECISION_TREES, *_OF_SOME_MODELS))
#: Reason -> settings that RecBole's shared code reads, but that are not in the table.
OMITTED: dict[str, tuple[str, ...]] = {
    "RecBole computes it from the model, the machine or other settings": (
        *("MODEL_TYPE", "MODEL_INPUT_TYPE", "device", "eval_type", "valid_metric_bigger", "single_spec", "local_rank"),
        *("valid_neg_sample_args", "test_neg_sample_args"),
    ),
    "a transform of sequences writes the name of its column there": (
        *("CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "INVERSE_ITEM_SEQ", "MASK_INDEX", "MASK_ITEM_SEQ"),
        *("NEG_ITEMS", "POS_ITEMS", "REORDER_ITEM_SEQ"),
    ),
    "the launcher's": ("world_size",),
    "refused: RecBole keeps datasets as pickles": (
        *("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"),
    ),
    "of models on knowledge graphs, none of which is offered": _OF_KNOWLEDGE_GRAPHS,
    "of decision trees, none of which is offered": _OF_DECISION_TREES,
    "a model's own, with its default in the model's file": _OF_SOME_MODELS,
}


# Models' own settings: their defaults and meanings are in RecBole's files, bounds by name here.

_SIZES = frozenset(
    (
        *("embedding_size", "mf_embedding_size", "mlp_embedding_size", "user_embedding_size", "item_embedding_size"),
        *("ui_embedding_size", "neigh_embedding_size", "hidden_size", "inner_size", "latent_dimension", "weight_size"),
        *("hidden_dimension", "gcn_output_dim", "n_heads", "num_layers", "n_factors", "kfac", "history_len", "rank"),
        *("num_clusters", "num_conv_kernel", "conv_kernel_size", "pool_kernel_size", "neigh_num", "class_num", "k"),
        *("num_basis_functions", "metrics_k", "pretrain_epochs", "save_step", "m_step", "total_anneal_steps"),
        *("n_enc_epochs", "n_dec_epochs", "history_num_per_term", "steps", "step", "n_cate"),
        *("block_num", "k_interests", "kernel_size", "order", "q"),
        # Lists: each number of them.
        *(
            "cnn_channels",
            "cnn_kernels",
            "cnn_strides",
            "critic_layers",
            "dilations",
            "dims_dnn",
            "in_dims",
            "out_dims",
        ),
        *("encoder_hidden_size", "hidden_size_list", "item_hidden_size_list", "user_hidden_size_list"),
        "mlp_hidden_size",
    )
)
_COUNTS = frozenset(
    (
        *("n_layers", "n_iterations", "hyper_layers", "warm_up_step", "sampling_steps", "split_to"),
        *("anneal_steps", "vae_anneal_steps"),
    )
)
#: Largest values of settings that repeat work in a step or an epoch, such as layers and passes.
_REPEATED = {
    **dict.fromkeys(("n_layers", "num_layers", "n_iterations", "hyper_layers", "step"), 1_000),
    **dict.fromkeys(("block_num", "n_enc_epochs", "n_dec_epochs", "neigh_num", "num_basis_functions"), 1_000),
    **dict.fromkeys(("steps", "sampling_steps", "history_num_per_term"), 100_000),
    "order": 2,
}
_SHARES = frozenset(("mask_ratio", "ft_ratio", "corruption_ratio", "drop_ratio", "l1_ratio", "eta", "pretrain_alpha"))
_WEIGHTS = frozenset(
    (
        *("reg_weight", "reg_weight_1", "reg_weight_2", "ssl_weight", "ssl_reg", "proto_reg", "cor_weight", "shrink"),
        *("positive_weight", "negative_weight", "noise_std", "w_min", "w_max"),
    )
)
_TEMPERATURES = frozenset(
    ("resolution", "temperature", "tau", "ssl_temp", "ssl_tau", "layer_norm_eps", "initializer_range")
)
_ACTIVATIONS = ("sigmoid", "tanh", "relu", "leakyrelu", "dice")
#: Setting -> its choices in different models; the choices that contain a model's default apply.
_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "accum": (("sum", "stack"),),
    "ae_act_func": (_ACTIVATIONS,),
    "aggregator": (("mean", "user_attention", "self_attention"),),
    "algorithm": (("prod", "concat"),),
    "hid_activation": (("sigmoid", "relu", "tanh"),),
    "hidden_act": (("gelu", "relu", "swish", "tanh", "sigmoid"),),
    "inter_matrix_type": (("01", "rating"),),
    "knn_method": (("item", "user"),),
    "likelihood": (("multinomial", "gaussian", "logistic"),),
    "loss_type": (("BCE", "MSE"), ("CE", "BPR", "BCE")),
    "mean_type": (("x0", "eps"),),
    "mlp_act_func": (_ACTIVATIONS,),
    "neigh_info_method": (("random", "knn", "louvain"),),
    "norm": (("L2", "L", "R", "L1", "L1-L", "L1-R"),),
    "noise_schedule": (("linear", "linear-var", "cosine", "binomial"),),
    "out_activation": (("sigmoid", "relu"),),
    "train_method": (("no_pretrain", "after_pretrain"),),
    "train_stage": (("actor_pretrain", "critic_pretrain", "finetune"),),
    "type": (("ED", "ND", "RW"),),
}


def of_a_model(key: str, defaults: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Type and bounds of a model's own setting, if its name and the model's defaults determine them."""
    default = defaults.get(key)
    for choices in _WORDS.get(key, ()):
        if default in choices:
            return str, {"choices": choices, "any_case": choices is _ACTIVATIONS}
    largest = _REPEATED.get(key, LARGEST_SIZE)
    if key in _SIZES:
        return int | None, {"minimum": 1, "maximum": largest}
    if key in _COUNTS:
        # A transformer needs a last layer; other models may have no layer.
        transformer = key == "n_layers" and "n_heads" in defaults
        return int | None, {"minimum": int(transformer), "maximum": largest}
    if key in _SHARES or "dropout" in key:
        return float | None, {"minimum": 0, "below" if key == "drop_ratio" else "maximum": 1}
    if key in _WEIGHTS:
        return float | None, {"minimum": 0, "maximum": _LARGEST}
    return (float | None, {"minimum": 1e-12, "maximum": _LARGEST}) if key in _TEMPERATURES else None


# The table


@cache
def _table() -> dict[str, tuple[type[Options], Any]]:
    """Setting -> its group, and its type."""
    hints = {group: typing.get_type_hints(group) for group in GROUPS}
    return {field.name: (group, hints[group][field.name]) for group in GROUPS for field in fields(group)}


def known_keys() -> Iterator[tuple[str, list[Described]]]:
    """The title of each group and its settings; settings of sections have dotted names."""
    for group in GROUPS:
        yield str(group.__doc__), list(described(group))


def hint_of(key: str) -> Any:
    """The type of a setting by its dotted name; None if it is not in the table.

    A teacher's setting (``teacher.KEY``, ``teacher.0.KEY``) has the same type as the run's.
    """
    if key == "teacher":
        return str
    own = re.sub(r"^teacher\.(\d+\.)?", "", key)
    if own != key and own in typing.get_type_hints(Teacher):
        return typing.get_type_hints(Teacher)[own]
    return _table()[own][1] if own in _table() else None


def check(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> None:
    """Refuses values of a wrong type, out of range, or without meaning.

    Args:
        settings: the given settings, nested; sections are completed with their defaults.
        defaults: the defaults of the model's own settings.
        prefix: put before a setting's name in messages, such as "teacher.".

    Raises:
        UserError: such a value; the message names the setting and what is expected.
    """
    for key, value in settings.items():
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        section, name = f"--{prefix}", f"--{prefix}{key}"
        own = of_a_model(key, defaults)
        if key == "teacher":
            _check_teacher(value)
        elif key in _table():
            group = _table()[key][0]
            checked(name, value, _table()[key][1], group.__dataclass_fields__[key].metadata)
        elif own is not None and not any(isinstance(one, (list, tuple)) for one in (value, defaults.get(key))):
            checked(name, value, *own)
        elif not _same_kind(value, defaults.get(key)):  # a unit's section checks itself
            raise UserError(
                f"{name}={value!r} has another type than its default {defaults[key]!r}; "
                f"set a value such as {section}{key}={defaults[key]}."
            )
        elif own is not None:
            for one in value or ():
                checked(name, one, *own)


def _check_teacher(value: Any) -> None:
    """Checks section ``teacher`` and its numbered sections, without the settings of the teachers' models."""
    section = dict(value) if isinstance(value, Mapping) else {}
    names = {field.name for field in fields(Teacher)} - {"model"}
    for number, own in {"": section, **{f".{key}": one for key, one in section.items() if key.isdigit()}}.items():
        for name in names & set(own or {}):
            if number and name == "fusion":
                raise UserError(
                    f"--teacher{number}.fusion is set, but there is one fusion for all teachers; set --teacher.fusion."
                )
            Teacher.checked(f"--teacher{number}", name, own[name])


def _same_kind(value: Any, default: Any) -> bool:
    """Whether a value has its default's type; any type fits a default of None or of another kind."""
    if value is None or default is None:
        return True
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, (list, tuple)):
        whole = isinstance(value, (list, tuple))
        return whole and (not default or all(any(_same_kind(one, own) for own in default) for one in value))
    return True
