"""How scores and representations are read from each recommender: the student's view, and what the teacher's is made of.

A reader is chosen by the architecture's name, looked up along the class's bases, so that a recipe (a subclass of its
backbone) is read as its backbone is. A recommender without a reader is still a student or teacher of scores and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_kd.loss.gather import gathered_dot

Pair = tuple[Tensor, Tensor]


def _tables(users: str, items: str) -> Callable[[Any], Pair]:
    return lambda model: (getattr(model, users).weight, getattr(model, items).weight)


def _forward(model: Any) -> Pair:
    outputs = model.forward()
    return outputs[0], outputs[1]


def _sgl(model: Any) -> Pair:
    users, items = model.forward(model.train_graph)
    return users, items


def _enmf(model: Any) -> Pair:
    return model.user_embedding.weight * model.H_i.weight, model.item_embedding.weight


def _simplex(model: Any) -> Pair:
    """Unit vectors whose dot product is SimpleX's cosine score, dropout left out."""
    history = model.item_emb(model.history_item_id)
    users = model.get_UI_aggregation(model.user_emb.weight, history, model.history_item_len)
    return nn.functional.normalize(users, dim=1), nn.functional.normalize(model.item_emb.weight, dim=1)


#: Architecture -> (users (U, d), items (I, d)) whose dot product is the score.
_REPRESENTATIONS: dict[str, Callable[[Any], Pair]] = {
    "SimRecStudent": _forward,
    "SimRecTeacher": _forward,
    "BPR": _tables("user_embedding", "item_embedding"),
    "LightGCN": _forward,
    "NGCF": _forward,
    "DGCF": _forward,
    "NCL": _forward,
    "SpectralCF": _forward,
    "SGL": _sgl,
    "ENMF": _enmf,
    "SimpleX": _simplex,
}

#: Architecture -> embedding tables under the representations.
_TABLES: dict[str, Callable[[Any], Pair]] = {
    "SimpleX": _tables("user_emb", "item_emb"),
    **dict.fromkeys(set(_REPRESENTATIONS) - {"SimpleX"}, _tables("user_embedding", "item_embedding")),
}


def _lightgcn_layers(model: Any) -> list[Pair]:
    current = model.get_ego_embeddings()
    outputs = [current]
    for _ in range(model.n_layers):
        current = torch.sparse.mm(model.norm_adj_matrix, current)
        outputs.append(current)
    return [(output[: model.n_users], output[model.n_users :]) for output in outputs]


#: Architecture -> output of each layer of its graph, the tables first.
_LAYERS: dict[str, Callable[[Any], list[Pair]]] = {
    "SimRecTeacher": lambda model: model.layers(),
    "LightGCN": _lightgcn_layers,
    "NCL": _lightgcn_layers,
}

#: Architecture -> scores of pairs that carry gradient and are no probabilities, where `predict` gives those.
_PAIR_SCORES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "NeuMF": lambda model, users, items: model.forward(users, items),
}


def _reader(table: Mapping[str, Any], model: nn.Module) -> Optional[Any]:
    return next((table[base.__name__] for base in type(model).__mro__ if base.__name__ in table), None)


def representations(model: nn.Module) -> Optional[Pair]:
    """(users (U, d), items (I, d)) whose dot product is the model's score, or None where it has none."""
    reader = _reader(_REPRESENTATIONS, model)
    return None if reader is None else reader(model)


def layers(model: nn.Module) -> Optional[list[Pair]]:
    """(users, items) of each layer of the model's graph, the tables first; None where it has no graph."""
    reader = _reader(_LAYERS, model)
    return None if reader is None else reader(model)


def embedding_tables(model: nn.Module) -> Optional[Pair]:
    """The embedding tables (users (U, d), items (I, d)) under the representations; None where none are known."""
    reader = _reader(_TABLES, model)
    return None if reader is None else reader(model)


def capabilities(model: nn.Module) -> frozenset[str]:
    """What of :data:`recbole_kd.contracts.CAPABILITIES` the model offers."""
    tables: dict[str, dict[str, Any]] = {"representations": _REPRESENTATIONS, "tables": _TABLES, "layers": _LAYERS}
    return frozenset({"scores", "ranks", *(name for name, table in tables.items() if _reader(table, model))})


def pair_scores(model: Any, users: Tensor, items: Tensor) -> Tensor:
    """Scores of users (n,) with items (n,) through the model itself, (n,)."""
    reader = _reader(_PAIR_SCORES, model)
    if reader is not None:
        scores: Tensor = reader(model, users, items)
        return scores
    scores = model.predict(Interaction({model.USER_ID: users, model.ITEM_ID: items}))
    return scores.view(-1)


def embedding_scores(vectors: Pair, users: Tensor, items: Tensor) -> Tensor:
    """Dot products of users (n,) with items (n,) or (n, k), shaped like `items`."""
    return gathered_dot(vectors[0], vectors[1], users, items)


def expanded_scores(model: Any, users: Tensor, items: Tensor) -> Tensor:
    """`pair_scores` of users (n,) with items (n,) or (n, k), shaped like `items`."""
    if items.dim() == 2:
        users = users[:, None].expand_as(items)
    return pair_scores(model, users.reshape(-1), items.reshape(-1)).view(items.shape)


@contextmanager
def shared_propagation(model: nn.Module) -> Iterator[None]:
    """Within the block, `model.forward()` without arguments is computed once, whoever calls it.

    A graph recommender propagates in `forward()`; its own loss and every distiller of a step share that one pass.
    """
    forward = model.forward
    outputs: list[Any] = []

    def once(*arguments: Any, **named: Any) -> Any:
        if arguments or named:
            return forward(*arguments, **named)
        if not outputs:
            # With gradient even where the first to ask wants none: those who come later do.
            with torch.enable_grad():
                outputs.append(forward())
        return outputs[0]

    model.forward = once
    try:
        yield
    finally:
        del model.forward


class ModelStudent:
    """The :class:`recbole_kd.contracts.StudentView` of a RecBole recommender."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__
        self.capabilities = capabilities(model)
        self._in_step = False
        self._vectors: Optional[Pair] = None
        with torch.no_grad():
            vectors = representations(model)
        self.dimension = None if vectors is None else vectors[0].shape[1]

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step: representations are computed at most once inside."""
        self._in_step = True
        try:
            with shared_propagation(self.model):
                yield
        finally:
            self._in_step, self._vectors = False, None

    def _representations(self) -> Pair:
        if self._vectors is not None:
            return self._vectors
        with torch.set_grad_enabled(torch.is_grad_enabled() or self._in_step):
            vectors = representations(self.model)
        if vectors is None:
            raise TypeError(f"{self.name} has no representations")
        if self._in_step:
            self._vectors = vectors
        return vectors

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_s of users (n,) with items (n,) or (n, k), shaped like `items`."""
        if "representations" in self.capabilities:
            return embedding_scores(self._representations(), users, items)
        return expanded_scores(self.model, users, items)

    def user_embeddings(self) -> Tensor:
        """e_s of every user, (U, d_s)."""
        return self._representations()[0]

    def item_embeddings(self) -> Tensor:
        """e_s of every item, (I, d_s)."""
        return self._representations()[1]

    def tables(self) -> Pair:
        """The embedding tables: users (U, d), items (I, d)."""
        tables = embedding_tables(self.model)
        if tables is None:
            raise TypeError(f"{self.name} has no embedding tables")
        return tables
