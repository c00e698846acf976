"""Sequential models that learn at every position of a sequence, as SASRec's authors train it (ICDM'18, section III.E).

A user has the training items s_1 .. s_(n+1). The model reads the first n; its output h_t depends on s_1 .. s_t:

    loss = mean over positions t of  -log sigmoid(h_t . e(s_(t+1))) - log(1 - sigmoid(h_t . e(j_t)))

j_t is drawn for each position, uniformly among the items that the user does not have in the training split. Entry: a
position of a sequence of the batch. A user is one row: the last training item and the items before it, up to the
model's maximum length.

RecBole's losses (CE, BPR) have a row for each prefix of a sequence, and only its last position as an entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.data.fast_sampling import Negatives
from recbole_kd.data.observed import Observed
from recbole_kd.data.overlaid import Overlaid
from recbole_kd.data.splits import interactions_of
from recbole_kd.loss.ranking import sampled_loss

__all__ = ["AT_EVERY_POSITION", "at_every_position"]

#: Models whose output at a position does not depend on later items.
AT_EVERY_POSITION = ("GRU4Rec", "SASRec")


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
        self.loss_type = "BCE"
        observed = Observed(*interactions_of(dataset), dataset.user_num, self.n_items)
        if int(observed.counts.max()) >= self.n_items - 1:
            raise ValueError("some users have all items, so no negative can be drawn (loss_type BCE)")
        self._negatives = Negatives(self.n_items, observed, None)
        self._whole = False

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
        """Binary cross-entropy of each next item and a drawn negative; the mean over the batch's positions."""
        names: Any = self
        items, lengths = interaction[names.ITEM_SEQ], interaction[names.ITEM_SEQ_LEN]
        last = interaction[names.POS_ITEM_ID].unsqueeze(1)
        following = functional.pad(items[:, 1:], (0, 1)).scatter(1, (lengths - 1).unsqueeze(1), last)
        there = following > 0
        positives = following[there]
        users = interaction[names.USER_ID].unsqueeze(1).expand_as(items)[there]
        drawn = self._negatives.draw(users.cpu(), positives.cpu(), torch.default_generator).to(items.device)
        size = vars(self).get("prefix_size")  # set for a cut Matryoshka student
        outputs = self.outputs(items, lengths)[there][:, :size]
        scores = [(outputs * self.item_embedding(chosen)[:, :size]).sum(dim=1) for chosen in (positives, drawn)]
        return sampled_loss(*scores)


def at_every_position(model_class: type[Any]) -> type[Any]:
    """A subclass of one of :data:`AT_EVERY_POSITION` that is trained in this way; nothing else differs."""
    return type(model_class.__name__, (_EveryPosition, model_class), {"__module__": model_class.__module__})
