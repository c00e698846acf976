"""What a training will take, estimated from a few of its steps (``--dry_run=true``)."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import get_trainer, init_seed

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.evaluation.costs import peak_memory, reset_peak_memory
from recbole_kd.experiment.experiment import Experiment
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.stages.data import load_splits
from recbole_kd.student.matryoshka import average_over_prefixes
from recbole_kd.text import duration

__all__ = ["estimated"]

#: Steps that are made of each model; the first one warms up and does not count.
STEPS = 4


def estimated(experiment: Experiment) -> list[str]:
    """A line for each model that would be trained: seconds an epoch, at most how long in all, and peak memory.

    Real steps of an untrained model are made, on the run's data. A teacher from the cache or a file would cost nothing.
    """
    config = experiment.settings
    if not Path(config["data_path"]).is_dir():
        return [f"no estimate, as the data of {config['dataset']} are not there yet"]
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        splits = load_splits(config)
        models = [("teacher", source.settings) for source in experiment.teachers if source.settings is not None]
        return [_line(role, own, splits, experiment) for role, own in [*models, ("student", config)]]
    finally:
        logging.disable(level)


def _line(role: str, config: KDConfig, splits: Splits, experiment: Experiment) -> str:
    name = f"{role} {config['model']}"
    if get_trainer(config["MODEL_TYPE"], config["student"]) is not Trainer:
        return f"{name}: no estimate, as it has a training loop of its own"
    init_seed(config["seed"], config["reproducibility"])
    train = make_loaders(config, splits)[0]
    model: Any = build_model(config, splits.train)
    if role == "student" and experiment.prefixes:
        average_over_prefixes(model, experiment.prefixes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    reset_peak_memory()
    spent = []
    for batch in itertools.islice(train, STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        losses = model.calculate_loss(batch.to(config["device"]))
        loss: Any = sum(losses) if isinstance(losses, tuple) else losses
        if not loss.requires_grad:
            return f"{name}: a closed form, solved in one step"
        loss.backward()
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    epoch = statistics.median(spent[1:] or spent) * len(train)
    left_out = " without its distillers' terms" if role == "student" and experiment.distillers else ""
    return (
        f"{name}{left_out}: about {epoch:.2g} s an epoch of {len(train):,} steps, at most "
        f"{duration(epoch * config['epochs'])} for {config['epochs']} epochs without evaluation; "
        f"peak memory {peak_memory() / 1e6:,.0f} MB"
    )
