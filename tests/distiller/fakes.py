"""A student and a teacher that are nothing but tables, for the tests of distillers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from recbole_kd.contracts import CAPABILITIES, Batch, DataView
from recbole_kd.data.observed import Observed

#: What tables can offer: everything but scores and vectors of sequences.
ALL = frozenset(CAPABILITIES) - {"sequences", "sequence_vectors", "item_representations"}


class FakeStudent:
    """Two trainable tables; `network` (identity by default) makes the representations of them.

    A plain object, as every view is: a distiller that holds it does not own its parameters. Row 0 is padding, and its
    entries are NaN where `poisoned` is asked for: whatever touches it shows.
    """

    name = "FakeStudent"

    def __init__(
        self,
        users: int,
        items: int,
        dimension: int,
        *,
        network: Optional[nn.Module] = None,
        capabilities: frozenset[str] = ALL - {"layers"},
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        poisoned: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.randn(count, dimension, generator=generator, dtype=dtype) for count in (users, items)]
        if poisoned:
            for table in tables:
                table[0] = torch.nan
        self.user_table, self.item_table = (nn.Parameter(table) for table in tables)
        self.network = nn.Identity() if network is None else network.to(dtype)
        self.capabilities = capabilities
        self.dimension: Optional[int] = dimension

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser would train."""
        return [self.user_table, self.item_table, *self.network.parameters()]

    def user_embeddings(self) -> Tensor:
        return self.network(self.user_table)

    def item_embeddings(self) -> Tensor:
        return self.network(self.item_table)

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.user_table, self.item_table

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return _scores(self.user_embeddings(), self.item_embeddings(), users, items)

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        return self.user_embeddings()[users] * self.item_embeddings()[items]


class FakeTeacher:
    """Constant layers of embeddings; the representations are their sum, the scores its dot products."""

    name = "FakeTeacher"
    known_users: Optional[Tensor] = None
    known_items: Optional[Tensor] = None

    def __init__(
        self,
        users: int,
        items: int,
        dimension: int,
        *,
        layers: int = 1,
        capabilities: frozenset[str] = ALL,
        observed: Optional[Observed] = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 1,
        poisoned: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._layers = []
        for _ in range(layers):
            pair = [torch.randn(count, dimension, generator=generator, dtype=dtype) for count in (users, items)]
            if poisoned:
                for table in pair:
                    table[0] = torch.nan
            self._layers.append((pair[0], pair[1]))
        self.capabilities = capabilities
        self.dimension: Optional[int] = dimension
        self.observed = observed

    def user_embeddings(self) -> Tensor:
        return torch.stack([users for users, _ in self._layers]).sum(0)

    def item_embeddings(self) -> Tensor:
        return torch.stack([items for _, items in self._layers]).sum(0)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._layers)

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        return self.user_embeddings()[users] * self.item_embeddings()[items]

    def score_block(self, users: Tensor) -> Tensor:
        return self.user_embeddings()[users] @ self.item_embeddings().t()

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        return _scores(self.user_embeddings(), self.item_embeddings(), users, items)

    def ranked_items(self, k: int) -> Tensor:
        """(U, k) best unobserved items of each user, 0 where there are fewer."""
        scores = self.user_embeddings() @ self.item_embeddings().t()
        scores[:, 0] = -torch.inf
        if self.observed is not None:
            scores[self.observed.user_ids, self.observed.indices] = -torch.inf
        best, ranked = scores.sort(dim=1, descending=True)
        ranked = ranked.masked_fill(best == -torch.inf, 0)[:, :k].int()
        ranked[0] = 0
        return nn.functional.pad(ranked, (0, k - ranked.shape[1]))

    def listed_weights(self, k: int) -> Optional[Tensor]:
        return None

    def ranked_users(self, k: int) -> Tensor:
        """(I, k) best users of each item who did not observe it, 0 where there are fewer."""
        turned = FakeTeacher.__new__(FakeTeacher)
        turned._layers = [(items, users) for users, items in self._layers]
        turned.observed = None if self.observed is None else self.observed.transposed()
        return turned.ranked_items(k)


def data_view(users: int, items: int, pairs: Optional[Sequence[tuple[int, int]]] = None, *, seed: int = 0) -> DataView:
    """A training split of the given observed pairs; by default every user has a third of the items, drawn at random."""
    if pairs is None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(users - 1, items - 1, generator=generator) < 1 / 3
        user_ids, item_ids = (chosen.nonzero() + 1).unbind(1)
    else:
        user_ids, item_ids = torch.tensor(pairs).unbind(1)
    observed = Observed(user_ids, item_ids, users, items)
    return DataView(observed=observed, epochs=10, seed=seed, device=torch.device("cpu"))


def batch_of(data: DataView, count: int, *, seed: int = 0, negatives: bool = False) -> Batch:
    """`count` observed pairs of a training split, drawn with replacement, and as many uniform negatives if asked."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(data.observed), (count,), generator=generator)
    return Batch(
        users=data.observed.user_ids[drawn],
        items=data.observed.indices[drawn],
        negatives=torch.randint(1, data.items, (count,), generator=generator) if negatives else None,
    )


def assert_same_loss(found: Tensor, expected: Tensor, inputs: Sequence[Tensor], **tolerance: float) -> None:
    """Two losses are of one value, and of one gradient with respect to each of the inputs."""
    torch.testing.assert_close(found, expected, **tolerance)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, other, **tolerance)


def _scores(user_embeddings: Tensor, item_embeddings: Tensor, users: Tensor, items: Tensor) -> Tensor:
    of_items = item_embeddings[items]
    of_users = user_embeddings[users]
    if items.dim() == 2:
        of_users = of_users[:, None]
    return (of_users * of_items).sum(-1)
