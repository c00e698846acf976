"""The sampler of negatives draws what RecBole's draws."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.sampler import Sampler

from recbole_kd.data.negatives import ObservedSampler
from recbole_kd.data.observed import Observed

USERS, ITEMS = 30, 12
PHASES = ["train", "valid", "test"]


def split(count: int, seed: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randint(1, high, (count,), generator=generator) for high in (USERS, ITEMS))
    return SimpleNamespace(
        uid_field="user",
        iid_field="item",
        user_num=USERS,
        item_num=ITEMS,
        inter_feat={"user": users, "item": items},
        config={"LIST_SUFFIX": "_list"},
    )


SPLITS = [split(120, 1), split(20, 2), split(20, 3)]


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize("phase", PHASES)
def test_it_draws_what_recbole_draws(distribution: str, phase: str) -> None:
    users = np.random.RandomState(0).randint(1, USERS, 500)
    drawn = []
    for kind in (Sampler, ObservedSampler):
        sampler = kind(PHASES, SPLITS, distribution).set_phase(phase)
        np.random.seed(5)
        mixed = sampler.sample_by_user_ids(users, None, 3)
        one_user = sampler.sample_by_user_ids(np.full(7, 4), None, 2)
        drawn.append((mixed, one_user, np.random.random()))
    (ours, ours_of_one, after), (theirs, theirs_of_one, after_theirs) = drawn
    assert torch.equal(ours, theirs)
    assert torch.equal(ours_of_one, theirs_of_one)
    assert after == after_theirs, "the generator is left where RecBole leaves it"


def test_a_phase_leaves_out_what_came_before_it() -> None:
    sampler = ObservedSampler(PHASES, SPLITS)
    for count, phase in enumerate(PHASES, start=1):
        known = {
            pair
            for part in SPLITS[:count]
            for pair in zip(part.inter_feat["user"].tolist(), part.inter_feat["item"].tolist())
        }
        used = sampler.set_phase(phase).used_ids
        parts = (*used.before, used.own)
        assert {pair for part in parts for pair in zip(part.user_ids.tolist(), part.indices.tolist())} == known
        every = torch.cartesian_prod(torch.arange(USERS), torch.arange(ITEMS))
        assert {tuple(pair) for pair in every[used.contains(*every.t())].tolist()} == known
        users = torch.arange(1, USERS).repeat(50)
        drawn = sampler.set_phase(phase).sample_by_user_ids(users.numpy(), None, 1)
        assert not known & set(zip(users.tolist(), drawn.tolist()))
        assert 0 not in drawn


def test_all_phases_share_what_is_known_of_the_first() -> None:
    users, items = SPLITS[0].inter_feat.values()
    known = Observed(users, items, USERS, ITEMS)
    sampler = ObservedSampler(PHASES, SPLITS, first=known)
    assert sampler.set_phase("train").used_ids.own is known
    assert sampler.set_phase("test").used_ids.before[0] is known


def test_a_pair_of_two_splits_is_one_item_of_its_user() -> None:
    part = split(0, 0)
    part.inter_feat = {"user": torch.full((ITEMS - 2,), 3), "item": torch.arange(1, ITEMS - 1)}
    ObservedSampler(PHASES, [part] * 3)  # the last item is left to draw


def test_a_user_of_everything_is_refused_as_recbole_refuses() -> None:
    everything = split(0, 0)
    everything.inter_feat = {"user": torch.full((ITEMS - 1,), 3), "item": torch.arange(1, ITEMS)}
    for kind in (Sampler, ObservedSampler):
        with pytest.raises(ValueError, match="interacted with all items"):
            kind(["train"], [everything])


def test_pairs_among_some_users_and_items_are_those_of_both() -> None:
    pairs = Observed(torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 1]), 4, 3)
    users, items = torch.tensor([False, True, True, False]), torch.tensor([False, False, True])
    found = {
        marks: list(zip(one.user_ids.tolist(), one.indices.tolist()))
        for marks, one in (
            ("both", pairs.among(users, items)),
            ("users", pairs.among(users, None)),
            ("items", pairs.among(None, items)),
            ("neither", pairs.among(None, None)),
        )
    }
    assert found == {
        "both": [(1, 2), (2, 2)],
        "users": [(1, 1), (1, 2), (2, 2)],
        "items": [(1, 2), (2, 2)],
        "neither": [(1, 1), (1, 2), (2, 2), (3, 1)],
    }
