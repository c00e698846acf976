"""Errors that a user can correct: one sentence with what was found, what was expected, which setting to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class _Line(Exception):
    """An error whose message is complete without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """The output in IPython and notebooks: one line, as on the command line."""
        return [f"recbole-kd: {self}"]


class UserError(_Line):
    """Wrong input by the user. The command line prints the message as one line and exits with 2."""


class UnknownSetting(UserError):
    """A setting that nothing reads; `known` are the names that it may misspell."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, [*known]

    def __str__(self) -> str:
        return f"Unknown setting '{self.name}': nothing in this run reads it.{closest(self.name, self.known)}"


class TrainingError(_Line):
    """Training went wrong (a loss is not finite). The command line prints the message as one line and exits with 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a student's training. `resume` is the file for ``--resume``."""

    def __init__(self, resume: str) -> None:
        super().__init__(f"interrupted; continue with resume={resume}")
        self.resume = resume


def closest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'X'?"` for the choice nearest to `name` or that begins with it; "" if there is none."""
    by_lower = {choice.lower(): choice for choice in choices}
    given = name.lower()
    found = difflib.get_close_matches(given, by_lower, n=1, cutoff=0.7)
    found = found or [choice for choice in by_lower if sorted(choice) == sorted(given)]  # BRP for BPR
    if not found and len(given) > 2:
        found = sorted((choice for choice in by_lower if choice.startswith(given)), key=len)
    return f" Did you mean '{by_lower[found[0]]}'?" if found else ""
