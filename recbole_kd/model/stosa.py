"""STOSA: sequential recommendation via stochastic self-attention (Fan et al., WWW'22).

Items and sequences are Gaussians, each with a mean and a diagonal covariance. Attention and scores use squared
2-Wasserstein distances, which for diagonal covariances are

    W(a, b) = ||mu_a - mu_b||^2 + ||sqrt(cov_a) - sqrt(cov_b)||^2

So they are the squared Euclidean distances of the vectors [mu, sqrt(cov)].

- Attention (eq. 5-8): probabilities softmax(-W(q_i, k_j) / sqrt(d_h)) over the past. The output's mean is the sum of
  the values' means weighted by the probabilities; its covariance is the sum of the values' covariances weighted by
  their squares.
- Feed-forward (eq. 9): separate for means and covariances, with ELU; residuals and layer normalisation as in SASRec.
- Covariances are ELU(x) + 1: of the table, of the projections of queries, keys and values, of each block's output.
- Loss (eq. 11-13), for a sequence s, its next item i and a negative j: -log sigmoid(W(s, j) - W(s, i)) plus
  `pvn_weight` times max(0, W(s, i) - W(i, j)), which keeps the positive nearer to the sequence than to the negative.

Deviations: RecBole's rows are prefixes with one next item; the authors' code takes the loss at every position, as here
with `every_position`. In the authors' code the last block's covariance has no ELU(x) + 1 and is clamped at 0 before the
root.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["STOSA", "squared_wasserstein", "wasserstein_attention"]


def positive(values: Tensor) -> Tensor:
    """ELU(x) + 1, above 0 except for rounding at very negative x."""
    return functional.elu(values) + 1


def joined(mean: Tensor, covariance: Tensor) -> Tensor:
    """[mu, sqrt(cov)]: (..., d), (..., d) -> (..., 2d)."""
    # The root's derivative is infinite at 0, which can occur by rounding.
    return torch.cat([mean, covariance.clamp(min=1e-12).sqrt()], dim=-1)


def squared_wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances of all pairs: (..., n, 2d), (..., m, 2d) of :func:`joined` -> (..., n, m)."""
    squares = first.square().sum(-1, keepdim=True), second.square().sum(-1, keepdim=True)
    distances = squares[0] + squares[1].transpose(-1, -2) - 2 * first @ second.transpose(-1, -2)
    return distances.clamp(min=0)


def wasserstein_attention(
    queries: Tensor, keys: Tensor, value_mean: Tensor, value_covariance: Tensor, mask: Tensor, dropout: nn.Module
) -> tuple[Tensor, Tensor]:
    """Output of the attention: (mean, covariance), both (..., n, d).

    Args:
        queries, keys: (..., n, 2d) of :func:`joined`.
        value_mean, value_covariance: (..., n, d).
        mask: added to the logits; broadcast to (..., n, n).
        dropout: applied to the probabilities.
    """
    logits = -squared_wasserstein(queries, keys) / math.sqrt(value_mean.shape[-1])
    probabilities = dropout((logits + mask).softmax(-1))
    return probabilities @ value_mean, probabilities.square() @ value_covariance


class _Block(nn.Module):
    """Wasserstein self-attention and the feed-forward network, each with residual and layer normalisation."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float, attention_dropout: float, eps: float) -> None:
        super().__init__()
        self.heads = heads
        kinds = ("mean", "covariance")
        self.project = nn.ModuleDict({kind: nn.Linear(size, 3 * size) for kind in kinds})
        self.output = nn.ModuleDict({kind: nn.Linear(size, size) for kind in kinds})
        self.attention_norm = nn.ModuleDict({kind: nn.LayerNorm(size, eps=eps) for kind in kinds})
        self.inner = nn.ModuleDict({kind: nn.Linear(size, inner) for kind in kinds})
        self.outer = nn.ModuleDict({kind: nn.Linear(inner, size) for kind in kinds})
        self.norm = nn.ModuleDict({kind: nn.LayerNorm(size, eps=eps) for kind in kinds})
        self.dropout = nn.Dropout(dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)

    def forward(self, mean: Tensor, covariance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L, d), (n, L, d) of the block's input -> of its output."""
        means = [self._by_head(part) for part in self.project["mean"](mean).chunk(3, -1)]
        covariances = [self._by_head(part) for part in positive(self.project["covariance"](covariance)).chunk(3, -1)]
        queries, keys = (joined(means[place], covariances[place]) for place in (0, 1))
        attended = wasserstein_attention(queries, keys, means[2], covariances[2], mask, self.attention_dropout)
        outputs = []
        for kind, given, new in zip(("mean", "covariance"), (mean, covariance), attended):
            new = self.output[kind](new.transpose(1, 2).flatten(2))
            hidden = self.attention_norm[kind](given + self.dropout(new))
            new = self.outer[kind](functional.elu(self.inner[kind](hidden)))
            outputs.append(self.norm[kind](hidden + self.dropout(new)))
        return outputs[0], positive(outputs[1])

    def _by_head(self, values: Tensor) -> Tensor:
        """(n, L, d) -> (n, heads, L, d / heads)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class STOSA(SequentialRecommender):
    """Stochastic self-attention: :meth:`forward` gives [mu, sqrt(cov)] of sequences, (n, 2d)."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        """
        Raises:
            ValueError: a size that the heads do not divide.
        """
        super().__init__(config, dataset)
        size, heads = config["hidden_size"], config["n_heads"]
        if size % heads:
            raise ValueError(f"hidden_size={size} is not a multiple of n_heads={heads}")
        dropout, eps = config["hidden_dropout_prob"], config["layer_norm_eps"]
        self.pvn_weight = config["pvn_weight"]
        self.initializer_range = config["initializer_range"]
        self.mean_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.covariance_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.mean_position = nn.Embedding(self.max_seq_length, size)
        self.covariance_position = nn.Embedding(self.max_seq_length, size)
        self.mean_norm, self.covariance_norm = nn.LayerNorm(size, eps=eps), nn.LayerNorm(size, eps=eps)
        self.dropout = nn.Dropout(dropout)
        attention = (config["inner_size"], dropout, config["attn_dropout_prob"], eps)
        self.blocks = nn.ModuleList(_Block(size, heads, *attention) for _ in range(config["n_layers"]))
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.initializer_range)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """[mu, sqrt(cov)] after the last item of each sequence: (n, L), (n,) -> (n, 2d)."""
        places = torch.arange(item_seq.shape[1], device=item_seq.device)
        mean = self.mean_embedding(item_seq) + self.mean_position(places)
        covariance = self.covariance_embedding(item_seq) + self.covariance_position(places)
        mean = self.dropout(self.mean_norm(mean))
        covariance = positive(self.dropout(self.covariance_norm(covariance)))
        mask = self.get_attention_mask(item_seq)
        for block in self.blocks:
            mean, covariance = block(mean, covariance, mask)
        last = item_seq_len - 1
        return joined(self.gather_indexes(mean, last), self.gather_indexes(covariance, last))

    def item_vectors(self) -> Tensor:
        """[mu, sqrt(cov)] of every item, (I, 2d)."""
        return joined(self.mean_embedding.weight, positive(self.covariance_embedding.weight))

    def vectors_of(self, items: Tensor) -> Tensor:
        """[mu, sqrt(cov)] of items, with gradient only to their rows: (...) -> (..., 2d)."""
        return joined(self.mean_embedding(items), positive(self.covariance_embedding(items)))

    def scores(self, vectors: Tensor, items: Optional[Tensor] = None) -> Tensor:
        """-W of sequences (n, 2d) with items (n, k), or with every item (n, I)."""
        if items is None:
            return -squared_wasserstein(vectors, self.item_vectors())
        return -squared_wasserstein(vectors.unsqueeze(1), self.vectors_of(items)).squeeze(1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """:meth:`loss_of` the batch's sequences."""
        sequences = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.loss_of(sequences, interaction[self.POS_ITEM_ID], interaction[self.NEG_ITEM_ID])

    def loss_of(self, sequence: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """BPR on distances, plus the regulariser on positives and negatives; the mean over sequences (n, 2d)."""
        item, negative = self.vectors_of(items), self.vectors_of(negatives)
        near, far = (sequence - item).square().sum(-1), (sequence - negative).square().sum(-1)
        loss = -functional.logsigmoid(far - near).mean()
        apart = (item - negative).square().sum(-1)
        return loss + self.pvn_weight * functional.relu(near - apart).mean()

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the sequences with one item each, (n,)."""
        vectors = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.scores(vectors, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of the sequences with every item, (n, I)."""
        return self.scores(self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))
