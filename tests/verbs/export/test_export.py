"""A student alone: what the README's lines give, in an interpreter that has nothing but numpy."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.files.bundle import Bundle, read_bundle
from recbole_kd.testing import known_answer_settings, write_known_answer
from recbole_kd.verbs import export
from recbole_kd.verbs.export import FORMAT, measure, run_export
from recbole_kd.verbs.export.measure import exact_lists, measure_index, search_index
from recbole_kd.verbs.export.student import narrowed, student_bundle, with_vectors
from recbole_kd.verbs.recommender import Recommender
from recbole_kd.verbs.train import run_recbole_kd


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_answer(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bpr(data: Path) -> str:
    return _trained("BPR", data)


@pytest.fixture
def bundle(bpr: str, data: Path, tmp_path: Path) -> Path:
    run_export(bpr, str(tmp_path / "bundle"), config_dict={"data_path": str(data)})
    return tmp_path / "bundle"


def _trained(model: str, data: Path, **settings: Any) -> str:
    result = run_recbole_kd(model, "known-answer", config_dict=known_answer_settings(data, baseline=None, **settings))
    return str(result["checkpoint"])


def _blocks(folder: Path) -> list[str]:
    """The Python of a bundle's README, block by block."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


#: Begins an interpreter that has nothing but the standard library, numpy and, where it is asked for, faiss.
BARE = """
import importlib.abc, json, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "recbole", "recbole_kd", "safetensors", "scipy", "pandas"}:
            raise ImportError(f"{name} is nothing that a bundle needs")
sys.meta_path.insert(0, Blocked())
sys.path.append(%r)
"""


def _as_written(folder: Path, blocks: int, ask: str) -> dict[str, list[str]]:
    """User -> the ids that the README's lines, run as they stand in the bundle's folder, give for `ask`."""
    lines = "\n".join(_blocks(folder)[:blocks])
    answers = f"print(json.dumps({{user: [item for item, score in {ask}] for user in rows}}))"
    code = "\n".join([BARE % str(Path(np.__file__).parent.parent), lines, answers])
    words = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _assert_ranked_as_by(recommender: Recommender, answers: dict[str, list[str]], k: int) -> None:
    """Each answer is the evaluator's list. Two items may stand the other way round, or one in the other's place, where
    the evaluator's own scores of them are equal to rounding: numpy's and torch's products differ in the last bit."""
    for user, items, scores in recommender.recommend(k=len(recommender.items) - 1):
        score_of = dict(zip(items, scores))
        assert len(set(answers[user])) == len(answers[user]) == min(k, len(items))
        for item, score in zip(answers[user], scores):
            assert score_of[item] == pytest.approx(score, rel=2e-6, abs=2e-6), (user, item)


def test_the_bare_interpreter_is_bare(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("```python\nrows = ()\nimport torch\n```")
    with pytest.raises(AssertionError, match="torch is nothing that a bundle needs"):
        _as_written(tmp_path, 1, "()")


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SimpleX", "ENMF", "SimRecStudent"])
@pytest.mark.parametrize("seen", ["train", "train+valid"])
def test_the_readmes_lines_give_what_the_evaluator_ranks(model: str, seen: str, data: Path, tmp_path: Path) -> None:
    settings = {"teacher.epochs": 1, "simrec.triplets": 50} if model == "SimRecStudent" else {}
    checkpoint = _trained(model, data, epochs=1, **settings)
    given = {"data_path": str(data)}
    run_export(checkpoint, str(tmp_path / "bundle"), seen=seen, config_dict=given)
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    assert set(answers) == {f"u{user}" for user in range(48)}
    _assert_ranked_as_by(Recommender(checkpoint, seen, given), answers, k=20)


def test_every_user_of_ml_100k_gets_the_evaluators_top_20(tmp_path: Path) -> None:
    settings = {"epochs": 2, "baseline": None, "show_progress": False, "topk": [20], "checkpoint_dir": str(tmp_path)}
    checkpoint = run_recbole_kd("BPR", "ml-100k", config_dict={**settings, "use_gpu": False})["checkpoint"]
    run_export(checkpoint, str(tmp_path / "bundle"), seen="train+valid")
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    assert len(answers) == 943
    _assert_ranked_as_by(Recommender(checkpoint, "train+valid"), answers, k=20)


def test_the_lines_are_about_ten_and_need_numpy_alone(bundle: Path) -> None:
    (block,) = _blocks(bundle)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 16
    assert [line for line in lines if line.startswith(("import", "from"))] == ["import json", "import numpy as np"]


def test_users_get_what_is_left_where_more_is_asked_for(bundle: Path) -> None:
    """Of 40 items all have seen 8."""
    answers = _as_written(bundle, 1, "recommend(user, k=1000)")
    assert all(len(set(items)) == 32 for items in answers.values())


def test_the_files_are_what_the_manifest_says(bundle: Path, bpr: str, data: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["format"] == FORMAT
    assert (manifest["model"], manifest["dataset"]) == ("BPR", "known-answer")
    assert (manifest["users"], manifest["items"], manifest["dimension"]) == (48, 40, 64)
    assert manifest["seen"] == {"splits": ["train"], "pairs": 48 * 8}
    assert set(manifest["files"]) == {path.name for path in bundle.iterdir()} - {"manifest.json"}
    for name, facts in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_rows_are_the_models_without_padding(bundle: Path, bpr: str, data: Path) -> None:
    recommender = Recommender(bpr, config_dict={"data_path": str(data)})
    vectors = safetensors.numpy.load_file(bundle / "vectors.safetensors")
    np.testing.assert_array_equal(vectors["users"], recommender.model.model.user_embedding.weight[1:].numpy())
    np.testing.assert_array_equal(vectors["items"], recommender.model.model.item_embedding.weight[1:].numpy())
    users, items = (
        [json.loads(line) for line in (bundle / name).read_text().splitlines()]
        for name in ("users.jsonl", "items.jsonl")
    )
    seen = safetensors.numpy.load_file(bundle / "seen.safetensors")
    pairs = {
        (user, items[item])
        for row, user in enumerate(users)
        for item in seen["items"][seen["offsets"][row] : seen["offsets"][row + 1]]
    }
    file = data / "known-answer" / "known-answer.train.inter"
    assert pairs == {tuple(line.split("\t")) for line in file.read_text().splitlines()[1:]}


def test_the_card_says_what_the_model_is_and_leaves_the_licence_to_its_user(bundle: Path, bpr: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    text = (bundle / "README.md").read_text()
    card = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", text.partition("## Model card")[2], re.M))
    assert card["model"].startswith("BPR (BPR), digest `")
    assert card["teacher"] == card["distillers"] == "none"
    assert manifest["digests"]["training_split"][:16] in card["data"]
    assert f"ndcg@10 {manifest['test_result']['ndcg@10']:.4f}" in card["metrics on test"]
    assert "embedding_size 64" in card["settings"]
    assert manifest["date"] in card["exported"]
    (bundle / "README.md").write_text(text.replace("*to be filled in by the person who exports it*", "CC BY 4.0"))
    assert read_bundle(bundle).users[0] == "u0"


def test_the_card_of_a_distilled_student_names_teacher_distillers_and_their_settings(
    data: Path, tmp_path: Path
) -> None:
    settings = {"teacher.epochs": 1, "rrd.pool": 10, "rrd.interesting": 4, "rrd.uninteresting": 4, "epochs": 1}
    checkpoint = _trained("RRDStudent", data, **settings)
    manifest = run_export(checkpoint, str(tmp_path / "bundle"), config_dict={"data_path": str(data)})
    assert (manifest["model"], manifest["backbone"]) == ("RRDStudent", "BPR")
    assert (manifest["teacher"], manifest["distillers"], manifest["settings"]["rrd.pool"]) == ("BPR", ["rrd"], 10)
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert "| teacher | BPR |" in text
    assert "rrd.pool 10" in text


def test_the_card_names_all_teachers(data: Path, tmp_path: Path) -> None:
    settings = {"teacher.epochs": 1, "rrd.pool": 10, "rrd.interesting": 4, "rrd.uninteresting": 4, "epochs": 1}
    checkpoint = _trained("RRDStudent", data, teacher="LightGCN,BPR", **settings)
    manifest = run_export(checkpoint, str(tmp_path / "bundle"), config_dict={"data_path": str(data)})
    assert manifest["teacher"] == "LightGCN + BPR"
    assert "| teacher | LightGCN + BPR |" in (tmp_path / "bundle" / "README.md").read_text()


# Other types


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_vectors_rank_as_the_reader_ranks_them_and_nearly_as_the_model(
    dtype: str, bpr: str, data: Path, tmp_path: Path
) -> None:
    given = {"data_path": str(data)}
    manifest = run_export(bpr, str(tmp_path / "bundle"), dtype=dtype, config_dict=given)
    answers = _as_written(tmp_path / "bundle", 1, "recommend(user, k=20)")
    bundle = read_bundle(tmp_path / "bundle")
    for user, items in answers.items():
        assert items == [bundle.items[row] for row, _ in bundle.recommend(bundle.user_rows[user], k=20)]
    whole = Recommender(bpr, config_dict=given)
    wanted = {user: items for user, items, _ in whole.recommend(k=20)}
    shares = [len(set(wanted[user]) & set(items)) / 20 for user, items in answers.items()]
    exact = manifest["measured"]["exact"]
    assert exact["recall"] == pytest.approx(np.mean(shares))
    assert exact["recall"] > 0.98
    size = {"float16": (48 + 40) * 64 * 2, "int8": (48 + 40) * (64 + 4)}[dtype]
    assert exact["bytes"] == size
    assert re.search(rf"exact, {dtype} +{exact['recall']:.4f}", (tmp_path / "bundle" / "README.md").read_text())


def _towers(unit: bool = False, **manifest: Any) -> Bundle:
    """A bundle of five users and seven items in six dimensions; item 3 is zeros where rows are not of length 1."""
    generator = np.random.default_rng(0)
    tables = {name: generator.normal(size=(rows, 6)).astype(np.float32) for name, rows in (("users", 5), ("items", 7))}
    if unit:
        tables = {name: table / np.linalg.norm(table, axis=1, keepdims=True) for name, table in tables.items()}
    else:
        tables["items"][3] = 0
    ids = [[str(row) for row in range(count)] for count in (5, 7)]
    seen = {"seen_offsets": np.zeros(6, np.int64), "seen_items": np.array([], dtype=np.int64)}
    return Bundle(Path(), {"score": "inner product", **manifest}, "vectors", *ids, tables, **seen, histories={})


def test_a_row_of_int8_is_within_half_a_step_of_its_scale() -> None:
    whole = _towers()
    kept = with_vectors(whole, dtype="int8").vectors
    for name, table in whole.vectors.items():
        scale = np.abs(table).max(axis=1)
        scale[scale == 0] = 127
        np.testing.assert_allclose(kept[f"{name}_scale"], scale / 127, rtol=1e-6)
        error = np.abs(kept[name] * kept[f"{name}_scale"][:, None] - table).max(axis=1)
        assert (error <= scale / 127 * 0.5001).all()


def test_a_number_that_float16_does_not_hold_is_refused() -> None:
    whole = _towers()
    whole.vectors["users"][1, 2] = 1e6
    with pytest.raises(UserError, match="--dtype=float16 cannot hold 1e\\+06 in a vector; use float32 or int8"):
        with_vectors(whole, dtype="float16")


def test_fewer_dimensions_keep_the_scores_as_well_as_that_rank_can() -> None:
    """Eckart and Young: what is lost is the singular values that were left out."""
    whole = _towers()
    scores = whole.vectors["users"] @ whole.vectors["items"].T
    values = np.linalg.svd(scores, compute_uv=False)
    for dimensions in (2, 5, 6):
        kept = narrowed(whole, dimensions)
        assert kept["users"].shape == (5, dimensions)
        lost = np.linalg.norm(scores - kept["users"] @ kept["items"].T)
        assert lost == pytest.approx(np.sqrt((values[dimensions:] ** 2).sum()), rel=1e-4, abs=1e-4)


def test_fewer_dimensions_of_a_matryoshka_student_are_its_first_numbers() -> None:
    whole = _towers(prefixes=[2, 4])
    np.testing.assert_array_equal(narrowed(whole, 4)["items"], whole.vectors["items"][:, :4])
    with pytest.raises(UserError, match="--dimensions=3: the student was trained for the sizes 2, 4"):
        narrowed(whole, 3)
    cosine = narrowed(_towers(unit=True, prefixes=[2, 4]), 2)
    np.testing.assert_allclose(np.linalg.norm(cosine["users"], axis=1), 1, rtol=1e-6)


def test_rows_of_length_1_on_one_side_alone_stay_as_they_are() -> None:
    """Such scores are no cosines, so the first numbers are not made longer."""
    whole = _towers(prefixes=[2])
    whole.vectors["users"] /= np.linalg.norm(whole.vectors["users"], axis=1, keepdims=True)
    for name, table in narrowed(whole, 2).items():
        np.testing.assert_array_equal(table, whole.vectors[name][:, :2])


# The index


@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_index_answers_as_written(kind: str, dtype: str, bpr: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    given = {"index": "faiss", "index_type": kind, "dtype": dtype, "config_dict": {"data_path": str(data)}}
    if (kind, dtype) == ("ivfpq", "int8"):
        with pytest.raises(UserError, match="--index_type=ivfpq stores product codes, not int8 vectors"):
            run_export(bpr, str(tmp_path / "bundle"), **given)
        return
    manifest = run_export(bpr, str(tmp_path / "bundle"), **given)
    found = _as_written(tmp_path / "bundle", 2, "recommend_fast(user, k=5)")
    exact = {user: items[:5] for user, items in _as_written(tmp_path / "bundle", 1, "recommend(user, k=5)").items()}
    shares = [len(set(found[user]) & set(exact[user])) / 5 for user in exact]
    assert np.mean(shares) > (0.6 if kind == "ivfpq" else 0.97)
    assert manifest["index"]["type"] == kind
    assert (tmp_path / "bundle" / "index.faiss").stat().st_size == manifest["index"]["bytes"]


def test_the_index_is_searched_as_written(bpr: str, data: Path, tmp_path: Path) -> None:
    """Of 40 items the graph misses none, so that the lines with it give what those without it give."""
    pytest.importorskip("faiss")
    manifest = run_export(bpr, str(tmp_path / "bundle"), index="faiss", config_dict={"data_path": str(data)})
    assert manifest["index"]["search"][-1]["recall"] == 1
    assert "index.faiss" in manifest["files"]
    found = _as_written(tmp_path / "bundle", 2, "recommend_fast(user, k=5)")
    _assert_ranked_as_by(Recommender(bpr, config_dict={"data_path": str(data)}), found, k=5)
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert re.search(r"exact +1\.0000", text)
    assert re.search(r"width 64 +1\.0000", text)


class FakeIndex:
    """Finds an item only if its row is at most `efSearch`; the rest are the items in the order of their rows."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.hnsw = self
        self.efSearch = 0

    def search(self, users: Any, k: int) -> tuple[Any, Any]:
        reached = np.arange(min(self.efSearch, len(self.items)))
        scores = users @ self.items[reached].T
        order = np.argsort(-scores[0])[:k]
        return scores[:, order], np.pad(reached[order], (0, k - len(order)), constant_values=-1)[None]


class FakeFaiss:
    @staticmethod
    def omp_get_max_threads() -> int:
        return 1

    @staticmethod
    def omp_set_num_threads(threads: int) -> None:
        assert threads == 1


def test_recall_is_the_share_of_the_exact_list_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items score 1, 2, ... 300 for everyone: a search that reaches the first half finds none of the best."""
    items = np.arange(1, 301, dtype=np.float32)[:, None]
    users = np.ones((3, 1), dtype=np.float32)
    seen = {"seen_offsets": np.array([0, 2, 2, 2]), "seen_items": np.array([298, 299])}
    towers = {"users": users, "items": items}
    ids = [[str(row) for row in range(count)] for count in (3, 300)]
    bundle = Bundle(Path(), {"score": "inner product"}, "vectors", *ids, towers, **seen, histories={})
    monkeypatch.setitem(measure.WIDTHS, "hnsw", (150, 297, 300, 400))
    index, rows = FakeIndex(items), [0, 1, 2]
    facts, found = measure_index(FakeFaiss, index, "hnsw", bundle, rows, exact_lists(bundle, rows, 4), 1.0, k=4)
    # User 1 has seen the two best: the four best of the others are 300, 299, 298, 297, of which one is reached by 297.
    first = (4 * 0.0 + (3 / 4 + 1 / 4 + 1 / 4)) / 3
    assert [row["search_width"] for row in facts["search"]] == [150, 297, 300]
    assert [row["recall"] for row in facts["search"]] == pytest.approx([0, first, 1])
    assert facts["search_width"] == index.efSearch == 300
    assert found == [[297, 296, 295, 294], [299, 298, 297, 296], [299, 298, 297, 296]]


def test_no_wider_search_is_tried_than_exact_search_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact search over narrow vectors finds a half of the wanted items, so an index that finds a half is enough."""
    items, none = np.arange(1, 301, dtype=np.float32)[:, None], np.zeros(2, np.int64)
    towers = {"users": np.ones((1, 1), dtype=np.float32), "items": items}
    ids = ["u"], [str(row) for row in range(300)]
    bundle = Bundle(Path(), {"score": "inner product"}, "vectors", *ids, towers, none, none[:0], histories={})
    monkeypatch.setitem(measure.WIDTHS, "hnsw", (297, 298, 300))
    wanted = [[299, 298, 297, 296]]
    facts, _ = measure_index(FakeFaiss, FakeIndex(items), "hnsw", bundle, [0], wanted, 0.5, k=4)
    assert [row["recall"] for row in facts["search"]] == [0.25, 0.5]


def test_seen_items_are_asked_for_and_left_out() -> None:
    items = np.arange(1, 6, dtype=np.float32)[:, None]
    index = FakeIndex(items)
    index.efSearch = 5
    user = np.ones(1, dtype=np.float32)
    assert search_index(index, user, np.array([4, 2]), k=2) == [3, 1]
    assert search_index(index, user, np.array([], dtype=np.int64), k=9) == [4, 3, 2, 1, 0]


# What cannot be exported, and where it cannot be written


def test_a_model_without_an_exporter_is_refused_with_those_that_have_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--data_path={data}", f"--output={tmp_path / 'bundle'}"]
    assert main(["export", f"--checkpoint={_trained('EASE', data, epochs=1)}", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "EASE has no exporter. Models with one are" in line
    assert all(name in line for name in ("BPR", "LightGCN", "SASRec", "GRU4Rec", "BERT4Rec", "STOSA", "NeuMF"))
    assert "recbole-kd recommend --users=all" in line
    assert "--teacher=EASE" in line
    assert not list(tmp_path.glob("*bundle*"))


def test_vectors_that_are_not_the_scores_are_refused(bpr: str, data: Path, tmp_path: Path) -> None:
    """A model that calls itself a BPR and adds an item's popularity, say."""
    recommender = Recommender(bpr, config_dict={"data_path": str(data)})
    score_block = recommender.score_block
    recommender.score_block = lambda users: score_block(users) + torch.arange(41)
    with pytest.raises(UserError, match="inner products of BPR's vectors differ from its scores by 40"):
        student_bundle(recommender)


def test_what_is_there_stays_unless_it_may_be_replaced(bundle: Path, bpr: str, data: Path) -> None:
    given = {"data_path": str(data)}
    with pytest.raises(UserError, match="is not empty; choose another folder, or replace it with --overwrite=true"):
        run_export(bpr, str(bundle), config_dict=given)
    (bundle / "left over").write_text("")
    run_export(bpr, str(bundle), seen="all", overwrite=True, config_dict=given)
    assert not (bundle / "left over").exists()
    assert json.loads((bundle / "manifest.json").read_text())["seen"]["pairs"] == 48 * 10
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_no_other_folder_is_ever_replaced(bpr: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "manifest.json").parent.mkdir()
    (tmp_path / "work" / "manifest.json").write_text('{"format": "another"}')
    with pytest.raises(UserError, match="has files that are not an export"):
        run_export(bpr, str(tmp_path / "work"), overwrite=True, config_dict={"data_path": str(data)})
    assert (tmp_path / "work" / "manifest.json").read_text() == '{"format": "another"}'


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device")])
def test_nothing_half_written_is_left(
    failure: Any, bundle: Path, bpr: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    monkeypatch.setattr(export, "readme", fail)
    for folder in (bundle, bundle.parent / "new"):
        with pytest.raises((KeyboardInterrupt, UserError)):
            run_export(bpr, str(folder), overwrite=True, config_dict={"data_path": str(data)})
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith((".", "new"))] == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no checkpoint": ({"checkpoint": None}, "set --checkpoint=FILE"),
    "no output": ({"output": None}, "set --output=DIR"),
    "missing checkpoint": ({"checkpoint": "none.pth"}, "There is no checkpoint 'none.pth'"),
    "index": ({"index": "hnswlib"}, "--index='hnswlib' is not one of faiss"),
    "seen": ({"seen": "none"}, "--seen='none' is not one of train, train+valid, all"),
    "overwrite": ({"overwrite": "yes"}, "--overwrite='yes' is not true or false"),
    "another dataset": ({"dataset": "ml-100k"}, "was trained on known-answer, not on --dataset=ml-100k"),
    "a file": ({"output": "taken"}, "is a file; set --output to a folder"),
    "dtype": ({"dtype": "int4"}, "--dtype='int4' is not one of float32, float16, int8"),
    "type without an index": ({"index_type": "flat"}, "--index_type=flat needs an index; set --index=faiss"),
    "more dimensions": ({"dimensions": 65}, "--dimensions=65 exceeds the 64 of BPR's vectors"),
    "loss of nothing": ({"loss": 0.1}, "--loss=0.1 is only for --explore; set --explore=true"),
    "explore and one of them": ({"explore": "true", "dtype": "int8"}, "--explore=true tries every dtype, but --dtype"),
    "under a file": ({"output": "taken/bundle"}, "choose another place with --output"),
    "key": ({"indx": "faiss"}, "Unknown setting 'indx'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_2(
    case: str, bpr: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("")
    settings, message = BAD[case]
    given = {"checkpoint": bpr, "data_path": data, "output": "bundle", **settings}
    assert main(["export", *(f"--{key}={value}" for key, value in given.items() if value is not None)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("recbole-kd: ")
    assert message in line
    assert not Path("bundle").exists()


def test_a_missing_faiss_is_named(bpr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="--index=faiss is not installed; run: pip install faiss-cpu"):
        run_export(bpr, "bundle", index="faiss")
