"""Matrix factorisations that papers compare with: WMF, on all items, and BiasMF, with biases."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.init import xavier_normal_initialization
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_kd.model.simrec import TwoTables

__all__ = ["WMF", "BiasMF"]


class WMF(TwoTables):
    """Weighted matrix factorisation (Hu, Koren, Volinsky: ICDM 2008, eq. 3), on every item of a user.

    sum_ui c_ui (p_ui - x_u . y_i)^2 + lambda (sum_u ||x_u||^2 + sum_i ||y_i||^2), with p 1 and c 1 where observed, p 0
    and c ``negative_weight`` elsewhere. The paper's c is 1 + alpha where observed: divide, and ``negative_weight`` is
    1 / (1 + alpha). Here it is a mean over users, trained by gradient in batches of users. The paper uses alternating
    least squares. The sum over unobserved items is computed from Y^T Y, without a loop over items for each user.

    Settings: ``embedding_size``, ``negative_weight``, ``reg_weight`` (lambda).
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.negative_weight: float = config["negative_weight"]
        self.reg_weight: float = config["reg_weight"]
        history, _, _ = dataset.history_item_matrix()
        self.history = history.sort(dim=1).values.to(self.device)
        self.apply(xavier_normal_initialization)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.user_embedding.weight, self.item_embedding.weight

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A mean over the batch's users: a scalar."""
        user = interaction[self.USER_ID]
        own, items = self.user_embedding(user), self.item_embedding.weight[1:]
        history = self.history[user]
        observed = history.diff(dim=1, prepend=history.new_zeros(len(history), 1)) > 0  # padding and repetitions are 0
        scores = (own.unsqueeze(1) * self.item_embedding(history)).sum(dim=2)
        gained = (1 - scores).square() - self.negative_weight * scores.square()
        everything = self.negative_weight * ((own @ (items.T @ items)) * own).sum(dim=1)
        loss = everything + torch.where(observed, gained, 0.0).sum(dim=1) + self.reg_weight * own.square().sum(dim=1)
        return loss.mean() + self.reg_weight * items.square().sum() / (self.n_users - 1)


class BiasMF(TwoTables):
    """Matrix factorisation with biases (Koren, Bell, Volinsky: Computer 2009, eq. 4-5).

    y(u,i) = mu + b_u + b_i + p_u . q_i, trained by (label - y)^2 + lambda (||p_u||^2 + ||q_i||^2 + b_u^2 + b_i^2).
    It is a mean over pairs; drawn pairs have label 0. mu is learned, as the mean label depends on the number of draws.
    As vectors, a user is [p_u, mu + b_u, 1] and an item [q_i, 1, b_i], whose product is y.

    Settings: ``embedding_size``, ``reg_weight`` (lambda).
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.LABEL = config["LABEL_FIELD"]
        self.reg_weight: float = config["reg_weight"]
        self.apply(xavier_normal_initialization)
        self.user_bias = nn.Parameter(torch.zeros(self.n_users))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        self.mean = nn.Parameter(torch.zeros(()))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(U, d + 2), (I, d + 2)."""
        users, items = self.user_embedding.weight, self.item_embedding.weight
        user_bias, item_bias = (self.mean + self.user_bias).unsqueeze(1), self.item_bias.unsqueeze(1)
        return (
            torch.cat([users, user_bias, torch.ones_like(user_bias)], dim=1),
            torch.cat([items, torch.ones_like(item_bias), item_bias], dim=1),
        )

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A mean over the batch's pairs: a scalar."""
        user, item = interaction[self.USER_ID], interaction[self.ITEM_ID]
        factors = self.user_embedding(user), self.item_embedding(item)
        biases = self.user_bias[user], self.item_bias[item]
        scores = self.mean + biases[0] + biases[1] + (factors[0] * factors[1]).sum(dim=1)
        penalty = sum(one.square().sum(dim=1) for one in factors) + sum(one.square() for one in biases)
        return ((interaction[self.LABEL] - scores).square() + self.reg_weight * penalty).mean()
