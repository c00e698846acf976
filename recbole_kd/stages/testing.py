"""Evaluation of trained weights, in this process or in shards of users on a cluster."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_kd.evaluation.costs import peak_memory
from recbole_kd.student.matryoshka import prefix

__all__ = ["evaluate", "evaluate_prefixes", "evaluated"]


def evaluate(trainer: Any, test_data: Any) -> tuple[dict[str, float], float]:
    """Metrics of the best epoch's weights on the test split, if there is one, and the seconds for computing them."""
    trainer.load_best()
    if test_data is None:
        trainer.conclude()
        return {}, 0.0
    logging.getLogger().info(f"Evaluating {trainer.config['model']}, epoch {trainer.best_epoch}, on the test split")
    start = time.perf_counter()
    result = evaluated(trainer, test_data, "test", trainer.saved_model_file, {})
    seconds = time.perf_counter() - start
    trainer.conclude(result, evaluate_seconds=seconds, peak_memory_bytes=peak_memory())
    return result, seconds


def evaluated(trainer: Any, data: Any, split: str, checkpoint: str, given: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the trainer's model, which is in `checkpoint`; with ``--ray_address`` in shards of users.

    `given` are settings in addition to those of the checkpoint. The address is in them or in the run's settings.
    """
    address = given.get("ray_address") or trainer.config["ray_address"]
    if address and os.path.isfile(checkpoint):
        from recbole_kd.stages.shards import evaluate_in_shards

        result = evaluate_in_shards(trainer, data, split, checkpoint, given, str(address))
    else:
        result = trainer.evaluate(data, load_best_model=False, show_progress=trainer.config["show_progress"])
    return {name: float(value) for name, value in result.items()}


def evaluate_prefixes(trainer: Any, loaders: Any, sizes: Sequence[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Size of each prefix of a trained student -> ``valid_result`` and ``test_result``; the full size is last."""
    found = {}
    for size in sizes:
        with prefix(trainer.model, size):
            results = {
                f"{name}_result": trainer.evaluate(data, load_best_model=False)
                for name, data in zip(("valid", "test"), loaders[1:])
                if data is not None
            }
        found[str(size)] = {name: {key: float(one) for key, one in row.items()} for name, row in results.items()}
    return found
