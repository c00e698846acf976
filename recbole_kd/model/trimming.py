"""Sequential models without their padding: the same outputs for a fraction of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["trimmed"]

#: Models whose output depends on the items of a sequence alone, not on the padding that follows them.
_TRIMMABLE = ("GRU4Rec", "SASRec", "STOSA")

#: Parts of a batch, of sequences of like length: most of the padding is gone, and each still fills matrix products.
_PARTS = 8


class _Trimmed:
    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The model's forward over parts of sequences of like length, each as long as its longest."""
        order = item_seq_len.argsort()
        parts = order.chunk(_PARTS)
        # Read together: a GPU is waited for once.
        longest: list[int] = item_seq_len[torch.stack([part[-1] for part in parts])].tolist()
        outputs = [
            super(_Trimmed, self).forward(item_seq[part, :length], item_seq_len[part])  # type: ignore[misc]
            for part, length in zip(parts, longest)
        ]
        return torch.cat(outputs)[order.argsort()]


def trimmed(model_class: type[Any]) -> type[Any]:
    """A subclass of a sequential model that computes sequences without padding; the class itself where it would matter.

    Outputs are the model's up to rounding; dropout falls on other entries, as with another seed.
    """
    if not any(base.__name__ in _TRIMMABLE for base in model_class.__mro__):
        return model_class
    return type(model_class.__name__, (_Trimmed, model_class), {"__module__": model_class.__module__})
