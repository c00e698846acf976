"""RecBole's batches as distillers see them."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction

from recbole_kd.trainer.batches import batch_of

NAMES = {
    "USER_ID_FIELD": "user",
    "ITEM_ID_FIELD": "item",
    "LABEL_FIELD": "label",
    "NEG_PREFIX": "neg_",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "length",
}


def pairs_of(**columns: list[float]) -> list[tuple[int, int]]:
    found = batch_of(Interaction({name: torch.tensor(values) for name, values in columns.items()}), NAMES, None)
    return list(zip(*(part.tolist() for part in found.distinct_pairs)))


def test_negatives_of_pairwise_batches_are_their_rows_users() -> None:
    assert pairs_of(user=[1, 2], item=[11, 12], neg_item=[21, 22]) == [(1, 11), (1, 21), (2, 12), (2, 22)]


def test_rows_labelled_0_are_negatives_of_their_own_users() -> None:
    """Drawn negatives follow their positives; a dataset's own labels (--threshold) come in any order."""
    expected = [(1, 11), (2, 12), (3, 13), (4, 14)]
    assert pairs_of(user=[1, 2, 3, 4], item=[11, 12, 13, 14], label=[1.0, 0.0, 1.0, 0.0]) == expected
    assert pairs_of(user=[1, 2, 3, 4], item=[11, 12, 13, 14], label=[0.0, 0.0, 1.0, 0.0]) == expected


def test_a_batch_may_have_no_negatives() -> None:
    assert pairs_of(user=[1, 1], item=[11, 11]) == [(1, 11)]


def test_a_sequences_next_item_has_its_negative() -> None:
    columns = {"user": [1, 2], "item": [11, 12], "neg_item": [21, 22], "item_list": [[3, 4], [5, 0]], "length": [2, 1]}
    found = batch_of(Interaction({name: torch.tensor(values) for name, values in columns.items()}), NAMES, None)
    assert found.negatives is not None
    assert found.negatives.tolist() == [21, 22]
    assert found.sequences is not None
    assert [part.tolist() for part in (found.sequences.items, found.sequences.lengths)] == [[[3, 4], [5, 0]], [2, 1]]
