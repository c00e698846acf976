"""What users had, in time: all that came before a row, however long ago."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.data.dataset import BEFORE
from recbole_kd.data.sequence_states import Past
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.testing import known_sequences_settings, write_known_sequences

#: Splits of sequences, each with as many rows of a user in a part as its shares say.
SPLITS: dict[str, dict[str, Any]] = {
    "the last two": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "by shares of each user": {"split": {"RS": [0.4, 0.3, 0.3]}, "order": "TO", "group_by": "user", "mode": "full"},
    "by shares of all": {"split": {"TS": [0.5, 0.25, 0.25]}, "order": "TO", "mode": "full"},
}


def splits_of(data_path: Path, model: str = "GRU4Rec", **settings: Any) -> Splits:
    given = known_sequences_settings(data_path, **settings)
    return Splits(KDConfig(model, "known-sequences", config_dict=given))


def in_time(data_path: Path) -> dict[str, list[str]]:
    """User -> items, in time, of the file itself."""
    lines = (data_path / "known-sequences" / "known-sequences.inter").read_text().splitlines()[1:]
    rows = sorted((line.split("\t") for line in lines), key=lambda row: float(row[2]))
    users: dict[str, list[str]] = {}
    for user, item, _ in rows:
        users.setdefault(user, []).append(item)
    return users


@pytest.mark.parametrize("evaluating", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("longest", [2, 6, 50])
def test_all_that_came_before_a_row(evaluating: dict[str, Any], longest: int, tmp_path: Path) -> None:
    """Of every row of every part: the items before its target, those included that the model does not read."""
    data = write_known_sequences(tmp_path)
    file = data / "known-sequences" / "known-sequences.inter"
    file.write_text(file.read_text() + "u3\ti3\t6.5\nu3\ti3\t6.75\nlonely\ti1\t3\n")  # an item again, and one alone
    splits, known = splits_of(data, eval_args=evaluating, MAX_ITEM_LIST_LENGTH=longest), in_time(data)
    seen: dict[str, int] = {}
    for part in (splits.train, splits.valid, splits.test):
        users, before = part.inter_feat["user_id"], part.timed[BEFORE]
        rows, items = splits.past.before(users, before)
        for row, (user, count) in enumerate(zip(users.tolist(), before.tolist())):
            name = splits.user_tokens[user]
            target = splits.item_tokens[part.inter_feat["item_id"][row]]
            assert [splits.item_tokens[item] for item in items[rows == row]] == known[name][:count]
            assert target == known[name][count]
            seen[name] = seen.get(name, 0) + 1
    assert seen == {user: len(items) - 1 for user, items in known.items() if len(items) > 1}


def test_nobody_and_nothing() -> None:
    past = Past(torch.tensor([0, 0, 0, 2]), torch.tensor([7, 5]))
    rows, items = past.before(torch.tensor([2, 1, 2]), torch.tensor([1, 0, 2]))
    assert (rows.tolist(), items.tolist()) == ([0, 2, 2], [7, 7, 5])
