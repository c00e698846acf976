"""The group of processes of one run, and their communication; the results are those of one process.

``torchrun`` starts them, or ``--nproc=2`` with torch's own launcher (:mod:`recbole_kd.cluster.launch`).
:mod:`recbole_kd.trainer.shared` says how work is divided. Processes communicate through torch.distributed: gloo for
tensors on a CPU, nccl for tensors on a GPU. Plain values are sent as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Optional

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from recbole_kd.contracts import Share
from recbole_kd.errors import UserError
from recbole_kd.text import one_line

__all__ = ["ALONE", "PATIENCE", "STORE", "Group", "joined", "lost", "processes_around", "take_own_gpu"]

#: Time limit for waiting within a step or an evaluation, which take seconds.
PATIENCE = timedelta(hours=1)
#: Time limit for all processes to connect at the start; torchrun may restart them if it passes.
MEETING = timedelta(minutes=5)
#: Environment variable with the file through which processes of one machine connect, instead of a port.
STORE = "RECBOLE_KD_STORE"


@dataclass(frozen=True)
class Group(Share):
    """The processes of a run, seen from one of them: its :class:`Share`, and methods to communicate.

    Attributes:
        store: torch.distributed's key-value store, to wait for other processes without a time limit.
        stamp: part of the names of the run's files, the same in every process and after a restart.
        restarted: whether the processes were restarted because one of them had ended.
    """

    store: Any = None
    stamp: str = ""
    restarted: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes, logs and draws batches."""
        return self.rank == 0

    def tell(self, key: str, value: str) -> None:
        """Publishes a text under a key, once."""
        if self.count > 1:
            self.store.set(key, value)

    def hear(self, key: str) -> str:
        """The text under a key; waits without a time limit, because a teacher may train for days."""
        while True:
            try:
                self.store.wait([key], timedelta(minutes=10))
                return bytes(self.store.get(key)).decode()
            except RuntimeError as error:
                if not re.search("timeout|timed out", str(error), re.IGNORECASE):
                    raise

    @contextlib.contextmanager
    def first(self, what: str) -> Iterator[None]:
        """Process 0 executes the block before the others do."""
        if not self.is_first:
            self.hear(what)
        yield
        if self.is_first:
            self.tell(what, "done")

    def plain(self, value: Any, source: int = 0) -> Any:
        """Sends a plain value of process `source` to every process."""
        content = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor(len(content))
        dist.broadcast(size, source)
        text = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(int(size)).byte()
        dist.broadcast(text, source)
        return json.loads(bytes(text.numpy()))

    def tensors(self, values: Optional[Mapping[str, Tensor]], source: int = 0) -> dict[str, Tensor]:
        """Sends named tensors of process `source` to the CPU of every process."""
        held = {name: value.detach().cpu().contiguous() for name, value in (values or {}).items()}
        described = {name: [str(value.dtype).replace("torch.", ""), list(value.shape)] for name, value in held.items()}
        described = self.plain(described, source)
        received = {}
        for name, (dtype, shape) in described.items():
            value = held[name] if self.rank == source else torch.empty(shape, dtype=getattr(torch, dtype))
            if value.numel():
                # gloo has no booleans and short integers, so the bytes are sent.
                dist.broadcast(value.reshape(-1).view(torch.uint8), source)
            received[name] = value
        return received

    def align(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Copies the content of these tensors from process `source` to every process, in place."""
        with torch.no_grad():
            for tensor in tensors:
                if tensor.numel() and tensor.dtype != torch.bool and tensor.layout == torch.strided:
                    dist.broadcast(tensor.data, source)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the gradients by their sums over the processes; if no process has one, it stays None."""
        if not parameters:
            return
        # A missing gradient counts as 0; the flags distinguish 0 from missing in all processes.
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


def processes_around(nproc: int = 1) -> int:
    """Number of processes that ``torchrun`` (or a launcher that sets its variables) has started; 1 if none.

    Args:
        nproc: ``--nproc``, which must be the same number or 1.

    Raises:
        UserError: the two do not agree.
    """
    count = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count > 1 and nproc not in (1, here):
        raise UserError(
            f"torchrun started {here} processes on this machine (LOCAL_WORLD_SIZE), but --nproc={nproc}; leave --nproc "
            "out, or start without torchrun."
        )
    return count


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """This process as a member of the group that its environment describes (``RANK``, ``WORLD_SIZE``, ...).

    Inside the block only the first process logs. An existing process group is used as it is.

    Raises:
        UserError: the processes cannot connect, or a process that torchrun started has ended.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    own = not dist.is_initialized()
    if own:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", count))))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        meeting: dict[str, Any] = {"init_method": "env://"}
        if STORE in os.environ:
            # One machine: no port is open to other machines.
            if "lo" in (name for _, name in socket.if_nameindex()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            meeting = {"store": PrefixStore(str(restarts), FileStore(os.environ[STORE], count))}
        try:
            if STORE not in os.environ and _is_torchruns_alone(count):
                # torchrun keeps its store over restarts, with the addresses of the earlier processes.
                place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                meeting = {
                    "store": PrefixStore(f"recbole-kd-meets-{restarts}", TCPStore(*place, count, timeout=MEETING))
                }
            dist.init_process_group(backend, rank=rank, world_size=count, timeout=MEETING, **meeting)
            older = dist.distributed_c10d._set_pg_timeout  # in older versions of torch
            getattr(dist, "set_timeout", older)(PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"Process {rank} of {count} cannot connect to the others ({one_line(error, 120)}); start "
                "torchrun on all machines with the same --rdzv-endpoint."
            ) from None
    store = PrefixStore(f"recbole-kd-{restarts}", dist.distributed_c10d._get_default_store())
    try:
        with contextlib.nullcontext() if rank == 0 else _silence():
            yield Group(rank, count, store, _stamp(), restarts > 0)
    except RuntimeError as error:
        if not own or STORE in os.environ or not lost(error):
            raise
        raise UserError(
            f"Process {rank} of {count} lost the connection to another process, which has ended "
            f"({one_line(error, 120)}); torchrun says why, and restarts all if --max-restarts allows it."
        ) from None
    finally:
        if own:
            # torch 2.4 holds Python's lock while it waits for gloo's threads to end. One of them may still need it
            # to release a tensor, and gets it during this pause.
            time.sleep(0.05)
            dist.destroy_process_group()


def _is_torchruns_alone(count: int) -> bool:
    """Whether torchrun on this machine started all processes; numbers of restarts may differ between machines."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return kept and int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == count


def lost(error: Exception) -> bool:
    """Whether an error is a broken connection to another process."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "broken pipe", "socket")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def take_own_gpu(device: torch.device) -> None:
    """Gives each process of a machine its own GPU, by its number there (``LOCAL_RANK``).

    Args:
        device: the device of the configuration; torch sees only the GPUs of ``--gpu_id`` by now.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"Process {number + 1} of this machine has no GPU of its own, because torch sees {there}; start fewer "
            "processes, name more GPUs with --gpu_id, or set --use_gpu=False."
        )
    torch.cuda.set_device(number)


def _stamp() -> str:
    """A name for the run: its launcher's start time and process id, which restarts do not change."""
    launcher = psutil.Process(os.getppid())
    started = datetime.fromtimestamp(launcher.create_time())
    return os.environ.get("RECBOLE_KD_STAMP") or f"{started:%Y%m%d-%H%M%S-%f}-{launcher.pid}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside the block this process writes no log, TensorBoard or terminal output; process 0 writes the same."""
    import recbole.trainer.trainer as recboles

    level, writer = logging.root.manager.disable, recboles.get_tensorboard
    logging.disable(logging.CRITICAL)
    recboles.get_tensorboard = lambda logger: Nothing()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        recboles.get_tensorboard = writer


class Nothing:
    """A TensorBoard writer that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None
