"""SimRec: graph-less collaborative filtering (Xia et al., WWW'23), the student's three distillation terms.

T2 is a batch of observed pairs; |T1| triplets (u, j, k) are drawn uniformly from U x I x I. The terms are added to the
student's own L_rec = -mean over T2 of y_s(u, i) (eq. 12):

- ``prediction``, lambda1 L1 (eq. 7): z = y(u, j) - y(u, k); binary cross-entropy of sigma(z_s / tau1) against
  sigma(z_t / tau1). Entry: a triplet.
- ``embedding``, lambda2 L2 (eq. 8): InfoNCE on cosines, temperature tau2. For each distinct user u of T2 the anchor is
  the teacher's high-order sum g_u = sum_{l >= high_order} H_l[u]; positive: the student's h_u; negatives: the student's
  h of all users. The same for items. Entry: a distinct user (item); the two means are added.
- ``regularization``, lambda3 L3 (eq. 9): for distinct u: w_u log sum_{u'} exp(h_u·h_u' / tau3) + w_u log sum_{i'}
  exp(h_u·h_i' / tau3); for distinct i: w_i log sum_{i'} exp(h_i·h_i' / tau3). All users, all items in the sums. Entry:
  a distinct user (item); the means are added.
- w (eq. 10): w = 1 - epsilon if (g1 + g2)·g_rec > g1·g2 else 1 + epsilon, without gradient. g1, g2, g_rec are the
  gradients of lambda1 L1, lambda2 L2, L_rec with respect to the node's student embedding. By default the weights are
  included, as in the loss. The equation uses the gradients of L1 and L2 alone: ``gradient_weighting: unweighted``.
  Either way the three terms are means over their entries, as in the loss; the equation has sums.
- ``decay``, lambda4 L4: squared Frobenius norm of the embedding tables.

For a catalogue too large to sum over, ``catalogue: n`` estimates the sums from n users and n items. They are drawn for
each batch and shared by all terms (our addition).

Each term is differentiated once, down to the embeddings; autograd then takes the sum of these gradients through the
student once. The log-sum-exp over the catalogue is computed block by block.

The authors' code differs:

- L2 and the gradients of w use the embedding tables *before* the MLP (``space: input``).
- The rule of w compares cosines, cos(g1 + g2, g_rec) > cos(g1, g2): the sum is normalised, not its parts
  (``gradient_similarity: cosine``).
- epsilon = 0.2; one layer; teacher with 2 layers, so only layer 2 is high-order.
- log(x + 1e-5) in L3 (not followed: the sums here are exact).
Measured on the paper's Yelp (docs/results): validation NDCG@20 is 0.0384 as in the paper, which is the default, and
0.0383 as in the code. The second figure is from a rule of w that normalised each gradient by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from recbole_kd.contracts import Batch, Distiller, DistillerOptions, Needs, TeacherView
from recbole_kd.distiller.base.nodes import known
from recbole_kd.errors import UserError
from recbole_kd.loss.common import unit
from recbole_kd.loss.contrastive import adaptive_weights
from recbole_kd.loss.kernel.contrastive import (
    contrastive_regularization,
    cosine_infonce,
    mean_score_loss,
    prediction_bce,
)
from recbole_kd.loss.kernel.precision import product_precision
from recbole_kd.options import option

#: Users and items, users among themselves, items among themselves.
SIDES = ("ui", "uu", "ii")


@dataclass(frozen=True)
class SimRecOptions(DistillerOptions):
    """Weights, temperatures and the paper's ablations (table 3). Defaults: the published ones for Gowalla."""

    prediction_weight: float = option(0.1, "lambda1, weight of prediction-level distillation", minimum=0)
    embedding_weight: float = option(0.01, "lambda2, weight of embedding-level distillation", minimum=0)
    regularization_weight: float = option(1.0, "lambda3, weight of adaptive contrastive regularisation", minimum=0)
    decay_weight: float = option(1e-7, "lambda4, weight of the embedding tables' squared norm", minimum=0)
    prediction_temperature: float = option(0.03, "tau1, of the score differences", above=0)
    embedding_temperature: float = option(0.1, "tau2, of the cosines with the teacher's embeddings", above=0)
    regularization_temperature: float = option(1.0, "tau3, of the student's dot products", above=0)
    triplets: int = option(100_000, "|T1|, triplets (user, item, item) drawn for each batch", minimum=1)
    epsilon: float = option(0.2, "distance of the adaptive weights from 1", minimum=0, maximum=1)
    adaptive: bool = option(True, "whether regularisation is weighted by eq. 10; else by 1")
    space: str = option(
        "output",
        "output: the student's vectors; input: its embedding tables before the MLP, as in the authors' code. The "
        "embedding term compares them, and the adaptive weights' gradients are taken there",
        choices=("output", "input"),
    )
    gradient_similarity: str = option(
        "dot", "how gradients are compared in eq. 10; the authors' code uses cosine", choices=("dot", "cosine")
    )
    gradient_weighting: str = option(
        "weighted",
        "gradients in eq. 10: weighted, of the terms times their weights; unweighted, as the equation is printed",
        choices=("weighted", "unweighted"),
    )
    embedding_side: str = option(
        "both", "nodes of embedding-level distillation (table 3)", choices=("both", "user", "item")
    )
    regularization_pairs: tuple[str, ...] = option(
        SIDES,
        "pairs of nodes that the regularisation moves apart; table 3 leaves out one of the three",
        choices=(*SIDES, "all"),
        filled=True,
    )
    high_order: int = option(2, "first layer of the teacher that counts as high-order", minimum=0)
    catalogue: Optional[int] = option(
        None,
        "n, users drawn for each batch, and n items, to estimate sums over the catalogue; ~: all",
        minimum=1,
    )
    precision: str = option(
        "fp32",
        "precision of products over the catalogue: fp32, or bf16 with fp32 sums if the processor has it",
        choices=("fp32", "bf16"),
    )

    @property
    def needs(self) -> Needs:
        tables = ("tables",) if self.decay_weight or self.space == "input" else ()
        wanted = {"scores": self.prediction_weight, "representations": self.embedding_weight}
        of_teacher = tuple(need for need, weight in wanted.items() if weight)
        return Needs.of("representations", *tables, teacher=of_teacher)

    @property
    def weights(self) -> Mapping[str, float]:
        return {
            "prediction": self.prediction_weight,
            "embedding": self.embedding_weight,
            "regularization": self.regularization_weight,
            "decay": self.decay_weight,
        }

    def check_sizes(self, student: Optional[int], teacher: Optional[int]) -> None:
        if self.embedding_weight and None not in (student, teacher) and student != teacher:
            raise UserError(
                f"SimRec's embedding term compares the teacher's embeddings ({teacher} dimensions) with the student's "
                f"({student}); set --teacher.embedding_size={student} or --simrec.embedding_weight=0. Sizes of several "
                f"teachers are added, so choose ones whose sum is {student}."
            )


class SimRecDistiller(Distiller[SimRecOptions]):
    """SimRec's terms, for any student and teacher with representations. See the module's docstring for the formulas.

    The teacher's anchors g are the sum of its layers from ``high_order`` on; if it has fewer layers, the last one; if
    it has no layers, its final embeddings.

    With ``space: output``, g1, g2 and g_rec are gradients with respect to the student's final embeddings h, and L2
    compares g_u with h_u. With ``space: input``, L2 compares g_u with the row of the embedding table, and the gradients
    are taken with respect to the table; L1 and L_rec then need one more backward pass through the student each. g_rec
    is always the gradient of SimRec's L_rec, in closed form, whatever the student's own loss is.
    """

    name = "simrec"
    shares = True
    user_anchors: Tensor
    item_anchors: Tensor

    def build(self) -> None:
        """
        Raises:
            UserError: the embedding term is on, and the embeddings have different sizes.
        """
        if self.options.embedding_weight:
            user_anchors, item_anchors = _anchors(self.teacher, self.options.high_order)
            compared = self.student.tables()[0].shape[1] if self.options.space == "input" else self.student.dimension
            self.options.check_sizes(compared, user_anchors.shape[1])
            # Constants: they move with the module and are not in its checkpoint.
            self.register_buffer("user_anchors", user_anchors, persistent=False)
            self.register_buffer("item_anchors", item_anchors, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms whose weight is not 0: prediction, embedding, regularization, decay.

        They are weighted here, not in the base class, because eq. 10 compares the gradients of weighted terms.
        """
        options = self.options
        # Row r is the node with id r + 1, so padding is left out below.
        output = Sides(self.student.user_embeddings()[1:], self.student.item_embeddings()[1:])
        compared = self._tables() if options.space == "input" else output
        nodes = Sides(batch.distinct_users - 1, batch.distinct_positives - 1)
        samples = [self._sample(side) for side in output]

        losses: dict[str, Tensor] = {}
        if options.prediction_weight:
            losses["prediction"] = self._prediction(output)
        if options.embedding_weight:
            losses["embedding"] = self._embedding(compared, nodes, samples)
        if options.regularization_weight:
            weights = Sides(*(torch.ones_like(side, dtype=output.users.dtype) for side in nodes))
            if options.adaptive:
                weights = self._weights(batch, output, nodes, losses)
            losses["regularization"] = self._regularization(output, nodes, weights, samples)
        if options.decay_weight:
            tables = self._tables()
            weight = options.decay_weight / self.data.share.count
            losses["decay"] = weight * (tables.users.square().sum() + tables.items.square().sum())
        return losses

    def _sample(self, side: Tensor) -> Optional[Tensor]:
        """Rows drawn to estimate sums over a side; None: all rows."""
        count = self.options.catalogue
        if count is None or count >= len(side):
            return None
        return torch.randint(len(side), (count,), generator=self.generator).to(side.device)

    def _tables(self) -> Sides:
        users, items = self.student.tables()
        return Sides(users[1:], items[1:])

    def _prediction(self, output: Sides) -> Tensor:
        """lambda1 L1, over triplets that are drawn here."""
        options, count, share = self.options, self.options.triplets, self.data.share
        user, better, worse = (
            torch.randint(high, (count,), generator=self.generator)[share.part(count)].to(output.users.device)
            for high in (len(output.users), len(output.items), len(output.items))
        )
        teacher = self._teacher_difference(user, better, worse)
        loss = prediction_bce(*output, (user, better, worse), teacher, options.prediction_temperature)
        return options.prediction_weight * len(user) / count * loss

    def _teacher_difference(self, user: Tensor, better: Tensor, worse: Tensor) -> Tensor:
        """(T,) y_t(u, j) - y_t(u, k) of rows u, j, k."""
        scores = self.teacher.scores(user + 1, torch.stack([better, worse], dim=1) + 1)
        return scores[:, 0] - scores[:, 1]

    def _embedding(self, compared: Sides, nodes: Sides, samples: list[Optional[Tensor]]) -> Tensor:
        """lambda2 L2, of the sides that ``embedding_side`` keeps; a mean over the nodes that the teacher knows."""
        options = self.options
        losses = []
        marks = self.teacher.known_users, self.teacher.known_items
        sides = zip(("user", "item"), (self.user_anchors, self.item_anchors), compared, nodes, samples, marks)
        with product_precision(options.precision):
            for side, anchors, embeddings, rows, sample, marked in sides:
                if options.embedding_side in ("both", side):
                    rows, fraction = self.data.share.of(known(rows + 1, marked) - 1)
                    chosen = anchors[rows].to(embeddings.dtype)
                    loss = cosine_infonce(chosen, embeddings, rows, options.embedding_temperature, sample)
                    losses.append(options.embedding_weight * fraction * loss)
        return torch.stack(losses).sum()

    def _weights(self, batch: Batch, output: Sides, nodes: Sides, losses: dict[str, Tensor]) -> Sides:
        """w of the batch's distinct nodes (eq. 10)."""
        options = self.options
        recommendation = mean_score_loss(*output, batch.users - 1, batch.items - 1)
        terms = (losses.get("prediction"), losses.get("embedding"), recommendation)
        gradients = [self._gradients(term, output) for term in terms]
        weights = []
        for rows, *of_side in zip(nodes, *gradients):
            first, second, third = (
                output.users.new_zeros(len(rows), 1) if gradient is None else gradient[rows] for gradient in of_side
            )
            # Each process has a part of g1 and g2, but the whole of g_rec.
            first, second = self.data.share.sum(first), self.data.share.sum(second)
            if options.gradient_weighting == "unweighted":
                first = first / (options.prediction_weight or 1)
                second = second / (options.embedding_weight or 1)
            cosine = options.gradient_similarity == "cosine"
            weights.append(adaptive_weights(first, second, third, options.epsilon, cosine=cosine))
        return Sides(*weights)

    def _gradients(self, loss: Optional[Tensor], output: Sides) -> Sequence[Optional[Tensor]]:
        """Gradients of a loss for users and items in the space `space`; None if the loss does not depend on them."""
        if loss is None:
            return None, None
        if self.options.space == "output":
            return torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
        found = torch.autograd.grad(loss, self.student.tables(), retain_graph=True, allow_unused=True)
        return [None if gradient is None else gradient[1:] for gradient in found]

    def _regularization(self, output: Sides, nodes: Sides, weights: Sides, samples: list[Optional[Tensor]]) -> Tensor:
        """lambda3 L3, of this process's share of the nodes."""
        options = self.options
        parts = [self.data.share.part(len(side)) for side in nodes]
        rows = Sides(*(side[part] for side, part in zip(nodes, parts)))
        scales = (options.regularization_weight / max(1, len(side)) for side in nodes)
        shares = Sides(*(weight[part] * scale for weight, part, scale in zip(weights, parts, scales)))
        pairs = SIDES if "all" in options.regularization_pairs else options.regularization_pairs
        with product_precision(options.precision):
            return contrastive_regularization(
                output, rows, shares, options.regularization_temperature, pairs, (samples[0], samples[1])
            )


class Sides(NamedTuple):
    """A tensor for users and one for items, without padding: row r is id r + 1."""

    users: Tensor
    items: Tensor


def _anchors(teacher: TeacherView, high_order: int) -> tuple[Tensor, Tensor]:
    """g of users (U - 1, d_t) and items (I - 1, d_t), scaled to length 1."""
    if "layers" in teacher.capabilities:
        layers = teacher.layers()
        high = layers[high_order:] or layers[-1:]
        users, items = (torch.stack(side).sum(0) for side in zip(*high))
    else:
        users, items = teacher.user_embeddings(), teacher.item_embeddings()
    return unit(users[1:]), unit(items[1:])
