"""``recbole-kd prepare``: converts a table of events, or a public dataset, to RecBole's atomic files."""

from __future__ import annotations

from typing import Any

from recbole_kd.data.events import Columns
from recbole_kd.data.prepare import described, prepare
from recbole_kd.errors import UserError
from recbole_kd.verbs.options import PrepareOptions

_COLUMNS = ("user", "item", "time", "rating", "minimum_rating", "separator", "encoding")


def run(options: PrepareOptions, settings: dict[str, Any]) -> None:
    """Prints the numbers of events read, dropped and written, and the new file.

    Raises:
        UserError: the table's columns of users and items are not given.
    """
    given = {name: value for name in _COLUMNS if (value := getattr(options, name)) is not None}
    if given and not {"user", "item"} <= given.keys():
        raise UserError("Your own table needs --user and --item, the names of its columns of ids.")
    columns = Columns(**given) if given else None
    path = prepare(options.dataset, options.data_path, options.source, minimum=options.minimum, columns=columns)
    print(f"{described(path)}\n\n{path}")
