"""The bar of an epoch in a terminal or notebook."""

from __future__ import annotations

import time
from typing import Any

from recbole.utils import set_color
from tqdm import tqdm

__all__ = ["Bar"]


class Bar(tqdm):
    """A progress bar over a loader; it has the loader's attributes too."""

    @classmethod
    def of_epoch(cls, loader: Any, model: str, epoch: int, epochs: int, first: int, began: float) -> Bar:
        """The bar of an epoch, with the longest remaining time, from the mean of the earlier epochs.

        Args:
            loader: the loader of the batches.
            model: the model's name.
            epoch, epochs: number of the epoch, from 0, and number of all epochs.
            first: the first epoch that this process trains.
            began: start time of that epoch, by ``time.perf_counter()``.
        """
        done, left = epoch - first, ""
        if done:
            seconds = (time.perf_counter() - began) / done * (epochs - epoch)
            left = f", at most {tqdm.format_interval(seconds)} left"
        description = set_color(f"{model}: epoch {epoch + 1} of {epochs}{left}", "pink")
        return cls(loader, total=len(loader), dynamic_ncols=True, desc=description)

    def due(self) -> bool:
        """Whether the bar will be drawn now; losses are read only then."""
        return bool(time.time() - self.last_print_t >= self.mininterval)

    def __getattr__(self, name: str) -> Any:
        if name == "iterable":
            raise AttributeError(name)
        return getattr(self.iterable, name)
