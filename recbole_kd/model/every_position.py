"""Sequential models that learn at every position of a whole sequence, as their authors train them.

RecBole's losses have a row for each prefix of a sequence, and only its last position as an entry. Here a user is one
row: the training items s_1 .. s_(n+1), of which the model reads the last, up to its maximum length.

- SASRec (ICDM'18, section III.E), GRU4Rec and STOSA (WWW'22) read s_1 .. s_n. The output h_t depends on s_1 .. s_t and
  predicts s_(t+1). The loss is the mean over positions t of

      CE:   -log softmax over all items i of (h_t . e_i), at s_(t+1)
      BCE:  -log sigmoid(h_t . e(s_(t+1))) - log(1 - sigmoid(h_t . e(j_t)))
      BPR:  -log sigmoid(h_t . e(s_(t+1)) - h_t . e(j_t))            (STOSA: its own loss, on distances)

  j_t is drawn for each position, uniformly among the items that the user does not have in the training split.
- BERT4Rec (CIKM'19, sections 3.5 and 3.6) also reads later items. Each item of s_1 .. s_(n+1) is hidden by a mask with
  probability `mask_ratio`. In a share `ft_ratio` of the rows, and where chance hides nothing, the last item is hidden
  instead, alone. The loss is the mean over hidden items of

      CE:   -log softmax over all items i of (h_t . e_i + b_i), at s_t

Entry: a position (BERT4Rec: a hidden one) of a sequence of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.data.fast_sampling import Negatives
from recbole_kd.data.observed import Observed
from recbole_kd.data.overlaid import Overlaid
from recbole_kd.data.splits import interactions_of
from recbole_kd.loss.ranking import sampled_loss
from recbole_kd.model.kinds import is_one_of

__all__ = ["AT_EVERY_POSITION", "asks_for_every_position", "at_every_position"]

#: Models that can learn in this way -> their losses.
AT_EVERY_POSITION: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("GRU4Rec", "SASRec"), ("CE", "BPR", "BCE")),
    "STOSA": ("BPR",),
    "BERT4Rec": ("CE",),
}


def asks_for_every_position(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a sequential model ask for this: by ``every_position``, or by BCE, which has no other way."""
    return bool(settings.get("every_position")) or settings.get("loss_type") == "BCE"


class _EveryPosition:
    n_items: int
    max_seq_length: int
    item_embedding: Any

    def __init__(self, config: Any, dataset: Any) -> None:
        """
        Raises:
            ValueError: a user for whom no negative item is left.
        """
        super().__init__(Overlaid(config, loss_type="BPR"), dataset)  # type: ignore[call-arg]
        self.objective = self.loss_type = config["loss_type"] or "BPR"  # STOSA has no such setting
        self._whole = False
        if self.objective != "CE":  # the others draw a negative for each position
            observed = Observed(*interactions_of(dataset), dataset.user_num, self.n_items)
            if int(observed.counts.max()) >= self.n_items - 1:
                raise ValueError(
                    f"some users have all items, so no negative can be drawn (every_position, loss {self.objective})"
                )
            self._negatives = Negatives(self.n_items, observed, None)

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """The outputs at the ends of sequences, as in RecBole; inside :meth:`outputs`, at all positions."""
        if self._whole:
            return functional.pad(output, (0, 0, 0, self.max_seq_length - output.shape[1]))
        ends: Tensor = super().gather_indexes(output, gather_index)  # type: ignore[misc]
        return ends

    def outputs(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(n, L, d) the output at each position of sequences (n, L)."""
        self._whole = True
        try:
            # The class's own forward: `self.forward` may be a shared one, which returns the ends only.
            outputs: Tensor = type(self).forward(self, items, lengths)  # type: ignore[attr-defined]
        finally:
            self._whole = False
        return outputs

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The loss of each next item; the mean over the batch's positions."""
        names: Any = self
        items, lengths = interaction[names.ITEM_SEQ], interaction[names.ITEM_SEQ_LEN]
        last = interaction[names.POS_ITEM_ID].unsqueeze(1)
        following = functional.pad(items[:, 1:], (0, 1)).scatter(1, (lengths - 1).unsqueeze(1), last)
        places = (following.flatten() > 0).nonzero().squeeze(1)
        positives, outputs = following.flatten()[places], self.outputs(items, lengths).flatten(0, 1)[places]
        if self.objective == "CE":
            size = self._size
            logits = outputs[:, :size] @ self.item_embedding.weight[: self.n_items, :size].t()
            return functional.cross_entropy(logits, positives)
        users = interaction[names.USER_ID][places // items.shape[1]]
        users, items = torch.stack([users, positives]).cpu()
        drawn = self._negatives.draw(users, items, torch.default_generator)
        return self.loss_of(outputs, positives, drawn.to(outputs.device))

    @property
    def _size(self) -> int | None:
        """How many numbers of the vectors count; set for a cut Matryoshka student."""
        return vars(self).get("prefix_size")

    def loss_of(self, outputs: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """BPR or BCE of outputs (n, d) with their next items and with negatives, both (n,); the mean."""
        size = self._size
        near, far = (
            (outputs[:, :size] * self.item_embedding(chosen)[:, :size]).sum(dim=1) for chosen in (items, negatives)
        )
        return sampled_loss(near, far) if self.objective == "BCE" else -functional.logsigmoid(near - far).mean()


class _EveryPositionOfSTOSA(_EveryPosition):
    def loss_of(self, outputs: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """STOSA's own loss."""
        loss: Tensor = super(_EveryPosition, self).loss_of(outputs, items, negatives)  # type: ignore[misc]
        return loss


class _HiddenPositions:
    n_items: int
    item_embedding: Any
    output_bias: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)  # type: ignore[call-arg]
        self._last_alone = config["ft_ratio"] or 0.0

    def hidden(self, items: Tensor) -> Tensor:
        """(n, L) which items of sequences (n, L), padded by zeros, are hidden; drawn anew in each call."""
        names: Any = self
        there = items > 0
        draws = torch.rand(len(items), items.shape[1] + 1, generator=torch.default_generator).to(items.device)
        hidden = (draws[:, 1:] < names.mask_ratio) & there
        alone = (draws[:, :1] < self._last_alone) | ~hidden.any(dim=1, keepdim=True)
        last = torch.arange(items.shape[1], device=items.device) == there.sum(dim=1, keepdim=True) - 1
        return torch.where(alone, last, hidden)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Cross-entropy of the hidden items among all; the mean over the batch's hidden positions."""
        names: Any = self
        items, lengths = interaction[names.ITEM_SEQ], interaction[names.ITEM_SEQ_LEN].unsqueeze(1)
        whole = functional.pad(items, (0, 1)).scatter(1, lengths, interaction[names.POS_ITEM_ID].unsqueeze(1))
        # A sequence that is now too long loses its oldest item.
        places = torch.arange(items.shape[1], device=items.device) + (lengths == items.shape[1]).long()
        whole = whole.gather(1, places)
        hidden = self.hidden(whole)
        outputs = names.forward(whole.masked_fill(hidden, names.mask_token))
        places = hidden.flatten().nonzero().squeeze(1)
        logits = outputs.flatten(0, 1)[places] @ self.item_embedding.weight[: self.n_items].t() + self.output_bias
        return functional.cross_entropy(logits, whole.flatten()[places])


def at_every_position(model_class: type[Any]) -> type[Any]:
    """A subclass of one of :data:`AT_EVERY_POSITION` that is trained in this way; nothing else differs."""
    kind: type[Any] = _EveryPosition
    if is_one_of(model_class, ("BERT4Rec",)):
        kind = _HiddenPositions
    elif is_one_of(model_class, ("STOSA",)):
        kind = _EveryPositionOfSTOSA
    return type(model_class.__name__, (kind, model_class), {"__module__": model_class.__module__})
