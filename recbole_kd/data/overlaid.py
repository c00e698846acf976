"""Settings with some values replaced, for RecBole's functions and models, which read one configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["Overlaid"]


class Overlaid:
    """A model's settings with some values replaced.

    Values written by RecBole's transforms (the names of their columns) go into the original settings, where the model
    reads them.
    """

    def __init__(self, config: Any, **values: Any) -> None:
        self._config, self._values = config, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key] if key in self._values else self._config[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._config[key] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)
