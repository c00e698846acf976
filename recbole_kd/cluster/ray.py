"""Ray: a session that is started, joined or shared, and a function over many items in parallel."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional, TypeVar

import ray

from recbole_kd.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Bytes of Ray's object store, which holds only settings; its default is a third of the memory.
_STORE = 128 << 20


@contextmanager
def ray_session(address: Optional[str] = None, cpus: Optional[int] = None) -> Iterator[None]:
    """Ray, started here and ended on leaving, or a cluster that is joined; a session that there is already is shared.

    Args:
        address: of a running cluster, such as ``"auto"``; None starts Ray on this machine.
        cpus: cores that Ray may use, where it is started here; by default all.

    Raises:
        UserError: no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(
            address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own)
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"No Ray cluster answers at --ray_address={address} ({' '.join(str(error).split())[:120]}); start one with "
            "'ray start --head', or leave --ray_address out."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], parallel: int
) -> Iterator[tuple[int, Result]]:
    """(index, function(item)) of every item, in the order in which they are ready.

    Args:
        function: runs in worker processes, one thread each; what it raises, Ray raises here, wrapped.
        items: its arguments.
        parallel: how many run at a time.
    """
    with ray_session(cpus=parallel):
        # Without a share of them, Ray hides the GPUs from its workers.
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / parallel)
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
        running = {remote.remote(function, item): index for index, item in enumerate(items)}
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ready), ray.get(ready)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


__all__ = ["parallel_map", "ray_session"]
