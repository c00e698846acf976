"""Several teachers at once, and teachers from files of another system: settings, what they offer, a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Optional

import pytest
import torch

from recbole_kd.cli import main
from recbole_kd.data.observed import Observed
from recbole_kd.data.ranks import fuse_ranks
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.teacher import obtain_teacher
from recbole_kd.teacher.ensemble import TeacherEnsemble
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import run_recbole_kd
from tests.distiller.fakes import FakeTeacher
from tests.stages.test_teacher import everything, prepared

SMALL = {"rrd.pool": 10, "rrd.interesting": 5, "rrd.uninteresting": 5, "baseline": "none"}


def sections(data_path: Path, *sources: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The teachers of the last source over the ones before it: YAML files, then the command line."""
    *files, last = sources
    names = []
    for index, file in enumerate(files):
        names.append(str(data_path / f"{index}.yaml"))
        Path(names[-1]).write_text(json.dumps(file))
    given = known_answer_settings(data_path, distill="rrd", **last)
    config = KDConfig("BPR", "known-answer", config_file_list=names, config_dict=given)
    return {
        prefix: {key: value for key, value in section.items() if value not in (None, False, 1, "ranks")}
        for prefix, section in config.teacher_sections().items()
    }


@pytest.mark.parametrize(
    "form",
    [
        {"teacher": "BPR,LightGCN", "teacher.0.embedding_size": 8, "teacher.epochs": 2},
        {"teacher": ["BPR", "LightGCN"], "teacher.0.embedding_size": 8, "teacher.epochs": 2},
        {"teacher": [{"model": "BPR", "embedding_size": 8, "epochs": 2}, {"model": "LightGCN", "epochs": 2}]},
        {"teacher.0.model": "BPR", "teacher.1.model": "LightGCN", "teacher.0.embedding_size": 8, "teacher.epochs": 2},
        {"teacher.0": "BPR", "teacher.1": "LightGCN", "teacher.0.embedding_size": 8, "teacher.epochs": 2},
        {"teacher": {0: {"model": "BPR", "embedding_size": 8}, 1: "LightGCN", "epochs": 2}},
    ],
    ids=["commas", "list of names", "list of sections", "numbered", "numbered names", "section of numbers"],
)
def test_several_teachers_are_named_in_any_form(form: dict[str, Any], known_answer: Path) -> None:
    assert sections(known_answer, form) == {
        "teacher.0.": {"model": "BPR", "embedding_size": 8, "epochs": 2},
        "teacher.1.": {"model": "LightGCN", "epochs": 2},
    }


def test_a_later_source_names_the_teachers_anew(known_answer: Path) -> None:
    file = {"teacher": [{"model": "BPR", "epochs": 2}, {"model": "LightGCN"}, {"model": "EASE"}]}
    assert sections(known_answer, file, {"teacher": "NeuMF"}) == {"teacher.": {"model": "NeuMF"}}
    assert [found["model"] for found in sections(known_answer, file, {"teacher": "EASE,BPR"}).values()] == [
        "EASE",
        "BPR",
    ]
    changed = sections(known_answer, file, {"teacher.1.epochs": 9})
    assert changed["teacher.1."] == {"model": "LightGCN", "epochs": 9}
    assert len(changed) == 3


def test_what_a_later_source_says_of_all_teachers_counts_for_each(known_answer: Path) -> None:
    file = {"teacher": [{"model": "BPR", "epochs": 200, "embedding_size": 8}, {"model": "LightGCN"}]}
    changed = sections(known_answer, file, {"teacher.epochs": 9, "teacher.1.embedding_size": 4})
    assert changed == {
        "teacher.0.": {"model": "BPR", "embedding_size": 8, "epochs": 9},
        "teacher.1.": {"model": "LightGCN", "embedding_size": 4, "epochs": 9},
    }


def test_one_model_with_several_seeds_is_several_teachers(known_answer: Path) -> None:
    found = sections(known_answer, {"teacher": "BPR", "teacher.0.seed": 2, "teacher.1.seed": 3})
    assert found == {"teacher.0.": {"model": "BPR", "seed": 2}, "teacher.1.": {"model": "BPR", "seed": 3}}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"teacher": "BPR,LightGCN", "teacher.2.epochs": 3}, "teacher.2 is set, but there are 2 teachers"),
        ({"teacher": "BPR,LihgtGCN"}, "Unknown model 'LihgtGCN'.*LightGCN.*--teacher.1.model=NAME"),
        ({"teacher": "BPR,EASE", "teacher.1.embedding_sise": 3}, "Unknown setting 'teacher.1.embedding_sise'"),
        ({"teacher": "BPR", "teacher.ranks": "x.csv"}, "--teacher.ranks and --teacher.model both name the teacher"),
        ({"teacher.0.model": "BPR", "teacher.1.epochs": 3}, "needs a teacher; set --teacher.1=NAME"),
        ({"teacher": "BPR,EASE", "teacher.1.share": 0}, "--teacher.1.share=0; expected a number above 0"),
        ({"teacher": "BPR,EASE", "teacher.fusion": "sum"}, "--teacher.fusion='sum' is not one of ranks, scores"),
        (
            {"teacher": "BPR,EASE", "teacher.1.fusion": "scores"},
            "there is one fusion for all teachers; set --teacher.fusion",
        ),
        (
            {"teacher": "BPR,EASE", "teacher.fusion": "scores", "teacher.0.model": None, "teacher.0.ranks": "x.csv"},
            "--teacher.fusion=scores needs scores of all items, but --teacher.0.ranks has only listed items",
        ),
        ({"teacher": "BPR,GRU4Rec"}, "the teacher GRU4Rec is a sequential model"),
    ],
)
def test_what_is_wrong_with_one_is_said_before_any_is_trained(
    form: dict[str, Any], message: str, known_answer: Path
) -> None:
    with pytest.raises(UserError, match=message):
        obtain_teacher(*prepared(known_answer, **form))
    assert not (known_answer / "saved" / "teachers").exists()


def slow_fusion(lists: list[list[int]], k: int) -> list[int]:
    """Reciprocal rank fusion of one user's lists, item by item."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, item in enumerate(ranked, start=1):
            if item:
                scores[item] = scores.get(item, 0.0) + 1 / (60 + rank)
    best = sorted(scores, key=lambda item: -round(scores[item], 12))  # stable: the first seen of equal ones
    return (best + [0] * k)[:k]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_ranks_are_fused_by_reciprocal_rank(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(count)
    users, items, k = 40, 30, 12
    lists = []
    for _ in range(count):
        ranked = torch.stack([torch.randperm(items - 1, generator=generator)[:k] + 1 for _ in range(users)]).int()
        ranked[0] = 0
        ranked[3, 7:] = 0  # a shorter list
        lists.append(ranked)
    monkeypatch.setattr("recbole_kd.data.ranks._FUSED_PAIRS", 100)
    fused = fuse_ranks(lists)
    assert fused.dtype == torch.int32
    for user in range(users):
        mine = [ranked[user].tolist() for ranked in lists]
        wanted = slow_fusion(mine, k)
        assert fused[user].tolist() == wanted
    assert torch.equal(fuse_ranks([lists[0], lists[0]]), lists[0]), "agreement changes nothing"


def ensemble(
    *members: Any, shares: Optional[list[float]] = None, fusion: str = "ranks", folder: str = ""
) -> TeacherEnsemble:
    for index, member in enumerate(members):
        member.digest = member.ranks_key = str(index)
        member.parameters, member.files = 1, []
    shares = [1.0] * len(members) if shares is None else shares
    observed = Observed(torch.tensor([1, 1, 2, *range(3, 9)]), torch.tensor([1, 2, 3, *range(3, 9)]), 9, 12)
    return TeacherEnsemble(members, observed, torch.device("cpu"), shares, fusion, folder)


def test_a_share_is_its_own_members_wherever_those_without_scores_stand() -> None:
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    vectors = FakeTeacher(9, 12, 4, capabilities=frozenset({"representations", "pair_representations"}), seed=3)
    users, items = torch.arange(1, 9), torch.arange(1, 12).expand(8, -1)
    found = ensemble(vectors, first, second, shares=[5.0, 3.0, 1.0]).scores(users, items)
    one, two = ((each - each.mean()) / each.std() for each in (view.scores(users, items) for view in (first, second)))
    torch.testing.assert_close(found, 0.75 * one + 0.25 * two)


def test_what_all_members_know_is_known() -> None:
    first, second = FakeTeacher(9, 12, 3), FakeTeacher(9, 12, 3)
    first.known_items, second.known_items = torch.arange(12) < 6, torch.arange(12) > 2
    known = ensemble(first, second).known_items
    assert known is not None
    assert known.nonzero().squeeze(1).tolist() == [3, 4, 5]


def test_a_shorter_fused_list_is_not_the_beginning_of_a_kept_longer_one(tmp_path: Path) -> None:
    """Places count from a list's end, so its length changes what is fused."""
    members = [FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)]
    for member in members:
        member.observed = Observed(torch.tensor([1]), torch.tensor([1]), 9, 12)
    ensemble(*members, folder=str(tmp_path)).ranked_items(8)
    again = ensemble(*members, folder=str(tmp_path))
    for k in range(1, 8):
        assert torch.equal(again.ranked_items(k), fuse_ranks([member.ranked_items(k) for member in members])), k


def test_vectors_are_side_by_side() -> None:
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    both = ensemble(first, second)
    assert both.dimension == 8
    for side in ("user_embeddings", "item_embeddings"):
        assert torch.equal(getattr(both, side)(), torch.cat([getattr(first, side)(), getattr(second, side)()], 1))
    pairs = torch.tensor([1, 2]), torch.tensor([3, 3])
    assert both.pair_representations(*pairs).shape == (2, 8)


def test_a_regression_of_vectors_side_by_side_is_one_for_each_teacher() -> None:
    """What fitnet and freqd compute: the squared error of a concatenation is the sum of its parts' errors."""
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    projector = torch.nn.Linear(4, 8).double()
    student = torch.randn(9, 4, dtype=torch.float64)
    whole = (projector(student) - ensemble(first, second).user_embeddings()).pow(2).sum()
    parts = sum(
        (student @ projector.weight[part].t() + projector.bias[part] - member.user_embeddings()).pow(2).sum()
        for part, member in ((slice(0, 3), first), (slice(3, 8), second))
    )
    torch.testing.assert_close(whole, parts)


def test_scores_are_the_mean_of_standardised_ones() -> None:
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    users, items = torch.arange(1, 9), torch.arange(1, 12).expand(8, -1)
    wanted = sum((one - one.mean()) / one.std() for one in (member.scores(users, items) for member in (first, second)))
    torch.testing.assert_close(ensemble(first, second).scores(users, items), wanted / 2)


def test_a_teacher_of_a_larger_share_counts_more() -> None:
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    users, items = torch.arange(1, 9), torch.arange(1, 12).expand(8, -1)
    one, two = ((found - found.mean()) / found.std() for found in (one.scores(users, items) for one in (first, second)))
    found = ensemble(first, second, shares=[3.0, 1.0]).scores(users, items)
    torch.testing.assert_close(found, 0.75 * one + 0.25 * two)

    ranked = [torch.tensor([[0, 0], [1, 2]]), torch.tensor([[0, 0], [3, 1]])]
    assert fuse_ranks(ranked, shares=[1.0, 3.0])[1].tolist() == [1, 3], "1 is in both lists"
    assert fuse_ranks([lists[:, :1] for lists in ranked], shares=[1.0, 3.0])[1].tolist() == [3]


def test_ranked_by_scores_the_best_are_those_of_the_highest_mean(tmp_path: Path) -> None:
    """An item that both hold to be good comes before one that a single teacher holds to be the best."""
    first, second = FakeTeacher(9, 12, 3, seed=1), FakeTeacher(9, 12, 5, seed=2)
    both = ensemble(first, second, shares=[2.0, 1.0], fusion="scores", folder=str(tmp_path))
    mean = both.scores(torch.arange(1, 9), torch.arange(12).expand(8, -1))
    mean[:, 0] = -torch.inf
    mean[both.observed.user_ids - 1, both.observed.indices] = -torch.inf
    assert torch.equal(both.ranked_items(6)[1:].long(), mean.topk(6).indices)
    assert torch.equal(both.ranked_items(4), both.ranked_items(6)[:, :4])

    again = ensemble(first, second, shares=[4.0, 2.0], fusion="scores", folder=str(tmp_path))
    again.score_block = lambda users: pytest.fail("the lists are kept")  # type: ignore[method-assign]
    assert torch.equal(again.ranked_items(5), both.ranked_items(5))


class Probable(FakeTeacher):
    """Ranks by probabilities and gives logits as scores, as CDAE does."""

    def score_block(self, users: torch.Tensor) -> torch.Tensor:
        return super().score_block(users).sigmoid()


def test_lists_and_scores_are_of_the_same_numbers_whatever_a_member_ranks_by(tmp_path: Path) -> None:
    both = ensemble(FakeTeacher(9, 12, 3, seed=1), Probable(9, 12, 5, seed=2), fusion="scores", folder=str(tmp_path))
    scores = both.scores(torch.arange(9), torch.arange(12).expand(9, -1)).masked_fill(
        both.observed.contains(torch.arange(9)[:, None], torch.arange(12).expand(9, -1)), -torch.inf
    )
    assert torch.equal(both.ranked_items(6)[1:].long(), scores[1:, 1:].topk(6).indices + 1)
    assert torch.equal(both.ranked_users(5)[1:].long(), scores[1:, 1:].t().topk(5).indices + 1)


def test_it_offers_what_its_members_do_together() -> None:
    bare = FakeTeacher(9, 12, 3, capabilities=frozenset({"ranks", "listed_scores"}))
    assert ensemble(FakeTeacher(9, 12, 3), FakeTeacher(9, 12, 3)).capabilities == {
        *("ranks", "scores", "listed_scores", "representations", "pair_representations", "side_vectors")
    }
    mixed = ensemble(FakeTeacher(9, 12, 3), bare)
    vectors = {"representations", "pair_representations", "side_vectors"}
    assert mixed.capabilities == {"ranks", *vectors}, "a file's scores are no member's"
    assert mixed.dimension == 3
    with pytest.raises(UserError, match="has no a vector|has no"):
        ensemble(bare, bare).user_embeddings()


def test_what_teachers_lack_together_is_said_before_one_is_trained(known_answer: Path) -> None:
    """Beside a file, whose scores are not read, there are ranks alone; two neighbourhood models have no vectors."""
    file = lists_of_the_answer(known_answer, known_answer / "answer.csv")
    beside = {"teacher.0.model": "BPR", "teacher.1.ranks": str(file)}
    for settings, message in (
        ({**beside, "distill": "ir_rrd"}, "BPR . a file of ranks has none"),
        ({**beside, "distill": "kd"}, "BPR . a file of ranks has none.* or another teacher .--teacher=BPR"),
        ({**beside, "distill": "kd", "teacher.fusion": "scores"}, "--teacher.fusion=scores needs scores of all"),
        ({"teacher": "ItemKNN,EASE", "distill": "de"}, "de reads a vector .* ItemKNN . EASE has none"),
    ):
        with pytest.raises(UserError, match=message):
            run_recbole_kd("BPR", "known-answer", config_dict=known_answer_settings(known_answer, **settings))
    assert not list((known_answer / "saved").rglob("*.pth"))


def lists_of_the_answer(data_path: Path, file: Path, *, scores: bool = True, length: int = 20) -> Path:
    """A file of another system that knows the answer: liked items first, for every user."""
    lines = ["user_id,item_id,score" if scores else "user_id,item_id"]
    for user in range(48):
        order = sorted(range(40), key=lambda item: (item % 4 != user % 4, item))[:length]
        for place, item in enumerate(order):
            score = (5 if item % 4 == user % 4 else -5) - place / 100
            lines.append(f"u{user},i{item}" + (f",{score}" if scores else ""))
    file.write_text("\n".join(lines) + "\n")
    return file


def run(data_path: Path, **settings: Any) -> dict[str, Any]:
    return run_recbole_kd(
        settings.pop("model", "BPR"),
        "known-answer",
        config_dict={**known_answer_settings(data_path), **SMALL, **settings},
    )


def test_a_student_learns_from_two_teachers(known_answer: Path) -> None:
    settings = {"teacher": "BPR,LightGCN,EASE", "teacher.0.epochs": 2, "teacher.1.epochs": 2, "distill": "rrd,cd,de"}
    small = {"cd.pool": 10, "cd.samples": 5, "de.experts": 2, "epochs": 1}
    first = run(known_answer, **settings, **small)
    told = first["teacher"]
    assert told["model"] == "BPR + LightGCN + EASE"
    assert [member["model"] for member in told["members"]] == ["BPR", "LightGCN", "EASE"]
    assert set(told) >= {"model", "checkpoint", "digest", "from_cache", "test_result", "train_seconds"}
    assert all(member["test_result"]["recall@10"] > 0 for member in told["members"])
    assert not told["from_cache"]
    assert set(first["loss_history"][0]) == {"rec", "rrd", "cd", "de"}
    second = run(known_answer, **settings, **small)
    assert second["teacher"]["from_cache"], "each member is kept"
    assert second["teacher"]["digest"] == told["digest"]
    assert second["test_result"] == first["test_result"]


@pytest.mark.parametrize("distiller", ["rrd", "cd"])
def test_a_student_learns_from_a_file_alone(distiller: str, known_answer: Path, tmp_path: Path) -> None:
    file = lists_of_the_answer(known_answer, tmp_path / "answer.csv")
    sizes = SMALL if distiller == "rrd" else {"cd.pool": 10, "cd.samples": 5, "baseline": "none"}
    settings = {**known_answer_settings(known_answer), **sizes, "learning_rate": 0.02, "epochs": 25}
    taught = {"distill": distiller, f"{distiller}.weight": 1.0, "teacher.ranks": str(file)}
    result = run_recbole_kd("BPR", "known-answer", config_dict={**settings, **taught})
    told = result["teacher"]
    assert told["ranks"] == str(file)
    assert len(told["digest"]) == 64
    assert result["parameters"]["teacher"] == 0
    assert result["test_result"]["recall@10"] > 0.9


def test_a_file_and_a_model_teach_together(known_answer: Path, tmp_path: Path) -> None:
    file = lists_of_the_answer(known_answer, tmp_path / "answer.csv")
    settings = {"teacher.0.ranks": str(file), "teacher.1.model": "BPR", "teacher.1.epochs": 1, "distill": "rrd"}
    experiment, splits = prepared(known_answer, **settings)
    teacher = obtain_teacher(experiment, splits)
    assert "ranks" in teacher.capabilities
    assert not splits.observed.contains(everything(splits)[0][:, None], teacher.ranked_items(10)[1:]).any()
    assert run(known_answer, epochs=1, **settings)["teacher"]["members"][0]["ranks"] == str(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill": "cd"}, "cd reads scores of the items in the ranked lists of the teacher; the file answer.csv has none. .*rrd.* or a file with a column 'score'."),
        ({"distill": "ir_rrd"}, "ir_rrd reads scores of single users and items of the teacher; the file answer.csv has none"),
        ({"distill": "de"}, "de reads a vector .* the file answer.csv has none. Use a distiller that does not .rd, rrd, unkd, dcd."),
        ({"distill": "rrd", "rrd.pool": "21", "rrd.interesting": "5", "rrd.uninteresting": "5"}, "rrd.pool=21: the file answer.csv ranks fewer items for 48 of 48 users, the least 1[0-9]; lower rrd.pool or give longer lists"),
    ],
)  # fmt: skip
def test_the_command_line_refuses_what_a_file_cannot_teach(
    settings: dict[str, str], message: str, known_answer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lists_of_the_answer(known_answer, tmp_path / "answer.csv", scores=False)
    given = {**known_answer_settings(known_answer), "teacher.ranks": file, **settings}
    words = [f"--{key}={value}" for key, value in given.items()]
    assert main(["--model=BPR", "--dataset=known-answer", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recbole-kd: ")]
    assert re.search(message, line), line
