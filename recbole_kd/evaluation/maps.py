"""Maps of vectors in the plane, the density of their directions, and distances within categories."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from recbole_kd.errors import UserError

__all__ = ["angle_density", "class_distances", "directions", "plane"]

Array = NDArray[np.float64]

#: Width of the kernel of a density of angles, in radians.
BANDWIDTH = 0.15


def directions(vectors: NDArray[Any]) -> Array:
    """Rows (n, d) scaled to length 1; rows of zeros stay zero."""
    wide = vectors.astype(np.float64)
    units: Array = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return units


def plane(vectors: NDArray[Any], method: str = "tsne", seed: int = 0) -> Array:
    """Places (n, 2) in the plane: vectors (n, d) with similar directions are near. Coordinates have no other meaning.

    Raises:
        UserError: UMAP is not installed.
    """
    units = directions(vectors)
    if method == "umap":
        try:
            umap = importlib.import_module("umap")
        except ImportError:
            raise UserError(
                "--map_method=umap needs the package umap-learn; run: pip install umap-learn, or leave it at tsne."
            ) from None
        made = umap.UMAP(n_neighbors=min(15, len(units) - 1), metric="cosine", random_state=seed, n_jobs=1)
    else:
        made = TSNE(2, init="random", perplexity=min(30.0, (len(units) - 1) / 3), random_state=seed)
    places: Array = np.asarray(made.fit_transform(units), dtype=np.float64)
    return places


def angle_density(places: Array, angles: Array) -> Array:
    """Density at `angles` (a,), in radians, of the angles of places (n, 2) as seen from their mean.

    The kernel is a Gaussian on the circle (as drawn by Wang and Isola, ICML'20). A uniform density is 1 / (2 pi).
    """
    offsets = places - places.mean(axis=0)
    seen = np.arctan2(offsets[:, 1], offsets[:, 0])
    turns = (angles[:, None] - seen[None, :] + np.pi) % (2 * np.pi) - np.pi
    kernel = np.exp(-0.5 * (turns / BANDWIDTH) ** 2) / (BANDWIDTH * np.sqrt(2 * np.pi))
    density: Array = kernel.mean(axis=1)
    return density


def class_distances(vectors: NDArray[Any], members: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Intra-class distance: the mean of 1 - cos over pairs of different rows of a category, for each category.

    The sum of all cosines is the squared length of the sum of directions, so no pairs are formed. A category with fewer
    than two non-zero rows has no distance.

    Args:
        vectors: (n, d).
        members: category -> its rows; a row may be in several.
    """
    units = directions(vectors)
    there = np.linalg.norm(units, axis=1) > 0.5
    found = {}
    for name, rows in members.items():
        own = units[[row for row in rows if there[row]]]
        count = len(own)
        if count > 1:
            found[name] = float(1 - ((own.sum(axis=0) ** 2).sum() - count) / (count * (count - 1)))
    return found
