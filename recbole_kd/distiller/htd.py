"""HTD: hierarchical topology distillation (Kang et al., KDD'21, eq. 4-9).

Groups: each side (users, items) has a selection network on e_t with an annealed Gumbel-softmax, as in DE. A node is in
the group of its largest entry. A group has one expert f_k. Users and items have separate groups.

- ``assignment``: DE's reconstruction, mean over nodes of ||e_t - sum_k z_k f_k(e_s)||^2. Entry: a node.
- ``topology``: mean of (cos(e_s(a), e_s(b)) - cos(e_t(a), e_t(b)))^2 over pairs of nodes in one group with a positive
  cosine of the teacher. Entry: a pair. To it is added the same mean over pairs of prototypes (``variant: first``) or
  pairs of a prototype and a node (``second``). A prototype is the mean of its group's nodes in the batch.

    loss = alpha * topology + (1 - alpha) * assignment

Groups and prototypes have no gradient. So the prototype pairs of ``first`` change only the value of the loss, as in
the authors' code. Deviations:

- Paper and code sum over the batch's entries; here each term is a mean.
- The code's temperature is 0.1 throughout; here it is annealed as in DE (``temperature``, ``end_temperature``).
- The code assigns groups for the topology without Gumbel noise; here, as in the paper, both terms share one assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.experts import AnnealedOptions, ExpertDistiller
from recbole_kd.loss.common import unit
from recbole_kd.loss.kernel.layout import Grouped
from recbole_kd.loss.kernel.topology import all_pairs, group_means, group_pairs, prototype_nodes
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import option


@dataclass(frozen=True)
class HTDOptions(AnnealedOptions):
    """Options of the section ``htd``."""

    weight: float = option(0.01, "weight of both terms", minimum=0)
    alpha: float = option(0.5, "share of the topology term; the rest is the assignment's", minimum=0, maximum=1)
    experts: int = option(30, "groups of users, and as many groups of items; each has one expert", minimum=1)
    variant: str = option(
        "second",
        "group level: first, between prototypes; second, between prototypes and nodes",
        choices=("first", "second"),
    )

    @property
    def weights(self) -> Mapping[str, float]:
        return {"topology": self.weight * self.alpha, "assignment": self.weight * (1 - self.alpha)}


class HTDDistiller(ExpertDistiller[HTDOptions]):
    """The topology inside and between groups of nodes that the teacher's representations form."""

    name = "htd"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both terms: ``topology`` and ``assignment``."""
        sides = self.entries.sides(batch)
        totals, grouped = [], []
        for experts, side in zip(self.experts, sides):
            total, selection = experts(side)
            totals.append(total)
            layout, teacher = selection.layout, selection.targets.to(side.student)
            grouped.append(Grouped(layout, layout.padded(side.student), teacher))
        assignment = mean_over_nodes(totals, sum(len(side.nodes) for side in sides))
        return {"topology": self._topology(grouped), "assignment": assignment}

    def _topology(self, sides: list[Grouped]) -> Tensor:
        """Both levels of the topology among the nodes of both sides."""
        prototypes = group_means(sides)
        if self.options.variant == "first":
            return group_pairs(sides) + all_pairs(*prototypes)
        return group_pairs(sides) + prototype_nodes(sides, *map(unit, prototypes))
