"""The options of each verb, one dataclass a verb. Help, checks, completion and the tables in docs/ are made from them.

Nothing here imports torch or RecBole, so help appears at once. A verb's function ``run(options, settings)`` is in
``recbole_kd.verbs.NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from recbole_kd.errors import UserError, closest
from recbole_kd.options import Options, option

__all__ = ["INDEXES", "KINDS", "MOST", "PARTS", "SEEN", "VERBS", "VerbOptions"]

VerbT = TypeVar("VerbT", bound="VerbOptions")

#: ``--seen`` -> the splits whose interactions are known when a recommendation is made.
SEEN: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "train+valid": ("train", "valid"),
    "all": ("train", "valid", "test"),
}
#: Name of an approximate index, which is also the name of its module -> the package to install.
INDEXES = {"faiss": "faiss-cpu"}
KINDS = ("students", "teachers", "distillers", "recipes", "datasets")
#: The largest number of seeds or trials: each is trained.
MOST = 10_000
PARTS = ("spectrum", "smoothing", "experts", "gain", "compression", "map")


@dataclass(frozen=True)
class VerbOptions(Options):
    """Base of the verbs' options.

    Attributes:
        verb: the first word of the command line.
        summary: one line that says what the verb does.
        note: text after the options in help.
        settings: settings of a run that help also shows; None if the verb takes none.
        in_files: whether files of settings may also hold the options, which then stay among the settings.
        torchless: whether the verb runs without torch and RecBole.
    """

    verb: ClassVar[str]
    summary: ClassVar[str]
    note: ClassVar[str] = ""
    settings: ClassVar[tuple[str, ...] | None] = None
    in_files: ClassVar[bool] = False
    torchless: ClassVar[bool] = False

    @classmethod
    def split(cls: type[VerbT], given: Mapping[str, Any]) -> tuple[VerbT, dict[str, Any]]:
        """The verb's checked options, and the remaining settings, which are for the run.

        Args:
            given: options and settings, by dotted name.

        Raises:
            UserError: a bad value, a missing one, or a setting for a verb that takes none.
        """
        own = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        settings = {name: value for name, value in given.items() if name not in own}
        for name in () if cls.in_files else settings:
            if name.partition(".")[0] in {field.name for field in fields(cls)}:
                raise UserError(f"--{name} is part of --{name.partition('.')[0]}, which is one value; set that.")
        if settings and cls.settings is None:
            name = next(iter(settings))
            known = [field.name for field in fields(cls)]
            takes = ", ".join(f"--{one}" for one in known)
            raise UserError(f"Unknown setting '{name}' for {cls.verb}.{closest(name, known)} It takes {takes}.")
        return cls.parse("--", own), dict(given) if cls.in_files else settings


_CHECKPOINT = option(
    None,
    "a student, teacher or baseline that recbole-kd saved",
    metavar="FILE",
    needed="a checkpoint",
    example="saved/BPR-ml-100k-....pth",
)
_CONFIG_FILES = option("", 'YAML files with settings, such as "a.yaml b.yaml"; later ones win', metavar="FILES")
_DIMENSIONS = option(
    None, "for a student of --matryoshka: score by this many first numbers of its vectors", minimum=1, metavar="N"
)
_READ_FILES = option("", "YAML files; only their settings of data, evaluation and machine are used", metavar="FILES")


@dataclass(frozen=True)
class TrainOptions(VerbOptions):
    verb = "train"
    summary = "get the teacher, distil, evaluate, save (the default)"
    settings = ()

    config_files: str = _CONFIG_FILES
    dry_run: bool = option(
        False, "print the resolved settings as YAML with their sources, and estimated time and memory; train nothing"
    )


@dataclass(frozen=True)
class ListOptions(VerbOptions):
    verb = "list"
    summary = "students, teachers, distillers, recipes and datasets, a line each"

    kind: str | None = option(None, "only these", choices=KINDS, metavar="KIND")
    name: str | None = option(None, "show one with all its options; needs --kind", metavar="NAME")
    data_path: str = option("dataset/", "the folder that contains the datasets' folders")
    all: bool = option(False, "also the datasets that RecBole names and that are not on this machine")

    def check(self, section: str) -> None:
        if self.name is not None and self.kind is None:
            raise UserError(f"--name={self.name} needs its kind; set --kind to one of {', '.join(KINDS)}.")


@dataclass(frozen=True)
class EvaluateOptions(VerbOptions):
    verb = "evaluate"
    summary = "a checkpoint on its dataset, full ranking"
    note = "--topk and --metrics are by default those that the model was trained with."
    settings = ("data_path", "repeatable", "ray_address")

    checkpoint: str = _CHECKPOINT
    config_files: str = _READ_FILES
    dimensions: int | None = _DIMENSIONS
    result_file: str | None = option(None, "also write the metrics (JSON) there", metavar="FILE")


@dataclass(frozen=True)
class PrepareOptions(VerbOptions):
    verb = "prepare"
    summary = "make RecBole's atomic files from a table of events, or from a public dataset"

    dataset: str = option(
        None,
        "the name that the data gets; citeulike, gowalla and RecBole's own are downloaded",
        metavar="NAME",
        needed="a dataset",
    )
    source: str | None = option(
        None,
        "a table (CSV, TSV or Parquet), a public dataset's raw file, or a zip of atomic files: a file or an address",
        metavar="FILE",
    )
    user: str | None = option(None, "the table's column of users", metavar="COLUMN")
    item: str | None = option(None, "the table's column of items", metavar="COLUMN")
    time: str | None = option(None, "its column of times: numbers, or dates such as 2026-11-29T08:30", metavar="COLUMN")
    rating: str | None = option(None, "its column of ratings", metavar="COLUMN")
    minimum_rating: float | None = option(None, "drop events with a lower rating")
    minimum: int | None = option(
        None,
        "interactions that every user and item must have in the result; by default 1, of public datasets their own",
        minimum=1,
    )
    separator: str | None = option(None, "separator of the table's columns, if it is not recognised", metavar="TEXT")
    encoding: str | None = option(None, "encoding of the table's text; by default UTF-8", metavar="NAME")
    data_path: str = option("dataset/", "the folder in which DATASET/DATASET.inter is written")


@dataclass(frozen=True)
class AnalyseOptions(VerbOptions):
    verb = "analyse"
    summary = "what a student learned from its teacher: spectrum, smoothing, experts, gains, compression, map"
    settings = ("data_path",)

    student: str = option(
        None, "a checkpoint", metavar="FILE", needed="a checkpoint", example="saved/FreqDStudent-....pth"
    )
    output: str = option(
        None,
        "the folder for a picture (PNG) and a table (CSV) of each part",
        metavar="DIR",
        needed="a folder for its pictures and tables",
    )
    teacher: str | None = option(
        None,
        "a checkpoint on the same dataset and split; without one there are fewer parts",
        metavar="FILE",
    )
    baseline: str | None = option(None, "a plain student to compare with", metavar="FILE")
    alone: tuple[str, ...] | None = option(
        None,
        "plain students of other sizes, to compare with the curves of the compression",
        metavar="FILE,FILE",
    )
    others: tuple[str, ...] | None = option(
        None, "other students on the same dataset and split, to compare with the first", metavar="FILE,FILE"
    )
    parts: tuple[str, ...] | None = option(
        None, "the parts to compute; by default all that the models allow", choices=PARTS, metavar=",".join(PARTS[:2])
    )
    bands: int = option(11, "bands of frequency", minimum=3, noun="an odd number", test=lambda bands: bands % 2)
    equal_bands: int | None = option(
        None, "instead of bands: number of groups with equally many frequencies, such as 4", minimum=2, maximum=1000
    )
    projector: str = option(
        "fitted",
        "map from the student's vectors to the teacher's: the best linear map, or the one that freqd or fitnet trained",
        choices=("fitted", "trained"),
    )
    groups: int = option(20, "groups of users by taste", minimum=2)
    metric: str | None = option(
        None, "metric of gains and compression, such as ndcg@20; by default the run's valid_metric", metavar="NAME"
    )
    map_side: str = option("items", "side that the map shows", choices=("items", "users"))
    map_method: str = option("tsne", "method of the map; umap needs the package umap-learn", choices=("tsne", "umap"))
    category: str | None = option(
        None, "a column of words in DATASET.item (DATASET.user) that colours the map", metavar="COLUMN"
    )


@dataclass(frozen=True)
class ReportOptions(VerbOptions):
    verb = "report"
    summary = "rewrite a comparison's tables, page and pictures from its results.json"

    results: str = option(
        None,
        "the results.json that compare wrote",
        metavar="DIR/results.json",
        needed="the results of compare",
    )
    output: str | None = option(None, "the folder for the report; by default the folder of the results", metavar="DIR")


@dataclass(frozen=True)
class RecommendOptions(VerbOptions):
    verb = "recommend"
    summary = "the best items of users, in original ids, as CSV or JSON lines"
    settings = ("data_path", "repeatable")

    checkpoint: str = _CHECKPOINT
    users: str | None = option(
        None,
        "original ids separated by commas; @FILE has one id a line, @- is the standard input, all is every user",
        metavar="ID,ID,...",
    )
    history: str | None = option(
        None,
        "instead of users: the items of a person who is not in the data, oldest first, in the same forms",
        metavar="ITEM,ITEM,...",
    )
    config_files: str = _READ_FILES
    dimensions: int | None = _DIMENSIONS
    k: int = option(20, "items per user, up to all items of the data; fewer if fewer are left", minimum=1)
    format: str = option("csv", "csv: one line for each item; jsonl: one line for each user", choices=("csv", "jsonl"))
    output: str | None = option(None, "a file instead of the standard output", metavar="FILE")
    exclude_seen: bool | None = option(
        None, "whether items that a user has seen are left out; by default as in the model's evaluation", metavar="true"
    )
    seen: str = option("train", "the splits whose items a user has seen", choices=tuple(SEEN))

    def check(self, section: str) -> None:
        if not self.users and not self.history:
            raise UserError(
                "recommend needs users; set --users=ID,ID,..., such as --users=196,186, --users=@FILE or --users=all, "
                "or --history=ITEM,ITEM,... for a person who is not in the data."
            )
        if self.users and self.history:
            raise UserError("--users and --history cannot be used together; keep one.")


@dataclass(frozen=True)
class TuneOptions(VerbOptions):
    verb = "tune"
    summary = "search a model's settings with Ray Tune, choosing on validation"
    note = "Repeat the same command to continue an interrupted search."
    settings = ("model", "dataset")

    config_files: str = _CONFIG_FILES
    params_file: str | None = option(
        None, "the search space; by default the model's and its distillers'", metavar="FILE.hyper"
    )
    trials: int = option(
        50, "number of configurations; fewer if the space has fewer distinct ones", minimum=1, maximum=MOST
    )
    prune: bool = option(True, "true: ASHA stops trials that are behind; false: train every trial to its end")
    grace_epochs: int | None = option(None, "least epochs of every trial; by default a ninth of --epochs", minimum=1)
    cpus: int | None = option(None, "cores for all trials together; by default all of the machine", minimum=1)
    cpus_per_trial: float = option(1.0, "cores and threads for one trial", above=0)
    gpus_per_trial: float | None = option(
        None, "share of a GPU for one trial: 0.25 is four on each; by default 1 if the run uses one", minimum=0
    )
    ray_address: str | None = option(
        None, "a running Ray cluster to join instead of starting Ray; auto: this machine's", metavar="HOST:PORT"
    )
    output: str | None = option(
        None,
        "folder for trials.csv, trials.png, best.yaml, result.json; by default CHECKPOINT_DIR/tune/...",
        metavar="DIR",
    )
    result_file: str | None = option(None, "also write the result (JSON) there", metavar="FILE")

    def check(self, section: str) -> None:
        if self.grace_epochs is not None and not self.prune:
            raise UserError(
                f"--grace_epochs={self.grace_epochs} is when ASHA may first stop a trial, and with --prune=false it "
                "stops none; leave one of them out."
            )


@dataclass(frozen=True)
class CompareOptions(VerbOptions):
    verb = "compare"
    summary = "several models and recipes, several seeds, one dataset: means, tests, gains, costs, report"
    note = "Repeat the same command to continue an interrupted comparison; a changed setting repeats only its runs."
    settings = ("dataset", "seed", "split_seed")
    in_files = True

    models: Any = option(
        None,
        "models and recipes by name; in YAML also {LABEL: {model: NAME, KEY: VALUE}} with a model's own settings",
        noun="names",
        metavar="BPR,DERRDStudent",
    )
    config_files: str = _CONFIG_FILES
    seeds: int | tuple[int, ...] = option(
        1, "number of seeds, from --seed on, or a list of them; --split_seed decides the split", metavar="5"
    )
    splits: int = option(
        1,
        "number of random splits, from --split_seed on; each model has all its seeds on each",
        minimum=1,
        maximum=1000,
    )
    sweep: Any = option(
        None,
        "one or two settings: train each model that reads them with every value, and plot the metric",
        noun="lists of values",
        metavar="{SETTING: [1,2,4]}",
    )
    candidates: str | None = option(
        None,
        "a second set of test metrics: targets also ranked among drawn items, that many for each",
        noun="uniN or popN with N of at least 1",
        metavar="uni499",
    )
    tune_trials: int = option(
        0,
        "first choose each model's settings on validation, with this many trials each",
        minimum=0,
        maximum=MOST,
    )
    output: str = option("report", "the folder for results.json, per-user metrics and the report")
    parallel: int = option(1, "number of runs at a time, with Ray", minimum=1)


@dataclass(frozen=True)
class ExportOptions(VerbOptions):
    verb = "export"
    summary = "a student alone, for serving with numpy: vectors or a graph, ids, an index"
    settings = ("data_path", "repeatable")

    checkpoint: str = option(
        None,
        "a model whose scores are inner products (BPR, LightGCN, ...), SASRec, GRU4Rec, BERT4Rec, STOSA or NeuMF",
        metavar="FILE",
        needed="a checkpoint",
        example="saved/BPR-ml-100k-....pth",
    )
    output: str = option(None, "the new folder", metavar="DIR", needed="a folder")
    config_files: str = _READ_FILES
    dtype: str = option(
        "float32", "type of the vectors; int8 has a scale for each row", choices=("float32", "float16", "int8")
    )
    dimensions: int | None = option(
        None, "how many numbers of each vector to keep, for models whose scores are inner products", minimum=1
    )
    index: str | None = option(
        None, "also an approximate index, with its measured recall and latency", choices=tuple(INDEXES), metavar="faiss"
    )
    index_type: str | None = option(
        None, "type of the index; by default hnsw", choices=("flat", "hnsw", "ivfpq"), metavar="hnsw"
    )
    explore: bool = option(
        False, "compare dimensions, types and indexes on validation, and export the smallest within --loss"
    )
    loss: float | None = option(
        None, "the share of NDCG@20 that --explore may lose; by default 0.01", minimum=0, below=1
    )
    seen: str = option("train", "the splits whose items are not recommended again", choices=tuple(SEEN))
    overwrite: bool = option(False, "replace an existing export")

    def check(self, section: str) -> None:
        if self.index_type is not None and self.index is None:
            raise UserError(f"--index_type={self.index_type} needs an index; set --index=faiss, or leave it out.")
        if self.dtype == "int8" and self.index_type == "ivfpq":
            raise UserError(
                "--index_type=ivfpq stores product codes, not int8 vectors; set --index_type to flat or hnsw, or "
                "--dtype to float32 or float16."
            )
        if self.loss is not None and not self.explore:
            raise UserError(f"--loss={self.loss:g} is only for --explore; set --explore=true, or leave it out.")
        for name in ("dtype", "dimensions", "index") if self.explore else ():
            value = getattr(self, name)
            if value not in (None, "float32"):
                raise UserError(f"--explore=true tries every {name}, but --{name}={value} is set; keep one.")


@dataclass(frozen=True)
class ServeOptions(VerbOptions):
    verb = "serve"
    summary = "answer over HTTP from what export wrote"
    note = "If export --overwrite=true replaces the bundle, the new one is used within about a second."
    torchless = True

    bundle: str = option(None, "the folder that export wrote", metavar="DIR", needed="a bundle", example="served")
    host: str = option("127.0.0.1", "the address to listen on; by default only this machine can reach it")
    port: int = option(8000, "the port; 0: any free one", minimum=0, maximum=65535)
    workers: int = option(1, "processes that answer; they share the vectors' memory", minimum=1)


@dataclass(frozen=True)
class CompletionOptions(VerbOptions):
    verb = "completion"
    summary = "a script that completes verbs and settings in bash or zsh"
    torchless = True
    note = 'For this shell: eval "$(recbole-kd completion)"'

    shell: str = option("bash", "which shell", choices=("bash", "zsh"))


#: Verb -> its options, in the order of help.
VERBS: dict[str, type[VerbOptions]] = {
    kind.verb: kind
    for kind in (
        TrainOptions,
        ListOptions,
        EvaluateOptions,
        PrepareOptions,
        AnalyseOptions,
        ReportOptions,
        RecommendOptions,
        TuneOptions,
        CompareOptions,
        ExportOptions,
        ServeOptions,
        CompletionOptions,
    )
}
