"""The command line: words to settings, one line and exit code 2 for what a user can mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recbole_kd
from recbole_kd.cli import VERBS, main, parse
from recbole_kd.errors import UserError
from recbole_kd.registry import DISTILLERS, MODELS


def quick(data_path: Path, **settings: Any) -> list[str]:
    given = {
        "dataset": "known-answer",
        "data_path": data_path,
        "checkpoint_dir": data_path / "saved",
        "benchmark_filename": "[train,valid,test]",
        "epochs": 1,
        "topk": "[10]",
        "valid_metric": "NDCG@10",
        "baseline": "none",
        **settings,
    }
    return [f"--{key}={value}" for key, value in given.items()]


def test_words_become_settings() -> None:
    verb, settings, _ = parse(["--model=BPR", "--topk=[5,10]", "--rrd.weight", "0.1", "--dataset=2020", "--x=a=b"])
    assert verb == "train"
    assert settings == {"model": "BPR", "topk": [5, 10], "rrd.weight": 0.1, "dataset": "2020", "x": "a=b"}
    assert parse(["list", "--kind=students"])[:2] == ("list", {"kind": "students"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown verb 'trian'. Did you mean 'train'?"),
        (["train", "model"], "'model' is no setting; expected --key=value"),
        (["-model=BPR"], "'-model=BPR' is no setting"),
        (["--epochs"], "--epochs has no value"),
        (["--epochs", "--seed=1"], "--epochs has no value"),
        (["--=3"], "has no name before the '='"),
        (["--epochs=1", "--epochs=2"], "--epochs is given twice, as 1 and 2"),
    ],
)
def test_words_that_are_no_settings(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(words)
    assert message in str(raised.value)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert verb in text
    assert main(["evaluate", "--help"]) == 0
    assert "--checkpoint=FILE" in capsys.readouterr().out


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in [*MODELS, *DISTILLERS, "ml-100k", "gowalla"]:
        assert name in text
    assert main(["list", "--kind=distillers"]) == 0
    assert "simrec" in capsys.readouterr().out


def test_a_run_from_the_command_line(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = quick(known_answer, model="SimRecStudent", **{"teacher.epochs": 1, "simrec.triplets": 50})
    assert main(words) == 0
    text = capsys.readouterr().out
    for word in ("teacher", "student", "recall@10", "parameters", "train seconds"):
        assert word in text
    (checkpoint,) = (known_answer / "saved").glob("SimRecStudent-*[0-9].pth")
    file = known_answer / "evaluated.json"
    words = ["evaluate", f"--checkpoint={checkpoint}", f"--data_path={known_answer}", f"--result_file={file}"]
    assert main([*words, "--topk=[10]", "--valid_metric=NDCG@10"]) == 0
    result = json.loads(Path(str(checkpoint).replace(".pth", ".json")).read_text())
    assert json.loads(file.read_text())["test_result"] == result["test_result"]


#: What a user gets wrong -> a part of the one line that says so.
BAD: dict[str, tuple[list[str], str]] = {
    "verb": (["lsit"], "Did you mean 'list'"),
    "no model": (["--dataset=ml-100k"], "No model is given"),
    "no dataset": (["--model=BPR"], "No dataset is given"),
    "model": (["--model=BRP", "--dataset=ml-100k"], "Did you mean 'BPR'"),
    "dataset": (["--model=BPR", "--dataset=gowala", "--data_path=none"], "Did you mean 'gowalla'"),
    "teacher": (["--model=BPR", "--dataset=ml-100k", "--teacher=LightGNC", "--distill=simrec"], "'LightGCN'"),
    "distiller": (["--model=BPR", "--dataset=ml-100k", "--distill=simrek"], "Did you mean 'simrec'"),
    "key": (["--model=BPR", "--dataset=ml-100k", "--lerning_rate=1"], "Did you mean 'learning_rate'"),
    "section": (["--model=BPR", "--dataset=ml-100k", "--simrec.epsilon=1"], "--distill is empty"),
    "temperature": (
        ["--model=SimRecStudent", "--dataset=ml-100k", "--simrec.embedding_temperature=-1"],
        "expected above 0",
    ),
    "dropout": (["--model=NeuMF", "--dataset=ml-100k", "--dropout_prob=2"], "--dropout_prob=2"),
    "dropout of the teacher": (
        ["--model=SimRecStudent", "--dataset=ml-100k", "--teacher=NeuMF", "--teacher.dropout_prob=2"],
        "--teacher.dropout_prob=2",
    ),
    "type": (["--model=BPR", "--dataset=ml-100k", "--embedding_size=big"], "--embedding_size='big'"),
    "list for a number": (["--model=BPR", "--dataset=ml-100k", "--embedding_size=[1]"], "embedding_size"),
    "learner": (["--model=BPR", "--dataset=ml-100k", "--learner=adan"], "Did you mean 'adam'"),
    "metric": (["--model=BPR", "--dataset=ml-100k", "--metrics=[NDGC]"], "Did you mean 'ndcg'"),
    "config file": (["--model=BPR", "--dataset=ml-100k", "--config_files=none.yaml"], "Cannot read"),
    "teacher file": (
        ["--model=SimRecStudent", "--dataset=ml-100k", "--teacher.checkpoint=none.pth"],
        "There is no checkpoint 'none.pth'",
    ),
    "no teacher": (["--model=BPR", "--dataset=ml-100k", "--distill=simrec"], "needs a teacher"),
    "resume": (["--model=BPR", "--dataset=ml-100k", "--resume=none.pth"], "There is no checkpoint"),
    "evaluate nothing": (["evaluate"], "set --checkpoint=FILE"),
    "evaluate none": (["evaluate", "--checkpoint=none.pth"], "There is no checkpoint"),
    "prepare nothing": (["prepare"], "prepare needs a dataset"),
    "prepare unknown": (["prepare", "--dataset=gowala"], "Did you mean 'gowalla'"),
    "prepare key": (["prepare", "--dataset=gowalla", "--sorce=x"], "Did you mean 'source'"),
    "list kind": (["list", "--kind=student"], "Did you mean 'students'"),
    "code": (["--model=BPR", "--dataset=ml-100k", "--epochs=__import__('os').getcwd()"], "--epochs="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    assert main(words) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("recbole-kd:")]
    assert message in line
    assert "Traceback" not in captured.err + captured.out
    left = [path for path in Path().rglob("*") if path.is_file() and not path.parts[0].startswith("log")]
    assert not left, "nothing is half-written"


def _damaged(folder: Path, what: str) -> None:
    train = folder / "known-answer" / "known-answer.train.inter"
    header, *rows = train.read_text().splitlines()
    if what == "file":
        train.unlink()
    elif what == "header":
        train.write_text("\n".join(rows) + "\n")
    elif what == "column":
        train.write_text("\n".join([header.replace("item_id", "item"), *rows]) + "\n")
    elif what == "empty":
        train.write_text("")
    elif what == "no rows":
        train.write_text(header + "\n")
    elif what == "binary":
        train.write_bytes(bytes(range(256)) * 4)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("file", "There is no file"),
        ("header", "expected columns as name:type"),
        ("column", "has no column 'item_id'; it has user_id, item. Set --USER_ID_FIELD"),
        ("empty", "expected columns as name:type"),
        ("no rows", "has a header but no interactions"),
        ("binary", "Cannot read"),
    ],
)
def test_a_damaged_dataset(what: str, message: str, known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _damaged(known_answer, what)
    assert main(quick(known_answer, model="BPR")) == 2
    assert message in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (known_answer / "taken").write_text("a file where the folder should be")
    assert main(quick(known_answer, model="BPR", checkpoint_dir=known_answer / "taken")) == 2
    assert "checkpoint_dir" in capsys.readouterr().err


def test_a_result_file_that_cannot_be_written(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (known_answer / "taken").write_text("a file where the folder should be")
    assert main(quick(known_answer, model="BPR", result_file=known_answer / "taken" / "result.json")) == 2
    assert "--result_file" in capsys.readouterr().err


def test_a_loss_that_explodes(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(quick(known_answer, model="SimRecStudent", **{"teacher.epochs": 1, "learning_rate": 1e30, "epochs": 9}))
        == 2
    )
    error = capsys.readouterr().err
    assert "Training stopped in epoch" in error
    assert "rec" in error
    assert "--learning_rate" in error


def test_an_interrupt_says_how_to_go_on(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_kd.quick_start.train", interrupt)
    assert main(quick(known_answer, model="BPR")) == 130
    assert "--resume=" in capsys.readouterr().err


def test_the_script_runs_from_another_folder(tmp_path: Path) -> None:
    script = Path(recbole_kd.__file__).parent.parent / "run_recbole_kd.py"
    done = subprocess.run(
        [sys.executable, str(script), "list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SimRecStudent" in done.stdout
