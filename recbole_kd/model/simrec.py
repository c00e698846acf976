"""SimRec's teacher and student as RecBole recommenders.

Xia, Huang, Shi, Xu: Graph-less Collaborative Filtering (WWW 2023). The teacher is a linear graph convolution network
whose layers are *summed* and whose graph has self-loops; the student is an MLP over embedding tables that never sees
the graph. The distillation losses are in :mod:`recbole_kd.distiller.simrec`.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.init import xavier_uniform_initialization
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_kd.data.graphs import symmetric_normalized
from recbole_kd.loss.kernel.graph import Graph


class TwoTables(GeneralRecommender):
    """A recommender whose score is the dot product of a user's and an item's final embedding."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.user_embedding = nn.Embedding(self.n_users, size)
        self.item_embedding = nn.Embedding(self.n_items, size)
        self.restore_final: Optional[tuple[Tensor, Tensor]] = None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of all users (U, d) and all items (I, d)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> TwoTables:
        # Weights may have changed before a change of mode, so embeddings computed for evaluation are dropped.
        self.restore_final = None
        return super().train(mode)

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        """The final embeddings; in eval mode without gradient and computed only once until the mode changes.

        RecBole also scores candidates of dynamic negative sampling this way, before each training step.
        """
        if self.training:
            return self.forward()
        if self.restore_final is None:
            with torch.no_grad():
                self.restore_final = self.forward()
        return self.restore_final

    def predict(self, interaction: Any) -> Tensor:
        """Scores (B,) of the batch's users with its items."""
        users, items = self._evaluated()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores (B * I,) of the batch's users with all items."""
        users, items = self._evaluated()
        return (users[interaction[self.USER_ID]] @ items.T).view(-1)


class SimRecTeacher(TwoTables):
    """Linear graph convolutions, summed (SimRec, section 3.2).

    H_0 is the embedding table, H_{l+1} = D^(-1/2) (A + I) D^(-1/2) H_l with D the degree of A + I, and the final
    embedding H = sum_{l=0..L} H_l. LightGCN instead has a mean, and no self-loops. It is trained with the BPR loss (eq.
    11), a mean over pairs, plus ``reg_weight`` times ||H_0||^2, the squared norm of the whole tables.

    Settings: ``embedding_size`` (d), ``n_layers`` (L), ``reg_weight``.
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_layers: int = config["n_layers"]
        self.reg_weight: float = config["reg_weight"]
        matrix = dataset.inter_matrix(form="coo")
        # A is binary: repeated interactions are one edge.
        pairs = torch.stack([torch.from_numpy(matrix.row).long(), torch.from_numpy(matrix.col).long()])
        users, items = torch.unique(pairs, dim=1)
        items = items + self.n_users
        loops = torch.arange(self.n_users + self.n_items)
        loops = loops[(loops != 0) & (loops != self.n_users)]  # padding is not in the graph
        rows, columns = torch.cat([users, items, loops]), torch.cat([items, users, loops])
        size = self.n_users + self.n_items
        self.graph = Graph(symmetric_normalized(rows, columns, torch.ones(len(rows)), size).to(self.device))
        self.bpr_loss = BPRLoss()
        self.apply(xavier_uniform_initialization)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(users (U, d), items (I, d)) of H_0, ..., H_L."""
        current = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        outputs = [current]
        for _ in range(self.n_layers):
            current = self.graph(current)
            outputs.append(current)
        return [(output[: self.n_users], output[self.n_users :]) for output in outputs]

    def forward(self) -> tuple[Tensor, Tensor]:
        layers = self.layers()
        users, items = layers[0]
        for more_users, more_items in layers[1:]:
            users, items = users + more_users, items + more_items
        return users, items

    def calculate_loss(self, interaction: Any) -> Tensor:
        """BPR loss, a mean over the batch, plus the penalty: a scalar."""
        user, positive, negative = (interaction[key] for key in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        users, items = self.forward()
        # F.embedding and not an index, because its backward pass is several times faster on a CPU.
        anchor, liked, other = F.embedding(user, users), F.embedding(positive, items), F.embedding(negative, items)
        loss: Tensor = self.bpr_loss((anchor * liked).sum(1), (anchor * other).sum(1))
        penalty = self.user_embedding.weight.square().sum() + self.item_embedding.weight.square().sum()
        return loss + self.reg_weight * penalty


class SimRecStudent(TwoTables):
    """An MLP over embedding tables (SimRec, eq. 3-4), without a graph; a score is a dot product of rows of two tables.

    h = FC^(L')(h0) with FC(x) = LeakyReLU(W x) + x, W in R^{d x d} shared by users and items, negative slope 0.5 (the
    authors' code). y = h_u · h_i.

    With the distiller ``simrec`` its own loss is L_rec = -mean y over the observed pairs. L_rec has no lower bound; the
    distiller's contrastive regularisation bounds it. Without that distiller, or if ``train_neg_sample_args`` is given,
    negatives are drawn and the loss is BPR: the paper's MLP without distillation (figures 3 and 6).

    Settings: ``embedding_size`` (d), ``n_layers`` (L' >= 1), ``negative_slope``.
    """

    input_type = InputType.POINTWISE
    #: The distiller that bounds L_rec; a run without it draws a negative for each observed item.
    bounded_by = "simrec"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.negative_slope: float = config["negative_slope"]
        self.bpr_loss = BPRLoss()
        self.mlp = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(config["n_layers"]))
        self.apply(xavier_uniform_initialization)

    def transform(self, table: Tensor) -> Tensor:
        """FC^(L') of rows (n, d) of an embedding table."""
        for layer in self.mlp:
            table = F.leaky_relu(layer(table), self.negative_slope) + table
        return table

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.transform(self.user_embedding.weight), self.transform(self.item_embedding.weight)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """L_rec, the negated mean score of the batch's observed pairs; BPR if the batch has negatives. A scalar."""
        users, items = self.forward()
        user, liked = F.embedding(interaction[self.USER_ID], users), F.embedding(interaction[self.ITEM_ID], items)
        scores = (user * liked).sum(dim=1)
        if self.NEG_ITEM_ID not in interaction.interaction:
            return -scores.mean()
        loss: Tensor = self.bpr_loss(scores, (user * F.embedding(interaction[self.NEG_ITEM_ID], items)).sum(dim=1))
        return loss
