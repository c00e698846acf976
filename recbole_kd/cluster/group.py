"""Several processes for one run, on one machine or several, with the results of one process.

``--nproc=2`` starts two processes here; ``--world_size``, ``--group_offset``, ``--ip`` and ``--port`` join those of
several machines, under RecBole's names. What is shared out and how it stays what one process computes:

- A batch is drawn by process 0 alone and sent to the others, so that every random stream is that of one process.
- The gradient of a step is the sum of the processes' parts. A distiller that says so (:attr:`Distiller.shares`)
  computes its :class:`Share` of its entries over the *global* batch's distinct users and items; any other distiller is
  computed whole by one process, and so is a base loss that is no mean over rows. Averaging losses of local batches, as
  DistributedDataParallel does, would give other numbers: entries are distinct in the global batch. Steps of a model
  that may draw random numbers in them (dropout) are process 0's as a whole.
- Every process makes the same optimiser step, of the summed gradient.
- Evaluation shares out whole batches. What they collect is put together in the order of one process, and every process
  computes the metrics of all of it: equal to the last digit, where RecBole weights each process's metrics by batches.
- The teacher and the ranked lists are computed by process 0; the others wait and read its files.
- Process 0 alone writes and logs.

Processes talk through torch.distributed: gloo for tensors on a CPU, nccl for those on a GPU; plain values go as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
from recbole.data.interaction import Interaction
from recbole.evaluator import DataStruct
from torch import Tensor, nn
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from recbole_kd.cluster.launch import deaf_to_interrupts, end_with_parent
from recbole_kd.contracts import Distiller, Share
from recbole_kd.data.loaders import FastFullSortEvalDataLoader
from recbole_kd.errors import TrainingError, UserError
from recbole_kd.evaluation.collector import FullSortCollector

#: How long a process waits for the others within a step or an evaluation, which take seconds.
_PATIENCE = timedelta(hours=1)
#: How long the others may take to tell what went wrong when one process has ended.
_GRACE = 5.0
#: Base losses that are means over the rows of a batch (and penalties on whole tables), by architecture.
_MEANS_OVER_ROWS = {"BPR", "SimRecStudent", "SimRecTeacher"}
#: Architectures whose scores and representations are drawn from no random stream: a part of a step is what it is within
#: the whole. Of any other (dropout, augmented graphs) process 0 computes the whole steps, in the order of one process.
_WITHOUT_CHANCE = {*_MEANS_OVER_ROWS, "LightGCN"}
_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """Which processes a run has.

    Attributes:
        here: processes on this machine.
        count: processes on all machines.
        offset: rank of the first one here.
        address: (host, port) where process 0 of several machines listens; None on one machine.
    """

    here: int
    count: int
    offset: int
    address: Optional[tuple[str, int]]

    @classmethod
    def of(cls, config: Any) -> Optional[Plan]:
        """The plan that the settings ask for; None for one process.

        Raises:
            UserError: settings that do not fit together.
        """
        here, total, offset = config["nproc"], config["world_size"], config["group_offset"]
        count = here if total in (None, -1) else total
        if count == 1:
            return None
        if not 0 <= offset <= count - here:
            raise UserError(
                f"--nproc={here} with --group_offset={offset} are processes {offset} to {offset + here - 1}, and "
                f"--world_size={count} has 0 to {count - 1}; set each machine's --group_offset to the number of "
                "processes before it."
            )
        if config["device"].type == "cuda":
            given = [part for part in str(config["gpu_id"]).split(",") if part.strip()]
            if len(given) < here:
                raise UserError(
                    f"--nproc={here} needs as many GPUs, and --gpu_id={config['gpu_id']} names {len(given)}; "
                    "set --gpu_id=0,1 and so on, or --use_gpu=False."
                )
        return cls(here, count, offset, None if count == here else (str(config["ip"]), int(config["port"])))


@dataclass(frozen=True)
class Group(Share):
    """The processes of a run, as one of them sees them: its :class:`Share`, and ways to talk.

    Attributes:
        store: torch.distributed's key-value store, through which processes wait for one another without a time limit.
    """

    store: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes, logs and draws batches."""
        return self.rank == 0

    def tell(self, key: str, value: str) -> None:
        """Publishes a word under a key, once."""
        if self.count > 1:
            self.store.set(key, value)

    def hear(self, key: str) -> str:
        """The word under a key, waited for however long it takes: a teacher may train for days."""
        while True:
            try:
                self.store.wait([key], timedelta(minutes=10))
                return bytes(self.store.get(key)).decode()
            except RuntimeError as error:
                if not re.search("timeout|timed out", str(error), re.IGNORECASE):
                    raise

    @contextlib.contextmanager
    def first(self, what: str) -> Iterator[None]:
        """Process 0 goes through the block before the others do."""
        if not self.is_first:
            self.hear(what)
        yield
        if self.is_first:
            self.tell(what, "done")

    def plain(self, value: Any, source: int = 0) -> Any:
        """A plain value of process `source`, on every process."""
        content = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor(len(content))
        dist.broadcast(size, source)
        text = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(int(size)).byte()
        dist.broadcast(text, source)
        return json.loads(bytes(text.numpy()))

    def tensors(self, values: Optional[Mapping[str, Tensor]], source: int = 0) -> dict[str, Tensor]:
        """Named tensors of process `source`, on the CPU of every process."""
        held = {name: value.detach().cpu().contiguous() for name, value in (values or {}).items()}
        described = {name: [str(value.dtype).replace("torch.", ""), list(value.shape)] for name, value in held.items()}
        described = self.plain(described, source)
        received = {}
        for name, (dtype, shape) in described.items():
            value = held[name] if self.rank == source else torch.empty(shape, dtype=getattr(torch, dtype))
            if value.numel():
                # gloo knows neither booleans nor short integers; bytes are bytes.
                dist.broadcast(value.reshape(-1).view(torch.uint8), source)
            received[name] = value
        return received

    def align(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Gives every process what process `source` has in these tensors, in place."""
        with torch.no_grad():
            for tensor in tensors:
                if tensor.numel() and tensor.dtype != torch.bool and tensor.layout == torch.strided:
                    dist.broadcast(tensor.data, source)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the gradients by their sums over the processes; one that none has stays None."""
        if not parameters:
            return
        # A parameter that a process has no gradient of counts as 0 there; the flags tell 0 from none at all.
        flags = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        dist.all_reduce(flags)
        by_type: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter, flag in zip(parameters, flags.tolist()):
            if flag:
                by_type.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for group in by_type.values():
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else _dense(p.grad)).reshape(-1) for p in group])
            dist.all_reduce(flat)
            for parameter, part in zip(group, flat.split([parameter.numel() for parameter in group])):
                parameter.grad = part.view_as(parameter)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


ALONE = Group()


# Starting and ending


def run_processes(plan: Plan, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments, group)`` in every process of the plan that runs here; what process 0 returned, if here.

    A process that fails or is killed ends the others. An interrupt is this process's to handle, and ends them too.

    Args:
        plan: which processes there are.
        function: importable by its name; its arguments and result can be pickled.

    Raises:
        UserError, TrainingError: what the function raised; or that a process was ended from outside, or lost.
        RuntimeError: any other error, with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="recbole-kd-") as folder:
        receivers: list[Connection] = []
        processes = []
        try:
            with deaf_to_interrupts():
                for local in range(plan.here):
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_serve, args=(sender, plan, local, folder, function, arguments))
                    process.start()
                    processes.append(process)
                    receivers.append(receiver)
                    sender.close()
            outcomes = _outcomes(receivers)
        finally:
            for process in processes:
                process.kill()
                process.join()
    for index, process in enumerate(processes):
        # It left no word: something ended it. The others were ended here, and are not in question.
        if outcomes.get(index) == ("died", None):
            outcomes[index] = "died", process.exitcode
    return _verdict(plan, outcomes)


Outcome = tuple[str, Any]


def _outcomes(receivers: Sequence[Connection]) -> dict[int, Outcome]:
    """What each process sent last, until all have or, when one has failed, a moment after."""
    outcomes: dict[int, Outcome] = {}
    deadline: Optional[float] = None
    while len(outcomes) < len(receivers):
        waiting = [receiver for index, receiver in enumerate(receivers) if index not in outcomes]
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = wait(waiting, left)
        if not ready:
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            try:
                outcome = receiver.recv()
            except EOFError:
                outcome = "died", None
            outcomes[receivers.index(receiver)] = outcome
            if outcome[0] != "result" and deadline is None:
                deadline = time.monotonic() + _GRACE
    return outcomes


def _verdict(plan: Plan, outcomes: Mapping[int, Outcome]) -> Any:
    """The result, or the error that explains the others."""
    for kind, error in (("UserError", UserError), ("TrainingError", TrainingError)):
        for _, (found, value) in sorted(outcomes.items()):
            if found == kind:
                raise error(value)
    again = "a student goes on with --resume=FILE-last.pth, a teacher when repeated"
    for index, (found, value) in sorted(outcomes.items()):
        if found == "died":
            how = signal.Signals(-value).name if value is not None and value < 0 else f"exit code {value}"
            raise TrainingError(
                f"Process {plan.offset + index} of {plan.count} was ended from outside ({how}), and so the others were "
                f"ended; if memory was short, lower --train_batch_size or --nproc; {again}."
            )
    for kind in ("error", "lost"):
        for index, (found, value) in sorted(outcomes.items()):
            if found == kind == "error":
                raise RuntimeError(f"process {plan.offset + index} of {plan.count}:\n{value}")
            if found == kind:
                raise TrainingError(f"Another process of the run was lost ({value}); {again}.")
    return outcomes[0][1]


def _serve(
    sender: Connection, plan: Plan, local: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_with_parent()
    try:
        group = _joined(plan, local, folder)
        value = function(*arguments, group)
        outcome: Outcome = "result", value if local == 0 else None
    except (UserError, TrainingError) as error:
        outcome = type(error).__name__, str(error)
    except RuntimeError as error:
        lost = _LOST.search(str(error)) is not None
        outcome = ("lost", " ".join(str(error).split())[:160]) if lost else ("error", traceback.format_exc())
    except BaseException:
        outcome = "error", traceback.format_exc()
    sender.send(outcome)
    sender.close()
    if outcome[0] == "result" and dist.is_initialized():
        dist.destroy_process_group()


def _joined(plan: Plan, local: int, folder: str) -> Group:
    """This process as a member of the group; all but process 0 are silent."""
    rank = plan.offset + local
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // plan.here))
    if plan.address is None:
        # One machine: nothing of it listens where another machine could reach it.
        if "lo" in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store: Any = FileStore(str(Path(folder) / "store"), plan.count)
    else:
        host, port = plan.address
        try:
            store = TCPStore(host, port, plan.count, rank == 0, timeout=timedelta(minutes=5))
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"Process {rank} of {plan.count} cannot meet the others at {host}:{port} "
                f"({' '.join(str(error).split())[:120]}); set --ip and --port to a free port of the first machine, and "
                "start every machine's processes within five minutes."
            ) from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=plan.count, timeout=_PATIENCE)
    if rank != 0:
        _silence()
    return Group(rank, plan.count, PrefixStore("recbole-kd", store))


def _silence() -> None:
    """Nothing of this process reaches a log, TensorBoard or the terminal, where process 0 tells the same."""
    import recbole.trainer.trainer as recboles

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    recboles.get_tensorboard = lambda logger: _Nothing()


class _Nothing:
    """Stands for a TensorBoard writer that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None


# Training


def _is_one_of(model: nn.Module, architectures: set[str]) -> bool:
    return any(base.__name__ in architectures for base in type(model).__mro__)


def divides_steps(model: nn.Module) -> bool:
    """Whether processes can share out a training step of this model and compute what one process computes."""
    return _is_one_of(model, _WITHOUT_CHANCE)


def share_of_steps(model: nn.Module, group: Group) -> Share:
    """What of a training step distillers compute in this process: its share, or all that they are asked for."""
    return group if divides_steps(model) else Share()


class _SharedBatches:
    """A loader whose batches process 0 draws and every process gets."""

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
            for _ in own:  # the loader's own end: random streams stand where one process leaves them
                raise AssertionError("a loader gave more batches than its length")


class SharedMixin:
    """What a group of processes adds to a :class:`recbole_kd.trainer.kd_trainer.KDMixin`; it stands before it."""

    group: Group
    config: Any
    model: nn.Module
    distillers: nn.ModuleDict
    saved_model_file: str
    logger: Any
    eval_collector: Any

    def __init__(self, config: Any, *arguments: Any, group: Group, **named: Any) -> None:
        self.group = group
        super().__init__(config, *arguments, **named)  # type: ignore[call-arg]
        # The name has the process's number in it.
        self.saved_model_file = group.plain(self.saved_model_file)
        self.eval_collector = _SharedCollector(config, group)
        self._owners = self._owners_of_distillers()
        self._terms_known: list[str] = []

    def _owners_of_distillers(self) -> dict[str, int]:
        """Each distiller that one process computes whole, and that process: in turns, the base loss's first."""
        if not divides_steps(self.model):
            self.logger.warning(
                f"{type(self.model).__name__} may draw random numbers in a step: process 0 computes the steps, and "
                "evaluation is shared out."
            )
            return dict.fromkeys(self.distillers, 0)
        turn = 0 if self._base_is_shared() else 1
        owners = {}
        for name, distiller in self.distillers.items():
            if not isinstance(distiller, Distiller) or not distiller.shares:
                owners[name] = turn % self.group.count
                turn += 1
        return owners

    def _base_is_shared(self) -> bool:
        return _is_one_of(self.model, _MEANS_OVER_ROWS)

    def _mine(self, name: str) -> bool:
        return self._owners.get(name, self.group.rank) == self.group.rank

    def _computed(self) -> dict[str, Any]:
        """The distillers that this process computes, in whole or in part."""
        return {name: distiller for name, distiller in self.distillers.items() if self._mine(name)}

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        # Sums are the same everywhere, and so are steps, except for rounding on a GPU: replicas meet again here.
        self.group.align([*self.model.parameters(), *self.model.buffers(), *self.distillers.parameters()])
        joint = loss_func if len(self.distillers) else self._joint_loss(loss_func or self.model.calculate_loss)  # type: ignore[attr-defined]
        batches = _SharedBatches(train_data, self.group)
        return super()._train_epoch(  # type: ignore[misc]
            batches, epoch_idx, joint, show_progress=show_progress and self.group.is_first
        )

    def _terms(self, base_loss: Callable[[Any], Any], interaction: Any) -> dict[str, Tensor]:
        """The losses of the step by name: the values of one process, with the gradient of this process's part."""
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
        # A node in every process's backward pass, if only with a gradient of 0; when the pass ends, parts are summed.
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
        """Sums over processes of what each has under a name, in one order everywhere."""
        while True:
            known = {name: index for index, name in enumerate(self._terms_known)}
            values = torch.zeros(len(known) + 1, dtype=torch.float64)
            for name, value in parts.items():
                # The last place says that someone has a name that the others do not know.
                values[known.get(name, -1)] = value if name in known else 1.0
            dist.all_reduce(values)
            if values[-1] == 0:
                return dict(zip(self._terms_known, values.tolist()))
            found = [name for rank in range(self.group.count) for name in self.group.plain(list(parts), rank)]
            self._terms_known = sorted(dict.fromkeys([*self._terms_known, *found]), key=self._place)

    def _place(self, name: str) -> int:
        """Base losses first, then the distillers in their order; a distiller's terms stay in its own."""
        order, owner = list(self.distillers), name.partition(".")[0]
        return order.index(owner) + 1 if owner in order else 0

    def _sum_when_done(self, gradient: Tensor) -> None:
        parameters = [*self.model.parameters(), *self.distillers.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # As DistributedDataParallel does: RecBole clips and steps right after the backward pass.
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
        # Sampled candidates come from a random stream in the order of the batches, which is process 0's.
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


class PartOfBatches(FastFullSortEvalDataLoader):
    """A part of the batches of a loader of full-ranking batches: whole ones, as one process would make them."""

    def __init__(self, whole: FastFullSortEvalDataLoader, share: Share) -> None:
        self.__dict__.update(whole.__dict__)
        users, each = whole.sample_size, whole.step
        starts = range(0, users, each)[share.part(-(-users // each))]
        self._batches = [range(start, min(start + each, users)) for start in starts]

    def __len__(self) -> int:
        return len(self._batches)

    def __bool__(self) -> bool:
        return True  # a process without a batch still takes part

    def __iter__(self) -> Iterator[Any]:
        return (self.collate_fn(list(batch)) for batch in self._batches)


class _SharedCollector(FullSortCollector):
    """A collector that puts together what every process collected, in the order of one process."""

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
