"""Sequential models from settings to result: trained, smoothed, distilled, resumed, cached, and refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_kd.data.splits import Splits
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.model.build import build_model
from recbole_kd.registry import load_class
from recbole_kd.sevo import graphs as item_graphs
from recbole_kd.sevo.graphs import SEvoOptions, sevo_adjacency
from recbole_kd.stages.saved import load_trained
from recbole_kd.testing import known_sequences_settings, write_known_sequences
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd
from tests.sequential import SMALL, SequentialBench

MODELS = ("GRU4Rec", "SASRec", "BERT4Rec", "SRGNN", "STOSA")


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_known_sequences(tmp_path / "data")


def run(data_path: Path, model: str = "GRU4Rec", **settings: Any) -> dict[str, Any]:
    given = known_sequences_settings(data_path, **{**SMALL.get(model, {}), "epochs": 2, **settings})
    return run_recbole_kd(model, "known-sequences", config_dict=given)


def weights(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(result["checkpoint"])["state_dict"]
    return state


@pytest.mark.parametrize("loss", ["CE", "BPR"])
@pytest.mark.parametrize("model", ["GRU4Rec", "SASRec"])
def test_a_plain_run_is_recboles_own_bit_for_bit(model: str, loss: str, data_path: Path) -> None:
    ours = run(data_path, model, loss_type=loss, repeatable=True)
    settings = known_sequences_settings(data_path, **SMALL[model], epochs=2, loss_type=loss)
    settings |= {"metrics": ["Recall", "NDCG", "Hit", "MRR"], "eval_batch_size": 7}
    if loss == "CE":
        settings["train_neg_sample_args"] = None
    config = Config(model=model, dataset="known-sequences", config_dict=settings)
    init_seed(config["seed"], True)
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], True)
    theirs = load_class(f"recbole.model.sequential_recommender:{model}")(config, train.dataset)
    trainer = Trainer(config, theirs)
    _, best = trainer.fit(train, valid, saved=True, show_progress=False)
    assert ours["best_valid_result"] == dict(best)
    theirs.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    assert all(torch.equal(weights(ours)[name], value) for name, value in theirs.state_dict().items())
    assert ours["test_result"] == dict(trainer.evaluate(test, load_best_model=False))


def test_the_column_of_time_is_read_unasked(data_path: Path) -> None:
    """RecBole's default `load_col` names users and items alone."""
    asked, unasked = (run(data_path, load_col={"inter": ["user_id", "item_id", *time]}) for time in (["timestamp"], []))
    assert all(torch.equal(value, weights(unasked)[name]) for name, value in weights(asked).items())
    assert unasked["test_result"] == asked["test_result"]


@pytest.mark.parametrize("model", MODELS)
def test_every_sequential_model_learns_what_comes_next(model: str, data_path: Path) -> None:
    epochs = {"BERT4Rec": 15, "STOSA": 30}.get(model, 20)
    result = run(data_path, model, epochs=epochs, learning_rate=0.02, stopping_step=100)
    losses = [epoch["rec"] for epoch in result["loss_history"].values()]
    assert losses[-1] < 0.9 * losses[0]
    if model != "BERT4Rec":  # which takes several hundred epochs here: few of its items are masked, each time others
        assert result["test_result"]["recall@5"] > 0.6
    here = {"data_path": str(data_path), "use_gpu": False, "topk": [1, 5], "valid_metric": "NDCG@5"}
    again = evaluate_checkpoint(result["checkpoint"], here)
    assert again["test_result"] == result["test_result"]


@pytest.mark.parametrize("model", MODELS)
def test_sevo_smooths_every_sequential_model(model: str, data_path: Path) -> None:
    smoothed = weights(run(data_path, model, learner="sevo_adamw", **{"sevo.beta": 0.9}))
    plain = weights(run(data_path, model, learner="adamw"))
    for table in ["mean_embedding", "covariance_embedding"] if model == "STOSA" else ["item_embedding"]:
        assert not torch.equal(smoothed[f"{table}.weight"], plain[f"{table}.weight"])
    unsmoothed = weights(run(data_path, model, learner="sevo_adamw", **{"sevo.beta": 0.0}))
    assert all(torch.equal(value, plain[name]) for name, value in unsmoothed.items())


def test_the_teachers_graph_alone_and_with_dkd(data_path: Path) -> None:
    settings = {"learner": "sevo_adamw", "sevo.graph": "teacher", "sevo.neighbours": 3, "teacher.epochs": 2}
    alone = run(data_path, "SASRec", teacher="GRU4Rec", **settings)
    assert alone["teacher"]["model"] == "GRU4Rec"
    both = run(data_path, "SASRec", teacher="GRU4Rec", distill="dkd", **settings)
    assert both["distillers"] == ["dkd"]
    assert both["teacher"]["from_cache"]
    plain = load_checkpoint(both["baseline"]["checkpoint"])["config"]
    assert plain["learner"] == "adamw", "the baseline has no teacher to take a graph from"


def test_a_recipe_and_its_baseline(data_path: Path) -> None:
    result = run(data_path, "DKDStudent", **{"teacher.epochs": 1})
    assert (result["student"], result["teacher"]["model"], result["baseline"]["model"]) == ("SASRec",) * 3
    assert result["parameters"]["student"] < result["parameters"]["teacher"]


@pytest.mark.parametrize("distill", ["kd,rkd", "rrd,htd"])
def test_a_resumed_run_ends_as_one_never_stopped(distill: str, data_path: Path) -> None:
    settings = {
        "distill": distill,
        "teacher": "SASRec",
        "teacher.epochs": 1,
        "epochs": 4,
        "hidden_dropout_prob": 0.5,
        **({"kd.items": 5} if "kd," in distill else {"rrd.pool": 6, "rrd.interesting": 3, "rrd.uninteresting": 4}),
    }
    whole = run(data_path, "SASRec", **settings)
    expected = weights(whole)
    short = run(data_path, "SASRec", **{**settings, "epochs": 2})
    resumed = run(data_path, "SASRec", **settings, resume=short["checkpoint"].replace(".pth", "-last.pth"))
    assert resumed["valid_history"] == whole["valid_history"]
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


# Data


def test_observed_are_the_training_interactions_alone(data_path: Path) -> None:
    splits = SequentialBench(data_path, "GRU4Rec").splits
    items, users = splits.item_tokens, splits.user_tokens
    for user in range(1, len(users)):
        number = int(users[user][1:])
        taken = {f"i{(number + step) % 24}" for step in range(6 + number % 4 - 2)}
        row = splits.observed.indices[splits.observed.offsets[user] : splits.observed.offsets[user + 1]]
        assert {items[item] for item in row.tolist()} == taken


def rewrite(data_path: Path, change: Any) -> None:
    """Rewrites each line (user, item, place) of the data as `change` says."""
    file = data_path / "known-sequences" / "known-sequences.inter"
    header, *lines = file.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    file.write_text("\n".join([header, *("\t".join(change(*row)) for row in rows)]) + "\n")


def graph_of(data_path: Path) -> tuple[torch.Tensor, str, list[str]]:
    splits = SequentialBench(data_path, "GRU4Rec").splits
    graph = sevo_adjacency(SEvoOptions(), splits.train, splits.observed, splits.train.item_num)
    order = sorted(range(1, splits.train.item_num), key=lambda item: splits.item_tokens[item])
    return graph.to_dense()[order][:, order], splits.training_digest, [splits.item_tokens[item] for item in order]


def test_validation_and_test_interactions_change_nothing(data_path: Path) -> None:
    graph, digest, tokens = graph_of(data_path)

    def other_end(user: str, item: str, place: str) -> tuple[str, str, str]:
        last = 6 + int(user[1:]) % 4 - 1
        moved = (int(item[1:]) + 7) % 24 if int(place) >= last - 1 else int(item[1:])
        return user, f"i{moved}", place

    rewrite(data_path, other_end)
    changed, changed_digest, changed_tokens = graph_of(data_path)
    assert tokens == changed_tokens
    assert torch.equal(graph, changed)
    assert digest == changed_digest


def test_the_order_of_a_sequence_is_part_of_its_content(data_path: Path) -> None:
    _, digest, _ = graph_of(data_path)
    rewrite(data_path, lambda user, item, place: (user, item, {"0": "1", "1": "0"}.get(place, place)))
    assert graph_of(data_path)[1] != digest


def test_another_order_of_ids_is_the_same_content(data_path: Path) -> None:
    _, digest, _ = graph_of(data_path)
    file = data_path / "known-sequences" / "known-sequences.inter"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert graph_of(data_path)[1] == digest


def test_a_teacher_with_other_ids_is_realigned(data_path: Path) -> None:
    teacher = run(data_path, "SASRec", epochs=3)
    before = run(data_path, distill="kd", **{"kd.items": 5, "teacher.checkpoint": teacher["checkpoint"]})
    file = data_path / "known-sequences" / "known-sequences.inter"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *reversed(lines)]) + "\n")
    after = run(data_path, distill="kd", **{"kd.items": 5, "teacher.checkpoint": teacher["checkpoint"]})
    for result in (before, after):
        assert result["teacher"]["checkpoint"] == teacher["checkpoint"]
    bench = SequentialBench(data_path, "GRU4Rec")
    assert bench.splits.item_tokens != load_checkpoint(teacher["checkpoint"])["item_tokens"]


def test_bert4recs_bias_is_in_the_scores_that_a_distiller_reads(data_path: Path) -> None:
    """It is 0 in a fresh model; the bench's is not."""
    bench = SequentialBench(data_path, "BERT4Rec")
    bench.model.eval()
    sequences = bench.batch(8).sequences
    with torch.no_grad():
        expected = bench.model.full_sort_predict(bench.interaction(8)).view(8, -1)
        found = bench.student.sequence_scores(sequences)
        items = torch.arange(1, 5).expand(8, -1)
        torch.testing.assert_close(found[:, 1:], expected[:, 1:])
        torch.testing.assert_close(bench.student.sequence_scores(sequences, items), expected.gather(1, items))


# trim_padding


@pytest.mark.parametrize("model", ["BERT4Rec", "GRU4Rec", "SASRec", "STOSA"])
def test_without_padding_outputs_are_the_same(model: str, data_path: Path) -> None:
    bench = SequentialBench(data_path, model)
    settings = known_sequences_settings(data_path, **SMALL[model], trim_padding=True)
    trimmed = build_model(KDConfig(model, "known-sequences", config_dict=settings), bench.splits.train)
    trimmed.load_state_dict(bench.model.state_dict())
    rows = bench.interaction(50)
    assert rows["item_length"].unique().numel() > 3
    expected = bench.model.eval().full_sort_predict(rows)
    torch.testing.assert_close(trimmed.eval().full_sort_predict(rows), expected, rtol=1e-4, atol=1e-5)


def test_models_that_read_their_padding_keep_it(data_path: Path) -> None:
    whole, trimmed = (weights(run(data_path, "SRGNN", trim_padding=value)) for value in (False, True))
    assert all(torch.equal(value, trimmed[name]) for name, value in whole.items())


# What a user has seen before

WAYS: tuple[dict[str, Any], ...] = ({}, {"repeatable": True})


def here_of(data_path: Path) -> dict[str, Any]:
    """Settings with which a checkpoint is read."""
    return {"data_path": str(data_path), "use_gpu": False, "topk": [1, 5], "valid_metric": "NDCG@5"}


def by_hand(checkpoint: str, settings: dict[str, Any], without_seen: bool) -> float:
    """Hit@5 on test: a full sort of every user's scores, of all items or of those that were not seen before."""
    trained, splits = load_trained(checkpoint, settings)
    model: Any = trained.model.eval()
    hits = []
    for row in range(len(splits.test)):
        rows = splits.test.inter_feat[[row]]
        target, number = int(rows["item_id"]), int(splits.user_tokens[int(rows["user_id"])][1:])
        seen = {f"i{(number + step) % 24}" for step in range(6 + number % 4 - 1)}
        scores = model.full_sort_predict(rows).detach().view(-1)
        left = [item for item in range(1, 25) if not (without_seen and splits.item_tokens[item] in seen)]
        hits.append(target in sorted(left, key=lambda item: -float(scores[item]))[:5])
    return sum(hits) / len(hits)


@pytest.mark.parametrize("model", ["GRU4Rec", "STOSA"])
def test_both_rankings_are_those_of_a_sort_by_hand(model: str, data_path: Path) -> None:
    """By default without what was seen, as nobody has an item twice; RecBole's ranking by the one flag."""
    here = {**here_of(data_path), "metric_decimal_place": 12}
    result = run(data_path, model, metric_decimal_place=12)
    default, all_items = (evaluate_checkpoint(result["checkpoint"], {**here, **way}) for way in WAYS)
    assert (default["repeatable"], all_items["repeatable"]) == (False, True)
    assert default["test_result"] == result["test_result"] != all_items["test_result"]
    for found, without_seen in ((default, True), (all_items, False)):
        assert found["test_result"]["hit@5"] == pytest.approx(by_hand(result["checkpoint"], here, without_seen))


def test_what_is_ranked_decides_the_epoch_and_not_what_an_epoch_learns(data_path: Path) -> None:
    results = [run(data_path, "SASRec", loss_type="BPR", epochs=1, **way) for way in WAYS]
    one, other = map(weights, results)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert results[0]["valid_history"] != results[1]["valid_history"]


def test_a_checkpoint_remembers_what_was_ranked(data_path: Path) -> None:
    """Whatever the default is for its data."""
    here = here_of(data_path)
    for way, repeatable in zip(WAYS, (False, True)):
        result = run(data_path, **way)
        assert load_checkpoint(result["checkpoint"])["config"]["repeatable"] is repeatable
        found = evaluate_checkpoint(result["checkpoint"], here)
        assert (found["repeatable"], found["test_result"]) == (repeatable, result["test_result"])
        recommender = Recommender(result["checkpoint"], "all", here)
        recommended = {(user, item) for user, items, _ in recommender.recommend(k=24) for item in items}
        seen = {(f"u{user}", f"i{(user + step) % 24}") for user in range(48) for step in range(6 + user % 4)}
        assert (seen <= recommended) if repeatable else not (seen & recommended)
        other = Recommender(result["checkpoint"], "all", {**here, "repeatable": not repeatable})
        assert seen & {(user, item) for user, items, _ in other.recommend(k=24) for item in items} == (
            set() if repeatable else seen
        )


def test_files_of_older_programs_are_answered_from_as_before(data_path: Path) -> None:
    """They ranked everything in evaluation, and recommended what was not seen."""
    here = here_of(data_path)
    result = run(data_path, repeatable=True)
    state = load_checkpoint(result["checkpoint"])
    state["data_settings"].remove("repeatable")
    save_checkpoint(state, "old.pth")
    assert evaluate_checkpoint("old.pth", here)["test_result"] == result["test_result"]
    first, last = (Recommender("old.pth", "all", {**here, **way}) for way in WAYS)
    assert len(next(first.recommend(["u0"], k=24)).items) == 18
    assert len(next(last.recommend(["u0"], k=24)).items) == 24


def test_the_start_of_a_run_says_what_is_ranked(data_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In one line, where the data decides it."""
    caplog.set_level("INFO")
    told = {}
    for name, way in {"default": {}, "told": {"repeatable": False}}.items():
        caplog.clear()
        run(data_path, epochs=1, **way)
        told[name] = [message for message in caplog.messages if "--repeatable" in message]
    assert told["told"] == []
    (line,) = told["default"]
    assert line.startswith("No user has an item twice, so seen items are left out of rankings.")


def test_a_teacher_is_kept_for_each_way(data_path: Path) -> None:
    """Its epoch is chosen by what is ranked."""
    settings = {"distill": "kd", "kd.items": 5, "teacher": "SASRec", "teacher.epochs": 1, "epochs": 1}
    first, second = (run(data_path, **settings, **way) for way in WAYS)
    assert first["teacher"]["checkpoint"] != second["teacher"]["checkpoint"]
    again = run(data_path, **settings, repeatable=True)
    assert again["teacher"]["from_cache"]


# What is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_col": {"inter": ["user_id", "item_id"]}, "TIME_FIELD": "when"}, "has no column 'when'; it has user_id"),
        ({"load_col": None, "unload_col": {"inter": ["timestamp"]}}, "--unload_col leaves out 'timestamp'"),
        ({"TIME_FIELD": "time", "load_col": None}, "has no column 'time'; it has user_id, item_id, timestamp"),
        ({"eval_args": {"order": "RO"}}, "--eval_args says order RO"),
        ({"benchmark_filename": ["train", "valid", "test"]}, "known-sequences.train.inter'; expected RecBole's atomic"),
        ({"train_neg_sample_args": {"sample_num": 2}}, "--loss_type=CE compares with every item"),
        ({"loss_type": "BPR", "train_neg_sample_args": None}, "--train_neg_sample_args draws none"),
        ({"MAX_ITEM_LIST_LENGTH": 0}, "--MAX_ITEM_LIST_LENGTH=0"),
        ({"model": "BERT4Rec", "MAX_ITEM_LIST_LENGTH": 2}, "hides no item of a sequence of --MAX_ITEM_LIST_LENGTH=2"),
        ({"distill": "unkd", "teacher": "SASRec"}, "unkd distils scores or vectors of users, but GRU4Rec predicts"),
        ({"distill": "kd", "teacher": "BPR"}, "the teacher BPR is a general model"),
        ({"distill": "kd", "teacher": "SASRec", "baseline": "BPR"}, "the baseline BPR is a general model"),
        ({"learner": "sevo_adam", "sevo.beta": 1.0}, "sevo.beta=1.0 is out of range"),
        ({"learner": "sevo_adam", "sevo.layers": -1}, "sevo.layers=-1 is out of range"),
        ({"learner": "sevo_adam", "sevo.graph": "bipartite"}, "GRU4Rec has no table of users"),
        ({"learner": "sevo_adam", "sevo.graph": "category"}, "--sevo.category=class is not a token column"),
        ({"learner": "sevo_adam", "sevo.tables": ["dense.weight"]}, "smooth have 8 rows; set --sevo.tables"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_in_a_line(settings: dict[str, Any], message: str, data_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        run(data_path, **{"teacher.epochs": 1, **settings} if "teacher" in settings else settings)
    assert message in " ".join(str(raised.value).split())


def test_dkd_is_for_sequential_models(known_answer: Path) -> None:
    from recbole_kd.testing import known_answer_settings

    settings = known_answer_settings(known_answer, distill="dkd", teacher="LightGCN", **{"teacher.epochs": 1})
    with pytest.raises(UserError, match="dkd reads scores of the next item after a sequence of the student"):
        run_recbole_kd("BPR", "known-answer", config_dict=settings)


@pytest.mark.parametrize(
    ("kept", "message"), [(1, "no user has two interactions.*--user_inter_num_interval"), (2, "split .* is empty")]
)
def test_sequences_that_are_too_short_are_refused(kept: int, message: str, data_path: Path) -> None:
    file = data_path / "known-sequences" / "known-sequences.inter"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *(line for line in lines if int(line.split("\t")[2]) < kept)]) + "\n")
    with pytest.raises(UserError, match=message):
        run(data_path)


def test_users_of_one_interaction_are_no_sequence(data_path: Path) -> None:
    file = data_path / "known-sequences" / "known-sequences.inter"
    file.write_text(file.read_text() + "lonely\ti3\t0\n")
    splits = Splits(KDConfig("GRU4Rec", "known-sequences", config_dict=known_sequences_settings(data_path)))
    assert int(splits.observed.counts[splits.user_tokens.index("lonely")]) == 0
    assert run(data_path)["epochs_trained"] == 2


def test_graphs_are_kept_by_content(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"learner": "sevo_adamw", "epochs": 1}
    first = weights(run(data_path, **settings))
    folder = data_path / "saved" / "graphs"
    (kept,) = folder.iterdir()

    def never(*arguments: Any) -> None:
        raise AssertionError("the graph was built again")

    with monkeypatch.context() as patched:
        patched.setattr(item_graphs, "sevo_adjacency", never)
        again = weights(run(data_path, **settings))
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        with pytest.raises(AssertionError, match="built again"):
            run(data_path, **settings, **{"sevo.window": 2})
    whole = load_checkpoint(str(kept))
    outside = {**whole, "columns": whole["columns"] + whole["nodes"]}  # a sparse product would read past the table
    for spoil in (lambda: kept.write_bytes(kept.read_bytes()[:100]), lambda: save_checkpoint(outside, str(kept))):
        spoil()
        mended = weights(run(data_path, **settings))
        assert all(torch.equal(value, mended[name]) for name, value in first.items())
        assert torch.equal(load_checkpoint(str(kept))["columns"], whole["columns"])
    rewrite(data_path, lambda user, item, place: (user, item, {"0": "1", "1": "0"}.get(place, place)))
    run(data_path, **settings)
    assert len(list(folder.iterdir())) == 2
