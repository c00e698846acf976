"""Writes files atomically: a file is complete or absent. The package writes every file through this module."""

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
    """Writes a file so that `path` has either its old content or the complete new content, even after a crash.

    The bytes are written to a hidden temporary file (``.*.tmp``) in the same folder, which is created if missing. They
    are flushed to the disk, then the file is renamed. Only a killed process leaves a temporary file behind. No reader
    looks at it, and the next write into the folder removes it.

    Args:
        path: the file.
        write: called once with the open temporary file.
        setting: the setting to change, named in errors.

    Raises:
        UserError: the file system refused (full disk, read-only folder, `path` is a folder), or `path` is a pipe or a
            device.
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
            # While the file is still open and so locked, so that no sweep removes it.
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
    """Refuses a place where :func:`write_atomic` cannot write, as far as this is known before writing.

    Args:
        path: the file.
        setting: the setting that named it. Files in ``checkpoint_dir`` are the program's own and are replaced.

    Raises:
        UserError: a folder above it is a file or read-only, or it is a folder, a pipe or a device.
    """
    path = Path(path)
    reason = ""
    above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not above.is_dir():
        reason = f"File exists, '{above}' is not a folder"
    elif path.is_dir():
        reason = "it is a folder; expected a file"
    elif not os.access(above, os.W_OK | os.X_OK):
        reason = f"Permission denied in '{above}'"
    elif setting != "checkpoint_dir" and (
        (path.exists() and not path.is_file())
        or (path.is_symlink() and os.readlink(path).startswith("/proc/"))  # /dev/stdout
    ):
        reason = "it is a pipe or a device; expected a regular file"
    if reason:
        raise UserError(_CANNOT_WRITE.format(path, reason, setting))


def write_content(path: PathLike, content: str | bytes, setting: str = "output") -> None:
    """Writes text, in UTF-8, or bytes, with :func:`write_atomic`."""
    whole = content.encode() if isinstance(content, str) else content
    write_atomic(path, lambda file: file.write(whole), setting)


@contextlib.contextmanager
def whole_folder(path: PathLike, setting: str = "output") -> Iterator[Path]:
    """A temporary folder beside `path` that replaces `path` if the block ends without an error.

    An existing folder is exchanged with it in one step, so `path` is always complete. If the file system cannot
    exchange folders (NFS), two renamings are needed: for a moment `path` is missing, and the old folder is restored if
    the second renaming fails.

    Raises:
        UserError: the file system refused.
    """
    path = Path(os.path.realpath(path))  # a link stays, and its folder is replaced
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
    """Swaps the names of two folders in one step (Linux's renameat2); False if that is not possible."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder inside the block, so that no sweep removes it, even if it is moved."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flushes a folder to the disk, because new names are durable only then; some file systems cannot do it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _temporary_name() -> str:
    return f".{secrets.token_hex(8)}.tmp"


#: Names of our temporary files.
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def sweep(folder: PathLike) -> int:
    """Removes the temporary files and folders that killed processes left in `folder`; returns their number.

    A file that is being written is locked by its process, and the system releases the lock when the process ends. So a
    file that can be locked belongs to no process. If the file system has no locks, nothing is removed.
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
    """A new, locked file. If a sweep removes it before it is locked, it is created again, once."""
    raw = _RawFile(path, "x")
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
        if not path.exists():
            raw.close()
            raw = _RawFile(path, "x")
            fcntl.flock(raw.fileno(), fcntl.LOCK_EX)
    return raw


class _RawFile(io.FileIO):
    """A file that stores the error of a failed write."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise
