"""The bar of an epoch in a terminal or notebook."""

from __future__ import annotations

import time
from typing import Any

from recbole.utils import set_color
from tqdm import tqdm

__all__ = ["Bar"]


class Bar(tqdm):
    """A progress bar over a loader that still answers for the loader's attributes."""

    @classmethod
    def of_epoch(cls, loader: Any, model: str, epoch: int, epochs: int, first: int, began: float) -> Bar:
        """The bar of an epoch, with how long the rest takes at most: by the mean of the epochs before.

        Args:
            loader: gives the batches.
            model: its name.
            epoch, epochs: which it is, from 0, of how many.
            first: the first that this process trains.
            began: when that one began, by ``time.perf_counter()``.
        """
        done, left = epoch - first, ""
        if done:
            seconds = (time.perf_counter() - began) / done * (epochs - epoch)
            left = f", at most {tqdm.format_interval(seconds)} left"
        description = set_color(f"{model}: epoch {epoch + 1} of {epochs}{left}", "pink")
        return cls(loader, total=len(loader), dynamic_ncols=True, desc=description)

    def due(self) -> bool:
        """Whether the bar is about to be drawn, so that losses need be read only then."""
        return bool(time.time() - self.last_print_t >= self.mininterval)

    def __getattr__(self, name: str) -> Any:
        if name == "iterable":
            raise AttributeError(name)
        return getattr(self.iterable, name)
