"""RecBole's own datasets: zips of atomic files, unpacked under the name of the dataset.

A zip is somebody else's. Only atomic files of one dataset leave it, and nothing leaves the folder.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_kd.data.download import RawFile, raw_file
from recbole_kd.data.layout import Layout, fields_of
from recbole_kd.data.preparable import archives
from recbole_kd.data.records import RECORD, check_own, read_record, recorded
from recbole_kd.errors import UserError
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import file_digest

__all__ = ["unpacked"]

_KINDS = (".inter", ".user", ".item", ".kg", ".link", ".net")
_LARGEST_DOWNLOAD, _LARGEST_CONTENT = 8 << 30, 64 << 30  # bytes
_MOST_EXPANDED, _SMALL = 100, 16 << 20  # text becomes a hundredth at best; what is small may expand further


def unpacked(dataset: str, folder: Path, source: str | None, show_progress: bool) -> Path:
    """Downloads RecBole's zip of a dataset, or takes a given one, and unpacks its atomic files into `folder`.

    Files that are there, as the record says, are left as they are, and nothing is downloaded.

    Args:
        dataset: the name that the files get, which in the zip may have another.
        source: a file or an address; None is RecBole's address.

    Returns:
        The file of interactions; of several, the first by name.

    Raises:
        UserError: as :func:`recbole_kd.data.prepare.prepare`.
    """
    record = read_record(folder)
    if record is None:
        check_own(folder, f"{dataset}.inter", record)
    elif "result" in record:
        raise UserError(
            f"{folder / RECORD} says that {dataset} was made from a table; move that folder away to unpack a zip there."
        )
    else:
        for name in record["files"]:
            check_own(folder, name, record)
        if all((folder / name).exists() for name in record["files"]) and source in (None, record["source"]):
            return _interactions(folder, record["files"])
    address = source if source is not None else archives()[dataset]
    raw = raw_file(dataset, address, folder, None, _LARGEST_DOWNLOAD, show_progress)
    digest, size = file_digest(raw.path)
    if record is not None and record["raw"]["sha256"] != digest:
        raw.refuse_digest(digest, recorded(record, folder / RECORD, "move that folder away"))
    files = _extracted(raw, size, dataset, Path(archives().get(dataset, address)).stem, folder)
    for name in files:
        check_own(folder, name, record)
    _place(dataset, folder, raw, {"bytes": size, "sha256": digest}, files)
    if raw.kept is not None:
        raw.path.unlink()
    return _interactions(folder, files)


def _interactions(folder: Path, files: Mapping[str, Any]) -> Path:
    whole = f"{folder.name}.inter"
    return folder / (whole if whole in files else min(name for name in files if name.endswith(".inter")))


def _place(dataset: str, folder: Path, raw: RawFile, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Writes the record, then gives the files their names, interactions last: where they are, the others are too."""
    record = {
        "dataset": dataset,
        "source": raw.origin,
        "raw": facts,
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest, _) in files.items()},
        "summary": {name: f"{size:,} bytes: {columns}" for name, (size, _, columns) in files.items()},
    }
    save_json(record, folder / RECORD, "data_path")
    try:
        for name in sorted(files, key=lambda name: name.endswith(".inter")):
            (folder / f"{name}.part").replace(folder / name)
    except BaseException:
        for name in (*files, RECORD):
            (folder / name).unlink(missing_ok=True)
        raise


def _extracted(raw: RawFile, size: int, dataset: str, stem: str, folder: Path) -> dict[str, tuple[int, str, str]]:
    """Unpacks the dataset's files to ``NAME.part``: a name -> bytes, sha256 and columns."""
    files = {}
    with raw.path.open("rb") as file:
        with _reading(raw):
            archive = zipfile.ZipFile(file)
        members = _members(raw, archive.infolist(), dataset, stem)
        total, limit = sum(one.file_size for one in members.values()), max(_SMALL, _MOST_EXPANDED * size)
        if total > min(limit, _LARGEST_CONTENT):
            raw.refuse(f"{raw.path} unpacks to {total:,} bytes; expected at most {min(limit, _LARGEST_CONTENT):,}")
        for name, member in members.items():
            part, hasher = folder / f"{name}.part", hashlib.sha256()
            with part.open("wb") as copy:
                for block in _blocks(raw, archive, member):
                    hasher.update(block)
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
            try:
                columns = " ".join(f"{field.name}:{field.kind}" for field in fields_of(part, Layout()))
            except UserError as error:
                raise UserError(f"{raw.path}: {str(error).replace(str(part), member.filename)}") from None
            files[name] = (part.stat().st_size, hasher.hexdigest(), columns)
    return files


def _blocks(raw: RawFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with _reading(raw):
        content = archive.open(member)
    while True:
        with _reading(raw):
            block = content.read(1 << 20)
        if not block:
            return
        yield block


@contextmanager
def _reading(raw: RawFile) -> Iterator[None]:
    """Refuses the zip for whatever zipfile raises of one that is damaged, an OSError too."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError) as error:
        raw.refuse(f"{raw.path} is no whole zip file ({error}); expected one of RecBole's atomic files")
    except NotImplementedError as error:
        raw.refuse(f"{raw.path} is compressed in a way that is not read ({error}); expected a common zip")


def _members(raw: RawFile, infos: list[zipfile.ZipInfo], dataset: str, stem: str) -> dict[str, zipfile.ZipInfo]:
    """The atomic files of one dataset: the name that each gets -> its entry.

    Args:
        stem: the dataset's name in the zip, should there be several.
    """
    found: list[tuple[str, zipfile.ZipInfo]] = []
    for info in infos:
        parts = re.split(r"[/\\]", info.filename)
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raw.refuse(
                f"{raw.path} holds {info.filename[:80]!r}, which lies outside of its folder; no file is unpacked"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raw.refuse(f"{raw.path} holds the link {info.filename[:80]!r}; expected files only")
        if parts[-1].endswith(_KINDS) and parts[-1].isprintable() and not parts[-1].startswith("."):
            if info.flag_bits & 1:
                raw.refuse(f"{raw.path} holds {info.filename[:80]!r} under a password; expected a zip without")
            found.append((parts[-1], info))
    stems = sorted({name.partition(".")[0] for name, _ in found if name.endswith(".inter")})
    if not stems:
        raw.refuse(f"{raw.path} holds no .inter file; expected a zip of RecBole's atomic files")
    if stem not in stems:
        stem = stems[0]
        if len(stems) > 1:
            raw.refuse(f"{raw.path} holds several datasets ({', '.join(stems)[:200]}); expected one")
    members: dict[str, zipfile.ZipInfo] = {}
    for name, info in found:
        if name.startswith(f"{stem}."):
            new = dataset + name[len(stem) :]
            if new in members:
                raw.refuse(f"{raw.path} holds {name} twice; expected it once")
            members[new] = info
    return members
