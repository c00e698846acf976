"""Samplers of response-based distillation: exact in distribution, for all users at once, in O(U K' + observed) memory.

Each draws from its `generator` argument. Ids are RecBole's; 0 means that a user has no entry. Users are processed in
blocks, so that temporary memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recbole_kd.data.observed import Observed

_BLOCK = 1024


def exponential_log_weights(length: int, emphasis: float) -> Tensor:
    """(length,) logarithms of weights proportional to exp(-rank / emphasis) for ranks 1..length."""
    return -torch.arange(1, length + 1, dtype=torch.float32) / emphasis


def better_of_two(log_weights: Tensor) -> Tensor:
    """(k,) log-weights of the better of two ranks, each drawn with the given log-weights (k,)."""
    weights = torch.log_softmax(log_weights.double(), dim=0)
    at_least = weights.flip(0).logcumsumexp(0).flip(0)
    beyond = torch.cat([at_least[1:], at_least.new_full((1,), -torch.inf)])
    # P(min = k) = P(both >= k) - P(both > k) = p_k (P(one >= k) + P(one > k)); in logarithms no weight is rounded to 0.
    return (weights + torch.logaddexp(at_least, beyond)).to(log_weights.dtype)


def draw_without_replacement(log_weights: Tensor, rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """Positions drawn without replacement, each with probability proportional to its weight among the remaining ones.

    Position k gets an exponential arrival time of rate w_k, and the first `samples` arrivals are drawn. This is the
    Gumbel top-k trick, written with arrival times.

    Args:
        log_weights: (k,) for all rows, or (rows, k); -inf is a weight of 0.
        rows: n.
        samples: at most k.

    Returns:
        (n, samples) int32, ascending in each row; -1 where a row has too few positions of positive weight.
    """
    length = log_weights.shape[-1]
    drawn = torch.empty(rows, samples, dtype=torch.int32)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        block = log_weights[start:stop] if log_weights.dim() == 2 else log_weights
        arrival = _exponential(stop - start, length, generator).log_().sub_(block)
        first = arrival.topk(samples, dim=1, largest=False, sorted=False).indices
        # Marking the positions and reading the marks gives ascending order, faster than sorting.
        marked = torch.zeros(stop - start, length, dtype=torch.bool).scatter_(1, first, True)
        drawn[start:stop] = marked.nonzero()[:, 1].view(stop - start, samples)
        if bool(torch.isneginf(block).any()):
            missing = torch.isneginf(block).expand_as(arrival).gather(1, drawn[start:stop].long())
            drawn[start:stop].masked_fill_(missing, -1)
    return drawn


def items_at(ranked: Tensor, positions: Tensor) -> Tensor:
    """Items of ranked lists (n, k) at positions (n, samples), 0 at position -1: (n, samples), in `ranked`'s type."""
    found = torch.empty(positions.shape, dtype=ranked.dtype, device=ranked.device)
    for rows, lists, places in zip(found.split(_BLOCK), ranked.split(_BLOCK), positions.split(_BLOCK)):
        torch.gather(lists, 1, places.long().clamp(min=0), out=rows).masked_fill_(places < 0, 0)
    return found


def draw_distinct(counts: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """`samples` distinct numbers of 0..counts[r]-1 for each row r; every subset is equally likely.

    Args:
        counts: (n,) int32 at least `samples` each.
        samples: L.

    Returns:
        (n, L) int32, ascending in each row.
    """
    # Cumulative sums of exponentials over their total are uniform numbers in ascending order, without sorting.
    sums = _exponential(len(counts), samples + 1, generator).cumsum_(1)
    scale = (counts / sums[:, -1]).unsqueeze(1)
    drawn = torch.minimum((sums[:, :-1] * scale).int(), counts.unsqueeze(1) - 1)
    repeated = _repeats(drawn)
    # Dense rows would draw the same numbers many times; they are short enough to shuffle.
    dense = counts < 2 * samples
    if bool(dense.any()):
        order = torch.rand(int(dense.sum()), int(counts[dense].max()), generator=generator)
        order.masked_fill_(torch.arange(order.shape[1]) >= counts[dense].unsqueeze(1), 2.0)
        drawn[dense] = order.topk(samples, dim=1, largest=False).indices.int().sort(dim=1).values
        repeated[dense] = False
    # A number drawn twice is kept once, and the missing ones are drawn again. All numbers are treated alike, so every
    # subset stays equally likely.
    pending = repeated.any(dim=1).nonzero().squeeze(1)
    while len(pending):
        rows, again = drawn[pending], repeated[pending]
        highest = counts[pending].unsqueeze(1).expand_as(rows)[again]
        fresh = torch.rand(len(highest), generator=generator, dtype=torch.float64)
        rows[again] = torch.minimum((fresh * highest).int(), highest - 1)
        drawn[pending] = rows = rows.sort(dim=1).values
        repeated[pending] = again = _repeats(rows)
        pending = pending[again.any(dim=1)]
    return drawn


def _exponential(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    # Twice as fast as `exponential_`, and precise enough near 0, which matters for the order.
    return torch.rand(rows, columns, dtype=torch.float64, generator=generator).neg_().log1p_().neg_()


def _repeats(ascending: Tensor) -> Tensor:
    """Whether each number of ascending rows equals the one before it."""
    repeated = torch.zeros_like(ascending, dtype=torch.bool)
    torch.eq(ascending[:, 1:], ascending[:, :-1], out=repeated[:, 1:])
    return repeated


class Complement:
    """Draws items uniformly, without replacement, that a user has neither observed nor in a ranked list.

    A number j below the size of the complement is mapped to its j-th item: j plus the number of excluded items before
    it, found by a search in the user's ascending exclusions.
    """

    def __init__(self, observed: Observed, ranked: Tensor) -> None:
        """
        Args:
            observed: the training split.
            ranked: (U, k) items to exclude as well, 0 where there is none.
        """
        items = observed.items
        # 32-bit keys take half the memory; they are enough unless the catalogue has millions of items.
        kind = torch.int32 if _BLOCK * items < 2**31 else torch.int64
        self._items = items
        self._keys: list[Tensor] = []
        self._before = torch.zeros(observed.users, dtype=torch.int32)
        self.counts = torch.zeros(observed.users, dtype=torch.int32)
        for start, stop in _blocks(observed.users):
            pairs = slice(int(observed.offsets[start]), int(observed.offsets[stop]))
            listed = ranked[start:stop]
            rows = torch.arange(stop - start)
            keys = torch.cat(
                [
                    (observed.user_ids[pairs] - start) * items + observed.indices[pairs],
                    (rows.unsqueeze(1) * items + listed)[listed > 0],
                ]
            )
            # NumPy sorts whole numbers ten times as fast as torch.
            keys = torch.from_numpy(np.unique(keys.numpy()))
            of_row = keys // items
            excluded = torch.bincount(of_row, minlength=len(rows))
            before = excluded.cumsum(0) - excluded
            # Key of a user's i-th exclusion x: x - 1 - i items before it are not excluded.
            self._keys.append((keys - 1 - (torch.arange(len(keys)) - before[of_row])).to(kind))
            self._before[start:stop] = before
            self.counts[start:stop] = items - 1 - excluded

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """(U, samples) int32 distinct items of each user's complement, ascending; row 0 is all 0.

        Every user's complement must have `samples` items.
        """
        drawn = torch.zeros(len(self.counts), samples, dtype=torch.int32)
        for keys, (start, stop) in zip(self._keys, _blocks(len(self.counts))):
            numbers = draw_distinct(self.counts[start:stop], samples, generator)
            rows = torch.arange(stop - start, dtype=keys.dtype).unsqueeze(1)
            excluded = torch.searchsorted(keys, rows * self._items + numbers, right=True, out_int32=True)
            drawn[start:stop] = excluded.sub_(self._before[start:stop].unsqueeze(1)).add_(numbers).add_(1)
        return drawn


def _blocks(users: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of users, without padding."""
    return ((start, min(start + _BLOCK, users)) for start in range(1, users, _BLOCK))


def popularity_groups(popularity: Tensor, groups: int) -> Tensor:
    """Groups of equal popularity mass, the most popular items in group 0 (UnKD, Chen et al., WSDM'23).

    Args:
        popularity: (I,) users who observed each item; entry 0 is padding.
        groups: G.

    Returns:
        (I,) int64 in 0..G-1; -1 for padding. The middle of an item's mass decides its group; items that nobody observed
        are in the last group. If one item has more than a group's mass, a group can be empty.
    """
    order = popularity[1:].argsort(descending=True, stable=True)
    mass = popularity[1:][order].double()
    middle = mass.cumsum(0) - mass / 2
    group = (middle / mass.sum().clamp(min=1) * groups).long().clamp_(max=groups - 1)
    group_of = torch.full((len(popularity),), -1)
    group_of[order + 1] = group.masked_fill_(mass == 0, groups - 1)
    return group_of


class GroupPairs:
    """Draws pairs of different items of one group from ranked lists, the better-ranked one first.

    Ranks are within the group: 1 for the group's best item in a user's list. The first item is drawn with probability
    proportional to exp(-rank / emphasis), the second likewise among the group's other items.
    """

    def __init__(self, ranked: Tensor, group_of: Tensor, groups: int) -> None:
        """
        Args:
            ranked: (U, k) unobserved items, best first, filled with 0 if there are fewer.
            group_of: (I,) group of each item; -1 for padding.
            groups: G.
        """
        self._ranked = torch.empty_like(ranked)
        self._counts = torch.empty(len(ranked), groups, dtype=torch.long)
        for start in range(0, len(ranked), _BLOCK):
            block = ranked[start : start + _BLOCK]
            group = group_of[block.long()]
            # A list keeps its order within each group; padding comes last.
            order = group.masked_fill(group < 0, groups).argsort(dim=1, stable=True)
            self._ranked[start : start + _BLOCK] = block.gather(1, order)
            for g in range(groups):
                self._counts[start : start + _BLOCK, g] = (group == g).sum(dim=1)

    def without_pairs(self) -> Tensor:
        """(G,) the share of users with fewer than two items of each group, among the users that have a list."""
        listed = self._counts.any(dim=1)
        return (self._counts[listed] < 2).float().mean(dim=0)

    def draw(self, pairs: int, emphasis: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Better and worse items, (U, pairs) int32 each; 0 if a user has fewer than two items of the group.

        The pairs are divided evenly among the groups; the more popular groups get the remaining ones.
        """
        groups = self._counts.shape[1]
        better, worse = (torch.empty(len(self._ranked), pairs, dtype=self._ranked.dtype) for _ in range(2))
        first_of_group = self._counts.cumsum(1) - self._counts
        columns = torch.arange(pairs) % groups
        for start in range(0, len(self._ranked), _BLOCK):
            block = slice(start, start + _BLOCK)
            length, offset = (part[block][:, columns] for part in (self._counts, first_of_group))
            first = _truncated_geometric(length.clamp(min=1), emphasis, generator)
            below, above = first - 1, (length - first).clamp(min=0)
            # The second rank is below or above the first, by the mass on each side; each side is geometric again.
            mass_below = -torch.expm1(-below.double() / emphasis)
            mass_above = -torch.expm1(-above.double() / emphasis) * torch.exp(-first.double() / emphasis)
            uniform = torch.rand(first.shape, generator=generator, dtype=torch.float64)
            is_above = uniform * (mass_below + mass_above) >= mass_below
            rank = _truncated_geometric(torch.where(is_above, above, below).clamp(min=1), emphasis, generator)
            second = torch.where(is_above, first + rank, rank)
            for drawn, ranks in ((better, torch.minimum(first, second)), (worse, torch.maximum(first, second))):
                positions = torch.where(length >= 2, offset + ranks - 1, -1)
                drawn[block] = items_at(self._ranked[block], positions)
        return better, worse


def _truncated_geometric(lengths: Tensor, emphasis: float, generator: torch.Generator) -> Tensor:
    """Ranks of 1..length with probability proportional to exp(-rank / emphasis), by inverting their distribution."""
    uniform = torch.rand(lengths.shape, generator=generator, dtype=torch.float64)
    ranks = (-emphasis * torch.log1p(uniform * torch.expm1(-lengths.double() / emphasis))).long() + 1
    return torch.minimum(ranks, lengths)


def discrepancy_log_weights(gaps: Tensor, emphasis: float) -> Tensor:
    """Logarithms of tanh(max(0, gap) / emphasis) (DCD, Lee & Kim, CIKM'21), -inf if the gap is not positive."""
    return torch.tanh(gaps.clamp(min=0) / emphasis).log()
