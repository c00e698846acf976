"""Search for a model's settings on the validation split, with Ray Tune."""

from __future__ import annotations

import os
from typing import Any

from recbole_kd.files.atomic import check_place
from recbole_kd.files.plain import save_json
from recbole_kd.files.properties import named_files
from recbole_kd.verbs.options import TuneOptions
from recbole_kd.verbs.tune.report import summary
from recbole_kd.verbs.tune.search import evaluate_winner, search
from recbole_kd.verbs.tune.space import Domain, default_space, parse_space, read_space

__all__ = ["Domain", "default_space", "evaluate_winner", "parse_space", "read_space", "run", "search"]


def run(options: TuneOptions, settings: dict[str, Any]) -> None:
    """The verb: searches, evaluates the winner on the test split, and prints both."""
    files = named_files(options.config_files)
    if options.result_file:
        check_place(options.result_file, "result_file")
    result = search(
        config_file_list=files,
        config_dict=settings,
        space=options.params_file,
        trials=options.trials,
        folder=options.output,
        prune=options.prune,
        grace_epochs=options.grace_epochs,
        cpus=options.cpus,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        ray_address=options.ray_address,
    )
    result["test_result"] = evaluate_winner(result, files, settings)
    for path in (os.path.join(result["folder"], "result.json"), options.result_file):
        if path:
            save_json(result, path, "result_file" if path == options.result_file else "output")
    print(f"\n{summary(result)}")
