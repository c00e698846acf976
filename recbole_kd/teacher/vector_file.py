"""A teacher in a file of another system: vectors of users and items, or of items only."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_kd.data.vectors import Vectors, VectorTable
from recbole_kd.files.reading import vector_files
from recbole_kd.student.readers import pair_products
from recbole_kd.teacher.bare import FileTeacher

__all__ = ["VectorFileTeacher"]


class VectorFileTeacher(FileTeacher):
    """Vectors of a file (``--teacher.vectors=FILE``). Their products are not used as scores."""

    setting = "vectors"

    def __init__(self, path: str, vectors: Vectors, device: torch.device) -> None:
        """
        Args:
            path: their file, for results and messages.
            vectors: the vectors in the student's ids.
            device: the device that holds them.
        """
        super().__init__(path, vectors.digest)
        self._items, self.known_items = _on(device, vectors.items)
        self.dimension = self._items.shape[1]
        self.capabilities = frozenset({"item_representations"})
        self._users: Tensor | None = None
        if vectors.users is not None:
            self._users, self.known_users = _on(device, vectors.users)
            self.capabilities |= {"representations", "pair_representations", "side_vectors"}

    def user_embeddings(self) -> Tensor:
        """(U, d_t); zeros for users without a vector, see `known_users`."""
        if self._users is None:
            self.lacks("representations")
        return self._users

    def item_embeddings(self) -> Tensor:
        """(I, d_t); zeros for items without a vector, see `known_items`."""
        return self._items

    def pair_representations(self, users: Tensor, items: Tensor) -> Tensor:
        """The elementwise products of the vectors of users (n,) and items (n,), (n, d_t)."""
        return pair_products((self.user_embeddings(), self._items), users, items)

    def side_vectors(self) -> tuple[Tensor, Tensor]:
        """Both tables."""
        return self.user_embeddings(), self._items

    @property
    def files(self) -> list[str]:
        """The file of vectors, and the files of its ids."""
        return vector_files(self.path)


def _on(device: torch.device, table: VectorTable) -> tuple[Tensor, Tensor | None]:
    return table.rows.to(device), None if table.known is None else table.known.to(device)
