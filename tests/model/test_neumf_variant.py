"""NeuMF's variants: squared loss, towers put together by alpha, frozen towers, MLP-0 to MLP-4."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import load_checkpoint
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd
from tests.student.test_readers import build

SIZES: dict[str, Any] = {"mf_embedding_size": 3, "mlp_embedding_size": 4, "mlp_hidden_size": [5], "epochs": 1}
NAME = "NeuMFVariant"
#: Table 3's names -> the sizes of hidden layers, for 8 predictive factors.
TOWERS = {"MLP-0": [], "MLP-1": [8], "MLP-2": [16, 8], "MLP-3": [32, 16, 8], "MLP-4": [64, 32, 16, 8]}


def test_the_squared_loss_is_of_probabilities(known_answer: Path) -> None:
    model = build(NAME, known_answer, **SIZES, loss_type="MSE")
    users, items, labels = torch.tensor([1, 2, 9]), torch.tensor([4, 4, 6]), torch.tensor([1.0, 0.0, 1.0])
    raw = model.forward(users, items).tolist()
    expected = sum((label - 1 / (1 + math.exp(-score))) ** 2 for label, score in zip(labels.tolist(), raw)) / 3
    batch = Interaction({model.USER_ID: users, model.ITEM_ID: items, model.LABEL: labels})
    assert model.calculate_loss(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def towers(known_answer: Path) -> dict[str, str]:
    """A factorisation and an MLP, trained for an epoch each."""
    settings = known_answer_settings(known_answer, distill=[], **SIZES)
    return {
        f"{part}_pretrain_path": run_recbole_kd(
            NAME, "known-answer", config_dict={**settings, "mf_train": part == "mf", "mlp_train": part == "mlp"}
        )["checkpoint"]
        for part in ("mf", "mlp")
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_pretrain": True}, "use_pretrain=true starts from two trained towers; set"),
        ({"freeze_towers": True}, "freeze_towers=true would keep the towers' random weights"),
    ],
)
def test_towers_that_nobody_trained_are_refused(given: dict[str, Any], message: str, known_answer: Path) -> None:
    settings = known_answer_settings(known_answer, distill=[], **SIZES)
    with pytest.raises(UserError, match=f"--{message}"):
        run_recbole_kd(NAME, "known-answer", config_dict={**settings, **given})
    teacher = {"distill": ["rrd"], "teacher": NAME, **{f"teacher.{name}": value for name, value in given.items()}}
    with pytest.raises(UserError, match=f"--teacher.{message}"):
        run_recbole_kd("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **teacher))


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_pretrained_towers_are_weighed_by_alpha(alpha: float, towers: dict[str, str], known_answer: Path) -> None:
    """The first prediction is alpha times the factorisation's and 1 - alpha times the MLP's, before the sigmoid."""
    whole = known_answer_settings(
        known_answer, distill=[], **{**SIZES, **towers, "epochs": 0}, use_pretrain=True, pretrain_alpha=alpha
    )
    weights = load_checkpoint(run_recbole_kd(NAME, "known-answer", config_dict=whole)["checkpoint"])["state_dict"]
    one, other = (load_checkpoint(towers[f"{part}_pretrain_path"])["state_dict"] for part in ("mf", "mlp"))
    for kind in ("weight", "bias"):
        parts = [alpha * one[f"predict_layer.{kind}"], (1 - alpha) * other[f"predict_layer.{kind}"]]
        expected = torch.cat(parts, dim=1) if kind == "weight" else parts[0] + parts[1]
        torch.testing.assert_close(weights[f"predict_layer.{kind}"], expected)


def test_frozen_towers_stay_and_the_last_layer_learns(towers: dict[str, str], known_answer: Path) -> None:
    settings = known_answer_settings(known_answer, distill=[], **{**SIZES, **towers, "epochs": 3}, use_pretrain=True)
    result = run_recbole_kd(NAME, "known-answer", config_dict={**settings, "freeze_towers": True})
    weights = load_checkpoint(result["checkpoint"])["state_dict"]
    began = {part: load_checkpoint(towers[f"{part}_pretrain_path"])["state_dict"] for part in ("mf", "mlp")}
    for name, value in weights.items():
        if not name.startswith("predict_layer"):
            assert torch.equal(value, began["mlp" if "mlp" in name else "mf"][name]), name
    half = torch.cat([0.5 * began[part]["predict_layer.weight"] for part in ("mf", "mlp")], dim=1)
    assert not torch.allclose(weights["predict_layer.weight"], half)
    for file in towers.values():
        Path(file).rename(f"{file}.moved")
    found = evaluate_checkpoint(result["checkpoint"], config_dict={"data_path": str(known_answer)})
    assert found["test_result"].items() >= result["test_result"].items()


def test_the_last_layer_is_its_weight_and_its_bias(known_answer: Path) -> None:
    model = build(NAME, known_answer, **SIZES, freeze_towers=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"predict_layer.weight", "predict_layer.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("loss", ["BCE", "MSE"])
def test_mlp_0_to_mlp_4_learn(name: str, loss: str, known_answer: Path) -> None:
    sizes = TOWERS[name]
    given = {"mlp_hidden_size": sizes, "mlp_embedding_size": sizes[0] if sizes else 8, "mf_train": False}
    settings = known_answer_settings(
        known_answer, distill=[], learning_rate=0.03, dropout_prob=0.0, eval_step=30, **{**given, "epochs": 30}
    )
    result = run_recbole_kd(NAME, "known-answer", config_dict={**settings, "loss_type": loss})
    # Without a hidden layer, a score is a user's part and an item's part: every user has the same ranking.
    assert (result["test_result"]["recall@10"] > 0.7) == (name != "MLP-0")
