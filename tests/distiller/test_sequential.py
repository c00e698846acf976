"""Distillation of next-item prediction: what each distiller reads of a sequence, for every sequential model."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_kd.contracts import Distiller
from recbole_kd.errors import UserError
from recbole_kd.registry import DISTILLERS, distiller_class
from recbole_kd.stages.needs import check_needs
from recbole_kd.testing import write_known_sequences
from tests.sequential import SequentialBench

#: Distillers with a meaning for sequences, and options that fit 24 items.
ABLE: dict[str, dict[str, Any]] = {
    "kd": {"items": 5},
    "cd": {"weight": 1.0, "pool": 6, "samples": 3},
    "dkd": {},
    "rrd": {"weight": 1.0, "pool": 6, "interesting": 3, "uninteresting": 4},
    "fitnet": {},
    "ftd": {},
    "htd": {"experts": 3},
    "rkd": {},
    "de": {"experts": 3},
    "phr": {},
}
STUDENTS = ("GRU4Rec", "SASRec", "BERT4Rec", "SRGNN", "STOSA")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_sequences(tmp_path_factory.mktemp("sequences"))


def build(bench: SequentialBench, name: str, **options: Any) -> Distiller:
    kind = distiller_class(name, sequential=True)
    parsed = kind.options_class.parse(name, {**ABLE.get(name, {}), **options})
    check_needs(name, parsed, bench.student, bench.teacher)
    distiller = kind(parsed, bench.student, bench.teacher, bench.data)
    distiller.begin_epoch(0)
    return distiller


def total(bench: SequentialBench, distiller: Distiller) -> torch.Tensor:
    with bench.student.step():
        return torch.stack(list(distiller(bench.batch()).values())).sum()


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("name", ABLE)
def test_every_distiller_teaches_every_sequential_model(name: str, student: str, data_path: Path) -> None:
    bench = SequentialBench(data_path, student)
    before = copy.deepcopy(bench.teacher.model.state_dict())
    distiller = build(bench, name)
    optimizer = torch.optim.Adam([*bench.model.parameters(), *distiller.parameters()], lr=0.01)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = total(bench, distiller)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert all(math.isfinite(value) for value in values)
    assert sum(values[-3:]) < sum(values[:3])
    for key, value in bench.teacher.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in bench.teacher.model.parameters())


@pytest.mark.parametrize("teacher", STUDENTS)
def test_every_sequential_model_teaches(teacher: str, data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec", teacher)
    batch = bench.batch()
    scores = bench.teacher.sequence_scores(batch.sequences)
    expected = bench.teacher.model.full_sort_predict(bench.interaction(32))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    some = torch.randint(1, 25, (32, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        bench.teacher.sequence_scores(batch.sequences, some), expected.gather(1, some), rtol=1e-4, atol=1e-4
    )
    assert not scores.requires_grad


@pytest.mark.parametrize("student", STUDENTS)
def test_a_step_computes_the_students_sequences_once(student: str, data_path: Path) -> None:
    bench = SequentialBench(data_path, student)
    batch, passes, forward = bench.batch(), [], type(bench.model).forward
    bench.model.forward = lambda *arguments: passes.append(0) or forward(bench.model, *arguments)
    with bench.student.step():
        first = bench.student.sequence_embeddings(batch.sequences)
        assert bench.student.sequence_embeddings(batch.sequences) is first
        bench.student.sequence_scores(batch.sequences)
    assert len(passes) == 1


def test_the_base_loss_and_the_distillers_share_a_pass(data_path: Path) -> None:
    """With dropout two passes would give two outputs."""
    bench = SequentialBench(data_path, "SASRec", hidden_dropout_prob=0.5)
    rows, batch = bench.interaction(16), bench.batch(16)
    bench.model.train()
    with bench.student.step():
        output = bench.model.forward(batch.sequences.items, batch.sequences.lengths)
        assert bench.student.sequence_embeddings(batch.sequences) is output
    assert rows["item_id_list"].shape == batch.sequences.items.shape


@pytest.mark.parametrize("items", [5, None])
def test_kd_is_the_cross_entropy_over_the_teachers_best_next_items(items: Any, data_path: Path) -> None:
    bench = SequentialBench(data_path, "GRU4Rec")
    batch = bench.batch(8)
    found = build(bench, "kd", items=items, temperature=2.0, weight=0.3)(batch)["kd"]
    student, teacher = (view.sequence_scores(batch.sequences) for view in (bench.student, bench.teacher))
    losses = []
    for row in range(8):
        best = sorted(range(1, 25), key=lambda item: -float(teacher[row, item]))[:items]
        p, q = ([math.exp(float(scores[row, item]) / 2) for item in best] for scores in (teacher, student))
        losses.append(-sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q)))
    assert found.item() == pytest.approx(0.3 * 4 * sum(losses) / 8, rel=1e-4)


def test_dkds_target_is_the_next_item(data_path: Path) -> None:
    bench = SequentialBench(data_path, "GRU4Rec")
    batch = bench.batch(8)
    found = build(bench, "dkd", alpha=0.5, beta=0.0, temperature=1.0)(batch)
    losses = []
    for row, item in enumerate(batch.items.tolist()):
        p, q = (
            view.sequence_scores(batch.sequences)[row, 1:].softmax(0)[item - 1].item()
            for view in (bench.teacher, bench.student)
        )
        losses.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert found["target"].item() == pytest.approx(0.5 * sum(losses) / 8, rel=1e-3)
    assert found["non_target"].item() == 0


def test_rrds_items_are_the_teachers_best_and_others_below(data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec")
    batch, asked = bench.batch(8), []
    scores_of = bench.student.sequence_scores
    bench.student.sequence_scores = lambda sequences, items=None: asked.append(items) or scores_of(sequences, items)
    build(bench, "rrd", sampling="top")(batch)
    teacher = bench.teacher.sequence_scores(batch.sequences)
    for row, items in enumerate(asked[0].tolist()):
        ranked = sorted(range(1, 25), key=lambda item: -float(teacher[row, item]))
        assert items[:3] == ranked[:3]
        assert set(items[3:]) <= set(ranked[6:])
        assert len(set(items)) == 7


@pytest.mark.parametrize("consistency", [1.0, 2.0])
@pytest.mark.parametrize(("name", "guide"), [("kd", "teacher"), ("kd", "student"), ("cd", "student"), ("rrd", None)])
def test_lists_leave_out_what_a_sequence_holds_where_nobody_has_an_item_twice(
    name: str, guide: Any, consistency: float, data_path: Path
) -> None:
    """The guide's best items of all others, and RRD's uninteresting items are of all others too."""
    bench = SequentialBench(data_path, "SASRec")
    bench.data = dataclasses.replace(bench.data, repeatable=False)
    batch, asked = bench.batch(32), []
    ranking = bench.student if guide == "student" else bench.teacher
    scores = ranking.sequence_scores(batch.sequences).detach()
    scores_of = bench.student.sequence_scores

    def asking(sequences: Any, items: Any = None) -> torch.Tensor:
        asked.extend([] if items is None else [items])
        return scores_of(sequences, items)

    bench.student.sequence_scores = asking
    options = {"kd": {"items": 5}, "cd": {"pool": 5, "samples": 5}, "rrd": {"sampling": "top"}}[name]
    chosen = {**options, **({"guide": guide} if guide else {})}
    build(bench, name, **chosen, **({} if guide == "student" else {"consistency": consistency}))(batch)
    held = 0
    for row, (items, had) in enumerate(zip(asked[0].tolist(), batch.sequences.items.tolist())):
        best = sorted(set(range(1, 25)) - set(had), key=lambda item: -float(scores[row, item]))
        listed = 3 if name == "rrd" else 5
        assert items[:listed] == best[:listed]
        assert not set(items) & set(had)
        whole = scores[row, 1:].argsort(descending=True)[:listed] + 1
        held += len(set(whole.tolist()) & set(had))
    assert held, "RecBole's way lists some of what the sequence holds"


def test_others_are_refused_with_what_would_do(data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec")
    refused = [name for name, entry in DISTILLERS.items() if not entry.sequential]
    assert {"simrec", "rd", "unkd", "dcd", "ir_rrd", "freqd"} <= set(refused)
    for name in refused:
        with pytest.raises(UserError, match=f"{name} distils scores or vectors of users.*set --distill to one of"):
            build(bench, name)


def test_a_student_that_offers_nothing_is_named_with_the_setting_that_changes_it(data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec")
    bench.student.capabilities = frozenset()
    with pytest.raises(
        UserError, match=r"of the student; SASRec has none\. Use another student \(--model=SASRec\|GRU4Rec\)\."
    ):
        build(bench, "dkd")
    bench.student.capabilities = frozenset({"sequences"})
    with pytest.raises(
        UserError, match=r"of the student; .* Use a distiller that does not \(cd, rrd, kd, dkd\) or another"
    ):
        build(bench, "ftd")


def test_too_many_items_are_refused(data_path: Path) -> None:
    bench = SequentialBench(data_path, "SASRec")
    with pytest.raises(UserError, match="kd.items=25 is more than the 24 items"):
        build(bench, "kd", items=25)
    with pytest.raises(UserError, match="rrd.uninteresting=20 below the 6 of rrd.pool"):
        build(bench, "rrd", uninteresting=20)
    bench.data = dataclasses.replace(bench.data, repeatable=False)
    longest = "kd.items=20 is more than the 18 items that are not in the longest training sequence, of 6"
    with pytest.raises(UserError, match=longest):
        build(bench, "kd", items=20)
    with pytest.raises(UserError, match="rrd.uninteresting=13 below the 6 of rrd.pool: 1 of 1 sequences have fewer"):
        build(bench, "rrd", uninteresting=13)
    assert build(bench, "rrd", uninteresting=12)
