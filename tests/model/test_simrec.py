"""SimRec's teacher and student against their formulas, written out densely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import coo_matrix

from recbole_kd.data.loaders import make_loaders
from recbole_kd.data.splits import Splits
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.model.simrec import SimRecTeacher
from recbole_kd.testing import known_answer_settings
from tests.student.test_readers import build


def dense_adjacency(model: Any, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """A + I over users then items, with the padding user and item outside."""
    size = model.n_users + model.n_items
    adjacency = torch.eye(size, dtype=torch.float64)
    adjacency[0, 0] = adjacency[model.n_users, model.n_users] = 0
    for user, item in pairs:
        adjacency[user, model.n_users + item] = adjacency[model.n_users + item, user] = 1
    return adjacency


@pytest.fixture
def teacher(known_answer: Path) -> Any:
    return build("SimRecTeacher", known_answer, n_layers=3, embedding_size=4)


def observed_pairs(known_answer: Path) -> list[tuple[int, int]]:
    splits = Splits(KDConfig("BPR", "known-answer", config_dict=known_answer_settings(known_answer)))
    users, items = splits.pairs(splits.train)
    return list(zip(users.tolist(), items.tolist()))


def test_the_teacher_sums_its_layers_over_a_graph_with_self_loops(teacher: Any, known_answer: Path) -> None:
    adjacency = dense_adjacency(teacher, observed_pairs(known_answer))
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    normalised = scale[:, None] * adjacency * scale[None]
    layer = torch.cat([teacher.user_embedding.weight, teacher.item_embedding.weight]).double()
    total = layer
    for _ in range(3):
        layer = normalised @ layer
        total = total + layer
    users, items = teacher.forward()
    torch.testing.assert_close(torch.cat([users, items])[1:].double(), total[1:], rtol=1e-4, atol=1e-5)
    assert len(teacher.layers()) == 4


class Repeating:
    """A dataset whose users had some items twice."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def inter_matrix(self, form: str) -> Any:
        matrix = self.dataset.inter_matrix(form=form)
        row, column = (np.concatenate([side, side[:7]]) for side in (matrix.row, matrix.col))
        return coo_matrix((np.ones(len(row)), (row, column)), shape=matrix.shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def test_a_repeated_interaction_is_one_edge(known_answer: Path) -> None:
    config = KDConfig("SimRecTeacher", "known-answer", config_dict=known_answer_settings(known_answer))
    train = Splits(config).train
    once, twice = (SimRecTeacher(config, dataset) for dataset in (train, Repeating(train)))
    torch.testing.assert_close(twice.graph.matrix.to_dense(), once.graph.matrix.to_dense(), rtol=0, atol=0)


def test_the_gradient_of_the_propagation_is_that_of_the_dense_product(teacher: Any) -> None:
    weights = torch.randn(teacher.n_users, 4)
    (teacher.forward()[0] * weights).sum().backward()
    dense = teacher.graph.matrix.to_dense().double()
    power, total = torch.eye(len(dense), dtype=torch.float64), torch.eye(len(dense), dtype=torch.float64)
    for _ in range(3):
        power = dense @ power
        total = total + power
    padded = torch.cat([weights, torch.zeros(teacher.n_items, 4)]).double()
    expected = (total.T @ padded)[: teacher.n_users]
    torch.testing.assert_close(teacher.user_embedding.weight.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_teachers_loss_is_bpr_and_the_norm_of_its_tables(teacher: Any) -> None:
    user, positive, negative = torch.tensor([1, 2, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8])
    users, items = teacher.forward()
    expected = 0.0
    for u, i, j in zip(user.tolist(), positive.tolist(), negative.tolist()):
        margin = float((users[u] @ items[i] - users[u] @ items[j]).detach())
        expected += float(-torch.tensor(margin).sigmoid().log()) / 3
    for table in (teacher.user_embedding.weight, teacher.item_embedding.weight):
        expected += teacher.reg_weight * sum(float(row @ row) for row in table.detach())
    batch = Interaction({teacher.USER_ID: user, teacher.ITEM_ID: positive, teacher.NEG_ITEM_ID: negative})
    assert float(teacher.calculate_loss(batch)) == pytest.approx(expected, rel=1e-4)
    doubled = Interaction({key: value.repeat(2) for key, value in batch.interaction.items()})
    assert float(teacher.calculate_loss(doubled)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_student_is_a_residual_mlp_shared_by_users_and_items(depth: int, known_answer: Path) -> None:
    student = build("SimRecStudent", known_answer, n_layers=depth, embedding_size=4)
    for table, found in zip((student.user_embedding, student.item_embedding), student.forward()):
        for row, output in zip(table.weight, found):
            hidden = row
            for layer in student.mlp:
                product = layer.weight @ hidden
                hidden = torch.where(product > 0, product, 0.5 * product) + hidden
            torch.testing.assert_close(output, hidden)
    users, items = student.forward()
    batch = Interaction({student.USER_ID: torch.tensor([1, 2]), student.ITEM_ID: torch.tensor([3, 4])})
    expected = -(users[1] @ items[3] + users[2] @ items[4]) / 2
    torch.testing.assert_close(student.calculate_loss(batch), expected)


def test_a_distiller_whose_weights_are_all_0_bounds_nothing(known_answer: Path) -> None:
    """So negatives are drawn, as without it."""
    names = ("prediction", "embedding", "regularization", "decay")
    off = {f"simrec.{name}_weight": 0.0 for name in names}
    config = KDConfig("SimRecStudent", "known-answer", config_dict=known_answer_settings(known_answer, **off))
    assert config["train_neg_sample_args"]["distribution"] == "uniform"


def test_without_its_distiller_the_student_draws_negatives_and_has_the_bpr_loss(known_answer: Path) -> None:
    given = known_answer_settings(known_answer)
    distilled = KDConfig("SimRecStudent", "known-answer", config_dict=given)
    assert distilled["train_neg_sample_args"]["distribution"] == "none"
    for plain in (
        KDConfig("SimRecStudent", "known-answer", config_dict={**given, "distill": []}),
        KDConfig("SimRecStudent", "known-answer", config_dict={**given, "baseline": "student"}).baseline_config(),
    ):
        train, *_ = make_loaders(plain, Splits(plain))
        batch = next(iter(train))
        student = build("SimRecStudent", known_answer)
        users, items = student.forward()
        positive, negative = batch[student.ITEM_ID], batch[student.NEG_ITEM_ID]
        terms = [
            -torch.log(torch.sigmoid(users[u] @ items[i] - users[u] @ items[j]))
            for u, i, j in zip(batch[student.USER_ID], positive, negative)
        ]
        torch.testing.assert_close(student.calculate_loss(batch), torch.stack(terms).mean())


@pytest.mark.parametrize("name", ["SimRecStudent", "SimRecTeacher"])
def test_evaluation_never_uses_stale_vectors(name: str, known_answer: Path) -> None:
    model = build(name, known_answer)
    users = Interaction({model.USER_ID: torch.tensor([1, 2])})
    with torch.no_grad():
        before = model.eval().full_sort_predict(users)
        assert torch.equal(model.full_sort_predict(users), before)
        model.train()
        model.item_embedding.weight.mul_(2)
        after = model.eval().full_sort_predict(users)
    assert not torch.allclose(before, after)
