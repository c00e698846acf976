"""What the fuzzers share: how long they may try, what counts as wrong, and what is told of it.

They try the same cases each time. For others, and as many as fit into so many seconds of all fuzzers together::

    SECONDS=3600 pytest tests/reliability/test_fuzz.py tests/reliability/test_fuzz_files.py

What goes wrong then does not end the trial. Every kind of failure is written to fuzz-found.txt at once, and told at the
end with its shortest command.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck

from tests.reliability.test_formats import ends_in_a_line

SECONDS = float(os.environ.get("SECONDS", 0))
#: What a long run found so far, and how many cases each test tried.
FOUND = Path("fuzz-found.txt").absolute()
#: A command that computes for longer hangs; one that takes more memory than that was misled.
LIMIT_S, LIMIT_BYTES = 60, 2 << 30

#: Values of every kind, right for some settings, and none of them a long run or a large model where it is right.
VALUES = [
    *("", "None", "null", "~", "true", "false", "-1", "0", "1", "2", "3", "7", "12", "13", "0.5", "-0.5", "1.5", "1e-300"),
    *("1e18", "1e300", "1e400", ".nan", "nan", ".inf", "-.inf", "9" * 400, "0x10", "1_0", "١", "x", "user_id", "rating"),
    *("timestamp", "BPR", "RRDStudent", "SASRec", "rrd", "de,rrd", "all", "u1", "u1,u2", "tiny", ".", "none.csv", "é\u202e"),
    *("[]", "[0]", "[1]", "[-1]", "[1,2]", "[0.5,0.5]", "[x]", "[[]]", "[[1],[2]]", "[None]", "[.nan]", "['']", "[u1,u1]"),
    *("{}", "{x: 1}", "{rating: 3}", "{rating: x}", "{inter: [user_id]}", "{'': ''}", "{1: 2}", "{x: {y: [1]}}", "[", "{"),
    *("&x [*x]", "!!python/object:x {}", "<<: x", "2025-01-01", "2025-13-01", "\\t", "$x^{$", "%s%n{0}", "'", '"', "x" * 5000),
    *("NDCG@5", "NDCG@", "ndcg@5", "@5", "AUC", "full", "uni5", "uni0", "pop3", "labeled", "TO", "RO", "LS", "[0,inf)", "(1,0]"),
    *("{RS: [0.8,0.1,0.1]}", "{RS: [1,0,0]}", "{LS: valid_and_test}", "{LS: valid_only}", "{TS: [0.5,0.3,0.2]}", "inter"),
    *("999999999", "[1,1]", "[[1,2,3]]", "BPR,ItemKNN", "BPR,SASRec", "[BPR,BPR]", "{BPR: {}}", "{a: {model: BPR}}"),
]  # fmt: skip


class Over(BaseException):
    """A command's or a test's time is over; no handler of errors catches it."""


def examples(count: int) -> dict[str, Any]:
    """What hypothesis is told: so many cases, or without end where SECONDS are set."""
    shared = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
    return {**shared, **({"max_examples": 10**6, "database": None} if SECONDS else
                         {"max_examples": count, "derandomize": True})}  # fmt: skip


class Fuzzer:
    """Runs commands that may be refused in a line, and may do nothing else that is wrong.

    Attributes:
        cases: those that were tried.
        found: in a long run, what went wrong -> the shortest case.
    """

    def __init__(self, share: float, capsys: pytest.CaptureFixture[str]) -> None:
        """
        Args:
            share: of SECONDS.
            capsys: pytest's.
        """
        self.end = time.monotonic() + share * SECONDS
        self.capsys = capsys
        self.cases = 0
        self.found: dict[str, str] = {}

    def tries(self, words: list[str], told: str = "", **expected: Any) -> None:
        """Runs a command.

        Args:
            words: those of the command line.
            told: what else makes the case.
            expected: ``code``, where it may be this one alone.
        """
        if SECONDS and time.monotonic() > self.end:
            raise Over
        self.cases += 1
        case = f"recbole-kd {shlex.join(words)} {told}"
        try:
            within_bounds(words, self.capsys, **expected)
        except AssertionError as error:
            if not SECONDS:
                raise AssertionError(f"{error}\n{case}") from None
            # What differs is a number, a name or a place.
            kind = re.sub(r"'[^']*'|\d+", "_", str(error).strip().splitlines()[-1])
            if kind not in self.found:
                with FOUND.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{case}\n{error}\n\n")
            if len(case) < len(self.found.get(kind, case + " ")):
                self.found[kind] = f"{case}\n{error}"

    def ends(self, name: str) -> None:
        """Tells what was found."""
        if SECONDS:
            with FOUND.open("a") as file:
                file.write(f"{name}: {self.cases:,} cases, {len(self.found)} found\n\n")
        assert not self.found, "\n\n".join(self.found.values())


def within_bounds(words: list[str], capsys: pytest.CaptureFixture[str], code: int | None = None) -> None:
    """Runs one command, which ends in a line if it is refused, and takes neither too long nor too much memory."""

    def stop(*_: Any) -> None:
        raise Over

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # What asks for more gets an error in place of all memory of this machine.
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * LIMIT_BYTES, limits[1]))
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        ends_in_a_line(words, capsys, code)
    except Over:
        raise AssertionError(f"it computes for more than {LIMIT_S} s") from None
    except AssertionError as error:
        traceback = "".join(path.read_text() for path in Path("log").glob("internal-error-*"))
        raise AssertionError(f"{traceback[-3000:]}\n{error}") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for path in Path("log").glob("internal-error-*"):
            path.unlink()
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert taken < LIMIT_BYTES, f"it takes {taken / 2**30:.1f} GiB more than any before"


def within_time(test: Callable[..., None]) -> Callable[..., None]:
    """A test of hypothesis that ends after its share of SECONDS, where they are set."""

    @wraps(test)
    def timed(*arguments: Any, **given: Any) -> None:
        with suppress(Over):
            test(*arguments, **given)

    return timed


#: A test's share of SECONDS.
SHARES = {
    "test_training": 0.3,
    "test_the_other_verbs": 0.15,
    "test_searches": 0.15,
    "test_comparisons": 0.15,
    "test_a_damaged_file": 0.25,
}
