"""SEvo: optimisers that let related rows of an embedding table move together (NeurIPS'24).

"Graph-enhanced Optimizers for Structure-aware Recommendation Embedding Evolution". For an embedding table whose rows
are the nodes of a graph with symmetric-normalised adjacency Ã, the optimiser's update Delta is replaced by

    psi(Delta) = (1 - beta) / (1 - beta^(L+1)) * sum_{l=0..L} beta^l Ã^l Delta      (Neumann with rescaling)

or by L rounds of x <- beta Ã x + (1 - beta) Delta from x = Delta (iterative). Both tend to
(1 - beta) (I - beta Ã)^-1 Delta, the minimiser over X of ||X - Delta||^2 + beta/(1 - beta) tr(X^T (I - Ã) X).
Neumann with rescaling keeps the length of an update that is already smooth (Ã Delta = Delta) at every L.

The direction of SGD, Adam or AdamW is smoothed. Decoupled weight decay (AdamW) is not smoothed. The L2 penalty of SGD
and Adam is part of their gradient, so it is smoothed. In AdamW, rows whose gradient is entirely zero keep their
bias-corrected moments: m/(1 - beta1^t) and v/(1 - beta2^t) replace g and g^2, so that moments of sparse rows do not
decay.

Deviations: if a smoother changes nothing (beta 0, or no layers), its group is an ordinary one, without the moment
correction. So beta 0 is the plain optimiser bit for bit. A row without neighbours keeps the formula's factor
(1 - beta)/(1 - beta^(L+1)), as in the published code.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Optional, Union

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from recbole_kd.loss.kernel.graph import graph_product, to_csr


class NeumannSmoother:
    """psi of the module's docstring, for one graph.

    A group of an optimiser carries it under ``smoother``; the rows of the group's tables, one table after the other,
    are the graph's nodes. Each layer is one product of a sparse matrix and a dense one.
    """

    def __init__(self, adjacency: Tensor, beta: float, layers: int, iterative: bool = False) -> None:
        """
        Args:
            adjacency: Ã, a sparse CSR tensor (N, N), symmetric-normalised.
            beta: strength in [0, 1); 0 smooths nothing.
            layers: L >= 0, number of steps that an update spreads on the graph.
            iterative: iterate x <- beta Ã x + (1 - beta) Delta instead of the rescaled Neumann series.

        Raises:
            ValueError: beta or layers out of range, or an adjacency that is not a square CSR tensor.
        """
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta!r}; expected at least 0 and below 1")
        if layers != int(layers) or layers < 0:
            raise ValueError(f"layers is {layers!r}; expected a whole number, at least 0")
        if adjacency.layout != torch.sparse_csr or adjacency.shape[0] != adjacency.shape[1]:
            raise ValueError(
                f"adjacency is {adjacency.layout} of shape {tuple(adjacency.shape)}; "
                "expected a square sparse CSR tensor"
            )
        self.beta = float(beta)
        self.layers = int(layers)
        self.iterative = iterative
        self.adjacency = to_csr(adjacency)
        self._settings: Optional[dict[str, Any]] = None

    @property
    def nodes(self) -> int:
        """N, the number of rows of all smoothed tables."""
        return self.adjacency.shape[0]

    @property
    def is_identity(self) -> bool:
        """Whether psi(Delta) = Delta."""
        return self.beta == 0 or self.layers == 0

    def settings(self) -> dict[str, Any]:
        """Plain values that identify this smoother: its options and a checksum of the graph's edges."""
        if self._settings is None:
            checksum = 0
            for indices in (self.adjacency.crow_indices(), self.adjacency.col_indices()):
                checksum = zlib.crc32(indices.cpu().numpy().tobytes(), checksum)
            self._settings = {
                "beta": self.beta,
                "layers": self.layers,
                "iterative": self.iterative,
                "nodes": self.nodes,
                "edges": checksum,
            }
        return dict(self._settings)

    def __call__(self, updates: Tensor) -> Tensor:
        """psi(updates), both (N, d), on the device and in the dtype of `updates`."""
        if self.adjacency.device != updates.device or self.adjacency.dtype != updates.dtype:
            self.adjacency = self.adjacency.to(device=updates.device, dtype=updates.dtype)
        if self.is_identity:
            return updates
        # Horner's scheme, x <- Delta + beta Ã x: one product for each layer.
        own = 1 - self.beta if self.iterative else 1.0
        smoothed = updates
        for _ in range(self.layers):
            smoothed = graph_product(self.adjacency, smoothed).mul_(self.beta).add_(updates, alpha=own)
        if not self.iterative:
            smoothed.mul_((1 - self.beta) / (1 - self.beta ** (self.layers + 1)))
        return smoothed

    def __repr__(self) -> str:
        kind = "iterative" if self.iterative else "rescaled"
        return f"NeumannSmoother({self.nodes} nodes, beta {self.beta:g}, {self.layers} layers, {kind})"


class SEvoOptimizer(Optimizer):
    """Base of the three optimisers: groups with a smoother make the smoothed step, all others torch's own step.

    A subclass implements its update of one table (:meth:`_direction`) and torch's ordinary step.
    Gradients are dense. A group whose smoother changes nothing is an ordinary group.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its ``smoother``, if any, smooths its tables jointly, in their order.

        Raises:
            ValueError: a smoothed parameter is not a table, tables differ in width, or rows do not match the graph.
        """
        super().add_param_group(param_group)
        smoother = self.param_groups[-1]["smoother"]
        if smoother is None:
            return
        tables = self.param_groups[-1]["params"]
        shapes = [tuple(table.shape) for table in tables]
        if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
            raise ValueError(f"the smoothed parameters have shapes {shapes}; expected tables of one width")
        rows = sum(shape[0] for shape in shapes)
        if rows != smoother.nodes:
            raise ValueError(f"the smoothed tables {shapes} have {rows} rows; the graph has {smoother.nodes} nodes")

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One step. Returns the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            active: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not active:
                continue
            if group["smoother"] is None or group["smoother"].is_identity:
                gradients = [parameter.grad for parameter in active if parameter.grad is not None]
                self._ordinary_step(group, active, gradients)
            else:
                self._smoothed_step(group)
        return loss

    def _smoothed_step(self, group: dict[str, Any]) -> None:
        tables: list[Tensor] = group["params"]
        # The graph spreads updates to other tables, so a table without gradient is treated as one with gradient 0.
        updates = [
            self._direction(table, torch.zeros_like(table) if table.grad is None else table.grad, group)
            for table in tables
        ]
        smoothed = group["smoother"](torch.cat(updates) if len(updates) > 1 else updates[0])
        for table, update in zip(tables, smoothed.split([len(table) for table in tables])):
            table.add_(update, alpha=-group["lr"])

    def _direction(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Delta (n, d), the update of `table` before smoothing, multiplication by the learning rate and subtraction."""
        raise NotImplementedError

    def _ordinary_step(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """torch's own step, with its foreach kernels if torch chooses them, on the parameters that have a gradient."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict; a smoother is replaced by its :meth:`NeumannSmoother.settings`."""
        state = super().state_dict()
        for group in state["param_groups"]:
            if group["smoother"] is not None:
                group["smoother"] = group["smoother"].settings()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes exactly from another optimiser's `state_dict`; this optimiser keeps its smoothers.

        Raises:
            ValueError: a smoother has other settings or another graph than the saved one.
        """
        smoothers = [group["smoother"] for group in self.param_groups]
        for number, (smoother, group) in enumerate(zip(smoothers, state_dict["param_groups"])):
            here = None if smoother is None else smoother.settings()
            saved = group.get("smoother")
            if here != saved:
                raise ValueError(f"parameter group {number} was saved with smoother {saved}; it has {here} here")
        super().load_state_dict(state_dict)
        for smoother, group in zip(smoothers, self.param_groups):
            group["smoother"] = smoother


Parameters = Union[Iterable[Tensor], Iterable[dict[str, Any]]]


class SEvoSGD(SEvoOptimizer):
    """SGD, its direction smoothed. ``weight_decay`` is an L2 penalty, as in :class:`torch.optim.SGD`."""

    def __init__(self, params: Parameters, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        """
        Args:
            params: parameters or groups; a group may carry ``smoother``.
            lr: learning rate.
            momentum: share of the last direction that is kept.
            weight_decay: L2 penalty, added to the gradient.

        Raises:
            ValueError: a value out of range, or tables that do not match the graph.
        """
        _check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "smoother": None}
        super().__init__(params, defaults)

    def _direction(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if group["weight_decay"] != 0:
            gradient = gradient.add(table, alpha=group["weight_decay"])
        if group["momentum"] == 0:
            return gradient
        state = self.state[table]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = gradient.clone()
        else:
            state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        return state["momentum_buffer"]

    def _ordinary_step(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        buffers = [self.state[parameter].get("momentum_buffer") for parameter in parameters]
        sgd(
            parameters,
            gradients,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            has_sparse_grad=False,
        )
        if group["momentum"] != 0:
            for parameter, buffer in zip(parameters, buffers):
                self.state[parameter]["momentum_buffer"] = buffer


class SEvoAdam(SEvoOptimizer):
    """Adam, its direction smoothed. ``weight_decay`` is an L2 penalty, as in :class:`torch.optim.Adam`."""

    _torch_step: ClassVar[Callable[..., None]] = staticmethod(adam)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """
        Args:
            params: parameters or groups; a group may carry ``smoother``.
            lr: learning rate.
            betas: decay of the first and of the second moment, each in [0, 1).
            eps: added to the root of the second moment.
            weight_decay: L2 penalty added to the gradient; for AdamW the decoupled decay, relative to lr.

        Raises:
            ValueError: a value out of range, or tables that are not the graph's.
        """
        _check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas!r}; expected each at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "smoother": None})

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, under torch's names."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _direction(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        gradient = self._decayed(table, gradient, group)
        state = self._moments(table)
        state["step"] += 1
        step = int(state["step"].item())
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        decay1, decay2 = self._decay_of_moments(gradient, step, beta1, beta2)
        first.mul_(decay1).add_(gradient, alpha=1 - beta1)
        second.mul_(decay2).addcmul_(gradient, gradient, value=1 - beta2)
        # (m / c1) / (sqrt(v / c2) + eps), with both moments' corrections in the denominator.
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        denominator = second.sqrt().mul_(correction1 / math.sqrt(correction2)).add_(correction1 * group["eps"])
        return torch.div(first, denominator, out=denominator)

    def _decayed(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Applies weight decay; returns the gradient for the moments."""
        return gradient.add(table, alpha=group["weight_decay"]) if group["weight_decay"] != 0 else gradient

    def _decay_of_moments(
        self, gradient: Tensor, step: int, beta1: float, beta2: float
    ) -> tuple[Union[float, Tensor], Union[float, Tensor]]:
        """Factors of the last step's moments: numbers, or (n, 1) for each row."""
        return beta1, beta2

    def _ordinary_step(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self._moments(parameter) for parameter in parameters]
        beta1, beta2 = group["betas"]
        self._torch_step(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class SEvoAdamW(SEvoAdam):
    """AdamW: its direction is smoothed, its weight decay is not; rows without gradient keep their moments."""

    _torch_step: ClassVar[Callable[..., None]] = staticmethod(adamw)

    def _decayed(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        table.mul_(1 - group["lr"] * group["weight_decay"])
        return gradient

    def _decay_of_moments(self, gradient: Tensor, step: int, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
        """The moment correction.

        With m/(1 - beta^(t-1)) in place of g, beta m + (1 - beta) g is m (1 - beta^t)/(1 - beta^(t-1)). So the row
        keeps its bias-corrected moment if it only gets another factor.
        """
        # On a CPU three times as fast as `any`. A row with a NaN counts as having a gradient.
        idle = gradient.abs().amax(dim=1, keepdim=True) == 0
        # Before the first gradient the moments are 0, so the factor does not matter.
        kept = [(1 - beta**step) / (1 - beta ** (step - 1)) if step > 1 else 1.0 for beta in (beta1, beta2)]
        decay1, decay2 = (
            gradient.new_full(idle.shape, beta).masked_fill_(idle, factor) for beta, factor in zip((beta1, beta2), kept)
        )
        return decay1, decay2


OPTIMIZERS: dict[str, type[SEvoOptimizer]] = {"sevo_sgd": SEvoSGD, "sevo_adam": SEvoAdam, "sevo_adamw": SEvoAdamW}


def smoothed_groups(
    parameters: Iterable[Tensor], tables: Sequence[Tensor], smoother: NeumannSmoother
) -> list[dict[str, Any]]:
    """Groups for an optimiser: one with `tables` and `smoother`, and one with all other parameters.

    Args:
        parameters: all trained parameters, in any order.
        tables: those whose rows are the graph's nodes, in the order of the nodes.
        smoother: psi.

    Raises:
        ValueError: a table is not among the parameters.
    """
    parameters = list(parameters)
    smoothed = {id(table) for table in tables}
    if not smoothed <= {id(parameter) for parameter in parameters}:
        raise ValueError("a table to be smoothed is not among the parameters that are trained")
    groups: list[dict[str, Any]] = [{"params": list(tables), "smoother": smoother}]
    rest = [parameter for parameter in parameters if id(parameter) not in smoothed]
    return [*groups, {"params": rest}] if rest else groups


def sevo_optimizer(name: str, groups: Parameters, lr: float, weight_decay: float = 0.0) -> SEvoOptimizer:
    """The optimiser of a learner's name.

    Args:
        name: sevo_sgd, sevo_adam or sevo_adamw.
        groups: parameters or groups, such as :func:`smoothed_groups` makes.
        lr: learning rate.
        weight_decay: L2 penalty (sevo_sgd, sevo_adam) or decoupled decay (sevo_adamw).

    Raises:
        ValueError: an unknown name, or a value that the optimiser refuses.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimiser {name!r}; expected one of {', '.join(OPTIMIZERS)}")
    optimizer: Any = OPTIMIZERS[name]
    return optimizer(groups, lr=lr, weight_decay=weight_decay)


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value!r}; expected at least 0")
