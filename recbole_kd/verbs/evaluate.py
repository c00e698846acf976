"""``recbole-kd evaluate``: a saved model on its validation and test split, full ranking."""

from __future__ import annotations

import json
from typing import Any

from recbole_kd.files.checkpoint import save_json
from recbole_kd.verbs.options import EvaluateOptions
from recbole_kd.verbs.train import evaluate_checkpoint


def run(options: EvaluateOptions, settings: dict[str, Any]) -> None:
    """Prints the metrics as JSON."""
    result = evaluate_checkpoint(options.checkpoint, settings)
    if options.result_file:
        save_json(result, options.result_file, "result_file")
    print(json.dumps(result, indent=2))
