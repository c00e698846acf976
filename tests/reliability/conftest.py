"""What fuzzers run on: commands that are timed, and verbs that train in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

import recbole_kd.verbs.compare
import recbole_kd.verbs.tune  # noqa: F401
from tests.reliability.fuzzing import SHARES, Fuzzer
from tests.verbs.test_tune import one_after_the_other


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Fuzzer]:
    name = request.node.name
    one = Fuzzer(SHARES[name], capsys)
    yield one
    one.ends(name)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; test_formats.py draws them."""
    monkeypatch.setattr("recbole_kd.report.pictures", lambda comparison: {})
    monkeypatch.setattr("recbole_kd.verbs.tune.report.plot", lambda result, file: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    """Trials and runs are made in this process."""

    def in_this_process(function: Callable[..., Any], *arguments: Any, on_message: Any = None) -> Any:
        return function(*arguments, on_message or (lambda _: None))

    search = sys.modules["recbole_kd.verbs.tune.search"]
    monkeypatch.setattr(search, "_run", one_after_the_other)
    monkeypatch.setattr(search, "ray_session", lambda *_: nullcontext())
    monkeypatch.setattr("recbole_kd.verbs.compare.in_own_process", in_this_process)
