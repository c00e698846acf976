"""Training batches drawn many at once: RecBole's distributions and columns in a tenth of RecBole's time.

RecBole slices each batch out of its table by a list of Python numbers and draws negatives batch by batch. Here an
epoch's order is drawn whole. Rows and negatives come in chunks of many batches, on the model's device. A batch has
RecBole's columns, types and order of rows. The negatives are others than RecBole's, from the same distribution.
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

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError

__all__ = ["FastTrainDataLoader", "Negatives", "go_on_drawing", "samples_fast"]

#: Drawn entries of a chunk, about: enough that Python's share vanishes, few enough that the chunk stays in the cache.
CHUNK = 2**16
#: Places in the table of marks for each observed pair, at least: one unobserved pair in eight at most is looked up.
_PLACES = 8


def samples_fast(backbone: str, kind: ModelType) -> bool:
    """Whether a model's batches can be drawn here: an autoencoder's and a knowledge graph's are RecBole's own.

    Args:
        backbone: the architecture's name.
        kind: its type.
    """
    return bool(get_dataloader({"model": backbone, "MODEL_TYPE": kind}, "train") is TrainDataLoader)


class Negatives:
    """Draws a negative item for each row, exactly in proportion to the items' weights among those that are allowed.

    A drawn item that its user has observed is drawn again. A small table of marks, one at a hash of each observed pair,
    says of most items that they are allowed; the others are looked up among the sorted pairs.
    """

    def __init__(
        self, items: int, observed: Observed | None, weights: Tensor | None, device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            items: I, padding included.
            observed: pairs that are not negatives; None: only a row's own positive item is none.
            weights: (I,) how probable items are, 0 for padding; None: alike.
            device: where items are drawn.

        Raises:
            UserError: for some user no item is left that has a weight.
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
        # Fibonacci hashing: the product's high bits depend on all of the key's. It wraps, as it is meant to.
        high = (keys * -7046029254386353131).bitwise_right_shift_(64 - self._bits)
        return high.bitwise_and_(2**self._bits - 1)


class FastTrainDataLoader(TrainDataLoader):
    """RecBole's training loader, whose epochs are drawn many batches at once while `fast` is true.

    All that is random comes from `generator`, whose state a checkpoint keeps: an epoch takes one number of it as the
    seed of its own stream.

    Attributes:
        fast: whether epochs are drawn here; otherwise they are RecBole's to the bit. A resumed run sets it.
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
        """(negatives * B,) of each negative's candidates the one that the model scores best."""
        pairs = {name: _repeated(column, source.draws) for name, column in batch.items()}
        self.model.eval()
        with torch.no_grad():
            scores = self.model.predict(Interaction({**pairs, self.iid_field: drawn.reshape(-1)}).to(self.model.device))
        self.model.train()
        best = scores.reshape(source.candidates, -1).argmax(dim=0, keepdim=True)
        return drawn.reshape(source.candidates, -1).gather(0, best.to(drawn.device)).squeeze(0)


def go_on_drawing(loader: Any, fast: bool) -> None:
    """Lets the loader of a resumed run draw as it did before it stopped.

    Raises:
        UserError: it drew fast, and this loader cannot.
    """
    if isinstance(loader, FastTrainDataLoader):
        loader.fast = fast
    elif fast:
        raise UserError(
            "The run to go on with drew its batches by fast sampling, and --fast_sampling is off; "
            "set --fast_sampling=true."
        )


def _repeated(column: Tensor, times: int) -> Tensor:
    return column.repeat([times] + [1] * (column.dim() - 1))


class _Source:
    """What a loader draws epochs from: the training split's columns, features to join, and negatives.

    Attributes:
        device: where all of it is: the model's, or the CPU where a transform goes through rows one by one.
        columns: of the training split, by name.
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
        observed = sampler.used_ids if isinstance(sampler.used_ids, Observed) else None
        self._negatives = Negatives(dataset.item_num, observed, weights, self.device)

    def _moved(self, table: Interaction) -> dict[str, Tensor]:
        return {name: column.to(self.device) for name, column in table.interaction.items()}

    def draw(self, columns: dict[str, Tensor], generator: torch.Generator) -> Tensor | None:
        """(draws, n) items for each of n rows; None where no negatives are wanted."""
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
