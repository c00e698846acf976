"""One report that several tests look at: drawing it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_kd.report import write_report
from tests.report.fabricated import fabricated


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of seven models with three seeds; it is only to be read."""
    folder = tmp_path_factory.mktemp("report")
    write_report(fabricated(), folder)
    return folder
