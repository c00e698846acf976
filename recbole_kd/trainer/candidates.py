"""Scores of sampled candidates: a sequence is encoded once, not once for each candidate, and a graph once for all."""

from __future__ import annotations

from typing import Any, Optional

import torch
from recbole.data.dataloader import NegSampleEvalDataLoader
from torch import Tensor

from recbole_kd.contracts import Sequences
from recbole_kd.student.readers import (
    capabilities,
    is_sequential,
    next_item_scores,
    sequence_vectors,
    shared_propagation,
)

__all__ = ["CandidateMixin", "candidate_scores"]

#: Sequences that are encoded at a time.
_SEQUENCES = 1024


class CandidateMixin:
    """A trainer of RecBole that evaluates among candidates with one propagation of a graph model, not one a batch.

    Sequential models are scored by :func:`candidate_scores`.
    """

    model: Any
    config: Any
    device: Any
    tot_item_num: int

    def evaluate(self, eval_data: Any, *given: Any, **named: Any) -> Any:
        own = super().evaluate  # type: ignore[misc]
        if not isinstance(eval_data, NegSampleEvalDataLoader) or is_sequential(self.model):
            return own(eval_data, *given, **named)
        with shared_propagation(self.model, gradient=False):
            return own(eval_data, *given, **named)

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        interaction, rows, positive_rows, positive_items = batched_data
        found = None if rows is None else candidate_scores(self.model, interaction.to(self.device))
        if found is None:
            return super()._neg_sample_batch_eval(batched_data)  # type: ignore[misc]
        scores = found.new_full((int(positive_rows[-1]) + 1, self.tot_item_num), -torch.inf)
        scores[rows, interaction[self.config["ITEM_ID_FIELD"]]] = found
        return interaction, scores, positive_rows, positive_items


@torch.no_grad()
def candidate_scores(model: Any, interaction: Any) -> Optional[Tensor]:
    """Scores (n,) of the item of each row after the sequence of the row; equal sequences in a run are encoded once.

    None if the model, or a prefix of it, has no known vectors of sequences; then RecBole scores each row by itself.

    Args:
        model: a trained recommender.
        interaction: RecBole's batch of n rows, on the model's device.
    """
    if "sequence_vectors" not in capabilities(model) or vars(model).get("prefix_size") is not None:
        return None
    items, lengths = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]
    rows = torch.cat([items, lengths.unsqueeze(1)], dim=1)
    begins = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    begins[1:] = (rows[1:] != rows[:-1]).any(dim=1)
    first = begins.nonzero().squeeze(1)
    vectors = [sequence_vectors(model, Sequences(items[part], lengths[part])) for part in first.split(_SEQUENCES)]
    of_rows = torch.cat(vectors)[begins.cumsum(0) - 1]
    return next_item_scores(model, of_rows, interaction[model.ITEM_ID].unsqueeze(1)).squeeze(1)
