"""DE and FitNet where a model encodes a user and an item together: the entries are the batch's distinct pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch, Distiller
from recbole_kd.distiller.de import DEDistiller, DEOptions
from recbole_kd.distiller.fitnet import FitNetDistiller, FitNetOptions
from recbole_kd.student.matryoshka import PrefixStudent
from recbole_kd.student.readers import ModelStudent
from recbole_kd.teacher.ensemble import TeacherEnsemble
from recbole_kd.testing import Bench
from tests.distiller.fakes import ALL, FakeStudent, FakeTeacher, assert_same_loss, batch_of, data_view

USERS, ITEMS = 9, 12
DATA = data_view(USERS, ITEMS)
TOGETHER = ALL - {"representations", "tables", "layers"}


def pairs_of(batch: Batch) -> list[tuple[int, int]]:
    """The distinct pairs of a batch, positive and negative, ascending."""
    assert batch.negatives is not None
    blocks = batch.negatives.view(-1, len(batch.users))
    negatives = [pair for block in blocks for pair in zip(batch.users.tolist(), block.tolist())]
    return sorted({*zip(batch.users.tolist(), batch.items.tolist()), *negatives})


def build(kind: Any, options: Any, of_student: bool) -> tuple[Any, FakeStudent, FakeTeacher]:
    """The distiller where the student, or the teacher, has vectors of pairs alone."""
    student = FakeStudent(USERS, ITEMS, 3, poisoned=True, **({"capabilities": TOGETHER} if of_student else {}))
    teacher = FakeTeacher(USERS, ITEMS, 5, poisoned=True, **({} if of_student else {"capabilities": TOGETHER}))
    return kind(options, student, teacher, DATA), student, teacher


def products(view: Any, pair: tuple[int, int]) -> Tensor:
    user, item = pair
    return view.user_embeddings()[user] * view.item_embeddings()[item]


@pytest.mark.parametrize("of_student", [True, False])
def test_fitnet_is_the_mean_over_distinct_pairs(of_student: bool) -> None:
    distiller, student, teacher = build(FitNetDistiller, FitNetOptions(weight=0.5), of_student)
    batch = batch_of(DATA, 20, negatives=True)
    errors = [
        ((distiller.pair_projector(products(student, pair)) - products(teacher, pair)) ** 2).sum()
        for pair in pairs_of(batch)
    ]
    assert len(errors) < 40, "some pair is there twice"
    expected = 0.5 * torch.stack(errors).mean()
    found = distiller(batch)["fitnet"]
    tables = [student.user_table, student.item_table]
    assert_same_loss(found, expected, tables)


def test_de_selects_experts_by_the_teachers_vector_of_the_pair() -> None:
    options = DEOptions(weight=0.5, experts=3, selection="softmax")
    distiller, student, teacher = build(DEDistiller, options, True)
    batch = batch_of(DATA, 20, negatives=True)
    experts, errors = distiller.of_pairs.experts, []
    for pair in pairs_of(batch):
        target, x = products(teacher, pair), products(student, pair)
        alpha = torch.softmax(distiller.of_pairs.selection.network(target), 0)
        made = torch.zeros_like(target)
        for index in range(3):
            hidden = torch.relu(x @ experts.first[index] + experts.first_bias[index])
            made = made + alpha[index] * (hidden @ experts.second[index] + experts.second_bias[index])
        errors.append(((target - made) ** 2).sum())
    torch.testing.assert_close(distiller(batch)["de"], 0.5 * torch.stack(errors).mean())


@pytest.mark.parametrize("kind", [DEDistiller, FitNetDistiller])
@pytest.mark.parametrize("names", [("NeuMF", "NeuMF"), ("NeuMF", "BPR"), ("BPR", "NeuMF")])
def test_users_and_items_apart_on_request(kind: type[Distiller], names: tuple[str, str], known_answer: Path) -> None:
    bench = Bench(known_answer, *names)
    view = ModelStudent(bench.model)
    made: Any = kind(kind.options_class(pairs=False), view, bench.teacher, bench.data)
    assert made.entries.kinds == ("user", "item")
    for side, of_student in zip(made.entries.sides(bench.batch()), view.side_vectors()):
        torch.testing.assert_close(side.student, of_student[side.nodes])
    assert made.entries.sides(bench.batch())[0].teacher is bench.teacher.side_vectors()[0]


@pytest.mark.parametrize("kind", [DEDistiller, FitNetDistiller])
def test_users_and_items_apart_of_several_teachers_are_those_of_all(
    kind: type[Distiller], known_answer: Path, tmp_path: Path
) -> None:
    """NeuMF's towers beside BPR's vectors: none is left out, also where the student has vectors of its own."""
    bench = Bench(known_answer, "BPR", "BPR")
    members = [bench.teacher, Bench(known_answer, "BPR", "NeuMF").teacher]
    both = TeacherEnsemble(members, bench.data.observed, torch.device("cpu"), [1, 1], "ranks", str(tmp_path))
    made: Any = kind(kind.options_class(pairs=False), ModelStudent(bench.model), both, bench.data)
    users = made.entries.sides(bench.batch())[0]
    expected = torch.cat([member.side_vectors()[0][users.nodes] for member in members], dim=1)
    assert torch.equal(users.targets(), expected)
    assert users.teacher is made.entries.sides(bench.batch())[0].teacher, "concatenated once"


def test_a_prefix_of_a_student_has_that_prefix_of_its_vectors(known_answer: Path) -> None:
    bench = Bench(known_answer, "BPR", "NeuMF")
    users, items = PrefixStudent(bench.student, 3).side_vectors()
    assert torch.equal(users, bench.model.user_embedding.weight[:, :3])
    assert torch.equal(items, bench.model.item_embedding.weight[:, :3])


def test_neumfs_users_and_items_are_the_embeddings_of_the_towers_in_use(known_answer: Path) -> None:
    model: Any = Bench(known_answer, "NeuMF", "BPR").model
    factors, hidden = model.user_mf_embedding.weight[3], model.user_mlp_embedding.weight[3]
    of_item = torch.cat([model.item_mf_embedding.weight[5], model.item_mlp_embedding.weight[5]])
    for used, expected in (("mf", "mlp"), torch.cat([factors, hidden])), (("mf",), factors), (("mlp",), hidden):
        model.mf_train, model.mlp_train = "mf" in used, "mlp" in used
        users, items = ModelStudent(model).side_vectors()
        assert torch.equal(users[3], expected)
        assert users.requires_grad
        assert torch.equal(items[5], of_item if len(used) == 2 else items[5])


def test_several_negatives_belong_to_their_users_block_by_block() -> None:
    users, items, negatives = torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5, 6, 7, 8])
    found = Batch(users, items, negatives).distinct_pairs
    assert list(zip(*(part.tolist() for part in found))) == [(1, 3), (1, 5), (1, 7), (2, 4), (2, 6), (2, 8)]


def test_negatives_may_bring_their_own_users() -> None:
    """Rows of a dataset with labels: those labelled 0 are negatives, and no pair of an observed row's user."""
    batch = Batch(torch.tensor([1, 3]), torch.tensor([11, 13]), torch.tensor([12, 14]), None, torch.tensor([2, 4]))
    assert list(zip(*(part.tolist() for part in batch.distinct_pairs))) == [(1, 11), (2, 12), (3, 13), (4, 14)]
    assert batch.distinct_users.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [DEDistiller, FitNetDistiller])
def test_two_models_with_vectors_of_users_and_items_are_compared_by_those(kind: type[Distiller]) -> None:
    made: Any = kind(kind.options_class(), FakeStudent(USERS, ITEMS, 3), FakeTeacher(USERS, ITEMS, 5), DATA)
    assert made.entries.kinds == ("user", "item")


@pytest.mark.parametrize("name", ["NeuMF", "NNCF", "ConvNCF", "BPR", "SimpleX"])
def test_a_score_is_a_linear_map_of_the_pairs_vector(name: str, known_answer: Path) -> None:
    model: Any = Bench(known_answer, name, "BPR", size=64).model.eval()
    view = ModelStudent(model)
    users, items = torch.tensor([3, 3, 9, 48]), torch.tensor([1, 7, 7, 40])
    vectors = view.pair_representations(users, items)
    assert vectors.requires_grad
    last = {"NeuMF": "predict_layer", "NNCF": "out_layer", "ConvNCF": "predict_layers"}.get(name)
    scores = vectors.sum(1) if last is None else getattr(model, last)(vectors).squeeze(1)
    torch.testing.assert_close(scores, view.scores(users, items))


def test_neumfs_vector_is_its_last_hidden_layer(known_answer: Path) -> None:
    bench = Bench(known_answer, "NeuMF", "NeuMF")
    model: Any = bench.teacher.model
    user, item = torch.tensor([5]), torch.tensor([6])
    factors = model.user_mf_embedding(user) * model.item_mf_embedding(item)
    hidden = model.mlp_layers(torch.cat([model.user_mlp_embedding(user), model.item_mlp_embedding(item)], 1))
    found = bench.teacher.pair_representations(user, item)
    torch.testing.assert_close(found, torch.cat([factors, hidden], 1))
    assert not found.requires_grad
