"""How scores and vectors are read from each recommender: the readers agree with the model's own ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import Tensor

from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.build import build_model
from recbole_kd.student import readers as representation
from recbole_kd.student.readers import ModelStudent, expanded_scores, layers, pair_scores, representations
from recbole_kd.testing import known_answer_settings

WITH_VECTORS = [
    *(
        "BPR",
        "LightGCN",
        "SimRecStudent",
        "SimRecTeacher",
        "NGCF",
        "DGCF",
        "NCL",
        "SGL",
        "SpectralCF",
        "SimpleX",
        "ENMF",
        "LightGCNVariant",
        "NGCFVariant",
    )
]
WITHOUT_VECTORS = ["NeuMF", "DMF", "ConvNCF"]


def build(model: str, data_path: Path, **settings: Any) -> Any:
    clusters = {"num_clusters": 8} if model == "NCL" else {}
    given = known_answer_settings(data_path, distill=[], **clusters, **settings)
    config = KDConfig(model, "known-answer", config_dict=given)
    init_seed(1, True)
    splits = Splits(config)
    built = build_model(config, splits.train).eval()
    with torch.no_grad():
        for parameter in built.parameters():  # away from an initialisation where all scores are alike
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def own_scores(model: Any) -> torch.Tensor:
    users = torch.arange(1, model.n_users)
    return model.full_sort_predict(Interaction({model.USER_ID: users})).view(len(users), -1).detach()


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_the_dot_product_of_the_vectors_is_the_models_score(name: str, known_answer: Path) -> None:
    model = build(name, known_answer)
    vectors = representations(model)
    assert vectors is not None
    users, items = vectors
    torch.testing.assert_close((users @ items.T)[1:, 1:].detach(), own_scores(model)[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_VECTORS + WITHOUT_VECTORS)
def test_scores_of_lists_of_items_rank_as_the_model_does(name: str, known_answer: Path) -> None:
    model = build(name, known_answer)
    view = ModelStudent(model)
    users = torch.tensor([1, 5, 9])
    items = torch.tensor([[1, 2, 3, 4], [8, 7, 6, 5], [11, 30, 22, 40]])
    scores = view.scores(users, items)
    assert scores.shape == items.shape
    assert scores.requires_grad
    predicted = model.predict(
        Interaction({model.USER_ID: users.repeat_interleave(4), model.ITEM_ID: items.reshape(-1)})
    ).view(items.shape)
    assert torch.equal(scores.argsort(1), predicted.argsort(1))
    torch.testing.assert_close(view.scores(users, items[:, 0]), scores[:, 0])


@pytest.mark.parametrize("name", ["LightGCN", "SimRecTeacher", "SimRecStudent", "NGCF"])
def test_a_step_propagates_once(name: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, known_answer)
    view, passes = ModelStudent(model), 0
    forward = type(model).forward

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(self, *arguments)

    monkeypatch.setattr(type(model), "forward", counted)
    batch = {model.USER_ID: torch.tensor([1, 2]), model.ITEM_ID: torch.tensor([3, 4])}
    interaction = Interaction({**batch, model.NEG_ITEM_ID: torch.tensor([5, 6])})
    with view.step():
        loss = model.calculate_loss(interaction) + view.user_embeddings().sum() + view.item_embeddings().sum()
        loss = loss + view.scores(torch.tensor([1]), torch.tensor([[2, 3]])).sum()
    loss.backward()
    assert passes == 1
    view.user_embeddings()
    assert passes == 2, "outside a step nothing stale is kept"


def test_a_recipes_class_is_read_as_its_backbone(known_answer: Path) -> None:
    model = build("BPR", known_answer)
    model.__class__ = type("SomeRecipe", (type(model),), {})
    assert "representations" in ModelStudent(model).capabilities


@pytest.mark.parametrize("name", ["LightGCN", "LightGCNVariant", "NCL"])
def test_a_graph_model_gives_its_layers(name: str, known_answer: Path) -> None:
    model = build(name, known_answer, n_layers=3)
    outputs = layers(model)
    assert outputs is not None
    assert len(outputs) == 4
    mean = sum(users for users, _ in outputs) / 4
    torch.testing.assert_close(mean, model.forward()[0])
    assert layers(build("BPR", known_answer)) is None


@pytest.mark.parametrize("name", ["MultiVAE", "MultiDAE", "CDAE", "MacridVAE", "RecVAE", "DiffRec", "LDiffRec"])
def test_an_autoencoders_scores_are_read_from_one_row_a_user(
    name: str, known_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever blocks: the same scores as pair by pair, and the same gradients as in one block."""
    model = build(name, known_answer)
    users = torch.tensor([3, 1, 3, 7, 9, 9])
    items = torch.randint(1, 41, (6, 4), generator=torch.Generator().manual_seed(0))
    whole = expanded_scores(model, users, items)
    single = torch.stack([pair_scores(model, users[row : row + 1], items[row, :1])[0] for row in range(6)])
    assert torch.equal(whole[:, 0].argsort(), single.argsort())
    monkeypatch.setattr(representation, "_CELLS_AT_ONCE", 2 * model.n_items)
    blocks = expanded_scores(model, users, items)
    # Products of other heights round otherwise, by how much depends on the processor: measured against whole tensors.
    assert _apart(blocks, whole) < 1e-5
    assert _apart(expanded_scores(model, users, items[:, 0]), whole[:, 0]) < 1e-5
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, expected = (
        torch.autograd.grad(scores.square().sum(), parameters, allow_unused=True) for scores in (blocks, whole)
    )
    assert any(gradient is not None and bool(gradient.any()) for gradient in expected)
    for one, other in zip(found, expected):
        if other is not None:
            assert one is not None
            assert _apart(one, other) < 1e-4


def _apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()
