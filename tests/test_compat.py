"""RecBole on today's packages: what fails without each adaptation works with it, and what needs none is left alone."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

import recbole_kd
from recbole_kd import compat

RECBOLE = Path(str(importlib.util.find_spec("recbole").origin)).parent  # type: ignore[union-attr]
SOURCES = {path.relative_to(RECBOLE).as_posix(): path.read_text("utf-8") for path in RECBOLE.rglob("*.py")}
NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
PANDAS_3 = int(pd.__version__.split(".")[0]) >= 3


def both(source: str, **names: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Runs a piece of RecBole's source as it stands, and adapted; each gives what it calls ``result``."""

    def runs(tree: ast.Module) -> Callable[[], Any]:
        def run() -> Any:
            space = {name: value.copy() for name, value in names.items()}
            exec(compile(tree, "<piece>", "exec"), {"np": np, "pd": pd}, space)
            return space["result"]

        return run

    return runs(ast.parse(source)), runs(compat.adapted(source))


# Each adaptation: RecBole's own spelling, what becomes of it, what it does


@pytest.mark.parametrize("name", ["float_", "complex_", "unicode_"])
def test_numpy_names_of_version_1(name: str) -> None:
    assert f"np.{name}" in SOURCES["config/configurator.py"]
    plain, adapted = both(f"result = np.{name}")
    assert adapted() is {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}[name]
    if NUMPY_2:
        with pytest.raises(AttributeError):
            plain()
    else:
        assert plain() is adapted()


def test_entries_of_a_sparse_matrix_are_set_at_once() -> None:
    assert "A._update(data_dict)" in SOURCES["model/general_recommender/lightgcn.py"]
    matrix = scipy.sparse.dok_matrix((2, 2), dtype=np.float32)
    plain, adapted = both("A._update({(0, 1): 1, (1, 0): 2})\nresult = A.tocoo().toarray().tolist()", A=matrix)
    assert adapted() == [[0, 1], [2, 0]]
    if not hasattr(matrix, "_update"):
        with pytest.raises(AttributeError):
            plain()


def test_missing_values_of_a_column_are_filled() -> None:
    assert "feat[field].fillna(value=0, inplace=True)" in SOURCES["data/dataset/dataset.py"]
    feat = pd.DataFrame({"age": [1.0, np.nan, 3.0]})
    plain, adapted = both("feat['age'].fillna(value=0, inplace=True)\nresult = feat['age'].tolist()", feat=feat)
    assert adapted() == [1, 0, 3]
    if PANDAS_3:
        assert np.isnan(plain()[1]), "a copy was filled, and nothing said"


def test_the_lengths_of_sequences() -> None:
    assert "feat[field].agg(len)" in SOURCES["data/dataset/dataset.py"]
    feat = pd.DataFrame({"kinds": [["a"], ["a", "b"]]})
    plain, adapted = both("result = np.cumsum(feat['kinds'].agg(len)).tolist()", feat=feat)
    assert adapted() == [1, 3]
    if PANDAS_3:
        assert plain() != [1, 3], "the number of rows"


# All of RecBole


def test_nothing_else_of_recbole_is_changed() -> None:
    """A module without one of the spellings is compiled from RecBole's file by Python itself."""
    changed = {
        name for name, text in SOURCES.items() if ast.dump(compat.adapted(text)) != ast.dump(ast.parse(text))
    }
    assert {"config/configurator.py", "data/dataset/dataset.py"} <= changed
    assert changed <= {name for name, text in SOURCES.items() if compat._NEEDED.search(text)}
    before = [line for name in changed for line in ast.unparse(ast.parse(SOURCES[name])).splitlines()]
    after = [line for name in changed for line in ast.unparse(compat.adapted(SOURCES[name])).splitlines()]
    assert len(before) == len(after)
    lines = {old for old, new in zip(before, after) if old != new}
    assert all(any(word in line for word in ("np.", "_update(", ".fillna(", ".agg(len)")) for line in lines), lines


def test_tracebacks_and_sources_are_recboles() -> None:
    assert "fillna(value=0, inplace=True)" in inspect.getsource(Dataset._fill_nan)


def test_the_dataset_fills_what_is_missing() -> None:
    """RecBole's method itself, as it was imported."""
    dataset = Dataset.__new__(Dataset)
    dataset.feat_name_list = ["user_feat"]
    dataset.field2type = {"user_id": FeatureType.TOKEN, "age": FeatureType.FLOAT}
    dataset.field2source = dict.fromkeys(dataset.field2type, FeatureSource.USER)
    dataset.logger = type("Silent", (), {"debug": staticmethod(lambda *_: None)})()
    dataset.user_feat = pd.DataFrame({"user_id": [1.0, np.nan], "age": [np.nan, 4.0]})
    dataset._fill_nan()
    assert dataset.user_feat.to_dict("list") == {"user_id": [1, 0], "age": [4, 4]}


def run(program: str) -> str:
    environment = {"PYTHONPATH": str(Path(recbole_kd.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not NUMPY_2, reason="RecBole runs on numpy 1 as it is")
def test_without_the_finder_recboles_settings_cannot_be_read() -> None:
    config = "from recbole.config import Config; print(len(Config('BPR', 'ml-100k').final_config_dict) > 10)"
    assert "AttributeError" in run(config)
    assert run(f"import recbole_kd; {config}") == "True"


def test_numpy_scipy_and_pandas_stay_as_they_are() -> None:
    program = """
import numpy, pandas, scipy.sparse
def names(): return {part: sorted(vars(part)) for part in (numpy, scipy.sparse.dok_matrix, pandas.Series, pandas.DataFrame)}
before = names()
import recbole_kd, recbole.data.dataset, recbole.model.general_recommender
print(names() == before)
"""
    assert run(program) == "True"


def test_the_finder_is_there_once() -> None:
    compat.install()
    assert sum(isinstance(finder, compat._Finder) for finder in sys.meta_path) == 1
