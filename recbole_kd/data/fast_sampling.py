"""Training batches drawn many at once: RecBole's distributions and columns in a tenth of RecBole's time.

RecBole takes each batch from its table by a list of Python numbers and draws negatives batch by batch. Here the order
of a whole epoch is drawn at once, and rows and negatives are taken in chunks of many batches, on the model's device. A
batch has RecBole's columns, types and order of rows. The negatives differ from RecBole's but have the same
distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import get_dataloader
from recbole.utils import InputType, ModelType
from torch import Tensor

from recbole_kd.data.negatives import UsedPairs
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError

__all__ = ["FastTrainDataLoader", "Negatives", "go_on_drawing", "samples_fast"]

#: Approximate number of entries in a chunk: large enough to hide Python's overhead, small enough for the cache.
CHUNK = 2**16
#: Least number of table places for each observed pair, so that at most one unobserved pair in eight is looked up.
_PLACES = 8


def samples_fast(backbone: str, kind: ModelType) -> bool:
    """Whether a model's batches can be drawn here; autoencoders and knowledge graphs need RecBole's loaders.

    Args:
        backbone: the architecture's name.
        kind: its type.
    """
    return bool(get_dataloader({"model": backbone, "MODEL_TYPE": kind}, "train") is TrainDataLoader)


class Negatives:
    """Draws a negative item for each row, exactly in proportion to the weights of the allowed items.

    If the user has observed the drawn item, another is drawn. A small hash table with a mark for each observed pair
    shows that most items are allowed; the others are looked up in the sorted pairs.
    """

    def __init__(
        self, items: int, observed: Observed | None, weights: Tensor | None, device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            items: I, padding included.
            observed: pairs that are not negatives; None: only a row's own positive item is excluded.
            weights: (I,) unnormalised probabilities of items, 0 for padding; None: uniform.
            device: device on which items are drawn.

        Raises:
            UserError: for some user no item with a weight is left.
        """
        self._items = items
        self._cumulative = None if weights is None else weights.double().cumsum(0).to(device)
        self._device = device
        self._keys: Tensor | None = None
        if observed is None:
            return
        if weights is not None:
            left = int((weights > 0).sum()) - torch.bincount(
                observed.user_ids, weights=(weights > 0).double()[observed.indices], minlength=observed.users
            )
            if bool((left[1:] < 1).any()):
                raise UserError(
                    "Negatives cannot be sampled: a user has interacted with all items that anyone has; set "
                    "--train_neg_sample_args.distribution=uniform, or filter with --user_inter_num_interval."
                )
        self._keys = observed.keys.to(device)
        self._bits = (_PLACES * len(observed)).bit_length()
        self._marks = torch.zeros(2**self._bits, dtype=torch.bool, device=device)
        self._marks[self._places(self._keys)] = True

    def draw(self, users: Tensor, positives: Tensor, generator: torch.Generator) -> Tensor:
        """(n,) int64 items for rows of users (n,) and positive items (n,)."""
        drawn = self._any(len(users), generator)
        pending = self._taken(users, positives, drawn).nonzero().squeeze(1)
        while len(pending):
            again = self._any(len(pending), generator)
            drawn[pending] = again
            pending = pending[self._taken(users[pending], positives[pending], again)]
        return drawn

    def _any(self, count: int, generator: torch.Generator) -> Tensor:
        if self._cumulative is None:
            return torch.randint(1, self._items, (count,), generator=generator, device=self._device)
        uniform = torch.rand(count, generator=generator, device=self._device, dtype=torch.float64)
        return torch.searchsorted(self._cumulative, uniform.mul_(self._cumulative[-1]), right=True).clamp_(
            max=self._items - 1
        )

    def _taken(self, users: Tensor, positives: Tensor, items: Tensor) -> Tensor:
        if self._keys is None:
            return items == positives
        wanted = users * self._items + items
        taken = self._marks.index_select(0, self._places(wanted))
        marked = taken.nonzero().squeeze(1)
        wanted = wanted[marked]
        position = torch.searchsorted(self._keys, wanted).clamp_(max=len(self._keys) - 1)
        taken[marked] = self._keys[position] == wanted
        return taken

    def _places(self, keys: Tensor) -> Tensor:
        # Fibonacci hashing: the product's high bits depend on all bits of the key. The overflow is intended.
        high = (keys * -7046029254386353131).bitwise_right_shift_(64 - self._bits)
        return high.bitwise_and_(2**self._bits - 1)


class FastTrainDataLoader(TrainDataLoader):
    """RecBole's training loader; if `fast` is true, an epoch's batches are drawn many at once.

    All random numbers come from `generator`, whose state is in checkpoints: each epoch takes one number from it to seed
    its own stream.

    Attributes:
        fast: whether epochs are drawn here; otherwise they equal RecBole's bit for bit. A resumed run sets it.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self.fast = True
        self._source: _Source | None = None
        super().__init__(config, dataset, sampler, shuffle=shuffle)

    def __iter__(self) -> Iterator[Interaction]:
        if not self.fast:
            batches: Iterator[Interaction] = super().__iter__()
            return batches
        if self._source is None:
            self._source = _Source(self.config, self._dataset, self._sampler)
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return self._epoch(self._source, torch.Generator(self._source.device).manual_seed(seed))

    def _epoch(self, source: _Source, generator: torch.Generator) -> Iterator[Interaction]:
        rows, device = len(self._dataset), source.device
        order = torch.randperm(rows, generator=generator, device=device) if self.shuffle else torch.arange(rows)
        step = int(self.step)
        for chunk in order.to(device).split(step * max(1, CHUNK // (step * max(1, source.draws)))):
            columns = {name: column.index_select(0, chunk) for name, column in source.columns.items()}
            drawn = source.draw(columns, generator)
            for start in range(0, len(chunk), step):
                part = slice(start, start + step)
                batch = source.joined({name: column[part] for name, column in columns.items()})
                if self.config["transform"]:
                    batch = dict(self.transform(self._dataset, Interaction(batch)).interaction)
                if drawn is not None:
                    batch = self._with_negatives(source, batch, drawn[:, part])
                yield Interaction(batch)

    def _with_negatives(self, source: _Source, batch: dict[str, Tensor], drawn: Tensor) -> dict[str, Tensor]:
        """A batch of B pairs with negatives from `drawn` (draws, B): RecBole repeats the pairs, block by block."""
        items = self._hardest(source, batch, drawn) if source.dynamic else drawn.reshape(-1)
        if self.times > 1:
            batch = {name: _repeated(column, self.times) for name, column in batch.items()}
        if self.dl_format == InputType.PAIRWISE:
            negative = source.joined({self.iid_field: items})
            return {**batch, **{self.neg_prefix + name: column for name, column in negative.items()}}
        pairs = drawn.shape[1]
        batch[self.iid_field][pairs:] = items
        labels = torch.zeros(len(batch[self.iid_field]), device=items.device)
        labels[:pairs] = 1
        return {**source.joined(batch), self.label_field: labels}

    def _hardest(self, source: _Source, batch: dict[str, Tensor], drawn: Tensor) -> Tensor:
        """(negatives * B,) the candidate with the model's best score for each negative."""
        pairs = {name: _repeated(column, source.draws) for name, column in batch.items()}
        self.model.eval()
        with torch.no_grad():
            scores = self.model.predict(Interaction({**pairs, self.iid_field: drawn.reshape(-1)}).to(self.model.device))
        self.model.train()
        best = scores.reshape(source.candidates, -1).argmax(dim=0, keepdim=True)
        return drawn.reshape(source.candidates, -1).gather(0, best.to(drawn.device)).squeeze(0)


def go_on_drawing(loader: Any, fast: bool) -> None:
    """Makes the loader of a resumed run draw as before the interruption.

    Raises:
        UserError: it used fast sampling, but this loader cannot.
    """
    if isinstance(loader, FastTrainDataLoader):
        loader.fast = fast
    elif fast:
        raise UserError("The run to resume used fast sampling, but --fast_sampling is off; set --fast_sampling=true.")


def _repeated(column: Tensor, times: int) -> Tensor:
    return column.repeat([times] + [1] * (column.dim() - 1))


class _Source:
    """The source of a loader's epochs: the training split's columns, features to join, and negatives.

    Attributes:
        device: the device of the data: the model's, or the CPU if a transform reads rows one by one.
        columns: columns of the training split, by name.
        draws: items drawn for each row.
        candidates: items drawn for each negative.
        dynamic: whether the model chooses among them.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any) -> None:
        self.device = torch.device("cpu") if config["transform"] else config["device"]
        self.columns = self._moved(dataset.inter_feat)
        self._fields = dataset.uid_field, dataset.iid_field
        self._features = [
            (field, self._moved(feature))
            for field, feature in zip(self._fields, (dataset.user_feat, dataset.item_feat))
            if feature is not None
        ]
        wanted = config["train_neg_sample_args"]
        self.dynamic = bool(wanted.get("dynamic"))
        self.candidates = int(wanted["candidate_num"]) if self.dynamic else 1
        self.draws, self._negatives = 0, None
        if wanted["distribution"] == "none" or wanted["sample_num"] == "none":
            return
        self.draws = int(wanted["sample_num"]) * self.candidates
        weights = None
        if wanted["distribution"] == "popularity":
            # RecBole's: the share of an item in the pairs of all splits, to the power alpha, where it has any.
            counts = np.bincount(sampler._get_candidates_list(), minlength=dataset.item_num)
            weights = torch.from_numpy(counts / counts.sum())
            weights[weights > 0] = weights[weights > 0] ** sampler.alpha
        observed = sampler.used_ids.own if isinstance(sampler.used_ids, UsedPairs) else None
        self._negatives = Negatives(dataset.item_num, observed, weights, self.device)

    def _moved(self, table: Interaction) -> dict[str, Tensor]:
        return {name: column.to(self.device) for name, column in table.interaction.items()}

    def draw(self, columns: dict[str, Tensor], generator: torch.Generator) -> Tensor | None:
        """(draws, n) items for each of n rows; None if no negatives are needed."""
        if self._negatives is None:
            return None
        users, items = (columns[field].repeat(self.draws) for field in self._fields)
        return self._negatives.draw(users, items, generator).view(self.draws, -1)

    def joined(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns and the features of their users and items."""
        for field, features in self._features:
            if field in columns:
                columns = {
                    **columns,
                    **{name: feature.index_select(0, columns[field]) for name, feature in features.items()},
                }
        return columns
