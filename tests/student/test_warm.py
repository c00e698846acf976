"""A student that begins where another one ended: known rows are kept, new ones begin at a stated place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recbole_kd import run_recbole_kd
from recbole_kd.errors import UserError
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.checkpoint import ModelState, load_checkpoint
from recbole_kd.student.warm import Side, warn_of_other_splits
from recbole_kd.testing import known_answer_settings
from tests.data.test_dataset import pairs_of_shop, write

SIZES: dict[str, dict[str, Any]] = {
    "BPR": {"embedding_size": 4},
    "LightGCN": {"embedding_size": 4},
    "NeuMF": {"mf_embedding_size": 4, "mlp_embedding_size": 4, "mlp_hidden_size": [4, 3]},
    "SASRec": {"hidden_size": 4, "inner_size": 5, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 7},
    "BERT4Rec": {"hidden_size": 4, "inner_size": 5, "n_heads": 1, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 7},
    "MultiDAE": {"mlp_hidden_size": [5], "latent_dimension": 4},
    "Pop": {},
}
SEQUENTIAL = ("SASRec", "BERT4Rec")


def test_known_rows_move_and_new_ones_begin_at_the_mean_of_the_known() -> None:
    side = Side.of(["[PAD]", "c", "new", "a"], ["[PAD]", "a", "b", "c"])
    stored = torch.tensor([[0.0], [1.0], [2.0], [6.0], [9.0]])  # the last row is a mask's
    assert side.rows(stored).flatten().tolist() == [0.0, 6.0, 3.0, 1.0, 9.0]
    assert side.told("items") == "2 items known, 1 new, 1 gone"


def test_new_rows_begin_beside_their_neighbours_by_the_teacher() -> None:
    """Of 24 known ones the teacher puts twelve on either side; ten neighbours are asked for."""
    known = [f"k{number}" for number in range(24)]
    vectors = torch.tensor([[0.0, 0.0], *([[1.0, 0.0]] * 12), *([[0.0, 1.0]] * 12), [5.0, 0.1]])
    side = Side.of(["[PAD]", *known, "new"], ["[PAD]", *known], vectors)
    stored = torch.tensor([[0.0], *([[1.0]] * 12), *([[3.0]] * 12)])
    assert side.rows(stored)[25].item() == 1.0


def shop(folder: Path, pairs: list[tuple[str, str]]) -> None:
    users, items = zip(*pairs)
    write(folder, "shop", user_id=list(users), item_id=list(items), timestamp=list(range(len(users))))


def run(folder: Path, model: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result and the state that was saved."""
    given: dict[str, Any] = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "topk": [5],
        "valid_metric": "NDCG@5",
        "epochs": 1,
        "baseline": "none",
        **SIZES[model],
        **settings,
    }
    if model in SEQUENTIAL:
        given |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "eval_args.order": "TO"}
    result = run_recbole_kd(model, "shop", config_dict=given)
    return result, load_checkpoint(result["checkpoint"], schema=ModelState)


def grown() -> list[tuple[str, str]]:
    """The shop in another order, without user u0, with a user and an item more."""
    pairs = [(user, item) for user, item in reversed(pairs_of_shop()) if user != "u0"]
    return [*pairs, *(("ann", item) for item in ("i1", "i2", "i3", "i4", "fresh"))]


def by_token(state: dict[str, Any], name: str, kind: str) -> dict[str, Tensor]:
    return dict(zip(state[f"{kind}_tokens"], state["state_dict"][name]))


@pytest.mark.parametrize("model", [model for model in SIZES if model not in ("MultiDAE", "Pop")])
def test_users_and_items_keep_their_vectors_whatever_their_numbers(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop(tmp_path, pairs_of_shop())
    first, before = run(tmp_path, model)
    shop(tmp_path, grown())
    with caplog.at_level("INFO"):
        _, after = run(tmp_path, model, warm_start=first["checkpoint"], epochs=0)
    assert "39 users known, 1 new, 1 gone; 60 items known, 1 new, 0 gone. New ones start at the mean" in caplog.text
    moved = 0
    for name, weights in before["state_dict"].items():
        kind = next(
            (kind for kind in ("user", "item") if kind in name or (kind, name) == ("item", "output_bias")), None
        )
        if kind is None:
            assert torch.equal(after["state_dict"][name], weights)
            continue
        old, new, moved = by_token(before, name, kind), by_token(after, name, kind), moved + 1
        shared = set(old) & set(new)
        assert len(shared) == (40 if kind == "user" else 61)
        assert all(torch.equal(old[token], new[token]) for token in shared)
        (added,) = set(new) - set(old)
        known = weights[1 : len(before[f"{kind}_tokens"])]
        torch.testing.assert_close(new[added], known.mean(dim=0))
    assert moved


def test_a_teacher_says_beside_whom_new_ones_begin(tmp_path: Path) -> None:
    shop(tmp_path, pairs_of_shop())
    first, before = run(tmp_path, "BPR")
    shop(tmp_path, grown())
    teaching = {"teacher": "BPR", "teacher.epochs": 1, "teacher.embedding_size": 6, "distill": "fitnet", "epochs": 0}
    taught, after = run(tmp_path, "BPR", warm_start=first["checkpoint"], warm_start_new="teacher", **teaching)
    teacher = load_checkpoint(taught["teacher"]["checkpoint"])
    vectors = by_token(teacher, "item_embedding.weight", "item")
    known = [token for token in before["item_tokens"][1:] if token in vectors]
    units = nn.functional.normalize(torch.stack([vectors[token] for token in known]), dim=1)
    near = (units @ nn.functional.normalize(vectors["fresh"], dim=0)).topk(10).indices.tolist()
    old = by_token(before, "item_embedding.weight", "item")
    expected = torch.stack([old[known[place]] for place in near]).mean(dim=0)
    torch.testing.assert_close(by_token(after, "item_embedding.weight", "item")["fresh"], expected)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("LightGCN", {}, "holds a BPR, but the student is a LightGCN; set --model to BPR, or give another file"),
        (
            "BPR",
            {"embedding_size": 3},
            r"has \(41, 4\) for 'user_embedding.weight', but the student \(41, 3\); set the",
        ),
        ("BPR", {"warm_start": "none.pth"}, "There is no checkpoint 'none.pth'"),
        ("BPR", {"warm_start_new": "teacher"}, "but there is no teacher; set --warm_start_new=mean"),
        ("Pop", {}, "Pop is computed in closed form and has no initial weights; leave --warm_start out"),
        (
            "BPR",
            {"teacher": "BPR", "distill": "rrd", "teacher.warm_start": "x.pth"},
            "only the student can start from a",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(tmp_path: Path, model: str, settings: dict[str, Any], message: str) -> None:
    shop(tmp_path, pairs_of_shop())
    first, _ = run(tmp_path, "BPR")
    with pytest.raises(UserError, match=message):
        run(tmp_path, model, **{"warm_start": first["checkpoint"], **settings})


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_file_of_vectors_that_lacks_some_says_beside_whom_no_one_begins(model: str, tmp_path: Path) -> None:
    shop(tmp_path, pairs_of_shop())
    first, _ = run(tmp_path, model)
    shop(tmp_path, grown())
    items = sorted({item for _, item in grown()} - {"fresh"})
    vectors = [f"{item},{number}.0 1.5" for number, item in enumerate(items)]
    file = tmp_path / "items.csv"
    given = {"distill": "fitnet", "teacher.vectors": str(file), "warm_start": first["checkpoint"], "epochs": 0}
    file.write_text("\n".join(["item_id,vector", *vectors]) + "\n")
    with pytest.raises(UserError, match=r"items.csv lacks some; set --warm_start_new=mean, or give"):
        run(tmp_path, model, warm_start_new="teacher", **given)
    run(tmp_path, model, **given)
    file.write_text("\n".join(["item_id,vector", *vectors, "fresh,0.5 2.0"]) + "\n")
    run(tmp_path, model, warm_start_new="teacher", **given)


@pytest.mark.parametrize("setting", ["warm_start", "mf_pretrain_path"])
def test_weights_of_another_split_are_told(
    setting: str, known_answer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may know what this run tests; weights of the same split do not."""
    given = known_answer_settings(known_answer, distill=[], epochs=1, checkpoint_dir=str(tmp_path), embedding_size=4)
    file = run_recbole_kd("BPR", "known-answer", config_dict=given)["checkpoint"]
    config = KDConfig(
        "BPR" if setting == "warm_start" else "NeuMF",
        "known-answer",
        config_dict={**given, setting: file} | ({} if setting == "warm_start" else {"use_pretrain": True}),
    )
    same = load_checkpoint(file, schema=ModelState)["split"]
    for split, told in ((same, False), ("another", True)):
        caplog.clear()
        warn_of_other_splits(config, split)
        assert (f"--{setting}: '{file}' was trained on another split" in caplog.text) == told


def test_items_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    shop(tmp_path, pairs_of_shop())
    first, _ = run(tmp_path, "BPR")
    shop(tmp_path, [(user, f"other-{item}") for user, item in pairs_of_shop()])
    with pytest.raises(UserError, match="knows none of the 60 items of this data"):
        run(tmp_path, "BPR", warm_start=first["checkpoint"])


def test_weights_of_which_nobody_knows_whose_rows_they_are_are_refused(tmp_path: Path) -> None:
    shop(tmp_path, pairs_of_shop())
    first, _ = run(tmp_path, "MultiDAE")
    shop(tmp_path, grown())
    with pytest.raises(UserError, match="it is unknown whether '"):
        run(tmp_path, "MultiDAE", warm_start=first["checkpoint"])
