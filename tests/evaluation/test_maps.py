"""Maps of vectors, the density of their angles, and the distance within categories."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from recbole_kd.errors import UserError
from recbole_kd.evaluation import maps
from recbole_kd.evaluation.maps import angle_density, class_distances, plane


def test_the_distance_of_a_category_is_the_mean_over_its_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 3))
    vectors[4] = 0  # it has no direction
    members = {"a": [0, 1, 2, 4], "b": [2, 3], "lone": [5], "zero": [4, 6]}
    found = class_distances(vectors, members)
    assert set(found) == {"a", "b"}
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    pairs = [1 - units[i] @ units[j] for i in (0, 1, 2) for j in (0, 1, 2) if i != j]
    assert found["a"] == pytest.approx(np.mean(pairs))
    assert found["b"] == pytest.approx(1 - units[2] @ units[3])


def test_a_density_of_angles_is_one_in_all_and_highest_where_the_points_are() -> None:
    random = np.random.default_rng(1)
    places = np.concatenate([random.normal((5, 0), 0.1, (60, 2)), random.normal((-5, 0), 0.1, (40, 2))])
    angles = np.linspace(-np.pi, np.pi, 361)
    density = angle_density(places, angles)
    assert density[:-1].mean() * 2 * np.pi == pytest.approx(1)
    assert density[0] == pytest.approx(density[-1]), "the circle is closed"
    assert abs(angles[density.argmax()]) < 0.05, "the larger group"


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_near_directions_are_near_on_the_map(method: str) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    random = np.random.default_rng(2)
    vectors = np.concatenate([random.normal(centre, 0.05, (25, 4)) for centre in np.eye(4)[:2]])
    vectors *= random.uniform(0.5, 5, (50, 1))  # lengths say nothing
    places = plane(vectors, method)
    middles = places[:25].mean(axis=0), places[25:].mean(axis=0)
    own = [np.linalg.norm(part - middle, axis=1).mean() for part, middle in zip((places[:25], places[25:]), middles)]
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * max(own)
    np.testing.assert_array_equal(plane(vectors, method), places)


def test_umap_is_asked_for_directions_and_for_the_same_map_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in, as umap-learn is seldom installed; the test above asks the package itself."""

    class StandIn:
        def __init__(self, **given: object) -> None:
            self.given = given

        def fit_transform(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
            assert self.given == {"n_neighbors": 4, "metric": "cosine", "random_state": 3, "n_jobs": 1}
            np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1)
            return 2 * units[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=StandIn))
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(plane(vectors, "umap", seed=3), 2 * maps.directions(vectors)[:, :2])


def test_umap_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(maps.importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install umap-learn"):
        plane(np.ones((5, 2)), "umap")
