"""Maps from a student's representations to a teacher's: trained with the student, dropped after training.

Parameters are drawn from the distiller's own generator, so a distiller does not change the base model's random stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional, TypeVar, Union

import torch
from torch import Tensor, nn

from recbole_kd.contracts import Share
from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions, Side, draw_uniform, linear
from recbole_kd.loss.kernel.layout import GroupLayout
from recbole_kd.loss.kernel.precision import rounds
from recbole_kd.loss.kernel.regression import expert_error, mixture_error
from recbole_kd.options import option

__all__ = [
    "AnnealedOptions",
    "ExpertDistiller",
    "Experts",
    "SelectedExperts",
    "Selection",
    "SelectionHistory",
    "SelectionNetwork",
    "annealed",
    "gumbel_softmax",
]

#: How many nodes of each side have their expert recorded in each epoch.
HISTORY_NODES = 512
#: Below this temperature each node uses exactly one expert.
HARD = torch.finfo(torch.float32).eps
#: How many nodes the selection network reads at a time.
SELECTION_BLOCK = 1 << 16


def annealed(start: float, end: float, epoch: int, epochs: int) -> float:
    """tau(p) = start (end / start)^(p / P), the temperature of epoch p of P; `end` from epoch P on."""
    return start * (end / start) ** min(1.0, epoch / max(1, epochs))


@dataclass(frozen=True)
class AnnealedOptions(NodeOptions):
    """Options of experts, and of the selection among them, which is annealed to one expert for each node."""

    selection = "gumbel"  # DE makes it an option
    weight: float = option(0.01, "weight of the loss", minimum=0)
    experts: int = option(30, "M, experts of each side", minimum=1)
    temperature: float = option(1.0, "tau0, temperature of the selection in the first epoch", above=0)
    end_temperature: float = option(1e-10, "tauP, temperature that the annealing ends at", above=0)
    anneal_epochs: Optional[int] = option(None, "P, epochs of annealing; by default all epochs of training", minimum=1)

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """tau of an epoch; the first epoch is 0, and training has `epochs` epochs."""
        return annealed(self.temperature, self.end_temperature, epoch, self.anneal_epochs or epochs)


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """softmax((logits + noise) / temperature) by row: (n, M), (n, M) -> (n, M).

    The largest entry is subtracted before the division, so that no temperature overflows.
    """
    keys = logits + noise
    return torch.softmax((keys - keys.detach().amax(1, keepdim=True)) / temperature, dim=1)


class Experts(nn.Module):
    """M two-layer maps E_m, inputs -> hidden -> outputs with a ReLU between, held as stacked weights.

    Attributes:
        first, first_bias: (M, inputs, hidden), (M, hidden).
        second, second_bias: (M, hidden, outputs), (M, outputs).
    """

    def __init__(
        self, experts: int, inputs: int, hidden: int, outputs: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(experts, inputs, hidden, dtype=dtype))
        self.first_bias = nn.Parameter(torch.empty(experts, hidden, dtype=dtype))
        self.second = nn.Parameter(torch.empty(experts, hidden, outputs, dtype=dtype))
        self.second_bias = nn.Parameter(torch.empty(experts, outputs, dtype=dtype))
        for parameter, fan_in in zip(self.parameters(), (inputs, inputs, hidden, hidden)):
            draw_uniform(parameter, fan_in, generator)

    def __len__(self) -> int:
        """M."""
        return len(self.first)

    def error(self, student: Tensor, selection: Selection, squared: bool) -> Tensor:
        """sum_n ||e_t - sum_m s_nm E_m(e_s)||^2 over the nodes.

        If a node's largest weight is 1 in floating point, only that expert is computed: the other experts would
        contribute less than the rounding error. All other nodes use every expert. In early epochs these are all nodes,
        in late epochs there are none.

        Args:
            student: e_s, (n, inputs).
            selection: s and e_t of the n nodes.
            squared: whether the norm is squared.
        """
        parameters = (self.first, self.first_bias, self.second, self.second_bias)
        weights = selection.weights
        if weights is None:
            return expert_error(student, selection.layout, *parameters, selection.targets, squared=squared)
        certain = weights.detach().amax(1) == 1
        count = int(certain.count_nonzero())
        if count == len(certain):
            return expert_error(student, selection.layout, *parameters, selection.targets, squared=squared)
        if count == 0:
            return mixture_error(student, weights, *parameters, selection.table, selection.rows, squared=squared)
        hard, soft = certain.nonzero().squeeze(1), (~certain).nonzero().squeeze(1)
        parts = [(student[nodes], selection.part(nodes)) for nodes in (hard, soft)]
        routed, mixed = (self.error(vectors, part, squared) for vectors, part in parts)
        return routed + mixed


@dataclass(frozen=True, eq=False)
class Selection:
    """Experts of n nodes.

    Attributes:
        table, rows: the nodes' vectors e_t, as rows (n,) of a table (N, d_t).
        choice: (n,) the expert with the largest weight.
        experts: M, their number.
        weights: s, (n, M), each row summing to 1; None if each node uses exactly one expert.
    """

    table: Tensor
    rows: Tensor
    choice: Tensor
    experts: int
    weights: Optional[Tensor] = None

    def part(self, of: Union[slice, Tensor]) -> Selection:
        """The selection restricted to some of the nodes."""
        if isinstance(of, slice) and of == slice(0, len(self.choice)):
            return self
        weights = None if self.weights is None else self.weights[of]
        return Selection(self.table, self.rows[of], self.choice[of], self.experts, weights)

    @cached_property
    def layout(self) -> GroupLayout:
        """The nodes grouped by choice. For bf16, group lengths are rounded: each new shape costs preparation time."""
        return GroupLayout(self.choice, self.experts, 32 if rounds(self.table) else 1)

    @cached_property
    def targets(self) -> Tensor:
        """(R, d_t) e_t in that layout, zeros in its padding."""
        return self.layout.blank_(self.table.index_select(0, self.layout.padded(self.rows)))


class SelectionNetwork(nn.Module):
    """Chooses experts by the *teacher's* representation: alpha = softmax(S(e_t)), then Gumbel-softmax (eq. 4-6).

    At a temperature below the resolution of float32 the softmax would be one-hot or dominated by rounding. There each
    node gets one expert, drawn with the probabilities alpha, which are those of Gumbel noise. No gradient flows.
    """

    def __init__(
        self, teacher_dimension: int, experts: int, selection: str, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        """
        Args:
            selection: ``gumbel`` (annealed to one expert) or ``softmax`` (attention over all of them).
            generator: draws the initial parameters and the noise.
        """
        super().__init__()
        self.network = linear(teacher_dimension, experts, generator, dtype)
        self.selection = selection
        self.temperature = 1.0
        self._generator = generator
        self._sums: Optional[Tensor] = None

    def begin_epoch(self, temperature: float, table: Optional[Tensor]) -> None:
        """Sets the temperature of an epoch.

        Args:
            temperature: tau.
            table: (N, d_t) the teacher's vectors that `forward` will read, if they are known before the batch. Once
                the choice is hard, the network is no longer trained; its output is then computed here, once.
        """
        self.temperature = temperature
        self._sums = None
        if self._hard() and table is not None:
            self._sums = torch.cat([self._running_sums(block) for block in table.split(SELECTION_BLOCK)])

    def forward(self, table: Tensor, rows: Tensor) -> Selection:
        """The experts of the teacher's `rows` (n,) of `table` (N, d_t)."""
        if self._hard():
            known = self._sums
            sums = self._running_sums(table.index_select(0, rows)) if known is None else known.index_select(0, rows)
            uniform = torch.rand(len(rows), 1, generator=self._generator, dtype=sums.dtype).to(sums.device)
            choice = torch.searchsorted(sums, uniform, right=True).squeeze(1)
            experts = sums.shape[1]
            # The last sum may be rounded below 1.
            return Selection(table, rows, choice.clamp_(max=experts - 1), experts)
        logits: Tensor = self.network(table.index_select(0, rows).to(self.network.weight))
        if self.selection == "softmax":
            weights = logits.softmax(1)
        else:
            uniform = torch.rand(logits.shape, generator=self._generator, dtype=logits.dtype)
            noise = -uniform.clamp_(min=torch.finfo(logits.dtype).tiny).log_().neg_().log_()
            weights = gumbel_softmax(logits, noise.to(logits.device), self.temperature)
        return Selection(table, rows, weights.detach().argmax(1), weights.shape[1], weights)

    def _hard(self) -> bool:
        return self.selection == "gumbel" and self.temperature < HARD

    @torch.no_grad()
    def _running_sums(self, vectors: Tensor) -> Tensor:
        """alpha_1, alpha_1 + alpha_2, ...: (n, d_t) -> (n, M)."""
        alpha: Tensor = self.network(vectors.to(self.network.weight)).softmax(1)
        return alpha.cumsum(1)


class SelectionHistory(nn.Module):
    """The likeliest expert of some nodes at the start of each epoch. `analyse` draws a map of experts from it.

    Attributes:
        nodes: (n,) ids of at most :data:`HISTORY_NODES` nodes, evenly spaced; 0 is padding and not among them.
        choices: (epochs, n) int16, the largest entry of alpha, without noise; -1 for an epoch that was not recorded.
    """

    nodes: Tensor
    choices: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        nodes = torch.linspace(1, size - 1, min(HISTORY_NODES, size - 1)).round().long()
        self.register_buffer("nodes", nodes)
        self.choices = torch.empty(0, len(nodes), dtype=torch.int16)

    @torch.no_grad()
    def record(self, epoch: int, network: nn.Linear, table: Tensor) -> None:
        """Records the choice of `network` on the teacher's `table` (N, d_t) for this epoch; drops later epochs."""
        vectors = table.index_select(0, self.nodes.to(table.device)).to(network.weight)
        choice = network(vectors).argmax(1).to("cpu", torch.int16)
        skipped = self.choices.new_full((max(0, epoch - len(self.choices)), len(choice)), -1)
        self.choices = torch.cat([self.choices[:epoch], skipped, choice.unsqueeze(0)])

    def get_extra_state(self) -> Tensor:
        """The choices. They are not a buffer, because their number grows with the epochs."""
        return self.choices

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.choices = state.to("cpu", torch.int16)


class SelectedExperts(nn.Module):
    """One side's experts with the network that selects among them."""

    def __init__(
        self,
        experts: int,
        student_dimension: int,
        teacher_dimension: int,
        selection: str,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            selection: as of :class:`SelectionNetwork`; or ``large``, one expert with the hidden layers of all M.
        """
        super().__init__()
        hidden = (student_dimension + teacher_dimension) // 2
        if selection == "large":
            experts, hidden, selection = 1, experts * hidden, "softmax"
        self.experts = Experts(experts, student_dimension, hidden, teacher_dimension, generator, dtype)
        self.selection = SelectionNetwork(teacher_dimension, experts, selection, generator, dtype)

    def forward(self, side: Side, squared: bool = True, share: Share = Share()) -> tuple[Tensor, Selection]:  # noqa: B008
        """:meth:`Experts.error` of this process's share of the nodes, and the selection of all nodes."""
        selection: Selection = self.selection(side.teacher, side.nodes)
        part = share.part(len(side.nodes))
        return self.experts.error(side.student[part], selection.part(part), squared), selection


AnnealedOptionsT = TypeVar("AnnealedOptionsT", bound=AnnealedOptions)
#: Kind of nodes -> the module that holds its experts; names in checkpoints.
_MODULES = {"user": "users", "item": "items", "pair": "of_pairs"}


class ExpertDistiller(NodeDistiller[AnnealedOptionsT]):
    """Base of distillers whose experts are selected by the teacher's vectors.

    Attributes:
        users, items, of_pairs: the experts of each kind of node; only the kinds in use are set.
        experts: the same experts, in the order of a batch's sides.
    """

    users: SelectedExperts
    items: SelectedExperts
    of_pairs: SelectedExperts

    def build(self) -> None:
        super().build()
        sizes = self.options.experts, self.student_dimension, self.teacher_dimension
        self.experts = [
            SelectedExperts(*sizes, self.options.selection, self.generator, self.dtype) for _ in self.entries.kinds
        ]
        for kind, experts in zip(self.entries.kinds, self.experts):
            self.add_module(_MODULES[kind], experts)
        self.user_history, self.item_history = SelectionHistory(self.data.users), SelectionHistory(self.data.items)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the temperature of the epoch and records the likeliest experts at its start."""
        temperature = self.options.temperature_at(epoch, self.data.epochs)
        histories = {"user": self.user_history, "item": self.item_history}
        for kind, experts, table in zip(self.entries.kinds, self.experts, self.entries.tables()):
            experts.selection.begin_epoch(temperature, table)
            if table is not None:
                histories[kind].record(epoch, experts.selection.network, table)
