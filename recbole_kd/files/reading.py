"""Reads regular files, text of bounded length, and JSON with a schema. Nothing here imports torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import PathLike
from recbole_kd.files.schema import Unbounded, check, require_bounded
from recbole_kd.text import one_line

#: Largest size in bytes of a text that is read into memory.
MOST_TEXT = 1 << 26


def open_regular(path: PathLike) -> BinaryIO:
    """The file, opened for reading. Pipes and devices are refused, as reading them might never end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device; expected a regular file", str(path))
    return file


def read_text(path: PathLike, most: int = MOST_TEXT) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        OSError: as :func:`open_regular`, or it is longer than `most` bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most:,} bytes", str(path))
    return content.decode("utf-8-sig")


def read_json(path: PathLike, schema: Any = dict[str, Any], advice: str = "give a file that recbole-kd wrote") -> Any:
    """The content of a JSON file, checked against a schema (:mod:`recbole_kd.files.schema`).

    Raises:
        OSError: it cannot be read, is not a regular file, or is longer than any file that we write.
        UserError: it is not JSON, is nested too deeply, or does not fit the schema; the message names the field.
    """
    try:
        value = json.loads(read_text(path))
        require_bounded(value, MOST_TEXT)
    except (ValueError, RecursionError, Unbounded) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error, 200)
        raise UserError(f"'{path}' is not valid JSON ({reason}); {advice}.") from None
    check(value, schema, f"'{path}'", advice)
    return value


def file_digest(path: PathLike) -> tuple[str, int]:
    """The sha256, in hexadecimal, and the size in bytes of a file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    hasher, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
            size += len(block)
    return hasher.hexdigest(), size


def vector_files(path: str) -> list[str]:
    """The files that are read for `path`: the file itself and, for safetensors, the files of its ids."""
    if Path(path).suffix != ".safetensors":
        return [path]
    beside = (Path(path).parent / f"{kind}.jsonl" for kind in ("users", "items"))
    return [path, *(str(file) for file in beside if file.is_file())]
