"""``recbole-kd serve``: a bundle's recommendations over HTTP. Neither torch nor RecBole is imported."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.verbs.options import ServeOptions

__all__ = ["run"]


def run(options: ServeOptions, settings: dict[str, Any]) -> None:
    """The verb: answers requests until it is stopped.

    Raises:
        UserError: a missing package, no such bundle, or an address that cannot be used.
    """
    if options.workers > 1:  # each worker has one core, so its matrix products use one thread
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import uvicorn
        from uvicorn.supervisors import Multiprocess

        from recbole_kd.verbs.serve.app import application, worker
        from recbole_kd.verbs.serve.live import Live
    except ImportError as error:
        raise UserError(
            f"serve needs the package {error.name}; run: pip install fastapi fastapi-offline uvicorn"
        ) from None
    live = Live(options.bundle)
    with _listening(options.host, options.port) as listener:
        print(_greeting(live, listener, options.workers), flush=True)
        told: dict[str, Any] = {"log_level": "warning", "access_log": False, "workers": options.workers}
        with suppress(KeyboardInterrupt):  # Ctrl-C stops the server
            if options.workers == 1:
                uvicorn.Server(uvicorn.Config(application(live), **told)).run([listener])
            else:
                del live
                config = uvicorn.Config(partial(worker, options.bundle), factory=True, **told)
                Multiprocess(config, [listener]).run()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens only on this address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise UserError(f"Cannot listen on {host}:{port} ({reason}); choose another --port or --host.") from None
    # Connections inherit this. Without it the second part of an answer waits 40 ms until the first is acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not ipaddress.ip_address(address[0]).is_loopback:
        print(
            f"recbole-kd: other machines can reach {host}; there is no password, so use a proxy that asks for one.",
            file=sys.stderr,
        )
    return listener


def _greeting(live: Any, listener: socket.socket, workers: int) -> str:
    bundle = live.current.bundle
    host, port = listener.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    count = "" if workers == 1 else f", {workers} workers"
    return (
        f"{bundle.manifest['model']} on {bundle.manifest['dataset']}, {len(bundle.users):,} users and "
        f"{len(bundle.items):,} items{count}. Stop it with Ctrl-C.\n"
        f"  {where}/recommend?user=ID&k=20\n  {where}/docs"
    )
