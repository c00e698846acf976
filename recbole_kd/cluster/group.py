"""The processes of one run as one of them sees them, with the results of one process.

``torchrun`` starts them, or ``--nproc=2`` does through torch's own launcher (:mod:`recbole_kd.cluster.launch`). What is
shared out, and how it stays what one process computes, is in :mod:`recbole_kd.trainer.shared`. Processes talk through
torch.distributed: gloo for tensors on a CPU, nccl for those on a GPU. Plain values go as JSON.
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

__all__ = ["ALONE", "PATIENCE", "STORE", "Group", "joined", "lost", "processes_around", "take_own_gpu"]

#: How long a process waits for the others within a step or an evaluation, which take seconds.
PATIENCE = timedelta(hours=1)
#: How long it waits for them to meet; torchrun may start those that missed each other again.
MEETING = timedelta(minutes=5)
#: Environment variable with the file through which processes of one machine meet, instead of a port.
STORE = "RECBOLE_KD_STORE"


@dataclass(frozen=True)
class Group(Share):
    """The processes of a run, as one of them sees them: its :class:`Share`, and ways to talk.

    Attributes:
        store: torch.distributed's key-value store, through which processes wait for one another without a time limit.
        stamp: part of the names of the run's files, the same on every process and after a restart.
        restarted: whether the processes were started again, because one of them had ended.
    """

    store: Any = None
    stamp: str = ""
    restarted: bool = False

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


def processes_around(nproc: int = 1) -> int:
    """How many processes ``torchrun`` (or any launcher that sets its variables) has started for this run; 1 for none.

    Args:
        nproc: ``--nproc``, which says the same or nothing.

    Raises:
        UserError: the two do not agree.
    """
    count = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count > 1 and nproc not in (1, here):
        raise UserError(
            f"torchrun started {here} processes on this machine (LOCAL_WORLD_SIZE), and --nproc={nproc}; leave --nproc "
            "out, or start without torchrun."
        )
    return count


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """This process as a member of the group that its environment describes (``RANK``, ``WORLD_SIZE``, ...).

    All processes but the first are silent inside. A process group that is there already is used as it is.

    Raises:
        UserError: the processes cannot meet, or one of those that torchrun started has ended.
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
            # One machine: nothing of it listens where another machine could reach it.
            if "lo" in (name for _, name in socket.if_nameindex()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            meeting = {"store": PrefixStore(str(restarts), FileStore(os.environ[STORE], count))}
        try:
            if STORE not in os.environ and _is_torchruns_alone(count):
                # torchrun keeps its store over restarts, and with it the addresses of the processes before.
                place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                meeting = {
                    "store": PrefixStore(f"recbole-kd-meets-{restarts}", TCPStore(*place, count, timeout=MEETING))
                }
            dist.init_process_group(backend, rank=rank, world_size=count, timeout=MEETING, **meeting)
            dist.distributed_c10d._set_pg_timeout(PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"Process {rank} of {count} cannot meet the others ({' '.join(str(error).split())[:120]}); start all "
                "machines' torchrun with the same --rdzv-endpoint."
            ) from None
    store = PrefixStore(f"recbole-kd-{restarts}", dist.distributed_c10d._get_default_store())
    try:
        with contextlib.nullcontext() if rank == 0 else _silence():
            yield Group(rank, count, store, _stamp(), restarts > 0)
    except RuntimeError as error:
        if not own or STORE in os.environ or not lost(error):
            raise
        raise UserError(
            f"Process {rank} of {count} has lost another one, which has ended ({' '.join(str(error).split())[:120]}); "
            "torchrun says why, and starts all of them again where --max-restarts allows it."
        ) from None
    finally:
        if own:
            # torch 2.4 holds Python's lock while it waits for gloo's threads to end. A thread may still need that lock
            # to release its last tensor, so it gets time here.
            time.sleep(0.05)
            dist.destroy_process_group()


def _is_torchruns_alone(count: int) -> bool:
    """Whether torchrun on this machine started all processes; on others, their numbers of restarts may differ."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return kept and int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == count


def lost(error: Exception) -> bool:
    """Whether an error says that the connection to another process broke."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "connection refused", "broken pipe", "socket")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def take_own_gpu(device: torch.device) -> None:
    """Processes of one machine compute on different GPUs: this one on that of its number there (``LOCAL_RANK``).

    Args:
        device: of the configuration, which by now has left torch the GPUs of ``--gpu_id`` alone.

    Raises:
        UserError: there are more processes than GPUs.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"Process {number + 1} of this machine has no GPU of its own, as torch sees {there}; start fewer "
            "processes, name more GPUs with --gpu_id, or set --use_gpu=False."
        )
    torch.cuda.set_device(number)


def _stamp() -> str:
    """Names the run: when its launcher started, and as which process. Restarted processes have the same launcher."""
    launcher = psutil.Process(os.getppid())
    started = datetime.fromtimestamp(launcher.create_time())
    return os.environ.get("RECBOLE_KD_STAMP") or f"{started:%Y%m%d-%H%M%S-%f}-{launcher.pid}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing of this process reaches a log, TensorBoard or the terminal, where process 0 tells the same."""
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
    """Stands for a TensorBoard writer that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None
