"""RKD: relational knowledge distillation (Park et al., CVPR'19, eq. 5-9).

    distance: mean over pairs of Huber(d_s / mean d_s, d_t / mean d_t), d = ||e(a) - e(b)||            entry: a pair
    angle: mean over triplets of Huber(cos_s, cos_t), the cosine of the angle at b of (a, b, c)        entry: a triplet
    loss = distance + 2 angle

Users and items are one set of nodes. The paper forms all pairs and triplets of a batch. With the thousands of nodes in
a recommender's batch these would be billions, so ``nodes`` of them are drawn for each batch, uniformly and without
replacement. This does not change the terms' expectation, except through the mean distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions
from recbole_kd.loss.topology import angles, distances
from recbole_kd.options import option


@dataclass(frozen=True)
class RKDOptions(NodeOptions):
    """Options of the section ``rkd``."""

    weight: float = option(1.0, "weight of both terms", minimum=0)
    distance: float = option(1.0, "weight of the distance term within the loss", minimum=0)
    angle: float = option(2.0, "weight of the angle term within the loss", minimum=0)
    nodes: int = option(128, "nodes drawn from a batch and compared; memory grows with their cube", minimum=3)

    @property
    def weights(self) -> Mapping[str, float]:
        return {"distance": self.weight * self.distance, "angle": self.weight * self.angle}


class RKDDistiller(NodeDistiller[RKDOptions]):
    """The distances and the angles among a sample of a batch's nodes."""

    name = "rkd"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The terms that have a weight: ``distance`` and ``angle``."""
        student, teacher = self.together(batch)
        if not len(student):  # the teacher has no vector of any of them
            return {}
        drawn = torch.randperm(len(student), generator=self.generator)[: self.options.nodes].to(student.device)
        student, teacher = student.index_select(0, drawn), teacher.index_select(0, drawn)
        terms = {"distance": distances, "angle": angles}
        return {name: term(student, teacher) for name, term in terms.items() if getattr(self.options, name)}
