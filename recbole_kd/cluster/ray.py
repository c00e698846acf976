"""Ray: starts, joins or shares a session, and maps a function over many items in parallel.

A Ray session runs any code that it receives, as the user who started it. So a session started here listens only on the
loopback interface, requires a token that only this user can read, and has no dashboard.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch
from urllib.parse import urlsplit

import ray

from recbole_kd.errors import UserError
from recbole_kd.text import one_line

__all__ = ["check_cluster", "environment", "parallel_map", "ray_session"]

Item = TypeVar("Item")
Result = TypeVar("Result")

#: The first Ray whose local sessions require a token.
_OLDEST = (2, 59)
#: Bytes of Ray's object store, which holds only settings; its default is a third of the memory.
_STORE = 128 << 20
_PREFIX = "kd-ray-"
#: Longest path of a temporary folder, in characters; with longer ones the names of Ray's sockets are too long.
_LONGEST = 20


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None, shown: bool = False) -> Iterator[None]:
    """Ray inside the block: started here and ended after it, or a joined cluster. An existing session is shared.

    Args:
        address: address of a running cluster, such as ``"auto"`` or ``"10.0.0.1:6379"``; None or ``"local"`` starts Ray
            on this machine. Ray reads a cluster's token from ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``.
        cpus: cores for a Ray that is started here; by default all.
        shown: whether the output of a cluster's workers appears in this terminal.

    Raises:
        UserError: no cluster answers at `address`, or it refuses the token; Ray is too old.
    """
    shared = ray.is_initialized()
    check_cluster(None if shared else address)
    if shared:
        yield
        return
    with _started(cpus) if address in (None, "local") else _joined(str(address), shown):
        yield


@contextmanager
def _started(cpus: int | None) -> Iterator[None]:
    """Ray on this machine, for this user only."""
    from ray._private import ray_constants

    with _private_folder() as folder:
        token = folder / "token"
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)}
        # Ray binds to the loopback interface if it believes that the machine cannot have a cluster.
        with _authentication(**ours), patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=_STORE,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=str(folder / "ray"),  # Ray makes it public, so the folder above is private
                )
                if ray.util.get_node_ip_address() not in ("127.0.0.1", "::1"):
                    raise RuntimeError(f"Ray {ray.__version__} listens on {ray.util.get_node_ip_address()}")
                yield
            finally:
                ray.shutdown()


def check_cluster(address: str | None) -> None:
    """Checks Ray and the cluster at `address` before training.

    Raises:
        UserError: Ray is too old; nothing answers at `address`.
    """
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _OLDEST:
        raise UserError(
            f"Ray {ray.__version__} is installed; expected {'.'.join(map(str, _OLDEST))} or later, whose sessions ask "
            "for a token; run: pip install -U 'ray[tune]'."
        )
    if address in (None, "local", "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("expected HOST:PORT, 'auto' or 'local'")
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"No Ray cluster answers at --ray_address={address} ({one_line(error, 120)}); start one with "
        "'ray start --head', or leave --ray_address out."
    )


@contextmanager
def _joined(address: str, shown: bool) -> Iterator[None]:
    """A cluster that the user has started."""
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    with _authentication(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE", "token" if given else None)):
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=shown)
        except ray.exceptions.AuthenticationError as error:
            raise UserError(f"--ray_address={address}: {error.message.split('. ')[0]}.") from None
        except (ConnectionError, ValueError) as error:
            if address == "auto":
                raise _no_cluster(address, error) from None
            raise UserError(
                f"--ray_address={address} refuses the connection: it needs another token, or is not a Ray cluster; "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token that 'ray get-auth-token' prints there."
            ) from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _authentication(**variables: str | None) -> Iterator[None]:
    """Sets environment variables for Ray's authentication and makes Ray read them again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    def read_again() -> None:
        Config.initialize("")  # first, so that no removed token is requested
        AuthenticationTokenLoader.instance().reset_cache()

    try:
        with environment(RAY_USAGE_STATS_ENABLED="0", **variables):
            read_again()
            yield
    finally:
        read_again()


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Sets environment variables inside the block; a variable with value None is unset."""
    with patch.dict(os.environ):
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        yield


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A temporary folder that only this user can enter, removed after the block.

    It is locked while it is in use. Unlocked folders belong to killed processes and are removed.
    """
    place = Path(tempfile.gettempdir())
    if len(str(place)) > _LONGEST:
        place = Path("/tmp")
    for left_behind in place.glob(f"{_PREFIX}*"):
        lock = _lock(left_behind)
        if lock is not None:
            shutil.rmtree(left_behind, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        lock = _lock(folder)
        if lock is not None and folder.is_dir():
            break  # otherwise another process removed it before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a folder of this user until it is closed; None if another process has locked it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], parallel: int
) -> Iterator[tuple[int, Result]]:
    """(index, function(item)) of every item, in the order of completion.

    Args:
        function: runs in worker processes with one thread each; Ray raises its errors here, wrapped.
        items: its arguments.
        parallel: number of items that run at a time.
    """
    with ray_session(cpus=parallel):
        # Without a share of the GPUs, Ray hides them from its workers.
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / parallel)
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
        running = {remote.remote(function, item): index for index, item in enumerate(items)}
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ready), ray.get(ready)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
