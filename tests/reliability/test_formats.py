"""Every field of a real file of every format is left out or given another type: refused in a line, or read rightly.

Each case goes through the command line, as a user's would.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_kd.cli import main
from recbole_kd.files.checkpoint import load_checkpoint, save_checkpoint
from recbole_kd.testing import write_known_answer
from tests.report.fabricated import fabricated
from tests.test_cli import quick

SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
#: What stands in a field in place of what belongs there; LEFT_OUT is nothing at all.
LEFT_OUT = object()
VALUES: list[Any] = [
    *(LEFT_OUT, None, True, 0, -1, 7, 10**30, 0.5, float("nan"), float("inf"), -1e300, "", "x", "$x^{$", "\ud800"),
    *([], [0], ["x"], [[]], {}, {"x": 0}, {"0": {}}, {"x": {"y": []}}),
]
TENSORS = [torch.zeros(0), torch.zeros(2, 2), torch.full((3,), torch.nan), torch.ones(3, dtype=torch.int64)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of keys to each part of a value."""
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield (*path, key)
            yield from places(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """A copy of a value with another part at a place."""
    whole = copy.deepcopy(value)
    inside = whole
    for key in path[:-1]:
        inside = inside[key]
    if part is LEFT_OUT:
        del inside[path[-1]]
    else:
        inside[path[-1]] = part
    return whole


def ends_in_a_line(words: list[str], capsys: pytest.CaptureFixture[str], only: int | None = None) -> int:
    """Runs the command line; what it refuses it refuses in one line. `only` is an exit code that it must have."""
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr().err
    assert code in ((0, 2) if only is None else (only,)), said
    assert "Traceback" not in said
    if code:
        *skipped, line = [line for line in said.splitlines() if line.startswith("recbole-kd:")]
        assert all("skipped" in line for line in skipped)
        assert len(line) < 1000
    return code


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_known_answer(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The checkpoint of two epochs, from which a third can be trained."""
    assert main(quick(data, model="BPR", epochs=2, save_last="true")) == 0
    (last,) = (data / "saved").glob("BPR-*-last.pth")
    # A run that goes on from a file writes beside it.
    return Path(shutil.copy(last, data / "trained.pth"))


# Checkpoints


READERS: dict[str, Callable[[Path, Path], list[str]]] = {
    "evaluate": lambda data, path: ["evaluate", f"--checkpoint={path}", f"--data_path={data}"],
    "resume": lambda data, path: quick(data, model="BPR", epochs=3, save_last="false", resume=path),
    "teach": lambda data, path: quick(data, model="DEStudent", **{"teacher.checkpoint": path, "de.experts": 2}),
    "analyse": lambda data, path: [
        *("analyse", f"--student={path}", f"--teacher={path}", f"--data_path={data}", "--parts=[spectrum]"),
        f"--output={data / 'out'}",
    ],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_checkpoint_is_read(reader: str, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_in_a_line(READERS[reader](data, trained), capsys) == 0


@settings(max_examples=int(os.environ.get("EXAMPLES", 25)), **SETTINGS)
@given(draw=st.data())
@pytest.mark.parametrize("reader", READERS)
def test_a_checkpoint_with_a_changed_field(
    reader: str, draw: st.DataObject, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(trained)
    # The settings are checked as any others are, wherever they come from.
    fields = [path for path in places(state) if path[0] not in ("config", "format") and "tokens" not in str(path[:-1])]
    part = draw.draw(st.sampled_from([*VALUES[:14], *VALUES[15:], *TENSORS]))
    damaged = data / "damaged" / "x.pth"
    save_checkpoint(changed(state, draw.draw(st.sampled_from(fields)), part), damaged)
    ends_in_a_line(READERS[reader](data, damaged), capsys)


def test_every_field_that_a_checkpoint_needs_is_missed(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(trained)
    damaged = data / "damaged" / "x.pth"
    for field in ("model", "backbone", "dataset", "config", "user_tokens", "item_tokens", "split", "state_dict"):
        for value in (LEFT_OUT, 7, [7], {"x": object}):
            if not isinstance(value, dict):
                save_checkpoint(changed(state, (field,), value), damaged)
                assert main(READERS["evaluate"](data, damaged)) == 2
                assert f"field {field}" in capsys.readouterr().err


# Results of a comparison


@settings(max_examples=60, **SETTINGS)
@given(draw=st.data())
def test_results_with_a_changed_field(
    draw: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_kd.report.pictures", lambda comparison: {})  # drawn below
    results = fabricated(seeds=2)
    part = draw.draw(st.sampled_from(VALUES))
    path = draw.draw(st.sampled_from(FIELDS))
    (tmp_path / "results.json").write_text(json.dumps(changed(results, path, part)))
    ends_in_a_line(["report", f"--results={tmp_path / 'results.json'}", f"--output={tmp_path / 'out'}"], capsys)


def _fields() -> list[tuple[Any, ...]]:
    """Places in results: of epochs and runs the first ones stand for the others."""
    return [path for path in places(fabricated(seeds=2)) if all(key in (0, 1) for key in path[3:] if type(key) is int)]


FIELDS = _fields()


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (("rows", 0, "name"), "$x^{$"),
        (("rows", 0, "name"), "_hidden\n|a|<b>"),
        (("metrics", 0), "$x^{$"),
        (("rows", 1, "costs", "parameters"), 0),
        (("rows", 1, "costs", "latency_ms", "batch_1", "p50"), 1e-300),
        (("rows", 1, "mean", "ndcg@20"), None),
        (("rows", 1, "runs", 0, "valid_history"), None),
        (("rows", 1, "runs", 0, "loss_history"), {"0": {"$": 1e300, "x": None}}),
        (("significance", "ndcg@20", "names", 0), "x"),
        (("dataset",), "<script>"),
    ],
    ids=str,
)
def test_pictures_of_odd_results_are_drawn_or_refused(
    path: tuple[Any, ...], part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(changed(fabricated(seeds=1), path, part)))
    words = ["report", f"--results={tmp_path / 'results.json'}", f"--output={tmp_path / 'out'}"]
    if ends_in_a_line(words, capsys):
        assert not (tmp_path / "out").exists(), "nothing is written before everything is drawn"


@pytest.mark.parametrize(
    "text", ["null", "[]", "7", '"x"', "{", '{"format": 1}', "[" * 10_000, '{"format": 1, "rows": [0]}']
)
def test_what_is_no_result(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(text)
    assert ends_in_a_line(["report", f"--results={tmp_path / 'results.json'}"], capsys) == 2


# Pipes and devices


@pytest.mark.parametrize("made", ["pipe", "device"])
@pytest.mark.parametrize(
    "key", ["checkpoint", "results", "config_files", "resume", "params_file", "users", "mf_pretrain_path"]
)
def test_a_pipe_or_a_device_is_refused_at_once(
    key: str, made: str, data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("/dev/zero")
    if made == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    words = {
        "checkpoint": ["evaluate", f"--checkpoint={path}"],
        "results": ["report", f"--results={path}"],
        "config_files": quick(data, model="BPR", config_files=path),
        "resume": quick(data, model="BPR", resume=path),
        "params_file": ["tune", *quick(data, model="BPR", params_file=path, trials=1)],
        "users": ["recommend", f"--checkpoint={trained}", f"--data_path={data}", f"--users=@{path}"],
        "mf_pretrain_path": quick(data, model="NeuMF", mf_pretrain_path=path),
    }[key]
    assert main(words) == 2
    assert "it is a pipe or a device; expected a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "evaluate", "recommend"])
def test_a_pipe_or_a_device_is_not_written_over(
    verb: str, data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "output").symlink_to("/proc/self/fd/1")  # as /dev/stdout, which a file would take the place of
    one = [f"--checkpoint={trained}", f"--data_path={data}"]
    for path in (tmp_path / "pipe", tmp_path / "output"):
        words = {
            "train": quick(data, model="BPR", result_file=path),
            "evaluate": ["evaluate", *one, f"--result_file={path}"],
            "recommend": ["recommend", *one, "--users=all", f"--output={path}"],
        }[verb]
        assert main(words) == 2
        assert "it is a pipe or a device; expected a regular file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "output").is_symlink()


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for words in (
        quick(data, model="BPR", checkpoint_dir=tmp_path / "file" / "saved"),
        quick(data, model="BPR", result_file=tmp_path / "file" / "result.json"),
        ["compare", f"--data_path={data}", "--dataset=known-answer", "--models=BPR", f"--output={tmp_path / 'file'}"],
    ):
        assert main(words) == 2
        assert f"'{tmp_path / 'file'}' is not a folder" in capsys.readouterr().err
    assert "Training" not in caplog.text


# Ranked lists and runs that are kept


def test_a_pipe_in_the_place_of_compiled_data_is_replaced(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = quick(data, model="BPR", checkpoint_dir=data / "compiled")
    assert main(words) == 0
    compiled = sorted((data / "compiled" / "data").glob("*.arrow"))
    for path in compiled:
        path.unlink()
        os.mkfifo(path)
    assert main(words) == 0
    assert caplog.text.count("is damaged; it is made again") == len(compiled) > 0
    assert all(path.is_file() for path in compiled)


def test_a_kept_list_that_was_damaged_is_made_anew(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"rrd.interesting": 5, "rrd.uninteresting": 5, "rrd.pool": 8, "teacher.epochs": 1}
    words = quick(data, model="RRDStudent", **small, **{"teacher.embedding_size": 8})
    assert main(words) == 0
    (bank,) = (data / "saved" / "ranks").glob("*.npy")
    whole = bank.read_bytes()
    for damaged in (
        whole[:-1],
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        whole[:128] + bytes(len(whole) - 128),
    ):
        bank.write_bytes(damaged)
        caplog.clear()
        assert main(words) == 0
        assert "are damaged or of an earlier version; they are made again" in caplog.text
        assert bank.read_bytes() == whole


def test_a_stage_of_pretraining_is_kept_as_any_other_model(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RecBole's trainer of RaCT would pickle it, with its whole configuration."""
    stage = {"pretrain_epochs": 2, "save_step": 1, "mlp_hidden_size": "[8]", "latent_dimension": 8, "metrics_k": 10}
    folder = data / "stages"
    assert main(quick(data, model="RaCT", checkpoint_dir=folder, **stage)) == 0
    assert sorted(path.name for path in folder.glob("RaCT-known-answer-[12].pth")) == [
        "RaCT-known-answer-1.pth",
        "RaCT-known-answer-2.pth",
    ]
    first = folder / "RaCT-known-answer-2.pth"
    capsys.readouterr()
    assert main(["evaluate", f"--checkpoint={first}", f"--data_path={data}"]) == 0
    assert "ndcg@10" in capsys.readouterr().out
    second = {"train_stage": "critic_pretrain", "pre_model_path": first, "checkpoint_dir": data / "second"}
    assert main(quick(data, model="RaCT", **{**stage, **second})) == 0
    weights = [load_checkpoint(path)["state_dict"] for path in (first, data / "second" / "RaCT-known-answer-2.pth")]
    assert torch.equal(*(state["encoder.0.weight"] for state in weights)), "the second stage trains the critic alone"
    assert not torch.equal(*(state["critic_net.0.weight"] for state in weights))
