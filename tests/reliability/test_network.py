"""No part of the package reaches another machine when it is imported, and no test does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.fresh import last_line

_IMPORT_ALL = """
import importlib, pkgutil, socket

def refuse(*arguments, **named):
    raise SystemExit(f"the network is used at import: {arguments}")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.gethostbyname = refuse
import recbole_kd

names = [module.name for module in pkgutil.walk_packages(recbole_kd.__path__, "recbole_kd.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_importing_every_module_uses_no_network(tmp_path: Path) -> None:
    assert int(last_line(_IMPORT_ALL, tmp_path)) > 40
    assert not list(tmp_path.iterdir()), "and writes nothing"


def test_a_test_that_reached_for_another_machine_would_fail() -> None:
    with socket.socket() as reaching, pytest.raises(AssertionError, match="a test connects to"):
        reaching.connect(("192.0.2.1", 80))


def test_the_machine_itself_may_be_reached() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
