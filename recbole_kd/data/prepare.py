"""RecBole's atomic files, made from a table of events or from a public dataset, or unpacked from RecBole's own zips.

:func:`prepare` reads events (CSV, TSV or Parquet), keeps the first of each (user, item) pair and reduces the pairs to
their k-core. It writes ``DATA_PATH/DATASET/DATASET.inter`` and ``prepare.json``, the record of what it was made from. A
public dataset joins with one entry of :data:`PREPARABLE`. Files appear under their names only when they are whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recbole_kd.data.archive import unpacked
from recbole_kd.data.download import RawFile, decompressed, raw_file
from recbole_kd.data.events import Columns, read_events
from recbole_kd.data.preparable import PREPARABLE, Preparable, archives, unprepared
from recbole_kd.data.raw_forms import as_lines
from recbole_kd.data.records import RECORD, check_own, folder_of, read_record, recorded
from recbole_kd.errors import UserError, closest
from recbole_kd.files.atomic import write_content
from recbole_kd.files.plain import save_json
from recbole_kd.files.reading import file_digest
from recbole_kd.text import columns, unit_of

__all__ = ["PREPARABLE", "can_prepare", "described", "k_core", "prepare"]

_OWN = Preparable("a table of one's own", None, (), download_limit=64 << 30, raw_limit=64 << 30)
_ROWS = 100_000  # rows that are written at once
_LATE = 0.1  # share of the rows, the latest, whose users and items are looked for among the others


def can_prepare(name: str) -> bool:
    """Whether :func:`prepare` knows the dataset `name`."""
    return name in PREPARABLE or name in archives()


def prepare(
    dataset: str,
    data_path: str | Path,
    source: str | None = None,
    show_progress: bool = True,
    minimum: int | None = None,
    columns: Columns | None = None,
) -> Path:
    """Converts a table of events, or a public dataset, to an atomic file that RecBole reads; or unpacks a zip of them.

    RecBole's own datasets are zips of atomic files, which stay as they are. What follows is about tables.

    Of several interactions of one user with one item the earliest is kept, without times the first in the file. Users
    and items with fewer than `minimum` interactions are then removed until none is left (the k-core). Ids are those of
    the source. Rows are ordered by user, then time, then their place in the source (of a public dataset, the item).

    A dataset that was made from the same source in the same way is left as it is, and nothing is downloaded. A download
    is kept beside the result.

    Args:
        dataset: the name that the result gets; where `columns` is None one of :data:`PREPARABLE` or of RecBole's, or
            any other for a zip.
        data_path: the folder of datasets; the result lies in ``data_path/dataset``.
        source: a path, or a http, https or file address; text or gzip, Parquet with `columns`, or a zip of
            atomic files (``.zip``). None is the public dataset's address.
        show_progress: whether a bar is drawn for the download.
        minimum: interactions that every user and every item must have in the result; None is the public dataset's own
            and 1, which keeps all, for other tables. Nothing is removed from a zip's files.
        columns: which columns are read; None for a public dataset.

    Returns:
        ``data_path/dataset/dataset.inter``, columns ``user_id:token item_id:token``, ``rating:float`` and
        ``timestamp:float`` where there are; those of a zip are its own.

    Raises:
        UserError: an unknown dataset; a source that is missing, unreachable, too large, truncated, malformed or not the
            one recorded; a result that this function did not write; a folder that cannot be written.
    """
    entry = PREPARABLE.get(dataset) if columns is None else None
    is_zip = columns is None and entry is None
    if is_zip and unprepared(dataset):
        raise UserError(unprepared(dataset))
    if is_zip and not (can_prepare(dataset) or (source or "").lower().endswith(".zip")):
        raise UserError(
            f"Dataset '{dataset}' cannot be prepared.{closest(dataset, [*PREPARABLE, *archives()])} Expected "
            f"--dataset= one of: {', '.join(PREPARABLE)} and RecBole's (recbole-kd list --kind=datasets --all=true); "
            "or a table of your own, with --source=FILE --user=COLUMN --item=COLUMN; or a zip, with --source=FILE.zip."
        )
    if columns is not None and source is None:
        raise UserError("--user and --item name columns of a table; set --source to its file or address.")
    if not dataset or Path(dataset).name != dataset or dataset in (".", ".."):
        raise UserError(f"--dataset={dataset!r} is not a name; expected one word, which names a folder and a file.")
    if is_zip and minimum is not None:
        raise UserError(
            f"--minimum={minimum} is for tables, and {dataset} is unpacked as it is; leave it out, and set "
            "--user_inter_num_interval and --item_inter_num_interval in the training."
        )
    minimum = minimum if minimum is not None else entry.minimum if entry is not None else 1
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 1:
        raise UserError(f"--minimum={minimum!r}; expected a whole number of at least 1.")
    try:
        with folder_of(Path(data_path) / dataset) as folder:
            if is_zip:
                return unpacked(dataset, folder, source, show_progress)
            return _prepared(dataset, folder, source, show_progress, minimum, columns)
    except OSError as error:
        raise UserError(
            f"Cannot prepare {dataset} in {Path(data_path) / dataset}: {error.strerror or error}; "
            f"set --data_path to a folder that can be written and has room."
        ) from error


def described(path: Path) -> str:
    """What the record beside a prepared file says of it, a line each."""
    record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
    return "\n".join(columns(list(record["summary"].items())))


def k_core(
    users: NDArray[np.int64], items: NDArray[np.int64], minimum: int, of_items: bool = True
) -> NDArray[np.int64]:
    """The largest subset of pairs in which every user and every item occurs at least `minimum` times.

    Args:
        users, items: (n,) codes from 0; a pair occurs once.
        minimum: at least 1.
        of_items: whether it holds for items too.

    Returns:
        (m,) ascending positions of the pairs that stay; the k-core is unique, whatever the order of removal.
    """
    kept = np.arange(len(users))
    while True:
        frequent_users = np.bincount(users[kept]) >= minimum
        frequent_items = np.bincount(items[kept]) >= (minimum if of_items else 1)
        stays = frequent_users[users[kept]] & frequent_items[items[kept]]
        if stays.all():
            return kept
        kept = kept[stays]


def _prepared(
    dataset: str, folder: Path, source: str | None, show_progress: bool, minimum: int, chosen: Columns | None
) -> Path:
    """:func:`prepare` once its arguments are checked; an OSError here is about `folder`."""
    target, record_file = folder / f"{dataset}.inter", folder / RECORD
    record = read_record(folder)
    way = {"minimum": minimum, **({} if chosen is None else {"columns": vars(chosen)})}
    made = record is not None and target.exists() and all(record.get(key) == value for key, value in way.items())
    check_own(folder, target.name, record)
    if record is not None and "result" not in record:
        raise UserError(f"{record_file} says that {dataset} was unpacked from a zip; move that folder away.")
    if made and source is None:
        return target
    entry = None if chosen is not None else PREPARABLE[dataset]
    limits = entry or _OWN
    address = source if source is not None else limits.url
    if address is None:
        raise UserError(
            f"{dataset} cannot be downloaded: {limits.advice}, then run "
            f"`recbole-kd prepare --dataset={dataset} --source=FILE`."
        )
    known = None if record is None else record["source"]
    raw = raw_file(dataset, address, folder, known, limits.download_limit, show_progress)
    digest, _ = file_digest(raw.path)
    if entry is not None and raw.origin == entry.url and entry.sha256 not in (None, digest):
        raw.refuse_digest(digest, f"{entry.sha256}, that of the published file")
    if record is not None and record["raw"]["sha256"] != digest:
        if chosen is None:
            raw.refuse_digest(digest, recorded(record, record_file, "delete that record"))
        made = False
    if not made:
        _make(dataset, raw, digest, target, record_file, way, chosen)
    if raw.kept is not None:
        raw.path.replace(raw.kept)
    return target


def _make(
    dataset: str,
    raw: RawFile,
    digest: str,
    target: Path,
    record_file: Path,
    way: dict[str, Any],
    chosen: Columns | None,
) -> None:
    """Writes the atomic file and the record of it."""
    entry = None if chosen is not None else PREPARABLE[dataset]
    with decompressed(raw, (entry or _OWN).raw_limit) as plain, as_lines(plain, entry, raw.path) as table:
        try:
            events = read_events(table, entry, chosen)
        except UserError as error:
            raise UserError(str(error).replace(str(table), str(raw.path))) from None
    kept, steps = _distinct_core(events, way["minimum"], entry, chosen)
    if not len(kept):
        raw.refuse(
            f"{raw.path} holds no users and items with {way['minimum']} interactions each; expected a smaller --minimum"
        )
    result = events.take(pa.array(kept))
    sizes = len(pc.unique(result["user_id"])), len(pc.unique(result["item_id"])), len(result)
    facts = _facts(result)
    if entry is not None and entry.counts not in (None, sizes) and way["minimum"] == entry.minimum:
        wanted = "{:,} users, {:,} items, {:,} interactions".format(*entry.counts)
        if raw.origin == entry.url:
            raw.refuse(f"{raw.path} gives " + "{:,}, {:,} and {:,}".format(*sizes) + f"; expected {wanted}")
        facts["not as published, which has"] = wanted
    content = _written(result)
    target.unlink(missing_ok=True)  # a record never stands beside a result that it does not describe
    save_json(
        {
            "dataset": dataset,
            "source": raw.origin,
            **way,
            "raw": {"bytes": raw.path.stat().st_size, "sha256": digest, "interactions": len(events)},
            "result": {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                **dict(zip(("users", "items", "interactions"), sizes)),
            },
            "summary": {"rows read": f"{len(events):,}", **steps, **facts},
        },
        record_file,
        "data_path",
    )
    try:
        write_content(target, content, "data_path")
    except BaseException:
        record_file.unlink(missing_ok=True)
        raise


# From events to the result


def _distinct_core(
    events: pa.Table, minimum: int, entry: Preparable | None, chosen: Columns | None
) -> tuple[NDArray[np.int64], dict[str, str]]:
    """Rows that stay, in the result's order: the earliest of each pair, then the k-core; and what was dropped why."""
    steps: dict[str, str] = {}
    kept = np.arange(len(events))
    if chosen is not None and chosen.minimum_rating is not None:
        ratings = events["rating"].to_numpy()
        low = ~(ratings >= chosen.minimum_rating)
        kept, steps[f"dropped: rated below {chosen.minimum_rating:g}"] = kept[~low], f"{int(low.sum()):,}"
    users, items = (_codes(events[side], by_number=chosen is None) for side in ("user_id", "item_id"))
    times = events["timestamp"].to_numpy() if "timestamp" in events.column_names else np.zeros(len(events), np.int64)
    if entry is not None and entry.before is not None:
        late = times >= datetime.fromisoformat(entry.before).replace(tzinfo=timezone.utc).timestamp()
        kept, steps[f"dropped: from {entry.before} on"] = kept[~late], f"{int(late.sum()):,}"
    pairs = users * (int(items.max()) + 1) + items
    kept = kept[np.lexsort((times[kept], pairs[kept]))]
    first = np.diff(pairs[kept], prepend=-1) != 0
    steps["dropped: a pair again"] = f"{int((~first).sum()):,}"
    kept = np.sort(kept[first])
    of_items = entry is None or entry.of_items
    core = kept[k_core(users[kept], items[kept], minimum, of_items)]
    steps[f"dropped: users{' and items' * of_items} with fewer than {minimum}"] = f"{len(kept) - len(core):,}"
    last = items[core] if chosen is None else core
    return core[np.lexsort((last, times[core], users[core]))], steps


def _codes(column: pa.ChunkedArray, by_number: bool) -> NDArray[np.int64]:
    """(rows,) a number for each id: by first appearance, or in the order of the whole numbers that the ids are."""
    ids = column.combine_chunks()
    ids = ids.chunk(0) if isinstance(ids, pa.ChunkedArray) else ids
    codes: NDArray[np.int64] = ids.indices.to_numpy().astype(np.int64)
    if not by_number:
        return codes
    tokens = ids.dictionary
    order = np.lexsort((tokens.to_numpy(zero_copy_only=False).astype(str), pc.utf8_length(tokens).to_numpy()))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes]


def _written(result: pa.Table) -> bytes:
    """The atomic file.

    Raises:
        UserError: an id that such a file cannot hold.
    """
    for side in ("user_id", "item_id"):
        for token in pc.unique(result[side]).to_pylist():
            if any(letter in token for letter in "\t\r\n"):
                raise UserError(
                    f"The {side.removesuffix('_id')} {token!r} holds a tab or a line break, which separate fields and "
                    "rows in an atomic file; rename it."
                )
    kinds = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    file = io.BytesIO()
    file.write(("\t".join(f"{name}:{kinds[name]}" for name in result.column_names) + "\n").encode())
    texts = result.cast(pa.schema([(name, pa.string()) for name in result.column_names]))
    for start in range(0, len(texts), _ROWS):
        rows = [column.fill_null("") for column in texts.slice(start, _ROWS).columns]
        file.write(("\n".join(pc.binary_join_element_wise(*rows, "\t").to_pylist()) + "\n").encode())
    return file.getvalue()


def _facts(result: pa.Table) -> dict[str, str]:
    """Sizes of the result, and how much of its last rows in time is unknown to the rows before."""
    rows = len(result)
    users, items = (len(pc.unique(result[side])) for side in ("user_id", "item_id"))
    facts = {
        "rows written": f"{rows:,}",
        "users": f"{users:,}",
        "items": f"{items:,}",
        "density": f"{rows / users / items:.4%}",
    }
    if "timestamp" not in result.column_names:
        return facts
    times = result["timestamp"].to_numpy()
    order = np.argsort(times, kind="stable")
    late = order[rows - math.ceil(rows * _LATE) :]
    facts["from"], facts["to"] = _date(times.min()), _date(times.max())
    for name, side in (("users", "user_id"), ("items", "item_id")):
        codes = _codes(result[side], by_number=False)
        new = np.setdiff1d(codes[late], codes[order[: rows - len(late)]])
        share = len(new) / len(np.unique(codes[late]))
        facts[f"{name} of the last {_LATE:.0%} in time that are not in the rest"] = f"{share:.1%}"
    return facts


def _date(time: float) -> str:
    """A time as a date, where it can be one in seconds, milliseconds or finer since 1970."""
    unit = unit_of(time)
    if unit is None:
        return f"{time:g}"
    return datetime.fromtimestamp(float(time) / unit, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
