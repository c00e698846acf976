"""The bundle that answers now: read from a folder, and read again when another has taken its place there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recbole_kd.errors import UserError
from recbole_kd.files.bundle import Bundle, best, read_bundle
from recbole_kd.student.folding import Folding

__all__ = ["Live", "Ready"]

#: What tells one file of a name from another.
Stamp = tuple[int, int, int]
_ATTEMPTS = 5


@dataclass(frozen=True)
class Ready:
    """A bundle with everything at hand that an answer needs.

    Attributes:
        stamp: of its manifest when it was read.
        folding: of kind ``vectors``.
        loaded: when it was read, in seconds since 1970.
    """

    bundle: Bundle
    stamp: Stamp | None
    folding: Folding | None
    loaded: float

    def recommend(self, user: int, k: int, exclude_seen: bool | None) -> tuple[list[str], list[float]]:
        """The k best items of a user's row, as original ids, and their scores.

        Args:
            exclude_seen: whether what was seen is left out; None: as the bundle says.
        """
        left_out = _nothing() if exclude_seen is False else self.bundle.seen(user)
        return self._named(self.bundle.user_scores(user), left_out, k)

    def recommend_after(
        self, history: Sequence[int], k: int, exclude_seen: bool | None
    ) -> tuple[list[str], list[float]]:
        """The same for somebody who had these rows of items, oldest first.

        Raises:
            UserError: the model knows a user by more than items.
        """
        if self.bundle.kind == "pairs":
            raise UserError(
                f"{self.bundle.manifest['model']} knows a user by more than the items they had; ask for a user."
            )
        if self.folding is None:
            vector = self.bundle.vector_after(history)
        else:
            vector = self.folding.vector(history).astype(np.float32)
        excluded = not self.bundle.repeatable if exclude_seen is None else exclude_seen
        left_out = np.array(history if excluded else [], dtype=np.int64)
        return self._named(self.bundle.scores(vector), left_out, k)

    def _named(self, scores: NDArray[np.float32], left_out: NDArray[np.int64], k: int) -> tuple[list[str], list[float]]:
        found = best(scores, left_out, k)
        # By way of the shortest text that gives the same float32: 0.1, not 0.10000000149.
        return [self.bundle.items[row] for row, _ in found], [float(str(np.float32(score))) for _, score in found]


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


class Live:
    """The bundle of a folder.

    Attributes:
        current: what answers. Whoever holds it goes on with it when another takes its place.
        problem: why the folder's newest bundle could not be read; empty where it could.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: as :func:`recbole_kd.files.bundle.read_bundle`; or a package that its graph needs is missing.
        """
        self.folder = Path(folder).absolute()
        self.current = self._read()
        self.problem = ""

    def outdated(self) -> bool:
        """Whether the folder holds another bundle than the one that answers."""
        return self._stamp() != self.current.stamp

    def renew(self) -> None:
        """Reads the folder's bundle. Where that fails, the present one goes on, and the reason is logged once."""
        try:
            self.current = self._read()
            self.problem = ""
        except UserError as error:
            if str(error) != self.problem:
                logging.getLogger("uvicorn.error").warning("The bundle stays as it was: %s", error)
            self.problem = str(error)

    def _stamp(self) -> Stamp | None:
        try:
            found = os.stat(self.folder / "manifest.json")
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def _read(self) -> Ready:
        for attempt in range(_ATTEMPTS):
            stamp = self._stamp()
            try:
                bundle = read_bundle(self.folder)
            except UserError:
                # Exchanged meanwhile: its files were of two bundles.
                if stamp == self._stamp() or attempt == _ATTEMPTS - 1:
                    raise
                continue
            if stamp == self._stamp():
                break
        vectors = bundle.vectors
        folding = Folding(vectors["items"], vectors.get("items_scale")) if bundle.kind == "vectors" else None
        ready = Ready(bundle, stamp, folding, time.time())
        # The tables of ids and the graph are there before anybody waits for them.
        assert len(bundle.item_rows) == len(bundle.items)
        ready.recommend(next(iter(bundle.user_rows.values())), 1, True)
        return ready
