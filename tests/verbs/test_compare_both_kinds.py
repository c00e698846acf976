"""General and sequential models in one table: the same users, targets and ranking, or a line that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_kd.errors import UserError
from recbole_kd.evaluation.per_user import load_per_user
from recbole_kd.stages.data import load_splits
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.compare import compare, perform, plan
from tests.sequential import SMALL


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recbole_kd.report.write_report", lambda results, folder: [])


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_known_sequences(tmp_path / "data")


def settings(data_path: Path, models: str, **given: Any) -> dict[str, Any]:
    usual = known_sequences_settings(data_path, **SMALL["SASRec"], epochs=1, topk=[5], valid_metric="NDCG@5")
    own = {"dataset": "known-sequences", "models": models, "output": str(data_path / "report")}
    return {**usual, **own, **given}


def run(job: Any, tell: Any) -> None:
    perform(job, tell)


def evaluated(results: dict[str, Any]) -> dict[str, list[str]]:
    """Row -> the users that it was evaluated on."""
    return {row["name"]: sorted(load_per_user(Path(row["runs"][0]["per_user"]))[0]) for row in results["rows"]}


@pytest.mark.parametrize("models", ["ItemKNN,SASRec", "SASRec,BPR"])
def test_one_table_with_one_rule(models: str, data_path: Path) -> None:
    """The page says it, and each row's metrics are of the same users."""
    results = compare(settings(data_path, models, **({"k": 5} if "KNN" in models else {})), run)
    assert [row["name"] for row in results["rows"]] == models.split(",")
    assert set(map(tuple, evaluated(results).values())) == {tuple(sorted(f"u{user}" for user in range(48)))}
    sentence = results["budget"]["sentence"]
    assert "have the same target for each user, the last item." in sentence
    assert sentence.endswith("Every row ranks the items that the user has not seen.")


def test_candidates_are_the_same_for_both_kinds(data_path: Path) -> None:
    """Each target ranked among 5 drawn items as well; with 23 of 24 items drawn, both rankings are of all items."""
    results = compare(settings(data_path, "BPR,SASRec", candidates="pop5", repeatable=True), run)
    for row in results["rows"]:
        users, values = load_per_user(Path(row["runs"][0]["per_user"]))
        assert len(users) == 48
        assert (values["hit@5 (pop5)"] >= values["hit@5"]).all()
        assert row["mean"]["ndcg@5 (pop5)"] == pytest.approx(values["ndcg@5 (pop5)"].mean())


@pytest.mark.parametrize("candidates", ["uni5", "pop5"])
@pytest.mark.parametrize("repeatable", [True, False])
def test_a_users_candidates_are_the_same_items_for_both_kinds(
    repeatable: bool, candidates: str, data_path: Path
) -> None:
    from recbole_kd.data.loaders import candidate_loader

    found: list[dict[str, list[str]]] = []
    for row in plan(settings(data_path, "BPR,SASRec", repeatable=repeatable)).rows:
        splits = load_splits(row.first_config)
        of_user: dict[str, list[str]] = {}
        for drawn, _, _, _ in candidate_loader(row.first_config, splits, candidates):
            for user, item in zip(drawn["user_id"].tolist(), drawn["item_id"].tolist()):
                of_user.setdefault(splits.user_tokens[user], []).append(splits.item_tokens[item])
        found.append(of_user)
    assert found[0] == found[1]
    assert all(len(items) == 6 for items in found[0].values())


@pytest.mark.parametrize("repeatable", [None, True, False])
def test_both_kinds_mask_and_find_the_same(repeatable: Any, data_path: Path) -> None:
    """Of each user in validation and test, as the loaders give them to the evaluator."""
    from recbole_kd.data.loaders import make_loaders

    given = {} if repeatable is None else {"repeatable": repeatable}
    found: list[list[set[tuple[str, str]]]] = []
    for row in plan(settings(data_path, "BPR,SASRec", **given)).rows:
        splits = load_splits(row.first_config)
        assert splits.repeatable is bool(repeatable)
        sides = []
        for loader in make_loaders(row.first_config, splits)[1:]:
            left_out, targets = set(), set()
            for users, seen, rows, items in loader:
                names = [splits.user_tokens[user] for user in users["user_id"].tolist()]
                pairs = zip(*(part.tolist() for part in seen)) if seen is not None else ()
                left_out |= {(names[at], splits.item_tokens[item]) for at, item in pairs}
                targets |= {(names[at], splits.item_tokens[item]) for at, item in zip(rows.tolist(), items.tolist())}
            sides += [left_out, targets]
        found.append(sides)
    assert found[0] == found[1]
    held_out = {(f"u{user}", f"i{(user + 5 + user % 4) % 24}") for user in range(48)}
    assert found[0][3] == held_out
    assert bool(found[0][0]) != bool(repeatable)


def test_the_data_decide_for_both_kinds(data_path: Path) -> None:
    """Where an item is taken again, all rows rank what was seen."""
    file = data_path / "known-sequences" / "known-sequences.inter"
    file.write_text(file.read_text() + "u3\ti3\t99\n")
    results = compare(settings(data_path, "BPR,SASRec"), run)
    assert results["budget"]["sentence"].endswith("Every row ranks all items, also those that the user has seen.")


def test_a_recipe_brings_its_teacher_and_plain_student_under_the_same_rule(data_path: Path) -> None:
    given = {"rrd.pool": 6, "rrd.interesting": 3, "rrd.uninteresting": 4, "teacher.epochs": 1}
    rows = plan(settings(data_path, "RRDStudent,SASRec", **given)).rows
    assert [row.role for row in rows] == ["teacher", "plain", "recipe", "model"]
    for row in rows:
        config = row.first_config
        assert (config["eval_args"]["split"], config["eval_args"]["order"]) == ({"LS": "valid_and_test"}, "TO")
        assert config["repeatable"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_args": {"split": {"RS": [0.4, 0.3, 0.3]}, "order": "TO"}}, "leave --eval_args out"),
        ({"few": 1}, "; 1 users have fewer"),
        ({"few": 2}, "; 1 users have fewer"),
        ({"few": 3}, '--user_inter_num_interval="[4,inf)"'),
    ],
)
def test_other_targets_are_refused_in_a_line(change: dict[str, Any], message: str, data_path: Path) -> None:
    few = change.pop("few", 0)
    file = data_path / "known-sequences" / "known-sequences.inter"
    file.write_text(file.read_text() + "".join(f"few\ti{place}\t{place}\n" for place in range(few)))
    with pytest.raises(UserError) as raised:
        compare(settings(data_path, "BPR,SASRec", **change), run)
    told = " ".join(str(raised.value).split())
    assert told.startswith("SASRec predicts the next item of a sequence, but BPR ranks items for a user")
    assert message in told
    assert not (data_path / "report").exists()
    if few:
        kept = settings(data_path, "BPR,SASRec", user_inter_num_interval="[4,inf)")
        assert len(compare(kept, run)["rows"]) == 2
