"""Public datasets, downloaded and converted to RecBole's atomic files.

:func:`prepare` fetches the raw file of a dataset, keeps the first interaction of each (user, item) pair, reduces the
pairs to their k-core and writes ``DATA_PATH/DATASET/DATASET.inter`` together with ``prepare.json``, the record of
what it was made from. A dataset joins with one small function, raw lines to a frame, and one entry of
:data:`PREPARABLE`.

Files appear under their final names only when they are whole. Until a download has proved good it is
``DATASET.raw.part``, with ``DATASET.raw.part.json`` saying what the bytes belong to, so that an interrupted transfer
goes on where it stopped; then it is ``DATASET.raw``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Union
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from recbole_kd.errors import UserError, closest
from recbole_kd.verbs.options import PrepareOptions

_MEBIBYTE = 1 << 20
_BLOCK = 16 * _MEBIBYTE  # decompressed bytes that are parsed at once; also the longest line
_ROWS = 100_000  # rows that are written at once
_ATTEMPTS = 4  # connections in a row without one new byte before a download gives up
_BACKOFF = 1.0  # seconds before the second attempt; doubles with each
_TIMEOUT = 30.0  # seconds without an answer before a connection counts as broken

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparable:
    """A public dataset that :func:`prepare` can make.

    Attributes:
        description: one line for ``recbole-kd list``.
        url: the raw file, plain text or gzip, one interaction per line.
        parse: whole lines -> frame with the columns ``user``, ``item`` and ``timestamp`` (seconds since the epoch), one
            row per line. Raises ValueError or OverflowError when any of the lines is malformed.
        line: what a line holds, for the message about a malformed one.
        download_limit: bytes of the largest download that is accepted.
        raw_limit: bytes of the largest decompressed raw file that is accepted.
        sha256: the checksum of the file at `url`, where it is known.
    """

    description: str
    url: str
    parse: Callable[[bytes], pd.DataFrame]
    line: str
    download_limit: int
    raw_limit: int
    sha256: Optional[str] = None


def _gowalla(lines: bytes) -> pd.DataFrame:
    """Check-ins as SNAP publishes them: user, ISO time in UTC, latitude, longitude, location; tab-separated."""
    frame = pd.read_csv(
        io.BytesIO(lines),
        sep="\t",
        header=None,
        usecols=[0, 1, 4],
        names=["user", "timestamp", "item"],
        dtype={"user": "int64", "timestamp": str, "item": "int64"},
        quoting=csv.QUOTE_NONE,
        lineterminator="\n",
        skip_blank_lines=False,
        na_filter=False,
        low_memory=False,
    )
    # Every line has a fifth field, else it would not have been read as a number: four tabs a line on average are four
    # on each, and no line has a sixth.
    if lines.count(b"\t") != 4 * len(frame):
        raise ValueError("a line has more than five fields")
    moments = pd.to_datetime(frame["timestamp"], format="%Y-%m-%dT%H:%M:%S%z", utc=True)
    if moments.isna().any():
        raise ValueError("a time is empty")
    frame["timestamp"] = (moments - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
    return frame


PREPARABLE: dict[str, Preparable] = {
    "gowalla": Preparable(
        description="check-ins of a location-based social network, first visits, 10-core (SNAP; 101 MiB download)",
        url="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        parse=_gowalla,
        line="user, time such as 2010-10-19T23:55:27Z, latitude, longitude, location, separated by tabs",
        download_limit=256 * _MEBIBYTE,
        raw_limit=2048 * _MEBIBYTE,
        sha256="c1c3e19effba649b6c89aeab3c1f9459fad88cfdc2b460fc70fd54e295d83ea0",
    ),
}
"""The datasets that can be prepared, by the name that ``--dataset`` gives them."""


def can_prepare(name: str) -> bool:
    """Whether :func:`prepare` knows the dataset `name`."""
    return name in PREPARABLE


def prepare(
    dataset: str,
    data_path: Union[str, Path],
    source: Optional[str] = None,
    show_progress: bool = True,
    minimum: int = 10,
) -> Path:
    """Downloads `dataset` and converts it to an atomic file that RecBole reads.

    Of several interactions of one user with one item the earliest is kept. Users and items with fewer than `minimum`
    interactions are then removed until none is left (the k-core). Ids are those of the raw file. Rows are ordered by
    user, then time, then item: RecBole holds a timestamp in 32 bits, which is two minutes coarse for present-day
    seconds, and its stable sort then keeps the order of the file.

    A dataset that has already been prepared with this `minimum` is left as it is, and nothing is downloaded. The
    download is kept beside the result, so that another `minimum` needs no network.

    Args:
        dataset: a name in :data:`PREPARABLE`.
        data_path: the folder of datasets; the result lies in ``data_path/dataset``.
        source: the raw file: a path, or a http, https or file address; plain text or gzip. None is the public address.
        show_progress: whether bars are drawn for the download, reading, filtering and writing.
        minimum: interactions that every user and every item must have in the result; 1 keeps all.

    Returns:
        ``data_path/dataset/dataset.inter``, columns ``user_id:token item_id:token timestamp:float``.

    Raises:
        UserError: an unknown dataset; a source that is missing, unreachable, too large, truncated, malformed or not the
            one recorded; a result that this function did not write; a folder that cannot be written.
    """
    if not can_prepare(dataset):
        raise UserError(
            f"Dataset '{dataset}' cannot be prepared.{closest(dataset, PREPARABLE)} "
            f"Expected --dataset= one of: {', '.join(PREPARABLE)}."
        )
    PrepareOptions.checked("--", "minimum", minimum)
    entry = PREPARABLE[dataset]
    folder = Path(data_path) / dataset
    try:
        return _prepare(dataset, entry, folder, source, show_progress, minimum)
    except OSError as error:
        raise UserError(
            f"Cannot prepare {dataset} in {folder}: {error.strerror or error}; "
            f"set --data_path to a folder that can be written and has room."
        ) from error


def k_core(users: NDArray[np.int64], items: NDArray[np.int64], minimum: int) -> NDArray[np.int64]:
    """The largest subset of pairs in which every user and every item occurs at least `minimum` times.

    Args:
        users, items: (n,) codes from 0; a pair occurs once.
        minimum: at least 1.

    Returns:
        (m,) ascending positions of the pairs that stay; the k-core is unique, whatever the order of removal.
    """
    kept = np.arange(len(users))
    while True:
        frequent_users = np.bincount(users[kept]) >= minimum
        frequent_items = np.bincount(items[kept]) >= minimum
        stays = frequent_users[users[kept]] & frequent_items[items[kept]]
        if stays.all():
            return kept
        kept = kept[stays]


def _prepare(
    dataset: str, entry: Preparable, folder: Path, source: Optional[str], show_progress: bool, minimum: int
) -> Path:
    """:func:`prepare` once its arguments are checked; an OSError here is about `folder`."""
    target, record_file = folder / f"{dataset}.inter", folder / "prepare.json"
    record = _read_record(record_file)
    up_to_date = record is not None and record.minimum == minimum and target.exists()
    if target.exists():
        _check_own(target, record, record_file)
    if up_to_date and source is None:
        return target

    with _folder(folder):
        raw = _raw_file(dataset, entry, folder, source, record, show_progress)
        digest, size = _digest(raw.path)
        _check_digest(raw, digest, entry, record, record_file)
        if not up_to_date:
            with _whole_file(target) as result:
                lines, frame = _read(raw, entry, show_progress)
                frame = _distinct_core(frame, minimum, show_progress)
                if frame.empty:
                    raise UserError(
                        f"{raw.path} holds no users and items with {minimum} interactions each; "
                        f"expected a larger file, or a smaller --minimum."
                    )
                written = _write(frame, result, show_progress)
                description = {
                    "dataset": dataset,
                    "source": raw.origin,
                    "minimum": minimum,
                    "raw": {"bytes": size, "sha256": digest, "interactions": lines},
                    "result": {
                        **written,
                        "users": int(frame["user"].nunique()),
                        "items": int(frame["item"].nunique()),
                        "interactions": len(frame),
                    },
                }
                _flush(result)
                # In this order a record never stands beside a result that it does not describe, wherever this stops.
                target.unlink(missing_ok=True)
                with _whole_file(record_file) as file:
                    file.write((json.dumps(description, indent=2) + "\n").encode())
        if raw.final is not None:
            raw.path.replace(raw.final)
            _note_of(raw.path).unlink(missing_ok=True)
    return target


# The record, and what it protects


@dataclass(frozen=True)
class _Record:
    """What ``prepare.json`` says of the last preparation, as far as the next one needs it."""

    source: str
    minimum: int
    raw_sha256: str
    result_sha256: str


def _read_record(path: Path) -> Optional[_Record]:
    try:
        record = json.loads(path.read_text())
        return _Record(record["source"], record["minimum"], record["raw"]["sha256"], record["result"]["sha256"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is not a record that `recbole-kd prepare` wrote; delete it and run again.") from None


def _check_own(target: Path, record: Optional[_Record], record_file: Path) -> None:
    """Refuses to take or to replace a result that somebody else wrote or changed."""
    if record is None:
        raise UserError(
            f"{target} was not written by `recbole-kd prepare` (there is no {record_file.name} beside it) and is not "
            f"replaced; move it away, or set another --data_path."
        )
    if _digest(target)[0] != record.result_sha256:
        raise UserError(
            f"{target} differs from the sha256 in {record_file.name}: it was changed after it was prepared; "
            f"delete it to prepare it anew, or set another --data_path."
        )


def _check_digest(raw: _Raw, digest: str, entry: Preparable, record: Optional[_Record], record_file: Path) -> None:
    """Refuses a raw file that is not the published one, or not the one of the last preparation."""
    if raw.origin == entry.url and entry.sha256 not in (None, digest):
        raise UserError(
            f"{raw.path} has sha256 {digest}; expected {entry.sha256}, that of the published file; {raw.remedy}."
        )
    if record is not None and digest != record.raw_sha256:
        raise UserError(
            f"{raw.path} has sha256 {digest}; expected {record.raw_sha256}, which {record_file} recorded; "
            f"{raw.remedy}, or delete that record to accept this file."
        )


def _digest(path: Path) -> tuple[str, int]:
    """sha256 and size in bytes of a file."""
    sha256, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_MEBIBYTE):
            sha256.update(block)
            size += len(block)
    return sha256.hexdigest(), size


# Files that are whole or absent


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes a folder, and removes it again if the block fails and leaves nothing in it."""
    existed = path.is_dir()
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends, flushed to the disk, and is removed if the block fails."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            _flush(file)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _flush(file: BinaryIO) -> None:
    """Through every buffer to the disk: a full disk shows here and not after the file got its name."""
    file.flush()
    os.fsync(file.fileno())


# The raw file


@dataclass(frozen=True)
class _Raw:
    """The raw file.

    Attributes:
        origin: its address, or the name without the folder of a file of the user's own.
        path: where it lies now.
        final: the name that a fresh download gets when all went well.
        remedy: what to do when it is no good.
    """

    origin: str
    path: Path
    final: Optional[Path]
    remedy: str


def _raw_file(
    dataset: str,
    entry: Preparable,
    folder: Path,
    source: Optional[str],
    record: Optional[_Record],
    show_progress: bool,
) -> _Raw:
    """The raw file, fetched if need be."""
    address = entry.url if source is None else source
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise UserError(f"--source={address} is not an address ({error}); expected a file or an address.") from None
    if parts.scheme in ("http", "https"):
        remedy = "delete it to download it again, or set --source to another file or address"
        final = folder / f"{dataset}.raw"  # no name that a server chooses can meet one of ours
        if final.exists() and record is not None and record.source == address:
            return _Raw(address, final, None, remedy)
        part = _download(dataset, address, final, entry.download_limit, show_progress)
        return _Raw(address, part, final, remedy)
    if "://" in address and parts.scheme != "file":
        raise UserError(f"--source={address} is not read; expected a file, or an address of http, https or file.")
    path = Path(url2pathname(parts.path) if parts.scheme == "file" else address).expanduser()
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"--source={address} {found}; expected the raw file of {dataset}, plain text or gzip.")
    if not os.access(path, os.R_OK):
        raise UserError(f"--source={address} cannot be read; change its permissions or give another file.")
    return _Raw(path.name, path, None, "set --source to another file or address")


class _Broken(Exception):
    """A transfer did not start or ended early; trying again may help."""


def _download(dataset: str, url: str, target: Path, limit: int, show_progress: bool) -> Path:
    """Fetches `url` to ``target.part``, going on from the bytes that an earlier transfer left there.

    Returns:
        ``target.part``, complete. The caller renames it when it has proved to be good.
    """
    part = target.with_name(f"{target.name}.part")
    furthest, fruitless = _size(part), 0
    while True:
        try:
            _transfer(dataset, url, part, limit, show_progress)
            return part
        except _Broken as broken:
            reason = str(broken)
        received = _size(part)
        fruitless = 1 if received > furthest else fruitless + 1
        furthest = max(furthest, received)
        if fruitless == _ATTEMPTS:
            resumable = received and _read_note(part, url)["validator"]
            kept = f"the next run goes on after the {received:,} bytes received; " if resumable else ""
            raise UserError(
                f"Cannot download {dataset} from {url}: {reason}; {kept}without a network, fetch that file elsewhere "
                f"and run `recbole-kd prepare --dataset={dataset} --source=FILE`."
            )
        delay = _BACKOFF * 2 ** (fruitless - 1)
        _logger.warning("Download of %s: %s; trying again in %g s.", dataset, reason, delay)
        time.sleep(delay)


def _transfer(dataset: str, url: str, part: Path, limit: int, show_progress: bool) -> None:
    """One connection of a download: returns when `part` is complete, raises :class:`_Broken` when it is not.

    The note beside `part` holds the address, the size and the validator (ETag or Last-Modified) of what its bytes
    belong to. With them the server is asked for the rest *if that is still the same file* (RFC 9110, If-Range); it
    sends the whole file otherwise, as a server does that knows no ranges.
    """
    note = _read_note(part, url)
    start = _size(part) if note["validator"] else 0
    if 0 < start == note["size"]:
        return
    headers = {"User-Agent": "recbole-kd"}
    if start:
        headers.update({"Range": f"bytes={start}-", "If-Range": note["validator"]})
    try:
        response: http.client.HTTPResponse = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # more bytes are here than the server has
            part.unlink(missing_ok=True)
        elif error.code < 500 and error.code not in (408, 429):
            raise UserError(
                f"Cannot download {dataset}: the server answered {error.code} {error.reason} for {url}; "
                f"set --source to another address or a file."
            ) from None
        raise _Broken(f"the server answered {error.code} {error.reason}") from None
    except http.client.InvalidURL as error:
        raise UserError(f"{url} is not an address ({error}); set --source to a file or an address.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error)) or type(error).__name__) from None

    with response:
        size = _whole_size(response, start)
        if response.status != 206:
            start = 0
        if (size or 0) > limit:
            raise UserError(_too_large(url, f"is {size:,} bytes long", "a download", limit))
        with open(part, "ab" if start else "wb") as file, _bar("Downloading", show_progress, size, start) as bar:
            if not start:
                _write_note(part, url, response, size)
            received = start
            while block := _next_block(response):
                received += len(block)
                if received > limit:
                    break
                file.write(block)
                bar.update(len(block))
            _flush(file)
    if received > limit:
        part.unlink()
        _note_of(part).unlink(missing_ok=True)
        raise UserError(_too_large(url, "is longer", "a download", limit))
    if size is not None and received != size:
        raise _Broken(f"the transfer ended after {received:,} of {size:,} bytes")


def _whole_size(response: http.client.HTTPResponse, start: int) -> Optional[int]:
    """Bytes of the whole file that a response is (a part of); None where the server does not say."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise UserError(
                f"The server answered another range of {response.url} than the one asked for; "
                f"delete the .part file to download it from the start."
            )
        return int(found[2])
    if response.status != 200:
        raise _Broken(f"the server answered {response.status} {response.reason}")
    return response.length


def _next_block(response: http.client.HTTPResponse) -> bytes:
    """What has arrived, at most a mebibyte; a transfer that breaks loses nothing of it."""
    try:
        return response.read1(_MEBIBYTE)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the transfer broke ({str(error) or type(error).__name__})") from None


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path, url: str) -> dict[str, Any]:
    """What the bytes in `part` belong to; nothing where that is unknown or another address."""
    try:
        note = json.loads(_note_of(part).read_text())
        if note["url"] == url:
            return {"validator": note["validator"], "size": note["size"]}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        pass
    return {"validator": None, "size": None}


def _write_note(part: Path, url: str, response: http.client.HTTPResponse, size: Optional[int]) -> None:
    validator = response.headers.get("ETag")
    if validator is None or validator.startswith("W/"):  # a weak tag may not be used for ranges
        validator = response.headers.get("Last-Modified")
    with _whole_file(_note_of(part)) as file:
        file.write(json.dumps({"url": url, "validator": validator, "size": size}).encode())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _too_large(what: object, found: str, expected: str, limit: int) -> str:
    return f"{what} {found}; expected {expected} of at most {limit:,} bytes; set --source to the right file."


# From raw lines to the result


def _read(raw: _Raw, entry: Preparable, show_progress: bool) -> tuple[int, pd.DataFrame]:
    """Number of lines, and the frame of all of them."""
    frames, lines = [], 0
    for block in _blocks(raw, entry.raw_limit, show_progress):
        try:
            frames.append(entry.parse(block))
        except (ValueError, OverflowError):
            rows = io.BytesIO(block).readlines()
            row = _malformed_row(rows, entry.parse)
            raise UserError(
                f"Line {lines + row + 1} of {raw.path} is {_shortened(rows[row])}; expected {entry.line}; {raw.remedy}."
            ) from None
        lines += len(frames[-1])
    if not lines:
        raise UserError(f"{raw.path} is empty; expected one interaction per line: {entry.line}; {raw.remedy}.")
    return lines, pd.concat(frames, ignore_index=True)


def _blocks(raw: _Raw, limit: int, show_progress: bool) -> Iterator[bytes]:
    """The decompressed file in pieces of whole lines. Compression shows in the first bytes, not in the name."""
    with open(raw.path, "rb") as file, _bar("Reading", show_progress, raw.path.stat().st_size) as bar:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        content = gzip.GzipFile(fileobj=file) if compressed else file
        total, rest = 0, b""
        while block := _next_content(content, raw):
            bar.update(file.tell() - bar.n)
            total += len(block)
            if total > limit:
                raise UserError(_too_large(raw.path, "holds more", "a decompressed file", limit))
            end = block.rfind(b"\n") + 1
            if end:
                yield rest + block[:end]
                rest = block[end:]
            else:
                rest += block
            if len(rest) > _BLOCK:
                raise UserError(_too_large(raw.path, "has a longer line", "lines", _BLOCK))
        if rest:
            yield rest


def _next_content(content: Union[BinaryIO, gzip.GzipFile], raw: _Raw) -> bytes:
    try:
        return content.read(_BLOCK)
    except EOFError:
        raise UserError(f"{raw.path} is a truncated gzip file; expected a whole one; {raw.remedy}.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{raw.path} is a damaged gzip file ({error}); expected a whole one; {raw.remedy}.") from None


def _malformed_row(rows: list[bytes], parse: Callable[[bytes], pd.DataFrame]) -> int:
    """The first of `rows` that cannot be parsed, found by halving: the parser alone decides what a good line is."""
    first, last = 0, len(rows)
    while last - first > 1:
        middle = (first + last) // 2
        try:
            parse(b"".join(rows[first:middle]))
            first = middle
        except (ValueError, OverflowError):
            last = middle
    return first


def _shortened(row: bytes) -> str:
    text = row.decode("utf-8", "replace").rstrip("\r\n")
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def _distinct_core(frame: pd.DataFrame, minimum: int, show_progress: bool) -> pd.DataFrame:
    """The earliest interaction of each (user, item) pair, then the k-core, ordered by user, time and item."""
    with _bar("Filtering", show_progress, 3, unit="step") as bar:
        users, _ = pd.factorize(frame["user"], sort=True)
        items, item_ids = pd.factorize(frame["item"], sort=True)
        timestamps = frame["timestamp"].to_numpy()
        pairs = users.astype(np.int64) * len(item_ids) + items
        order = np.lexsort((timestamps, pairs))
        first = np.ones(len(order), dtype=bool)
        first[1:] = np.diff(pairs[order]) != 0
        kept = order[first]
        bar.update()
        kept = kept[k_core(users[kept], items[kept], minimum)]
        bar.update()
        kept = kept[np.lexsort((items[kept], timestamps[kept], users[kept]))]
        bar.update()
    return frame.iloc[kept]


def _write(frame: pd.DataFrame, file: BinaryIO, show_progress: bool) -> dict[str, Any]:
    """Writes the atomic file; its size and checksum."""
    sha256, size = hashlib.sha256(), 0
    with _bar("Writing", show_progress, len(frame), unit="row") as bar:
        columns = frame[["user", "item", "timestamp"]]
        header: Union[bool, list[str]] = ["user_id:token", "item_id:token", "timestamp:float"]
        for start in range(0, len(frame), _ROWS):
            rows = columns.iloc[start : start + _ROWS]
            text = rows.to_csv(sep="\t", header=header, index=False, lineterminator="\n").encode()
            header = False
            file.write(text)
            sha256.update(text)
            size += len(text)
            bar.update(len(rows))
    return {"bytes": size, "sha256": sha256.hexdigest()}


def _bar(stage: str, show_progress: bool, total: Optional[int], initial: int = 0, unit: str = "B") -> Any:
    return tqdm(desc=stage, total=total, initial=initial, unit=unit, unit_scale=unit == "B", disable=not show_progress)
