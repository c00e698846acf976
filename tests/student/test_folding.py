"""A user's vector, made of the vectors of the items that they had."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recbole_kd.student import folding
from recbole_kd.student.folding import Folding


def test_a_user_is_the_vector_that_fits_what_they_had_best() -> None:
    """Each square of the sum is a row of an ordinary least squares problem."""
    generator = np.random.default_rng(3)
    items, had, size = generator.normal(size=(9, 3)), [2, 5, 5], 3
    ridge = 3 * len(had) * (items[1:] ** 2).sum(axis=1).mean() / size
    rows = [(items[item], 1.0) for item in had]
    rows += [(items[item] * math.sqrt(len(had) / 8), 0.0) for item in range(1, 9) if item not in had]
    rows += [(row, 0.0) for row in np.eye(size) * math.sqrt(ridge)]
    expected = np.linalg.lstsq(np.array([row for row, _ in rows]), np.array([value for _, value in rows]), rcond=None)[
        0
    ]
    found = Folding(items[1:]).vector([item - 1 for item in had])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_block_at_a_time_and_whole_numbers_with_a_scale_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    numbers = generator.integers(-127, 128, size=(10, 3)).astype(np.int8)
    scale = generator.uniform(0.01, 0.02, size=10).astype(np.float32)
    expected = Folding(numbers.astype(np.float64) * scale[:, None]).vector([1, 4])
    monkeypatch.setattr(folding, "_ROWS", 4)
    np.testing.assert_allclose(Folding(numbers, scale).vector([1, 4]), expected, rtol=1e-12)
