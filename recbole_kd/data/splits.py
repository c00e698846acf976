"""A dataset, loaded and split once, from which every model of a run (teacher, student, baseline) gets its loaders."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_kd.data.dataset import BEFORE, KDDataset, KDSequentialDataset, layout_of
from recbole_kd.data.layout import fields_of
from recbole_kd.data.observed import Observed
from recbole_kd.data.parts import parts_asked_for, reads_time
from recbole_kd.data.sequence_states import Past
from recbole_kd.errors import UserError
from recbole_kd.files.digest import digest


class Splits:
    """Training, validation and test split of one dataset.

    Attributes:
        dataset: RecBole's dataset before the split.
        train, valid, test: the splits, as RecBole datasets.
        read_settings: names of the settings that reading and splitting asked for.
    """

    read_settings: Sequence[str] = ()

    def __init__(self, config: Any) -> None:
        """
        Args:
            config: says the dataset, its filters and its split; RecBole's global random state decides a random split.

        Raises:
            UserError: files, columns or interactions that are missing.
        """
        check_files(config)
        if "TS" in config["eval_args"]["split"] and config["eval_args"]["order"] != "TO":
            raise UserError(
                "--eval_args splits by shares of time (TS), and says order RO, in which RecBole mixes up rows; set "
                '--eval_args="{split: {TS: [0.8,0.1,0.1]}, order: TO}".'
            )
        if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and config["eval_args"]["order"] != "TO":
            raise UserError(
                f"--eval_args says order {config['eval_args']['order']}, and {config['model']} predicts the next item "
                'in time; set order: TO, such as --eval_args="{split: {LS: valid_and_test}, order: TO}".'
            )
        try:
            self.dataset = (KDSequentialDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else KDDataset)(config)
            self.train, self.valid, self.test, *more = self.dataset.build()
            self.train.history = more[0] if more else None  # models are built on it
        except (ValueError, KeyError, IndexError, NotImplementedError, TypeError, AssertionError) as error:
            problem = re.sub(r"np\.str_\((.*?)\)", r"\1", " ".join(str(error).split())) or type(error).__name__
            if isinstance(error, KeyError):
                problem = f"the column {problem} is not loaded"
            raise UserError(
                f"RecBole cannot load the dataset {config['dataset']} from {config['data_path']}: "
                f"{problem.rstrip('.')}. Check --load_col, the filters, --eval_args and the files."
            ) from error
        if len(self.train) == 0 and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            raise UserError(
                f"Dataset {config['dataset']} has no sequence to learn from: {config['model']} predicts the next item, "
                "and no user has two interactions after filtering; "
                "loosen --user_inter_num_interval and --item_inter_num_interval, or use another dataset or model."
            )
        if len(self.train) == 0:
            raise UserError(
                f"Dataset {config['dataset']} has no training interactions after filtering and splitting; "
                "loosen --user_inter_num_interval, --item_inter_num_interval or --eval_args."
            )

    @property
    def history(self) -> Any:
        """The training split, with what is folded in of users who are held out: what models know when they rank."""
        return getattr(self.train, "history", None) or self.train

    @property
    def asked_for(self) -> tuple[bool, bool]:
        """Whether the settings ask for a validation and for a test split."""
        return parts_asked_for(self.dataset.config)

    def require(self, what: str) -> None:
        """Refuses data without a validation or without a test split, where `what` needs both.

        Raises:
            UserError: it names the one that is missing.
        """
        for name, there in zip(("validation", "test"), self.asked_for):
            if not there:
                raise UserError(
                    f"{what} needs a {name} split, and the settings leave none; change --eval_args or --split_time, "
                    'such as --eval_args.split="{RS: [0.8,0.1,0.1]}".'
                )

    @cached_property
    def observed(self) -> Observed:
        """The pairs of the training split."""
        return Observed(*self._interactions(self.train), self.train.user_num, self.train.item_num)

    @cached_property
    def seen(self) -> Observed:
        """The pairs of the training split, and those that are folded in."""
        if self.history is self.train:
            return self.observed
        return Observed(*self._interactions(self.history), self.train.user_num, self.train.item_num)

    @cached_property
    def unknown(self) -> dict[str, int]:
        """How many users and items of validation and test have no training interaction: no model can know them."""
        known = (self.seen.counts > 0, self.observed.popularity > 0)
        later = [torch.zeros_like(side) for side in known]
        for split in (self.valid, self.test):
            for side, field in zip(later, (split.uid_field, split.iid_field)):
                side[split.inter_feat[field]] = True
        users, items = (int((there & ~before).sum()) for there, before in zip(later, known))
        return {"users": users, "items": items}

    @cached_property
    def duplicates(self) -> tuple[int, int]:
        """Rows of the training split that repeat a pair, and rows of validation and test whose pair was seen."""
        across = sum(int(self.seen.contains(*self.pairs(split)).sum()) for split in (self.valid, self.test))
        return len(self.train) - len(self.observed), across

    @cached_property
    def repeated(self) -> int:
        """Interactions of an item that its user had before."""
        parts = map(interactions_of, (self.history, self.valid, self.test))
        users, items = (torch.cat(side) for side in zip(*parts))
        return len(users) - len(Observed(users, items, self.train.user_num, self.train.item_num))

    @property
    def repeatable(self) -> bool:
        """Whether rankings hold what a user has seen before: as the settings say, else where the data repeats items."""
        asked = self.dataset.config["repeatable"]
        return self.repeated > 0 if asked is None else bool(asked)

    @cached_property
    def past(self) -> Past:
        """What each user had, in time; of sequential models."""
        return Past.of([self.train, self.valid, self.test])

    @property
    def sequential(self) -> bool:
        """Whether a row is a sequence and its next item, as sequential models read it."""
        return self._histories in self.train.inter_feat

    @property
    def _histories(self) -> str:
        return str(self.train.iid_field + self.train.config["LIST_SUFFIX"])

    def _interactions(self, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(users (n,), items (n,)) of a split. Those of sequences come, for each user, in the order of time."""
        if split is self.train:
            return interactions_of(split)
        return split.inter_feat[split.uid_field], split.inter_feat[split.iid_field]

    def pairs(self, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(users (n,), items (n,)) of a split, as a user- and item-sorted copy: a loader may have reordered it."""
        users, items = self._interactions(split)
        keys = torch.from_numpy(np.sort((users * split.item_num + items).numpy()))  # faster than an order
        return keys // split.item_num, keys % split.item_num

    def sequences_after(self, parts: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The latest items of each user once these splits, in the order of time, have happened.

        Returns:
            items (U, L), oldest first, filled with 0 at the end, L the longest that a model reads, and how many there
            are, (U,): 0 for a user without a row in these splits.
        """
        data = self.train
        fields = (self._histories, data.config["ITEM_LIST_LENGTH_FIELD"], data.uid_field, data.iid_field)
        histories, lengths, users, items = (torch.cat([part.inter_feat[field] for part in parts]) for field in fields)
        size, places = data.user_num, torch.arange(len(users))
        last = torch.full((size,), -1).scatter_reduce(0, users, places, "amax")
        known = (last >= 0).nonzero().squeeze(1)
        rows, kept = torch.zeros(size, histories.shape[1], dtype=torch.long), torch.zeros(size, dtype=torch.long)
        row, length = histories[last[known]], lengths[last[known]]
        # The row's own next item has happened as well; where there is no room left, the oldest item makes it.
        full = length == row.shape[1]
        row[full] = row[full].roll(-1, dims=1)
        kept[known] = length + 1 - full.long()
        rows[known] = row.scatter(1, kept[known].unsqueeze(1) - 1, items[last[known]].unsqueeze(1))
        return rows, kept

    @cached_property
    def user_tokens(self) -> list[str]:
        """Original user ids by internal id; index 0 is padding."""
        tokens: list[str] = self._tokens(self.train.uid_field).to_pylist()
        return tokens

    @cached_property
    def item_tokens(self) -> list[str]:
        """Original item ids by internal id; index 0 is padding."""
        tokens: list[str] = self._tokens(self.train.iid_field).to_pylist()
        return tokens

    def _tokens(self, field: str) -> pa.StringArray:
        """Original ids by internal id."""
        return pa.array(self.train.field2id_token.data[field], pa.string())

    def content(self) -> list[Any]:
        """What a teacher's training and selection depends on, for a digest: tokens, training and validation pairs.

        Of sequences their order too, what is folded in of held-out users, and labels if there are any.
        """
        known = dict.fromkeys((self.train, self.valid, self.history))
        splits: list[Any] = [part for split in known for part in self.pairs(split)]
        splits += [part for split in known for part in self._columns(split, [split.label_field])]
        if self.sequential:
            splits += [split.inter_feat[self._histories] for split in (self.train, self.valid)]
        return [self._tokens(self.train.uid_field), self._tokens(self.train.iid_field), *splits]

    def columns(self) -> list[Any]:
        """The other columns that are loaded, for a digest: SEvo's graphs read times and features.

        Empty if only ids are loaded, and so for data without more columns.
        """
        found = []
        for split in dict.fromkeys((self.train, self.valid, self.history, self.test)):
            rows = split.timed if split.timed is not None else split.inter_feat
            found += self._columns(split, sorted(set(rows) - {split.uid_field, split.iid_field}))
        for features in (self.dataset.user_feat, self.dataset.item_feat):
            found += [[name, features[name]] for name in sorted(features or ())]  # by id
        return found

    def _columns(self, split: Any, names: Sequence[str]) -> list[Any]:
        """Some columns of a split's interactions, sorted by user, item and value: a loader may have reordered them."""
        rows = split.timed if split.timed is not None else split.inter_feat
        values = [rows[name] for name in names if name in rows and not name.endswith(split.config["LIST_SUFFIX"])]
        values = [value for value in values if value.dim() == 1]
        if not values:
            return []
        keys = rows[split.uid_field].long() * split.item_num + rows[split.iid_field]
        order = torch.from_numpy(np.lexsort([value.numpy() for value in (*values, keys)]))
        return [[*names], *(value[order] for value in values)]

    @cached_property
    def training_digest(self) -> str:
        """Content of the training split, whatever the order of the internal ids; of sequences their order too.

        Of held-out users also what is folded in, and what the validation users' ranked items are.
        """
        ranks, parts = [], []
        for tokens in map(self._tokens, (self.train.uid_field, self.train.iid_field)):
            order = pc.sort_indices(tokens)
            rank = torch.empty(len(tokens), dtype=torch.long)
            rank[torch.from_numpy(order.to_numpy().astype(np.int64))] = torch.arange(len(tokens))
            ranks.append(rank)
            parts.append(tokens.take(order))
        for split in (self.train,) if self.history is self.train else (self.train, self.history, self.valid):
            users, items = self._interactions(split)
            parts.append(np.sort((ranks[0][users] * self.train.item_num + ranks[1][items]).numpy()))
        if self.sequential:
            users, items = (rank[ids] for rank, ids in zip(ranks, self._interactions(self.train)))
            parts.append(items[torch.argsort(users, stable=True)])
        return digest(*parts)

    def in_order_of(self, user_tokens: Sequence[str], item_tokens: Sequence[str]) -> Any:
        """The training split as a model sees it whose internal ids follow other token lists of the same tokens.

        Returns:
            A RecBole dataset with remapped ids, for building that model; its loaders are not meant to be used.
        """
        dataset = self._reordered(self.train, user_tokens, item_tokens)
        if self.history is not self.train:
            dataset.history = self._reordered(self.history, user_tokens, item_tokens)
        return dataset

    def _reordered(self, split: Any, user_tokens: Sequence[str], item_tokens: Sequence[str]) -> Any:
        dataset = copy.copy(split)
        dataset.field2id_token = copy.copy(self.train.field2id_token)
        there = {}
        for field, tokens in ((self.train.uid_field, user_tokens), (self.train.iid_field, item_tokens)):
            there[field] = token_map(self._tokens(field).to_pylist(), tokens)
            dataset.field2id_token[field] = np.array(tokens)
        there[self._histories] = there[self.train.iid_field]
        for name in ("inter_feat", "timed"):
            rows = getattr(split, name)
            if rows is not None:
                mapped = {field: ids[rows[field]] for field, ids in there.items() if field in rows}
                setattr(dataset, name, Interaction(rows.interaction | mapped))
        return dataset


def interactions_of(split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(users (n,), items (n,)) of a split, such as the training split.

    A sequence's rows name each of its items as the next one but the first: that is the history of the row before which
    one item was, and it is an interaction of the split if that row is.
    """
    rows = split.inter_feat
    histories = split.iid_field + split.config["LIST_SUFFIX"]
    if histories not in rows:
        return rows[split.uid_field], rows[split.iid_field]
    rows = split.timed
    users, items, first = rows[split.uid_field], rows[split.iid_field], rows[BEFORE] == 1
    return torch.cat([users[first], users]), torch.cat([rows[histories][first, 0], items])


def token_map(ours: Sequence[str], theirs: Sequence[str]) -> torch.Tensor:
    """Internal id here -> internal id there, (len(ours),) int64, for the same tokens in another order."""
    position = {token: index for index, token in enumerate(theirs)}
    return torch.tensor([position[token] for token in ours], dtype=torch.long)


def check_files(config: Any) -> None:
    """Looks at the atomic files' first lines, so that what is wrong with the settings is said before anything is read.

    Raises:
        UserError: a missing folder, file or column.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    if not folder.is_dir():
        raise UserError(
            f"There is no dataset folder '{folder}'; put {name}.inter there, or set --data_path to the folder above it."
        )
    parts = config["benchmark_filename"]
    given = {key: config[key] for key in ("split_time", "benchmark_filename", "held_out_users")}
    both = [f"--{key}={value}" for key, value in given.items() if value not in (None, (), [])]
    if len(both) > 1:
        raise UserError(f"{both[0]} and {both[1]} both say how the data is split; keep one.")
    users, items, *time = ("USER_ID_FIELD", "ITEM_ID_FIELD", *(["TIME_FIELD"] if reads_time(config) else []))
    for key in (users, items, *time):
        if config[key] in ((config["unload_col"] or {}).get("inter") or ()):
            raise UserError(f"--unload_col leaves out '{config[key]}', which is read; take it out of --unload_col.")
    for file in [f"{name}.{part}.inter" for part in parts] if parts else [f"{name}.inter"]:
        _check_file(config, folder / file, "inter", [users, items, *time])
    for kind, key in (("user", users), ("item", items)):
        path = folder / f"{name}.{kind}"
        # RecBole passes over a file that is not there, and over a pipe.
        if path.exists() or kind in (config["load_col"] or {}):
            _check_file(config, path, kind, [key])


def _check_file(config: Any, path: Path, kind: str, needed: Sequence[str]) -> None:
    """Refuses an atomic file without a column that `load_col` names for its kind, or that settings `needed` name."""
    asked = "*" if config["load_col"] is None else config["load_col"].get(kind, ())
    if not asked:
        return
    if not path.is_file():
        missing = path.is_dir() or not path.exists()
        found = f"There is no file '{path}'" if missing else f"'{path}' is a pipe or a device"
        raise UserError(
            f"{found}; expected RecBole's atomic files of the dataset {config['dataset']} that --load_col names."
        )
    names = [field.name for field in fields_of(path, layout_of(config))]
    for column in dict.fromkeys([*(config[key] for key in needed), *(() if asked == "*" else asked)]):
        if column not in names:
            raise UserError(
                f"'{path}' has no column '{column}'; it has {', '.join(names)}. "
                f"Set --{', --'.join(needed)} or --load_col."
            )
