"""DE: distillation experts (Kang et al., "DE-RRD", CIKM'20, eq. 4-7).

    E_m: d_s -> (d_s + d_t) / 2 -> d_t with a ReLU between, M experts per side (users, items)
    alpha = softmax(S(e_t)), S linear, d_t -> M, on the teacher's representation                          (eq. 4)
    s = softmax((log alpha + g) / tau), g Gumbel noise                                                   (eq. 5-6)
    loss = mean over the batch's distinct users and items of ||e_t - sum_m s_m E_m(e_s)||^2              (eq. 7)

Entry: a node. A model that encodes a user and an item together (NeuMF, where e is the last hidden layer) has as entries
the distinct pairs of the batch, positive and negative. Pairs have one set of experts, as in the paper. With
``pairs: false``, the other option of section 4.1.3, NeuMF's entries are its users and items; their vectors are the
embeddings of both towers, side by side. The temperature falls with the epoch, tau(p) = tau0 (tauP / tau0)^(p / P),
tau0 = 1, tauP = 1e-10. So s goes from nearly uniform to one expert. Deviations:

- The paper's norm is not squared; the authors' code squares it (``squared``, the default).
- Paper and code sum over the batch's nodes; here it is a mean. With a base loss that is a mean over B pairs, the
  published lambda corresponds to the weight lambda times (distinct nodes / B), about two or three lambda.
- The code adds 1e-10 to alpha before the logarithm; here log-softmax is used, which needs no such constant.
- The code treats positives and negatives as two sets, each with half the weight; here I_B is one set.

Ablations of table 4: ``selection: softmax`` is attention, ``selection: large`` one large expert for each side, whose
hidden layer is as wide as those of all M experts together, ``experts: 1`` one small expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recbole_kd.contracts import Batch
from recbole_kd.distiller.base.experts import AnnealedOptions, ExpertDistiller
from recbole_kd.distiller.base.nodes import NodeOrPairOptions
from recbole_kd.loss.regression import mean_over_nodes
from recbole_kd.options import option


@dataclass(frozen=True)
class DEOptions(AnnealedOptions, NodeOrPairOptions):
    """Options of the section ``de``."""

    weight: float = option(0.01, "lambda, weight of the loss", minimum=0)
    experts: int = option(30, "M, experts for users, and M more for items; or M for pairs", minimum=1)
    squared: bool = option(True, "whether the norm is squared, as in the authors' code; the paper's is not")
    selection: str = option(
        "gumbel",
        "gumbel: annealed to one expert for each node; softmax: attention over all; large: one expert with the size of "
        "all",
        choices=("gumbel", "softmax", "large"),
    )


class DEDistiller(ExpertDistiller[DEOptions]):
    """Regression of the teacher's representations by experts that the teacher's representation selects."""

    name = "de"
    shares = True

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 7: the mean over the batch's nodes, or over its pairs."""
        sides = self.entries.sides(batch)
        totals = [experts(side, self.options.squared, self.data.share)[0] for experts, side in zip(self.experts, sides)]
        return mean_over_nodes(totals, sum(len(side.nodes) for side in sides))
