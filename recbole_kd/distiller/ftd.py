"""FTD: full topology distillation (Kang et al., "Topology distillation for recommender system", KDD'21, eq. 2-3).

    loss = mean over pairs (a, b) of the batch's nodes of (cos(e_s(a), e_s(b)) - cos(e_t(a), e_t(b)))^2

Entry: a pair, a != b (a node has cosine 1 with itself in both spaces). The nodes are the distinct users and the
distinct items of the batch together. Deviation: the paper and its code sum over the pairs of the batch; here it is a
mean. The published weight corresponds to that weight times (pairs / batch size).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions
from recbole_kd.loss.kernel.topology import all_pairs
from recbole_kd.options import option


@dataclass(frozen=True)
class FTDOptions(NodeOptions):
    """Options of the section ``ftd``."""

    weight: float = option(1.0, "weight of the loss", minimum=0)


class FTDDistiller(NodeDistiller[FTDOptions]):
    """The student's cosines of all pairs of a batch's nodes, fitted to the teacher's."""

    name = "ftd"

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 3: the mean over pairs of the batch's nodes."""
        return all_pairs(*self.together(batch))
