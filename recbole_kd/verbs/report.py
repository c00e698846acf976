"""``recbole-kd report``: the report of a comparison, written again from its results."""

from __future__ import annotations

import os
from typing import Any

from recbole_kd.report import read_results, write_report
from recbole_kd.verbs.options import ReportOptions


def run(options: ReportOptions, settings: dict[str, Any]) -> None:
    """Prints the files that were written."""
    folder = options.output or os.path.dirname(options.results) or "."
    for path in write_report(read_results(options.results), folder):
        print(path)
