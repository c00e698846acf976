"""NeuMF with squared loss, weighted pretrained towers and frozen towers, on RecBole's model.

He, Liao, Zhang, Nie, Hu, Chua: Neural Collaborative Filtering (WWW 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.general_recommender import NeuMF
from torch import Tensor

from recbole_kd.files.checkpoint import load_any

__all__ = ["NeuMFVariant"]


class NeuMFVariant(NeuMF):
    """NeuMF whose prediction is sigma(h . [GMF; MLP] + b).

    - ``loss_type: MSE``: (y - prediction)^2 (eq. 5) in place of the log loss (eq. 7); a mean over pairs.
    - ``pretrain_alpha``, with ``use_pretrain``: h starts as [alpha h_GMF; (1 - alpha) h_MLP] (eq. 13), b likewise.
      RecBole's h is not scaled. The paper's alpha is 0.5.
    - ``freeze_towers``: only h and b are trained.

    MLP-X of table 3 has X sizes in ``mlp_hidden_size`` and ``mf_train: false``; ``[]`` is MLP-0.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        self.pretrain_alpha: float = config["pretrain_alpha"]  # read while RecBole's constructor loads the towers
        super().__init__(config, dataset)
        self.squared = config["loss_type"] == "MSE"
        if config["freeze_towers"]:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("predict_layer."))

    def load_pretrain(self) -> None:
        """Loads the two pretrained towers and combines their last layers."""
        super().load_pretrain()
        shares = self.pretrain_alpha, 1 - self.pretrain_alpha
        files = self.mf_pretrain_path, self.mlp_pretrain_path
        layers = [load_any(str(file))[1]["state_dict"] for file in files]
        with torch.no_grad():
            for kind, joined in (("weight", self.predict_layer.weight), ("bias", self.predict_layer.bias)):
                parts = [share * layer[f"predict_layer.{kind}"] for share, layer in zip(shares, layers)]
                joined.copy_(torch.cat(parts, dim=1) if kind == "weight" else parts[0] + parts[1])

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A mean over the batch's pairs: a scalar."""
        if not self.squared:
            loss: Tensor = super().calculate_loss(interaction)
            return loss
        prediction = self.sigmoid(self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID]))
        return (interaction[self.LABEL] - prediction).square().mean()
