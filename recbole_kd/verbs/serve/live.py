"""The bundle in use: read from a folder, and read again when another bundle replaces it."""

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
from recbole_kd.text import one_line

__all__ = ["Live", "Ready"]

#: Identifies a version of a file.
Stamp = tuple[int, int, int]
_ATTEMPTS = 5


@dataclass(frozen=True)
class Ready:
    """A bundle with everything that an answer needs.

    Attributes:
        stamp: the stamp of its manifest when it was read.
        folding: for kind ``vectors``.
        loaded: when it was read, in seconds since 1970.
    """

    bundle: Bundle
    stamp: Stamp | None
    folding: Folding | None
    loaded: float

    def recommend(self, user: int, k: int, exclude_seen: bool | None) -> tuple[list[str], list[float]]:
        """The k best items of a user's row, as original ids, and their scores.

        Args:
            exclude_seen: whether seen items are left out; None: as in the bundle.
        """
        left_out = _nothing() if exclude_seen is False else self.bundle.seen(user)
        return self._named(self.bundle.user_scores(user), left_out, k)

    def recommend_after(
        self, history: Sequence[int], k: int, exclude_seen: bool | None
    ) -> tuple[list[str], list[float]]:
        """The same for a user with these item rows, oldest first.

        Raises:
            UserError: the model cannot score from items only.
        """
        if self.bundle.kind == "pairs":
            raise UserError(f"{self.bundle.manifest['model']} cannot recommend from a history; ask for a user.")
        if self.folding is None:
            vector = self.bundle.vector_after(history)
        else:
            vector = self.folding.vector(history).astype(np.float32)
        excluded = not self.bundle.repeatable if exclude_seen is None else exclude_seen
        left_out = np.array(history if excluded else [], dtype=np.int64)
        return self._named(self.bundle.scores(vector), left_out, k)

    def _named(self, scores: NDArray[np.float32], left_out: NDArray[np.int64], k: int) -> tuple[list[str], list[float]]:
        found = best(scores, left_out, k)
        # Through the shortest text with the same float32: 0.1, not 0.10000000149.
        return [self.bundle.items[row] for row, _ in found], [float(str(np.float32(score))) for _, score in found]


def _nothing() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


class Live:
    """The bundle of a folder.

    Attributes:
        current: the bundle in use. Requests that hold it keep it when it is replaced.
        problem: why the folder's newest bundle could not be read; empty if it could.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            UserError: as :func:`recbole_kd.files.bundle.read_bundle`; or its graph cannot be computed here.
        """
        self.folder = Path(folder).absolute()
        self.current = self._read()
        self.problem = ""

    def outdated(self) -> bool:
        """Whether the folder holds another bundle than the one in use."""
        return self._stamp() != self.current.stamp

    def renew(self) -> None:
        """Reads the folder's bundle. If that fails, the present one stays in use, and the reason is logged once."""
        try:
            self.current = self._read()
            self.problem = ""
        except Exception as error:  # whatever a new bundle's graph raises: the next one may be good
            if str(error) != self.problem:
                logging.getLogger("uvicorn.error").warning("The old bundle stays in use: %s", error)
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
                # The bundle was replaced while it was read, so files of two bundles were mixed.
                if stamp == self._stamp() or attempt == _ATTEMPTS - 1:
                    raise
                continue
            if stamp == self._stamp():
                break
        vectors = bundle.vectors
        folding = Folding(vectors["items"], vectors.get("items_scale")) if bundle.kind == "vectors" else None
        ready = Ready(bundle, stamp, folding, time.time())
        # The tables of ids and the graph are made now, so that the first request does not wait for them.
        assert len(bundle.item_rows) == len(bundle.items)
        try:
            ready.recommend(next(iter(bundle.user_rows.values())), 1, True)
            if bundle.kind == "sequence":  # a user without a history needs no graph
                ready.recommend_after([0], 1, True)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The graph of the bundle in '{self.folder}' cannot be computed here ({one_line(error, 200)}); update "
                "onnxruntime, or export the model again."
            ) from None
        return ready
