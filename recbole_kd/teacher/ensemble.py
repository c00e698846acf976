"""Several teachers as one: rankings fused by rank or score, standardised scores averaged, vectors side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Optional

import torch
from torch import Tensor

from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import RankBankCache, build_rank_bank, build_user_bank, fuse_ranks
from recbole_kd.files.digest import digest
from recbole_kd.teacher.bare import BareTeacher, Teacher

__all__ = ["TeacherEnsemble", "joint_capabilities"]

_PAIRS_FOR_MOMENTS = 1 << 22
_WITH_ITEMS = frozenset({"representations", "item_representations"})


def joint_capabilities(members: Sequence[frozenset[str]]) -> frozenset[str]:
    """What teachers offer together: ranks and scores if all that rank do, vectors if any does, layers never.

    Beside a file with vectors of items alone, the vectors of users are not read.
    """
    ranking = [member for member in members if "ranks" in member]
    shared = frozenset.intersection(*ranking) if ranking else frozenset()
    scored = {"scores", "listed_scores"} if "scores" in shared else set()
    vectors = frozenset.union(*members) & {"representations", "pair_representations", "item_representations"}
    if any("item_representations" in member and "representations" not in member for member in members):
        vectors -= {"representations"}
    return (shared & {"ranks"}) | scored | vectors


class TeacherEnsemble(BareTeacher):
    """Several teachers as one :class:`recbole_kd.contracts.TeacherView`.

    - Scores, where every member that ranks has those of any pair: the mean of the members' scores, each standardised
      by its mean and standard deviation over the catalogue for users spread evenly over all of them.
    - Ranks: reciprocal rank fusion (Cormack et al., SIGIR'09) of the members' lists, all of the length asked for; or,
      with ``fusion="scores"``, the ranking by those mean scores. Kept on disk under a digest of what decides them.
    - Vectors, of users, items and pairs: the members' side by side, of those that have any. The squared error of a
      concatenation is the sum of its parts' errors, so that a linear regression (fitnet, freqd) is exactly one
      distiller for each teacher; experts and groups (de, htd) are chosen in view of all teachers. A node that one of
      them has no vector of has none.

    Each member counts with its share, in ranks and in scores. The layers of graphs, of which teachers have different
    numbers, are not offered.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        observed: Observed,
        device: torch.device,
        shares: Sequence[float],
        fusion: str,
        rank_folder: str,
    ) -> None:
        """
        Args:
            members: two teachers or more.
            observed: the training split.
            device: where the members are.
            shares: of each member, above 0; only their ratios count.
            fusion: ``ranks`` or ``scores``.
            rank_folder: where ranked lists are kept.
        """
        self.members = list(members)
        self.name = " + ".join(member.name for member in members)
        self.shares = [share / sum(shares) for share in shares]
        self._rankers = self._with("ranks")
        ranking = [share for member, share in zip(members, shares) if member in self._rankers]
        self._ranking_shares = [share / sum(ranking) for share in ranking]
        self.digest = digest("ensemble", [member.digest for member in members], fusion, self.shares)
        self.observed, self.fusion = observed, fusion
        self._device, self._ranks = device, RankBankCache(rank_folder)
        self.capabilities = joint_capabilities([member.capabilities for member in members])
        self._with_items = [member for member in members if not _WITH_ITEMS.isdisjoint(member.capabilities)]
        self.known_users, self.known_items = (
            _marked_by_all([getattr(member, side) for member in self._with_items])
            for side in ("known_users", "known_items")
        )
        dimensions = [member.dimension for member in self._with_items]
        self.dimension: Optional[int] = sum(size for size in dimensions if size) or None
        self._ranked: Optional[Tensor] = None

    def _with(self, capability: str) -> list[Teacher]:
        return [member for member in self.members if capability in member.capabilities]

    @cached_property
    def ranks_key(self) -> str:
        """Under which its ranked lists are kept: of the members' lists, how they are fused, and the training split."""
        members = [member.ranks_key for member in self._rankers]
        return digest("ensemble 4", members, self.fusion, self._ranking_shares, self.observed.keys)

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0.

        By ranks, a list is the fusion of the members' k best, so that a shorter one is not its beginning.
        """
        held = 0 if self._ranked is None else self._ranked.shape[1]
        if self._ranked is None or held < k or (self.fusion == "ranks" and held > k):
            key = self.ranks_key if self.fusion == "scores" else digest(self.ranks_key, k)
            self._ranked = self._ranks.obtain(key, k, lambda: self._rank(k))
        return self._ranked[:, :k]

    def _rank(self, k: int) -> Tensor:
        if self.fusion == "scores":
            return build_rank_bank(self.score_block, self.observed, k)
        return fuse_ranks([member.ranked_items(k) for member in self._rankers], shares=self._ranking_shares)

    def ranked_users(self, k: int) -> Tensor:
        """The k best users of every item by :meth:`scores` among those who did not observe it, (I, k) int32."""
        key = digest(self.ranks_key, "users")
        return self._ranks.obtain(key, k, lambda: build_user_bank(self.score_block, self.observed, k))

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The members' mean standardised scores of users (n,) with items (n,) or (n, k), shaped like `items`."""
        return self._mean(member.scores(users, items) for member in self._rankers)

    def score_block(self, users: Tensor) -> Tensor:
        """Those of users (n,) with every item, (n, I)."""
        items = torch.arange(self.observed.items, device=self._device)
        # A member's own blocks may be of other numbers (before a sigmoid, say) than those whose moments are taken.
        return self.scores(users.to(self._device), items.expand(len(users), -1))

    def _mean(self, scores: Iterable[Tensor]) -> Tensor:
        parts = (
            ((one - mean) * (share / deviation)).to(self._device)
            for one, share, (mean, deviation) in zip(scores, self._ranking_shares, self._moments)
        )
        total = next(parts)
        for part in parts:
            total += part
        return total

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each member's scores, over all items for evenly spaced training users."""
        known = self.observed.counts.nonzero().squeeze(1)
        count = max(1, min(len(known), _PAIRS_FOR_MOMENTS // self.observed.items))
        users = known[torch.linspace(1, len(known), count).round().long() - 1].to(self._device)
        items = torch.arange(1, self.observed.items, device=self._device).expand(count, -1)
        found = []
        for member in self._rankers:
            scores = member.scores(users, items).double()
            found.append((float(scores.mean()), float(scores.std()) or 1.0))
        return found

    @cached_property
    def _users(self) -> Tensor:
        if "representations" not in self.capabilities:
            self.lacks("representations")
        return torch.cat([member.user_embeddings() for member in self._with_items], dim=1)

    @cached_property
    def _items(self) -> Tensor:
        if not self._with_items:
            self.lacks("item_representations")
        return torch.cat([member.item_embeddings() for member in self._with_items], dim=1)

    def user_embeddings(self) -> Tensor:
        """The members' e_t of every user side by side, (U, sum of d_t)."""
        return self._users

    def item_embeddings(self) -> Tensor:
        """The members' e_t of every item side by side, (I, sum of d_t)."""
        return self._items

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The members' vectors of the pairs of users (n,) and items (n,) side by side."""
        members = self._with("pair_representations")
        if not members:
            self.lacks("pair_representations")
        return torch.cat([member.pair_representations(users, items) for member in members], dim=1)

    def summary(self) -> dict[str, Any]:
        """What a single teacher's tells, of all together, and ``members``: that of each."""
        members = [member.summary() for member in self.members]
        return {
            "model": self.name,
            "checkpoint": None,
            "digest": self.digest,
            "from_cache": all(member["from_cache"] for member in members),
            "test_result": {},
            "train_seconds": sum(member["train_seconds"] for member in members),
            "members": [{**told, "parameters": member.parameters} for told, member in zip(members, self.members)],
        }

    @property
    def files(self) -> list[str]:
        """What the members were read from or kept as."""
        return [file for member in self.members for file in member.files]

    @property
    def parameters(self) -> int:
        """Number of weights of all members."""
        return sum(member.parameters for member in self.members)


def _marked_by_all(marks: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """Which ids all of the marks have; None where all have all."""
    given = [one for one in marks if one is not None]
    return torch.stack(given).all(dim=0) if given else None
