"""The raw file of a dataset: at hand, or fetched whole or not at all; decompressed where it is gzip."""

from __future__ import annotations

import gzip
import http.client
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

from tqdm import tqdm

from recbole_kd.errors import UserError

__all__ = ["RawFile", "decompressed", "raw_file"]

_MEBIBYTE = 1 << 20
_TIMEOUT = 30.0  # seconds without an answer before a connection counts as broken


@dataclass(frozen=True)
class RawFile:
    """The raw file.

    Attributes:
        origin: its address, or the name without the folder of a file of the user's own.
        path: where it lies now.
        kept: the name that a fresh download gets when all went well.
    """

    origin: str
    path: Path
    kept: Path | None = None

    def refuse(self, problem: str) -> None:
        raise UserError(f"{problem}; set --source to another file or address.")

    def refuse_digest(self, found: str, expected: str) -> None:
        self.refuse(f"{self.path} has sha256 {found}; expected {expected}")


def raw_file(dataset: str, address: str, folder: Path, known: str | None, limit: int, show_progress: bool) -> RawFile:
    """The raw file of a dataset, downloaded if need be.

    Args:
        address: a path, or a http, https or file address.
        folder: gets a download.
        known: the address that a download in `folder` came from.
        limit: bytes of the largest download.

    Raises:
        UserError: no such file, or a download that fails or is too large.
    """
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise UserError(f"--source={address} is not an address ({error}); expected a file or an address.") from None
    if parts.scheme in ("http", "https"):
        kept = folder / f"{dataset}.raw"  # no name that a server chooses can meet one of ours
        if kept.exists() and known == address:
            return RawFile(address, kept)
        part = folder / f"{dataset}.raw.part"
        _download(dataset, address, part, limit, show_progress)
        return RawFile(address, part, kept)
    if "://" in address and parts.scheme != "file":
        raise UserError(f"--source={address} is not read; expected a file, or an address of http, https or file.")
    # pathlib's own raises where there is no such user.
    path = Path(os.path.expanduser(url2pathname(parts.path) if parts.scheme == "file" else address))
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"--source={address} {found}; expected the raw file of {dataset}.")
    if not os.access(path, os.R_OK):
        raise UserError(f"--source={address} cannot be read; change its permissions or give another file.")
    return RawFile(path.name, path)


def _download(dataset: str, url: str, part: Path, limit: int, show_progress: bool) -> None:
    """Fetches `url` to `part`, which is removed where that fails."""
    received = 0
    try:
        with urlopen(Request(url, headers={"User-Agent": "recbole-kd"}), timeout=_TIMEOUT) as response:
            size = response.length
            if (size or 0) > limit:
                raise UserError(_too_large(url, f"is {size:,} bytes long", "a download", limit))
            bar = tqdm(desc="Downloading", total=size, unit="B", unit_scale=True, disable=not show_progress)
            with part.open("wb") as file, bar:
                while block := _next_block(response):
                    received += len(block)
                    if received > limit:
                        raise UserError(_too_large(url, "is longer", "a download", limit))
                    file.write(block)
                    bar.update(len(block))
        if size is not None and received != size:
            raise http.client.HTTPException(f"the transfer ended after {received:,} of {size:,} bytes")
    except http.client.InvalidURL as error:
        raise UserError(f"{url} is not an address ({error}); set --source to a file or an address.") from None
    except HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except (http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
    except OSError as error:
        if part.exists() and not isinstance(error, _Broken):
            raise  # the disk, not the network
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    else:
        return
    raise UserError(
        f"Cannot download {dataset} from {url}: {reason}; without a network, fetch that file elsewhere "
        f"and run `recbole-kd prepare --dataset={dataset} --source=FILE`."
    )


class _Broken(OSError):
    """A transfer that broke, in contrast to a disk that is full."""


def _next_block(response: Any) -> bytes:
    try:
        return bytes(response.read1(_MEBIBYTE))
    except OSError as error:
        raise _Broken(f"the transfer broke ({error})") from None


def _too_large(what: object, found: str, expected: str, limit: int) -> str:
    return f"{what} {found}; expected {expected} of at most {limit:,} bytes; set --source to the right file."


@contextmanager
def decompressed(raw: RawFile, limit: int) -> Iterator[Path]:
    """The raw file, decompressed where its first bytes say gzip, whatever its name; `limit` bytes at most."""
    with raw.path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            yield raw.path
            return
    with tempfile.TemporaryDirectory() as folder, gzip.open(raw.path) as content:
        plain = Path(folder) / raw.path.name
        with plain.open("wb") as file:
            while block := _next_content(content, raw):
                file.write(block)
                if file.tell() > limit:
                    raise UserError(_too_large(raw.path, "holds more", "a decompressed file", limit))
        yield plain


def _next_content(content: Any, raw: RawFile) -> bytes:
    try:
        return bytes(content.read(16 * _MEBIBYTE))
    except EOFError:
        raw.refuse(f"{raw.path} is a truncated gzip file; expected a whole one")
    except (gzip.BadGzipFile, zlib.error) as error:
        raw.refuse(f"{raw.path} is a damaged gzip file ({error}); expected a whole one")
    return b""
