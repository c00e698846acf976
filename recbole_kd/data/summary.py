"""A summary of a run's data, and warnings about it, before training."""

from __future__ import annotations

from typing import Any

from recbole_kd.data.splits import Splits
from recbole_kd.text import columns

__all__ = ["ranked", "table", "warnings"]


def table(splits: Splits) -> str:
    """Rows read, dropped by each filter, and left in each split; users and items that the training split lacks."""
    data = splits.dataset
    read, dropped = data.steps[0][1], data.steps[1:]
    lines = [("rows read", read), *((f"dropped by {name}", rows) for name, rows in dropped)]
    if splits.sequential:
        lines.append(("rows that begin a user's sequence", read - sum(rows for _, rows in dropped) - len(data)))
    lines += [(f"rows to {name}", len(split)) for name, split in _parts(splits)]
    if splits.history is not splits.train:
        lines.append(("rows to fold in", len(splits.history) - len(splits.train)))
        for name, split in _parts(splits)[1:]:
            lines.append((f"users held out to {name}", len(split.inter_feat[split.uid_field].unique())))
    lines += [("users", data.user_num - 1), ("items", data.item_num - 1)]
    folded = splits.history is not splits.train  # training has none of these users; their history is folded in
    for kind, new in splits.unknown.items():
        lacking = "without a history" if folded and kind == "users" else "unknown to training"
        lines.append((f"{kind} of validation and test {lacking}", new))
    if not splits.sequential:
        within, across = splits.duplicates
        lines += [("pairs twice in training", within), ("pairs of validation and test also in training", across)]
    return "\n".join(columns([(name, f"{count:,}".rjust(12)) for name, count in lines]))


def ranked(splits: Splits) -> str:
    """A line that says which items are ranked, if the data decides it."""
    if splits.repeatable:
        return (
            f"{splits.repeated:,} interactions repeat an item of their user, so seen items are ranked too. "
            "--repeatable=False leaves them out."
        )
    return (
        "No user has an item twice, so seen items are left out of rankings. --repeatable=True ranks them too, as "
        "RecBole does."
    )


def warnings(splits: Splits) -> list[str]:
    """Warnings about likely mistakes: pairs on both sides of the split, users without training, low ratings."""
    config, found = splits.dataset.config, []
    users = splits.unknown["users"]
    if users:
        found.append(
            f"{users:,} users of the validation and test splits have no training interaction: no model can know them. "
            "--user_inter_num_interval filters users before the split."
        )
    if not splits.sequential:
        across = splits.duplicates[1]
        if across:
            found.append(
                f"{across:,} pairs of the validation and test splits are also in the training split: models "
                "have learned these targets. --rm_dup_inter=first keeps the first of equal pairs, "
                "--rm_dup_inter=last the last."
            )
    label, threshold = splits.train.label_field, config["threshold"]
    if threshold and label in splits.train.inter_feat and _draws_negatives(config):
        low = sum(int((split.inter_feat[label] == 0).sum()) for _, split in _parts(splits))
        ((field, value),) = threshold.items()
        if low:
            found.append(
                f"{low:,} interactions have a {field} below {value:g} and count as positive like the others. "
                f"--val_interval=\"{{{field}: '[{value:g},inf)'}}\" leaves them out."
            )
    return found


def _draws_negatives(config: Any) -> bool:
    """Whether a training row is a positive whatever its label, because negatives are drawn."""
    return bool((config["train_neg_sample_args"] or {}).get("distribution", "none") != "none")


def _parts(splits: Splits) -> list[tuple[str, Any]]:
    return [("train", splits.train), ("validate", splits.valid), ("test", splits.test)]
