"""Ten users and twelve items: everything trains with its default options, or one line says which is too large."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from recbole_kd.cli import main
from recbole_kd.experiment.known_keys import _WORDS, of_a_model
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class, recipes, resolve_model
from tests.test_cli import quick

USERS, ITEMS = 10, 12
SEQUENTIAL = [name for name, entry in DISTILLERS.items() if entry.sequential]
GENERAL = [name for name in DISTILLERS if name != "dkd"]
#: Lists that are longer than the catalogue by default, shortened.
SHORT: dict[str, dict[str, int]] = {
    "rd": {"interesting": 4, "dynamic_samples": 4},
    "cd": {"pool": 6, "samples": 3},
    "rrd": {"pool": 4, "interesting": 2, "uninteresting": 3},
    "ir_rrd": {"pool": 2, "interesting": 2, "uninteresting": 1},
    "unkd": {"pool": 8, "groups": 2, "pairs": 8},
    "kd": {"items": 4},
    "dcd": {"pool": 6, "interesting": 3, "uninteresting": 3},
}
#: Sizes of models and recipes that are larger than the data by default.
SMALL: dict[str, dict[str, Any]] = {
    "NCL": {"num_clusters": 4},
    "DGCF": {"train_batch_size": 16},
    "DMF": {"load_col": "{inter: [user_id,item_id,rating]}"},
    "RaCT": {"pretrain_epochs": 2, "save_step": 1},
}


def write_tiny(folder: Path) -> Path:
    """Writes the data: each user had six of the items, in an order of time."""
    steps = enumerate((0, 1, 4, 9, 6, 2))
    pairs = [(user, (user + jump) % ITEMS, step) for step, jump in steps for user in range(USERS)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    rows = [f"u{user}\ti{item}\t{1 + item % 5}\t{10 * step + user}" for user, item, step in pairs]
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "tiny.inter").write_text("\n".join([header, *rows]) + "\n")
    return folder


def tiny_settings(model: str, **given: Any) -> dict[str, Any]:
    """Settings of a run on the data; a sequential model's last items are held out."""
    if resolve_model(model).model_class.type.name == "SEQUENTIAL":
        given = {"load_col": "{inter: [user_id,item_id,timestamp]}", "eval_args.order": "TO", **given}
        given = {"eval_args.split": "{LS: valid_and_test}", **given}
    settings = {"dataset": "tiny", "benchmark_filename": None, "topk": "[5]", "valid_metric": "NDCG@5"}
    return {"model": model, **settings, **given}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


def refused(data: Path, capsys: pytest.CaptureFixture[str], model: str, **given: Any) -> str:
    """What the one line says where the command is refused; nothing where it trains."""
    capsys.readouterr()
    code = main(quick(data, **tiny_settings(model, **given)))
    said = capsys.readouterr().err
    found = [line for line in said.splitlines() if line.startswith("recbole-kd:")]
    assert "Traceback" not in said
    assert (code, len(found)) in ((0, 0), (2, 1)), said
    return found[0] if found else ""


@pytest.mark.parametrize(
    ("model", "name"), [*(("BPR", name) for name in GENERAL), *(("SASRec", name) for name in SEQUENTIAL)]
)
def test_a_distiller_trains_or_names_its_option(
    model: str, name: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = {"distill": name, "teacher": model, "teacher.epochs": 1}
    line = refused(data, capsys, model, **taught)
    if line:
        assert re.search(rf" {name}\.\w+=\d+.*; lower ", line)
        short = {f"{name}.{option}": value for option, value in SHORT[name].items()}
        assert not refused(data, capsys, model, **taught, **short)


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_trains_or_names_its_option(recipe: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(data, capsys, recipe, **{"teacher.epochs": 1})
    if line:
        names = "|".join(recipes()[recipe]["distill"])
        assert re.search(rf" ({names})\.\w+=\d+.*; lower ", line)


@pytest.mark.parametrize("size", [ITEMS - 1, ITEMS, ITEMS + 1])
@pytest.mark.parametrize("name", SHORT)
def test_lists_as_long_as_the_catalogue(name: str, size: int, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user has observed some of the items, so that nobody has so many unobserved ones."""
    for option in {"pool", "items", "interesting"} & {
        field.name for field in fields(distiller_class(name).options_class)
    }:
        given = {f"{name}.{key}": value for key, value in {**SHORT[name], option: size}.items()}
        line = refused(data, capsys, "BPR", distill=name, teacher="BPR", **given)
        assert f"{name}.{option}={size}" in line
        assert "lower" in line


def test_more_pairs_than_there_are_items(known_answer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The 30 pairs of a user come from a pool of 8 items, so that items are drawn more than once."""
    given = {"distill": "unkd", "unkd.pool": 8, "teacher": "BPR", "teacher.epochs": 1}
    assert main(quick(known_answer, model="BPR", **given)) == 0
    assert "a larger unkd.pool reaches more of them" in caplog.text


def test_a_batch_that_dgcf_draws_too_many_nodes_for(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(data, capsys, "DGCF")
    assert "--train_batch_size=2048: DGCF draws 13 users and items a step, more than the 10 that there are" in line
    (largest,) = re.findall(r"lower it to (\d+)", line)
    assert not refused(data, capsys, "DGCF", train_batch_size=largest)
    assert not refused(data, capsys, "DGCF", cor_weight=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_model_trains(model: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not refused(data, capsys, model, **SMALL.get(model, {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "key", "word"),
    [
        (model, key, word)
        for model in MODELS
        for key, default in KDConfig(model, "ml-100k").internal_config_dict.items()
        if key in _WORDS
        for word in of_a_model(key, {key: default})[1]["choices"]
        # They need files or a package; RecBole's knn fails by itself.
        if word not in ("after_pretrain", "critic_pretrain", "finetune", "louvain", "knn")
    ],
)
def test_a_model_trains_with_each_of_its_words(
    model: str, key: str, word: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not refused(data, capsys, model, **SMALL.get(model, {}), **{key: word})
