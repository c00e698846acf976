"""Settings some of which say something else: RecBole's functions and models read all from one configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["Overlaid"]


class Overlaid:
    """A model's settings, some of which say something else here.

    What RecBole's transforms write (the names of their columns) goes to the settings themselves, where the model reads
    it.
    """

    def __init__(self, config: Any, **values: Any) -> None:
        self._config, self._values = config, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._config[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._config[key] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)
