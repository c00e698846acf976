"""FitNet: hints for thin deep nets (Romero et al., ICLR'15), on the final representations of a recommender.

    loss = mean over the batch's distinct users and items of ||proj(e_s) - e_t||^2,    entry: a node

proj is linear, one for users and one for items. Where a model encodes a user and an item together (NeuMF), the entries
are the batch's distinct pairs, with one proj. The paper regresses a hidden layer before it trains the student; here,
as in the recommendation literature that compares with it, the hint is the final representation and both losses are
trained together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch, DataView, StudentView, TeacherView
from recbole_kd.distiller.base.experts import linear
from recbole_kd.distiller.base.nodes import NodeOrPairDistiller, Side
from recbole_kd.loss.kernel.regression import linear_error
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import Options, option


@dataclass(frozen=True)
class FitNetOptions(Options):
    """Options of the section ``fitnet``."""

    weight: float = option(0.01, "weight of the loss", minimum=0)


class FitNetDistiller(NodeOrPairDistiller):
    """Regression of the teacher's representations from the student's, through a linear projector."""

    name = "fitnet"
    options_class = FitNetOptions
    options: FitNetOptions
    user_projector: nn.Linear
    item_projector: nn.Linear
    pair_projector: nn.Linear

    def __init__(self, options: FitNetOptions, student: StudentView, teacher: TeacherView, data: DataView) -> None:
        super().__init__(options, student, teacher, data)
        dimensions = (self.student_dimension, self.teacher_dimension)
        names = ("pair_projector",) if self.pairs else ("user_projector", "item_projector")
        self._projectors = [linear(*dimensions, self.generator, self.dtype) for _ in names]
        for name, projector in zip(names, self._projectors):
            self.add_module(name, projector)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"fitnet": the weighted mean over the batch's nodes, or over its pairs}."""
        sides = self.entries(batch)
        totals = [_error(side, projector) for side, projector in zip(sides, self._projectors)]
        return {self.name: self.options.weight * mean_over_nodes(totals, sum(len(side.nodes) for side in sides))}


def _error(side: Side, projector: nn.Linear) -> Tensor:
    """sum over nodes of ||proj(e_s) - e_t||^2."""
    matrix = torch.cat([projector.weight, projector.bias.unsqueeze(1)], dim=1)
    return linear_error(functional.pad(side.student, (0, 1), value=1.0), matrix, side.teacher, side.nodes)
