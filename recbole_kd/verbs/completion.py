"""``recbole-kd completion``: a script for the shell."""

from __future__ import annotations

from typing import Any

from recbole_kd.verbs.help import completion
from recbole_kd.verbs.options import CompletionOptions


def run(options: CompletionOptions, settings: dict[str, Any]) -> None:
    """Prints the script."""
    print(completion(options.shell), end="")
