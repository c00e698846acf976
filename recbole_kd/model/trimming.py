"""Sequential models without their padding: the same outputs for a fraction of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.model.kinds import class_names

__all__ = ["trimmed"]

#: Parts of a batch with sequences of similar length: most padding is gone, and matrix products are still large.
_PARTS = 8


def _by_length(lengths: Tensor) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """The order of sequences by length (n,), and its parts: rows, and the length of the longest among them."""
    order = lengths.argsort()
    parts = order.chunk(_PARTS)
    # Read together, to wait for a GPU only once.
    longest: list[int] = lengths[torch.stack([part[-1] for part in parts])].tolist()
    return order, list(zip(parts, longest))


class _Trimmed:
    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The model's forward in parts of sequences with similar length, each padded to its longest sequence."""
        order, parts = _by_length(item_seq_len)
        outputs = [
            super(_Trimmed, self).forward(item_seq[part, :length], item_seq_len[part])  # type: ignore[misc]
            for part, length in parts
        ]
        return torch.cat(outputs)[order.argsort()]


class _TrimmedAtAllPositions:
    def forward(self, item_seq: Tensor) -> Tensor:
        """The same for a model that returns its outputs at all positions, (n, L, d); those at padding are 0."""
        order, parts = _by_length((item_seq > 0).sum(dim=1))
        outputs = [
            functional.pad(
                super(_TrimmedAtAllPositions, self).forward(item_seq[part, :length]),  # type: ignore[misc]
                (0, 0, 0, item_seq.shape[1] - length),
            )
            for part, length in parts
        ]
        return torch.cat(outputs)[order.argsort()]


#: Models whose output depends only on the items of a sequence, not on the padding after them -> how they are trimmed.
_TRIMMABLE: dict[str, type[Any]] = {
    **dict.fromkeys(("GRU4Rec", "SASRec", "STOSA"), _Trimmed),
    "BERT4Rec": _TrimmedAtAllPositions,
}


def trimmed(model_class: type[Any]) -> type[Any]:
    """A subclass of a sequential model that skips padding; the class itself if padding affects its outputs.

    Outputs equal the model's up to rounding; dropout drops other entries, as with another seed.
    """
    kind = next((_TRIMMABLE[name] for name in class_names(model_class) if name in _TRIMMABLE), None)
    if kind is None:
        return model_class
    return type(model_class.__name__, (kind, model_class), {"__module__": model_class.__module__})
