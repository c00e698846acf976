"""FreqD: graph-filtered feature distillation ("frequency-aware", eq. 7-10).

    L = I - D^(-1/2) A D^(-1/2) of the bipartite training graph, users and items being its nodes
    H = h(L), by default h(x) = 1 - alpha x, 0 <= alpha <= 0.5, so H = (1 - alpha) I + alpha Ã         (eq. 9-10)
    loss = mean over the batch's distinct users and items of ||(H proj(E_s) - H E_t)[node]||^2         (eq. 8)

Entry: a node. proj is linear and shared by users and items, as both are nodes of one graph. ``projector: mlp`` is the
mean of ``projectors`` perceptrons d_s -> hidden -> d_t with ReLU, as in the authors' code. Over all nodes the loss is
the feature loss with its part at frequency x weighted by h(x)^2 (eq. 3; theorem 2): a decreasing filter distils low
frequencies more.

A filter whose weight increases anywhere on [0, 2] is refused. ``monotone: false`` allows it, for table 1, where bands
are removed. ``band_weights: [1,1,1,0]`` weights groups with equally many frequencies. It is exact where users or items
are at most 6,000. Larger graphs use Chebyshev polynomials of degree 128, which take 128 products with the graph in each
step and blur the groups' edges. Frequency 1, which occurs at least |U - I| times, is divided among the groups that
contain it.

H E_t is computed once. A linear projector commutes with the filter, H proj(E_s) = (H E_s) W + (H 1) b, so a step needs
only the batch's rows of the filter, in the student's dimension. In a perceptron only the last layer commutes. The
hidden layer is computed for the nodes that these rows read, and the last layer for the batch's nodes.

``relations: true`` compares how similar nodes are to each other, without a projector. With C the cosines between all
nodes' vectors, the loss is the mean over pairs of the batch's nodes of (H (C_s - C_t) H)[a, b]^2. Over all nodes it is
the sum over pairs of frequencies x, y of h(x)^2 h(y)^2 times the squared part of C_s - C_t at (x, y). Without a filter
it is FTD's. This is our reading of the paper's extension to relation losses (theorem 3). Entry: a pair.

A node without a teacher's vector (in a file that lacks some) is in no graph and in no mean. If the teacher has vectors
of items only, the items' graph of ``graph: knn`` is filtered, whatever ``graph`` says.

Deviations: the paper sums over the batch's nodes; here it is a mean. The authors' later code is the recipe
FreqDCodeStudent:

- It filters user-user and item-item 5-NN co-occurrence graphs, with a cosine loss and a projector for each side
  (``graph: knn``).
- proj is the mean of 5 perceptrons with dropout 0.2 before each layer.
- Half of a graph's edges are dropped in each step (``edge_dropout: 0.5``). Here only the student's graph drops edges;
  H E_t uses all of them.
- Positive and negative items have half the weight each; here all nodes have the same weight.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from recbole_kd.contracts import Batch, Share
from recbole_kd.data.bands import BandFilter, band_filter
from recbole_kd.data.graphs import PolynomialFilter, bipartite_adjacency, check_decreasing, neighbour_adjacency
from recbole_kd.distiller.base.nodes import NodeOptions, known, with_bias
from recbole_kd.distiller.base.projectors import ProjectedDistiller, ProjectorOptions, before_last
from recbole_kd.errors import UserError
from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel.regression import layer_error, linear_error
from recbole_kd.loss.kernel.topology import products_error
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import option

#: Squares of larger coefficients come close to the limit of float32.
_LARGEST = 1e6


@dataclass(frozen=True)
class FreqDOptions(ProjectorOptions, NodeOptions):
    """Options of the section ``freqd``."""

    weight: float = option(0.1, "weight of the loss", minimum=0)
    alpha: float = option(0.4, "alpha of the linear filter h(x) = 1 - alpha x", minimum=0, maximum=0.5)
    filter: Optional[tuple[float, ...]] = option(
        None, "theta of any polynomial h(x) = theta_0 + theta_1 x + ..., instead of alpha: a list, lowest power first"
    )
    band_weights: Optional[tuple[float, ...]] = option(
        None,
        "instead of alpha: loss weights of groups with equally many frequencies, lowest first, such as [1,1,1,0]",
        minimum=0,
    )
    monotone: bool = option(True, "whether to refuse a filter whose weight h(x)^2 increases somewhere on [0, 2]")
    graph: str = option(
        "bipartite",
        "bipartite: the user-item graph, squared error; knn: user-user and item-item graphs, cosine loss",
        choices=("bipartite", "knn"),
    )
    neighbours: int = option(5, "neighbours by co-occurrence that each node of `graph: knn` chooses", minimum=1)
    relations: bool = option(False, "filter and compare cosines between nodes, not projected vectors")
    edge_dropout: float = option(
        0.0,
        "share of the edges of `graph: knn` that the student's filter drops, drawn again in each step",
        minimum=0,
        below=1,
    )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """theta."""
        return (1.0, -self.alpha) if self.filter is None else self.filter

    def check(self, section: str) -> None:
        """
        Raises:
            UserError: all coefficients are 0, one is very large, or the filter's weight increases on [0, 2].
        """
        super().check(section)
        if self.relations and self.projector != "linear":
            raise UserError(
                f"{section}.projector={self.projector} maps vectors, but {section}.relations compares cosines, which "
                "need no projector; leave one of them out."
            )
        if self.band_weights is not None:
            self._check_bands(section)
        if self.edge_dropout and (self.graph != "knn" or self.band_weights or len(self.coefficients) > 2):
            raise UserError(
                f"{section}.edge_dropout={self.edge_dropout} needs a neighbour graph and a linear filter; set "
                f"--{section}.graph=knn and --{section}.alpha, or leave it out."
            )
        if not any(self.coefficients):
            raise UserError(
                f"{section}.filter={list(self.coefficients)} removes every frequency; expected a coefficient that is "
                f"not 0, such as --{section}.filter=[1,-0.5]."
            )
        if max(map(abs, self.coefficients)) > _LARGEST:
            raise UserError(
                f"{section}.filter={list(self.coefficients)} has a coefficient beyond {_LARGEST:g}; divide by the "
                f"largest, and change --{section}.weight instead, such as --{section}.filter=[1,-0.5]."
            )
        if self.monotone:
            check_decreasing(self.coefficients, f"{section}.filter")

    def _check_bands(self, section: str) -> None:
        given = list(self.band_weights or ())
        name = f"{section}.band_weights={given}"
        if len(given) < 2 or not any(given):
            raise UserError(f"{name}; expected at least two weights, not all 0: --{section}.band_weights=[1,1,1,0].")
        if self.filter is not None:
            raise UserError(f"{name} and {section}.filter={list(self.filter)} both say what is filtered; keep one.")
        if max(given) > _LARGEST:
            raise UserError(f"{name} has a weight beyond {_LARGEST:g}; divide by the largest.")
        if self.monotone and given != sorted(given, reverse=True):
            raise UserError(
                f"{name} increases with the frequency; expected weights that decrease, such as [1,1,1,0], or set "
                f"--{section}.monotone=false."
            )


class FreqDDistiller(ProjectedDistiller[FreqDOptions]):
    """Regression of the teacher's filtered representations from the student's."""

    name = "freqd"

    @property
    def shares(self) -> bool:  # type: ignore[override]
        """Processes share out the nodes, unless a step draws random numbers or reads pairs."""
        return not (self.options.dropout or self.options.edge_dropout or self.options.relations)

    def build(self) -> None:
        super().build()
        options, teacher, observed = self.options, self.teacher, self.data.observed
        marks = teacher.known_users, teacher.known_items
        tables = [table for table in self.entries.tables() if table is not None]
        if options.relations:
            tables = [unit(table) for table in tables]
        self.graph = options.graph if len(tables) == 2 else "knn"
        if self.graph != options.graph:
            logging.getLogger().info("freqd: the teacher has no users, so only the items' neighbour graph is filtered")
        if self.graph == "bipartite":
            graphs = [_FilteredGraph(bipartite_adjacency(observed.among(*marks)), options, tables)]
        else:
            sides = [observed.among(marks[0], None), observed.among(None, marks[1]).transposed()]
            graphs = [
                _FilteredGraph(neighbour_adjacency(side, options.neighbours), options, [table])
                for side, table in zip(sides[-len(tables) :], tables)
            ]
        self.graphs = nn.ModuleList(graphs)
        self.projectors = nn.ModuleList(self.projector(options) for _ in graphs if not options.relations)

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 8: the mean over the batch's nodes; or over their pairs."""
        nodes = [known(batch.distinct_items, self.teacher.known_items)]
        signals = [self.student.item_embeddings()]
        if "user" in self.entries.kinds:
            nodes.insert(0, known(batch.distinct_users, self.teacher.known_users))
            signals.insert(0, self.student.user_embeddings())
        if self.graph == "bipartite":
            nodes = [torch.cat([nodes[0], nodes[1] + self.data.users])]
            signals = [torch.cat(signals)]
        sides = zip(self.graphs, signals, nodes)
        if self.options.relations:
            totals = [self._relation_error(*side) for side in sides]  # type: ignore[arg-type]
            return mean_over_nodes(totals, sum(len(chosen) ** 2 for chosen in nodes))
        share = self.data.share if self.shares else Share()
        totals = [
            self._error(graph, projector, signal, chosen[share.part(len(chosen))])  # type: ignore[arg-type]
            for projector, (graph, signal, chosen) in zip(self.projectors, sides)
        ]
        return mean_over_nodes(totals, sum(map(len, nodes)))

    def _relation_error(self, graph: _FilteredGraph, signal: Tensor, nodes: Tensor) -> Tensor:
        """The sum over pairs of nodes of the squared differences of the filtered cosines."""
        read, product = graph.smooth.part(nodes, self.options.edge_dropout, self.generator)
        return products_error(product(unit(signal.index_select(0, read))), graph.targets.index_select(0, nodes))

    def _error(self, graph: _FilteredGraph, projector: nn.Module, signal: Tensor, nodes: Tensor) -> Tensor:
        """The sum over nodes of the distances between H proj(E_s) and H E_t."""
        distance = "squared" if self.graph == "bipartite" else "cosine"
        if isinstance(projector, nn.Linear) and not self.options.edge_dropout:
            inputs, constant = graph.smooth(signal, nodes), graph.ones.index_select(0, nodes)
            if distance == "squared":
                return linear_error(torch.cat([inputs, constant], 1), with_bias(projector), graph.targets, nodes)
            _, weight, bias = before_last(projector, signal)
        else:
            read, product = graph.smooth.part(nodes, self.options.edge_dropout, self.generator)
            inputs, weight, bias = before_last(projector, signal.index_select(0, read))
            inputs, constant = product(inputs), product(inputs.new_ones(len(inputs), 1))
        return layer_error(inputs, constant.squeeze(1), weight, bias, graph.targets, nodes, distance)


class _FilteredGraph(nn.Module):
    """A graph's filter H, with the constants H E_t, (N, d_t), and H 1, (N, 1)."""

    smooth: PolynomialFilter | BandFilter
    targets: Tensor
    ones: Tensor

    def __init__(self, adjacency: Tensor, options: FreqDOptions, vectors: list[Tensor]) -> None:
        super().__init__()
        self.smooth = (
            band_filter(adjacency, options.band_weights).to(vectors[0])
            if options.band_weights
            else PolynomialFilter(adjacency.to(vectors[0]), options.coefficients)
        )
        # Last, to save memory: with millions of nodes this copy and the filter's inputs take gigabytes each.
        teacher = torch.cat(vectors)
        self.register_buffer("targets", self.smooth.constant(teacher), persistent=False)
        self.register_buffer("ones", self.smooth.constant(teacher.new_ones(len(teacher), 1)), persistent=False)
