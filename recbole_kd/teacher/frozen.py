"""A trained model as a teacher: constants outside the student's modules, in the student's ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import training_arguments
from torch import Tensor

from recbole_kd.contracts import Sequences
from recbole_kd.data.ranks import RankBankCache, build_rank_bank, build_user_bank
from recbole_kd.data.splits import Splits
from recbole_kd.evaluation.costs import stored_numbers
from recbole_kd.files.digest import digest
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
    side_vectors,
)
from recbole_kd.teacher.bare import BareTeacher
from recbole_kd.teacher.cache import NO_PART_OF_A_MODEL, Trained
from recbole_kd.trainer.state import storable

__all__ = ["FrozenTeacher"]

_PAIRS_AT_ONCE = 1 << 20


def _content(trained: Trained) -> str:
    """Digest of everything that determines a teacher's scores: weights, its other stored values, its own settings."""
    model: Any = trained.model
    # Closed-form models have only other stored values. Names with restore_ are caches computed from the weights.
    beside = {key: value for key, value in storable(model.other_parameter()).items() if value is not None}
    for value in beside.values():
        if isinstance(value, dict):
            value.pop("layout", None)  # the storage layout does not change the matrix
    settings = {key: trained.config.plain_values().get(key) for key in trained.config.model_keys()}
    no_part = NO_PART_OF_A_MODEL | {*training_arguments, "every_position"}
    architecture = {key: value for key, value in settings.items() if key not in no_part}
    return digest(dict(model.state_dict()), beside, architecture, trained.config.resolved.backbone)


class FrozenTeacher(BareTeacher):
    """A trained model as constants, in the student's ids: the :class:`recbole_kd.contracts.TeacherView`.

    It is a plain object: the model is in no parameter list, optimiser, checkpoint or `train()` call of the student.
    Representations are computed once; ranked lists are cached on disk.
    """

    def __init__(
        self, trained: Trained, splits: Splits, rank_folder: str, maps: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """
        Args:
            trained: the model and its history.
            splits: the student's data.
            rank_folder: folder of the ranked lists.
            maps: student's id -> teacher's id, for users and for items, if the orders differ.
        """
        self.trained = trained
        self.model = trained.model.eval().requires_grad_(False)
        self.name = trained.config.resolved.backbone
        self.capabilities = capabilities(self.model)
        self.digest = _content(trained)
        self._maps = None if maps is None else tuple(part.to(trained.config["device"]) for part in maps)
        self.observed = splits.observed
        #: If set, computes (U, k) ranked lists instead of this object.
        self.ranker: Callable[[FrozenTeacher, int], Tensor] | None = None
        self._ranks = RankBankCache(rank_folder)
        self._ranked: Tensor | None = None
        self._outputs: tuple[Sequences, Tensor] | None = None
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
        """Whether its model has other internal ids than the student's data; then only this view may be read."""
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

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of every user (U, d) and item (I, d), constant; of a model of pairs, those that it reads."""
        return self._sides

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        if self._vectors is not None:
            return self._vectors
        vectors = side_vectors(self.model)
        if vectors is None:
            self.lacks("side_vectors")
        return self._aligned(vectors)

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
        rows = max(1, _PAIRS_AT_ONCE // max(1, items[0].numel() if items.dim() == 2 else 1))
        parts = zip(users.split(rows), items.split(rows))
        return torch.cat([expanded_scores(self.model, user, item) for user, item in parts])

    @cached_property
    def ranks_key(self) -> str:
        """Cache key of its ranked lists: a digest of weights, training split and order of ids."""
        return digest("ranks 2", self.digest, self.observed.keys, [part.cpu() for part in self._maps or ()])

    @torch.no_grad()
    def score_block(self, users: Tensor) -> Tensor:
        """Scores of users (n,) with every item, (n, I), in the student's ids."""
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
            theirs = sequences if self._maps is None else sequences._replace(items=self._maps[1][sequences.items])
            # Only the latest is kept, because all distillers of a step read the same batch.
            self._outputs = sequences, sequence_vectors(self.model, theirs)
        return self._outputs[1]

    @torch.no_grad()
    def sequence_scores(self, sequences: Sequences, items: Tensor | None = None) -> Tensor:
        """y_t of the next item after each sequence, constant: (n, k) for items (n, k), (n, I) for every item."""
        if items is not None and self._maps is not None:
            items = self._maps[1][items]
        scores = next_item_scores(self.model, self.sequence_embeddings(sequences), items)
        return scores if items is not None or self._maps is None else scores[:, self._maps[1]]

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0 if a user has fewer.

        They are computed once for these weights and this training split, and kept on disk. A longer list on disk is
        cut for a shorter one.
        """
        if self._ranked is None or self._ranked.shape[1] < k:
            self._ranked = self._ranks.obtain(self.ranks_key, k, lambda: self._rank(k))
        return self._ranked[:, :k]

    def _rank(self, k: int) -> Tensor:
        if self.ranker is not None:
            return self.ranker(self, k)
        return build_rank_bank(self.score_block, self.observed, k)

    def ranked_users(self, k: int) -> Tensor:
        """For every item the k best users who have not observed it: (I, k) int32, filled with 0; also kept on disk."""
        return self._ranks.obtain(digest(self.ranks_key, "users"), k, lambda: self._rank_users(k))

    def _rank_users(self, k: int) -> Tensor:
        if self._vectors is None:
            return build_user_bank(self.score_block, self.observed, k)
        users, items = self._vectors
        return build_rank_bank(lambda block: items[block.to(items.device)] @ users.t(), self.observed.transposed(), k)

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
        """Number of numbers that its model stores."""
        return stored_numbers(self.model)

    @property
    def files(self) -> list[str]:
        """The file from which the teacher was read, or in which it is kept."""
        return [self.trained.checkpoint]
