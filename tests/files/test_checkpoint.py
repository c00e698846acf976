"""Checkpoint files: what goes in comes out, and what RecBole itself wrote is read whole."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_kd.errors import UserError
from recbole_kd.files.checkpoint import FORMAT, load_any, load_checkpoint, save_checkpoint
from recbole_kd.files.plain import save_json
from recbole_kd.trainer.state import random_state
from tests.files.samples import (
    archive,
    assert_same,
    call,
    named,
    plain_values,
)

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_a_tensor_comes_back_as_it_went(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {"tensor": (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)}
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), {**state, "format": FORMAT})


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("_no_sync")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(max_size=5).filter(lambda key: key != "format"), plain_values, max_size=4))
def test_plain_values_come_back_as_they_went(state: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), {**state, "format": FORMAT})


def test_torch_reads_the_file_with_weights_only(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"student": layer.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state(), "epoch": 3}
    save_checkpoint(state, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth"), torch.load(tmp_path / "x.pth", weights_only=True))


class Marked(Tensor):
    """A kind of tensor that only this file knows."""


def test_values_that_have_a_plain_form_are_saved_in_it(tmp_path: Path) -> None:
    state = {
        "parameter": nn.Parameter(torch.arange(3.0)),
        "marked": torch.arange(2.0).as_subclass(Marked),
        "array": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "point": np.array(2.5),
        "score": np.float64(0.25),
        "count": np.int32(3),
        "flag": np.bool_(True),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "modules": OrderedDict(a=1),
    }
    save_checkpoint(state, tmp_path / "x.pth")
    expected = {
        "parameter": torch.arange(3.0),
        "marked": torch.arange(2.0),
        "array": torch.tensor([[0, 3], [1, 4], [2, 5]], dtype=torch.int32),
        "point": torch.tensor(2.5, dtype=torch.float64),
        "score": 0.25,
        "count": 3,
        "flag": True,
        "size": (2, 3),
        "device": "cuda:1",
        "modules": {"a": 1},
        "format": FORMAT,
    }
    assert_same(load_checkpoint(tmp_path / "x.pth"), expected)
    assert_same(torch.load(tmp_path / "x.pth", weights_only=True), expected)
    assert not torch.load(tmp_path / "x.pth", weights_only=True)["parameter"].requires_grad


def test_shared_tensors_stay_shared_and_a_view_does_not_drag_its_table_along(tmp_path: Path) -> None:
    table = torch.randn(10_000, 8)
    save_checkpoint({"encoder": table, "decoder": table}, tmp_path / "tied.pth")
    tied = load_checkpoint(tmp_path / "tied.pth")
    assert tied["encoder"].data_ptr() == tied["decoder"].data_ptr()
    assert (tmp_path / "tied.pth").stat().st_size < 1.1 * table.numel() * 4

    save_checkpoint({"row": table[7], "column": table[:3, 2], "constant": torch.ones(1).expand(5)}, tmp_path / "v.pth")
    assert (tmp_path / "v.pth").stat().st_size < 10_000
    views = load_checkpoint(tmp_path / "v.pth")
    assert_same(views["row"], table[7])
    assert_same(views["column"], table[:3, 2])
    assert_same(views["constant"], torch.ones(5))


def test_a_conjugate_is_saved_as_its_values(tmp_path: Path) -> None:
    """torch only notes that a tensor is conjugated or negated, and a reader may not know the note."""
    values = torch.tensor([1 + 2j, 3 - 4j])
    save_checkpoint({"conjugated": values.conj(), "negated": values.conj().imag}, tmp_path / "x.pth")
    assert_same(
        load_checkpoint(tmp_path / "x.pth"),
        {"conjugated": torch.tensor([1 - 2j, 3 + 4j]), "negated": torch.tensor([-2.0, 4.0]), "format": FORMAT},
    )


def test_a_transposed_tensor_keeps_its_strides(tmp_path: Path) -> None:
    save_checkpoint({"t": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["t"].stride() == (1, 3)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [0, {1, 2}]}}, r"state\['a'\]\['b'\]\[1\]: it is a builtins.set"),
        ({"f": len}, r"state\['f'\]: it is a builtins.builtin_function"),
        ({"m": nn.Linear(1, 1)}, r"state\['m'\]: it is a torch.nn.modules.linear.Linear"),
        ({"k": {(1, 2): 3}}, r"state\['k'\]: its key \(1, 2\) is a builtins.tuple"),
        ({"k": {True: 3}}, r"state\['k'\]: its key True is a builtins.bool"),
        ({"z": 1j}, r"state\['z'\]: it is a builtins.complex"),
        ({"p": Path("x")}, r"state\['p'\]: it is a pathlib"),
        ({"o": np.array([None])}, r"state\['o'\]: there is no tensor type for an array of object"),
        ({"u": torch.zeros(1, dtype=torch.uint16)}, r"state\['u'\]: it is a torch.strided tensor of torch.uint16"),
        ({"s": torch.eye(2).to_sparse()}, r"state\['s'\]: it is a torch.sparse_coo tensor"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_path_of_keys(state: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        save_checkpoint(state, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


def test_json_holds_numbers_that_every_reader_understands(tmp_path: Path) -> None:
    result = {"recall@20": np.float64(0.5), "best": float("-inf"), "curve": (1.0, float("nan")), "n": np.int64(3)}
    result["array"] = np.array([0.5, np.inf])
    save_json(result, tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"recall@20": 0.5, "best": None, "curve": [1.0, None], "n": 3, "array": [0.5, None]}
    assert text.endswith("}\n")
    with pytest.raises(UserError, match=r"value\['x'\]: it is a builtins.object"):
        save_json({"x": object()}, tmp_path / "other.json")


#: RecBole's Config in a checkpoint of its Trainer.
SETTINGS = call("recbole.config.configurator.Config", state={"final_config_dict": {"model": "BPR"}})


def test_files_that_are_no_checkpoint_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"There is no checkpoint '.*x.pth'"):
        load_checkpoint(path)
    with pytest.raises(UserError, match=r"Cannot read the checkpoint '.*': Is a directory"):
        load_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(UserError, match="is not a whole checkpoint: it is empty"):
        load_checkpoint(path)
    path.write_text("epoch,loss\n" * 50)
    with pytest.raises(UserError, match="it is no PyTorch file"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is a checkpoint of neither recbole-kd nor RecBole"):
        load_checkpoint(path)
    load_any(archive(tmp_path, {"config": SETTINGS, "state_dict": {}}))
    with pytest.raises(UserError, match="is a checkpoint of neither recbole-kd nor RecBole"):
        load_any(archive(tmp_path, {"config": SETTINGS}))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="is a checkpoint of neither recbole-kd nor RecBole"):
        load_checkpoint(path)
    torch.save({"format": "recbole-kd/2"}, path)
    with pytest.raises(UserError, match="has the format recbole-kd/2; this version of recbole-kd reads 'recbole-kd/1'"):
        load_checkpoint(path)


OLD = {"epoch": 1, "weights": torch.arange(1000.0)}


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    path = tmp_path / "saved" / "model.pth"
    save_checkpoint(OLD, path)
    return path


def test_no_part_of_a_file_is_taken_for_the_whole(previous: Path, tmp_path: Path) -> None:
    whole = previous.read_bytes()
    part = tmp_path / "part.pth"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        part.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a whole checkpoint"):
            load_checkpoint(part)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_harmlessly_damaged(data: st.DataObject, previous: Path, tmp_path: Path) -> None:
    content = bytearray(previous.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content)
    try:
        state = load_checkpoint(damaged)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert_same(state, {**OLD, "format": FORMAT})


MODELS = ["BPR", "LightGCN", "NeuMF", "SimpleX", "MultiVAE", "EASE", "ItemKNN", "AsymKNN", "SLIMElastic"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Any, Any, Path]]]:
    """(model, dataset, checkpoint) of one epoch of RecBole on a slice of its bundled ml-100k, by the model's name."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer

    folder = tmp_path_factory.mktemp("recbole")
    settings = {
        "val_interval": {"timestamp": "[892500000,inf)"},
        "item_inter_num_interval": "[4,inf)",
        "epochs": 1,
        "train_batch_size": 512,
        "eval_batch_size": 100_000,
        "checkpoint_dir": str(folder),
        "embedding_size": 4,
        "mlp_embedding_size": 4,
        "mlp_hidden_size": [8],
        "latent_dimension": 4,
        "use_gpu": False,
        "gpu_id": "",
        "state": "CRITICAL",
        "show_progress": False,
    }

    @functools.cache
    def dataset() -> Any:
        return create_dataset(Config("BPR", "ml-100k", config_dict=dict(settings)))

    @functools.cache
    def train(name: str) -> tuple[Any, Any, Path]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["pytest"])
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.chdir(folder)
            sampling = {"train_neg_sample_args": None} if name == "MultiVAE" else {}
            config = Config(name, "ml-100k", config_dict={**settings, **sampling})
            train_data, valid_data, _ = data_preparation(config, copy.deepcopy(dataset()))
            model = get_model(name)(config, train_data._dataset)
            trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
            trainer.saved_model_file = str(folder / f"{name}.pth")
            trainer.fit(train_data, valid_data, verbose=False)
            return model, train_data._dataset, folder / f"{name}.pth"

    logging.disable(logging.CRITICAL)
    yield train
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_recbole_is_read_whole(name: str, trained: Callable[[str], tuple[Any, Any, Path]]) -> None:
    model, dataset, path = trained(name)
    kind, state = load_any(path)
    assert kind == "recbole"
    assert_same(load_any(path)[1], state)

    # RecBole's own way: it executes what the file holds, which this test may do with a file of its own.
    theirs = torch.load(path, weights_only=False)
    assert list(state) == list(theirs)
    assert_same(state["state_dict"], dict(theirs["state_dict"]))
    assert_same(state["other_parameter"], theirs["other_parameter"])
    assert_same(state["optimizer"], theirs["optimizer"])
    assert_same(state["best_valid_score"], float(theirs["best_valid_score"]))
    settings = dict(theirs["config"].final_config_dict)
    plain = {"MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type"}
    settings = {key: value.name if key in plain else value for key, value in settings.items()}
    assert_same(state["config"], {**settings, "device": "cpu"})

    # Another model that is given this state gives this model's scores.
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    for other in state["other_parameter"]:
        setattr(copied, other, None)
    copied.load_state_dict(state["state_dict"])
    copied.load_other_parameter(state["other_parameter"])
    users = {model.USER_ID: torch.arange(1, 6), model.ITEM_ID: torch.arange(1, 6)}
    with torch.no_grad():
        expected = torch.as_tensor(model.eval().predict(users))
        assert torch.equal(torch.as_tensor(copied.eval().predict(users)), expected)
    assert expected.abs().sum() > 0


def test_the_enums_of_early_python_311_are_read(tmp_path: Path) -> None:
    # Python 3.11.0 to 3.11.3 pickle ModelType.GENERAL as getattr(ModelType, "GENERAL"), later ones as ModelType(1).
    enum = "recbole.utils.enum_type.ModelType"
    config = {"early": call("builtins.getattr", named(enum), "GENERAL"), "later": call(enum, 1)}
    state = {
        "config": call("recbole.config.configurator.Config", state={"final_config_dict": config}),
        "state_dict": {},
    }
    assert load_any(archive(tmp_path, state))[1]["config"] == {"early": "GENERAL", "later": "GENERAL"}
