"""SimRec's terms against the paper's formulas: full logits, loops and autograd in float64."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_kd.contracts import Batch
from recbole_kd.distiller.simrec import SimRecDistiller, SimRecOptions
from recbole_kd.errors import UserError
from tests.distiller.fakes import ALL, FakeStudent, FakeTeacher, batch_of, data_view

USERS, ITEMS, DIMENSION = 9, 12, 4
OPTIONS: dict[str, Any] = {
    "prediction_weight": 0.7,
    "embedding_weight": 0.3,
    "regularization_weight": 0.9,
    "decay_weight": 0.01,
    "prediction_temperature": 0.8,
    "embedding_temperature": 0.5,
    "regularization_temperature": 2.0,
    "triplets": 40,
}
ONLY = {f"{term}_weight": 0.0 for term in ("prediction", "embedding", "regularization", "decay")}


def options(**values: Any) -> SimRecOptions:
    return SimRecOptions.parse("simrec", {**OPTIONS, **values})


class Layer(nn.Module):
    """FC(x) = LeakyReLU(W x) + x, one layer of SimRec's student."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.weight = nn.Parameter(torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return functional.leaky_relu(x @ self.weight.t(), 0.5) + x


def built(chosen: SimRecOptions, *, poisoned: bool = False, layers: int = 4, **teacher: Any) -> SimRecDistiller:
    return SimRecDistiller(
        chosen,
        FakeStudent(USERS, ITEMS, DIMENSION, network=Layer(), poisoned=poisoned),
        FakeTeacher(USERS, ITEMS, DIMENSION, layers=layers, poisoned=poisoned, **teacher),
        data_view(USERS, ITEMS),
    )


def batch() -> Batch:
    return batch_of(data_view(USERS, ITEMS), 8, negatives=True)


# The reference: the paper's formulas with ids as they are, padding skipped by hand, every gradient by autograd.


def slow_losses(distiller: SimRecDistiller, batch: Batch) -> dict[str, Tensor]:
    """Every term of eq. 7-12 as a differentiable scalar, with nothing shared between them."""
    chosen, student = distiller.options, distiller.student
    users, items = student.user_embeddings(), student.item_embeddings()
    tables = student.tables()
    compared = tables if chosen.space == "input" else (users, items)
    distinct_users, distinct_items = sorted(set(batch.users.tolist())), sorted(set(batch.items.tolist()))

    prediction = chosen.prediction_weight * slow_prediction(distiller, users, items)
    embedding = chosen.embedding_weight * slow_embedding(distiller, compared, distinct_users, distinct_items)
    recommendation = -torch.stack([users[u] @ items[i] for u, i in zip(batch.users, batch.items)]).mean()

    def weight_of(side: int, node: int) -> float:
        if not chosen.adaptive:
            return 1.0
        of = compared[side]
        vectors = []
        weights = chosen.prediction_weight, chosen.embedding_weight, 1.0
        for loss, divisor in zip((prediction, embedding, recommendation), weights):
            gradient: Optional[Tensor] = None
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
                if gradient is not None and chosen.gradient_weighting == "unweighted":
                    gradient = gradient / (divisor or 1)
            vector = torch.zeros(DIMENSION, dtype=torch.float64) if gradient is None else gradient[node]
            vectors.append(vector)
        g1, g2, g_rec = vectors
        agree = similarity(g1 + g2, g_rec) > similarity(g1, g2)
        return 1 - chosen.epsilon if agree else 1 + chosen.epsilon

    def similarity(a: Tensor, b: Tensor) -> float:
        lengths = a.norm() * b.norm() if chosen.gradient_similarity == "cosine" else torch.ones(())
        return float(a @ b / lengths) if lengths else 0.0

    def spread(node: Tensor, everything: Tensor) -> Tensor:
        return torch.log(torch.exp(everything[1:] @ node / chosen.regularization_temperature).sum())

    pairs = "all" if "all" in chosen.regularization_pairs else chosen.regularization_pairs
    regularization = torch.zeros((), dtype=torch.float64)
    for u in distinct_users:
        weight = weight_of(0, u) / len(distinct_users)
        if pairs == "all" or "uu" in pairs:
            regularization = regularization + weight * spread(users[u], users)
        if pairs == "all" or "ui" in pairs:
            regularization = regularization + weight * spread(users[u], items)
    for i in distinct_items:
        if pairs == "all" or "ii" in pairs:
            regularization = regularization + weight_of(1, i) / len(distinct_items) * spread(items[i], items)
    return {
        "prediction": prediction,
        "embedding": embedding,
        "regularization": chosen.regularization_weight * regularization,
        "decay": chosen.decay_weight * sum(table[1:].norm() ** 2 for table in tables),
    }


def slow_prediction(distiller: SimRecDistiller, users: Tensor, items: Tensor) -> Tensor:
    """Eq. 7 over the triplets that the distiller's generator would draw next."""
    generator = torch.Generator()
    generator.set_state(distiller.generator.get_state())
    count, tau = distiller.options.triplets, distiller.options.prediction_temperature
    u, j, k = (torch.randint(high - 1, (count,), generator=generator) + 1 for high in (USERS, ITEMS, ITEMS))
    z_s = (users[u] * (items[j] - items[k])).sum(1)
    z_t = distiller.teacher.scores(u, j) - distiller.teacher.scores(u, k)
    student, target = torch.sigmoid(z_s / tau), torch.sigmoid(z_t / tau)
    return -(target * torch.log(student) + (1 - target) * torch.log(1 - student)).mean()


def slow_embedding(
    distiller: SimRecDistiller, compared: tuple[Tensor, Tensor], users: list[int], items: list[int]
) -> Tensor:
    """Eq. 8, one node at a time."""
    chosen = distiller.options
    layers = distiller.teacher.layers()
    total = torch.zeros((), dtype=torch.float64)
    for side, (name, nodes) in enumerate((("user", users), ("item", items))):
        if chosen.embedding_side not in ("both", name):
            continue
        anchors = sum(layer[side] for layer in layers[chosen.high_order :])
        for node in nodes:
            cosines = functional.cosine_similarity(anchors[node], compared[side][1:], dim=1)
            terms = torch.exp(cosines / chosen.embedding_temperature)
            total = total - torch.log(terms[node - 1] / terms.sum()) / len(nodes)
    return total


def parameters_of(distiller: SimRecDistiller) -> list[Tensor]:
    assert isinstance(distiller.student, FakeStudent)
    return list(distiller.student.parameters())


def gradients_of(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if gradient is None else gradient for gradient, p in zip(found, parameters)]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"space": "input"},
        {"gradient_similarity": "cosine"},
        {"space": "input", "gradient_similarity": "cosine", "epsilon": 0.5},
        {"adaptive": False},
        {"embedding_side": "user"},
        {"embedding_side": "item", "space": "input"},
        {"gradient_weighting": "unweighted"},
        {"gradient_weighting": "unweighted", "gradient_similarity": "cosine", "space": "input"},
        {"gradient_weighting": "unweighted", "prediction_weight": 0.0},
        {"regularization_pairs": ["ui", "uu"]},
        {"regularization_pairs": ["ii", "ui"]},
        {"regularization_pairs": "all"},
        {"regularization_pairs": "ui"},
        {"regularization_pairs": "uu"},
        {"regularization_pairs": "ii"},
        {"high_order": 0},
        {"prediction_weight": 0.0},
        {"embedding_weight": 0.0},
        {"prediction_weight": 0.0, "embedding_weight": 0.0, "space": "input"},
    ],
    ids=lambda values: ",".join(f"{name}={value}" for name, value in values.items()) or "defaults",
)
def test_every_term_and_its_gradients_equal_the_papers_formula(values):
    distiller = built(options(**values))
    parameters = parameters_of(distiller)
    expected = slow_losses(distiller, batch())
    got = distiller(batch())
    assert set(got) == {name for name in expected if getattr(distiller.options, f"{name}_weight")}
    for name, loss in got.items():
        torch.testing.assert_close(loss, expected[name], msg=lambda text, name=name: f"{name}: {text}")
        for found, wanted in zip(gradients_of(loss, parameters), gradients_of(expected[name], parameters)):
            torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"gradient of {name}: {text}")


def test_the_adaptive_weights_differ_between_nodes_here():
    """So that the comparison above does compare them: neither all are 1 - epsilon nor all 1 + epsilon."""
    constant = built(options(adaptive=False))(batch())["regularization"].item()
    for space in ("output", "input"):
        ratio = built(options(space=space))(batch())["regularization"].item() / constant
        assert 0.81 < ratio < 1.19


def test_weights_of_the_terms_count_in_eq_10_or_not():
    """With a large lambda1 the two readings of eq. 10 give nodes different weights."""
    weighted, unweighted = (
        built(options(gradient_weighting=reading, prediction_weight=300.0))(batch())["regularization"].item()
        for reading in ("weighted", "unweighted")
    )
    assert weighted != pytest.approx(unweighted)


def test_pairs_are_a_set_of_known_names():
    assert set(SimRecOptions().regularization_pairs) == {"ui", "uu", "ii"}
    for wrong in ("iu", [], ["ui", "x"]):
        with pytest.raises(UserError, match=r"regularization_pairs"):
            options(regularization_pairs=wrong)


@pytest.mark.parametrize("space", ["output", "input"])
def test_duplicating_a_batch_changes_nothing(space):
    once = batch()
    twice = Batch(torch.cat([once.users, once.users]), torch.cat([once.items, once.items]))
    first, second = (built(options(space=space))(each) for each in (once, twice))
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("space", ["output", "input"])
def test_padding_is_in_nothing(space):
    """Row 0 of every table is NaN here: one look at it would show in a loss or a gradient."""
    distiller = built(options(space=space), poisoned=True)
    losses = distiller(batch())
    assert all(loss.isfinite() for loss in losses.values())
    student = distiller.student
    sum(losses.values()).backward()
    for table in (student.user_table, student.item_table):
        assert table.grad[1:].isfinite().all()
        assert table.grad[1:].abs().sum() > 0


def test_the_student_runs_once_forward_and_once_backward():
    distiller = built(options())
    layer = distiller.student.network
    passes = []
    losses = distiller(batch())
    layer.weight.register_hook(passes.append)
    sum(losses.values()).backward()
    assert layer.calls == 2  # users, items
    assert len(passes) == 1


def test_each_call_draws_other_triplets_and_a_restored_generator_the_same():
    distiller = built(options())
    state = distiller.get_extra_state()
    first = distiller(batch())["prediction"].item()
    assert distiller(batch())["prediction"].item() != first
    distiller.set_extra_state(state)
    assert distiller(batch())["prediction"].item() == first


def test_a_sampled_catalogue_gives_the_losses_in_the_mean_and_a_whole_one_to_the_bit():
    terms = ("embedding", "regularization")
    exact, whole, sampled = (built(options(prediction_weight=0.0, catalogue=count)) for count in (None, 1000, 4))
    for term in terms:
        assert torch.equal(exact(batch())[term], whole(batch())[term]), "more than there are: all of them"
        values = torch.stack([sampled(batch())[term] for _ in range(300)])
        assert values.std() > 0, "drawn anew for each batch"
        # The logarithm of an estimate lies below that of its mean, by some tenths with 4 draws.
        torch.testing.assert_close(values.mean(), exact(batch())[term], rtol=0.2, atol=0.01)
    gradients = gradients_of(sampled(batch())["regularization"], parameters_of(sampled))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_scores_of_several_teachers_are_not_products_of_their_vectors():
    """A teacher ensemble scores by the mean of standardised scores; its vectors, side by side, have other products."""

    class Reversed(FakeTeacher):
        def scores(self, users: Tensor, items: Tensor) -> Tensor:
            return -super().scores(users, items)

    parts = options(embedding_weight=0.0), FakeStudent(USERS, ITEMS, DIMENSION), data_view(USERS, ITEMS)
    teacher = Reversed(USERS, ITEMS, DIMENSION)
    rows = torch.tensor([0, 5]), torch.tensor([1, 2]), torch.tensor([7, 8])
    found = SimRecDistiller(parts[0], parts[1], teacher, parts[2])._teacher_difference(*rows)
    vectors = teacher.item_embeddings()[rows[1] + 1] - teacher.item_embeddings()[rows[2] + 1]
    torch.testing.assert_close(found, -(teacher.user_embeddings()[rows[0] + 1] * vectors).sum(1))


def test_nodes_without_a_teachers_vector_are_in_no_mean():
    """A file knows some users and items: the term is the mean over the batch's other nodes, and 0 without any."""

    def embedding(known_users: int, known_items: int, batch: Batch) -> Tensor:
        distiller = built(options(**{**ONLY, "embedding_weight": 0.3}), layers=1)
        distiller.teacher.known_users = torch.arange(USERS) <= known_users
        distiller.teacher.known_items = torch.arange(ITEMS) <= known_items
        return distiller(batch)["embedding"]

    users, items = torch.tensor([1, 2, 7, 8]), torch.tensor([1, 3, 9, 11])
    known = Batch(users[:2], items[:2])
    torch.testing.assert_close(embedding(5, 6, Batch(users, items)), embedding(USERS, ITEMS, known))
    assert embedding(5, 6, Batch(users[2:], items[2:])) == 0


def test_a_teacher_with_scores_alone_is_enough_without_the_embedding_term():
    chosen = options(embedding_weight=0.0)
    assert chosen.needs.teacher == {"scores"}
    alone = built(chosen, capabilities=frozenset({"scores"}))(batch())
    with_vectors = built(chosen)(batch())
    torch.testing.assert_close(alone["prediction"], with_vectors["prediction"])


@pytest.mark.parametrize(
    ("layers", "capabilities", "anchors"),
    [
        (4, ALL, lambda teacher: teacher.layers()[2][0] + teacher.layers()[3][0]),
        (2, ALL, lambda teacher: teacher.layers()[1][0]),
        (4, ALL - {"layers"}, lambda teacher: teacher.user_embeddings()),
    ],
    ids=["from layer 2 on", "the last where there are fewer", "final embeddings where there are no layers"],
)
def test_anchors_are_the_teachers_high_order_sum(layers, capabilities, anchors):
    distiller = built(options(), layers=layers, capabilities=capabilities)
    expected = functional.normalize(anchors(distiller.teacher)[1:])
    torch.testing.assert_close(distiller.user_anchors, expected)


def test_anchors_stay_out_of_the_checkpoint():
    assert set(built(options()).state_dict()) == {"_extra_state"}


def test_a_teacher_of_another_size_is_refused_with_both_sizes_and_the_setting():
    student, teacher = FakeStudent(USERS, ITEMS, DIMENSION), FakeTeacher(USERS, ITEMS, 7)
    data = data_view(USERS, ITEMS)
    with pytest.raises(
        UserError, match=r"7 dimensions.*\(4\).*--teacher.embedding_size=4 or --simrec.embedding_weight=0"
    ):
        SimRecDistiller(options(), student, teacher, data)
    losses = SimRecDistiller(options(embedding_weight=0.0), student, teacher, data)(batch())
    assert set(losses) == {"prediction", "regularization", "decay"}


def test_before_the_mlp_it_is_the_tables_that_must_fit_the_teacher():
    widened = nn.Linear(DIMENSION, 7, bias=False)
    student = FakeStudent(USERS, ITEMS, DIMENSION, network=widened)
    student.dimension = 7
    data = data_view(USERS, ITEMS)
    losses = SimRecDistiller(options(space="input"), student, FakeTeacher(USERS, ITEMS, DIMENSION), data)(batch())
    assert all(loss.isfinite() for loss in losses.values())
    with pytest.raises(UserError, match=r"\(4\)"):
        SimRecDistiller(options(space="input"), student, FakeTeacher(USERS, ITEMS, 7), data)


def test_needs_follow_the_terms_that_are_on():
    assert options().needs.student == {"representations", "tables"}
    assert options(decay_weight=0.0).needs.student == {"representations"}
    assert options(decay_weight=0.0, space="input").needs.student == {"representations", "tables"}
    assert options().needs.teacher == {"scores", "representations"}
    assert options(prediction_weight=0.0, embedding_weight=0.0).needs.teacher == frozenset()


@pytest.mark.parametrize("term", list(ONLY))
def test_it_is_off_when_every_weight_is_0(term):
    assert options(**ONLY).is_off
    assert not options(**{**ONLY, term: 1.0}).is_off


def test_published_defaults():
    chosen = SimRecOptions()
    assert dataclasses.astuple(chosen)[:9] == (0.1, 0.01, 1.0, 1e-7, 0.03, 0.1, 1.0, 100_000, 0.2)


def test_bf16_losses_stay_near_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        distiller = SimRecDistiller(
            options(precision=precision),
            FakeStudent(200, 300, 32, dtype=torch.float32),
            FakeTeacher(200, 300, 32, layers=3, dtype=torch.float32),
            data_view(200, 300),
        )
        losses.append(distiller(batch_of(data_view(200, 300), 64)))
    for name, exact in losses[0].items():
        torch.testing.assert_close(losses[1][name], exact, rtol=5e-3, atol=0)


def test_distilling_brings_the_students_scores_to_the_teachers():
    torch.manual_seed(0)
    distiller = built(options(prediction_weight=1.0, regularization_weight=0.01))
    optimizer = torch.optim.Adam(parameters_of(distiller), lr=0.05)
    first = None
    for _ in range(100):
        losses = distiller(batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        first = first or losses
    assert losses["prediction"] < 0.5 * first["prediction"]
    assert losses["embedding"] < 0.5 * first["embedding"]
