"""Files that are read: regular ones, and text of a bounded length."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from recbole_kd.files.atomic import PathLike

#: Bytes of the longest text that is read into memory as a whole.
MOST_TEXT = 1 << 26


def open_regular(path: PathLike) -> BinaryIO:
    """The file, open for reading; a named pipe does not keep its reader waiting, and a device is not read for ever.

    Raises:
        OSError: it cannot be opened, or is no regular file.
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
        UnicodeDecodeError: it is no UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most:,} bytes", str(path))
    return content.decode("utf-8-sig")


def vector_files(path: str) -> list[str]:
    """The files that are read for `path`: itself, and of safetensors those of its ids."""
    if Path(path).suffix != ".safetensors":
        return [path]
    beside = (Path(path).parent / f"{kind}.jsonl" for kind in ("users", "items"))
    return [path, *(str(file) for file in beside if file.is_file())]
