"""Several processes for one run, with the results of one process.

The work is divided so that the results do not change:

- Only process 0 draws a batch; it sends the batch to the others. So every random stream is that of one process.
- The gradient of a step is the sum of the processes' parts. A distiller with :attr:`Distiller.shares` computes its
  :class:`Share` of its entries, over the *global* batch's distinct users and items. Any other distiller is computed by
  one process, and so is a base loss that is not a mean over rows. Averaging losses of local batches, as
  DistributedDataParallel does, would give other numbers, because entries are distinct in the global batch. If a step
  may draw random numbers (dropout), process 0 computes the whole step.
- Every process makes the same optimiser step, with the summed gradient.
- In evaluation each process takes whole batches. Their results are put together in the order of one process. Every
  process then computes the metrics of all batches, equal to the last digit.
- Process 0 computes the teacher and the ranked lists; the others wait and read its files.
- Only process 0 writes and logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from recbole.data.interaction import Interaction
from recbole.evaluator import DataStruct
from torch import Tensor, nn

from recbole_kd.cluster.group import Group
from recbole_kd.contracts import Share
from recbole_kd.data.loaders import FastFullSortEvalDataLoader
from recbole_kd.evaluation.collector import FullSortCollector, PartOfBatches
from recbole_kd.model.kinds import is_one_of
from recbole_kd.student.readers import is_sequential

__all__ = ["SharedMixin", "divides_steps", "share_of_steps"]

#: Base losses that are means over the rows of a batch (and penalties on whole tables), by architecture.
_MEANS_OVER_ROWS = {"BPR", "SimRecStudent", "SimRecTeacher"}
#: Architectures that draw no random numbers for scores and representations, so a step can be divided. For others
#: (dropout, augmented graphs) process 0 computes the whole steps, in the order of one process.
_WITHOUT_CHANCE = {*_MEANS_OVER_ROWS, "LightGCN"}


def divides_steps(model: nn.Module) -> bool:
    """Whether a training step of this model can be divided among processes without changing its result."""
    return is_one_of(model, _WITHOUT_CHANCE)


def share_of_steps(model: nn.Module, group: Group) -> Share:
    """The part of a training step that distillers compute in this process: its share, or everything."""
    return group if divides_steps(model) else Share()


class _SharedBatches:
    """A loader: process 0 draws its batches, and every process gets them."""

    def __init__(self, loader: Any, group: Group) -> None:
        self._loader = loader
        self._group = group

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Interaction]:
        own = iter(self._loader) if self._group.is_first else None
        for _ in range(len(self._loader)):
            yield Interaction(self._group.tensors(next(own).interaction if own is not None else None))
        if own is not None:
            for _ in own:  # run to the loader's own end, so that random streams are as with one process
                raise AssertionError("a loader gave more batches than its length")


class SharedMixin:
    """Adds a group of processes to :class:`recbole_kd.trainer.kd_trainer.KDMixin`; it comes first among the bases."""

    group: Group
    config: Any
    model: nn.Module
    distillers: nn.ModuleDict
    saved_model_file: str
    last_file: str
    resume_checkpoint: Callable[[str], None]
    logger: Any
    eval_collector: Any

    def __init__(self, config: Any, *arguments: Any, group: Group, **named: Any) -> None:
        self.group = group
        super().__init__(config, *arguments, **named)  # type: ignore[call-arg]
        # The first process chooses the file's name, which stays the same after a restart.
        self.saved_model_file = group.plain(self.saved_model_file)
        self.eval_collector = _SharedCollector(config, group)
        self._owners = self._owners_of_distillers()
        self._terms_known: list[str] = []

    def _owners_of_distillers(self) -> dict[str, int]:
        """Distiller that one process computes -> that process, in turns after an undivided base loss at process 0."""
        if not divides_steps(self.model):
            self.logger.warning(
                f"{type(self.model).__name__} may draw random numbers in a step: process 0 computes the steps. "
                f"{'It also evaluates.' if is_sequential(self.model) else 'Evaluation is divided among all processes.'}"
            )
            return dict.fromkeys(self.distillers, 0)
        turn = 0 if self._base_is_shared() else 1
        owners = {}
        for name, distiller in self.distillers.items():
            if not getattr(distiller, "shares", False):
                owners[name] = turn % self.group.count
                turn += 1
        return owners

    def _base_is_shared(self) -> bool:
        return is_one_of(self.model, _MEANS_OVER_ROWS)

    def fit(self, *arguments: Any, **named: Any) -> Any:
        """As in one process. If restarted because a process ended, it resumes after the last complete epoch."""
        if self.group.restarted and self.group.plain(os.path.isfile(self.last_file)):
            self.resume_checkpoint(self.last_file)
        return super().fit(*arguments, **named)  # type: ignore[misc]

    def _mine(self, name: str) -> bool:
        return self._owners.get(name, self.group.rank) == self.group.rank

    def _computed(self) -> dict[str, Any]:
        """The distillers that this process computes, in whole or in part."""
        return {name: distiller for name, distiller in self.distillers.items() if self._mine(name)}

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        # Sums and steps are equal in all processes, except for rounding on a GPU; here the replicas are made equal.
        self.group.align([*self.model.parameters(), *self.model.buffers(), *self.distillers.parameters()])
        joint = loss_func if len(self.distillers) else self._joint_loss(loss_func or self.model.calculate_loss)  # type: ignore[attr-defined]
        batches = _SharedBatches(train_data, self.group)
        return super()._train_epoch(  # type: ignore[misc]
            batches, epoch_idx, joint, show_progress=show_progress and self.group.is_first
        )

    def _terms(self, base_loss: Callable[[Any], Any], interaction: Any) -> dict[str, Tensor]:
        """The step's losses by name: values as in one process, with the gradient of this process's part."""
        rows = len(interaction)
        if self._base_is_shared():
            part = self.group.part(rows)
            share = (part.stop - part.start) / rows
            parts = super()._base_terms(base_loss, interaction[part]) if share else {}  # type: ignore[misc]
            parts = {name: share * loss for name, loss in parts.items()}
        else:
            parts = super()._base_terms(base_loss, interaction) if self.group.is_first else {}  # type: ignore[misc]
        parts.update(super()._distilled_terms(interaction))  # type: ignore[misc]
        totals = self._totals({name: float(loss.detach()) for name, loss in parts.items()})
        anchor = torch.zeros((), device=self.config["device"], requires_grad=True)
        # Every process has this node in its backward pass, perhaps with gradient 0. At its end the parts are summed.
        anchor = anchor * 1
        anchor.register_hook(self._sum_when_done)
        losses = {}
        for name, total in totals.items():
            value = anchor.new_tensor(total) + anchor
            if name in parts:
                value = value + (parts[name] - parts[name].detach())
            losses[name] = value
        return losses

    def _totals(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes of the values under each name, in the same order everywhere."""
        while True:
            known = {name: index for index, name in enumerate(self._terms_known)}
            values = torch.zeros(len(known) + 1, dtype=torch.float64)
            for name, value in parts.items():
                # The last entry says that a process has a name unknown to the others.
                values[known.get(name, -1)] = value if name in known else 1.0
            dist.all_reduce(values)
            if values[-1] == 0:
                return dict(zip(self._terms_known, values.tolist()))
            found = [name for rank in range(self.group.count) for name in self.group.plain(list(parts), rank)]
            self._terms_known = sorted(dict.fromkeys([*self._terms_known, *found]), key=self._place)

    def _place(self, name: str) -> int:
        """Sort key of a loss: base losses first, then the distillers'; a distiller's terms keep their order."""
        order, owner = list(self.distillers), name.partition(".")[0]
        return order.index(owner) + 1 if owner in order else 0

    def _sum_when_done(self, gradient: Tensor) -> None:
        parameters = [*self.model.parameters(), *self.distillers.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # As in DistributedDataParallel, because RecBole clips and steps right after the backward pass.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self.group.sum_gradients(trained))

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        shown = show_progress and self.group.is_first
        own = super().evaluate  # type: ignore[misc]
        if isinstance(eval_data, FastFullSortEvalDataLoader) and not eval_data.is_sequential:
            self.eval_collector.shared = True
            try:
                return own(PartOfBatches(eval_data, self.group), load_best_model, model_file, shown)
            finally:
                self.eval_collector.shared = False
        # Sampled candidates come from process 0's random stream, in the order of the batches.
        result = own(eval_data, load_best_model, model_file, shown) if self.group.is_first else None
        return self.group.plain(result)

    # Files

    def _save_state(self, file: str, epoch: int) -> None:
        for name, owner in self._owners.items():
            distiller = self.distillers[name]
            state = {key: value for key, value in distiller.state_dict().items() if isinstance(value, Tensor)}
            whole = self.group.tensors(state if owner == self.group.rank else None, owner)
            if owner != self.group.rank:
                distiller.load_state_dict(whole, strict=False)
        if self.group.is_first:
            super()._save_state(file, epoch)  # type: ignore[misc]

    def load_best(self) -> None:
        """The weights of the best epoch on every process, whether or not it sees the file."""
        if self.group.is_first:
            super().load_best()  # type: ignore[misc]
        self.group.align([*self.model.parameters(), *self.model.buffers()])


class _SharedCollector(FullSortCollector):
    """A collector that joins the results of all processes, in the order of one process."""

    def __init__(self, config: Any, group: Group) -> None:
        super().__init__(config)
        self.shared = False
        self._group = group

    def get_data_struct(self) -> DataStruct:
        if self.shared:
            own = {name: torch.cat(batches) for name, batches in self.data_struct.batches.items()}
            merged: dict[str, list[Tensor]] = {}
            for rank in range(self._group.count):
                for name, value in self._group.tensors(own if rank == self._group.rank else None, rank).items():
                    merged.setdefault(name, []).append(value)
            self.data_struct.batches = merged
        return super().get_data_struct()
