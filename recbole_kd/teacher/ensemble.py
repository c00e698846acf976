"""Several teachers as one: rankings fused by rank or score, standardised scores averaged, vectors concatenated."""

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
_VECTORS = frozenset({"representations", "pair_representations", "side_vectors", "item_representations"})
_WITH_ITEMS = frozenset({"representations", "item_representations"})


def joint_capabilities(members: Sequence[frozenset[str]]) -> frozenset[str]:
    """Capabilities of several teachers together.

    They have ranks and scores if all members that rank have them, vectors if any member has them, and never layers. If
    a file has vectors of items only, the vectors of users are not read.
    """
    ranking = [member for member in members if "ranks" in member]
    shared = frozenset.intersection(*ranking) if ranking else frozenset()
    scored = {"scores", "listed_scores"} if "scores" in shared else set()
    vectors = frozenset.union(*members) & _VECTORS
    if any("item_representations" in member and "representations" not in member for member in members):
        vectors -= {"representations", "side_vectors"}
    return (shared & {"ranks"}) | scored | vectors


class TeacherEnsemble(BareTeacher):
    """Several teachers as one :class:`recbole_kd.contracts.TeacherView`.

    - Scores, if every member that ranks has scores of all pairs: the mean of the members' standardised scores. Mean and
      standard deviation of a member are taken over the catalogue, for evenly spaced users.
    - Ranks: reciprocal rank fusion (Cormack et al., SIGIR'09) of the members' lists, all of the requested length. With
      ``fusion="scores"``: the ranking by the mean scores. Ranked lists are kept on disk under a digest.
    - Vectors of users, items and pairs: the concatenation of the members' vectors. Its squared error is the sum of the
      members' errors. So a linear regression (fitnet, freqd) equals one distiller for each teacher; experts and groups
      (de, htd) are chosen by all teachers together. A node without a vector of some member has none.

    Each member is weighted by its share, in ranks and in scores. Layers of graphs are not offered, because teachers may
    have different numbers of them.
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
            device: the members' device.
            shares: weights of the members, above 0; only their ratios matter.
            fusion: ``ranks`` or ``scores``.
            rank_folder: folder of the ranked lists.
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
        """Cache key of its ranked lists: a digest of the members' lists, their fusion and the training split."""
        members = [member.ranks_key for member in self._rankers]
        return digest("ensemble 4", members, self.fusion, self._ranking_shares, self.observed.keys)

    def ranked_items(self, k: int) -> Tensor:
        """The k best unobserved items of every user, best first: (U, k) int32, filled with 0.

        With fusion by ranks, a list is fused from the members' k best, so a shorter list need not be its beginning.
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
        """For every item the k best users by :meth:`scores` who have not observed it, (I, k) int32."""
        key = digest(self.ranks_key, "users")
        return self._ranks.obtain(key, k, lambda: build_user_bank(self.score_block, self.observed, k))

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The members' mean standardised scores of users (n,) with items (n,) or (n, k), in the shape of `items`."""
        return self._mean(member.scores(users, items) for member in self._rankers)

    def score_block(self, users: Tensor) -> Tensor:
        """The mean standardised scores of users (n,) with every item, (n, I)."""
        items = torch.arange(self.observed.items, device=self._device)
        # Not the members' own `score_block`: its scores may have another scale (before a sigmoid) than the moments.
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
        """The members' e_t of every user, concatenated, (U, sum of d_t)."""
        return self._users

    def item_embeddings(self) -> Tensor:
        """The members' e_t of every item, concatenated, (I, sum of d_t)."""
        return self._items

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The members' vectors of the pairs of users (n,) and items (n,), concatenated."""
        members = self._with("pair_representations")
        if not members:
            self.lacks("pair_representations")
        return torch.cat([member.pair_representations(users, items) for member in members], dim=1)

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        """The members' vectors of users and of items, concatenated."""
        return self._sides

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        members = self._with("side_vectors")
        if not members:
            self.lacks("side_vectors")
        users, items = zip(*(member.side_vectors() for member in members))
        return torch.cat(users, dim=1), torch.cat(items, dim=1)

    def summary(self) -> dict[str, Any]:
        """The entries of a single teacher's summary for all together, and each member's summary in ``members``."""
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
        """The files from which the members were read, or in which they are kept."""
        return [file for member in self.members for file in member.files]

    @property
    def parameters(self) -> int:
        """Number of weights of all members."""
        return sum(member.parameters for member in self.members)


def _marked_by_all(marks: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    """The ids that are marked in all `marks`; None if all ids are."""
    given = [one for one in marks if one is not None]
    return torch.stack(given).all(dim=0) if given else None
