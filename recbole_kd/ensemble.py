"""Several teachers as one: rankings fused by reciprocal rank, standardised scores averaged, vectors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Optional

import torch
from torch import Tensor

from recbole_kd.bare_teacher import BareTeacher, Teacher
from recbole_kd.checkpoint import digest
from recbole_kd.data.ranks import fuse_ranks

__all__ = ["TeacherEnsemble"]

_PAIRS_FOR_MOMENTS = 1 << 22


class TeacherEnsemble(BareTeacher):
    """Several teachers as one :class:`recbole_kd.contracts.TeacherView`.

    - Ranks: reciprocal rank fusion (Cormack et al., SIGIR'09) of the members' lists, all of the length asked for.
    - Scores, where every member has those of any pair: the mean of the members' scores, each standardised by its mean
      and standard deviation over the catalogue for users spread evenly over all of them.
    - Vectors, of users, items and pairs: the members' side by side, of those that have any. The squared error of a
      concatenation is the sum of its parts' errors, so that a linear regression (fitnet, freqd) is exactly one
      distiller for each teacher; experts and groups (de, htd) are chosen in view of all teachers.

    The layers of graphs, of which teachers have different numbers, are not offered.
    """

    def __init__(self, members: Sequence[Teacher], users: int, items: int, device: torch.device) -> None:
        """
        Args:
            members: two teachers or more.
            users, items: U and I, padding included.
            device: where the members are.
        """
        self.members = list(members)
        self.name = " + ".join(member.name for member in members)
        self.digest = digest("ensemble", [member.digest for member in members])
        self._users, self._items, self._device = users, items, device
        shared = frozenset.intersection(*(member.capabilities for member in members))
        either = frozenset.union(*(member.capabilities for member in members))
        scored = {"scores", "listed_scores"} if "scores" in shared else set()
        self.capabilities = (shared & {"ranks"}) | scored | (either & {"representations", "pair_representations"})
        dimensions = [member.dimension for member in self._with("representations")]
        self.dimension: Optional[int] = sum(size for size in dimensions if size) or None
        self._fused: dict[int, Tensor] = {}

    def _with(self, capability: str) -> list[Teacher]:
        return [member for member in self.members if capability in member.capabilities]

    def ranked_items(self, k: int) -> Tensor:
        """The k items of the highest sum of reciprocal ranks, best first: (U, k) int32, filled with 0."""
        if k not in self._fused:
            self._fused = {k: fuse_ranks([member.ranked_items(k) for member in self.members])}
        return self._fused[k]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """The mean of the members' standardised scores of users (n,) with items (n,) or (n, k), shaped like `items`."""
        standardised = [
            (member.scores(users, items) - mean) / deviation
            for member, (mean, deviation) in zip(self.members, self._moments)
        ]
        return torch.stack(standardised).mean(0)

    @cached_property
    def _moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each member's scores, over all items for evenly spaced users."""
        count = max(1, min(self._users - 1, _PAIRS_FOR_MOMENTS // self._items))
        users = torch.linspace(1, self._users - 1, count).round().long().to(self._device)
        items = torch.arange(1, self._items, device=self._device).expand(count, -1)
        found = []
        for member in self.members:
            scores = member.scores(users, items).double()
            found.append((float(scores.mean()), float(scores.std()) or 1.0))
        return found

    @cached_property
    def _vectors(self) -> tuple[Tensor, Tensor]:
        members = self._with("representations")
        if not members:
            self.lacks("representations")
        users, items = (
            torch.cat([getattr(member, side)() for member in members], dim=1)
            for side in ("user_embeddings", "item_embeddings")
        )
        return users, items

    def user_embeddings(self) -> Tensor:
        """The members' e_t of every user side by side, (U, sum of d_t)."""
        return self._vectors[0]

    def item_embeddings(self) -> Tensor:
        """The members' e_t of every item side by side, (I, sum of d_t)."""
        return self._vectors[1]

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
