"""The record beside what ``prepare`` made: what it was made from, and whether it is still what was made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_kd.errors import UserError
from recbole_kd.files.reading import file_digest

__all__ = ["RECORD", "check_own", "folder_of", "read_record", "recorded"]

#: The record's name.
RECORD = "prepare.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, with ``files``: the name of each result -> its sha256; None where there is none.

    Raises:
        UserError: a file of that name that is no record.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        single = {f"{folder.name}.inter": record["result"]} if "result" in record else record["files"]
        sums = {name: facts["sha256"] for name, facts in single.items()}
        if not all(isinstance(text, str) for text in (record["source"], record["raw"]["sha256"], *sums.values())):
            raise TypeError
        if "result" in record and not isinstance(record["minimum"], int):
            raise TypeError
        if not all(isinstance(text, str) for pair in record["summary"].items() for text in pair):
            raise TypeError
        return {**record, "files": sums}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a record that `recbole-kd prepare` wrote; delete it and run again.") from None


def recorded(record: dict[str, Any], file: Path, change: str) -> str:
    """What a refusal of another raw file expects: the recorded sha256, and how to accept the file."""
    return f"{record['raw']['sha256']}, which {file} recorded ({change} to accept this file)"


def check_own(folder: Path, name: str, record: dict[str, Any] | None) -> None:
    """Refuses to take or to replace a result that somebody else wrote or changed.

    Args:
        name: of a file in `folder`, which need not be there.
    """
    target = folder / name
    if not target.exists():
        return
    if record is None or name not in record["files"]:
        why = f"there is no {RECORD} beside it" if record is None else f"{RECORD} beside it does not name it"
        raise UserError(
            f"{target} was not written by `recbole-kd prepare` ({why}) and is not "
            f"replaced; move it away, or set another --data_path."
        )
    if file_digest(target)[0] != record["files"][name]:
        raise UserError(
            f"{target} differs from the sha256 in {RECORD}: it was changed after it was prepared; "
            f"delete it to prepare it anew, or set another --data_path."
        )


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """Makes a folder and those above it, and removes them again if the block fails and leaves nothing in it."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    before = set(path.glob("*.part"))  # the user's own
    try:
        yield path
    except BaseException:
        for temporary in set(path.glob("*.part")) - before:
            temporary.unlink(missing_ok=True)
        for folder in made:  # the innermost first
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
