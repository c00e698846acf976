"""The search: trials drawn from the space, trained by Ray Tune, pruned by ASHA, chosen on the validation split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from recbole_kd.tune.space import Domain


def search(
    model: Optional[str] = None,
    dataset: Optional[str] = None,
    config_file_list: Optional[Iterable[str]] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
    space: Union[None, str, Path, Mapping[str, Domain]] = None,
    trials: int = 50,
    folder: Union[None, str, Path] = None,
    prune: bool = True,
    grace_epochs: Optional[int] = None,
    cpus: Optional[int] = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: Optional[float] = None,
    ray_address: Optional[str] = None,
) -> dict[str, Any]:
    """Trains `trials` configurations and returns the one that is best on the validation split; test is never read.

    Args:
        model, dataset, config_file_list, config_dict: the run that is tuned, as for `run_recbole_kd`.
        space: what is searched, a ``.hyper`` file or what `parse_space` gives; by default properties/tune/MODEL.hyper.
        trials: configurations in all, those of an earlier, interrupted search in `folder` included.
        folder: gets trials.csv, trials.png, best.yaml, result.json and the winner's checkpoint; by default under
            ``checkpoint_dir``/tune, named by the content of the search.
        prune: whether ASHA stops trials that are behind; otherwise every trial is trained to its end.
        grace_epochs: epochs that every trial is trained for; by default a ninth of all.
        cpus: cores that trials may use together, where Ray is started here; by default all.
        cpus_per_trial, gpus_per_trial: what one trial occupies; fractions share a device. By default 1 core, and 1 GPU
            where the settings use one.
        ray_address: of a running cluster to join, such as ``"auto"``.

    Returns:
        ``model``, ``dataset``, ``seed``, ``valid_metric``, ``space``, ``trials`` (a record each), ``counts`` by status,
        ``best`` with ``trial``, ``settings`` (by dotted name, to be merged over `config_dict`), ``score``,
        ``best_epoch``, ``valid_result`` and ``checkpoint``; ``folder`` and ``config_file`` (best.yaml, for
        ``train --config_files=``).

    Raises:
        UserError: settings, a space or a folder that the user can mend; no trial that could be trained.
        KeyboardInterrupt: interrupted; it says how to go on.
    """
    raise NotImplementedError


def evaluate_winner(result: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of the winner's checkpoint on the test split, which no trial has read."""
    raise NotImplementedError
