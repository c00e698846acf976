"""Fixtures that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recbole_kd.testing import write_known_answer


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes log/ and log_tensorboard/ into the current folder: each test has one of its own."""
    monkeypatch.chdir(tmp_path)


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


@pytest.fixture
def known_answer(tmp_path: Path) -> Path:
    """The data path of a data set where user u likes exactly the items i with i % 4 == u % 4."""
    return write_known_answer(tmp_path / "data")
