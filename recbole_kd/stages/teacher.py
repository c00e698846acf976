"""Teachers: trained once and kept by content, or read from a checkpoint; then frozen outside the student's modules."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional, Union

import recbole
import torch
from recbole.data.interaction import Interaction
from recbole.utils import dataset_arguments, init_seed, training_arguments
from torch import Tensor, nn

from recbole_kd.contracts import Sequences
from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.ranked_lists import read_ranked_lists
from recbole_kd.data.ranks import RankBankCache, build_rank_bank, build_user_bank
from recbole_kd.data.splits import Splits, token_map
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.settings import TEACHER_KEYS, WITHOUT_EFFECT, KDConfig
from recbole_kd.files.checkpoint import FORMAT, load_any, load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.model.trimming import trimmed
from recbole_kd.sevo.learner import optimizer_factory
from recbole_kd.student.readers import (
    capabilities,
    embedding_scores,
    expanded_scores,
    item_vectors,
    layers,
    next_item_scores,
    pair_products,
    pair_representations,
    representations,
    sequence_vectors,
)
from recbole_kd.teacher.bare import BareTeacher
from recbole_kd.teacher.ensemble import TeacherEnsemble
from recbole_kd.teacher.ranked_file import RankFileTeacher
from recbole_kd.trainer.kd_trainer import make_trainer
from recbole_kd.trainer.state import restored, storable

#: Settings that change nothing in what a plain model learns, so that a cached one serves whatever they are.
_WITHOUT_EFFECT = WITHOUT_EFFECT | {
    *("device", "teacher", "distill", "model", "student", "metrics", "topk", "metric_decimal_place"),
    *("nproc", "ray_address", "world_size", "group_offset", "ip", "port"),
    "split_seed",  # the split itself is part of the key
}
_PAIRS_AT_ONCE = 1 << 20


@dataclass
class Trained:
    """A model that was trained on the training split and chosen on validation, with what is told of it."""

    config: KDConfig
    model: nn.Module
    checkpoint: str
    from_cache: bool
    state: dict[str, Any]

    @property
    def test_result(self) -> dict[str, float]:
        """Metrics on the test split, as RecBole names them."""
        return dict(self.state["test_result"])

    @property
    def train_seconds(self) -> float:
        """Seconds of all epochs; 0 where the file does not know."""
        return float(sum(self.state.get("epoch_seconds") or []))


def build_model(config: KDConfig, dataset: Any) -> nn.Module:
    """The recommender of `config`, initialised from the global random state, on its device.

    A model that is to get stored weights is built after `init_seed`, as the one that they are of was: some (NNCF)
    draw constants when they are built, and keep them in no checkpoint.

    Raises:
        UserError: the model refuses its settings.
    """
    _check_sizes(config, min(dataset.user_num, dataset.item_num) - 1)
    model_class = config.resolved.model_class
    if config["trim_padding"] and config.sequential:
        model_class = trimmed(model_class)
    try:
        model: nn.Module = model_class(config, dataset).to(config["device"])
    except ImportError as error:
        raise UserError(f"{config['model']} needs a package that is not installed: {error}.") from None
    except (ValueError, TypeError, KeyError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"{config['model']} refuses its settings: {' '.join(str(error).split()) or type(error).__name__}. "
            f"See properties/model/{config.resolved.backbone}.yaml, here or in RecBole, for what it expects."
        ) from error
    return model


def _check_sizes(config: KDConfig, fewest: int) -> None:
    """Sizes that RecBole's models find out about in their first epoch, and not in words.

    Args:
        fewest: the number of users or of items, whichever is less.
    """
    clusters = config["num_clusters"]  # of NCL
    if clusters is not None and clusters > fewest:
        raise UserError(
            f"--{config.prefix}num_clusters={clusters} is more than the {fewest:,} users or items there are; lower it."
        )
    if config.resolved.backbone == "ConvNCF":
        size = config["embedding_size"]
        for kernel, stride in zip(config["cnn_kernels"], config["cnn_strides"]):
            if size < kernel:
                raise UserError(
                    f"--{config.prefix}embedding_size={config['embedding_size']} is too small for ConvNCF's "
                    f"cnn_kernels={config['cnn_kernels']} and cnn_strides={config['cnn_strides']}; raise it."
                )
            size = (size - kernel) // stride + 1


def make_evaluator(config: KDConfig, model: nn.Module, splits: Splits) -> tuple[Any, tuple[Any, Any, Any]]:
    """A trainer that evaluates a trained model, and the training, validation and test loader."""
    loaders = make_loaders(config, splits)
    # It makes no step, so that whatever the learner was (SEvo's needs a graph) is not built again.
    trainer = make_trainer(
        config, model, optimizer_factory=lambda parameters, rate, _: torch.optim.SGD(parameters, rate)
    )
    trainer.eval_collector.data_collect(loaders[0])  # which `fit` does otherwise: ItemCoverage and others count items
    return trainer, loaders


def facts(config: KDConfig, splits: Splits) -> dict[str, Any]:
    """What a checkpoint says of itself beside weights: model, settings, tokens, training split."""
    return {
        "model": config["model"],
        "backbone": config.resolved.backbone,
        "dataset": config["dataset"],
        "config": config.plain_values(),
        "user_tokens": splits.user_tokens,
        "item_tokens": splits.item_tokens,
        "split": splits.training_digest,
    }


def train_or_fetch(config: KDConfig, splits: Splits, role: str) -> Trained:
    """A plain model of `config`, from the cache or trained now and put there.

    The key is content: architecture, its settings, seed, tokens, training and validation pairs, versions. A training
    that was interrupted goes on where it stopped.

    Args:
        config: the model's own settings.
        splits: the data, shared with the student.
        role: what to call it in the log ("teacher", "baseline").
    """
    logger = logging.getLogger()
    settings = {key: value for key, value in config.plain_values().items() if key not in _WITHOUT_EFFECT}
    versions = [FORMAT, recbole.__version__]
    key = digest(versions, config.resolved.backbone, settings, splits.content())
    folder = os.path.join("teachers", f"{config.resolved.backbone}-{config['dataset']}-{key[:16]}")
    path = os.path.join(config["checkpoint_dir"], f"{folder}.pth")
    evaluated = digest(
        {key: config.plain_values()[key] for key in ("metrics", "topk", "metric_decimal_place", "eval_args")},
        list(splits.pairs(splits.test)),
    )
    if os.path.isfile(path):
        state = load_checkpoint(path, config["device"])
        if state.get("key") == key:
            logger.info(f"The {role} {config['model']} comes from the cache: {path}")
            init_seed(config["seed"], config["reproducibility"])
            model = build_model(config, splits.train)
            load_weights(model, state, path)
            if state["evaluated"] != evaluated:
                trainer, (_, _, test) = make_evaluator(config, model, splits)
                state["test_result"] = _floats(trainer.evaluate(test, load_best_model=False))
            return Trained(config, model, path, True, state)
    logger.info(f"Training the {role} {config['model']}; it will be kept as {path}")
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = make_loaders(config, splits)
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, splits.train)
    trainer = make_trainer(
        config,
        model,
        facts=facts(config, splits),
        file_name=f"{folder}-training.pth",
        optimizer_factory=optimizer_factory(config, splits, model),
    )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.isfile(trainer.last_file):
        trainer.resume_checkpoint(trainer.last_file)
    trainer.fit(train, valid, saved=True, show_progress=config["show_progress"])
    trainer.load_best()
    state = {
        "format": FORMAT,
        **facts(config, splits),
        **trainer.outcome(),
        "key": key,
        "evaluated": evaluated,
        "test_result": _floats(trainer.evaluate(test, load_best_model=False, show_progress=config["show_progress"])),
    }
    save_checkpoint(state, path)
    for file in (trainer.saved_model_file, trainer.last_file):
        if os.path.isfile(file):
            os.remove(file)
    return Trained(config, model, path, False, state)


def obtain_teacher(config: KDConfig, splits: Splits) -> AnyTeacher:
    """The teacher that section ``teacher`` asks for, or all of them as one: from a file, the cache, or trained now.

    Raises:
        UserError: no teacher is named, or a file cannot teach on this dataset.
    """
    check_sources(config)
    sections = config.teacher_sections()
    teachers = [_obtain(config, splits, section, prefix) for prefix, section in sections.items()]
    if len(teachers) == 1:
        return teachers[0]
    fusion = config.teacher_fusion
    shares = [float(section["share"]) for section in sections.values()]
    folder = os.path.join(config["checkpoint_dir"], "ranks")
    return TeacherEnsemble(teachers, splits.observed, config["device"], shares, fusion, folder)


def check_sources(config: KDConfig) -> None:
    """Says what is wrong with where teachers come from before any is read or trained.

    Raises:
        UserError: none is named, or one is named twice over, or what is named does not go together.
    """
    for prefix, section in config.teacher_sections().items():
        _check_source(config, section, prefix)


def _given(config: KDConfig, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What files and the command line say of the teacher with that prefix; and that without what is said of all."""
    everything = dict(config.external_config_dict.get("teacher") or {})
    number = prefix.partition(".")[2].rstrip(".")
    own = dict(everything.get(number) or {}) if number else everything
    return {**everything, **own}, own


def _check_source(config: KDConfig, section: Mapping[str, Any], prefix: str) -> None:
    given, own = _given(config, prefix)  # what is said of all teachers is not said of a file
    sources = [key for key in ("model", "checkpoint", "ranks") if given.get(key)]
    if "ranks" in sources and len(sources) > 1:
        raise UserError(f"--{prefix}ranks and --{prefix}{sources[0]} both say who teaches; keep one.")
    strange = [key for key in own if not (key.isdigit() or key in TEACHER_KEYS or config.knows(key))]
    if strange and (section.get("checkpoint") or section.get("ranks")):
        raise UserError(
            f"--{prefix}{strange[0]} is set, and the teacher comes from a file, which says all of itself; leave it out."
            f"{closest(strange[0], TEACHER_KEYS)}"
        )
    if section.get("ranks") and config.teacher_fusion == "scores" and prefix != "teacher.":
        raise UserError(
            f"--teacher.fusion=scores ranks by scores of all items, and --{prefix}ranks has those that it lists; "
            "set --teacher.fusion=ranks."
        )
    if section.get("ranks") and config.sequential:
        raise UserError(
            f"--{prefix}ranks lists items for users, and {config.resolved.backbone} predicts the next item of a "
            "sequence; set --teacher to a sequential model."
        )
    if section.get("checkpoint") or section.get("ranks"):
        return
    if not section.get("model"):
        raise UserError(
            f"Distillation ({', '.join(config.distillers) or 'sevo'}) needs a teacher; "
            f"set --{prefix.rstrip('.')}=NAME, such as LightGCN, --{prefix}checkpoint=FILE or --{prefix}ranks=FILE."
            + "".join(f" --{prefix}{key} is none of these.{closest(key, TEACHER_KEYS)}" for key in strange[:1])
        )
    require_same_task(config, config.teacher_config(section, prefix), "teacher")


def _obtain(
    config: KDConfig, splits: Splits, section: Mapping[str, Any], prefix: str
) -> Union[FrozenTeacher, RankFileTeacher]:
    if section.get("ranks"):
        path = str(section["ranks"])
        fields = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
        tokens = (splits.user_tokens, splits.item_tokens)
        return RankFileTeacher(path, read_ranked_lists(path, *tokens, splits.observed, fields, f"{prefix}ranks"))
    if section.get("checkpoint"):
        return _from_checkpoint(config, splits, section, prefix)
    trained = train_or_fetch(config.teacher_config(section, prefix), splits, "teacher")
    return FrozenTeacher(trained, splits, os.path.join(config["checkpoint_dir"], "ranks"))


def require_same_task(config: KDConfig, other: KDConfig, role: str) -> None:
    """Refuses a model of next items beside one of users, whose training and ranking are not the same task.

    Raises:
        UserError: one of the two models is sequential and the other is not.
    """
    kinds = {True: "a sequential model", False: "no sequential model"}
    ours, theirs = config.sequential, other.sequential
    if ours != theirs:
        raise UserError(
            f"{config.resolved.backbone} is {kinds[ours]} and the {role} {other.resolved.backbone} is {kinds[theirs]}: "
            f"one ranks items after a sequence, the other for a user. Set --{role} to {kinds[ours]}; "
            "'recbole-kd list' shows them."
        )


def _from_checkpoint(config: KDConfig, splits: Splits, section: Mapping[str, Any], prefix: str) -> FrozenTeacher:
    path = str(section["checkpoint"])
    kind, state = load_any(path, config["device"])
    stored = dict(state["config"])
    backbone = str(state.get("backbone") or stored.get("model"))
    named = section.get("model")
    if _given(config, prefix)[0].get("model") and named != backbone:
        raise UserError(
            f"'{path}' holds a {backbone}, and --{prefix}model={named}; leave --{prefix}model out or give another file."
        )
    teacher_config = config.checkpoint_config(backbone, stored)
    require_same_task(config, teacher_config, "teacher")
    if kind == "recbole":
        user_tokens, item_tokens = _recbole_tokens(config, teacher_config, splits, stored)
        data_keys = ("dataset", "eval_args", "benchmark_filename")
        same_split = all(_comparable(stored.get(key)) == _comparable(config[key]) for key in data_keys)
        same_split = same_split and stored.get("seed") == config.split_seed
    else:
        user_tokens, item_tokens = state["user_tokens"], state["item_tokens"]
        same_split = state.get("split") == splits.training_digest
    aligned = True
    for what, ours, theirs in (
        ("users", splits.user_tokens, user_tokens),
        ("items", splits.item_tokens, item_tokens),
    ):
        unknown, missing = set(ours) - set(theirs), set(theirs) - set(ours)
        if unknown or missing:
            raise UserError(
                f"Teacher '{path}' was trained on other {what}: {len(unknown):,} of this dataset's {len(ours) - 1:,} "
                f"are new to it, {len(missing):,} of its {len(theirs) - 1:,} are not in the dataset; "
                "give a teacher of the same dataset and filters."
            )
        aligned &= list(ours) == list(theirs)
    if not same_split and not section.get("allow_other_split"):
        raise UserError(
            f"The teacher '{path}' was trained on another split of the data and may know test interactions; use one of "
            f"this split, or accept it with --{prefix}allow_other_split=true."
        )
    dataset = splits.train if aligned else splits.in_order_of(user_tokens, item_tokens)
    init_seed(stored.get("seed", config["seed"]), config["reproducibility"])
    model = build_model(teacher_config, dataset)
    load_weights(model, state, path)
    maps = None if aligned else (token_map(splits.user_tokens, user_tokens), token_map(splits.item_tokens, item_tokens))
    state.setdefault("test_result", {})
    trained = Trained(teacher_config, model, path, False, state)
    return FrozenTeacher(trained, splits, os.path.join(config["checkpoint_dir"], "ranks"), maps)


def _recbole_tokens(
    config: KDConfig, teacher_config: KDConfig, splits: Splits, stored: dict[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """Tokens of a checkpoint that RecBole wrote: it keeps none, so its dataset is read again with its own filters."""
    keys = [key for key in dataset_arguments if key in stored]
    if stored.get("dataset") == config["dataset"] and all(
        _comparable(stored[key]) == _comparable(config[key]) for key in keys
    ):
        return splits.user_tokens, splits.item_tokens
    settings = {**{key: stored[key] for key in keys}, "data_path": config.data_root, "distill": []}
    own = KDConfig(teacher_config["model"], stored["dataset"], config_dict=settings)
    theirs = Splits(own)
    return theirs.user_tokens, theirs.item_tokens


def _comparable(value: Any) -> str:
    if isinstance(value, dict):
        return str(sorted((str(key), _comparable(element)) for key, element in value.items()))
    return str(list(value) if isinstance(value, tuple) else value)


def load_weights(model: Any, state: dict[str, Any], path: str) -> None:
    """Puts what a checkpoint holds, `state`, into a model that was built on its dataset.

    Raises:
        UserError: the weights do not fit.
    """
    try:
        model.load_state_dict(state["state_dict"])
        model.load_other_parameter(restored(state.get("other_parameter") or {}))
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The weights in '{path}' do not fit {type(model).__name__} on this dataset: "
            f"{' '.join(str(error).split())[:200]}; give a checkpoint of the same architecture, size and dataset."
        ) from None


def _floats(result: Any) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


def _content(trained: Trained) -> str:
    """Digest of what a teacher's answers follow from: weights, what it keeps beside them, its own settings."""
    model: Any = trained.model
    # Closed-form models have no weights but all of theirs beside; what starts with restore_ is a cache of the weights.
    beside = {key: value for key, value in storable(model.other_parameter()).items() if value is not None}
    settings = {key: trained.config.plain_values().get(key) for key in trained.config.model_keys()}
    no_part = _WITHOUT_EFFECT | set(training_arguments)
    architecture = {key: value for key, value in settings.items() if key not in no_part}
    return digest(dict(model.state_dict()), beside, architecture, trained.config.resolved.backbone)


class FrozenTeacher(BareTeacher):
    """A trained model as constants, in the student's ids: the :class:`recbole_kd.contracts.TeacherView`.

    It is a plain object: the model is in no parameter list, no optimiser, no checkpoint and no `train()` call of the
    student's. Representations are computed once, the ranked lists once per content on disk.
    """

    def __init__(
        self, trained: Trained, splits: Splits, rank_folder: str, maps: Optional[tuple[Tensor, Tensor]] = None
    ) -> None:
        """
        Args:
            trained: the model and what is told of it.
            splits: the student's data.
            rank_folder: where ranked lists are kept.
            maps: student's id -> teacher's id of users and of items, where the orders differ.
        """
        self.trained = trained
        self.model = trained.model.eval().requires_grad_(False)
        self.name = trained.config.resolved.backbone
        self.capabilities = capabilities(self.model)
        self.digest = _content(trained)
        self.forward_passes = 0
        self._maps = None if maps is None else tuple(part.to(trained.config["device"]) for part in maps)
        self.observed = splits.observed
        #: Computes (U, k) ranked lists in this one's place, where set.
        self.ranker: Optional[Callable[[FrozenTeacher, int], Tensor]] = None
        self._ranks = RankBankCache(rank_folder)
        self._ranked: Optional[Tensor] = None
        self._outputs: Optional[tuple[Sequences, Tensor]] = None
        with torch.no_grad():
            vectors = representations(self.model)
        self._vectors = None if vectors is None else self._aligned(vectors)
        self._items = None if self._vectors is None else self._vectors[1]
        if "sequence_vectors" in self.capabilities:
            items = item_vectors(self.model).detach().clone()
            self._items = items if self._maps is None else items[self._maps[1]]
        self.dimension = None if self._items is None else self._items.shape[1]

    def _aligned(self, vectors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        users, items = (part.detach() for part in vectors)
        return (users, items) if self._maps is None else (users[self._maps[0]], items[self._maps[1]])

    @property
    def reordered(self) -> bool:
        """Whether its model has other internal ids than the student's data, so that only this view may be asked."""
        return self._maps is not None

    def user_embeddings(self) -> Tensor:
        """e_t of every user, (U, d_t), constant."""
        if self._vectors is None:
            self.lacks("representations")
        return self._vectors[0]

    def item_embeddings(self) -> Tensor:
        """e_t of every item, (I, d_t), constant."""
        if self._items is None:
            self.lacks("representations")
        return self._items

    @torch.no_grad()
    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """Vectors of the pairs of users (n,) and items (n,), (n, d_t), constant."""
        if self._vectors is not None:
            return pair_products(self._vectors, users, items)
        if self._maps is not None:
            users, items = self._maps[0][users], self._maps[1][items]
        vectors = pair_representations(self.model, users, items)
        if vectors is None:
            self.lacks("pair_representations")
        return vectors

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(users (U, d_t), items (I, d_t)) of each layer of the graph, the embedding tables first, constant."""
        with torch.no_grad():
            outputs = layers(self.model)
        if outputs is None:
            self.lacks("layers")
        return [self._aligned(output) for output in outputs]

    @torch.no_grad()
    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_t of users (n,) with items (n,) or (n, k), shaped like `items`, constant."""
        if self._vectors is not None:
            return embedding_scores(self._vectors, users, items)
        if self._maps is not None:
            users, items = self._maps[0][users], self._maps[1][items]
        self.forward_passes += 1
        rows = max(1, _PAIRS_AT_ONCE // max(1, items[0].numel() if items.dim() == 2 else 1))
        parts = zip(users.split(rows), items.split(rows))
        return torch.cat([expanded_scores(self.model, user, item) for user, item in parts])

    @cached_property
    def ranks_key(self) -> str:
        """Under which its ranked lists are kept: of the weights, the training split and the order of ids."""
        return digest("ranks 2", self.digest, self.observed.keys, [part.cpu() for part in self._maps or ()])

    @torch.no_grad()
    def score_block(self, users: Tensor) -> Tensor:
        """Scores of users (n,) with every item, (n, I), in the student's ids."""
        self.forward_passes += 1
        users = users.to(self.trained.config["device"])
        theirs = users if self._maps is None else self._maps[0][users]
        model: Any = self.model
        try:
            scores = model.full_sort_predict(Interaction({model.USER_ID: theirs})).view(len(users), -1)
        except NotImplementedError:
            items = torch.arange(model.n_items, device=users.device).expand(len(users), -1)
            rows = max(1, _PAIRS_AT_ONCE // model.n_items)
            parts = zip(theirs.split(rows), items.split(rows))
            scores = torch.cat([expanded_scores(model, user, item) for user, item in parts])
        return scores if self._maps is None else scores[:, self._maps[1]]

    @torch.no_grad()
    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_t of n sequences, (n, d_t), constant."""
        if self._outputs is None or self._outputs[0] is not sequences:
            self.forward_passes += 1
            theirs = sequences if self._maps is None else sequences._replace(items=self._maps[1][sequences.items])
            # The latest alone is kept: the distillers of a step read the same batch.
            self._outputs = sequences, sequence_vectors(self.model, theirs)
        return self._outputs[1]

    @torch.no_grad()
    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_t of the next item after each sequence, constant: (n, k) for items (n, k), (n, I) for every item."""
        if items is not None and self._maps is not None:
            items = self._maps[1][items]
        scores = next_item_scores(self.model, self.sequence_embeddings(sequences), items)
        return scores if items is not None or self._maps is None else scores[:, self._maps[1]]

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 where a user has fewer.

        Computed once per (weights, training split) and kept on disk; a longer list on disk serves a shorter one.
        """
        if self._ranked is None or self._ranked.shape[1] < k:
            self._ranked = self._ranks.obtain(self.ranks_key, k, lambda: self._rank(k))
        return self._ranked[:, :k]

    def _rank(self, k: int) -> Tensor:
        if self.ranker is not None:
            return self.ranker(self, k)
        return build_rank_bank(self.score_block, self.observed, k)

    def ranked_users(self, k: int) -> Tensor:
        """The k best users of every item among those who did not observe it: (I, k) int32, filled with 0. Kept too."""
        return self._ranks.obtain(digest(self.ranks_key, "users"), k, lambda: self._rank_users(k))

    def _rank_users(self, k: int) -> Tensor:
        if self._vectors is None:
            return build_user_bank(self.score_block, self.observed, k)
        users, items = self._vectors

        def score_block(block: Tensor) -> Tensor:
            self.forward_passes += 1
            return items[block.to(items.device)] @ users.t()

        return build_rank_bank(score_block, self.observed.transposed(), k)

    def summary(self) -> dict[str, Any]:
        """The part of a run's result that tells of the teacher."""
        return {
            "model": self.trained.config["model"],
            "checkpoint": self.trained.checkpoint,
            "digest": self.digest,
            "from_cache": self.trained.from_cache,
            "test_result": self.trained.test_result,
            "train_seconds": self.trained.train_seconds,
        }

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def files(self) -> list[str]:
        """What the teacher was read from or kept as."""
        return [self.trained.checkpoint]


#: What :func:`obtain_teacher` gives.
AnyTeacher = Union[FrozenTeacher, RankFileTeacher, TeacherEnsemble]
