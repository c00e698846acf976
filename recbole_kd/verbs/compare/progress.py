"""Progress on standard error during a comparison: each run's end, and the estimated time left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional, TextIO

from recbole_kd.errors import TrainingError
from recbole_kd.text import duration
from recbole_kd.verbs.compare.perform import Job
from recbole_kd.verbs.compare.plan import Plan

#: Back to the first column, and the line cleared.
_START_OF_LINE = "\r\x1b[K"


class Progress:
    """Counts runs and estimates the time left from finished runs: those of the same row, or all for a new row."""

    def __init__(self, planned: Plan, stream: Optional[TextIO] = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.workers = planned.parallel
        self.metric = str(planned.students[0].first_config["valid_metric"]).lower()
        self.left = Counter({row.name: len(row.seeds) for row in planned.rows})
        self.total = sum(self.left.values())
        self.done = 0
        self._seconds: dict[str, list[float]] = {}
        self._running = ""
        self._alone = False
        self._start_up = 0.0  # seconds of a run before and after those that it counts: its process, reading the data
        self._began = time.monotonic()

    def kept(self, job: Job, record: Mapping[str, Any]) -> None:
        """A run of an earlier command is still valid."""
        self._count(job, record)
        self.say(f"[{self.done}/{self.total}] {job.name}: kept from before")

    def begin(self, jobs: Sequence[Job]) -> None:
        """These runs start now."""
        self._alone = len(jobs) == 1
        self._running = jobs[0].name if self._alone else f"{len(jobs)} runs, {self.workers} at a time"
        self._began = time.monotonic()
        self._status(f"[{self.done + 1}/{self.total}] {self._running}{self._rest()}")

    def told(self, epochs: tuple[int, int]) -> None:
        """The run has evaluated after an epoch; `epochs` has the epoch and the largest number of epochs."""
        epoch, most = epochs
        self._status(f"[{self.done + 1}/{self.total}] {self._running}, epoch {epoch} of at most {most}{self._rest()}")

    def finished(self, job: Job) -> None:
        """A run's files are written."""
        record = job.result()
        if record is None:
            raise TrainingError(f"{job.name}: its files in {job.folder} were removed; repeat the command.")
        if self._alone:
            self._start_up = max(0.0, time.monotonic() - self._began - record["seconds"])
        self._count(job, record)
        score = record["best_valid_result"].get(self.metric)
        found = "" if score is None else f" validation {self.metric} {score:.4f},"
        self.say(f"[{self.done}/{self.total}] {job.name}:{found} {duration(record['seconds'])}{self._rest()}")

    def say(self, line: str) -> None:
        """Prints a permanent line."""
        self.stream.write(f"{_START_OF_LINE if self.stream.isatty() else ''}{line}\n")
        self.stream.flush()

    def seconds_left(self) -> float:
        """Estimated seconds for unfinished runs, minus the time of the running one."""
        everything = [second for seconds in self._seconds.values() for second in seconds]
        if not everything:
            return 0.0
        mean = sum(everything) / len(everything)
        own = {name: sum(seconds) / len(seconds) for name, seconds in self._seconds.items()}
        whole = sum(count * (own.get(name, mean) + self._start_up) for name, count in self.left.items())
        return max(0.0, whole / self.workers - (time.monotonic() - self._began))

    def _count(self, job: Job, record: Mapping[str, Any]) -> None:
        self.done += 1
        self.left[job.row.name] -= 1
        self._seconds.setdefault(job.row.name, []).append(record["seconds"])
        self._began = time.monotonic()

    def _rest(self) -> str:
        left = self.seconds_left()
        return f", about {duration(left)} left" if left and self.done < self.total else ""

    def _status(self, line: str) -> None:
        """Prints a line that the next one overwrites; only on a terminal."""
        if self.stream.isatty():
            self.stream.write(f"{_START_OF_LINE}{line}")
            self.stream.flush()
