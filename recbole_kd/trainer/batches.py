"""RecBole's batches as distillers see them: observed pairs, negatives, sequences."""

from __future__ import annotations

from typing import Any, Optional

from recbole_kd.contracts import Batch, Sequences
from recbole_kd.data.observed import Observed

__all__ = ["batch_of"]


def batch_of(interaction: Any, config: Any, observed: Optional[Observed]) -> Batch:
    """The observed pairs of RecBole's interaction, with its negatives and sequences if there are any.

    Args:
        interaction: a batch of RecBole's loader.
        config: the run's settings, for the names of columns.
        observed: the training split, for batches that hold users only.
    """
    columns = interaction.columns
    users = interaction[config["USER_ID_FIELD"]]
    if config["ITEM_ID_FIELD"] not in columns:  # an autoencoder's batch holds users, with all their items
        assert observed is not None, "a run that distils gives its training split"
        return Batch(*observed.pairs_of(users))
    items = interaction[config["ITEM_ID_FIELD"]]
    negative, label = config["NEG_PREFIX"] + config["ITEM_ID_FIELD"], config["LABEL_FIELD"]
    history = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    if history in columns:
        sequences = Sequences(interaction[history], interaction[config["ITEM_LIST_LENGTH_FIELD"]])
        return Batch(users, items, interaction[negative] if negative in columns else None, sequences)
    if negative in columns:
        # With several negatives for each pair RecBole repeats the positives, block by block.
        return Batch(users, items, interaction[negative])
    if label in columns:
        positive = interaction[label] > 0
        chosen, others = (rows.nonzero().squeeze(1) for rows in (positive, ~positive))
        return Batch(users[chosen], items[chosen], items[others], negative_users=users[others])
    return Batch(users, items)
