"""The variants of LightGCN and NGCF that the paper of LightGCN compares, on RecBole's models.

He, Deng, Wang, Li, Zhang, Wang: LightGCN (SIGIR 2020), sections 2.2, 3.2 and 4.4.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.general_recommender import NGCF, LightGCN
from torch import Tensor, nn

from recbole_kd.loss.kernel.graph import Graph

__all__ = ["NORMS", "LightGCNVariant", "NGCFVariant", "layer_weights", "propagate_faster"]

#: Table 5's names -> exponents of the degrees of the node that receives and of its neighbour. L2 is LightGCN itself.
NORMS: dict[str, tuple[float, float]] = {
    "L2": (0.5, 0.5),
    "L": (0.5, 0.0),
    "R": (0.0, 0.5),
    "L1": (1.0, 1.0),
    "L1-L": (1.0, 0.0),
    "L1-R": (0.0, 1.0),
}


def layer_weights(given: Any, layers: int) -> list[float]:
    """The weights of the tables and of each layer, from ``mean``, ``last`` or a list of them.

    Args:
        given: the setting.
        layers: L, the number of graph convolutions.

    Returns:
        L + 1 numbers.

    Raises:
        ValueError: another word, another number of weights, or weights that are not numbers.
    """
    if given == "mean":
        return [1 / (layers + 1)] * (layers + 1)
    if given == "last":
        return [0.0] * layers + [1.0]
    numbers = isinstance(given, list) and all(isinstance(one, (int, float)) for one in given)
    if not numbers or len(given) != layers + 1:
        raise ValueError(
            f"layer_weights={given}; expected mean, last, or a list of {layers + 1} numbers, the tables' first"
        )
    return [float(one) for one in given]


class LightGCNVariant(LightGCN):
    """LightGCN with other weights of layers, other normalisations, and self-loops.

    e_u^(k+1) = sum over i in N_u of |N_u|^-a |N_i|^-b e_i^(k), and the same for items, with (a, b) from :data:`NORMS`;
    e_u = sum_k alpha_k e_u^(k) (eq. 3-4). With ``self_loops`` a node is its own neighbour, also in its degree (eq. 9).

    Settings beside RecBole's: ``layer_weights`` (alpha; ``last`` is LightGCN-single), ``norm``, ``self_loops``. The
    defaults are LightGCN.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        # Before RecBole's constructor, which builds the graph.
        self.left, self.right = NORMS[config["norm"]]
        self.self_loops: bool = config["self_loops"]
        super().__init__(config, dataset)
        self.graph = Graph(self.norm_adj_matrix, symmetric=self.left == self.right)
        self.layer_weights = layer_weights(config["layer_weights"], self.n_layers)

    def get_norm_adj_mat(self) -> Tensor:
        """The normalised graph, (U + I, U + I) sparse. Padding has no edge, and A is binary."""
        matrix = self.interaction_matrix
        pairs = torch.stack([torch.from_numpy(matrix.row).long(), torch.from_numpy(matrix.col).long() + self.n_users])
        edges = torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)
        size = self.n_users + self.n_items
        if self.self_loops:
            nodes = torch.arange(size)
            nodes = nodes[(nodes != 0) & (nodes != self.n_users)]
            edges = torch.cat([edges, nodes.expand(2, -1)], dim=1)
        degrees = torch.bincount(edges[0], minlength=size).double()
        values = degrees[edges[0]] ** -self.left * degrees[edges[1]] ** -self.right
        return torch.sparse_coo_tensor(edges, values.float(), (size, size), check_invariants=False).coalesce()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final vectors of all users (U, d) and all items (I, d)."""
        current = self.get_ego_embeddings()
        final = self.layer_weights[0] * current
        for weight in self.layer_weights[1:]:
            current = self.graph(current)
            final = final + weight * current
        return final[: self.n_users], final[self.n_users :]


class _OfBags(LightGCN):
    """RecBole's LightGCN with faster products: the same up to rounding."""

    forward = LightGCNVariant.forward


_OfBags.__name__ = LightGCN.__name__


def propagate_faster(model: Any) -> None:
    """Gives RecBole's LightGCN the products of `loss/kernel/graph.py` on a CPU; any other model stays as it is."""
    if type(model) is LightGCN and model.norm_adj_matrix.device.type == "cpu":
        vars(model).update(graph=Graph(model.norm_adj_matrix), layer_weights=layer_weights("mean", model.n_layers))
        model.__class__ = _OfBags


class NGCFVariant(NGCF):
    """NGCF without feature transformation (NGCF-f), without non-linearity (NGCF-n), or without both (NGCF-fn).

    E^(k+1) = sigma(E W1 + A E W1 + (A E * E) W2) with A the normalised graph (eq. 1 for all nodes at once). NGCF-f
    leaves out W1, W2 and RecBole's biases; NGCF-n leaves out sigma. Dropout, the normalisation of each layer's rows and
    the concatenation of layers are RecBole's, as in the authors' code.

    Settings beside RecBole's: ``feature_transform``, ``nonlinear``. The defaults are NGCF.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.nonlinear: bool = config["nonlinear"]
        if not config["feature_transform"]:
            if set(self.hidden_size_list) != {self.embedding_size}:
                raise ValueError(
                    f"hidden_size_list={self.hidden_size_list[1:]}, but without feature_transform each layer has "
                    f"embedding_size={self.embedding_size} numbers; make them equal"
                )
            for layer in self.GNNlayers:
                layer.linear = layer.interActTransform = nn.Identity()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users and all items, concatenated over the layers: (U, D), (I, D)."""
        graph = self.norm_adj_matrix if self.node_dropout == 0 else self.sparse_dropout(self.norm_adj_matrix)
        outputs = [self.get_ego_embeddings()]
        for layer in self.GNNlayers:
            current = layer(graph, self.eye_matrix, outputs[-1])
            if self.nonlinear:
                current = F.leaky_relu(current, 0.2)
            outputs.append(F.normalize(self.emb_dropout(current), dim=1))
        both = torch.cat(outputs, dim=1)
        return both[: self.n_users], both[self.n_users :]
