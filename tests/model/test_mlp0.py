"""NeuMF: without hidden layers, and rebuilt without the files that its training began from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd
from tests.student.test_readers import build

SIZES: dict[str, Any] = {"mf_embedding_size": 3, "mlp_embedding_size": 4, "epochs": 1}


def test_mlp_0_reads_the_two_embeddings(known_answer: Path) -> None:
    model = build("NeuMF", known_answer, **{**SIZES, "mlp_hidden_size": [], "mf_train": False})
    weight, bias = model.predict_layer.weight[0], model.predict_layer.bias[0]
    for user, item in ((1, 2), (3, 3)):
        both = torch.cat([model.user_mlp_embedding.weight[user], model.item_mlp_embedding.weight[item]])
        found = model.forward(torch.tensor([user]), torch.tensor([item]))
        torch.testing.assert_close(found[0], weight @ both + bias)


def test_fused_mlp_0_reads_the_product_of_the_factors_too(known_answer: Path) -> None:
    model = build("NeuMF", known_answer, **{**SIZES, "mlp_hidden_size": []})
    product = model.user_mf_embedding.weight[1] * model.item_mf_embedding.weight[2]
    both = torch.cat([product, model.user_mlp_embedding.weight[1], model.item_mlp_embedding.weight[2]])
    found = model.forward(torch.tensor([1]), torch.tensor([2]))
    torch.testing.assert_close(found[0], model.predict_layer.weight[0] @ both + model.predict_layer.bias[0])


@pytest.mark.parametrize("hidden", [[], [5]])
def test_a_model_that_began_from_two_files_is_evaluated_without_them(hidden: list[int], known_answer: Path) -> None:
    settings = known_answer_settings(known_answer, distill=[], **SIZES, mlp_hidden_size=hidden)
    files = {
        f"{part}_pretrain_path": run_recbole_kd(
            "NeuMF", "known-answer", config_dict={**settings, "mf_train": part == "mf", "mlp_train": part == "mlp"}
        )["checkpoint"]
        for part in ("mf", "mlp")
    }
    result = run_recbole_kd("NeuMF", "known-answer", config_dict={**settings, **files, "use_pretrain": True})
    for file in files.values():
        Path(file).rename(f"{file}.moved")
    found = evaluate_checkpoint(result["checkpoint"], config_dict={"data_path": str(known_answer)})
    assert found["test_result"].items() >= result["test_result"].items()
