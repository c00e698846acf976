"""Files that are whole or absent: the package writes every file through this module."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Union

from recbole_kd.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]
#: The path, the reason, the setting.
_CANNOT_WRITE = "Cannot write '{}': {}; make room or permit it, or choose another place with --{}."


def write_atomic(path: PathLike, write: Callable[[BinaryIO], object], setting: str = "checkpoint_dir") -> None:
    """Writes a file so that `path` holds either what it held before or all of what `write` wrote, even across a crash.

    The bytes go to a hidden temporary file (``.*.tmp``) in the same folder, which is made where it does not exist, then
    reach the disk, then take the name. Only a killed process leaves a temporary file behind; no reader looks at it, and
    the next write into the folder removes it.

    Args:
        path: the file.
        write: called once with the open temporary file.
        setting: the one that an error says to change.

    Raises:
        UserError: the file system refused (full disk, read-only folder, `path` is a folder); or a pipe or a device that
            the user named.
    """
    path = Path(path)
    check_place(path, setting)
    temporary = path.parent / _temporary_name()
    raw: _RawFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        raw = _claimed(temporary)
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # While the file is still open, and so locked: a sweep leaves it alone.
            os.replace(temporary, path)
    except Exception as error:
        # torch.save hides the file's error behind one of its own.
        refused = error if isinstance(error, OSError) else raw.error if raw else None
        if refused is None:
            raise
        raise UserError(_CANNOT_WRITE.format(path, refused.strerror or refused, setting)) from refused
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _flush_folder(path.parent)


def check_place(path: PathLike, setting: str) -> None:
    """Refuses a place where :func:`write_atomic` can write no file, as far as it can be seen before there is one.

    Args:
        path: the file.
        setting: the one that named it. What is in ``checkpoint_dir`` is the program's own, and replaced.

    Raises:
        UserError: a folder above it is a file or read-only, or it is a pipe or a device.
    """
    path = Path(path)
    reason = ""
    above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not above.is_dir():
        reason = f"File exists, '{above}' is no folder"
    elif not os.access(above, os.W_OK | os.X_OK):
        reason = f"Permission denied in '{above}'"
    elif setting != "checkpoint_dir" and (
        (path.exists() and not path.is_file() and not path.is_dir())
        or (path.is_symlink() and os.readlink(path).startswith("/proc/"))  # /dev/stdout
    ):
        reason = "it is a pipe or a device; expected a regular file"
    if reason:
        raise UserError(_CANNOT_WRITE.format(path, reason, setting))


def write_content(path: PathLike, content: str | bytes, setting: str = "output") -> None:
    """Writes text, in UTF-8, or bytes; as :func:`write_atomic`."""
    whole = content.encode() if isinstance(content, str) else content
    write_atomic(path, lambda file: file.write(whole), setting)


@contextlib.contextmanager
def whole_folder(path: PathLike, setting: str = "output") -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name, and its place, when the block ends well.

    A folder that is there already is exchanged with it in one step, so that `path` always holds a whole one. Where the
    file system cannot exchange (NFS), there is none under the name for a moment, and the old one comes back if the
    second of two renamings fails.

    Raises:
        UserError: the file system refused.
    """
    path = Path(path).absolute()
    temporary = path.parent / _temporary_name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary.mkdir()
        with _locked(temporary):
            yield temporary
            _flush_folder(temporary)
            if path.is_dir() and not _exchange(temporary, path):
                replaced = path.parent / _temporary_name()
                with _locked(path):
                    os.rename(path, replaced)
                    try:
                        os.rename(temporary, path)
                    except OSError:
                        os.rename(replaced, path)
                        raise
                shutil.rmtree(replaced, ignore_errors=True)
            elif not path.is_dir():
                os.rename(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"Cannot write '{path}': {error.strerror or error}; make room or permit it, or choose another --{setting}."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step (Linux's renameat2); False where that is not possible."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, so that no sweep takes it for a dead process's, wherever it is moved meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Brings a folder's names to the disk: a name is durable only with its folder. Some file systems cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}.tmp"


#: Names of temporary files: ours alone.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def sweep(folder: PathLike) -> int:
    """Removes the temporary files and folders that killed processes left in `folder`; returns how many.

    A file that is being written is locked by its process, and the system drops the lock when that process ends,
    however it ends: a file that can be locked is nobody's. Where the file system has no locks, files are left.
    """
    swept = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                is_folder = entry.is_dir(follow_symlinks=False)
                kind = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
                descriptor = os.open(entry.path, kind | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (shutil.rmtree if is_folder else os.unlink)(entry.path)
                    swept += 1
                finally:
                    os.close(descriptor)
    return swept


def _claimed(path: Path) -> _RawFile:
    """A new file, locked. A sweep between its making and its lock removes it: then it is made again, once."""
    raw = _RawFile(path, "x")
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
        if not path.exists():
            raw.close()
            raw = _RawFile(path, "x")
            fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
    return raw


class _RawFile(io.FileIO):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise
