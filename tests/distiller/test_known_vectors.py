"""A teacher that has vectors of some users and items, or of items alone, as a file of another system does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from recbole_kd.contracts import Batch, Distiller
from recbole_kd.data.graphs import neighbour_adjacency
from recbole_kd.data.observed import Observed
from recbole_kd.errors import UserError
from recbole_kd.registry import distiller_class
from recbole_kd.stages.needs import check_needs
from tests.distiller.fakes import ALL, FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS = 13, 17
DATA = data_view(USERS, ITEMS)
BATCH = batch_of(DATA, 30, negatives=True)
#: Distillers of vectors, with options whose loss draws nothing at random.
DISTILLERS: dict[str, dict[str, Any]] = {
    "fitnet": {},
    "de": {"experts": 3, "selection": "softmax"},
    "freqd": {},
    "phr": {},
    "ftd": {},
    "htd": {"experts": 1},
    "rkd": {"nodes": 100},
}


class SomeVectors(FakeTeacher):
    """Knows the first users and items; what stands for the others is anything, here NaN."""

    def __init__(self, users: int = 9, items: int = 11, *, poison: float = torch.nan, alone: bool = False) -> None:
        capabilities = {"item_representations", *([] if alone else ["representations", "pair_representations"])}
        super().__init__(USERS, ITEMS, 5, capabilities=frozenset(capabilities))
        self.alone = alone
        self.known_users = (torch.arange(USERS) <= users) & (torch.arange(USERS) > 0)
        self.known_items = (torch.arange(ITEMS) <= items) & (torch.arange(ITEMS) > 0)
        for table, known in zip(self._layers[0], (self.known_users, self.known_items)):
            table[~known] = poison

    def user_embeddings(self) -> torch.Tensor:
        assert not self.alone, "there are no users"
        return super().user_embeddings()


def build(name: str, teacher: FakeTeacher, student: FakeStudent | None = None, **options: Any) -> Distiller:
    kind = distiller_class(name)
    parsed = kind.options_class.parse(name, {**DISTILLERS[name], **options})
    student = student or FakeStudent(USERS, ITEMS, 3)
    built = kind(parsed, student, teacher, DATA)
    built.begin_epoch(0)
    return built


def losses_and_gradients(built: Distiller, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    losses = built(batch)
    tables = built.student.tables()
    users, items = torch.autograd.grad(torch.stack(list(losses.values())).sum(), tables, allow_unused=True)
    return losses, *(torch.zeros_like(t) if g is None else g for t, g in zip(tables, (users, items)))


@pytest.mark.parametrize("name", DISTILLERS)
def test_what_has_no_vector_is_in_no_mean(name: str) -> None:
    """The loss is that of the batch's nodes which are known, whatever stands for the others."""
    losses, users, items = losses_and_gradients(build(name, SomeVectors()), BATCH)
    for loss in losses.values():
        assert torch.isfinite(loss)
    assert items[1:].any()
    if name != "freqd":  # a filter reads a node's neighbours, which are known too
        assert not users[10:].any()
        assert not items[12:].any()
    inside = BATCH.users <= 9, BATCH.items <= 11
    both = inside[0] & inside[1]
    assert 0 < both.sum() < len(both)
    # A batch of the same known nodes: each side's ids stand in for those that are not known.
    users_there, items_there = BATCH.users[inside[0]], torch.cat([BATCH.items, BATCH.negatives])
    items_there = items_there[items_there <= 11]
    size = max(len(users_there), len(items_there))
    known = Batch(*(torch.cat([ids, ids[:1].expand(size - len(ids))]) for ids in (users_there, items_there)))
    again = losses_and_gradients(build(name, SomeVectors(poison=7.0)), known)
    for name_of, loss in losses.items():
        torch.testing.assert_close(again[0][name_of], loss)
    torch.testing.assert_close(again[1:], (users, items))


@pytest.mark.parametrize("name", DISTILLERS)
def test_items_alone_teach_items(name: str) -> None:
    student = FakeStudent(USERS, ITEMS, 3)
    distiller = build(name, SomeVectors(alone=True), student)
    losses, users, items = losses_and_gradients(distiller, BATCH)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not users.any()
    assert items[1:12].any()
    names = {part for key in distiller.state_dict() for part in key.split(".")}
    assert not names & {"users", "user_projector"}, "no projector for nothing"


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_batch_of_unknown_ids_has_no_loss(name: str) -> None:
    batch = Batch(torch.tensor([11, 12]), torch.tensor([14, 15]), torch.tensor([15, 16]))
    distiller = build(name, SomeVectors())
    if not distiller(batch):
        return
    losses, users, items = losses_and_gradients(distiller, batch)
    assert all(float(loss) == 0 for loss in losses.values())
    assert not users.any()
    assert not items.any()


def test_experts_are_noted_of_items_where_there_are_no_users() -> None:
    distiller: Any = build("de", SomeVectors(alone=True, items=16, poison=0.0))
    assert distiller.item_history.choices.shape[0] == 1
    assert distiller.user_history.choices.shape[0] == 0


def test_freqd_filters_among_the_known() -> None:
    """H E_t of a graph without the unknown; and of items alone the items' neighbour graph."""
    teacher = SomeVectors()
    among: Any = build("freqd", teacher)
    kept = DATA.observed.contains(*torch.meshgrid(torch.arange(USERS), torch.arange(ITEMS), indexing="ij"))
    kept[10:] = False
    kept[:, 12:] = False
    dense = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    dense[:USERS, USERS:] = kept.double()
    dense = dense + dense.t()
    scale = dense.sum(1).clamp(min=1e-300).rsqrt().where(dense.sum(1) > 0, 0)
    vectors = torch.cat([teacher.user_embeddings(), teacher.item_embeddings()]).nan_to_num()
    filtered = 0.6 * vectors + 0.4 * (scale[:, None] * dense * scale) @ vectors
    known = torch.cat([teacher.known_users, teacher.known_items])
    torch.testing.assert_close(among.graphs[0].targets[known], filtered[known])

    alone: Any = build("freqd", SomeVectors(alone=True))
    items = Observed(DATA.observed.indices, DATA.observed.user_ids, ITEMS, USERS).among(teacher.known_items, None)
    expected = neighbour_adjacency(items, 5).to_dense().double() @ teacher.item_embeddings().nan_to_num()
    found = alone.graphs[0].targets[teacher.known_items]
    (graph,) = alone.graphs
    assert graph.targets.shape == (ITEMS, 5)
    items_known = teacher.item_embeddings().nan_to_num()
    torch.testing.assert_close(found, (0.6 * items_known + 0.4 * expected)[teacher.known_items])


@pytest.mark.parametrize("name", ["fitnet", "de"])
def test_pairs_need_both(name: str) -> None:
    """NeuMF has vectors of pairs alone: what the teacher does not know of a pair is left out, and items are not enough."""
    together = FakeStudent(USERS, ITEMS, 3, capabilities=ALL - {"representations", "tables", "layers"})
    losses, users, items = losses_and_gradients(build(name, SomeVectors(), together), BATCH)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not users[10:].any()
    assert not items[12:].any()
    with pytest.raises(
        UserError,
        match="FakeStudent has vectors of pairs of a user and an item, but FakeTeacher has only vectors of items",
    ):
        build(name, SomeVectors(alone=True), together)


@dataclasses.dataclass
class Named:
    """A model as :func:`check_needs` looks at one."""

    name: str
    model: Any
    capabilities: frozenset[str]


def test_a_distiller_of_users_says_what_the_file_lacks() -> None:
    options = distiller_class("simrec").options_class.parse("simrec", {"prediction_weight": 0})
    student, teacher = Named("BPR", None, ALL), Named("the file x.csv", None, frozenset({"item_representations"}))
    with pytest.raises(
        UserError,
        match=r"simrec reads a vector for each user and each item of the teacher; the file x.csv has only vectors of items. Use a distiller that does not .*, htd, .* or a file with vectors of users too.",
    ):
        check_needs("simrec", options, student, teacher)  # type: ignore[arg-type]
    for name in DISTILLERS:
        check_needs(name, distiller_class(name).options_class(), student, teacher)  # type: ignore[arg-type]
