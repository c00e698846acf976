"""Which items a sequential model is ranked among: all, or those that the user has not seen before the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import init_seed

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.data.summary import ranked
from recbole_kd.testing import write_known_sequences
from tests.data.test_sequence_states import SPLITS, in_time, splits_of


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_known_sequences(tmp_path / "data")


def again(data_path: Path) -> None:
    """User u3, whose items are i3, i4, ..., takes i3 once more, as the last one."""
    file = data_path / "known-sequences" / "known-sequences.inter"
    file.write_text(file.read_text() + "u3\ti3\t99\n")


def masked(splits: Splits, phase: str) -> list[tuple[str, str, set[str]]]:
    """User, target and the items that are left out, of each row that is evaluated."""
    loader = make_loaders(splits.dataset.config, splits)[{"valid": 1, "test": 2}[phase]]
    found = []
    for sequences, seen, rows, targets in loader:
        assert rows.tolist() == list(range(len(targets)))
        for row, (user, target) in enumerate(zip(sequences["user_id"].tolist(), targets.tolist())):
            items = seen[1][seen[0] == row].tolist() if seen is not None else []
            names = {splits.item_tokens[item] for item in items}
            found.append((splits.user_tokens[user], splits.item_tokens[target], names))
    return found


@pytest.mark.parametrize("evaluating", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_what_was_seen_before_the_target_is_left_out(evaluating: dict[str, Any], phase: str, data_path: Path) -> None:
    """However long ago: of a sequence of nine items the model reads the last six."""
    splits, known = splits_of(data_path, eval_args=evaluating), in_time(data_path)
    found = masked(splits, phase)
    assert len(found) == len(getattr(splits, phase))
    for user, target, items in found:
        assert items == set(known[user][: known[user].index(target)])


def test_a_target_that_was_seen_can_be_found(data_path: Path) -> None:
    """As of models without sequences: what is to be found is never left out."""
    again(data_path)
    splits = splits_of(data_path, repeatable=False)
    (target, items) = next(found[1:] for found in masked(splits, "test") if found[0] == "u3")
    assert target == "i3"
    assert items == {f"i{number}" for number in range(4, 12)}


def test_recboles_way_leaves_nothing_out(data_path: Path) -> None:
    splits = splits_of(data_path, repeatable=True)
    for phase, part in zip(("valid", "test"), make_loaders(splits.dataset.config, splits)[1:]):
        assert not any(items for _, _, items in masked(splits, phase))
        theirs = FullSortEvalDataLoader(splits.dataset.config, part._dataset, part._sampler)
        for ours, other in zip(part, theirs):
            assert ours[1] is None
            assert all(torch.equal(ours[0][name], other[0][name]) for name in other[0].columns)


def test_by_default_the_data_says_which_way(data_path: Path) -> None:
    """RecBole's way is for data in which users take an item again."""
    splits = splits_of(data_path)
    assert (splits.repeated, splits.repeatable) == (0, False)
    assert ranked(splits).startswith("No user has an item twice, so seen items are left out of rankings.")
    again(data_path)
    splits = splits_of(data_path)
    assert (splits.repeated, splits.repeatable) == (1, True)
    assert ranked(splits).startswith("1 interactions repeat an item of their user, so seen items are ranked too.")
    assert not any(items for _, _, items in masked(splits, "test"))
    assert (splits_of(data_path, repeatable=False).repeatable, splits_of(data_path, repeatable=True).repeatable) == (
        False,
        True,
    )


@pytest.mark.parametrize("repeatable", [True, False])
def test_candidates_are_drawn_among_what_is_ranked(repeatable: bool, data_path: Path) -> None:
    """With sampled negatives too: with RecBole's way any item but the target is one of them."""
    splits, known = splits_of(data_path, repeatable=repeatable, eval_args={"mode": "uni50"}), in_time(data_path)
    drawn_again = 0
    for part in make_loaders(splits.dataset.config, splits)[1:]:
        for candidates, _, _, _ in part:
            for user, item in zip(candidates["user_id"].tolist(), candidates["item_id"].tolist()):
                name = splits.item_tokens[item]
                last = -1 if part._sampler.phase == "test" else -2
                drawn_again += name in known[splits.user_tokens[user]][:last]
    assert (drawn_again > 0) == repeatable


def test_sampled_candidates_are_the_same_in_every_evaluation(data_path: Path) -> None:
    """Whatever the batch and the state of training are; another split seed and the other split have others."""

    def candidates(split_seed: int, split: int, eval_batch_size: int, drawn: int = 0) -> dict[int, list[int]]:
        given: dict[str, Any] = {"eval_args": {"mode": "uni50"}, "split_seed": split_seed, "repeatable": True}
        splits = splits_of(data_path, **given, eval_batch_size=eval_batch_size)
        loader = make_loaders(splits.dataset.config, splits)[split]
        np.random.seed(drawn)
        found: dict[int, list[int]] = {}
        for batch, _, _, _ in loader:
            for user, item in zip(batch["user_id"].tolist(), batch["item_id"].tolist()):
                found.setdefault(user, []).append(item)
        after = np.random.randint(1000)
        np.random.seed(drawn)
        assert after == np.random.randint(1000), "training draws what it would have drawn"
        return found

    once = candidates(1, 2, 200)
    assert once == candidates(1, 2, 900, drawn=5)
    assert all(len(items) == 51 for items in once.values())
    for other in (candidates(2, 2, 200), candidates(1, 1, 200)):
        assert other.keys() == once.keys()
        assert all(other[user][1:] != once[user][1:] for user in once)


def test_training_batches_are_recboles_either_way(data_path: Path) -> None:
    """Negatives too: what is ranked changes nothing in what is learned from."""
    epochs = []
    for repeatable in (True, False):
        splits = splits_of(data_path, repeatable=repeatable, loss_type="BPR")
        init_seed(7, True)
        epochs.append(list(make_loaders(splits.dataset.config, splits)[0]))
    for ours, theirs in zip(*epochs):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs.columns)
    assert "neg_item_id" in epochs[0][0].columns


def test_rows_are_numbered_without_a_list_of_them(data_path: Path) -> None:
    """RecBole's list of row numbers takes 40 bytes for each interaction."""
    splits = splits_of(data_path)
    for loader, part in zip(make_loaders(splits.dataset.config, splits), (splits.train, splits.valid, splits.test)):
        assert loader.sampler.data_source == range(len(part))
        assert vars(loader)["dataset"] == range(len(part))
