"""RecBole's loaders for one model of a run, over splits that all of them share; full ranking has a faster one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cached_property
from logging import getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader, TrainDataLoader, UserDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import RepeatableSampler
from recbole.utils import InputType, ModelType
from torch import Tensor

from recbole_kd.data.dataset import BEFORE
from recbole_kd.data.fast_sampling import FastTrainDataLoader, samples_fast
from recbole_kd.data.negatives import ObservedSampler, UsedPairs
from recbole_kd.data.observed import Observed
from recbole_kd.data.overlaid import Overlaid
from recbole_kd.data.sequence_states import Past
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError

__all__ = [
    "FastFullSortEvalDataLoader",
    "FixedCandidatesDataLoader",
    "TrainedUserDataLoader",
    "WholeSequenceDataLoader",
    "candidate_loader",
    "eval_batch_size",
    "make_loaders",
    "sized_eval_batch",
]

#: Size of a block of float32 scores at which an evaluation is fastest: it stays in the cache and well below the sizes
#: (16-32 MiB) from which the C allocator returns freed memory to the system, to be faulted in again by the next batch.
SCORE_BLOCK_BYTES = 8 * 2**20
#: Users of a block, at least: of a catalogue of a million, fewer would read the item table more often than they use it.
LEAST_ROWS = 8


def make_loaders(config: Any, splits: Splits, fast: bool | None = None) -> tuple[Any, Any, Any]:
    """The training, validation and test loader that RecBole would make for the model of `config`.

    None for a validation or test split that the settings do not ask for.

    Args:
        config: the model's settings.
        splits: the data.
        fast: whether training batches are drawn by :mod:`recbole_kd.data.fast_sampling`, for a model that does not need
            RecBole's own loader; None: as ``--fast_sampling`` says.

    Raises:
        UserError: an empty validation or test split, or a user for whom no negative item is left.
    """
    parts = [splits.train, splits.valid, splits.test]
    asked_for = dict(zip(("valid", "test"), splits.asked_for))
    for phase, name, part in (("valid", "validation", splits.valid), ("test", "test", splits.test)):
        if not asked_for[phase]:
            continue
        if len(part) == 0:
            raise UserError(
                f"The {name} split of {config['dataset']} is empty, so that nothing can be chosen or reported; "
                "change --eval_args or use a larger dataset."
            )
        if config["eval_args"]["mode"][phase] == "labeled" and part.label_field not in part.inter_feat:
            raise UserError(
                f"--eval_args.mode=labeled compares scores with labels, and {config['dataset']} has no column "
                f"'{part.label_field}'; make it with --threshold=\"{{rating: 4}}\" and load the column of ratings, "
                "--load_col=\"{inter: '*'}\"."
            )
    if config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and config["train_neg_sample_args"]["distribution"] == "none":
        raise UserError(
            f"{config['model']} compares an item with a negative one, and --train_neg_sample_args draws none; "
            "leave --train_neg_sample_args out, and leave low ratings out with --val_interval."
        )
    try:
        samplers = _samplers(config, splits)
    except ValueError as error:
        raise UserError(f"Negatives cannot be sampled: {' '.join(str(error).split())}") from error
    can = samples_fast(config["student"], config["MODEL_TYPE"]) and not config.every_position
    if config["fast_sampling"] and not can:
        getLogger().warning(
            f"--fast_sampling=true: {config['student']} reads batches of its own kind, which RecBole's loader draws."
        )
    fast = bool(config["fast_sampling"]) if fast is None else fast
    loaders: list[Any] = []
    sized = Overlaid(config, eval_batch_size=eval_batch_size(config, splits))
    # RecBole knows an autoencoder's loader by the model's name, which a recipe's is not.
    chosen_by = {"model": config["student"], "MODEL_TYPE": config["MODEL_TYPE"], "eval_args": config["eval_args"]}
    for phase, part, sampler in zip(("train", "valid", "test"), parts, samplers):
        if not asked_for.get(phase, True):
            loaders.append(None)
            continue
        loader = get_dataloader(chosen_by, phase)
        if loader is FullSortEvalDataLoader:
            loader = FastFullSortEvalDataLoader
        elif loader is NegSampleEvalDataLoader:
            loader = FixedCandidatesDataLoader
            if config[f"{phase}_neg_sample_args"]["distribution"] == "popularity":
                sampler = _by_popularity(sampler, splits)
        elif loader is UserDataLoader and splits.history is not splits.train:
            loader = TrainedUserDataLoader
        elif phase == "train" and config.every_position:
            loader = WholeSequenceDataLoader
        elif phase == "train" and fast and can:
            loader = FastTrainDataLoader
        made = loader(sized, part, sampler, shuffle=config["shuffle"] if phase == "train" else False)
        if loader is FastFullSortEvalDataLoader and splits.sequential and not splits.repeatable:
            made.past = splits.past
        _number_rows(made)
        loaders.append(made)
    return loaders[0], loaders[1], loaders[2]


def candidate_loader(config: Any, splits: Splits, mode: str) -> Any:
    """The loader of the test split that ranks each target among drawn candidates.

    Args:
        config: a model's settings, whatever they rank.
        mode: ``uni499`` or ``pop499``, as of ``eval_args.mode``.
    """
    distribution = {"uni": "uniform", "pop": "popularity"}[mode[:3]]
    modes = {**config["eval_args"]["mode"], "test": mode}
    sampled = {"distribution": distribution, "sample_num": int(mode[3:])}
    overlaid = Overlaid(config, eval_args={**config["eval_args"], "mode": modes}, test_neg_sample_args=sampled)
    return make_loaders(overlaid, splits)[2]


def _by_popularity(sampler: Any, splits: Splits) -> Any:
    """A copy of a sampler that draws an item by its interactions in all splits, alike for models of either kind.

    RecBole's table depends on the order of rows, and a sequential model's rows lack the first item of each user.
    """
    users_of = splits.seen.popularity.clone()
    for part in (splits.valid, splits.test):
        users_of += torch.bincount(part.inter_feat[part.iid_field], minlength=part.item_num)
    mine = copy.copy(sampler)
    mine._get_candidates_list = torch.arange(len(users_of)).repeat_interleave(users_of).tolist
    mine._build_alias_table()
    return mine


def _number_rows(loader: Any) -> None:
    """Numbers a loader's rows by a range: RecBole's list of the same numbers takes 40 bytes for each."""
    numbers = range(loader.sample_size)
    object.__setattr__(loader, "dataset", numbers)  # torch refuses the assignment, as a sampler has the data too
    if hasattr(loader.sampler, "data_source"):
        loader.sampler.data_source = numbers


def _samplers(config: Any, splits: Splits) -> list[Any]:
    """What RecBole's `create_samplers` gives for the training, validation and test split, None where none is wanted.

    A sequential model learns from RecBole's negatives, all items but the next one, whatever is ranked. Its candidates
    are drawn among what the user has not seen, where that is what is ranked.
    """
    parts = [splits.history, splits.valid, splits.test]
    if splits.repeatable:  # nothing is left out, and nothing kept
        return list(create_samplers(Overlaid(config, repeatable=True), splits.dataset, parts))
    phases = ["train", "valid", "test"]
    shared: dict[bool, Any] = {}
    samplers: list[Any] = []
    for phase in phases:
        wanted = config[f"{phase}_neg_sample_args"]
        if wanted["distribution"] == "none":
            samplers.append(None)
            continue
        anything = splits.sequential and config["eval_args"]["mode"].get(phase, "full") == "full"
        if anything not in shared:
            how = wanted["distribution"], wanted.get("alpha", 1.0)
            if anything:
                shared[anything] = RepeatableSampler(phases, splits.dataset, *how)
            else:
                known = splits.observed if splits.history is splits.train else None
                shared[anything] = ObservedSampler(phases, parts, *how, first=known)
        shared[anything].set_distribution(wanted["distribution"])
        samplers.append(shared[anything].set_phase(phase))
    return samplers


def eval_batch_size(config: Any, splits: Splits) -> int:
    """The batch of an evaluation: as given, else sized from the catalogue.

    RecBole counts it in sequences for a sequential model, and in scored pairs for any other.
    """
    if config["eval_batch_size_given"]:
        return int(config["eval_batch_size"])
    return sized_eval_batch(splits.train.item_num, candidates=1 if splits.sequential else None)


def sized_eval_batch(items: int, available_bytes: int | None = None, candidates: int | None = None) -> int:
    """The `eval_batch_size` at which evaluation is fastest, in what RecBole counts with it: scored user-item pairs.

    Args:
        items: I, padding included: columns of a block of scores.
        available_bytes: memory that a block may take; None leaves the size to speed alone.
        candidates: pairs that RecBole scores per user. None is full ranking, every item; with sampled negatives it is
            (1 + negatives) x positives of a user (a block has a column for each item nevertheless).

    Returns:
        rows x candidates, for as many users (rows) as fit; at least 8, or one where `available_bytes` says so.
    """
    rows = max(LEAST_ROWS, SCORE_BLOCK_BYTES // (4 * items))  # 4 bytes a float32 score
    if available_bytes is not None:
        rows = max(1, min(rows, available_bytes // (4 * items)))
    return rows * (items if candidates is None else candidates)


class FastFullSortEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's loader of full-ranking batches, from sorted arrays instead of a tensor and two sets per user.

    Batches hold the same users, masked pairs and positive pairs as RecBole's, in another order: pairs come split by
    split, with items ascending within a user, where RecBole has a set's order. The arrays are those of the splits.

    Sequential models get RecBole's own batches. Where `past` is set, what the user had before the next item is masked,
    as it is for other models.
    """

    #: What the users of sequences had; None: nothing is masked.
    past: Past | None = None

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            super().__init__(config, dataset, sampler, shuffle=shuffle)
            return
        self.logger = getLogger()
        self.uid_field = dataset.uid_field
        self.iid_field = dataset.iid_field
        self.is_sequential = False
        if shuffle:
            self.logger.warning("FullSortEvalDataLoader can't shuffle")
        used = sampler.used_ids
        if not isinstance(used, UsedPairs):
            pairs = dataset.inter_feat[self.uid_field], dataset.inter_feat[self.iid_field]
            used = _used(used, Observed(*pairs, dataset.user_num, dataset.item_num))
        self._positive, self._before = used.own, used.before
        mine = self._positive.user_ids, self._positive.indices
        self._repeats = any(bool(pairs.contains(*mine).any()) for pairs in self._before)
        self.uid_list = self._positive.counts.nonzero().squeeze(1)
        self.uid2items_num = self._positive.counts.numpy()
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        self.sample_size = len(self.uid_list)
        # Past FullSortEvalDataLoader's own constructor, which is what this class replaces.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    @cached_property
    def uid2positive_item(self) -> NDArray[Any]:
        """(U,) the positive items of each user as a tensor, None for users who are not evaluated."""
        return self._by_user(self._positive.rows_and_items)

    @cached_property
    def uid2history_item(self) -> NDArray[Any]:
        """(U,) the items to mask for each user as a tensor, None for users who are not evaluated."""
        return self._by_user(self._history)

    def _by_user(self, pairs_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> NDArray[Any]:
        rows, items = pairs_of(self.uid_list)
        by_user = np.full(len(self.uid2items_num), None, dtype=object)
        counts = torch.bincount(rows, minlength=len(self.uid_list))
        for user, own in zip(self.uid_list.tolist(), items[rows.argsort(stable=True)].split(counts.tolist())):
            by_user[user] = own
        return by_user

    def _history(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Row in `users` and item of every pair to mask: those of the splits before this one."""
        sides = zip(*(pairs.rows_and_items(users) for pairs in self._before))
        rows, items = (torch.cat(side) for side in sides) if self._before else (users[:0], users[:0])
        if self._repeats:
            kept = ~self._positive.contains(users[rows], items)
            rows, items = rows[kept], items[kept]
        return rows, items

    def collate_fn(self, index: Any) -> Any:
        """The batch of the users at `index`: (users, (history rows, history items), positive rows, positive items)."""
        if self.is_sequential:
            sequences, nothing, rows, items = super().collate_fn(index)
            if self.past is None:
                return sequences, nothing, rows, items
            seen = self.past.before(sequences[self.uid_field], self._dataset.timed[BEFORE][np.asarray(index)])
            masked = seen[1] != items[seen[0]]
            return sequences, (seen[0][masked], seen[1][masked]), rows, items
        user_df = self.user_df[np.asarray(index)]
        users = user_df[self.uid_field]
        return (user_df, self._history(users), *self._positive.rows_and_items(users))


def _used(by_user: NDArray[Any], own: Observed) -> UsedPairs:
    """RecBole's array of one set per user, as pairs beside the split's own."""
    counts = np.fromiter(map(len, by_user), dtype=np.int64, count=len(by_user))
    each = itertools.chain.from_iterable(by_user)
    items = torch.from_numpy(np.fromiter(each, dtype=np.int64, count=counts.sum()))
    users = torch.repeat_interleave(torch.from_numpy(counts))
    return UsedPairs(own, (Observed(users, items, own.users, own.items),))


class FixedCandidatesDataLoader(NegSampleEvalDataLoader):
    """RecBole's loader of sampled candidates (``mode: uni100``), which are the same in every evaluation of a split.

    A user's targets together are ranked among `targets x 100` draws for that user, in which an item may occur twice.
    RecBole draws them again each time. Then epochs are chosen partly by their draw, and paired tests compare users with
    different candidates. Here a user's candidates depend on ``--split_seed``, the split and the user alone, whatever
    the model and the batch. Numpy's global generator, from which training draws, stays as it was.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self._seed = config.split_seed, int(sampler is not None and sampler.phase == "test")
        super().__init__(config, dataset, sampler, shuffle=shuffle)

    def _init_batch_size_and_step(self) -> None:
        """As many users a batch as fit in a block, which has a column for each item; RecBole counts drawn pairs."""
        super()._init_batch_size_and_step()
        if not self.config["eval_batch_size_given"] and isinstance(self.neg_sample_args["sample_num"], int):
            self.step = sized_eval_batch(self._dataset.item_num, candidates=1)
            self.set_batch_size(self.step * self.times * int(self.uid2items_num.max()))

    def _neg_sampling(self, inter_feat: Any) -> Any:
        state = np.random.get_state()
        np.random.seed([*self._seed, int(inter_feat[self._dataset.uid_field][0])])
        try:
            return super()._neg_sampling(inter_feat)
        finally:
            np.random.set_state(state)


class WholeSequenceDataLoader(TrainDataLoader):
    """RecBole's training loader of one row a user, the longest training sequence, for losses at every position."""

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self.logger = getLogger()
        self._set_neg_sample_args(config, dataset, config["MODEL_INPUT_TYPE"], config["train_neg_sample_args"])
        users, before = dataset.inter_feat[dataset.uid_field], dataset.timed[BEFORE]
        longest = torch.zeros(dataset.user_num, dtype=before.dtype).scatter_reduce(0, users, before, "amax")
        self._rows = (before == longest[users]).nonzero().squeeze(1).numpy()
        self.sample_size = len(self._rows)
        # Past TrainDataLoader's own constructor, which takes all rows.
        super(TrainDataLoader, self).__init__(config, dataset, sampler, shuffle=shuffle)

    def collate_fn(self, index: Any) -> Any:
        """The batch of the users at `index`."""
        return super().collate_fn(self._rows[np.asarray(index)])


class TrainedUserDataLoader(UserDataLoader):
    """RecBole's loader of an autoencoder's batches, of the users of the training split alone: others are held out."""

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self.logger = getLogger()
        self.uid_field = dataset.uid_field
        self.user_list = Interaction({self.uid_field: torch.unique(dataset.inter_feat[self.uid_field])})
        self.sample_size = len(self.user_list)
        # Past UserDataLoader's own constructor, which takes all users.
        super(UserDataLoader, self).__init__(config, dataset, sampler, shuffle=True)
