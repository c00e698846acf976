"""``recbole-kd prepare``: a public dataset as RecBole's atomic files."""

from __future__ import annotations

from typing import Any

from recbole_kd.data.prepare import prepare
from recbole_kd.verbs.options import PrepareOptions


def run(options: PrepareOptions, settings: dict[str, Any]) -> None:
    """Prints the file that was made."""
    print(prepare(options.dataset, options.data_path, source=options.source, minimum=options.minimum))
