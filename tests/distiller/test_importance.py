"""How much each item of the teacher's list counts: confidence of a file, decay by rank, agreement with the student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Distiller
from recbole_kd.distiller import cd
from recbole_kd.distiller.base import lists
from recbole_kd.distiller.base.lists import importance, student_ranking
from recbole_kd.distiller.kd import KDOptions
from recbole_kd.loss.ranking import soft_target_loss
from recbole_kd.registry import distiller_class
from recbole_kd.testing import write_known_sequences
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view
from tests.sequential import SequentialBench

USERS, ITEMS, K = 12, 40, 10
DATA = data_view(USERS, ITEMS)
BATCH = batch_of(DATA, 40)
SIZES: dict[str, dict[str, Any]] = {
    "cd": {"pool": K, "samples": 5},
    "rrd": {"pool": K, "interesting": 5, "uninteresting": 5},
    "kd": {"items": K},
}


class Sure(FakeTeacher):
    """Says how sure it is of each listed item."""

    def __init__(self, weights: Optional[Tensor]) -> None:
        super().__init__(USERS, ITEMS, 6, observed=DATA.observed)
        self.weights = weights

    def listed_weights(self, k: int) -> Optional[Tensor]:
        return None if self.weights is None else self.weights[:, :k]


def build(name: str, weights: Optional[Tensor], student: FakeStudent, **options: Any) -> Distiller:
    kind = distiller_class(name)
    built = kind(kind.options_class.parse(name, {**SIZES[name], **options}), student, Sure(weights), DATA)
    built.begin_epoch(0)
    return built


def test_the_factors_are_multiplied_and_their_mean_is_1() -> None:
    student, teacher = FakeStudent(USERS, ITEMS, 4), FakeTeacher(USERS, ITEMS, 6, observed=DATA.observed)
    ranked = teacher.ranked_items(K)
    ranked[3, 4:] = 0
    confidence = torch.rand(USERS, K, generator=torch.Generator().manual_seed(0))
    options = KDOptions(items=K, decay=3.0, consistency=2.5)
    found = importance(options, ranked, confidence, lambda: student_ranking(student, DATA, K))
    assert found is not None
    own = student_ranking(student, DATA, K).tolist()
    expected, both = torch.zeros(USERS, K), 0
    for user in range(1, USERS):
        for place, item in enumerate(ranked[user].tolist()):
            if item:
                both += item in own[user]
                factor = 2.5 if item in own[user] else 1.0
                expected[user, place] = confidence[user, place] * math.exp(-(place + 1) / 3.0) * factor
    assert 0 < both < (USERS - 1) * K
    torch.testing.assert_close(found, expected / expected.sum() * (ranked > 0).sum())
    assert importance(KDOptions(items=K), ranked, None, lambda: ranked) is None


@pytest.mark.parametrize("name", SIZES)
def test_equal_weights_change_nothing_and_those_of_0_leave_items_out(name: str) -> None:
    student = FakeStudent(USERS, ITEMS, 4)
    plain = build(name, None, student)(BATCH)[name]
    torch.testing.assert_close(build(name, torch.full((USERS, K), 0.3), student)(BATCH)[name], plain)
    doubtful = torch.arange(USERS) % 2 == 0
    weights = (~doubtful).float()[:, None].expand(-1, K)
    (gradient,) = torch.autograd.grad(build(name, weights, student)(BATCH)[name], student.user_table)
    assert gradient[~doubtful].any()
    assert not gradient[doubtful].any()
    assert build(name, torch.zeros(USERS, K), student)(BATCH)[name] == 0


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("options", [{"decay": 2.0}, {"consistency": 3.0}])
def test_each_option_changes_the_loss_alone(name: str, options: dict[str, float]) -> None:
    """The items that are drawn stay the same ones."""
    student = FakeStudent(USERS, ITEMS, 4)
    plain, weighted = build(name, None, student), build(name, None, student, **options)
    assert torch.equal(plain.get_extra_state(), weighted.get_extra_state())
    assert not torch.isclose(plain(BATCH)[name], weighted(BATCH)[name])


def test_agreement_is_found_anew_each_epoch() -> None:
    student = FakeStudent(USERS, ITEMS, 4)
    distiller = build("rrd", None, student, consistency=5.0, sampling="top", uninteresting=0)
    before = distiller(BATCH)["rrd"]
    scores = student.scores
    student.scores = lambda users, items: -scores(users, items)  # type: ignore[method-assign]
    distiller.begin_epoch(1)
    student.scores = scores  # type: ignore[method-assign]
    assert not torch.isclose(before, distiller(BATCH)["rrd"])


def test_the_weights_are_those_of_the_drawn_items() -> None:
    """CD draws some of the list, so its weights are not the first ones."""
    student = FakeStudent(USERS, ITEMS, 4)
    one: Any = build("cd", None, student, decay=2.0)
    ranked = one.teacher.ranked_items(K)
    counts = importance(one.options, ranked, None, lambda: ranked)
    assert counts is not None
    users = BATCH.distinct_users
    items = one._items[users].long()
    places = (ranked[users].long().unsqueeze(1) == items.unsqueeze(2)).int().argmax(2)
    expected = soft_target_loss(
        student.scores(users, items),
        one.teacher.scores(users, items),
        one.options.temperature,
        one.options.bias,
        weights=counts[users].gather(1, places),
    )
    torch.testing.assert_close(one(BATCH)["cd"], one.options.weight * expected)


@pytest.mark.parametrize("name", ["cd", "rrd"])
def test_a_sequences_weights_are_those_of_the_drawn_items(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = SequentialBench(write_known_sequences(tmp_path), "SASRec")
    sizes = {"pool": 8, "samples": 3} if name == "cd" else {"pool": 8, "interesting": 3, "uninteresting": 3}
    kind = distiller_class(name, sequential=True)
    one: Any = kind(kind.options_class.parse(name, {**sizes, "decay": 2.0}), bench.student, bench.teacher, bench.data)
    module, loss = (cd, "soft_target_loss") if name == "cd" else (lists, "listwise_loss")
    seen: dict[str, Tensor] = {}
    own, scored = getattr(module, loss), one.student_scores

    def weighed(*given: Any, weights: Optional[Tensor] = None, **named: Any) -> Any:
        assert weights is not None
        seen["weights"] = weights
        return own(*given, weights=weights, **named)

    def scores(self: Any, batch: Any, rows: Any, items: Tensor) -> Tensor:
        seen["items"] = items
        return Tensor(scored(batch, rows, items))

    monkeypatch.setattr(module, loss, weighed)
    monkeypatch.setattr(type(one), "student_scores", scores)
    batch = bench.batch()
    listed = one.listed(batch, 8)
    counts = one.importance(batch, listed)
    one.begin_epoch(0)
    one(batch)
    places = (listed.items.unsqueeze(1) == seen["items"][:, :3].unsqueeze(2)).int().argmax(2)
    torch.testing.assert_close(seen["weights"].float(), counts.gather(1, places))
