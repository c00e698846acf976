"""Candidates of sequential models: each sequence is encoded once, and the scores are the model's own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.contracts import Sequences
from recbole_kd.data.loaders import candidate_loader
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.student.readers import sequence_vectors
from recbole_kd.testing import Bench, known_answer_settings, write_known_sequences
from recbole_kd.trainer.candidates import candidate_scores
from recbole_kd.trainer.kd_trainer import make_evaluator
from tests.sequential import SMALL, SequentialBench


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_sequences(tmp_path_factory.mktemp("sequences"))


@pytest.mark.parametrize("name", SMALL)
def test_scores_are_those_of_predict_and_sequences_are_encoded_once(
    name: str, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = SequentialBench(data_path, name, name)
    model: Any = bench.model.eval()
    loader = candidate_loader(bench.config, bench.splits, "uni5")
    interaction, rows, _, _ = next(iter(loader))
    encoded: list[int] = []

    def counted(given: Any, sequences: Sequences) -> torch.Tensor:
        encoded.append(len(sequences.items))
        return sequence_vectors(given, sequences)

    monkeypatch.setattr("recbole_kd.trainer.candidates.sequence_vectors", counted)
    found = candidate_scores(model, interaction)
    assert found is not None
    assert sum(encoded) == int(rows.max()) + 1 == len(interaction) / 6
    with torch.no_grad():
        torch.testing.assert_close(found, model.predict(interaction).view(-1), atol=1e-5, rtol=1e-5)


def test_metrics_are_those_of_scoring_row_by_row(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = SequentialBench(data_path, "SASRec", "SASRec")
    trainer, _ = make_evaluator(bench.config, bench.model, bench.splits)
    loader = candidate_loader(bench.config, bench.splits, "uni5")
    ours = trainer.evaluate(loader, load_best_model=False)
    monkeypatch.setattr("recbole_kd.trainer.candidates.candidate_scores", lambda model, interaction: None)
    assert dict(trainer.evaluate(loader, load_best_model=False)) == dict(ours)


@pytest.mark.parametrize("name", ["BPR", "SASRec"])
def test_a_batch_has_as_many_users_as_a_block_has_rows(
    name: str, known_answer: Path, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's row has a column for every item, however few are candidates; 8 users at least."""
    if name == "BPR":
        config = KDConfig(name, "known-answer", config_dict=known_answer_settings(known_answer, distill=[]))
        splits = Splits(config)
    else:
        bench = SequentialBench(data_path, name, name)
        config, splits = bench.config, bench.splits
    columns = splits.train.item_num
    for rows in (10, 2):
        monkeypatch.setattr("recbole_kd.data.loaders.SCORE_BLOCK_BYTES", rows * columns * 4)
        loader = candidate_loader(config, splits, "uni5")
        assert loader.step == max(rows, 8)
        batches = [int(users.max()) + 1 for _, users, _, _ in loader]
        assert max(batches) <= loader.step
        assert sum(batches) == len(loader.uid_list)


@pytest.mark.parametrize("name", ["LightGCN", "NGCF", "LightGCNVariant"])
def test_a_graph_model_propagates_once_for_all_batches(
    name: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = known_answer_settings(known_answer, distill=[], embedding_size=8, eval_batch_size=12)
    config = KDConfig(name, "known-answer", config_dict=settings)
    splits = Splits(config)
    model = build_model(config, splits.train)
    loader = candidate_loader(config, splits, "uni5")
    trainer, _ = make_evaluator(config, model, splits)
    calls: list[bool] = []
    forward = type(model).forward

    def counted(model: Any, *given: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(model, *given)

    monkeypatch.setattr(type(model), "forward", counted)
    ours = trainer.evaluate(loader, load_best_model=False)
    assert calls == [False]
    assert "forward" not in vars(model)
    monkeypatch.setattr("recbole_kd.trainer.candidates.shared_propagation", lambda model, gradient: nullcontext())
    assert dict(trainer.evaluate(loader, load_best_model=False)) == dict(ours)
    assert len(calls) > 10


def test_other_models_are_left_to_recbole(known_answer: Path) -> None:
    bench = Bench(known_answer, "BPR", "BPR")
    assert candidate_scores(bench.model, next(iter(candidate_loader(bench.config, bench.splits, "uni5")))[0]) is None
