"""What a recommender costs: the most memory that its training holds, and the time in which it answers.

**Memory.** A process's high-water mark only rises, what a training frees may stay with the process, and `getrusage`
tells a child its parent's mark. So each training has a process of its own, where the mark is reset (Linux: 5 into
``/proc/self/clear_refs``) after the data is loaded and before training begins, and is read as ``VmHWM``. Where there is
no ``/proc`` it is the process's peak from its start.

**Time to answer.** A request is a batch of users: scores of every item from the stored weights, the best 20, and their
ids on the CPU. What a model computes once when it is loaded (a graph model's propagation) falls into the warm-up.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

#: Threads of torch while a recommender's answers are timed, whatever the machine has: one, as a server gives a request.
THREADS = 1
BATCH_SIZES = (1, 1024)
#: Parts of the timed requests whose medians tell the noise.
BLOCKS = 5
#: Items in an answer.
CUTOFF = 20

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Lets :func:`peak_memory` count from here on, where the system can (Linux, CUDA)."""
    with contextlib.suppress(OSError):  # the peak is then that since the process began
        _CLEAR.write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """The most memory that the process has held, in bytes; on a GPU the most that tensors have held there."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        marks = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0].split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trained_numbers(model: torch.nn.Module) -> int:
    """How many numbers an optimiser can train in a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def stored_numbers(model: Any) -> int:
    """How many numbers a trained model stores: its parameters, and what a closed form keeps beside them.

    Of a sparse matrix those that are not zero count. ``restore_*`` are only caches of the weights.
    """
    kept = [value for key, value in model.other_parameter().items() if not key.startswith("restore_")]
    return sum(parameter.numel() for parameter in model.parameters()) + sum(map(_count, kept))


def _count(value: Any) -> int:
    if scipy.sparse.issparse(value):
        return int(value.nnz)
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.numel() if isinstance(value, Tensor) else value.size)
    return int(isinstance(value, (int, float, np.number)))


def inference_costs(
    answer: Callable[[Tensor], Any],
    users: int,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    warm_up: int = 5,
    requests: int = 200,
    seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Latency and throughput of a recommender, with :data:`THREADS` threads.

    Args:
        answer: gives positions (n,) of users, in [0, users), their recommendations, on the CPU when it returns.
        users: how many there are to draw from.
        batch_sizes: users of a request.
        warm_up: requests that are not counted, for each batch size.
        requests: how many are timed, unless ...
        seconds: ... they take longer than this; three at least, and a slow model's warm-up ends early too.
        clock: seconds, monotonic.

    Returns:
        ``latency_ms``: batch_1, batch_1024 -> p50 and p95 over requests, in milliseconds **per user** (a request's time
        divided by its users); ``latency_range_ms``: the same -> the lowest and the highest median among
        :data:`BLOCKS` equal parts of the requests, which tells how far a median can be trusted; ``users_per_second``:
        batch_1, batch_1024 -> users answered per second.
    """
    generator = np.random.default_rng(0)
    latency: dict[str, Any] = {}
    ranges: dict[str, list[float]] = {}
    throughput: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for size in batch_sizes:
            spent: list[float] = []
            began = clock()
            while len(spent) < warm_up + requests:
                batch = torch.from_numpy(generator.integers(users, size=size))
                start = clock()
                answer(batch)
                spent.append(clock() - start)
                if len(spent) in (1, warm_up):  # the first one may have to propagate a graph
                    began = clock()
                if clock() - began > seconds and len(spent) >= 4:
                    break
            timed = np.array(spent[min(warm_up, len(spent) - 3) :])
            latency[f"batch_{size}"] = {
                "p50": float(np.quantile(timed, 0.5)) / size * 1e3,
                "p95": float(np.quantile(timed, 0.95)) / size * 1e3,
            }
            medians = [float(np.median(part)) / size * 1e3 for part in np.array_split(timed, min(BLOCKS, len(timed)))]
            ranges[f"batch_{size}"] = [min(medians), max(medians)]
            throughput[f"batch_{size}"] = size * len(timed) / float(timed.sum())
    finally:
        torch.set_num_threads(threads)
    return {"latency_ms": latency, "latency_range_ms": ranges, "users_per_second": throughput}
