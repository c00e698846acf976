"""Models that rank users whom they were not trained on (``--held_out_users``), by the items that these have had.

What a model learns is learned of the training users alone. What it knows when it ranks is the history: the training
split, and what is folded in of the users who are held out.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_kd.model.kinds import is_one_of

__all__ = ["RANKING_HELD_OUT", "having_had", "ranks_held_out", "with_history"]

#: They read the rows of a batch's users, and batches are of training users.
_AUTOENCODERS = (
    *("MultiVAE", "MultiDAE", "MultiVAEVariant", "MultiDAEVariant"),
    *("RecVAE", "MacridVAE", "RaCT", "DiffRec", "LDiffRec"),
)
#: They learn weights of items from the matrix of all rows, and rank by a user's row.
_LINEAR = ("EASE", "ItemKNN", "SLIMElastic", "ADMMSLIM")
#: Those of them that an empty row changes: they take means over rows.
_MEANS_OVER_ROWS = ("SLIMElastic", "ADMMSLIM")

#: Names of the models, from which others may be derived.
RANKING_HELD_OUT = (*_AUTOENCODERS, *_LINEAR, "Pop", "Random")


def ranks_held_out(kind: type[Any]) -> bool:
    """Whether a class of models ranks users whom it was not trained on."""
    return is_one_of(kind, RANKING_HELD_OUT)


def with_history(kind: type[Any], config: Any, dataset: Any) -> Any:
    """A model of the class, on a training split; where users are held out, it knows their history and did not learn it.

    Args:
        kind: the class; where users are held out, one of those that :func:`ranks_held_out`.
        dataset: the training split; ``history``, if it has one, are its rows and those that are folded in.
    """
    history = getattr(dataset, "history", None)
    if history is None:
        return kind(config, dataset)
    if is_one_of(kind, _AUTOENCODERS):
        return kind(config, history)
    model = kind(config, _of_trained_users(dataset) if is_one_of(kind, _MEANS_OVER_ROWS) else dataset)
    if is_one_of(kind, _LINEAR):
        _rank_by(model, history.inter_matrix(form="csr").astype(np.float32))
    return model


def having_had(model: Any, items: Tensor) -> Any:
    """A model that :func:`ranks_held_out`, whose user 0 is one who has had these items (n,); it shares the weights."""
    from scipy.sparse import csr_matrix  # late: `list` reads this module, and does without SciPy

    had, other = items.unique(), copy.copy(model)
    if is_one_of(type(model), _AUTOENCODERS):
        rows = had.unsqueeze(0).to(model.history_item_id.device)
        other.history_item_id, other.history_item_value = rows, torch.ones_like(rows, dtype=torch.float32)
    elif is_one_of(type(model), _LINEAR):
        entries = np.ones(len(had), dtype=np.float32), (np.zeros(len(had), dtype=np.int64), had.numpy())
        _rank_by(other, csr_matrix(entries, shape=(1, model.n_items)))
    return other


def _rank_by(model: Any, matrix: Any) -> None:
    """Makes a linear model rank by these rows of users, (users, items) CSR."""
    model.interaction_matrix = matrix
    if hasattr(model, "pred_mat"):  # ItemKNN multiplies at once
        model.pred_mat = matrix.dot(model.w).tolil()


def _of_trained_users(dataset: Any) -> Any:
    """A training split whose matrix has rows of padding and of the training users alone, as if there were no others."""
    rows = np.append(0, np.unique(dataset.inter_feat[dataset.uid_field].numpy()))
    alone = copy.copy(dataset)
    alone.inter_matrix = lambda **asked: dataset.inter_matrix(**{**asked, "form": "csr"})[rows]
    return alone
