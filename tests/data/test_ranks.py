"""The rank bank: what it holds, what it never holds, and how it is kept on disk."""

from __future__ import annotations

import os
import resource
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import RankBankCache, build_rank_bank, build_user_bank, ranks_of, require_unobserved
from recbole_kd.errors import UserError


def split(users: int, items: int, share: float = 0.4, seed: int = 0) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    user_ids, item_ids = (torch.rand(users - 1, items - 1, generator=generator) < share).nonzero().add(1).unbind(1)
    return Observed(user_ids, item_ids, users, items)


def ranked_by_sorting(scores: Tensor, observed: Observed, k: int) -> list[list[int]]:
    """The definition: a user's unobserved items by falling score."""
    bank = [[0] * k]
    for user in range(1, observed.users):
        own = set(observed.indices[observed.offsets[user] : observed.offsets[user + 1]].tolist())
        unobserved = [item for item in range(1, observed.items) if item not in own]
        best = sorted(unobserved, key=lambda item: -float(scores[user, item]))[:k]
        bank.append(best + [0] * (k - len(best)))
    return bank


@given(
    users=st.integers(2, 8),
    items=st.integers(2, 12),
    k=st.integers(1, 14),
    share=st.floats(0, 1),
    block_users=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_banks_of_items_and_of_users_are_what_sorting_gives_whatever_the_block(
    users: int, items: int, k: int, share: float, block_users: int, seed: int
) -> None:
    observed = split(users, items, share, seed)
    scores = torch.randn(users, items, generator=torch.Generator().manual_seed(seed))
    bank = build_rank_bank(lambda block: scores[block], observed, k, block_users)
    assert bank.dtype == torch.int32
    assert bank.tolist() == ranked_by_sorting(scores, observed, k)
    of_items = build_user_bank(lambda block: scores[block], observed, k, block_users)
    assert of_items.dtype == torch.int32
    assert of_items.tolist() == ranked_by_sorting(scores.t(), observed.transposed(), k)


@given(levels=st.integers(1, 4), k=st.integers(1, 8), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_of_equal_scores_the_smaller_id_comes_first_so_that_a_short_list_begins_a_longer_one(
    levels: int, k: int, seed: int
) -> None:
    observed = split(7, 12, seed=seed)
    scores = torch.randint(0, levels, (7, 12), generator=torch.Generator().manual_seed(seed)).float()
    whole = build_rank_bank(lambda users: scores[users], observed, 12)
    assert whole.tolist() == ranked_by_sorting(scores, observed, 12), "Python's sort keeps the order of equal ones"
    assert torch.equal(build_rank_bank(lambda users: scores[users], observed, k, block_users=2), whole[:, :k])
    of_items = build_user_bank(lambda users: scores[users], observed, k, block_users=2)
    assert of_items.tolist() == ranked_by_sorting(scores.t(), observed.transposed(), k)


@given(levels=st.integers(1, 40), k=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_rank_counts_the_unobserved_items_with_a_higher_score(levels: int, k: int, seed: int) -> None:
    observed, generator = split(7, 12, seed=seed), torch.Generator().manual_seed(seed)
    scores, others = (torch.randint(0, levels, (7, 12), generator=generator).float() for _ in range(2))
    lists = build_rank_bank(lambda users: others[users], observed, k)
    ranks = ranks_of(lists, lambda users: scores[users], observed)
    for user in range(1, 7):
        unobserved = [item for item in range(1, 12) if not observed.contains(torch.tensor(user), torch.tensor(item))]
        for item, rank in zip(lists[user].tolist(), ranks[user].tolist()):
            if item:
                assert rank == 1 + sum(bool(scores[user, other] > scores[user, item]) for other in unobserved)


def test_scores_that_are_not_numbers_are_refused() -> None:
    scores = torch.rand(5, 9)
    scores[2, 3] = torch.nan
    with pytest.raises(UserError, match=r"1 of 4 rankings have scores that are not numbers.*teacher\.learning_rate"):
        build_rank_bank(lambda users: scores[users], split(5, 9, share=0.0), 3)


def test_padding_is_in_no_list_even_with_the_best_score() -> None:
    observed = split(5, 9)
    scores = torch.zeros(5, 9)
    scores[:, 0] = torch.inf
    bank = build_rank_bank(lambda users: scores[users].clone(), observed, 3)
    assert (bank[1:] > 0).all()
    assert not bank[0].any()


def test_users_are_ranked_for_items_by_exchanging_the_roles() -> None:
    observed = split(6, 8)
    scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    bank = build_rank_bank(lambda items: scores.t()[items], observed.transposed(), 4)
    assert bank.tolist() == ranked_by_sorting(scores.t(), observed.transposed(), 4)


# Lists that cannot be filled


def test_enough_unobserved_items_raise_nothing() -> None:
    require_unobserved(Observed(torch.tensor([1]), torch.tensor([1]), 3, 5), "rrd.pool", 3)


@pytest.mark.parametrize(
    ("pairs", "count", "below", "message"),
    [
        ([(1, 1)], 5, 0, r"rrd\.pool=5 is more than the 4 items there are; lower rrd\.pool\."),
        ([(1, 1), (1, 2)], 3, 0, r"1 of 2 users have fewer unobserved items, the least 2; lower rrd\.pool\."),
        ([(1, 1)], 2, 2, r"below the 2 of other: 1 of 2 users .* the least 1; lower rrd\.pool or other\."),
        ([(2, item) for item in (1, 2, 3, 4)], 2, 0, r"1 users are observed with all 4 items.*user_inter_num_interval"),
    ],
)
def test_too_few_unobserved_items_are_refused_with_the_count_and_the_setting(
    pairs: list[tuple[int, int]], count: int, below: int, message: str
) -> None:
    users, items = torch.tensor(pairs).unbind(1)
    with pytest.raises(UserError, match=message):
        require_unobserved(Observed(users, items, 3, 5), "rrd.pool", count, below, "other")


def test_the_message_speaks_of_items_where_users_are_ranked() -> None:
    observed = Observed(torch.tensor([1, 2, 3]), torch.tensor([1, 1, 2]), 4, 3).transposed()
    with pytest.raises(UserError, match=r"1 of 2 items have fewer unobserved users, the least 1; lower ir_rrd\.pool\."):
        require_unobserved(observed, "ir_rrd.pool", 2, roles=("items", "users"))


# On disk


@pytest.fixture
def cache(tmp_path: Path) -> RankBankCache:
    return RankBankCache(str(tmp_path / "ranks"))


def bank_of(k: int) -> Tensor:
    return torch.arange(4 * k, dtype=torch.int32).view(4, k)


def test_a_bank_comes_back_as_it_was_kept(cache: RankBankCache) -> None:
    cache.save("abc", bank_of(5))
    loaded = cache.load("abc", 5)
    assert loaded is not None
    assert loaded.dtype == torch.int32
    assert torch.equal(loaded, bank_of(5))


def test_a_longer_bank_serves_a_shorter_one(cache: RankBankCache) -> None:
    cache.save("abc", bank_of(5))
    shorter = cache.load("abc", 3)
    assert shorter is not None
    assert torch.equal(shorter, bank_of(5)[:, :3])
    assert cache.load("abc", 6) is None


def test_another_digest_finds_nothing(cache: RankBankCache) -> None:
    assert cache.load("abc", 5) is None
    cache.save("abc", bank_of(5))
    assert cache.load("abd", 5) is None
    assert cache.load("ab", 5) is None
    assert cache.load("ab.", 5) is None


def test_what_is_done_to_a_loaded_bank_stays_off_the_disk(cache: RankBankCache) -> None:
    cache.save("abc", bank_of(5))
    loaded = cache.load("abc", 5)
    assert loaded is not None
    loaded.zero_()
    again = cache.load("abc", 5)
    assert again is not None
    assert torch.equal(again, bank_of(5))


def test_only_whole_files_are_left_in_the_folder(cache: RankBankCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    cache.save("abc", bank_of(5))
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*checkpoint_dir"):
        cache.save("abd", bank_of(5))
    assert os.listdir(cache.folder) == ["abc-5.npy"]


def test_a_disk_that_fills_up_on_the_way_says_why(cache: RankBankCache) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"abc-1000\.npy': File too large.*checkpoint_dir"):
            cache.save("abc", bank_of(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(cache.folder) == []


def test_what_a_killed_process_left_is_removed_by_the_next_bank(cache: RankBankCache) -> None:
    left = Path(cache.folder) / f".{secrets.token_hex(8)}.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    cache.save("abc", bank_of(5))
    assert os.listdir(cache.folder) == ["abc-5.npy"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "float"])
def test_a_damaged_or_foreign_file_counts_as_missing(cache: RankBankCache, damage: str) -> None:
    cache.save("abc", bank_of(5))
    path = os.path.join(cache.folder, "abc-5.npy")
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) - 7)
    elif damage == "empty":
        os.truncate(path, 0)
    elif damage == "text":
        Path(path).write_text("not an array")
    elif damage == "pickle":
        np.save(path, np.array([{"not": "an array"}], dtype=object), allow_pickle=True)
    else:
        np.save(path, np.zeros((4, 5)))
    assert cache.load("abc", 5) is None


@pytest.mark.parametrize(
    "damage", ["a bit of a list", "a bit of the header", "all ones", "another key's", "no digest", "a pipe"]
)
def test_content_that_is_not_what_was_kept_counts_as_missing(
    cache: RankBankCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.save("abc", bank_of(5))
    cache.save("abd", bank_of(5) + 1)
    path = Path(cache.folder, "abc-5.npy")
    content = bytearray(path.read_bytes())
    if damage == "a bit of a list":
        content[150] ^= 4
    elif damage == "a bit of the header":
        content[content.index(b"(4, 5)") + 1] = ord("3")
    elif damage == "all ones":
        content[128:-64] = np.ones(20, dtype=np.int32).tobytes()
    elif damage == "another key's":
        content = bytearray(Path(cache.folder, "abd-5.npy").read_bytes())
    elif damage == "no digest":
        del content[-64:]
    path.unlink()
    if damage == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert cache.load("abc", 5) is None
    assert f"'{path}' are damaged or of an earlier version; they are made again" in caplog.text
    again = cache.obtain("abc", 5, lambda: bank_of(5))
    assert torch.equal(again, bank_of(5))
    caplog.clear()
    kept = cache.load("abc", 5)
    assert kept is not None
    assert torch.equal(kept, bank_of(5))
    assert not caplog.text


def test_others_still_read_the_array(cache: RankBankCache) -> None:
    cache.save("abc", bank_of(5))
    assert np.load(Path(cache.folder, "abc-5.npy")).tolist() == bank_of(5).tolist()
