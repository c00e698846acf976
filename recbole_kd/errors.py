"""Errors that a user can mend: one sentence each, with what was found, what was expected, which setting to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class _Line(Exception):
    """An error whose message says all."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show of it: a line, as the command line does."""
        return [f"recbole-kd: {self}"]


class UserError(_Line):
    """Something that the user gave is wrong. The command line prints the message as one line and exits with 2."""


class UnknownSetting(UserError):
    """A setting that nothing reads; `known` are the names of which it may be a misspelling."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, [*known]

    def __str__(self) -> str:
        return f"Unknown setting '{self.name}': no part of the program reads it.{closest(self.name, self.known)}"


class TrainingError(_Line):
    """Training went wrong (a loss is not finite). The command line prints the message as one line and exits with 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a student was trained. `resume` is the file from which ``--resume`` goes on."""

    def __init__(self, resume: str) -> None:
        super().__init__(f"interrupted; go on with resume={resume}")
        self.resume = resume


def closest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'X'?"` for the choice nearest to `name`, or an empty string where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[found[0]]}'?" if found else ""
