"""The graphs on which SEvo smooths an optimiser's updates, and SEvo's options.

Each graph is a symmetric-normalised adjacency Ã in CSR form, built from the training split only. Its nodes are the rows
of an item table, or the rows of the user table followed by those of the item table. Padding, and rows that a model adds
at the end (such as BERT4Rec's mask), are nodes without neighbours.

Source: SEvo (NeurIPS'24), "Graph-enhanced Optimizers for Structure-aware Recommendation Embedding Evolution".
Deviation: the weight of a teacher's neighbours is exp(-d / temperature) with d = 1 - cos. The authors' slides print d
as the cosine *similarity*, which would give the least similar items the largest weight.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Optional, TypedDict

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import normalize

from recbole_kd.data.dataset import BEFORE, PLACE
from recbole_kd.data.graphs import bipartite_adjacency, symmetric_normalized
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.files.digest import digest
from recbole_kd.options import Options, option

__all__ = [
    "GRAPHS",
    "SEvoOptions",
    "cached_adjacency",
    "category_adjacency",
    "check_columns",
    "check_neighbours",
    "consecutive_adjacency",
    "item_categories",
    "sevo_adjacency",
    "teacher_adjacency",
    "training_sequences",
]

#: Values of ``sevo.graph``.
GRAPHS = ("consecutive", "bipartite", "category", "teacher")

#: The options that each graph depends on.
_GRAPH_OPTIONS = {
    "consecutive": ("window", "maxlen"),
    "bipartite": (),
    "category": ("category",),
    "teacher": ("neighbours", "temperature"),
}

#: Similarities in a block of items times all items; limits the search for neighbours to 64 MiB of float32.
BLOCK_CELLS = 1 << 24

#: Largest number of item pairs that share a category; with more, smoothing takes longer than a training step.
MOST_PAIRS = 20_000_000


@dataclass(frozen=True)
class SEvoOptions(Options):
    """Section ``sevo``: how strongly, and on which graph, the updates of embedding tables are smoothed."""

    beta: float = option(0.99, "strength of smoothing; 0 is the plain optimiser", minimum=0, below=1)
    layers: int = option(3, "L, number of steps that an update spreads on the graph", minimum=0)
    iterative: bool = option(False, "iterate x <- beta Ã x + (1 - beta) Delta instead of the rescaled Neumann series")
    graph: str = option("consecutive", "which items are neighbours", choices=GRAPHS)
    tables: tuple[str, ...] = option(
        (), "parameters to smooth, in the order of the graph's nodes; by default the model's tables"
    )
    window: int = option(1, "H of graph consecutive: largest distance of neighbours in a sequence", minimum=1)
    maxlen: int = option(
        50, "for graph consecutive: number of last items of a user's sequence that are used", minimum=2
    )
    neighbours: int = option(10, "for graph teacher: number of nearest items that each item chooses", minimum=1)
    temperature: float = option(1.0, "for graph teacher: tau of exp(-d/tau), d = 1 - cosine", above=0)
    category: str = option("class", "for graph category: the item feature whose values are the categories")

    def check(self, section: str) -> None:
        """
        Raises:
            UserError: an option that only another graph reads has another value than its default.
        """
        for graph, names in _GRAPH_OPTIONS.items():
            for name in names if graph != self.graph else ():
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise UserError(
                        f"--{section}.{name} is read by --{section}.graph={graph} alone, and the graph is "
                        f"{self.graph}; leave it out."
                    )


def consecutive_adjacency(
    user_ids: Tensor, item_ids: Tensor, order: Tensor, nodes: int, window: int = 1, maxlen: int = 50
) -> Tensor:
    """Ã of the graph that connects items which follow each other in a user's training sequence.

    Each occurrence of two items h <= window steps apart adds 1/h to their edge, in both directions. An item that
    follows itself is its own neighbour. Only the last `maxlen` items of a user are used.

    Args:
        user_ids, item_ids: (n,) the training interactions, in any order.
        order: (n,) their time or position; ties keep the order of the interactions.
        nodes: rows of the item table.
        window: H, at least 1.
        maxlen: number of last items of a sequence that are used, at least 2.

    Returns:
        (nodes, nodes) sparse CSR, float32.

    Raises:
        UserError: no user has two training interactions.
    """
    in_time = torch.argsort(order, stable=True)
    by_user = in_time[torch.argsort(user_ids[in_time], stable=True)]
    users, items = user_ids[by_user].long(), item_ids[by_user].long()
    last_place = torch.bincount(users).cumsum(0)[users]
    recent = last_place - torch.arange(len(users), device=users.device) <= maxlen
    users, items = users[recent], items[recent]

    rows, columns, weights = [], [], []
    for steps in range(1, min(window, len(users) - 1) + 1):
        together = users[steps:] == users[:-steps]
        earlier, later = items[:-steps][together], items[steps:][together]
        rows += [earlier, later]
        columns += [later, earlier]
        weights.append(torch.full((2 * len(earlier),), 1 / steps))
    if not any(len(part) for part in rows):
        raise UserError(
            "No user has two training interactions, so no items are consecutive; "
            "keep longer sequences (--user_inter_num_interval) or choose another --sevo.graph."
        )
    return symmetric_normalized(torch.cat(rows), torch.cat(columns), torch.cat(weights).to(items.device), nodes)


def category_adjacency(item_ids: Tensor, category_ids: Tensor, nodes: int) -> Tensor:
    """Ã of the graph that connects, with weight 1, all items that share a category.

    Args:
        item_ids, category_ids: (n,) pairs of an item and one of its categories; id 0 is padding in both.
        nodes: rows of the item table.

    Returns:
        (nodes, nodes) sparse CSR, float32.

    Raises:
        UserError: no items share a category, or too many do.
    """
    real = (item_ids > 0) & (category_ids > 0)
    items, categories = item_ids[real].cpu().numpy(), category_ids[real].cpu().numpy()
    shape = (nodes, int(categories.max(initial=0)) + 1)
    member = scipy.sparse.csr_matrix((np.ones(len(items), dtype=np.float32), (items, categories)), shape=shape)
    pairs = float(np.square(np.asarray(member.sum(axis=0), dtype=np.float64)).sum())
    if pairs > MOST_PAIRS:
        raise UserError(
            f"--sevo.graph=category would connect {pairs:.2g} pairs of items; expected at most {MOST_PAIRS:.2g}: "
            "name a finer feature with --sevo.category."
        )
    shared = (member @ member.T).tocoo()
    other = shared.row != shared.col
    if not other.any():
        raise UserError("No two items share a category; name another feature with --sevo.category.")
    rows, columns = (torch.from_numpy(ids[other].astype(np.int64)) for ids in (shared.row, shared.col))
    return symmetric_normalized(rows, columns, torch.ones(len(rows)), nodes)


def check_neighbours(neighbours: int, others: int) -> None:
    """
    Raises:
        UserError: `neighbours` is more than the number of other items.
    """
    if neighbours > others:
        raise UserError(f"--sevo.neighbours={neighbours} is more than the {others} other items; choose fewer.")


def teacher_adjacency(
    embeddings: Tensor,
    neighbours: int,
    temperature: float,
    nodes: Optional[int] = None,
    block: Optional[int] = None,
    known: Optional[Tensor] = None,
) -> Tensor:
    """Ã of the graph that connects each item with its nearest items in a teacher's embedding.

    Item i chooses the `neighbours` items with the largest cosines (exact search), with w_ij = exp(-(1 - cos_ij) /
    temperature), and 0 for other items. The edge's weight is w_ij + w_ji. A weight that underflows gives no edge.

    Args:
        embeddings: (I, d) the teacher's item embeddings; row 0 is padding.
        neighbours: k, less than the number of other items.
        temperature: tau, above 0.
        nodes: rows of the student's item table; by default I.
        block: items whose cosines are held at a time, (block, I) numbers; by default for 64 MiB.
        known: (I,) bool, the items with a vector; the others have no neighbour. By default all.

    Returns:
        (nodes, nodes) sparse CSR of the embeddings' dtype, on a CPU.

    Raises:
        UserError: `neighbours` is more than the number of other items.
    """
    items = len(embeddings)
    padding = torch.arange(items, device=embeddings.device) == 0
    left_out = padding if known is None else padding | ~known.to(padding.device)
    others = max(items - int(left_out.sum()) - 1, 0)
    check_neighbours(neighbours, others)
    directions = normalize(embeddings.detach(), dim=1)
    block = block or max(1, BLOCK_CELLS // items)
    chosen, cosines = [], []
    for own in (~left_out).nonzero().squeeze(1).split(block):
        similarity = directions[own] @ directions.T
        similarity[:, left_out] = -torch.inf
        similarity[torch.arange(len(own), device=own.device), own] = -torch.inf
        best = similarity.topk(neighbours, dim=1)
        chosen.append(best.indices.cpu())
        cosines.append(best.values.double().cpu())
    rows = (~left_out).nonzero().squeeze(1).cpu().repeat_interleave(neighbours)
    columns = torch.cat(chosen).flatten()
    weights = torch.exp((torch.cat(cosines).flatten() - 1) / temperature)
    kept = weights > 0
    rows, columns, weights = rows[kept], columns[kept], weights[kept]
    adjacency = symmetric_normalized(
        torch.cat([rows, columns]), torch.cat([columns, rows]), torch.cat([weights, weights]), nodes or items
    )
    return adjacency.to(embeddings.dtype)


def check_columns(graph: str, category: str, dataset: Any) -> None:
    """Refuses a graph that needs columns which the dataset has not loaded; called before training.

    Raises:
        UserError: interactions have no time, or items have no such column, or it holds numbers.
    """
    if graph == "consecutive" and dataset.timed is None:
        raise UserError(
            f"The consecutive graph needs the time of interactions, but column '{dataset.time_field}' is not loaded; "
            "name it in --load_col or choose another --sevo.graph."
        )
    if graph != "category":
        return
    features = dataset.item_feat
    tokens = [] if features is None else [name for name in features.columns if name in dataset.token_like_fields]
    choices = [name for name in tokens if name != dataset.iid_field]
    if category not in choices:
        raise UserError(
            f"--sevo.category={category} is not a token column of the items of {dataset.dataset_name}; "
            f"expected one of: {', '.join(choices) or 'none is loaded'}. Name a column of its items in "
            f'--load_col="{{inter: [{dataset.uid_field},{dataset.iid_field}], item: [{dataset.iid_field},COLUMN]}}".'
        )


def training_sequences(train: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(users (n,), items (n,), places (n,)) of a training split: each user's items in time, for the consecutive graph.

    A sequential model's rows are (items so far, next item). The next items are the sequence without its first item. The
    first item is the history of the row whose history has one item.

    Args:
        train: RecBole's dataset of the training split.

    Raises:
        UserError: interactions have no time.
    """
    check_columns("consecutive", "", train)
    rows, config = train.timed, train.config
    users, items, times = rows[train.uid_field], rows[train.iid_field], rows[PLACE]
    histories = train.iid_field + config["LIST_SUFFIX"]
    if histories in rows:
        lengths = rows[config["ITEM_LIST_LENGTH_FIELD"]]
        first = rows[BEFORE] == 1
        users, items = torch.cat([users[first], users]), torch.cat([rows[histories][first, 0], items])
        times = torch.cat([torch.full((int(first.sum()),), -1), times])
        # Items with the same time are ordered by the length of their histories.
        by_length = torch.argsort(torch.cat([torch.zeros_like(lengths[first]), lengths]), stable=True)
        users, items, times = users[by_length], items[by_length], times[by_length]
    places = torch.empty(len(times), dtype=torch.long)
    places[torch.argsort(times, stable=True)] = torch.arange(len(times))
    return users, items, places


def item_categories(dataset: Any, feature: str) -> tuple[Tensor, Tensor]:
    """(items (n,), categories (n,)): one pair for each category of an item; id 0 is padding in both.

    Args:
        dataset: a RecBole dataset with item features.
        feature: name of a token or token_seq column of the items.

    Raises:
        UserError: no such column, or it holds numbers.
    """
    check_columns("category", feature, dataset)
    features = dataset.item_feat
    values = features[feature].reshape(len(features), -1)
    items = features[dataset.iid_field].unsqueeze(1).expand_as(values)
    return items.flatten(), values.flatten()


def sevo_adjacency(
    options: SEvoOptions,
    train: Any,
    observed: Observed,
    item_rows: int,
    teacher_items: Optional[Tensor] = None,
    known_items: Optional[Tensor] = None,
) -> Tensor:
    """Ã of the graph that the options name.

    Args:
        options: section ``sevo``.
        train: RecBole's dataset of the training split.
        observed: the observed pairs of that split.
        item_rows: rows of the item table that is smoothed, at least I.
        teacher_items: (I, d) the teacher's item embeddings, for graph teacher.
        known_items: (I,) bool, the items for which the teacher has one; None: all.

    Returns:
        (item_rows, item_rows) sparse CSR; for graph bipartite (U + I, U + I), users first.

    Raises:
        UserError: the graph cannot be built from the data and the teacher.
    """
    if options.graph == "bipartite":
        return bipartite_adjacency(observed)
    if options.graph == "category":
        return category_adjacency(*item_categories(train, options.category), item_rows)
    if options.graph == "teacher":
        if teacher_items is None:
            raise UserError(
                "--sevo.graph=teacher reads a teacher's item embeddings, but there is no teacher with them; "
                "set --teacher or choose another --sevo.graph."
            )
        return teacher_adjacency(teacher_items, options.neighbours, options.temperature, item_rows, known=known_items)
    return consecutive_adjacency(*training_sequences(train), item_rows, options.window, options.maxlen)


class _StoredGraph(TypedDict):
    rows: Tensor
    columns: Tensor
    weights: Tensor
    nodes: int
    content: str


def cached_adjacency(
    folder: str,
    options: SEvoOptions,
    train: Any,
    observed: Observed,
    item_rows: int,
    teacher_items: Optional[Tensor] = None,
    known_items: Optional[Tensor] = None,
) -> Tensor:
    """The result of :func:`sevo_adjacency`, kept in `folder` under a digest of its inputs.

    A file that is damaged or holds an invalid graph is made again.

    Raises:
        UserError: the graph cannot be built, or the folder cannot be written.
    """
    content: list[Any]
    if options.graph == "consecutive":
        content = list(training_sequences(train))
    elif options.graph == "category":
        content = list(item_categories(train, options.category))
    else:
        content = [observed.users, observed.items, observed.keys if options.graph == "bipartite" else teacher_items]
    if known_items is not None:
        content.append(known_items)
    chosen = [getattr(options, name) for name in _GRAPH_OPTIONS[options.graph]]
    key = digest("item graph", options.graph, chosen, item_rows, content)
    path = os.path.join(folder, f"{options.graph}-{key[:32]}.pth")
    if os.path.isfile(path):
        try:
            stored = load_checkpoint(path, schema=_StoredGraph)
            parts, size = (stored["rows"], stored["columns"], stored["weights"]), (stored["nodes"], stored["nodes"])
            if stored["content"] == digest(key, *parts):
                # Sparse products do not check column indices, so those of a file are checked here.
                return torch.sparse_csr_tensor(*parts, size=size, check_invariants=True)
        except (UserError, RuntimeError):
            pass
        logging.getLogger().warning(f"The graph in '{path}' is damaged or of an earlier version; it is made again.")
    adjacency = sevo_adjacency(options, train, observed, item_rows, teacher_items, known_items)
    parts = adjacency.crow_indices(), adjacency.col_indices(), adjacency.values()
    told = {"key": key, "nodes": adjacency.shape[0], "content": digest(key, *parts)}
    save_checkpoint({**told, **dict(zip(("rows", "columns", "weights"), parts))}, path)
    return adjacency
