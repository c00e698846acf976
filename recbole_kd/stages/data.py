"""The data of a run: fetched and prepared if it is missing, loaded and split once."""

from __future__ import annotations

import logging
from pathlib import Path

from recbole.utils import init_seed

from recbole_kd.data import summary
from recbole_kd.data.preparable import PREPARABLE, unprepared
from recbole_kd.data.prepare import can_prepare, prepare
from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.properties import dataset_names

__all__ = ["fetch", "load_splits"]


def fetch(config: KDConfig) -> None:
    """Fetches and prepares the dataset of a run where it is missing and can be."""
    folder, name, parts = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    files = [folder / f"{name}.{part}.inter" for part in parts] if parts else [folder / f"{name}.inter"]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is None or not can_prepare(name) or (parts and name in PREPARABLE):
        return
    logging.getLogger().info(
        f"There is no '{missing}': preparing it, as `recbole-kd prepare --dataset={name}` does. Data that lies "
        "elsewhere is read with --data_path."
    )
    prepare(name, config.data_root, show_progress=config["show_progress"])


def load_splits(config: KDConfig) -> Splits:
    """A run's dataset, loaded and split once; it is fetched and prepared first if it is missing and available."""
    folder, name = Path(config["data_path"]), config["dataset"]
    fetch(config)
    if not folder.is_dir():
        names = dataset_names(config.data_root)
        if why := unprepared(name):
            raise UserError(f"There is no dataset folder '{folder}', and {why} Or set --data_path to the folder above.")
        raise UserError(
            f"Unknown dataset '{name}': there is no folder '{folder}'.{closest(name, names)} "
            "Set --data_path to the folder above the dataset's, or see 'recbole-kd list'."
        )
    with config.noting_reads() as noted:
        init_seed(config.split_seed, config["reproducibility"])
        splits = Splits(config)
        rule = summary.ranked(splits) if config["repeatable"] is None else ""
    splits.read_settings = sorted(noted)
    logger = logging.getLogger()
    logger.info(f"The data:\n{summary.table(splits)}")
    if rule:
        logger.info(rule)
    for warning in summary.warnings(splits):
        logger.warning(warning)
    return splits
