"""RecBole's datasets, filled by :mod:`recbole_kd.data.reader`: same ids, splits and batches, in a tenth of the time.

RecBole's steps are kept: read, filter, number the ids, fill, split. Slow steps are replaced, with the same result bit
for bit. Two results differ on purpose:

- Ids are text as written, so ``NA`` and ``null`` are ids.
- Rows are ordered by their exact time, and rows with the same time by their place in the file. RecBole orders by time
  in float32, whose resolution is two minutes in this decade, both for seconds and for milliseconds.

Until ids are numbered, a token column holds codes: int32 places in its field's vocabulary. Place 0 is padding and also
means a missing token. If no row was dropped or moved, the codes are the ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_kd.data.columns import (
    Groups,
    TokenIds,
    Tokens,
    as_recboles,
    as_tensor,
    cut,
    numbered,
    row_type,
    some_rows,
)
from recbole_kd.data.layout import Layout, fields_of
from recbole_kd.data.parts import is_ordered, is_whole, parts_of_time, parts_of_users, reads_time, rows_of_parts
from recbole_kd.data.store import PAD, kept, load_atomic
from recbole_kd.errors import UserError
from recbole_kd.files.digest import digest

__all__ = ["BEFORE", "PLACE", "KDDataset", "KDSequentialDataset", "layout_of"]

#: Until a dataset is split, the column of each row's split: 0 training, 1 validation, 2 test, 3 history alone.
PART = "\0part"
#: Column, during the split and later in `timed`, of each row's place in time.
PLACE = "\0place"
#: Column, likewise, of the number of items before a sequence's next item, even if fewer are read.
BEFORE = "\0before"
#: Column, during the split, of each row's number.
_ROW = "\0row"
_MANY = 1 << 17  # with at least this many rows the split is kept


def layout_of(config: Any) -> Layout:
    """The layout of atomic files in a configuration."""
    return Layout(
        separator=config["field_separator"],
        sequence_separator=config["seq_separator"],
        encoding=config["encoding"] or "utf-8",
        ids=(config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]),
        time=config["TIME_FIELD"],
        ordered=is_ordered(config),
    )


class _Fast(Dataset):
    """The replaced steps that both datasets share."""

    _feat: Any = None
    _order: Any = None

    @property
    def inter_feat(self) -> Any:
        """The interactions: a pandas table, and tensors once the dataset is built."""
        if self._order is not None:
            self.inter_feat = as_recboles(self._feat, self._order)
        return self._feat

    @inter_feat.setter
    def inter_feat(self, features: Any) -> None:
        self._feat, self._order = features, None

    def __len__(self) -> int:
        return len(self._feat)

    def num(self, field: str) -> int:
        """RecBole's: ids of a field, or elements of a sequence."""
        tokens = self.field2id_token.data.get(field)
        return super().num(field) if tokens is None else len(tokens)

    # Reading

    def _get_preset(self) -> None:
        super()._get_preset()
        self.field2id_token = Tokens()
        self.field2token_id = TokenIds(self.field2id_token)
        self._vocabulary: dict[str, pa.Array] = {}
        self._places: Tensor | None = None
        self._parts: Tensor | None = None
        self._as_read = True  # whether no row was dropped or moved

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        load, unload = self._get_load_and_unload_col(source)
        if load == set():
            return None
        layout, path = layout_of(self.config), Path(filepath)
        kinds = {field.name: field.kind for field in fields_of(path, layout)}
        columns = [name for name in kinds if (load is None or name in load) and (unload is None or name not in unload)]
        if not columns:
            self.logger.warning(f"No columns has been loaded from [{source}]")
            return None
        table = load_atomic(path, layout, columns, Path(self.config["checkpoint_dir"]) / "data")
        frame = {}
        for field, column in zip(table.column_names, table.columns):
            ftype = FeatureType.FLOAT if kinds[field] == "time" else FeatureType(kinds[field])
            self.field2source[field], self.field2type[field] = source, ftype
            if ftype in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                self.field2bucketnum[field] = 2
            values = column.chunk(0)
            if ftype == FeatureType.TOKEN:
                frame[field] = self._codes(field, values)
            elif ftype == FeatureType.FLOAT:
                frame[field] = values.to_numpy(zero_copy_only=False)
            else:
                frame[field] = self._sequences(field, values, ftype, layout.sequence_separator)
                continue
            self.field2seqlen[field] = 1
        return pd.DataFrame(frame, copy=False)

    def _get_load_and_unload_col(self, source: Any) -> Any:
        """RecBole's columns, and those always read: the time, and columns in --threshold and --val_interval."""
        load, unload = super()._get_load_and_unload_col(source)
        if load and source == FeatureSource.INTERACTION:
            named = {*(self.config["threshold"] or {}), *(self.config["val_interval"] or {})}
            load = {*load, *named, *([self.time_field] if reads_time(self.config) else [])}
        return load, unload

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)
        if self.benchmark_filename_list is not None:
            self.inter_feat[PART] = np.repeat(np.arange(len(self.file_size_list), dtype=np.int8), self.file_size_list)

    def _codes(self, field: str, values: pa.DictionaryArray) -> NDArray[np.int32]:
        """(rows,) places in the field's vocabulary; missing tokens are added to it."""
        codes, known, tokens = values.indices.to_numpy(), self._vocabulary.get(field), values.dictionary[1:]
        if known is None:
            self._vocabulary[field] = values.dictionary
            return codes
        there = pc.index_in(tokens, known[1:])
        new = there.is_null()
        self._vocabulary[field] = pa.concat_arrays([known, tokens.filter(new)])
        places = there.fill_null(-1).to_numpy() + 1
        places[places == 0] = len(known) + np.arange((places == 0).sum())
        return np.append(0, places).astype(np.int32)[codes]

    def _sequences(self, field: str, values: pa.DictionaryArray, ftype: FeatureType, separator: str) -> Any:
        """(rows,) array of each row's sequence; rows with equal text share it."""
        parts = [list(filter(None, text.split(separator))) for text in values.dictionary.to_pylist()]
        cut = (self.config["seq_len"] or {}).get(field)
        longest = max(map(len, parts), default=0)
        self.field2seqlen[field] = longest if cut is None else min(cut, longest)
        kind = float if ftype == FeatureType.FLOAT_SEQ else str
        sequences = np.empty(len(parts), dtype=object)
        for place, part in enumerate(parts):
            sequences[place] = np.array(list(map(kind, part[:cut])))
        return sequences[values.indices.to_numpy()]

    # Filtering

    def _data_processing(self) -> None:
        #: Numbers of rows that were read and that each filter dropped.
        self.steps = [("read", len(self.inter_feat))]
        if self.benchmark_filename_list is not None:  # RecBole never filters these
            self.feat_name_list = self._build_feat_name_list()
            self._data_filtering()
        super()._data_processing()

    def _data_filtering(self) -> None:
        for step, name in (
            (self._remove_duplication, "--rm_dup_inter"),
            (self._filter_by_field_value, "--val_interval"),
            (self._filter_inter_by_user_or_item, "--filter_inter_by_user_or_item"),
            (self._filter_by_inter_num, "--user_inter_num_interval, --item_inter_num_interval"),
        ):
            before = len(self.inter_feat)
            step()
            if before > len(self.inter_feat):
                self.steps.append((name, before - len(self.inter_feat)))
        if any(getattr(self, name).empty for name in self.feat_name_list):
            raise ValueError("Some feat is empty, please check the filtering settings.")

    def _keep(self, name: str, rows: NDArray[np.bool_]) -> None:
        """Drops the other rows of a table."""
        if not rows.all():
            self._as_read = False
            setattr(self, name, getattr(self, name)[rows].reset_index(drop=True))

    def _remove_duplication(self) -> None:
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        feat, self._as_read = self.inter_feat, False
        if self.time_field in feat:
            feat = feat.sort_values(by=self.time_field, kind="stable")
        self.inter_feat = feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep, ignore_index=True)

    def _filter_by_field_value(self) -> None:
        for field, interval in (self.config["val_interval"] or {}).items():
            kind = self.field2type.get(field)
            for name in [name for name in self.feat_name_list if field in getattr(self, name)]:
                values = getattr(self, name)[field]
                if kind == FeatureType.FLOAT and isinstance(interval, str):
                    self._keep(name, self._within_intervals(values.to_numpy(), self._parse_intervals_str(interval)))
                elif kind == FeatureType.TOKEN and isinstance(interval, Sequence) and not isinstance(interval, str):
                    tokens = pa.array(list(map(str, interval)), pa.string())
                    stays = pc.index_in(tokens, self._vocabulary[field][1:]).drop_null().to_numpy() + 1
                    self._keep(name, values.isin(stays).to_numpy())
                else:
                    raise UserError(
                        f"--val_interval has {interval!r} for '{field}', a column of type {kind.value}; expected an "
                        "interval such as [4,inf) for a column of numbers, or a list of tokens to keep."
                    )
            if kind is None:
                raise UserError(
                    f"--val_interval names '{field}', which is not loaded; expected one of "
                    f"{', '.join(self.field2type)}. Check --load_col."
                )

    def _filter_inter_by_user_or_item(self) -> None:
        if self.config["filter_inter_by_user_or_item"] is not True:
            return
        for feat, field in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
            if feat is not None:
                self._keep("inter_feat", self.inter_feat[field].isin(feat[field]).to_numpy())

    def _filter_by_inter_num(self) -> None:
        """RecBole's k-core: users and items with counts out of range are dropped, repeatedly until there are none."""
        keys = ("user_inter_num_interval", "item_inter_num_interval")
        sides = [
            (field, name, self._parse_intervals_str(self.config[key]))
            for field, name, key in zip((self.uid_field, self.iid_field), ("user_feat", "item_feat"), keys)
        ]
        if all(intervals in (None, [("[", 0.0, math.inf, ")")]) for _, _, intervals in sides):
            return
        while True:
            kept = np.ones(len(self.inter_feat), dtype=bool)
            changed = False
            for field, name, intervals in sides:
                codes, feat = self.inter_feat[field].to_numpy(), getattr(self, name)
                counts = np.bincount(codes, minlength=len(self._vocabulary[field]))
                out = np.zeros(len(counts), dtype=bool)
                if intervals:
                    out = (counts > 0) & ~self._within_intervals(counts, intervals)
                    kept &= ~out[codes]
                    changed |= bool(out.any())
                if feat is not None:
                    few = out | (counts < (intervals[0][1] if intervals else -1))
                    stays = ~few[feat[field].to_numpy()]
                    changed |= not stays.all()
                    self._keep(name, stays)
            if not changed:
                return
            self._keep("inter_feat", kept)

    def _set_label_by_threshold(self) -> None:
        for field in self.config["threshold"] or {}:
            if self.field2type.get(field) != FeatureType.FLOAT:
                raise UserError(
                    f"--threshold names '{field}'; expected a column of numbers that is loaded; "
                    f"the columns are {', '.join(self.field2type)}. Check --load_col."
                )
        super()._set_label_by_threshold()

    # Ids

    def _remap_ID_all(self) -> None:
        """Numbers ids by first appearance. Times are ordered first, because later steps may scale them."""
        if PART in self.inter_feat:
            parts = self.inter_feat.pop(PART).to_numpy()
            self._parts = torch.from_numpy(parts * (0 if is_whole(self.config) else 1))
        if self.time_field in self.inter_feat and self.field2type[self.time_field] == FeatureType.FLOAT:
            times = torch.from_numpy(self.inter_feat[self.time_field].to_numpy(copy=True))
            self._places = self._in_time(times)
            if self.config["split_time"] is not None and not is_whole(self.config):
                self._parts = parts_of_time(self.config, times)
        super()._remap_ID_all()
        self._vocabulary = {}

    def _in_time(self, times: Tensor) -> Tensor:
        """(rows,) place of each row in time; rows with the same time are in the order of the file."""
        places = torch.empty(len(times), dtype=torch.long)
        places[torch.argsort(times, stable=True)] = torch.arange(len(times))
        return places

    def _remap(self, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        fields = list(dict.fromkeys(field for _, field, _ in remap_list))
        if len(fields) == 1 and all(ftype == FeatureType.TOKEN for _, _, ftype in remap_list):
            tokens = self._vocabulary[fields[0]]
            if self._as_read and remap_list[0][0] is self.inter_feat:
                self.field2id_token[fields[0]] = tokens
                return
            columns = [feat[field].to_numpy() for feat, field, _ in remap_list]
            ids, tokens = numbered(np.concatenate(columns), tokens)
        else:  # several fields, or sequences, share their ids
            columns = [self._text(feat[field], field, ftype) for feat, field, ftype in remap_list]
            numbers, found = pd.factorize(np.concatenate(columns))
            ids, tokens = numbers + 1, pa.array([PAD, *found], pa.string())
        for field in fields:
            self.field2id_token[field] = tokens
        for (feat, field, ftype), part in zip(remap_list, cut(ids, columns)):
            feat[field] = part if ftype == FeatureType.TOKEN else pd.Series(cut(part, feat[field]), dtype=object)

    def _text(self, values: pd.Series, field: str, ftype: FeatureType) -> NDArray[np.object_]:
        """The tokens of a column, row after row; None for a missing token."""
        if ftype == FeatureType.TOKEN:
            tokens = np.array([None, *self._vocabulary[field][1:].to_pylist()], dtype=object)
            return tokens[values.to_numpy()]
        return np.concatenate([np.empty(0, dtype=object), *values])

    # Splitting

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        """The columns as tensors: float32 numbers, padded sequences, int64 ids; those of interactions in int32.

        Selected rows have int64, as in RecBole.
        """
        features = Interaction({})
        for field in data:
            ftype = self.field2type[field]
            if ftype == FeatureType.TOKEN:
                ids = as_tensor(data[field].to_numpy())
                features[field] = ids if data is self.inter_feat else ids.long()
            elif ftype == FeatureType.FLOAT and field not in self.config["numerical_features"]:
                features[field] = torch.from_numpy(data[field].to_numpy().astype(np.float32))
            else:
                features.update(super()._dataframe_to_interaction(data[[field]]))
        features.length = len(data)
        if data is self.inter_feat and self._places is not None:
            features[PLACE], self._places = self._places, None
        if data is self.inter_feat and self._parts is not None:
            features[PART], self._parts = self._parts, None
        return features

    def sort(self, by: str | list[str], ascending: bool | list[bool] = True) -> None:
        """RecBole's stable sort of the rows, but by the exact time."""
        if ascending is not True:
            super().sort(by, ascending)
            return
        for field in reversed([by] if isinstance(by, str) else by):
            exact = field == self.time_field and PLACE in self.inter_feat
            values = self.inter_feat[PLACE if exact else field]
            key = values if values.dim() == 1 else values[..., 0]
            self.inter_feat = some_rows(self.inter_feat, torch.argsort(key, stable=True))

    def shuffle(self) -> None:
        """RecBole's shuffle of the rows: the same draws, faster with int32."""
        # numpy's memory has huge pages, in which random access takes half the time.
        order = torch.from_numpy(np.empty(len(self), dtype=row_type(len(self))))
        torch.randperm(len(order), out=order, dtype=order.dtype)
        numbered = self.inter_feat.interaction.pop(_ROW, None) is not None  # still in the order of the file
        self.inter_feat = some_rows(self.inter_feat, order)
        if numbered:
            self.inter_feat[_ROW] = order

    def _change_feat_format(self) -> None:
        if isinstance(self.inter_feat, pd.DataFrame):
            super()._change_feat_format()

    def _drop_unused_col(self) -> None:
        if _ROW not in self.inter_feat:
            super()._drop_unused_col()

    def build(self) -> list[Any]:
        """The splits. `timed` of each are its rows as they are now, with a column PLACE, and of sequences BEFORE.

        It is None where no time is loaded. Where users are held out, a fourth split is the training split with what is
        folded in of them.

        Loaders sort the rows themselves, `inter_feat`. The table of the whole dataset is ordered at first use.
        """
        self._change_feat_format()
        if self.config["held_out_users"] is not None and not is_whole(self.config):
            self.inter_feat[PART] = parts_of_users(self.config, self.inter_feat[self.uid_field])
        order, *rows = self._split_rows()
        columns = self.inter_feat.interaction
        hidden = {name: columns.pop(name) for name in (PART, PLACE, BEFORE) if name in columns}
        self._drop_unused_col()
        parts = [self.copy(as_recboles(self.inter_feat, index)) for index in rows]
        for part, index in zip(parts, rows):
            part.timed = None
            if PLACE in hidden:
                part.timed = Interaction(part.inter_feat.interaction | {name: hidden[name][index] for name in hidden})
        self._order = order
        return parts

    def _split_rows(self) -> list[Any]:
        """Row numbers in RecBole's order, for the whole dataset and for each part."""
        if PART in self.inter_feat:
            return [slice(None), *rows_of_parts(self.inter_feat[PART])]
        fields = [field for field in (self.uid_field, self.time_field, PLACE) if field in self.inter_feat]
        deciding = {field: self.inter_feat[field] for field in fields}

        def split() -> pa.Table:
            whole = self.copy(
                Interaction({**deciding, _ROW: torch.from_numpy(np.arange(len(self), dtype=row_type(len(self))))})
            )
            parts = super(_Fast, whole).build()
            rows = [part.inter_feat[_ROW].numpy() for part in (whole, *parts)]
            state = {"sizes": str(list(map(len, rows))), "random": torch.get_rng_state().numpy().tobytes()}
            return pa.table({"row": np.concatenate(rows)}).replace_schema_metadata(state)

        arguments = self.config["eval_args"]
        random = torch.get_rng_state() if arguments["order"] == "RO" else None
        if len(self) < _MANY:
            table = split()
        else:
            how = [arguments[name] for name in ("order", "split", "group_by")]
            way = digest(type(self).__name__, torch.__version__, how, random)[:12]
            folder, name = Path(self.config["checkpoint_dir"]) / "data", f"{self.config['dataset']}.split"
            table = kept(folder, name, way, digest(deciding), split)
        if random is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(table.schema.metadata[b"random"]), dtype=torch.uint8))
        sizes = json.loads(table.schema.metadata[b"sizes"])
        return list(as_tensor(table["row"].chunk(0)).split(sizes))

    def _grouped_index(self, group_by_list: NDArray[np.int64]) -> Groups:
        return Groups(group_by_list)

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list[Any]:
        """RecBole's split of all rows, or of each group's, by ratio."""
        ratios = [ratio / sum(ratios) for ratio in ratios]
        if group_by is None:
            ends = [*self._calcu_split_ids(len(self), ratios), len(self)]
            indices: list[Any] = [slice(start, end) for start, end in zip([0, *ends], ends)]
        else:
            groups = self._grouped_index(self.inter_feat[group_by].numpy())
            sizes, place = np.unique(groups.sizes, return_inverse=True)
            bounds = np.array([[0, *self._calcu_split_ids(int(size), ratios), size] for size in sizes])[place]
            indices = [groups.pieces(bounds[:, part], bounds[:, part + 1]) for part in range(len(ratios))]
        self._drop_unused_col()
        features = self.inter_feat
        if _ROW in features:
            features = Interaction({_ROW: features[_ROW]})
        return [self.copy(some_rows(features, index)) for index in indices]

    def _split_index_by_leave_one_out(self, grouped_index: Groups, leave_one_num: int) -> list[tuple[Tensor]]:
        """The rows of each part, as a tuple, which RecBole keeps; it would convert other types to a list."""
        left_out = np.minimum(leave_one_num, grouped_index.sizes - 1)
        # The last part is the last row, the second last part the row before it, and the first part is the rest.
        ends = [grouped_index.sizes - np.minimum(left_out, leave_one_num - part) for part in range(leave_one_num + 1)]
        starts = [np.zeros_like(left_out), *ends[:-1]]
        return [(grouped_index.pieces(first, last),) for first, last in zip(starts, ends)]


class KDDataset(_Fast):
    """:class:`recbole.data.dataset.Dataset`, read and split by this module."""


class KDSequentialDataset(_Fast, SequentialDataset):
    """:class:`recbole.data.dataset.SequentialDataset`, read, cut into histories and split by this module."""

    def _in_time(self, times: Tensor) -> Tensor:
        """(rows,) rank of each row's time; equal times have equal ranks, so a stable sort keeps their order."""
        return torch.unique(times, return_inverse=True)[1]

    def _benchmark_presets(self) -> None:
        """Does nothing: histories are made from the rows here, also for a split in files."""

    def _change_feat_format(self) -> None:
        """The columns as tensors, with one row for each of a user's rows, in time, except the first."""
        if isinstance(self.inter_feat, pd.DataFrame):
            Dataset._change_feat_format(self)
            self.data_augmentation()

    def data_augmentation(self) -> None:
        """Makes a row (items before it, item) from each of a user's rows, in time, except the first."""
        self._check_field("uid_field", "time_field")
        parts = [PART] if PART in self.inter_feat else []
        self.sort(by=[self.uid_field, *parts, self.time_field])
        hidden = {name: self.inter_feat.interaction.pop(name) for name in [PLACE, *parts]}
        self._aug_presets()
        users = self.inter_feat[self.uid_field]
        rows = torch.arange(len(users))
        begins = torch.ones(len(users), dtype=torch.bool)
        begins[1:] = users[1:] != users[:-1]
        targets = (~begins).nonzero().squeeze(1)
        before = targets - torch.cummax(torch.where(begins, rows, 0), 0).values[targets]
        lengths = before.clamp(max=self.config["MAX_ITEM_LIST_LENGTH"])
        histories = {self.item_list_length_field: lengths}
        for field in self.inter_feat:
            if field == self.uid_field:
                continue
            values, name = self.inter_feat[field], getattr(self, f"{field}_list_field")
            size = self.field2seqlen[name]
            shape = (len(targets), *((size,) if isinstance(size, int) else size))
            if self.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                shape += (2,) if field in self.config["numerical_features"] else ()
            histories[name] = torch.zeros(shape, dtype=values.dtype)
            for place in range(int(lengths.max()) if len(lengths) else 0):
                longer = (lengths > place).nonzero().squeeze(1)
                histories[name][longer, place] = values[targets[longer] - lengths[longer] + place]
        features = some_rows(self.inter_feat, targets)
        features.update(Interaction(histories))
        features.update(Interaction({BEFORE: before, **{name: values[targets] for name, values in hidden.items()}}))
        self.inter_feat = features
