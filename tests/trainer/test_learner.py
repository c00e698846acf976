"""SEvo as a learner: chosen like any of RecBole's, for any model with embedding tables, distilled or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.sevo.graphs import SEvoOptions
from recbole_kd.testing import known_answer_settings
from recbole_kd.trainer.learner import smoothed_tables
from recbole_kd.verbs.train import run_recbole_kd


def run(data_path: Path, model: str = "BPR", **settings: Any) -> dict[str, Any]:
    given = known_answer_settings(data_path, **{"sevo.graph": "bipartite", "learner": "sevo_adamw", **settings})
    given = {key: value for key, value in given.items() if value is not ...}
    return run_recbole_kd(model, "known-answer", config_dict=given)


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(result["checkpoint"])["state_dict"]
    return state


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_beta_0_is_the_plain_learner_bit_for_bit(name: str, known_answer: Path) -> None:
    plain = run(known_answer, learner=name, **{"sevo.graph": ...})
    smoothed = run(known_answer, learner=f"sevo_{name}", **{"sevo.beta": 0.0})
    assert plain["test_result"] == smoothed["test_result"]
    for key, value in weights(plain).items():
        assert torch.equal(value, weights(smoothed)[key])


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SimpleX", "SimRecStudent"])
def test_smoothing_changes_what_is_learned_and_it_still_learns(model: str, known_answer: Path) -> None:
    settings: dict[str, Any] = {"epochs": 40, "learning_rate": 0.02, "sevo.beta": 0.7, "stopping_step": 40}
    if model == "SimRecStudent":
        settings |= {"simrec.triplets": 200, "teacher.epochs": 20, "teacher.learning_rate": 0.02, "baseline": None}
    result = run(known_answer, model, **settings)
    assert result["test_result"]["recall@10"] > 0.8


def test_a_distilled_run_resumes_with_a_smoothed_learner(known_answer: Path) -> None:
    settings = {
        "epochs": 4,
        "teacher": "LightGCN",
        "teacher.epochs": 1,
        "distill": "kd",
        "sevo.beta": 0.5,
        "baseline": None,
    }
    whole = run(known_answer, **settings)
    last = whole["checkpoint"].replace(".pth", "-last.pth")
    resumed = run(known_answer, **settings, resume=last)
    assert resumed["test_result"] == whole["test_result"]
    for other in ({"sevo.beta": 0.6}, {"sevo.layers": 2}, {"learner": "sevo_adam"}):
        name = next(iter(other))
        with pytest.raises(UserError, match=f"was trained with --{name}="):
            run(known_answer, **{**settings, **other}, resume=last)


def test_the_case_of_its_name_does_not_matter(known_answer: Path) -> None:
    result = run(known_answer, learner="SEvo_AdamW", epochs=1)
    assert load_checkpoint(result["checkpoint"])["config"]["learner"] == "sevo_adamw"


def test_the_graph_of_the_teachers_items(known_answer: Path) -> None:
    settings = {"sevo.graph": "teacher", "sevo.neighbours": 3, "epochs": 1, "teacher.epochs": 1}
    assert run(known_answer, **settings, teacher="LightGCN")["teacher"]["model"] == "LightGCN"
    with pytest.raises(UserError, match="needs a teacher"):
        run(known_answer, **settings)
    with pytest.raises(UserError, match="reads a teacher's item vectors"):
        run(known_answer, **settings, teacher="NeuMF")


def test_a_graph_of_items_smooths_a_table_of_items_and_perhaps_a_mask() -> None:
    options = SEvoOptions(graph="consecutive", tables=("table.weight",))
    splits: Any = SimpleNamespace(train=SimpleNamespace(user_num=5, item_num=7))
    for rows in (7, 8):
        model = nn.ModuleDict({"table": nn.Embedding(rows, 2)})
        assert smoothed_tables(options, splits, model) == [[model["table"].weight]]
    for rows in (6, 9):
        with pytest.raises(UserError, match=f"each of the 7 items .*, and the tables to smooth have {rows} rows"):
            smoothed_tables(options, splits, nn.ModuleDict({"table": nn.Embedding(rows, 2)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sevo.beta": 1.0}, "sevo.beta=1.0 is out of range"),
        ({"sevo.layers": -1}, "sevo.layers=-1 is out of range"),
        ({"sevo.graph": "items"}, "sevo.graph='items' is not one of"),
        ({"learner": "adam"}, "Section 'sevo' is set but not used: --learner is adam"),
        ({"learner": "sevo_adamx"}, "--learner='sevo_adamx' is not one of"),
        ({"sevo.tables": ["nothing"]}, "sevo.tables names 'nothing', but BPR has no such parameter"),
        (
            {"sevo.tables": ["item_embedding.weight", "user_embedding.weight"]},
            "users and items, 49 and 41 (padding included), and the tables to smooth have 41 and 49 rows",
        ),
        ({"sevo.graph": "category"}, "category"),
        ({"model": "NeuMF"}, "SEvo smooths embedding tables, but none of NeuMF are known"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str, known_answer: Path) -> None:
    with pytest.raises(UserError) as raised:
        run(known_answer, **settings)
    assert message in str(raised.value)
