"""The public datasets that ``prepare`` can make: a table, without what making them takes."""

from __future__ import annotations

from dataclasses import dataclass

from recbole_kd.files.properties import PROPERTIES, recbole_downloads

__all__ = ["PREPARABLE", "Preparable", "archives", "unprepared"]

_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Preparable:
    """A public dataset that :func:`prepare` can make.

    Attributes:
        description: one line for ``recbole-kd list``.
        url: the raw file, text or gzip; None where its licence must be agreed to, and the user fetches it.
        fields: its columns; those called ``user``, ``item``, ``rating`` and ``timestamp`` are read.
        form: of the raw file (:mod:`recbole_kd.data.raw_forms`); as it is, an interaction per line, its fields between
            tabs, without a first line that names the columns.
        keys: names of `fields` in a raw file that names them.
        minimum: interactions that every user has in the result, and every item where `of_items`.
        before: a date; later interactions are left out.
        counts: users, items and interactions of the result, where they are published.
        download_limit: bytes of the largest download that is accepted.
        raw_limit: bytes of the largest decompressed raw file that is accepted.
        sha256: the checksum of the file at `url`, where it is known.
        advice: where the raw file comes from, where there is no `url`.
    """

    description: str
    url: str | None
    fields: tuple[str, ...]
    download_limit: int
    raw_limit: int
    form: str = "lines"
    keys: tuple[str, ...] = ()
    minimum: int = 10
    of_items: bool = True
    before: str | None = None
    counts: tuple[int, int, int] | None = None
    sha256: str | None = None
    advice: str = ""


PREPARABLE: dict[str, Preparable] = {
    "citeulike": Preparable(
        description="articles in users' libraries, users with 5 and more, no times (citeulike-t; 1 MiB download)",
        url="https://raw.githubusercontent.com/js05212/citeulike-t/master/users.dat",
        fields=("user", "item"),
        form="lists",
        minimum=5,
        of_items=False,
        counts=(5_219, 25_181, 125_580),
        download_limit=16 * _MEBIBYTE,
        raw_limit=64 * _MEBIBYTE,
    ),
    "gowalla": Preparable(
        description="check-ins of a location-based social network, first visits, 10-core (SNAP; 101 MiB download)",
        url="https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        fields=("user", "timestamp", "latitude", "longitude", "item"),
        download_limit=256 * _MEBIBYTE,
        raw_limit=2048 * _MEBIBYTE,
        sha256="c1c3e19effba649b6c89aeab3c1f9459fad88cfdc2b460fc70fd54e295d83ea0",
    ),
    "yelp2018": Preparable(
        description="Yelp's reviews until the end of 2018, first reviews, 10-core; needs Yelp's file, --source=FILE",
        url=None,
        fields=("user", "item", "rating", "timestamp"),
        form="json",
        keys=("user_id", "business_id", "stars", "date"),
        before="2019-01-01",
        download_limit=16 * 1024 * _MEBIBYTE,
        raw_limit=32 * 1024 * _MEBIBYTE,
        advice="agree to the licence at https://www.yelp.com/dataset and unpack yelp_academic_dataset_review.json",
    ),
}
"""The datasets that can be prepared, by the name that ``--dataset`` gives them."""


def archives() -> dict[str, str]:
    """RecBole's datasets that can be downloaded: a name -> the address of a zip of atomic files.

    A name that means other data here is not among them, nor is ml-100k, which RecBole brings along.
    """
    ours = {"ml-100k", *PREPARABLE, *(file.stem for file in PROPERTIES.glob("dataset/*.yaml"))}
    return {name: url for name, url in recbole_downloads().items() if name not in ours}


def unprepared(name: str) -> str:
    """Why a dataset that is known by name cannot be made, and what to do; empty for other names."""
    if name in PREPARABLE or name in archives():
        return ""
    if name == "ml-100k":
        return "ml-100k is inside RecBole and needs no file; use it in a training with --dataset=ml-100k."
    if not (PROPERTIES / "dataset" / f"{name}.yaml").is_file():
        return ""
    text = (
        f"{name} cannot be downloaded: it is the data that properties/dataset/{name}.yaml describes; put its atomic "
        f"files into DATA_PATH/{name} yourself."
    )
    if name in recbole_downloads():
        text += (
            f" RecBole's data of that name is other data; prepare it under another name: `recbole-kd prepare "
            f"--dataset=recbole-{name} --source={recbole_downloads()[name]}`."
        )
    return text
