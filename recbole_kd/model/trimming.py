"""Sequential models without their padding: the same outputs for a fraction of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_kd.model.kinds import is_one_of

__all__ = ["trimmed"]

#: Models whose output depends only on the items of a sequence, not on the padding after them.
_TRIMMABLE = ("GRU4Rec", "SASRec", "STOSA")

#: Parts of a batch with sequences of similar length: most padding is gone, and matrix products are still large.
_PARTS = 8


class _Trimmed:
    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The model's forward in parts of sequences with similar length, each padded to its longest sequence."""
        order = item_seq_len.argsort()
        parts = order.chunk(_PARTS)
        # Read together, to wait for a GPU only once.
        longest: list[int] = item_seq_len[torch.stack([part[-1] for part in parts])].tolist()
        outputs = [
            super(_Trimmed, self).forward(item_seq[part, :length], item_seq_len[part])  # type: ignore[misc]
            for part, length in zip(parts, longest)
        ]
        return torch.cat(outputs)[order.argsort()]


def trimmed(model_class: type[Any]) -> type[Any]:
    """A subclass of a sequential model that skips padding; the class itself if padding affects its outputs.

    Outputs equal the model's up to rounding; dropout drops other entries, as with another seed.
    """
    if not is_one_of(model_class, _TRIMMABLE):
        return model_class
    return type(model_class.__name__, (_Trimmed, model_class), {"__module__": model_class.__module__})
