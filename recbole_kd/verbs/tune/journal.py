"""The records of a search's trials: kept in its folder when a trial ends, read again when the search continues."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional, TypedDict

from ray import tune

from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import read_json
from recbole_kd.text import counted, duration
from recbole_kd.verbs.tune.report import write_report
from recbole_kd.verbs.tune.space import Domain
from recbole_kd.verbs.tune.worker import Task

__all__ = ["Journal", "read_record"]


class _Record(TypedDict):
    """The record of a finished trial."""

    trial: int
    settings: dict[str, Any]
    status: str
    score: Optional[float]
    best_epoch: Optional[int]
    epochs: int
    seconds: float
    valid_result: dict[str, Optional[float]]
    valid_history: list[dict[str, Optional[float]]]
    message: Optional[str]


def read_record(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path, schema)
    except (OSError, UserError):
        return {}
    return content


class Journal(tune.Callback):
    """The records of the trials: read from the folder, and written there when a trial ends.

    Attributes:
        records: number -> record of an ended trial: ``trial``, ``settings``, ``status`` (finished, pruned or failed),
            ``score``, ``best_epoch``, ``epochs``, ``seconds``, ``valid_result``, ``valid_history``, ``message``.
        broken: number -> reason (a lost worker, no memory) of a trial that will be repeated by another search.
    """

    def __init__(self, task: Task, base: KDConfig, space: Mapping[str, Domain]) -> None:
        self.task = task
        self.bigger = bool(base["valid_metric_bigger"])
        self.facts = {
            "model": task.model,
            "dataset": task.dataset,
            "seed": base["seed"],
            "valid_metric": str(base["valid_metric"]).lower(),
            "space": {name: str(domain) for name, domain in space.items()},
        }
        self.given = base.external_config_dict
        self.shows_progress = bool(base["show_progress"])
        self.records: dict[int, dict[str, Any]] = {}
        self.broken: dict[int, str] = {}
        for number, settings in enumerate(task.draws, 1):
            record = read_record(self._file(number), _Record)
            if record.get("settings") == json.loads(json.dumps(settings)):
                self.records[number] = record
        best = self.best()
        if best is not None and not os.path.isfile(task.checkpoint(best["trial"])):
            del self.records[best["trial"]]  # its weights are missing, so it is trained again
        self._results: dict[int, dict[str, Any]] = {}
        self._started = time.monotonic()
        self._before = len(self.records)
        self.bar: Any = None

    @property
    def pending(self) -> list[int]:
        """Numbers of the trials that must still be trained."""
        return [number for number in range(1, len(self.task.draws) + 1) if number not in self.records]

    def best(self) -> Optional[dict[str, Any]]:
        """The record with the best score; the first of equal ones."""
        scored = [record for _, record in sorted(self.records.items()) if record["score"] is not None]
        if not scored:
            return None
        return (max if self.bigger else min)(scored, key=lambda record: record["score"])

    def history(self, record: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
        """(epochs trained, best score so far) after each evaluation of a trial."""
        best = -math.inf if self.bigger else math.inf
        for evaluation in record["valid_history"]:
            best = (max if self.bigger else min)(best, evaluation[self.facts["valid_metric"]])
            yield evaluation["epoch"] + 1, best

    # Calls by Ray Tune

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        number = trial.config["number"]
        self._results[number] = result
        if self.bar is not None and "score" in result:
            self.bar.set_postfix_str(f"trial {number}, epoch {result['epoch']}: {result['score']:.4f}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        result = self._results.get(number, {})
        status = "failed" if "failed" in result else "finished" if "ended" in result else "pruned"
        score = result.get("score")
        record = {
            "trial": number,
            "settings": self.task.draws[number - 1],
            "status": status,
            "score": score if score is not None and math.isfinite(score) else None,
            "best_epoch": result.get("best_epoch"),
            "epochs": result.get("epoch", 0),
            "seconds": result.get("seconds", 0.0),
            "valid_result": result.get("valid_result", {}),
            "valid_history": result.get("valid_history", []),
            "message": result.get("failed"),
        }
        save_json(record, self._file(number), "output")
        before = self.best()
        self.records[number] = record
        best = self.best()
        self.task.last(number).unlink(missing_ok=True)
        for loser in (before, record):  # only the best trial's weights are kept
            if loser is not None and loser is not best:
                self.task.checkpoint(loser["trial"]).unlink(missing_ok=True)
        self._say(record)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        text = "its worker process was lost, perhaps because memory ran out"
        with open(trial.error_file) if trial.error_file else nullcontext() as file:
            lines = [line.strip() for line in (file or ()) if line.strip()]
        self.broken[number] = lines[-1] if lines else text
        logging.getLogger().warning(f"Trial {number} broke off: {self.broken[number]}")

    def _say(self, record: Mapping[str, Any]) -> None:
        total, over = len(self.task.draws), len(self.records)
        left = (time.monotonic() - self._started) / max(1, over - self._before) * (total - over)
        best = self.best()
        epochs = counted(record["epochs"], "epoch")
        parts = [f"Trial {record['trial']} {record['status']} after {epochs}"]
        if record["score"] is not None:
            parts.append(f"{self.facts['valid_metric']} {record['score']:.4f}")
        if record["message"]:
            parts.append(record["message"])
        if best is not None:
            parts.append(f"best {best['score']:.4f} (trial {best['trial']})")
        parts.append(f"{over} of {total} over" + (f", about {duration(left)} left" if over < total else ""))
        if self.bar is not None:
            self.bar.clear()
        logging.getLogger().info("; ".join(parts))
        if self.bar is not None:
            self.bar.update()

    # The result

    def result(self) -> dict[str, Any]:
        """The search's result; trials.csv, trials.png, best.yaml and result.json are written with it.

        Raises:
            UserError: no trial has a score.
        """
        best = self.best()
        if best is None:
            messages = [record["message"] for record in self.records.values()] + list(self.broken.values())
            raise UserError(f"None of {len(self.task.draws)} trials could be trained; the first: {messages[0]}")
        records = [record for _, record in sorted(self.records.items())]
        counts = {status: sum(r["status"] == status for r in records) for status in ("finished", "pruned", "failed")}
        chosen = {key: best[key] for key in ("trial", "settings", "score", "best_epoch", "valid_result")}
        result = {
            **self.facts,
            "trials": records,
            "counts": {**counts, "broken": len(self.broken)},
            "best": {**chosen, "checkpoint": str(self.task.checkpoint(best["trial"]))},
            "folder": self.task.folder,
            "config_file": str(Path(self.task.folder) / "best.yaml"),
        }
        write_report(result, {"model": self.task.model, "dataset": self.task.dataset, **self.given})
        return result

    def _file(self, number: int) -> Path:
        return self.task.checkpoint(number).with_suffix(".json")
