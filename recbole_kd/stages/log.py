"""The log of a run: complete in a file, and the main lines on the terminal."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import colorama
from recbole.utils import init_logger

from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig

__all__ = ["log_to_file", "start_logging"]

#: RecBole's lines after each epoch's line; only the file keeps them.
_NOT_SHOWN = re.compile(r"(\x1b\[[\d;]*m)*(valid result|Saving current)")


def _shown(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or _NOT_SHOWN.match(str(record.msg)) is None


def start_logging(config: KDConfig, trains: bool = True) -> None:
    """Starts RecBole's logger, and logs one line that describes the run.

    The terminal does not show RecBole's repeated lines for each epoch. With ``quiet`` it shows only warnings and
    errors.

    Args:
        config: settings of the run.
        trains: whether a model is trained. What only reads a checkpoint works in a folder that cannot be written.

    Raises:
        UserError: the folder ``log`` cannot be written, and a model is trained.
    """
    try:
        init_logger(config)
    except OSError as error:
        if trains:
            raise UserError(
                f"Cannot write the log under {Path('log').absolute()}: {error.strerror}; run from a writable folder."
            ) from None
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s  %(message)s", datefmt="%d %b %H:%M")
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
    """Logs a line to the file only; the terminal shows it elsewhere."""
    record = logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "msg": text})
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and record.levelno >= handler.level:
            handler.handle(record)
