"""Maps from a student's representations to a teacher's: trained with the student, dropped after training.

Parameters are drawn from a distiller's own generator: adding one leaves the base model's random stream as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recbole_kd.contracts import Share
from recbole_kd.loss.regression import expert_error, mixture_error

__all__ = [
    "Experts",
    "SelectedExperts",
    "SelectionHistory",
    "SelectionNetwork",
    "annealed",
    "gumbel_softmax",
    "linear",
]

#: Nodes of each side whose expert is noted at every epoch.
HISTORY_NODES = 512


_ALL = Share()


def linear(inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    """A linear layer with torch's usual initial distribution, uniform in ±1/sqrt(inputs), drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)
    for parameter in layer.parameters():
        _draw(parameter, inputs, generator)
    return layer


def _draw(parameter: nn.Parameter, inputs: int, generator: torch.Generator) -> None:
    with torch.no_grad():
        parameter.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def annealed(start: float, end: float, epoch: int, epochs: int) -> float:
    """tau(p) = start (end / start)^(p / P), the temperature of epoch p of P; `end` from epoch P on."""
    return start * (end / start) ** min(1.0, epoch / epochs)


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """softmax((logits + noise) / temperature) by row: (n, M), (n, M) -> (n, M).

    The largest entry is subtracted before the division, so that no temperature overflows. At a temperature below the
    resolution of the logits' type the softmax could only be one-hot, or torn by rounding alone: there the largest entry
    gets 1 exactly, the first of equal ones, and no gradient flows.
    """
    keys = logits + noise
    if temperature < torch.finfo(keys.dtype).eps:
        return torch.zeros_like(keys).scatter_(1, keys.argmax(1, keepdim=True), 1.0)
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
            _draw(parameter, fan_in, generator)

    def __len__(self) -> int:
        """M."""
        return len(self.first)

    def error(self, student: Tensor, weights: Tensor, table: Tensor, rows: Tensor, squared: bool) -> Tensor:
        """sum_n ||e_t - sum_m s_nm E_m(e_s)||^2 over the nodes.

        A node whose largest weight is 1 in floating point goes through that expert alone: the others would add less
        than rounding takes away. Only the rest, all nodes early on and none late, pays for every expert.

        Args:
            student: e_s, (n, inputs).
            weights: s, (n, M), each row summing to 1.
            table, rows: e_t as rows (n,) of a table (N, outputs).
            squared: whether the norm is squared.
        """
        parameters = (self.first, self.first_bias, self.second, self.second_bias)
        largest, choice = weights.detach().max(1)
        certain = largest == 1
        if certain.all():
            return expert_error(student, choice, *parameters, table, rows, squared=squared)
        if not certain.any():
            return mixture_error(student, weights, *parameters, table, rows, squared=squared)
        hard, soft = certain.nonzero().squeeze(1), (~certain).nonzero().squeeze(1)
        routed = expert_error(student[hard], choice[hard], *parameters, table, rows[hard], squared=squared)
        return routed + mixture_error(student[soft], weights[soft], *parameters, table, rows[soft], squared=squared)


class SelectionNetwork(nn.Module):
    """Chooses experts by the *teacher's* representation: alpha = softmax(S(e_t)), then Gumbel-softmax (eq. 4-6)."""

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

    def forward(self, table: Tensor, rows: Tensor) -> Tensor:
        """(n, M) weights of the experts, each row summing to 1, for the teacher's `rows` (n,) of `table` (N, d_t)."""
        like = self.network.weight
        # Once the choice is hard no gradient reaches the network, and nothing needs to be kept for one.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._hard()):
            logits: Tensor = self.network(table.index_select(0, rows).to(like))
        if self.selection == "softmax":
            return logits.softmax(1)
        uniform = torch.rand(logits.shape, generator=self._generator, dtype=logits.dtype)
        noise = -uniform.clamp_(min=torch.finfo(logits.dtype).tiny).log_().neg_().log_()
        return gumbel_softmax(logits, noise.to(logits.device), self.temperature)

    def _hard(self) -> bool:
        return self.selection == "gumbel" and self.temperature < torch.finfo(self.network.weight.dtype).eps


class SelectionHistory(nn.Module):
    """Which expert was the likeliest for some nodes at the start of each epoch, for a map of experts over epochs.

    Attributes:
        nodes: (n,) ids of at most :data:`HISTORY_NODES` nodes, evenly spaced; 0 is padding and not among them.
        choices: (epochs, n) int16, the largest entry of alpha, without noise; -1 in an epoch that was not noted.
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
        """Notes the choice of `network` on the teacher's `table` (N, d_t) for this epoch; later ones are forgotten."""
        vectors = table.index_select(0, self.nodes.to(table.device)).to(network.weight)
        choice = network(vectors).argmax(1).to("cpu", torch.int16)
        skipped = self.choices.new_full((max(0, epoch - len(self.choices)), len(choice)), -1)
        self.choices = torch.cat([self.choices[:epoch], skipped, choice.unsqueeze(0)])

    def get_extra_state(self) -> Tensor:
        """The choices: their number grows with the epochs, so that they are no buffer."""
        return self.choices

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave."""
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
        super().__init__()
        hidden = (student_dimension + teacher_dimension) // 2
        self.experts = Experts(experts, student_dimension, hidden, teacher_dimension, generator, dtype)
        self.selection = SelectionNetwork(teacher_dimension, experts, selection, generator, dtype)

    def forward(
        self, student: Tensor, table: Tensor, rows: Tensor, squared: bool = True, share: Share = _ALL
    ) -> tuple[Tensor, Tensor]:
        """The sum over this process's share of the nodes of :meth:`Experts.error`, and the weights (n, M) of all."""
        weights = self.selection(table, rows)
        part = share.part(len(rows))
        return self.experts.error(student[part], weights[part], table, rows[part], squared), weights
