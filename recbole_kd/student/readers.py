"""Reads scores and representations from each recommender, for the student's view and for the teacher's.

A reader is chosen by the architecture's name, which is looked up along the class's bases. So a recipe, a subclass of
its backbone, has its backbone's reader. A recommender without a reader can still be a student or teacher of scores and
ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_kd.contracts import Sequences
from recbole_kd.loss.kernel.gather import gathered_dot
from recbole_kd.loss.kernel.rows import rows_at
from recbole_kd.model.kinds import class_names

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
    """Unit vectors whose dot product is SimpleX's cosine score, without dropout."""
    history = model.item_emb(model.history_item_id)
    users = model.get_UI_aggregation(model.user_emb.weight, history, model.history_item_len)
    return nn.functional.normalize(users, dim=1), nn.functional.normalize(model.item_emb.weight, dim=1)


#: Architecture -> (users (U, d), items (I, d)) whose dot product is the score.
_REPRESENTATIONS: dict[str, Callable[[Any], Pair]] = {
    "SimRecStudent": _forward,
    "SimRecTeacher": _forward,
    "BPR": _tables("user_embedding", "item_embedding"),
    "LINE": _tables("user_embedding", "item_embedding"),
    **dict.fromkeys(("LightGCN", "LightGCNVariant", "NGCF", "NGCFVariant"), _forward),
    "DGCF": _forward,
    "NCL": _forward,
    "SpectralCF": _forward,
    "SGL": _sgl,
    "ENMF": _enmf,
    **dict.fromkeys(("WMF", "BiasMF"), _forward),
    "SimpleX": _simplex,
}

#: Architecture -> embedding tables from which the representations are computed.
_TABLES: dict[str, Callable[[Any], Pair]] = {
    "SimpleX": _tables("user_emb", "item_emb"),
    **dict.fromkeys(set(_REPRESENTATIONS) - {"SimpleX"}, _tables("user_embedding", "item_embedding")),
}


def _propagated(model: Any, adjacency: Tensor) -> list[Pair]:
    current = model.get_ego_embeddings()
    outputs = [current]
    for _ in range(model.n_layers):
        current = torch.sparse.mm(adjacency, current)
        outputs.append(current)
    return [(output[: model.n_users], output[model.n_users :]) for output in outputs]


#: Architecture -> output of each layer of its graph, the tables first.
_LAYERS: dict[str, Callable[[Any], list[Pair]]] = {
    "SimRecTeacher": lambda model: model.layers(),
    **dict.fromkeys(("LightGCN", "LightGCNVariant"), lambda model: _propagated(model, model.norm_adj_matrix)),
    "NCL": lambda model: _propagated(model, model.norm_adj_mat),
}

#: Architecture -> scores of pairs with gradient, before the sigmoid; `predict` returns probabilities.
_PAIR_SCORES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "NeuMF": lambda model, users, items: model.forward(users, items),
    "NNCF": lambda model, users, items: model.forward(users, items),
}


def _interaction(columns: dict[str, Tensor]) -> Any:
    """RecBole's batch of these columns."""
    from recbole.data.interaction import (
        Interaction,
    )  # imported late: it imports pandas and TensorBoard, which the verb `list` does not need

    return Interaction(columns)


def _catalogue(model: Any, users: Tensor) -> Tensor:
    scores: Tensor = model.full_sort_predict(_interaction({model.USER_ID: users}))
    return scores.view(len(users), -1)


#: Architecture that scores all items of a user at once, from the user's history -> scores of users (n,), (n, I).
#: RecBole's `predict` would compute such a row for each pair.
_ROW_SCORES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(("MultiDAE", "MultiVAE", "MacridVAE", "RecVAE", "RaCT", "DiffRec", "LDiffRec"), _catalogue),
    **dict.fromkeys(("EASE", "ADMMSLIM", "SLIMElastic", "ItemKNN", "AsymKNN"), _catalogue),
    "CDAE": lambda model, users: model.forward(model.get_rating_matrix(users), users),
}
_CELLS_AT_ONCE = 1 << 25

#: Architecture -> its last layer, a linear map of a pair's vector to the pair's score.
_LAST_LAYERS: dict[str, str] = {
    **dict.fromkeys(("NeuMF", "NeuMFVariant"), "predict_layer"),
    "NNCF": "out_layer",
    "ConvNCF": "predict_layers",
}


def _towers(model: Any) -> Pair:
    """The embeddings of NeuMF's two towers side by side, of those that it uses."""
    used = [tower for tower in ("mf", "mlp") if getattr(model, f"{tower}_train")]
    users, items = ([getattr(model, f"{side}_{tower}_embedding").weight for tower in used] for side in ("user", "item"))
    return torch.cat(users, dim=1), torch.cat(items, dim=1)


#: Architecture that encodes pairs -> the vectors of users (U, d) and items (I, d) from which it does.
_SIDE_VECTORS: dict[str, Callable[[Any], Pair]] = dict.fromkeys(("NeuMF", "NeuMFVariant"), _towers)


def _sequence_output(model: Any, sequences: Sequences) -> Tensor:
    output: Tensor = model.forward(sequences.items, sequences.lengths)
    return output


def _bert4rec(model: Any, sequences: Sequences) -> Tensor:
    """The output at a mask after the last item, which is how BERT4Rec predicts."""
    last = sequences.lengths.unsqueeze(1)
    masked = nn.functional.pad(sequences.items, (0, 1)).scatter(1, last, model.mask_token)[:, 1:]
    output: Tensor = model.gather_indexes(model.forward(masked), sequences.lengths - 1)
    return output


#: Sequential architecture -> vectors (n, d) of sequences.
_SEQUENCE_VECTORS: dict[str, Callable[[Any, Sequences], Tensor]] = {
    **dict.fromkeys(("GRU4Rec", "SASRec", "SRGNN", "STOSA"), _sequence_output),
    **dict.fromkeys(("GCSAN", "LightSANs", "NARM", "STAMP"), _sequence_output),
    "NextItNet": lambda model, sequences: model.forward(sequences.items),
    "BERT4Rec": _bert4rec,
}

#: Sequential architecture -> item tables, the rows of each in the order of the ids.
_ITEM_TABLES: dict[str, Callable[[Any], list[Tensor]]] = {
    **dict.fromkeys(_SEQUENCE_VECTORS, lambda model: [model.item_embedding.weight]),
    "STOSA": lambda model: [model.mean_embedding.weight, model.covariance_embedding.weight],
}


def _reader(table: Mapping[str, Any], model: Union[nn.Module, type[Any]]) -> Optional[Any]:
    return _of(table, class_names(model))


def _of(table: Mapping[str, Any], names: Iterable[str]) -> Optional[Any]:
    return next((table[name] for name in names if name in table), None)


def representations(model: nn.Module) -> Optional[Pair]:
    """(users (U, d), items (I, d)) whose dot product is the model's score, or None if it has none."""
    reader = _reader(_REPRESENTATIONS, model)
    if reader is None:
        return None
    size: Optional[int] = vars(model).get("prefix_size")  # set for a cut student (`student/matryoshka.py`)
    return reader(model) if size is None else first_numbers(model, reader(model), size)


def first_numbers(model: nn.Module, vectors: Pair, size: int) -> Pair:
    """(users (U, size), items (I, size)): the first numbers of a model's vectors; unit vectors are normalised again."""
    users, items = (part[:, :size] for part in vectors)
    if _reader({"SimpleX": True}, model):
        return nn.functional.normalize(users, dim=1), nn.functional.normalize(items, dim=1)
    return users, items


def layers(model: nn.Module) -> Optional[list[Pair]]:
    """(users, items) of each layer of the model's graph, the tables first; None if it has no graph."""
    reader = _reader(_LAYERS, model)
    return None if reader is None else reader(model)


def embedding_tables(model: nn.Module) -> Optional[Pair]:
    """The embedding tables (users (U, d), items (I, d)) under the representations; None if they are not known."""
    reader = _reader(_TABLES, model)
    return None if reader is None else reader(model)


def tables_read_by_rows(model: nn.Module) -> list[nn.Embedding]:
    """The embedding tables of a model whose steps read only rows of them; empty if a step reads a whole table."""
    if not _reader({"BPR": True, "LINE": True}, model):
        return []
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def item_tables(model: nn.Module) -> Optional[list[Tensor]]:
    """The parameters with a row for each item, in the order of the ids; None if they are not known.

    A sequential model may have one more row (BERT4Rec's mask).
    """
    reader = _reader(_ITEM_TABLES, model)
    if reader is not None:
        tables: list[Tensor] = reader(model)
        return tables
    pair = embedding_tables(model)
    return None if pair is None else [pair[1]]


def is_sequential(model: Any) -> bool:
    """Whether the model predicts the next item of a sequence."""
    return getattr(getattr(model, "type", None), "name", None) == "SEQUENTIAL"  # RecBole's ModelType


def sequence_vectors(model: nn.Module, sequences: Sequences) -> Tensor:
    """(n, d) vectors of sequences; scores are their products with :func:`item_vectors`, up to an item's bias.

    STOSA's scores are negative squared distances instead.
    """
    reader = _reader(_SEQUENCE_VECTORS, model)
    if reader is None:
        raise TypeError(f"{type(model).__name__} has no known vectors of sequences")
    vectors: Tensor = reader(model, sequences)
    return vectors


def item_vectors(model: Any) -> Tensor:
    """(I, d) vectors of a sequential model's items."""
    if hasattr(model, "item_vectors"):
        vectors: Tensor = model.item_vectors()
        return vectors
    table: Tensor = model.item_embedding.weight
    return table[: model.n_items]


def next_item_scores(model: Any, vectors: Tensor, items: Optional[Tensor] = None) -> Tensor:
    """Scores of items after sequences: (n, k) for items (n, k), (n, I) for every item.

    Args:
        vectors: (n, d) of :func:`sequence_vectors`, or their first numbers.
    """
    if hasattr(model, "item_vectors"):
        distances: Tensor = model.scores(vectors, items)
        return distances
    table, bias = item_vectors(model)[:, : vectors.shape[1]], getattr(model, "output_bias", None)
    if items is None:
        scores = vectors @ table.t()
        return scores if bias is None else scores + bias
    scores = torch.bmm(table[items], vectors.unsqueeze(2)).squeeze(2)
    return scores if bias is None else scores + bias[items]


def capabilities(model: Union[nn.Module, type[Any]]) -> frozenset[str]:
    """The :data:`recbole_kd.contracts.CAPABILITIES` of a model or of a class of models."""
    return _offered(class_names(model), is_sequential(model))


def names_with_vectors() -> list[str]:
    """The architectures that have a vector for each user and item."""
    return list(_REPRESENTATIONS)


def capabilities_of(name: str, sequential: bool) -> frozenset[str]:
    """:func:`capabilities` of the class of that name, without importing it."""
    return _offered([name], sequential)


def _offered(names: list[str], sequential: bool) -> frozenset[str]:
    if sequential:
        return frozenset({"sequences", "sequence_vectors"} if _of(_SEQUENCE_VECTORS, names) else ())
    tables: dict[str, Mapping[str, Any]] = {
        "representations": _REPRESENTATIONS,
        "tables": _TABLES,
        "layers": _LAYERS,
        "pair_representations": {**_REPRESENTATIONS, **_LAST_LAYERS},
        "side_vectors": {**_REPRESENTATIONS, **_SIDE_VECTORS},
    }
    found = (capability for capability, table in tables.items() if _of(table, names))
    return frozenset({"scores", "listed_scores", "ranks", *found})


def dimension_from_settings(model: type[Any], config: Any) -> Optional[int]:
    """The size of the vectors of users and items, from the settings of a model that is not built yet.

    None for a model without such vectors, or if it concatenates several.
    """
    concatenated = _reader(dict.fromkeys(("NGCF", "SpectralCF", "BiasMF"), True), model)
    if "representations" not in capabilities(model) or concatenated:
        return None
    size: Optional[int] = config["embedding_size"]
    return size


def pair_scores(model: Any, users: Tensor, items: Tensor) -> Tensor:
    """Scores of users (n,) with items (n,) through the model itself, (n,)."""
    reader = _reader(_PAIR_SCORES, model)
    if reader is not None:
        scores: Tensor = reader(model, users, items)
        return scores
    scores = model.predict(_interaction({model.USER_ID: users, model.ITEM_ID: items}))
    return scores.view(-1)


def embedding_scores(vectors: Pair, users: Tensor, items: Tensor) -> Tensor:
    """Dot products of users (n,) with items (n,) or (n, k), in the shape of `items`."""
    return gathered_dot(vectors[0], vectors[1], users, items)


def expanded_scores(model: Any, users: Tensor, items: Tensor) -> Tensor:
    """`pair_scores` of users (n,) with items (n,) or (n, k), in the shape of `items`."""
    rows = _reader(_ROW_SCORES, model)
    if rows is not None:
        return _from_rows(rows, model, users, items)
    if items.dim() == 2:
        users = users[:, None].expand_as(items)
    return pair_scores(model, users.reshape(-1), items.reshape(-1)).view(items.shape)


def _from_rows(rows: Callable[[Any, Tensor], Tensor], model: Any, users: Tensor, items: Tensor) -> Tensor:
    """Scores of users (n,) with items (n,) or (n, k), taken from one row of all items for each distinct user.

    Rows are computed in blocks. With gradient and several blocks, each block is computed again in the backward pass, so
    only one block is held at a time.
    """
    distinct, position = torch.unique(users, return_inverse=True)
    columns = items if items.dim() == 2 else items.unsqueeze(1)
    order = position.argsort()
    blocks = distinct.split(max(1, _CELLS_AT_ONCE // model.n_items))
    counts = torch.bincount(position, minlength=len(distinct)).split([len(block) for block in blocks])

    def gathered(block: Tensor, chosen: Tensor, first: int) -> Tensor:
        scores = rows(model, block)
        flat = (position[chosen] - first).unsqueeze(1) * scores.shape[1] + columns[chosen]
        return scores.reshape(-1).gather(0, flat.reshape(-1)).view(flat.shape)

    parts, first, start = [], 0, 0
    for block, count in zip(blocks, counts):
        chosen = order[start : start + int(count.sum())]
        if len(blocks) > 1 and torch.is_grad_enabled():
            parts.append(checkpoint(gathered, block, chosen, first, use_reentrant=False))
        else:
            parts.append(gathered(block, chosen, first))
        first, start = first + len(block), start + len(chosen)
    return torch.cat(parts)[order.argsort()].view(items.shape)


def pair_representations(model: Any, users: Tensor, items: Tensor) -> Optional[Tensor]:
    """Vectors (n, d) of the pairs of users (n,) and items (n,); the score is a linear map of them. None without any.

    For a model that encodes both together (NeuMF) it is the input of the last layer. For a model whose score is a dot
    product it is the elementwise product of the two vectors, whose sum is the score.
    """
    vectors = representations(model)
    if vectors is not None:
        return pair_products(vectors, users, items)
    last = _reader(_LAST_LAYERS, model)
    if last is None:
        return None
    entered: list[Tensor] = []
    hook = getattr(model, last).register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]))
    try:
        model.forward(users, items)
    finally:
        hook.remove()
    return entered[0]


def side_vectors(model: Any) -> Optional[Pair]:
    """(users (U, d), items (I, d)): the representations, or what a model of pairs computes its scores from."""
    reader = _reader(_SIDE_VECTORS, model)
    return representations(model) if reader is None else reader(model)


def pair_products(vectors: Pair, users: Tensor, items: Tensor) -> Tensor:
    """The elementwise products of the vectors of users (n,) and items (n,): (n, d)."""
    return rows_at(vectors[0], users) * rows_at(vectors[1], items)


@contextmanager
def shared_propagation(model: nn.Module, gradient: bool = True) -> Iterator[None]:
    """Inside the block, `model.forward()` without arguments is computed once, whoever calls it.

    A graph recommender propagates in `forward()`; its own loss and all distillers of a step share this pass. They also
    share a sequential model's pass over the batch's sequences, if the tensors are the same objects.
    """
    forward, around = model.forward, vars(model).get("forward")
    outputs: list[Any] = []
    passes: list[tuple[tuple[Any, ...], Any]] = []
    sequential = is_sequential(model)

    def once(*arguments: Any, **named: Any) -> Any:
        if sequential and not named:
            for known, output in passes:
                if len(known) == len(arguments) and all(one is other for one, other in zip(known, arguments)):
                    return output
            passes.append((arguments, forward(*arguments)))
            return passes[-1][1]
        if arguments or named:
            return forward(*arguments, **named)
        if not outputs:
            # With gradient even if the first caller needs none, because later callers do; not in evaluation.
            with torch.set_grad_enabled(gradient):
                outputs.append(forward())
        return outputs[0]

    model.forward = once
    try:
        yield
    finally:
        del model.forward
        if around is not None:  # nested in such a block
            model.forward = around


class ModelStudent:
    """The :class:`recbole_kd.contracts.StudentView` of a RecBole recommender."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(model).__name__
        self.capabilities = capabilities(model)
        self._in_step = False
        self._kept: dict[Callable[[Any], Optional[Pair]], Pair] = {}
        self._outputs: Optional[tuple[Sequences, Tensor]] = None
        with torch.no_grad():
            vectors = item_vectors(model) if "sequence_vectors" in self.capabilities else representations(model)
        if isinstance(vectors, tuple):
            vectors = vectors[1]
        self.dimension = None if vectors is None else vectors.shape[1]

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step: representations are computed at most once inside."""
        self._in_step = True
        try:
            with shared_propagation(self.model):
                yield
        finally:
            self._in_step, self._kept, self._outputs = False, {}, None

    def _representations(self) -> Pair:
        return self._read(representations)

    def _read(self, reader: Callable[[Any], Optional[Pair]]) -> Pair:
        if reader in self._kept:
            return self._kept[reader]
        with torch.set_grad_enabled(torch.is_grad_enabled() or self._in_step):
            vectors = reader(self.model)
        if vectors is None:
            raise TypeError(f"{self.name} has no {reader.__name__.replace('_', ' ')}")
        if self._in_step:
            self._kept[reader] = vectors
        return vectors

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """y_s of users (n,) with items (n,) or (n, k), in the shape of `items`."""
        if "representations" in self.capabilities:
            return embedding_scores(self._representations(), users, items)
        return expanded_scores(self.model, users, items)

    def user_embeddings(self) -> Tensor:
        """e_s of every user, (U, d_s)."""
        return self._representations()[0]

    def item_embeddings(self) -> Tensor:
        """e_s of every item, (I, d_s)."""
        if "sequence_vectors" in self.capabilities:
            return item_vectors(self.model)
        return self._representations()[1]

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        """e_s of n sequences, (n, d_s)."""
        if self._outputs is not None and self._outputs[0] is sequences:
            return self._outputs[1]
        vectors = sequence_vectors(self.model, sequences)
        if self._in_step:
            self._outputs = sequences, vectors
        return vectors

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        """y_s of the next item after each sequence: (n, k) for items (n, k), (n, I) for every item."""
        return next_item_scores(self.model, self.sequence_embeddings(sequences), items)

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """Vectors of the pairs of users (n,) and items (n,), (n, d_s)."""
        if "representations" in self.capabilities:
            return pair_products(self._representations(), users, items)
        vectors = pair_representations(self.model, users, items)
        if vectors is None:
            raise TypeError(f"{self.name} has no pair representations")
        return vectors

    def side_vectors(self) -> Pair:
        """Vectors of every user (U, d) and item (I, d), whether or not scores are their products."""
        return self._representations() if "representations" in self.capabilities else self._read(side_vectors)

    def tables(self) -> Pair:
        """The embedding tables: users (U, d), items (I, d)."""
        tables = embedding_tables(self.model)
        if tables is None:
            raise TypeError(f"{self.name} has no embedding tables")
        return tables
