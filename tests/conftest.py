"""Fixtures that several tests share."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd import registry
from recbole_kd.testing import write_known_answer


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes log/ and log_tensorboard/ into the current folder: each test has one of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """No test reaches another machine: a connection that would is an error, and not one that code could handle."""
    connect = socket.socket.connect
    here = set()
    with contextlib.suppress(OSError):
        here |= set(socket.gethostbyname_ex(socket.gethostname())[2])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; it tells which of its addresses this machine would use
        here.add(probe.getsockname()[0])

    def guarded(self: socket.socket, address: Any) -> None:
        if self.type == socket.SOCK_STREAM and self.family in (socket.AF_INET, socket.AF_INET6):
            ip = ipaddress.ip_address(socket.getaddrinfo(address[0], None, self.family)[0][4][0])
            assert ip.is_loopback or str(ip) in here, f"a test connects to {address}"
        connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign,assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _no_anomaly_detection() -> None:
    """RecBole's sine.py switches it on for the whole process when a test makes RecBole import it."""
    torch.autograd.set_detect_anomaly(False)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small tensors: more threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_named_distillers() -> Iterator[None]:
    """A distiller that a test names by its path is forgotten when the test ends."""
    yield
    registry._NAMED_BY_PATH.clear()


@pytest.fixture
def known_answer(tmp_path: Path) -> Path:
    """The data path of a data set where user u likes exactly the items i with i % 4 == u % 4."""
    return write_known_answer(tmp_path / "data")
