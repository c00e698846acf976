"""Projectors from the student's vectors to the teacher's: a linear layer, or the mean of several perceptrons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions, linear
from recbole_kd.errors import UserError
from recbole_kd.loss.kernel.layout import HIDDEN_BLOCK, blocks
from recbole_kd.options import Options, option

__all__ = ["Perceptrons", "ProjectedDistiller", "ProjectorOptions", "before_last"]


@dataclass(frozen=True)
class ProjectorOptions(Options):
    """Which projector a distiller trains."""

    projector: str = option(
        "linear",
        "map from the student's vectors to the teacher's; mlp has a hidden layer with ReLU",
        choices=("linear", "mlp"),
    )
    projectors: int = option(1, "mlps on each side; their mean is the projector", minimum=1, maximum=1000)
    hidden: Optional[int] = option(None, "width of an mlp's hidden layer; ~: the teacher's dimension", minimum=1)
    dropout: float = option(0.0, "share of an mlp's inputs that is dropped, before each layer", minimum=0, below=1)

    def check(self, section: str) -> None:
        """
        Raises:
            UserError: an option of perceptrons with a linear projector.
        """
        super().check(section)
        unused = {"projectors": self.projectors > 1, "hidden": self.hidden is not None, "dropout": self.dropout > 0}
        for name, given in unused.items():
            if given and self.projector == "linear":
                raise UserError(
                    f"{section}.{name}={getattr(self, name)} is an option of mlps, but {section}.projector is linear; "
                    f"set --{section}.projector=mlp or leave {section}.{name} out."
                )


ProjectedOptions = TypeVar("ProjectedOptions", bound=NodeOptions)


class ProjectedDistiller(NodeDistiller[ProjectedOptions]):
    """Base of distillers that train a projector, linear or mlp."""

    def projector(self, options: ProjectorOptions) -> nn.Module:
        """A new projector; its parameters are drawn from the distiller's generator."""
        if options.projector == "linear":
            return self.linear()
        return Perceptrons(options, self.student_dimension, self.teacher_dimension, self.generator, self.dtype)


class Perceptrons(nn.Module):
    """proj(x) = mean_m W_m2 drop(relu(W_m1 drop(x) + b_m1)) + b_m2, with layers d_s -> hidden -> d_t.

    In training mode drop(x) is dropout, drawn from the distiller's generator. The mean of perceptrons is one perceptron
    whose hidden layer has theirs side by side. Its last layer commutes with a filter of nodes.
    """

    def __init__(
        self, options: ProjectorOptions, inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden = options.hidden or outputs
        count = range(options.projectors)
        self.first = nn.ModuleList(linear(inputs, hidden, generator, dtype) for _ in count)
        self.last = nn.ModuleList(linear(hidden, outputs, generator, dtype) for _ in count)
        # A multiple of 2^-16 below 1, as it is drawn.
        self._dropout = min(round(options.dropout * 2**16), 2**16 - 1) / 2**16
        self._generator = generator

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, d_s) -> (n, d_t)."""
        return functional.linear(self.hidden(vectors), *self.last_layer())

    def hidden(self, vectors: Tensor) -> Tensor:
        """The hidden layers side by side: (n, d_s) -> (n, M hidden)."""
        parameters = [parameter for first in self.first for parameter in (first.weight, first.bias)]
        return cast(Tensor, _HiddenLayers.apply(vectors, self._dropped, self._generator, *parameters))

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """Its weight (d_t, M hidden) and bias (d_t,), for :meth:`hidden` as it is in the present mode."""
        weight = torch.cat([cast(Tensor, last.weight) for last in self.last], 1)
        bias = torch.stack([cast(Tensor, last.bias) for last in self.last]).mean(0)
        return weight / (len(self.last) * (1 - self._dropped)), bias

    @property
    def _dropped(self) -> float:
        """The share that is dropped in the present mode."""
        return self._dropout if self.training else 0.0


def before_last(projector: nn.Module, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a projector's last layer maps, (n, h), and this layer's weight (d_t, h) and bias (d_t,)."""
    if isinstance(projector, Perceptrons):
        return projector.hidden(vectors), *projector.last_layer()
    assert isinstance(projector, nn.Linear)
    return vectors, projector.weight, projector.bias


class _HiddenLayers(torch.autograd.Function):
    """[drop(relu(W_m drop(x) + b_m))]_m, by blocks of rows.

    What a hidden layer keeps is not divided by 1 - share; :meth:`Perceptrons.last_layer` is.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, share: float, generator: torch.Generator, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        inputs, factors = [], []
        hidden = vectors.new_empty(len(vectors), sum(map(len, weights)))
        for part, weight, bias in zip(hidden.chunk(len(weights), 1), weights, biases):
            given = vectors
            if share:
                factors.append(_kept(vectors, share, generator) / (1 - share))
                given = vectors * factors[-1]
            inputs.append(given)
            for rows in _blocks(part):
                torch.addmm(bias, given[rows], weight.t(), out=part[rows]).relu_()
                if share:
                    part[rows].mul_(_kept(part[rows], share, generator))
        ctx.save_for_backward(hidden, *weights, *inputs, *factors)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        hidden, *saved = ctx.saved_tensors
        count = (len(ctx.needs_input_grad) - 3) // 2
        weights, inputs, factors = saved[:count], saved[count : 2 * count], saved[2 * count :]
        to_inputs = [torch.empty_like(given) for given in inputs]
        to_weights = [torch.zeros_like(weight) for weight in weights]
        to_biases = [weight.new_zeros(len(weight)) for weight in weights]
        for m, (part, of_part) in enumerate(zip(hidden.chunk(count, 1), gradient.chunk(count, 1))):
            for rows in _blocks(part):
                back = torch.ops.aten.threshold_backward(of_part[rows], part[rows], 0)
                torch.mm(back, weights[m], out=to_inputs[m][rows])
                to_weights[m].addmm_(back.t(), inputs[m][rows])
                to_biases[m].add_(back.sum(0))
        for to_input, factor in zip(to_inputs, factors):
            to_input.mul_(factor)
        to_vectors = to_inputs[0] if count == 1 else torch.stack(to_inputs).sum(0)
        return to_vectors, None, None, *(each for pair in zip(to_weights, to_biases) for each in pair)


def _blocks(layer: Tensor) -> Iterator[slice]:
    """Rows that are computed at a time, as many for each thread of a processor; on a GPU all of them."""
    on_cpu = layer.device.type == "cpu"
    return blocks(len(layer), HIDDEN_BLOCK * torch.get_num_threads() if on_cpu else max(1, len(layer)))


def _kept(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """1 for what is kept and 0 for `share` of the places, a multiple of 2^-16, in the shape of `like`.

    A place takes 16 random bits. torch's dropout draws a number for each place, which takes ten times as long.
    """
    numbers = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=generator.device)
    bits = numbers.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
    return (bits >= round(share * 2**16) - 2**15).view(like.shape).to(like)
