"""Adam that does not change rows of embedding tables in steps that do not read them.

Adam changes every row in every step, by the rest of its first moment. A batch reads only a few thousand of a million
users, so the optimiser then takes most of a step's time. Here moments and weights change only in rows that have a
gradient, as in TensorFlow's LazyAdam and torch's SparseAdam. The optimiser differs from Adam: a row's moments decay
only in steps that read it. Bias is corrected by the number of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from recbole_kd.loss.kernel.rows import rows_with_gradient

__all__ = ["LazyAdam"]


#: Rows that are updated at a time, so that they stay in the processor's cache from the first operation to the last.
BLOCK = 8192


class LazyAdam(Optimizer):
    """Adam by rows for tables, ordinary Adam for every other parameter."""

    def __init__(
        self,
        params: Iterable[Tensor],
        tables: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """
        Args:
            params: all trained parameters.
            tables: those of them, (N, d), that are updated by rows. Their gradients may be sparse.
            lr: learning rate.
            weight_decay: L2 penalty, added to the gradients of rows that have one.
            betas: decay of the first and of the second moment.
            eps: added to the root of the second moment.

        Raises:
            ValueError: a learning rate or penalty below 0.
        """
        if not (lr >= 0 and weight_decay >= 0):
            raise ValueError(f"lr is {lr!r} and weight_decay {weight_decay!r}; expected numbers of at least 0")
        self._tables = {id(table) for table in tables}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One step. Returns the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        before = state["step"].to(parameter.device, copy=True)
        state["step"] += 1

        def move(tensors: Iterable[Tensor], gradient: Tensor) -> None:
            """Changes weights and both moments in place, in one pass over them."""
            weights, first, second = tensors
            adam(
                [weights], [gradient], [first], [second], [], [before.clone()],
                fused=True, amsgrad=False, maximize=False, beta1=beta1, beta2=beta2,
                lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            )  # fmt: skip

        wholes = parameter, state["exp_avg"], state["exp_avg_sq"]
        if id(parameter) not in self._tables and not gradient.is_sparse:
            move(wholes, gradient)
            return
        for block, values in _blocks(parameter, gradient):
            span = _neighbourhood(block) if values is None else None
            if span is not None:
                between = _between(block, span)
                kept = [whole.index_select(0, between) for whole in wholes]
                # `data`: torch counts this as a change of the gradient, and `rows.py` watches the count.
                move((whole[span] for whole in wholes), gradient.data[span])
                for whole, unchanged in zip(wholes, kept):
                    whole.index_copy_(0, between, unchanged)
            else:
                rows = [whole.index_select(0, block) for whole in wholes]
                move(rows, gradient.index_select(0, block) if values is None else values)
                for whole, changed in zip(wholes, rows):
                    whole.index_copy_(0, block, changed)


def _blocks(table: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, Optional[Tensor]]]:
    """The rows of a table that have a gradient, ascending, a block at a time; with a sparse gradient its values too."""
    if gradient.is_sparse:
        joined = gradient.coalesce()
        yield from zip(joined.indices()[0].split(BLOCK), joined.values().split(BLOCK))
        return
    rows = rows_with_gradient(table)
    if rows is None:  # a row with a NaN counts as read
        rows = (gradient.abs().amax(dim=1) != 0).nonzero().squeeze(1)
    for block in rows.split(BLOCK):
        yield block, None


def _neighbourhood(rows: Tensor) -> Optional[slice]:
    """From the first to the last of the ascending rows, if they are most of what is between them.

    Then it takes less time to change all of it, and to put back the rows that were not read.
    """
    if rows.device.type != "cpu" or not len(rows):
        return None
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if 3 * len(rows) >= 2 * (last + 1 - first) else None


def _between(rows: Tensor, span: slice) -> Tensor:
    """The ids of the span that are not in `rows`."""
    others = torch.ones(span.stop - span.start, dtype=torch.bool)
    others.index_fill_(0, rows - span.start, False)
    return others.nonzero().squeeze(1) + span.start
