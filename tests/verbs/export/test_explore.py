"""Which numbers, types and index to take: figures against the evaluator's, the front, the choice."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
import torch

from recbole_kd.cli import main
from recbole_kd.data.observed import Observed
from recbole_kd.files.bundle import Bundle, read_bundle
from recbole_kd.testing import known_answer_settings, write_known_answer
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.export import run_export
from recbole_kd.verbs.export.explore import Choice, _better, choices_table, explore, fewer_dimensions, ndcg, take
from recbole_kd.verbs.options import ExportOptions
from recbole_kd.verbs.train import run_recbole_kd


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    data = write_known_answer(tmp_path_factory.mktemp("data"))
    settings = known_answer_settings(data, baseline=None, embedding_size=16)
    return run_recbole_kd("BPR", "known-answer", config_dict=settings)["checkpoint"], {"data_path": str(data)}


def test_the_first_rows_ndcg_is_the_evaluators_and_the_smallest_within_the_loss_is_written(
    trained: tuple[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    checkpoint, given = trained
    words = [f"--checkpoint={checkpoint}", f"--data_path={given['data_path']}", f"--output={tmp_path / 'bundle'}"]
    assert main(["export", "--explore=true", "--loss=0.05", *words]) == 0
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    choices = [Choice(**row) for row in manifest["explored"]["choices"]]
    assert len(choices) == 3 * (3 * 4 - 1)
    assert {choice.dimensions for choice in choices} == {16, 8, 4}
    whole = choices[0]
    evaluated = evaluate_checkpoint(checkpoint, {**given, "topk": [20], "metrics": ["NDCG"]})["valid_result"]
    assert whole.ndcg == pytest.approx(evaluated["ndcg@20"], abs=5e-5)
    assert (whole.dimensions, whole.dtype, whole.index, whole.loss, whole.recall) == (16, "float32", None, 0, 1)
    assert whole.bytes == (48 + 40) * 16 * 4
    smallest, _ = take(choices, 0.05)
    assert smallest.bytes == min(choice.bytes for choice in choices if choice.loss <= 0.05)
    bundle = read_bundle(tmp_path / "bundle")
    assert (manifest["dimension"], manifest["dtype"]) == (smallest.dimensions, smallest.dtype)
    assert bundle.vectors["items"].shape == (40, smallest.dimensions)
    assert f"For a loss of at most 5.0%, the smallest: {smallest.words}" in capsys.readouterr().out
    text = (bundle.folder / "README.md").read_text()
    assert f"the smallest: {smallest.words}" in text
    assert len(re.findall(r"^\*? +\d+ +(?:float|int)", text, re.M)) == sum(choice.front for choice in choices)


def test_without_faiss_exact_search_is_compared(
    trained: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    manifest = run_export(trained[0], str(tmp_path / "bundle"), explore=True, config_dict=trained[1])
    assert [choice["index"] for choice in manifest["explored"]["choices"]] == [None] * 9
    assert manifest["index"] is None


def test_what_can_be_recommended_again_is_compared_with_the_rest(
    trained: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--repeatable=True``: the evaluator's NDCG, which ranks training items too."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    given = {**trained[1], "repeatable": True, "topk": [20], "metrics": ["NDCG"]}
    manifest = run_export(trained[0], str(tmp_path / "bundle"), explore=True, config_dict=given)
    found = manifest["explored"]["choices"][0]["ndcg"]
    evaluated = evaluate_checkpoint(trained[0], given)
    assert found == pytest.approx(evaluated["valid_result"]["ndcg@20"], abs=5e-5)
    assert {name: manifest[name] for name in ("valid_result", "test_result")} == {
        name: evaluated[name] for name in ("valid_result", "test_result")
    }
    without = evaluate_checkpoint(trained[0], {**given, "repeatable": False})["valid_result"]["ndcg@20"]
    assert abs(found - without) > 0.01


def test_items_of_validation_are_looked_for_even_if_they_count_as_seen(
    trained: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--seen=all`` leaves them out of the bundle's lists, but not of the lists that are compared."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    manifest = run_export(trained[0], str(tmp_path / "bundle"), seen="all", explore=True, config_dict=trained[1])
    evaluated = evaluate_checkpoint(trained[0], {**trained[1], "topk": [20], "metrics": ["NDCG"]})["valid_result"]
    assert manifest["explored"]["choices"][0]["ndcg"] == pytest.approx(evaluated["ndcg@20"], abs=5e-5)


def test_ndcg_is_that_of_the_formula() -> None:
    """Hits at places 1 and 3 of two that count; a user without any does not count; of five, three can be hit."""
    two = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    three = (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))
    lists = [[7, 1, 5], [2, 3, 4], [9, 8, 7]]
    assert ndcg(lists, [{7, 5}, set(), {8, 1, 2, 3, 4}], k=3) == pytest.approx((two + three) / 2)


def test_a_seen_item_cannot_be_found_again() -> None:
    """So a pair of validation that training has too counts for nothing."""
    random = np.random.default_rng(0)
    vectors = {side: random.normal(size=(size, 4)).astype(np.float32) for side, size in (("users", 3), ("items", 6))}
    none = np.zeros(4, np.int64), np.empty(0, np.int64)
    bundle = Bundle(Path(), {"score": "x"}, "vectors", list("abc"), list("uvwxyz"), vectors, *none, {})
    seen, held_out = [(1, 1), (2, 2)], [(1, 4), (2, 5), (3, 6)]
    both = (explore(bundle, pairs(seen), pairs(some), None)[0].ndcg for some in (held_out, [*held_out, *seen]))
    assert len(set(both)) == 1


def pairs(of: list[tuple[int, int]]) -> Observed:
    return Observed(*(torch.tensor(side) for side in zip(*of)), 4, 7)


def test_halves_of_the_dimensions_are_tried() -> None:
    assert fewer_dimensions(64) == [64, 32, 16, 8, 4]
    assert fewer_dimensions(20) == [20, 10, 5]
    assert fewer_dimensions(3) == [3]
    assert fewer_dimensions(20, prefixes=[5, 16, 20]) == [20, 16, 5]


WHOLE = Choice(64, "float32", None, ndcg=0.2, loss=0.0, recall=1.0, bytes=1000, p50=1.0, p95=2.0, front=True)
HALF = replace(WHOLE, dimensions=32, ndcg=0.199, loss=0.005, bytes=500)
INDEXED = replace(HALF, index="hnsw", ndcg=0.1985, loss=0.007, bytes=900, p50=0.2)
INT8 = replace(WHOLE, dtype="int8", ndcg=0.19, loss=0.05, bytes=260, front=False)


def test_the_smallest_is_taken_and_the_fastest_named_where_it_is_faster_by_more_than_noise() -> None:
    choices = [WHOLE, HALF, INDEXED, INT8]
    assert take(choices, 0.01) == (HALF, INDEXED)
    assert take(choices, 0.0) == (WHOLE, WHOLE)
    assert take(choices, 0.5) == (INT8, INDEXED)
    assert take([*choices, replace(INDEXED, p50=0.18, bytes=2000)], 0.01) == (HALF, INDEXED)
    assert take([WHOLE, replace(HALF, p50=0.85, bytes=2000)], 0.01) == (WHOLE, WHOLE)


@pytest.mark.parametrize(("loss", "chosen"), [(None, HALF), (0.0, WHOLE), (0.5, INT8)])
def test_a_hundredth_may_be_lost_unless_another_share_is_given(
    loss: Optional[float], chosen: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["recbole_kd.verbs.export"]
    monkeypatch.setattr(module, "explore", lambda *_: [WHOLE, HALF, INT8])
    ids = {"user_tokens": ["", *"abc"], "item_tokens": ["", *"uvwxyz"]}
    splits = SimpleNamespace(train=0, valid=0, pairs=lambda _: (torch.tensor([1]), torch.tensor([2])), **ids)
    given = ExportOptions.parse("--", {"checkpoint": "c.pth", "output": "bundle", "explore": True, "loss": loss})
    options, told = module._explored(given, None, SimpleNamespace(splits=splits, exclude_seen=True))
    assert (options.dimensions, options.dtype) == (chosen.dimensions, chosen.dtype)
    assert told["loss"] == (0.01 if loss is None else loss)


def test_the_table_names_the_options() -> None:
    table = choices_table([WHOLE, HALF, INDEXED, INT8], 0.01)
    assert re.search(r"^\* +32 +float32 +hnsw +0.1985 +0.7% +1.0000 +0.001 +0.200 +2.000$", table, re.M)
    assert "the smallest: --dimensions=32 --dtype=float32\n" in table
    assert "The fastest: --dimensions=32 --dtype=float32 --index=faiss --index_type=hnsw" in table
    assert "int8" not in choices_table([WHOLE, HALF, INDEXED, INT8], 0.01, everything=False)


def test_times_that_differ_by_noise_are_equal_on_the_front() -> None:
    """A fifth is noise: 1.2 ms are as fast as 1 ms, 1.3 ms are not; of equal times and NDCG the smaller is better."""
    assert _better(replace(WHOLE, bytes=500, p50=1.2), WHOLE)
    assert not _better(WHOLE, replace(WHOLE, bytes=500, p50=1.2))
    assert not _better(replace(WHOLE, bytes=500, p50=1.3), WHOLE)
    assert _better(replace(WHOLE, p50=0.7), WHOLE)
    assert not _better(replace(WHOLE, p50=0.9), WHOLE), "of equal ones both stay"
