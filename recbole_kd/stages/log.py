"""The log of a run: all of it in a file, and the lines that tell the course of it on the terminal."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import colorama
from recbole.utils import init_logger

from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig

__all__ = ["log_to_file", "start_logging"]

#: What RecBole tells after the line of each epoch; the file keeps it.
_NOT_SHOWN = re.compile(r"(\x1b\[[\d;]*m)*(valid result|Saving current)")


def _shown(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or _NOT_SHOWN.match(str(record.msg)) is None


def start_logging(config: KDConfig) -> None:
    """RecBole's logger, and one line on what the run is.

    The terminal does not show what RecBole repeats of each epoch; with ``quiet`` it shows warnings and errors alone.

    Raises:
        UserError: the folder ``log`` cannot be written.
    """
    try:
        init_logger(config)
    except OSError as error:
        raise UserError(
            f"Cannot write the log under {Path('log').absolute()}: {error.strerror}; run from a writable folder."
        ) from None
    colorama.deinit()
    root = logging.getLogger()
    for handler in root.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(_shown)
            handler.setLevel(max(root.level, logging.WARNING) if config["quiet"] else root.level)
    distil = f", distil {', '.join(config.distillers)}" if config.distillers else ""
    root.info(f"{config['model']} on {config['dataset']}{distil}, seed {config['seed']}")
    root.debug(config)


def log_to_file(text: str) -> None:
    """A line of the log's file alone: the terminal tells it in another place."""
    record = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "msg": text})
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and record.levelno >= handler.level:
            handler.handle(record)
