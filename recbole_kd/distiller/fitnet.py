"""FitNet: hints for thin deep nets (Romero et al., ICLR'15), on the final representations of a recommender.

    loss = mean over the batch's distinct users and items of ||proj(e_s) - e_t||^2,    entry: a node

proj is linear, one for users and one for items. ``projector: mlp`` adds a hidden layer, as in the code of FreqD's
authors. ``distance: cosine`` compares directions: 1 - cos(proj(e_s), e_t). If a model encodes a user and an item
together (NeuMF), the entries are the batch's distinct pairs, with one proj. With ``pairs: false`` they stay users and
items, by the embeddings of NeuMF's towers.

The paper regresses a hidden layer before it trains the student. Here the hint is the final representation and both
losses are trained together, as in the recommendation papers that compare with FitNet.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.nodes import NodeOrPairOptions, Side, projection_error
from recbole_kd.distiller.base.projectors import ProjectedDistiller, ProjectorOptions, before_last
from recbole_kd.loss.kernel.regression import layer_error
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import option


@dataclass(frozen=True)
class FitNetOptions(ProjectorOptions, NodeOrPairOptions):
    """Options of the section ``fitnet``."""

    weight: float = option(0.01, "weight of the loss", minimum=0)
    distance: str = option(
        "squared", "distance between projected vectors and the teacher's", choices=("squared", "cosine")
    )


class FitNetDistiller(ProjectedDistiller[FitNetOptions]):
    """Regression of the teacher's representations from the student's, through a projector."""

    name = "fitnet"

    def build(self) -> None:
        super().build()
        self._projectors = [self.projector(self.options) for _ in self.entries.kinds]
        for kind, projector in zip(self.entries.kinds, self._projectors):
            self.add_module(f"{kind}_projector", projector)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the batch's nodes, or over its pairs."""
        sides = self.entries.sides(batch)
        totals = [self._error(projector, side) for projector, side in zip(self._projectors, sides)]
        return mean_over_nodes(totals, sum(len(side.nodes) for side in sides))

    def _error(self, projector: nn.Module, side: Side) -> Tensor:
        """The sum over a side's nodes."""
        if isinstance(projector, nn.Linear) and self.options.distance == "squared":
            return projection_error(projector, side.student, side)
        inputs, weight, bias = before_last(projector, side.student)
        constant = inputs.new_ones(len(inputs))
        return layer_error(inputs, constant, weight, bias, side.teacher, side.nodes, self.options.distance)
