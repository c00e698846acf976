"""RecBole on today's packages: what fails without each adaptation works with it, and what needs none is left alone.

At the end: what is said where a package is missing, too old, or another version than was tested.
"""

from __future__ import annotations

import ast
import configparser
import importlib.util
import inspect
import runpy
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
from recbole_kd.cli import VERBS
from recbole_kd.errors import UserError

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


def test_files_are_read_by_the_host() -> None:
    assert "checkpoint = torch.load(resume_file, map_location=self.device)" in SOURCES["trainer/trainer.py"]
    tree = compat.adapted("checkpoint = torch.load(resume_file, map_location=self.device)")
    assert ast.unparse(tree) == "checkpoint = _recbole_kd().load(__name__, resume_file)"


def test_properties_of_our_models_are_found_by_the_host() -> None:
    tree = compat.adapted("model_init_file = os.path.join(folder, model)")
    assert (
        ast.unparse(tree) == "model_init_file = _recbole_kd().properties_of(self, model, os.path.join(folder, model))"
    )


SKLEARN = ("sk_auc", "mean_absolute_error", "mean_squared_error", "ElasticNet", "ConvergenceWarning", "randomized_svd")


def test_scikit_learn_is_imported_where_it_is_used() -> None:
    """Three metrics and two models read it, and its import takes most of a second."""
    assert "from sklearn.metrics import auc as sk_auc" in SOURCES["evaluator/metrics.py"]
    tree = compat.adapted("from sklearn.metrics import auc as sk_auc\nresult = sk_auc([0, 1], [0, 1])")
    assert ast.unparse(tree) == "pass\nresult = _recbole_kd_late('sklearn.metrics', 'auc')([0, 1], [0, 1])"
    assert compat._late("sklearn.metrics", "auc")([0, 1], [0, 1]) == 0.5
    ours = (
        "import recbole_kd, sys, recbole.evaluator, recbole.model.general_recommender; print('sklearn' in sys.modules)"
    )
    assert run(ours) == "False"


# All of RecBole


def test_nothing_else_of_recbole_is_changed() -> None:
    """A module without one of the spellings is compiled from RecBole's file by Python itself."""
    changed = {name for name, text in SOURCES.items() if ast.dump(compat.adapted(text)) != ast.dump(ast.parse(text))}
    assert {"config/configurator.py", "data/dataset/dataset.py"} <= changed
    assert changed <= {name for name, text in SOURCES.items() if compat._NEEDED.search(text)}
    before = [line for name in changed for line in ast.unparse(ast.parse(SOURCES[name])).splitlines()]
    after = [line for name in changed for line in ast.unparse(compat.adapted(SOURCES[name])).splitlines()]
    assert len(before) == len(after)
    lines = {old for old, new in zip(before, after) if old != new}
    words = ("np.", "_update(", ".fillna(", ".agg(len)", "torch.load(", "model_init_file =", "register_table =")
    assert all(any(word in line for word in (*words, "sklearn", *SKLEARN)) for line in lines), lines


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


def run(program: str, both: bool = False) -> str:
    """What a program prints, or the last line of its error; with `both`, all of both."""
    environment = {"PYTHONPATH": str(Path(recbole_kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if both:
        return f"{done.stdout}{done.stderr}".strip()
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not NUMPY_2, reason="RecBole runs on numpy 1 as it is")
def test_without_the_finder_recboles_settings_cannot_be_read() -> None:
    config = "from recbole.config import Config; print(len(Config('BPR', 'ml-100k').final_config_dict) > 10)"
    assert "AttributeError" in run(config)
    assert run(f"import recbole_kd; {config}") == "True"


def test_numpy_scipy_and_pandas_stay_as_they_are() -> None:
    program = """
import numpy, pandas, scipy.sparse
places = (numpy, scipy.sparse.dok_matrix, pandas.Series, pandas.DataFrame)
def names(): return [[name for name in vars(place) if f"numpy.{name}" not in sys.modules] for place in places]
import sys
before = names()
import recbole_kd, recbole.data.dataset, recbole.model.general_recommender
print(names() == before)
"""
    assert run(program) == "True"


def test_the_finder_is_there_once() -> None:
    compat.install(lambda: None)
    assert sum(isinstance(finder, compat._Finder) for finder in sys.meta_path) == 1


# Missing and old packages

WITHOUT = """
import importlib.metadata, sys
import recbole_kd
version = importlib.metadata.version
def pretend(package):
    if package == {package!r}:
        if {found!r} == None:
            raise importlib.metadata.PackageNotFoundError(package)
        return {found!r}
    return version(package)
recbole_kd.compat.version = pretend
"""


@pytest.mark.parametrize(
    ("package", "found", "message"),
    [
        ("recbole", None, "The package recbole is not installed; run: pip install --no-deps recbole==1.2.1"),
        ("torch", None, "The package torch is not installed; run: pip install 'torch>=2.4'"),
        (
            "torch",
            "2.3.1+cpu",
            "torch 2.3.1+cpu is installed; expected 2.4 or later: run: pip install -U 'torch>=2.4'",
        ),
        ("numpy", "1.9.3", "numpy 1.9.3 is installed; expected 1.22 or later: run: pip install -U 'numpy>=1.22'"),
    ],
)
def test_what_is_missing_or_old_is_told_in_a_line(package: str, found: str | None, message: str) -> None:
    without = WITHOUT.format(package=package, found=found)
    program = "from recbole_kd.cli import VERBS, main\nCHECKED = [verb for verb, one in VERBS.items() if not one.torchless]\nfor verb in CHECKED: print(main([verb]), file=sys.stderr)"
    assert run(f"{without}\n{program}", both=True).splitlines() == [f"recbole-kd: {message}", "2"] * sum(
        not one.torchless for one in VERBS.values()
    )
    assert run(f"{without}\nrecbole_kd.run_recbole_kd") == f"recbole_kd.errors.UserError: {message}"


def test_another_version_of_recbole_is_tried_and_named() -> None:
    without = WITHOUT.format(package="recbole", found="1.3.0")
    output = run(f"{without}\nfrom recbole_kd.cli import main; print(main(['list']), flush=True)", both=True)
    assert "RecBole 1.3.0 is installed, but recbole-kd is made for 1.2.1." in output
    assert "pip install --no-deps recbole==1.2.1" in output
    assert "DERRDStudent" in output


@pytest.mark.parametrize("first", ["import recbole.config", "from recbole.quick_start import run_recbole"])
def test_recbole_that_was_imported_too_early(first: str) -> None:
    assert "recbole_kd.errors.UserError: recbole." in run(f"{first}\nfrom recbole_kd import run_recbole_kd")
    assert "`import recbole_kd` before" in run(f"{first}\nfrom recbole_kd import run_recbole_kd")
    assert run(f"import recbole_kd\n{first}\nrecbole_kd.compat.check(); print('good')") == "good"


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(UserError, match=r"This is Python 3\.9\.18; expected 3\.10 or later"):
        compat.check()
    # A clone that was never installed: pip has not refused, and the imports would.
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[1] / "run_recbole_kd.py"))
    message = "This is Python 3.9.18; expected 3.10 or later: install it, and start with it."
    assert (ended.value.code, capsys.readouterr().err) == (2, f"recbole-kd: {message}\n")


def test_the_lowest_versions_are_those_of_the_metadata() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    assert config["options"]["python_requires"] == f">={compat.LOWEST['python']}"
    required = config["options"]["install_requires"].split()
    assert {f"{name}>={compat.LOWEST[name]}" for name in ("torch", "numpy")} <= set(required)
    assert not any("<" in one or "==" in one for one in required), "no upper bounds"
