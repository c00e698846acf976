"""The protocol of a run's teachers, and a base for teachers with only some capabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn, Optional, Protocol

from torch import Tensor

from recbole_kd.contracts import CAPABILITIES, Sequences, TeacherView
from recbole_kd.errors import UserError

__all__ = ["BareTeacher", "FileTeacher", "Teacher"]


class Teacher(TeacherView, Protocol):
    """A teacher's view, with its scores of all items and its part of the results."""

    digest: str

    def score_block(self, users: Tensor) -> Tensor:
        """Scores of users (n,) with every item, (n, I), padding included, in a new array."""

    @property
    def ranks_key(self) -> str:
        """Cache key of its ranked lists; it changes whenever anything that affects them changes."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def files(self) -> list[str]:
        """The files from which the teacher was read, or in which it is kept."""

    def summary(self) -> dict[str, Any]:
        """The part of a run's result that tells of the teacher."""


class BareTeacher:
    """A :class:`recbole_kd.contracts.TeacherView` without any capability; a subclass implements those that it has."""

    name: str
    capabilities: frozenset[str] = frozenset()
    dimension: Optional[int] = None
    known_users: Optional[Tensor] = None
    known_items: Optional[Tensor] = None

    def lacks(self, what: str) -> NoReturn:
        """Raises a UserError for a missing one of :data:`recbole_kd.contracts.CAPABILITIES`."""
        raise UserError(f"The teacher {self.name} has no {CAPABILITIES[what]}; use another teacher or distiller.")

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        self.lacks("scores")

    def score_block(self, users: Tensor) -> Tensor:
        """Scores of users (n,) with every item."""
        self.lacks("scores")

    @property
    def ranks_key(self) -> str:
        """Cache key of its ranked lists."""
        self.lacks("ranks")

    def ranked_items(self, k: int) -> Tensor:
        self.lacks("ranks")

    def listed_weights(self, k: int) -> Optional[Tensor]:
        return None

    def ranked_users(self, k: int) -> Tensor:
        self.lacks("scores")

    def user_embeddings(self) -> Tensor:
        self.lacks("representations")

    def item_embeddings(self) -> Tensor:
        self.lacks("representations")

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        self.lacks("pair_representations")

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        self.lacks("side_vectors")

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        self.lacks("layers")

    def sequence_scores(self, sequences: Sequences, items: Optional[Tensor] = None) -> Tensor:
        self.lacks("sequences")

    def sequence_embeddings(self, sequences: Sequences) -> Tensor:
        self.lacks("sequence_vectors")

    def ranked_after(self, users: Tensor, sequences: Sequences, k: int) -> tuple[Tensor, Optional[Tensor]]:
        self.lacks("sequence_ranks")

    def listed_scores_after(self, users: Tensor, sequences: Sequences, k: int) -> Tensor:
        self.lacks("sequence_listed_scores")


class FileTeacher(BareTeacher):
    """A teacher in a file of another system: it has no weights and no checkpoint, and is not evaluated."""

    #: The setting in section ``teacher`` that names the file.
    setting: str

    def __init__(self, path: str, digest: str) -> None:
        """
        Args:
            path: its file, for results and messages.
            digest: the digest of its content.
        """
        self.path, self.digest = path, digest
        self.name = f"the file {Path(path).name}"

    def summary(self) -> dict[str, Any]:
        """The part of a run's result that tells of the teacher."""
        return {
            "model": self.name,
            self.setting: self.path,
            "checkpoint": None,
            "digest": self.digest,
            "from_cache": False,
            "test_result": {},
            "train_seconds": 0.0,
        }

    @property
    def files(self) -> list[str]:
        """The files from which the teacher was read."""
        return [self.path]

    @property
    def parameters(self) -> int:
        """Number of weights: a file has none."""
        return 0
