"""LightGCN's and NGCF's variants, against the sums over neighbours that their paper prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.errors import UserError
from recbole_kd.model.graph_variants import NORMS, propagate_faster
from tests.student.test_readers import build

LIGHT = "LightGCNVariant"


def neighbours(model: Any, self_loops: bool = False) -> list[list[int]]:
    """Node -> its neighbours; users first, then items. Padding has none."""
    found: list[set[int]] = [set() for _ in range(model.n_users + model.n_items)]
    for user, item in zip(model.interaction_matrix.row.tolist(), model.interaction_matrix.col.tolist()):
        found[user].add(model.n_users + item)
        found[model.n_users + item].add(user)
    for node, others in enumerate(found):
        if self_loops and node not in (0, model.n_users):
            others.add(node)
    return [sorted(others) for others in found]


def propagated(table: Tensor, around: list[list[int]], left: float, right: float) -> Tensor:
    """e_u' = sum over neighbours i of |N_u|^-left |N_i|^-right e_i, one node after the other."""
    rows = []
    for own in around:
        row = torch.zeros(table.shape[1], dtype=table.dtype)
        for other in own:
            row = row + len(own) ** -left * len(around[other]) ** -right * table[other]
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("self_loops", [False, True])
def test_a_layer_is_the_weighted_sum_over_neighbours(norm: str, self_loops: bool, known_answer: Path) -> None:
    weights = [0.5, 0.2, -1.0]
    model = build(LIGHT, known_answer, embedding_size=4, norm=norm, self_loops=self_loops, layer_weights=weights)
    around, (left, right) = neighbours(model, self_loops), NORMS[norm]
    layers = [model.get_ego_embeddings().detach()]
    for _ in weights[1:]:
        layers.append(propagated(layers[-1], around, left, right))
    final = sum(weight * layer for weight, layer in zip(weights, layers))
    torch.testing.assert_close(torch.cat(model.forward()), final, rtol=1e-4, atol=1e-5)


def test_left_is_the_degree_of_who_receives(known_answer: Path) -> None:
    """With L1-L a node has the mean of its neighbours; with R each neighbour is divided by the root of its own degree.

    Some edges are taken out, because all items of this data have the same degree.
    """
    for norm in ("L1-L", "L1-R", "L", "R"):
        model = build(LIGHT, known_answer, embedding_size=4, norm=norm, layer_weights="last", n_layers=1)
        matrix, kept = model.interaction_matrix, model.interaction_matrix.row > 20
        matrix.row, matrix.col, matrix.data = matrix.row[kept], matrix.col[kept], matrix.data[kept]
        graph = model.get_norm_adj_mat().to_dense()
        around = neighbours(model)
        others = around[30]
        degrees = torch.tensor([len(around[other]) for other in others]).float()
        expected = {
            "L1-L": torch.full((len(others),), 1 / len(others)),
            "L1-R": 1 / degrees,
            "L": torch.full((len(others),), len(others) ** -0.5),
            "R": degrees**-0.5,
        }
        assert len(others) not in degrees.tolist()
        torch.testing.assert_close(graph[30, others], expected[norm])


@pytest.mark.parametrize("norm", ["L", "L1-R"])
def test_gradients_flow_through_a_graph_that_is_not_symmetric(norm: str, known_answer: Path) -> None:
    model = build(LIGHT, known_answer, embedding_size=4, norm=norm, layer_weights="last", n_layers=1)
    around, (left, right) = neighbours(model), NORMS[norm]
    target = torch.randn(len(around), 4, generator=torch.Generator().manual_seed(0))
    (torch.cat(model.forward()) * target).sum().backward()
    table = torch.cat([model.user_embedding.weight, model.item_embedding.weight]).detach().requires_grad_()
    (propagated(table, around, left, right) * target).sum().backward()
    found = torch.cat([model.user_embedding.weight.grad, model.item_embedding.weight.grad])
    torch.testing.assert_close(found, table.grad, rtol=1e-4, atol=1e-5)


def test_by_default_it_is_recboles_lightgcn(known_answer: Path) -> None:
    variant, recboles = (build(name, known_answer, embedding_size=4) for name in (LIGHT, "LightGCN"))
    torch.testing.assert_close(torch.cat(variant.forward()), torch.cat(recboles.forward()), rtol=1e-5, atol=1e-6)


def test_faster_propagation_is_recboles_lightgcn(known_answer: Path) -> None:
    usual, faster = (build("LightGCN", known_answer, embedding_size=4) for _ in range(2))
    propagate_faster(faster)
    assert type(faster).__name__ == "LightGCN"
    target = torch.randn(usual.n_users + usual.n_items, 4, generator=torch.Generator().manual_seed(0))
    for model in (usual, faster):
        (torch.cat(model.forward()) * target).sum().backward()
    torch.testing.assert_close(torch.cat(faster.forward()), torch.cat(usual.forward()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(faster.item_embedding.weight.grad, usual.item_embedding.weight.grad)
    other = build("BPR", known_answer, embedding_size=4)
    kind = type(other)
    propagate_faster(other)
    assert type(other) is kind


def test_single_is_the_last_layer_alone(known_answer: Path) -> None:
    words, numbers = (
        build(LIGHT, known_answer, embedding_size=4, n_layers=3, layer_weights=given)
        for given in ("last", [0, 0, 0, 1])
    )
    assert torch.equal(torch.cat(words.forward()), torch.cat(numbers.forward()))


def test_a_sum_with_self_loops_is_simrecs_teacher(known_answer: Path) -> None:
    sizes = {"embedding_size": 4, "n_layers": 2}
    variant = build(LIGHT, known_answer, **sizes, self_loops=True, layer_weights=[1, 1, 1])
    teacher = build("SimRecTeacher", known_answer, **sizes)
    teacher.load_state_dict(variant.state_dict())
    torch.testing.assert_close(torch.cat(variant.forward()), torch.cat(teacher.forward()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_weights": [1, 0]}, r"layer_weights=\[1, 0\]; expected mean, last, or a list of 3 numbers"),
        ({"layer_weights": "first"}, "layer_weights=first; expected mean, last, or a list"),
        ({"norm": "L3"}, r"--norm='L3' is not one of L2, L, R, L1, L1-L, L1-R"),
    ],
)
def test_what_is_no_variant_is_refused(settings: dict[str, Any], message: str, known_answer: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(LIGHT, known_answer, **settings)


@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("nonlinear", [False, True])
def test_ngcf_without_its_parts(transform: bool, nonlinear: bool, known_answer: Path) -> None:
    sizes = {"embedding_size": 4, "hidden_size_list": [4, 4]}
    model = build("NGCFVariant", known_answer, **sizes, feature_transform=transform, nonlinear=nonlinear)
    around = neighbours(model)
    layers = [model.get_ego_embeddings().detach()]
    for layer in model.GNNlayers:
        own, spread = layers[-1], propagated(layers[-1], around, 0.5, 0.5)
        both, product = own + spread, own * spread
        if transform:
            first, second = layer.linear, layer.interActTransform
            both = both @ first.weight.T + first.bias
            product = product @ second.weight.T + second.bias
        raw = both + product
        raw = torch.where(raw > 0, raw, 0.2 * raw) if nonlinear else raw
        layers.append(raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-12))
    torch.testing.assert_close(torch.cat(model.forward()), torch.cat(layers, dim=1), rtol=1e-4, atol=1e-5)
    assert any("linear" in name for name, _ in model.named_parameters()) == transform


def test_by_default_it_is_recboles_ngcf(known_answer: Path) -> None:
    variant, recboles = (build(name, known_answer, embedding_size=4) for name in ("NGCFVariant", "NGCF"))
    assert torch.equal(torch.cat(variant.forward()), torch.cat(recboles.forward()))


def test_ngcf_drops_edges_and_messages_as_recboles_does(known_answer: Path) -> None:
    drops = {"embedding_size": 4, "hidden_size_list": [4], "node_dropout": 0.5, "message_dropout": 0.3}
    outputs = []
    for name in ("NGCFVariant", "NGCF"):
        model = build(name, known_answer, **drops).train()
        torch.manual_seed(0)
        outputs.append(torch.cat(model.forward()))
    assert torch.equal(*outputs)


def test_ngcf_f_has_layers_of_one_size(known_answer: Path) -> None:
    with pytest.raises(UserError, match=r"hidden_size_list=\[8\].*embedding_size=4 numbers; make them equal"):
        build("NGCFVariant", known_answer, embedding_size=4, hidden_size_list=[8], feature_transform=False)
