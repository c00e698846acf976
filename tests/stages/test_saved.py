"""A saved model knows how its data was read: no setting of a CSV has to be given again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recbole_kd.cli import main
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.stages.data import load_splits
from recbole_kd.stages.saved import load_trained
from recbole_kd.verbs.evaluate import evaluate_checkpoint
from recbole_kd.verbs.train import run_recbole_kd

#: How the shop's table is to be read.
SHOP = {
    "field_separator": ";",
    "USER_ID_FIELD": "customer",
    "ITEM_ID_FIELD": "sku",
    "TIME_FIELD": "when",
    "RATING_FIELD": "stars",
    "load_col": {"inter": ["customer", "sku", "stars", "when"]},
    "val_interval": {"stars": "[2,inf)"},
    "encoding": "latin-1",
}
COMMA = "José D., no 81"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above a table of another separator, encoding and other columns; one id holds a comma."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(3)
    lines = ["customer:token;sku:token;stars:float;when:float"]
    for user in (COMMA, *(f"u{number}" for number in range(30))):
        lines += [
            f"{user};p{item};{draw.randrange(1, 6)};{draw.randrange(9999)}" for item in draw.sample(range(60), 20)
        ]
    (folder / "shop").mkdir()
    (folder / "shop" / "shop.inter").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


@pytest.fixture(scope="module")
def trained(shop: Path) -> dict[str, Any]:
    """The result of a model that was trained on it."""
    given = {"data_path": str(shop), "checkpoint_dir": str(shop / "saved"), "epochs": 1, "show_progress": False}
    evaluation = {"topk": [3, 7], "metrics": ["Recall", "MRR"], "valid_metric": "MRR@7", "metric_decimal_place": 6}
    return run_recbole_kd("BPR", "shop", config_dict={**SHOP, **given, **evaluation, "baseline": None})


def test_evaluate_reads_a_table_as_training_did(trained: dict[str, Any], shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = [f"--checkpoint={trained['checkpoint']}", f"--data_path={shop}", f"--result_file={file}"]
    assert main(["evaluate", *words]) == 0
    assert json.loads(file.read_text())["test_result"] == trained["test_result"]


def test_evaluate_takes_the_metrics_of_the_training_unless_others_are_given(
    trained: dict[str, Any], shop: Path
) -> None:
    own = evaluate_checkpoint(trained["checkpoint"], {"data_path": str(shop)})
    assert own["test_result"].keys() == {"recall@3", "recall@7", "mrr@3", "mrr@7"}
    other = evaluate_checkpoint(trained["checkpoint"], {"data_path": str(shop), "topk": [5]})
    assert other["test_result"].keys() == {"recall@5", "mrr@5"}


def test_the_tail_of_the_training_is_that_of_its_baseline_and_of_evaluate(shop: Path) -> None:
    given = {"data_path": str(shop), "checkpoint_dir": str(shop / "tail"), "epochs": 1, "show_progress": False}
    tail = {"metrics": ["NDCG", "TailPercentage"], "tail_ratio": 0.5}
    result = run_recbole_kd("BPR", "shop", config_dict={**SHOP, **given, **tail, "baseline": None})
    again = evaluate_checkpoint(result["checkpoint"], {"data_path": str(shop)})["test_result"]
    assert again == result["test_result"]
    rarer = evaluate_checkpoint(result["checkpoint"], {"data_path": str(shop), "tail_ratio": 0.1})["test_result"]
    assert rarer["tailpercentage@10"] < again["tailpercentage@10"]
    config = KDConfig("RRDStudent", "shop", config_dict=tail)
    assert config.baseline_config()["tail_ratio"] == config.teacher_config()["tail_ratio"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "LightGCN"}, "--model=LightGCN: '.*' is a checkpoint of BPR; leave it out"),
        ({"embedding_size": 3}, "--embedding_size=3: '.*' was trained with embedding_size=64; leave it out"),
        ({"learning_rate": 9}, "--learning_rate=9: '.*' was trained with learning_rate=0.001; leave it out"),
    ],
    ids=str,
)
def test_what_an_evaluation_cannot_change_is_refused(
    settings: dict[str, Any], message: str, trained: dict[str, Any], shop: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_checkpoint(trained["checkpoint"], {"data_path": str(shop), **settings})


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_an_evaluation_by_a_cluster_that_is_not_there_is_refused(address: str) -> None:
    """Before the checkpoint is looked for."""
    with pytest.raises(UserError, match=f"No Ray cluster answers at --ray_address={address}"):
        evaluate_checkpoint("none.pth", {"ray_address": address})


def test_recommend_finds_a_user_whose_id_holds_a_comma(
    trained: dict[str, Any], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recommend", f"--checkpoint={trained['checkpoint']}", f"--data_path={shop}", "--k=1"]
    assert main([*words, "--users=nobody"]) == 2
    assert f"such as '{COMMA}'" in capsys.readouterr().err
    assert main([*words, f"--users=u1,{COMMA}, u2"]) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.rsplit(",", 3)[0] for line in lines] == ["u1", f'"{COMMA}"', "u2"]


def test_export_needs_no_setting_again(trained: dict[str, Any], shop: Path, tmp_path: Path) -> None:
    words = [f"--checkpoint={trained['checkpoint']}", f"--data_path={shop}", f"--output={tmp_path / 'bundle'}"]
    assert main(["export", *words]) == 0
    assert json.loads((tmp_path / "bundle" / "users.jsonl").read_text().splitlines()[0]) == COMMA


def test_the_file_of_the_training_can_be_given_again(trained: dict[str, Any], shop: Path, tmp_path: Path) -> None:
    """What it says of model and training is the checkpoint's own by now."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**SHOP, "data_path": str(shop), "model": "BPR", "epochs": 9, "rrd.weight": 1}))
    loaded, _ = load_trained(trained["checkpoint"], {"config_files": str(file), "topk": [3]})
    assert loaded.config["topk"] == [3]
    assert loaded.config["embedding_size"] == 64
    file.write_text("field_separatr: ','")
    with pytest.raises(UserError, match="Unknown setting 'field_separatr' in .* Did you mean 'field_separator'"):
        load_trained(trained["checkpoint"], {"config_files": str(file)})


def test_a_setting_of_the_command_line_wins(trained: dict[str, Any], shop: Path) -> None:
    with pytest.raises(UserError, match="was trained on another split|another order"):
        load_trained(trained["checkpoint"], {"data_path": str(shop), "val_interval": {"stars": "[3,inf)"}})


def test_what_reading_used_is_noted_while_it_reads(shop: Path) -> None:
    config = KDConfig("BPR", "shop", config_dict={**SHOP, "data_path": str(shop), "show_progress": False})
    splits = load_splits(config)
    assert {*SHOP} - {"RATING_FIELD"} <= set(splits.read_settings), "no rating is read by its role"
    assert {"seed", "eval_args", "split_seed"} <= set(splits.read_settings)
    assert not {"learning_rate", "embedding_size", "metrics"} & set(splits.read_settings)


def test_a_checkpoint_of_an_older_program_is_read_by_all_that_data_is_read_by(
    trained: dict[str, Any], shop: Path, tmp_path: Path
) -> None:
    state = torch.load(trained["checkpoint"], weights_only=True)
    assert state.pop("data_settings")
    torch.save(state, tmp_path / "old.pth")
    given = {"data_path": str(shop), "encoding": "latin-1"}
    assert load_trained(str(tmp_path / "old.pth"), given)[1].user_tokens == state["user_tokens"]


@pytest.mark.parametrize("kind", ["user", "item"])
def test_other_numbers_of_users_or_of_items_alone_are_refused(
    kind: str, trained: dict[str, Any], shop: Path, tmp_path: Path
) -> None:
    state = torch.load(trained["checkpoint"], weights_only=True)
    state[f"{kind}_tokens"][1:] = reversed(state[f"{kind}_tokens"][1:])
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match="numbers the users and items of shop in another order"):
        load_trained(str(tmp_path / "other.pth"), {"data_path": str(shop)})


def test_what_a_model_draws_when_it_is_built_is_drawn_again(shop: Path) -> None:
    """NNCF keeps the neighbours that it draws in no checkpoint; the seed of the split is another."""
    given = {
        "split_seed": 7,
        "data_path": str(shop),
        "checkpoint_dir": str(shop / "drawn"),
        "epochs": 1,
        "show_progress": False,
    }
    small = {"ui_embedding_size": 4, "neigh_embedding_size": 4, "num_conv_kernel": 4, "mlp_hidden_size": [4]}
    result = run_recbole_kd("NNCF", "shop", config_dict={**SHOP, **given, **small, "baseline": None})
    assert evaluate_checkpoint(result["checkpoint"], {"data_path": str(shop)})["test_result"] == result["test_result"]
