"""Sequential models and pairs: what the README's lines give with numpy and onnxruntime, and what cannot be a graph."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.files.bundle import read_bundle
from recbole_kd.testing import (
    known_answer_settings,
    known_sequences_settings,
    write_known_answer,
    write_known_sequences,
)
from recbole_kd.verbs.export import run_export
from recbole_kd.verbs.export.graph import require_onnx
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.serve.live import Live
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL
from tests.verbs.export.test_export import _as_written, _assert_ranked_as_by, _blocks

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

#: BERT4Rec and STOSA are traced in the same way; tracing takes seconds.
SEQUENTIAL = [
    "GRU4Rec",
    pytest.param("SASRec", marks=pytest.mark.slow),
    pytest.param("BERT4Rec", marks=pytest.mark.slow),
    pytest.param("STOSA", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_sequences(tmp_path_factory.mktemp("sequences"))


@pytest.fixture(scope="module")
def gru(sequences: Path) -> str:
    return _trained("GRU4Rec", sequences)


@pytest.fixture(scope="module")
def bundle(gru: str, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    run_export(gru, str(folder), config_dict={"data_path": str(sequences)})
    return folder


def _trained(model: str, data: Path, **settings: Any) -> str:
    given = known_sequences_settings(data, baseline=None, epochs=2, **{**SMALL[model], **settings})
    return str(run_recbole_kd(model, "known-sequences", config_dict=given)["checkpoint"])


@pytest.mark.parametrize("model", SEQUENTIAL)
def test_the_readmes_lines_continue_every_users_sequence(model: str, sequences: Path, tmp_path: Path) -> None:
    """An exported history is the one that `recommend` continues; the one that is longest fills the graph's input."""
    given = {"data_path": str(sequences)}
    checkpoint = _trained(model, sequences, MAX_ITEM_LIST_LENGTH=5)
    manifest = run_export(checkpoint, str(tmp_path / "bundle"), seen="train+valid", config_dict=given)
    assert (manifest["kind"], manifest["history_length"]) == ("sequence", 5)
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    recommender = Recommender(checkpoint, "train+valid", given)
    assert int(recommender.sequences[1].max()) == 5
    assert len(answers) == len(recommender.users)
    _assert_ranked_as_by(recommender, answers, k=20)
    bundle = read_bundle(tmp_path / "bundle")
    # The graph has no copy of the vectors beside it; STOSA's reads covariances, of which they are the roots.
    first = bundle.vectors["items"][3, : bundle.vectors["items"].shape[1] // 2].tobytes()
    assert (first in (bundle.graph or b"")) == (model == "STOSA")
    for user, items in answers.items():
        assert items == [bundle.items[row] for row, _ in bundle.recommend(bundle.user_rows[user], k=20)]
    had = bundle.items[:3]
    wanted = recommender.recommend_after(had, k=5)
    scores = bundle.scores(bundle.vector_after([bundle.item_rows[item] for item in had]))
    np.testing.assert_allclose([scores[bundle.item_rows[item]] for item in wanted.items], wanted.scores, rtol=1e-4)


def test_what_was_seen_is_recommended_again_as_the_evaluator_ranks_it(
    gru: str, sequences: Path, tmp_path: Path
) -> None:
    """``--repeatable=True``: README, bundle and server give what `recommend` does; no list of seen items is filled."""
    given = {"data_path": str(sequences), "repeatable": True}
    manifest = run_export(gru, str(tmp_path / "bundle"), seen="all", config_dict=given)
    assert (manifest["repeatable"], manifest["seen"]["pairs"]) == (True, 0)
    recommender = Recommender(gru, "all", given)
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    _assert_ranked_as_by(recommender, answers, k=20)
    assert {f"i{number}" for number in range(6)} & set(answers["u0"]), "u0 had these"
    ready = Live(tmp_path / "bundle").current
    for user, items, _ in recommender.recommend(k=20):
        assert ready.recommend(ready.bundle.user_rows[user], 20, None)[0] == items
    history = ["i3", "i4"]
    rows = [ready.bundle.item_rows[item] for item in history]
    assert ready.recommend_after(rows, 20, None)[0] == recommender.recommend_after(history, k=20).items
    assert not set(history) & set(ready.recommend_after(rows, 20, True)[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_items_of_a_sequential_model_are_narrowed_and_indexed(
    dtype: str, gru: str, sequences: Path, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    given = {"data_path": str(sequences)}
    manifest = run_export(gru, str(tmp_path / "bundle"), dtype=dtype, index="faiss", config_dict=given)
    assert manifest["measured"]["exact"]["recall"] > 0.9
    assert read_bundle(tmp_path / "bundle").vectors["items"].dtype == dtype
    exact = _as_written(tmp_path / "bundle", 1, "recommend(user, k=5)")
    bundle = read_bundle(tmp_path / "bundle")
    for user, items in exact.items():
        assert items == [bundle.items[row] for row, _ in bundle.recommend(bundle.user_rows[user], k=5)]
    found = _as_written(tmp_path / "bundle", 2, "recommend_fast(user, k=5)")
    assert np.mean([len(set(found[user]) & set(exact[user])) / 5 for user in exact]) > 0.9


def test_every_pairs_score_is_the_networks(tmp_path: Path) -> None:
    data = write_known_answer(tmp_path)
    given = {"data_path": str(data)}
    settings = known_answer_settings(data, baseline=None, epochs=1)
    checkpoint = run_recbole_kd("NeuMF", "known-answer", config_dict=settings)["checkpoint"]
    manifest = run_export(checkpoint, str(tmp_path / "bundle"), config_dict=given)
    assert (manifest["kind"], manifest["dimension"]) == ("pairs", 0)
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    _assert_ranked_as_by(Recommender(checkpoint, config_dict=given), answers, k=20)
    bundle = read_bundle(tmp_path / "bundle")
    assert answers["u3"] == [bundle.items[row] for row, _ in bundle.recommend(bundle.user_rows["u3"], k=20)]
    for option, value in (("dtype", "int8"), ("index", "faiss"), ("dimensions", 4), ("explore", True)):
        with pytest.raises(
            UserError, match=f"--{option}=.* is for models with a vector .*, but NeuMF is exported as a"
        ):
            run_export(checkpoint, str(tmp_path / "other"), **{option: value}, config_dict=given)


@pytest.mark.slow
def test_an_index_of_distances_gives_the_scores_of_exact_search(sequences: Path, tmp_path: Path) -> None:
    """STOSA's: a product, a bias and a constant of the history; the flat index finds what all scores say."""
    pytest.importorskip("faiss")
    given = {"index": "faiss", "index_type": "flat", "config_dict": {"data_path": str(sequences)}}
    run_export(_trained("STOSA", sequences), str(tmp_path / "bundle"), **given)
    scores = "[(str(score), score) for item, score in {}(user, k=3)]"
    exact = _as_written(tmp_path / "bundle", 1, scores.format("recommend"))
    found = _as_written(tmp_path / "bundle", 2, scores.format("recommend_fast"))
    for user, values in exact.items():
        np.testing.assert_allclose(list(map(float, found[user])), list(map(float, values)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_lines_run_where_numpy_and_onnxruntime_alone_are_installed(
    bundle: Path, gru: str, sequences: Path, tmp_path: Path
) -> None:
    """A virtual environment of its own, made with pip; where pip reaches no registry it is skipped."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "numpy", "onnxruntime"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install numpy and onnxruntime here: {done.stderr.splitlines()[-1]}")
    there = [python, "-I", "-c", "import torch"]
    assert subprocess.run(there, capture_output=True, check=False).returncode == 1
    lines = "\n".join(_blocks(bundle)[:1])
    ask = "\nprint(json.dumps({user: [item for item, score in recommend(user)] for user in rows}))"
    done = subprocess.run([python, "-I", "-c", lines + ask], cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recommender = Recommender(gru, config_dict={"data_path": str(sequences)})
    _assert_ranked_as_by(recommender, json.loads(done.stdout.splitlines()[-1]), k=20)


# What cannot be a graph


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--data_path={sequences}", f"--output={tmp_path / 'bundle'}"]
    assert main(["export", f"--checkpoint={_trained('SRGNN', sequences)}", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "SRGNN has no exporter (" in line
    assert "Models with one are" in line
    assert "--model=SASRec --teacher=SRGNN --distill=rrd" in line
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_without_the_packages_a_line_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"{missing} is not installed; run: pip install onnxscript onnxruntime"):
        require_onnx()


def test_a_reader_without_onnxruntime_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match="holds an ONNX graph, but onnxruntime is not installed; run: pip install onnxruntime"
    ):
        read_bundle(bundle).recommend(0)


def test_dimensions_are_refused_where_an_encoder_makes_the_vectors(gru: str, sequences: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dimensions=4 is for models with a vector for each user and item"):
        run_export(gru, str(tmp_path / "bundle"), dimensions=4, config_dict={"data_path": str(sequences)})
