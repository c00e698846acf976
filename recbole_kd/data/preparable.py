"""The public datasets that ``prepare`` can make: a table, without what making them takes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PREPARABLE", "Preparable"]

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Preparable:
    """A public dataset that :func:`prepare` can make.

    Attributes:
        description: one line for ``recbole-kd list``.
        url: the raw file, text or gzip, one interaction per line, without a first line that names the columns.
        fields: its columns; those called ``user``, ``item`` and ``timestamp`` are read.
        download_limit: bytes of the largest download that is accepted.
        raw_limit: bytes of the largest decompressed raw file that is accepted.
        sha256: the checksum of the file at `url`, where it is known.
    """

    description: str
    url: str
    fields: tuple[str, ...]
    download_limit: int
    raw_limit: int
    sha256: str | None = None


PREPARABLE: dict[str, Preparable] = {
    "gowalla": Preparable(
        description="check-ins of a location-based social network, first visits, 10-core (SNAP; 101 MiB download)",
        url="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        fields=("user", "timestamp", "latitude", "longitude", "item"),
        download_limit=256 * _MEBIBYTE,
        raw_limit=2048 * _MEBIBYTE,
        sha256="c1c3e19effba649b6c89aeab3c1f9459fad88cfdc2b460fc70fd54e295d83ea0",
    ),
}
"""The datasets that can be prepared, by the name that ``--dataset`` gives them."""
