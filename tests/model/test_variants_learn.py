"""Each variant, after a few epochs on ml-100k, ranks better than the most popular items do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_kd.verbs.train import run_recbole_kd

#: The variant in words -> its model and settings.
GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    "LightGCN-single": ("LightGCNVariant", {"layer_weights": "last"}),
    "LightGCN-L": ("LightGCNVariant", {"norm": "L"}),
    "LightGCN-R": ("LightGCNVariant", {"norm": "R"}),
    "LightGCN-L1": ("LightGCNVariant", {"norm": "L1"}),
    "LightGCN-L1-L": ("LightGCNVariant", {"norm": "L1-L"}),
    "LightGCN-L1-R": ("LightGCNVariant", {"norm": "L1-R"}),
    "LightGCN with self-loops": ("LightGCNVariant", {"self_loops": True}),
    "NGCF-f": ("NGCFVariant", {"feature_transform": False}),
    "NGCF-n": ("NGCFVariant", {"nonlinear": False}),
    "NGCF-fn": ("NGCFVariant", {"feature_transform": False, "nonlinear": False}),
}
#: What is trained on users takes small steps, and many: a batch is 64 users here.
USERS: dict[str, Any] = {"train_batch_size": 64}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mult-VAE, unit noise": ("MultiVAEVariant", {"learning_rate": 0.001, **USERS}),
    "Mult-VAE, gaussian": ("MultiVAEVariant", {"likelihood": "gaussian", "learning_rate": 0.001, **USERS}),
    "Mult-VAE, logistic": ("MultiVAEVariant", {"likelihood": "logistic", "learning_rate": 0.001, **USERS}),
    "Mult-DAE, gaussian": ("MultiDAEVariant", {"likelihood": "gaussian", "learning_rate": 0.001, **USERS}),
    "Mult-DAE, logistic": (
        "MultiDAEVariant",
        {"likelihood": "logistic", "learning_rate": 0.001, "epochs": 10, **USERS},
    ),
    "NeuMF, squared loss": ("NeuMFVariant", {"loss_type": "MSE", "learning_rate": 0.001}),
    "WMF": ("WMF", USERS),
    "BiasMF": ("BiasMF", {"reg_weight": 1e-4}),
}
VARIANTS = {**GRAPHS, **OTHERS}


def score(model: str, folder: Path, **settings: Any) -> float:
    """NDCG@20 on the test split."""
    given: dict[str, Any] = {
        "checkpoint_dir": str(folder),
        "show_progress": False,
        "use_gpu": False,
        "distill": [],
        "topk": [20],
        "valid_metric": "NDCG@20",
        "epochs": 5,
        "eval_step": 5,
        "learning_rate": 0.01,
        **settings,
    }
    return float(run_recbole_kd(model, "ml-100k", config_dict=given)["test_result"]["ndcg@20"])


@pytest.fixture(scope="module")
def popular(tmp_path_factory: pytest.TempPathFactory) -> float:
    return score("Pop", tmp_path_factory.mktemp("popular"), epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_learns(variant: str, popular: float, tmp_path: Path) -> None:
    model, settings = VARIANTS[variant]
    found = score(model, tmp_path, **settings)
    print(f"{variant:<26} NDCG@20 {found:.4f}, most popular {popular:.4f}")
    assert found > 1.2 * popular
