"""``recbole-kd recommend``: a saved model's best items for users, in original ids, as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import logging
import shlex
import sys
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from recbole_kd.errors import UserError
from recbole_kd.files.atomic import check_place, write_atomic
from recbole_kd.files.reading import read_text
from recbole_kd.verbs.options import RecommendOptions
from recbole_kd.verbs.recommender import Recommendation, Recommender

__all__ = ["FORMATS", "ids_in", "read_ids", "run", "run_recommend"]


def read_ids(setting: str, text: str, kind: str) -> list[str]:
    """The texts that name ids: the lines of ``@FILE`` (``@-`` is the standard input) as written, or the value itself.

    Args:
        setting: the setting's name.
        text: its value.
        kind: the kind of id, for messages.

    Raises:
        UserError: no id, or a file that cannot be read.
    """
    texts = [text]
    if text.startswith("@"):
        try:
            content = sys.stdin.read() if text == "@-" else read_text(text[1:])
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise UserError(
                f"Cannot read '{text[1:]}' ({reason}); set --{setting}=@FILE to a file with one id a line."
            ) from None
        texts = content.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")  # an id may hold other line ends
    found = [one for one in texts if one.strip() and (text[0] == "@" or one.strip(" ,"))]
    if not found:
        every = ", or all" if setting == "users" else ""
        raise UserError(
            f"--{setting}={text} names no {kind}; give ids separated by commas, @FILE with one id a line{every}."
        )
    return found


def ids_in(texts: Sequence[str], known: Collection[str], commas: bool) -> list[str]:
    """The ids that `texts` name, in order: with commas between them, or one a text.

    Spaces around an id, and commas inside it, belong to it if such an id is known.

    >>> ids_in(["7, Ann B., no 81,9"], {"7", "Ann B., no 81"}, commas=True)
    ['7', 'Ann B., no 81', '9']
    >>> ids_in([" x", " 7"], {" x", "7"}, commas=False)
    [' x', '7']
    """
    most = max((one.count(",") for one in known), default=0) + 1 if commas else 1
    found = []
    for text in texts:
        pieces, place = text.split(",") if commas else [text], 0
        while place < len(pieces):
            ends = range(min(len(pieces), place + most), place, -1)
            spans = ((end, part) for end in ends for part in _as_written(",".join(pieces[place:end])) if part in known)
            place, one = next(spans, (place + 1, pieces[place].strip()))
            found.append(one)
    return [one for one in found if one]


def _as_written(text: str) -> tuple[str, str]:
    """An id as written, and without spaces around it."""
    return text, text.strip()


def _csv_lines(recommendations: Iterable[Recommendation]) -> Iterator[str]:
    yield "user_id,rank,item_id,score\n"
    for one in recommendations:
        text = io.StringIO()
        ranked = enumerate(zip(one.items, one.scores), start=1)
        csv.writer(text, lineterminator="\n").writerows((one.user, rank, item, score) for rank, (item, score) in ranked)
        yield text.getvalue()


def _json_lines(recommendations: Iterable[Recommendation]) -> Iterator[str]:
    for one in recommendations:
        content = {"user_id": one.user, "items": one.items, "scores": one.scores}
        yield json.dumps(content, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Iterable[Recommendation]], Iterator[str]]] = {"csv": _csv_lines, "jsonl": _json_lines}


def run_recommend(
    checkpoint: str,
    users: Optional[str] = None,
    k: int = 20,
    format: str = "csv",
    output: Optional[str] = None,
    seen: str = "train",
    exclude_seen: Optional[bool] = None,
    config_dict: Optional[Mapping[str, Any]] = None,
    history: Optional[str] = None,
    dimensions: Optional[int] = None,
) -> None:
    """The verb: recommendations to the standard output, or atomically to a file. Unknown users are named on stderr.

    Args:
        checkpoint, seen, config_dict, dimensions: as in :class:`Recommender`.
        users: ``all``, or as in :func:`read_ids`.
        k: items per user, at least 1.
        format: a key of :data:`FORMATS`.
        output: a file; None is the standard output.
        exclude_seen: whether seen items are left out; None: as in the model's evaluation.
        history: instead of users, items as in :func:`read_ids`.

    Raises:
        UserError: a bad value of an argument, or the model knows none of the users.
    """
    given = {name: value for name, value in locals().items() if name != "config_dict"}
    run(RecommendOptions.parse("--", given), dict(config_dict or {}))


def run(options: RecommendOptions, settings: dict[str, Any]) -> None:
    """The verb, with checked options; `settings` override the stored ones."""
    if options.output is not None:
        check_place(options.output, "output")
    given = {**settings, **({"config_files": options.config_files} if options.config_files else {})}
    if options.history:
        texts = read_ids("history", options.history, "item")
        recommender = Recommender(options.checkpoint, options.seen, given, options.dimensions)
        history = ids_in(texts, recommender.item_ids, not options.history.startswith("@"))
        known = [item for item in history if item in recommender.item_ids]
        _skipped("item", history, recommender.item_ids, recommender.trained.config["dataset"])
        if not known:
            offer = _of_file("history", options.history)
            offer = offer or f"--history takes its original ids, such as {recommender.items[1]}"
            raise UserError(f"None of the items is in {recommender.trained.config['dataset']}; {offer}.")
        _write(options, [recommender.recommend_after(known, options.k, options.exclude_seen)], 1)
        return
    asked = str(options.users)
    texts = [] if asked == "all" else read_ids("users", asked, "user")
    recommender = Recommender(options.checkpoint, options.seen, given, options.dimensions)
    dataset = recommender.trained.config["dataset"]
    named = list(dict.fromkeys(ids_in(texts, recommender.users, not asked.startswith("@"))))
    known = list(recommender.users) if asked == "all" else [user for user in named if user in recommender.users]
    _skipped("user", named, recommender.users, dataset)
    if not known:
        pasted = (user for user in recommender.users if user != "all" and user[0] != "@")
        example = next((user for user in pasted if ids_in([user], recommender.users, commas=True) == [user]), None)
        offer = "--users=@FILE takes its original ids, one a line"
        if example is not None:
            offer = f"--users takes its original ids, such as {shlex.quote(example)}"
        raise UserError(f"None of the users is in {dataset}; {_of_file('users', asked) or offer}.")
    _write(options, recommender.recommend(known, options.k, options.exclude_seen), len(known))


def _of_file(setting: str, text: str) -> Optional[str]:
    """The advice if a file's name was given as an id; None if it is no file."""
    return f"'{text}' is a file; --{setting}=@{text} reads its lines" if Path(text).is_file() else None


def _skipped(kind: str, named: Iterable[str], known: Container[str], dataset: str) -> None:
    for one in named:
        if one not in known:
            print(f"recbole-kd: {kind} '{one}' is not in {dataset}: skipped", file=sys.stderr)


def _write(options: RecommendOptions, found: Iterable[Recommendation], users: int) -> None:
    lines = FORMATS[options.format](found)
    if options.output is None:
        sys.stdout.writelines(lines)
        sys.stdout.flush()
        return
    write_atomic(options.output, lambda file: file.writelines(line.encode() for line in lines), "output")
    logging.getLogger().info(f"Recommendations for {users:,} users: {options.output}")
