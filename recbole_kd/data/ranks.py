"""The rank bank: each user's best unobserved items by a teacher's scores, computed in blocks and kept on disk."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import BinaryIO, Optional

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.files.atomic import write_atomic
from recbole_kd.files.digest import digest as content_of
from recbole_kd.files.reading import open_regular

#: Bytes of scores held at a time. Freed blocks above 32 MiB are returned to the system, which makes new ones slow.
_BLOCK_BYTES = 16 << 20
#: The same if users are ranked for all items; larger, because every block sorts the best users so far again.
_USER_BLOCK_BYTES = 128 << 20
#: Least number of users scored at a time.
_LEAST_USERS = 32


def build_rank_bank(
    score_block: Callable[[Tensor], Tensor],
    observed: Observed,
    k: int,
    block_users: Optional[int] = None,
    show_progress: bool = False,
) -> Tensor:
    """The k best unobserved items of every user, best first.

    To rank users for items, give `observed.transposed()` and a `score_block` of items.

    Args:
        score_block: users (n,) -> their scores of every item, (n, I), padding included. The block is overwritten.
        observed: the training split.
        k: K', length of the lists.
        block_users: users scored at a time; by default those of :func:`rank_blocks`.
        show_progress: whether to show a progress bar.

    Returns:
        (U, k) int32 on the CPU, filled with 0 if a user has fewer than k unobserved items. Row 0 is all 0.
    """
    bank = torch.zeros(observed.users, k, dtype=torch.int32)
    blocks = rank_blocks(observed, block_users)
    for block in tqdm(blocks, desc="Ranking unobserved items", disable=not show_progress):
        bank[block.start : block.stop] = rank_block(score_block, observed, k, block)
    return bank


def rank_blocks(observed: Observed, block_users: Optional[int] = None, held: int = _BLOCK_BYTES) -> list[range]:
    """The users, without padding, in the blocks in which they are scored; a block takes about `held` bytes.

    For very large catalogues a block has more users, so that an item that is read is used for several of them.
    """
    rows = block_users or max(_LEAST_USERS, held // (4 * observed.items))
    return [range(start, min(start + rows, observed.users)) for start in range(1, observed.users, rows)]


@torch.no_grad()
def rank_block(score_block: Callable[[Tensor], Tensor], observed: Observed, k: int, block: range) -> Tensor:
    """(users of `block`, k) int32: rows of the result of :func:`build_rank_bank`, from the same arguments."""
    scores = _unobserved_scores(score_block, observed, block)
    longest = min(k, observed.items)
    best, ranked = _best(scores, longest)
    bank = torch.zeros(len(block), k, dtype=torch.int32)
    bank[:, :longest] = ranked.masked_fill_(best == -torch.inf, 0)
    return bank


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row, best first, and their columns (n, k); ties keep the smaller column first.

    So the k best are the beginning of any longer list. `torch.topk` takes an arbitrary one of equal values.

    Raises:
        UserError: a score is not a number.
    """
    if k == scores.shape[1]:
        values, columns = scores.sort(dim=1, descending=True, stable=True)
    else:
        values, columns = scores.topk(k + 1, dim=1)
    broken = int(values[:, 0].isnan().sum())
    if broken:
        raise UserError(
            f"{broken:,} of {len(values):,} rankings have scores that are not numbers (NaN); "
            "train their model again with a lower --teacher.learning_rate, or give another --teacher.checkpoint."
        )
    if k == scores.shape[1]:
        return values, columns
    tied = ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)).any(dim=1).nonzero().squeeze(1)
    values, columns = values[:, :k], columns[:, :k]
    if len(tied):
        rows, least = scores[tied], values[tied, -1:]
        above, equal = rows > least, rows == least
        left = k - above.sum(dim=1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= left))
        by_column = chosen.nonzero()[:, 1].view(len(tied), k)
        values[tied], order = rows.gather(1, by_column).sort(dim=1, descending=True, stable=True)
        columns[tied] = by_column.gather(1, order)
    return values, columns


@torch.no_grad()
def _unobserved_scores(score_block: Callable[[Tensor], Tensor], observed: Observed, block: range) -> Tensor:
    """(users of `block`, I) scores; observed items and padding have -inf."""
    scores = score_block(torch.arange(block.start, block.stop))
    pairs = slice(int(observed.offsets[block.start]), int(observed.offsets[block.stop]))
    rows, items = observed.user_ids[pairs] - block.start, observed.indices[pairs]
    scores[rows.to(scores.device), items.to(scores.device)] = -torch.inf
    scores[:, 0] = -torch.inf
    return scores


@torch.no_grad()
def ranks_of(lists: Tensor, score_block: Callable[[Tensor], Tensor], observed: Observed) -> Tensor:
    """Ranks of listed items among all unobserved items of their user, by another model's scores.

    The rank of an item is one more than the number of unobserved items with a higher score.

    Args:
        lists: (U, k) unobserved items, 0 where there is none; the result there is undefined.
        score_block, observed: as in :func:`build_rank_bank`.

    Returns:
        (U, k) int64 on the CPU; row 0 is all 0.
    """
    ranks = torch.zeros(lists.shape, dtype=torch.long)
    for block in rank_blocks(observed):
        rows = slice(block.start, block.stop)
        scores = _unobserved_scores(score_block, observed, block)
        ascending, order = scores.gather(1, lists[rows].to(scores.device).long()).sort(dim=1)
        # Each item's place among the sorted listed scores shows which of them it exceeds.
        place = torch.searchsorted(ascending, scores)
        count = place.new_zeros(len(place), lists.shape[1] + 1).scatter_add_(1, place, torch.ones_like(place))
        above = count.flip(1).cumsum(1).flip(1)[:, 1:]
        ranks[rows] = torch.empty_like(above).scatter_(1, order, above + 1).cpu()
    return ranks


def build_user_bank(
    score_block: Callable[[Tensor], Tensor], observed: Observed, k: int, block_users: Optional[int] = None
) -> Tensor:
    """For every item the k best users who have not observed it, best first, as in IR-RRD.

    Users are scored in blocks, so a teacher that reads a user's whole history scores each user once. Each block's users
    are merged with the k best so far. If items can be scored in blocks, :func:`build_rank_bank` with
    ``observed.transposed()`` is faster.

    Args:
        score_block, observed, block_users: as in :func:`build_rank_bank`.
        k: K', length of the lists.

    Returns:
        (I, k) int32 on the CPU, filled with 0 if fewer than k users have not observed an item. Row 0 is all 0.
    """
    bank, best = torch.zeros(observed.items, k, dtype=torch.long), torch.full((observed.items, k), -torch.inf)
    for block in rank_blocks(observed, block_users, _USER_BLOCK_BYTES):
        scores = _unobserved_scores(score_block, observed, block).t()
        best, bank = best.to(scores), bank.to(scores.device)
        # The best users so far have smaller ids than this block's users, and are in order.
        best, place = _best(torch.cat([best, scores], dim=1), k)
        # Places below k are the best users so far, the others are this block's users.
        bank = torch.where(place < k, bank.gather(1, place.clamp(max=k - 1)), place - k + block.start)
    return bank.masked_fill_(best == -torch.inf, 0).int().cpu()


#: Pairs of a user and a listed item that are fused at a time.
_FUSED_PAIRS = 1 << 22


def fuse_ranks(lists: Sequence[Tensor], constant: float = 60.0, shares: Optional[Sequence[float]] = None) -> Tensor:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR'09) of several rankings, in blocks of users.

    An item's score is the sum of share / (constant + rank) over the lists that hold it; rank 1 is the best. Items in no
    list are not ranked. Among equal scores, the item that an earlier list ranks, or ranks higher, comes first.

    Args:
        lists: for each ranker (U, k) ids, best first, filled with 0; an id is at most once in a row.
        constant: 60 in the paper; a larger one gives the first ranks less weight against agreement further down.
        shares: weight of each list, above 0; 1 in the paper.

    Returns:
        (U, k) int32, filled with 0 if all lists together have fewer.
    """
    users, k = lists[0].shape
    once = 1 / (constant + torch.arange(1, k + 1, dtype=torch.float64))
    reciprocal = torch.cat([share * once for share in shares or [1.0] * len(lists)])
    fused = torch.zeros(users, k, dtype=torch.int32)
    rows = max(1, _FUSED_PAIRS // (k * len(lists)))
    for start in range(0, users, rows):
        items = torch.cat([ranked[start : start + rows].cpu() for ranked in lists], dim=1)
        ordered, position = items.sort(dim=1, stable=True)
        values = reciprocal[position]
        total = values.clone()
        for shift in range(1, len(lists)):  # an item is at most once in a list, so its places are adjacent
            same = ordered[:, shift:] == ordered[:, :-shift]
            total[:, :-shift] += values[:, shift:] * same
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        score = torch.zeros_like(total).scatter_(1, position, total * (first & (ordered > 0)))
        best, chosen = score.sort(dim=1, descending=True, stable=True)
        fused[start : start + rows] = items.gather(1, chosen)[:, :k].masked_fill(best[:, :k] == 0, 0)
    return fused


def require_unobserved(
    observed: Observed,
    setting: str,
    count: int,
    below: int = 0,
    pool: str = "",
    roles: tuple[str, str] = ("users", "items"),
) -> None:
    """Checks that every user has `count` unobserved items, below the top `below` of them.

    Args:
        observed: the training split.
        setting: the option that asks for `count`, such as ``rrd.uninteresting``.
        count: number of items needed.
        below: length of a ranked list above them.
        pool: the option that sets `below`.
        roles: names of the rows and columns of `observed`; swapped for a transposed split.

    Raises:
        UserError: some user has fewer; the message says how many users, and what to set.
    """
    unobserved = observed.items - 1 - observed.counts[1:]
    short = int((unobserved < min(below + count, observed.items)).sum())
    if not short:
        return
    catalogue, least = observed.items - 1, int(unobserved.min())
    rows, columns = roles
    where = f" below the {below:,} of {pool}" if below else ""
    lower = f"{setting} or {pool}" if below else setting
    if below + count > catalogue:
        raise UserError(
            f"{setting}={count:,}{where} is more than the {catalogue:,} {columns} there are; lower {lower}."
        )
    if least == 0:
        everything = int((unobserved == 0).sum())
        raise UserError(
            f"{setting}={count:,}: {everything:,} {rows} are observed with all {catalogue:,} {columns}, "
            f'which leaves none to rank; leave them out with --{rows[:-1]}_inter_num_interval="[0,{catalogue})".'
        )
    least_left = max(least - below, 0)
    raise UserError(
        f"{setting}={count:,}{where}: {short:,} of {observed.users - 1:,} {rows} have fewer unobserved {columns}, the "
        f"least {least_left:,}; lower {lower}."
    )


def require_listed(observed: Observed, setting: str, ranked: Tensor, teacher: str) -> None:
    """Checks that every list of a user of the training split is complete.

    Args:
        observed: the training split.
        setting: the option that asks for as many items as `ranked` has columns, such as ``rrd.pool``.
        ranked: (U, k) items, 0 where there are fewer.
        teacher: the name of the teacher, for the message.

    Raises:
        UserError: some list is shorter, or there is no list; the message says how many users, and what to set.
    """
    lengths = (ranked > 0).sum(dim=1)[observed.counts > 0]
    lengths = lengths[lengths > 0] if bool((lengths > 0).any()) else lengths
    k, short = ranked.shape[1], int((lengths < ranked.shape[1]).sum())
    if short:
        raise UserError(
            f"{setting}={k:,}: {teacher} ranks fewer items for {short:,} of {len(lengths):,} users, the least "
            f"{int(lengths.min()):,}; lower {setting} or give longer lists."
        )


#: Length of the digest after an array.
_DIGEST_BYTES = 64


class RankBankCache:
    """Rank banks on disk, each under a digest of its inputs.

    A file is a plain array, then the digest of its key and content. It is written completely or not at all. It is read
    as a memory map after a check of the digest; nothing is unpickled.
    """

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: created when the first bank is saved.
        """
        self.folder = folder

    def obtain(self, digest: str, k: int, compute: Callable[[], Tensor]) -> Tensor:
        """The bank (U, k) int32 under `digest`; if it is missing, it is computed and kept.

        Raises:
            UserError: the folder cannot be written.
        """
        bank = self.load(digest, k)
        if bank is None:
            bank = compute()
            self.save(digest, bank)
        return bank

    def load(self, digest: str, k: int) -> Optional[Tensor]:
        """The bank (U, k) int32 under `digest`, perhaps cut from a longer one; None if there is none."""
        pattern = re.compile(re.escape(digest) + r"-(\d+)\.npy")
        found = (pattern.fullmatch(name) for name in (os.listdir(self.folder) if os.path.isdir(self.folder) else ()))
        for length in sorted(int(match[1]) for match in found if match):
            bank = self._read(digest, length) if length >= k else None
            if bank is not None:
                return bank[:, :k]
        return None

    def save(self, digest: str, bank: Tensor) -> None:
        """Keeps `bank` (U, k) int32 under `digest`.

        Raises:
            UserError: the folder cannot be written.
        """
        array = np.ascontiguousarray(bank.cpu().numpy())

        def write(file: BinaryIO) -> None:
            # np.save would bypass `file` and hide the reason of a failed write.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)
            file.write(content_of(digest, array).encode())

        write_atomic(self._path(digest, bank.shape[1]), write)

    def _path(self, digest: str, k: int) -> str:
        return os.path.join(self.folder, f"{digest}-{k}.npy")

    def _read(self, digest: str, k: int) -> Optional[Tensor]:
        """The bank (U, k) in a file; None if the file is damaged, foreign, or of a version without a digest."""
        path = self._path(digest, k)
        try:
            with open_regular(path) as file:
                # Copy on write, because torch does not accept read-only arrays.
                array = np.load(path, mmap_mode="c", allow_pickle=False)
                file.seek(array.offset + array.nbytes)
                whole = file.read(_DIGEST_BYTES + 1) == content_of(digest, array).encode()
            if whole and array.dtype == np.int32 and array.shape[1:] == (k,):
                return torch.from_numpy(array)
        except (OSError, ValueError, EOFError, AttributeError, TypeError):  # cut short or foreign
            pass
        logging.getLogger().warning(
            f"The ranked lists in '{path}' are damaged or of an earlier version; they are made again."
        )
        return None
