"""Projectors from the student's vectors to the teacher's: a linear layer, or the mean of several perceptrons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.distiller.base.nodes import NodeDistiller, NodeOptions, linear
from recbole_kd.errors import UserError
from recbole_kd.options import Options, option

__all__ = ["Perceptrons", "ProjectedDistiller", "ProjectorOptions"]


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

    In training mode drop(x) is dropout, drawn from the distiller's generator.
    """

    def __init__(
        self, options: ProjectorOptions, inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden = options.hidden or outputs
        count = range(options.projectors)
        self.first = nn.ModuleList(linear(inputs, hidden, generator, dtype) for _ in count)
        self.last = nn.ModuleList(linear(hidden, outputs, generator, dtype) for _ in count)
        self._dropout, self._generator = options.dropout, generator

    def forward(self, vectors: Tensor, product: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """(n, d_s) -> (n, d_t); with `product`, a linear map of rows (n, d) -> (m, d), the product of the result.

        The last layer commutes with the product, so it is applied only to the m rows after the product.
        """
        outputs = []
        for first, last in zip(self.first, self.last):
            hidden = self._dropped(first(self._dropped(vectors)).relu())
            if product is None:
                outputs.append(last(hidden))
            else:
                assert isinstance(last, nn.Linear)
                outputs.append(functional.linear(product(hidden), last.weight))
        total = torch.stack(outputs).sum(0) if len(outputs) > 1 else outputs[0]
        mean = total / len(outputs)
        if product is not None:
            bias = torch.stack([last.bias for last in self.last]).mean(0)  # type: ignore[misc]
            mean = mean + product(vectors.new_ones(len(vectors), 1)) * bias
        return mean

    def _dropped(self, values: Tensor) -> Tensor:
        if not (self.training and self._dropout):
            return values
        kept = torch.rand(values.shape, generator=self._generator).ge_(self._dropout).to(values)
        return values * kept.div_(1 - self._dropout)
