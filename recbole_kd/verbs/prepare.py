"""``recbole-kd prepare``: a table of events, or a public dataset, as RecBole's atomic files."""

from __future__ import annotations

from typing import Any

from recbole_kd.data.prepare import Columns, described, prepare
from recbole_kd.errors import UserError
from recbole_kd.verbs.options import PrepareOptions

_COLUMNS = ("user", "item", "time", "rating", "minimum_rating", "separator", "encoding")


def run(options: PrepareOptions, settings: dict[str, Any]) -> None:
    """Prints what was read, dropped and written, and the file that was made.

    Raises:
        UserError: a table without its columns of users and items.
    """
    given = {name: value for name in _COLUMNS if (value := getattr(options, name)) is not None}
    if given and not {"user", "item"} <= given.keys():
        raise UserError("A table of your own needs --user and --item, the names of its columns of ids.")
    columns = Columns(**given) if given else None
    path = prepare(options.dataset, options.data_path, options.source, minimum=options.minimum, columns=columns)
    print(f"{described(path)}\n\n{path}")
