"""PHR: personalised hint regression (Kang et al., "Personalized knowledge distillation", KBS'22).

    loss = mean over the batch's distinct users and items of ||W(e_t) e_s - e_t||^2,    entry: a node

A personalisation network reads the teacher's representation and generates each node's own projector. It replaces DE's M
experts, so there is no number of groups to choose. The network is g = relu(G e_t + c), (rank,), and the projector is

    W(e_t) = W_0 + sum_r g_r W_r

with one network and one set of W for each side. It is computed as one linear map of the products of g and e_s, so no
node's matrix is formed. Only the matrix is generated: a generated bias could restore e_t without the student. The paper
generates its projector by a network with more layers; the form above, linear in the last layer, is our interpretation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions, Side, linear, projection_error
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import option


@dataclass(frozen=True)
class PHROptions(NodeOptions):
    """Options of the section ``phr``."""

    weight: float = option(0.01, "weight of the loss", minimum=0)
    rank: int = option(10, "number of matrices that are combined into a node's projector", minimum=1)


class PHRDistiller(NodeDistiller[PHROptions]):
    """Regression of the teacher's representations; projectors are generated from the same representations."""

    name = "phr"

    def build(self) -> None:
        super().build()
        sizes = self.student_dimension, self.teacher_dimension, self.options.rank
        self._projectors = [_PersonalProjector(*sizes, self.generator, self.dtype) for _ in self.entries.kinds]
        for kind, projector in zip(self.entries.kinds, self._projectors):
            self.add_module(f"{kind}s", projector)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's nodes."""
        sides = self.entries.sides(batch)
        totals = [projector(side) for projector, side in zip(self._projectors, sides)]
        return mean_over_nodes(totals, sum(len(side.nodes) for side in sides))


class _PersonalProjector(nn.Module):
    """One side's matrix [W_0, ..., W_rank], (d_t, (1 + rank) d_s), and the network that combines them."""

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.personalisation = linear(outputs, rank, generator, dtype)
        self.matrices = linear((1 + rank) * inputs, outputs, generator, dtype)

    def forward(self, side: Side) -> Tensor:
        """sum over nodes of ||W(e_t) e_s - e_t||^2. The bias of the map is shared by all nodes."""
        shares = functional.pad(self.personalisation(side.targets()).relu(), (1, 0), value=1.0)
        products = (shares.unsqueeze(2) * side.student.unsqueeze(1)).flatten(1)
        return projection_error(self.matrices, products, side)
