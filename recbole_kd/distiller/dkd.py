"""DKD: decoupled knowledge distillation (Zhao et al., CVPR'22, eq. 5-7), for next-item prediction.

    loss = tau^2 (alpha TCKD + beta NCKD)

The probabilities are softmax(y / tau) over all items after a sequence, without padding. The target class is the next
item. TCKD compares the models' probabilities of it; NCKD compares how they divide the rest among all other items.
Entry: a sequence of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from recbole_kd.contracts import Batch, Distiller, DistillerOptions, Needs
from recbole_kd.errors import UserError
from recbole_kd.loss.kernel.decoupled import decoupled_losses
from recbole_kd.options import option


@dataclass(frozen=True)
class DKDOptions(DistillerOptions):
    """Options of the section ``dkd``."""

    needs = Needs.of("sequences")

    weight: float = option(1.0, "weight of both terms", minimum=0)
    alpha: float = option(1.0, "weight of the target class's term (TCKD) within the loss", minimum=0)
    beta: float = option(1.0, "weight of the other classes' term (NCKD) within the loss", minimum=0)
    temperature: float = option(1.0, "tau, of both models' probabilities", above=0)

    def check(self, section: str) -> None:
        if self.weight and not (self.alpha or self.beta):
            raise UserError(
                f"{section}.alpha and {section}.beta are both 0, so there is no loss; set one of them above 0."
            )

    @property
    def weights(self) -> Mapping[str, float]:
        return {"target": self.weight * self.alpha, "non_target": self.weight * self.beta}


class DKDDistiller(Distiller[DKDOptions]):
    """Hinton's loss in two terms: the next item against all others, and the others among themselves."""

    name = "dkd"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both terms: ``target`` (TCKD) and ``non_target`` (NCKD)."""
        assert batch.sequences is not None, "both models are sequential"
        student, teacher = (view.sequence_scores(batch.sequences)[:, 1:] for view in (self.student, self.teacher))
        target, non_target = decoupled_losses(student, teacher, batch.items - 1, self.options.temperature)
        return {"target": target, "non_target": non_target}
