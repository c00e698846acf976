"""FreqD: filtered features, by the batch's rows alone, and their equivalence to a loss weighted by frequency."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recbole_kd.contracts import Batch, DataView
from recbole_kd.data.graphs import neighbour_adjacency
from recbole_kd.distiller.freqd import FreqDDistiller, FreqDOptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS = 8, 11
DATA = data_view(USERS, ITEMS)
# Every node but padding; users repeat so that there are as many of them as items.
EVERYTHING = Batch(torch.arange(1, USERS).repeat(2)[: ITEMS - 1], torch.arange(1, ITEMS))


def build(data: DataView = DATA, **values: Any) -> tuple[FreqDDistiller, FakeStudent, FakeTeacher]:
    student, teacher = FakeStudent(USERS, ITEMS, 3), FakeTeacher(USERS, ITEMS, 5)
    return FreqDDistiller(FreqDOptions(**{"weight": 1.0, **values}), student, teacher, data), student, teacher


def laplacian(data: DataView) -> Tensor:
    """I - D^(-1/2) A D^(-1/2) of the user-item graph, dense."""
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    users, items = data.observed.user_ids, data.observed.indices + USERS
    adjacency[users, items] = adjacency[items, users] = 1.0
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    return torch.eye(USERS + ITEMS, dtype=torch.float64) - scale[:, None] * adjacency * scale


def difference(distiller: FreqDDistiller, student: FakeStudent, teacher: FakeTeacher) -> Tensor:
    """proj(E_s) - E_t of all nodes, users first."""
    own = torch.cat([student.user_embeddings(), student.item_embeddings()])
    taught = torch.cat([teacher.user_embeddings(), teacher.item_embeddings()])
    return distiller.projectors[0](own) - taught


def nodes_of(batch: Batch) -> Tensor:
    return torch.cat([batch.distinct_users, USERS + batch.distinct_items])


@pytest.mark.parametrize("values", [{"alpha": 0.4}, {"alpha": 0.0}, {"filter": (1.0, -0.8, 0.16)}, {"filter": (0.5,)}])
def test_loss_is_the_filtered_squared_error_of_the_batchs_nodes(values: dict[str, Any]) -> None:
    distiller, student, teacher = build(weight=0.5, **values)
    batch = batch_of(DATA, 4, negatives=True)
    theta = FreqDOptions(**values).coefficients
    matrix = sum(value * torch.matrix_power(laplacian(DATA), power) for power, value in enumerate(theta))
    filtered = (matrix @ difference(distiller, student, teacher))[nodes_of(batch)]
    expected = 0.5 * (filtered**2).sum(1).mean()
    found = distiller(batch)["freqd"]
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(found, expected, inputs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("theta", [(1.0, -0.4), (1.0, -0.5), (1.0, -0.8, 0.16)])
def test_theorem_2_the_loss_over_all_nodes_weighs_each_frequency_by_its_filter(theta: tuple[float, ...]) -> None:
    distiller, student, teacher = build(filter=theta)
    frequencies, basis = torch.linalg.eigh(laplacian(DATA))
    spectrum = basis.T @ difference(distiller, student, teacher)
    weights = sum(value * frequencies**power for power, value in enumerate(theta)) ** 2
    # Padding is a node of the matrix, alone and so of frequency 1, but of no batch: its part is taken off.
    alone = difference(distiller, student, teacher)[[0, USERS]]
    padding = sum(theta) ** 2 * (alone**2).sum()
    expected = ((weights * (spectrum**2).sum(1)).sum() - padding) / (USERS - 1 + ITEMS - 1)
    torch.testing.assert_close(distiller(EVERYTHING)["freqd"], expected, rtol=1e-5, atol=1e-8)
    assert weights.diff().max() <= 1e-12  # eigenvalues ascend: low frequencies weigh most


@pytest.mark.parametrize("theta", [(1.0,), (1.0, -0.4), (1.0, -0.8, 0.16)])
def test_relations_weigh_each_pair_of_frequencies_by_both_filters(theta: tuple[float, ...]) -> None:
    distiller, student, teacher = build(filter=theta, relations=True, weight=0.5)
    assert not list(distiller.parameters()), "cosines need no projector"
    own = torch.cat([student.user_embeddings(), student.item_embeddings()])
    taught = torch.cat([teacher.user_embeddings(), teacher.item_embeddings()])
    cosines = [functional.normalize(each) @ functional.normalize(each).T for each in (own, taught)]
    for each in cosines:  # padding is in no batch
        each[[0, USERS]] = each[:, [0, USERS]] = 0
    frequencies, basis = torch.linalg.eigh(laplacian(DATA))
    weights = sum(value * frequencies**power for power, value in enumerate(theta)) * torch.ones_like(frequencies)
    parts = basis.T @ (cosines[0] - cosines[1]) @ basis
    expected = 0.5 * (torch.outer(weights, weights) * parts).square().sum() / (USERS - 1 + ITEMS - 1) ** 2
    inputs = [student.user_table, student.item_table]
    assert_same_loss(distiller(EVERYTHING)["freqd"], expected, inputs, rtol=1e-5, atol=1e-8)


def test_relations_on_neighbour_graphs_are_among_users_and_among_items() -> None:
    distiller, student, teacher = build(graph="knn", neighbours=2, alpha=0.3, relations=True)
    batch, errors = batch_of(DATA, 4), []
    for observed, own, taught, nodes in (
        (DATA.observed, student.user_embeddings(), teacher.user_embeddings(), batch.distinct_users),
        (DATA.observed.transposed(), student.item_embeddings(), teacher.item_embeddings(), batch.distinct_items),
    ):
        smooth = 0.7 * torch.eye(len(own)).double() + 0.3 * neighbour_adjacency(observed, 2).to_dense().double()
        cosines = [functional.normalize(each) @ functional.normalize(each).T for each in (own, taught)]
        filtered = smooth @ (cosines[0] - cosines[1]) @ smooth.T
        errors.append(filtered[nodes][:, nodes].square().flatten())
    torch.testing.assert_close(distiller(batch)["freqd"], torch.cat(errors).mean(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 0.0), (0.0, 1.0, 0.5)])
def test_band_weights_weigh_groups_of_equally_many_frequencies(weights: tuple[float, ...]) -> None:
    """Eq. 3 with a weight for each group; eigenvectors of one frequency share the weights of their groups."""
    distiller, student, teacher = build(band_weights=weights, monotone=False)
    error = difference(distiller, student, teacher).detach()
    connected = laplacian(DATA).diagonal().new_tensor(
        [float(row.abs().sum() > 1) for row in laplacian(DATA)]
    ).nonzero().squeeze(1)  # fmt: skip
    frequencies, basis = torch.linalg.eigh(laplacian(DATA)[connected][:, connected])
    size, expected = len(connected), 0.0
    spectrum = (basis.T @ error[connected]).square().sum(1)
    for k in range(size):
        space = [j for j in range(size) if abs(frequencies[j] - frequencies[k]) < 1e-8]
        weight = sum(weights[j * len(weights) // size] for j in space) / len(space)
        expected += weight * float(spectrum[k])
    alone = [node for node in nodes_of(EVERYTHING).tolist() if node not in connected.tolist()]
    at_one = [j for j in range(size) if abs(frequencies[j] - 1) < 1e-8] or [int((frequencies - 1).abs().argmin())]
    lonely = sum(weights[j * len(weights) // size] for j in at_one) / len(at_one)
    expected += lonely * float(error[alone].square().sum())
    found = float(distiller(EVERYTHING)["freqd"]) * (USERS - 1 + ITEMS - 1)
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_a_filter_it_is_feature_distillation() -> None:
    distiller, student, teacher = build(alpha=0.0)
    batch = batch_of(DATA, 5)
    expected = (difference(distiller, student, teacher)[nodes_of(batch)] ** 2).sum(1).mean()
    torch.testing.assert_close(distiller(batch)["freqd"], expected)


@pytest.mark.parametrize("graph", ["bipartite", "knn"])
def test_nodes_without_an_edge_are_no_nan(graph: str) -> None:
    data = data_view(USERS, ITEMS, [(1, 1), (1, 2), (2, 1)])  # users from 3 on have nothing in the training split
    distiller, student, _ = build(data, graph=graph)
    loss = distiller(EVERYTHING)["freqd"]
    assert torch.isfinite(loss)
    loss.backward()
    assert student.user_table.grad is not None
    assert torch.isfinite(student.user_table.grad).all()


@pytest.mark.parametrize("graph", ["bipartite", "knn"])
def test_padding_touches_nothing(graph: str) -> None:
    distiller, student, _ = build(graph=graph)
    before = distiller(EVERYTHING)["freqd"].item()
    with torch.no_grad():
        student.user_table[0] = student.item_table[0] = 1e6
    assert distiller(EVERYTHING)["freqd"].item() == before


def test_neighbour_graphs_smooth_each_side_and_compare_directions() -> None:
    distiller, student, teacher = build(graph="knn", neighbours=2, alpha=0.3)
    batch = batch_of(DATA, 4)
    sides = [
        (DATA.observed, student.user_embeddings(), teacher.user_embeddings(), batch.distinct_users),
        (DATA.observed.transposed(), student.item_embeddings(), teacher.item_embeddings(), batch.distinct_items),
    ]
    errors = []
    for projector, (observed, own, taught, nodes) in zip(distiller.projectors, sides):
        smooth = 0.7 * torch.eye(len(own)).double() + 0.3 * neighbour_adjacency(observed, 2).to_dense().double()
        cosines = functional.cosine_similarity((smooth @ projector(own))[nodes], (smooth @ taught)[nodes])
        errors.append(1 - cosines)
    torch.testing.assert_close(distiller(batch)["freqd"], torch.cat(errors).mean(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": 0.4},
        {"alpha": 0.0},
        {"filter": (1.0, -0.8, 0.16)},
        {"graph": "knn", "neighbours": 2, "projectors": 2},
        {"projectors": 3},
    ],
)
def test_perceptrons_map_every_node_that_the_filter_reads(values: dict[str, Any]) -> None:
    """The reference maps all nodes and filters them all; the distiller's last layer sees the batch's nodes alone."""
    distiller, student, teacher = build(projector="mlp", hidden=4, **values)
    batch, theta = batch_of(DATA, 3, negatives=True), FreqDOptions(**values).coefficients
    own, taught = (
        [student.user_embeddings(), student.item_embeddings()],
        [teacher.user_embeddings(), teacher.item_embeddings()],
    )
    if values.get("graph") == "knn":
        observed = [DATA.observed, DATA.observed.transposed()]
        graphs = [
            torch.eye(len(side)).double() - neighbour_adjacency(each, 2).to_dense().double()
            for each, side in zip(observed, own)
        ]
        nodes = [batch.distinct_users, batch.distinct_items]
    else:
        own, taught, graphs, nodes = [torch.cat(own)], [torch.cat(taught)], [laplacian(DATA)], [nodes_of(batch)]
    errors = []
    for projector, e_s, e_t, graph, chosen in zip(distiller.projectors, own, taught, graphs, nodes):
        matrix = sum(value * torch.matrix_power(graph, power) for power, value in enumerate(theta))
        mapped = sum(last(first(e_s).relu()) for first, last in zip(projector.first, projector.last)) / len(
            projector.first
        )
        ours, theirs = (matrix @ mapped)[chosen], (matrix @ e_t)[chosen]
        cosine = values.get("graph") == "knn"
        errors.append(1 - functional.cosine_similarity(ours, theirs) if cosine else ((ours - theirs) ** 2).sum(1))
    inputs = [student.user_table, student.item_table, *distiller.parameters()]
    assert_same_loss(distiller(batch)["freqd"], torch.cat(errors).mean(), inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_dropped_edges_change_with_each_step_and_what_a_node_keeps_of_itself_stays(projector: str) -> None:
    values = {"graph": "knn", "neighbours": 3, "projector": projector}
    distiller, student, _ = build(edge_dropout=0.5, **values)
    assert not distiller.shares, "each process would draw other edges"
    losses = {distiller(EVERYTHING)["freqd"].item() for _ in range(5)}
    assert len(losses) > 1
    graph, signal = distiller.graphs[1].smooth, torch.eye(ITEMS, dtype=torch.float64)
    nodes = torch.arange(1, ITEMS)
    matrices = []
    for _ in range(3000):
        read, product = graph.part(nodes, 0.5, distiller.generator)
        matrices.append(product(signal[read]))
    whole = graph(signal, nodes)
    for matrix in matrices[:20]:
        assert torch.equal(matrix.diagonal(1), whole.diagonal(1)), "a node's own part"
        edges = matrix / whole.masked_fill(whole == 0, 1)
        edges[torch.arange(ITEMS - 1), nodes] = 0
        assert set(edges.unique().round(decimals=6).tolist()) == {0.0, 2.0}
    torch.testing.assert_close(torch.stack(matrices).mean(0), whole, rtol=0.1, atol=0.01)


def test_a_batch_twice_over_has_the_same_loss() -> None:
    distiller, _, _ = build()
    batch = batch_of(DATA, 6)
    twice = Batch(batch.users.repeat(2), batch.items.repeat(2))
    torch.testing.assert_close(distiller(twice)["freqd"], distiller(batch)["freqd"])


def test_the_filtered_teacher_stays_out_of_checkpoints() -> None:
    distiller, _, _ = build()
    assert set(distiller.state_dict()) == {"projectors.0.weight", "projectors.0.bias", "_extra_state"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.6}, r"freqd\.alpha=0\.6 is out of range"),
        ({"filter": [1.0, 0.5]}, r"freqd\.filter=\[1\.0, 0\.5\] .* increases near frequency x=2"),
        ({"filter": [0.0, 0.0]}, r"freqd\.filter=\[0\.0, 0\.0\] removes every frequency"),
        ({"filter": []}, r"freqd\.filter=\[\] removes every frequency"),
        ({"filter": ["a"]}, r"freqd\.filter='a' is not a number"),
        ({"graph": "cat"}, r"freqd\.graph='cat' is not one of bipartite, knn"),
        ({"edge_dropout": 0.5}, r"freqd\.edge_dropout=0\.5 needs a neighbour graph and a linear filter"),
        ({"dropout": 0.5}, r"freqd\.dropout=0\.5 is an option of mlps"),
        ({"band_weights": [1]}, r"freqd\.band_weights=\[1\.0\]; expected at least two weights"),
        ({"band_weights": [0, 0]}, r"expected at least two weights, not all 0"),
        ({"band_weights": [0, 1]}, r"freqd\.band_weights=\[0\.0, 1\.0\] increases with the frequency"),
        ({"band_weights": [1, -1]}, r"freqd\.band_weights"),
        ({"band_weights": [1, 0], "filter": [1.0]}, r"both say what is filtered; keep one"),
        ({"relations": True, "projector": "mlp"}, r"freqd\.relations compares cosines, which need no projector"),
        ({"neighbours": 0}, r"freqd\.neighbours=0 is out of range"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FreqDOptions.parse("freqd", values)


def test_the_ablation_of_table_1_may_keep_high_frequencies() -> None:
    assert FreqDOptions.parse("freqd", {"filter": [0.0, 0.5], "monotone": False}).coefficients == (0.0, 0.5)
