"""The result of a run: plain values, a table for the terminal, and the files."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from recbole_kd.data.splits import Splits
from recbole_kd.evaluation.costs import peak_memory, stored_numbers
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.digest import digest
from recbole_kd.files.plain import save_json
from recbole_kd.stages.teacher import AnyTeacher
from recbole_kd.teacher.cache import Trained, recorded
from recbole_kd.text import columns

__all__ = ["Framed", "rows", "summarise", "table", "versions", "write_result"]


class Framed(dict[str, Any]):
    """The result of a verb: a dict of plain values that can also be read as a pandas table."""

    def __init__(self, content: Mapping[str, Any], rows: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]):
        super().__init__(content)
        self._rows = rows

    def to_frame(self) -> Any:
        """The rows as a DataFrame."""
        import pandas

        return pandas.DataFrame(list(self._rows(self)))


_VERSIONED = ("recbole-kd", "recbole", "torch", "numpy", "scipy")


def summarise(
    config: KDConfig,
    splits: Splits,
    teacher: AnyTeacher | None,
    trainer: Any,
    test_result: Mapping[str, float],
    evaluate_seconds: float,
    baseline: Trained | None,
) -> dict[str, Any]:
    """The result of a run, as plain values."""
    best_valid_result = trainer.best_valid_result or {}
    return {
        "model": config["model"],
        "student": config.resolved.backbone,
        "dataset": config["dataset"],
        "seed": config["seed"],
        "distillers": list(trainer.distillers),
        "teacher": None if teacher is None else teacher.summary(),
        "baseline": None if baseline is None else _baseline_summary(baseline),
        "best_valid_score": float(trainer.best_valid_score) if trainer.valid_history else None,
        "best_valid_result": {name: float(value) for name, value in best_valid_result.items()},
        "test_result": dict(test_result),
        "best_epoch": trainer.best_epoch,
        "epochs_trained": len(trainer.epoch_seconds),
        "epoch_seconds": list(trainer.epoch_seconds),
        "train_seconds": sum(trainer.epoch_seconds),
        "evaluate_seconds": evaluate_seconds,
        "loss_history": trainer.loss_history,
        "valid_history": trainer.valid_history,
        "parameters": {
            "student": stored_numbers(trainer.model),
            "teacher": None if teacher is None else teacher.parameters,
        },
        "peak_memory_bytes": peak_memory(),
        "checkpoint": trainer.saved_model_file if os.path.isfile(trainer.saved_model_file) else None,
        "digests": {"config": digest(recorded(config, splits)), "data": splits.training_digest},
        "versions": versions(),
    }


def _baseline_summary(baseline: Trained) -> dict[str, Any]:
    return {
        "model": baseline.config["model"],
        "checkpoint": baseline.checkpoint,
        "from_cache": baseline.from_cache,
        "test_result": baseline.test_result,
        "parameters": stored_numbers(baseline.model),
        "train_seconds": baseline.train_seconds,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_result(config: KDConfig, trainer: Any, result: Mapping[str, Any]) -> None:
    """The result as JSON beside the checkpoint, and to ``--result_file``."""
    save_json(result, str(Path(trainer.saved_model_file).with_suffix(".json")))
    if config["result_file"]:
        save_json(result, str(config["result_file"]), "result_file")


#: The default metrics of a run, and the two of them that the table shows.
_USUAL, _FIRST = {"recall", "ndcg", "hit", "mrr"}, ("recall", "ndcg")


def table(result: Mapping[str, Any], asked: bool = False) -> str:
    """A small table: teacher, student and baseline; metrics, parameters, seconds of training.

    With a baseline, the last row is the student's gain over it.

    Args:
        result: what :func:`summarise` returns.
        asked: whether the user named the metrics; then all are shown. Metrics other than the default ones always are.
    """
    names = list(result["test_result"])
    usual = {name.partition("@")[0] for name in names} == _USUAL and not asked
    shown = [name for name in names if name.startswith(_FIRST)] if usual else names
    baseline = result["baseline"]
    lines = [["", "model", *shown, "parameters", "train seconds"]]
    for role, row in _members(result):
        values = [f"{row['test_result'][key]:.4f}" if key in row["test_result"] else "-" for key in shown]
        lines.append([role, row["model"], *values, f"{row['parameters']:,}", f"{row['train_seconds']:.1f}"])
        if role == "student":
            for size, one in list(result.get("prefixes", {}).items())[:-1]:
                values = [
                    f"{one['test_result'][key]:.4f}" if key in one.get("test_result", {}) else "-" for key in shown
                ]
                lines.append(["", f"its first {size}", *values, "", ""])
    if baseline:
        gains = [_gain(result["test_result"].get(key), baseline["test_result"].get(key)) for key in shown]
        lines.append(["gain", "student over baseline", *gains, "", ""])
    return "\n".join(columns(lines))


def _gain(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base - 1:+.1%}"


def _members(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(role, its part of the result) for the teachers, the student and the baseline."""
    sizes, teacher, baseline = result["parameters"], result["teacher"], result["baseline"]
    if teacher:
        one = {**teacher, "parameters": sizes["teacher"]}
        yield from (("teacher", member) for member in one.get("members", [one]))
    name = result["model"] if result["student"] == result["model"] else f"{result['model']} ({result['student']})"
    yield "student", {**result, "model": name, "parameters": sizes["student"]}
    if baseline:
        yield "baseline", baseline


def rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each teacher, the student and the baseline: role, model, test metrics, parameters, seconds."""
    for role, member in _members(result):
        costs = {key: member[key] for key in ("parameters", "train_seconds")}
        yield {"role": role, "model": member["model"], **member["test_result"], **costs}
