"""Costs of a recommender: the peak memory of its training, and the time of its answers.

**Memory.** A process's peak never falls, memory that a training frees may stay with the process, and in a child process
`getrusage` includes its parent's peak. So each training has its own process. There the peak is reset after the data are
loaded and before training (Linux: 5 is written to ``/proc/self/clear_refs``), and is read as ``VmHWM``. Without
``/proc`` it is the process's peak from its start.

**Time to answer.** A request is a batch of users. The answer is computed from the stored weights: scores of all items,
the best 20, and their ids on the CPU. Work that is done once after loading (a graph's propagation) is in the warm-up.
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

#: Threads of torch while answers are timed: always one, as a server uses for a request.
THREADS = 1
BATCH_SIZES = (1, 1024)
#: Parts of the timed requests; the spread of their medians shows the noise.
BLOCKS = 5
#: Items in an answer.
CUTOFF = 20

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Makes :func:`peak_memory` count from now on, if the system can (Linux, CUDA)."""
    with contextlib.suppress(OSError):  # then the peak counts from the start of the process
        _CLEAR.write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """The process's peak memory in bytes; on a GPU the peak memory of tensors there."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        marks = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0].split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def stored_numbers(model: Any) -> int:
    """Number of numbers that a trained model stores: its parameters, and a closed-form model's other values.

    In a sparse matrix only non-zero numbers count. ``restore_*`` are caches computed from the weights and do not count.
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
        answer: computes the recommendations of users at positions (n,) in [0, users); they are on the CPU at its end.
        users: number of users to draw from.
        batch_sizes: users in a request.
        warm_up: requests that are not counted, for each batch size.
        requests: number of timed requests.
        seconds: if requests take longer in total, fewer are timed, at least three; a slow warm-up ends early too.
        clock: seconds, monotonic.

    Returns:
        ``latency_ms``: batch_1, batch_1024 -> p50 and p95 over requests, in milliseconds **per user** (a request's time
        divided by its users); ``latency_range_ms``: the same -> the lowest and the highest median among
        :data:`BLOCKS` equal parts of the requests, to show the noise; ``users_per_second``: batch_1, batch_1024 ->
        users answered per second.
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
