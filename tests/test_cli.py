"""The command line: words to settings, one line and exit code 2 for what a user can mend."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from recbole.trainer import Trainer

import recbole_kd
from recbole_kd.cli import VERBS, main, parse
from recbole_kd.data.prepare import PREPARABLE
from recbole_kd.errors import UserError
from recbole_kd.experiment.known_keys import known_keys
from recbole_kd.files.properties import named_files
from recbole_kd.options import described
from recbole_kd.registry import DISTILLERS, MODELS

SCRIPT = Path(recbole_kd.__file__).parent.parent / "run_recbole_kd.py"


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


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ~ as it is after an equals sign; a folder of that name is nobody's wish."""
    monkeypatch.setenv("HOME", "/home/me")
    _, settings, _ = parse(["--data_path=~/data", "--result_file=~/a b.json", "--x=~"])
    assert settings == {"data_path": "/home/me/data", "result_file": "/home/me/a b.json", "x": None}


def test_files_of_settings_may_have_blanks_in_their_names(tmp_path: Path) -> None:
    one, two = tmp_path / "my first.yaml", tmp_path / "second.yaml"
    for file in (one, two):
        file.write_text("{}")
    assert named_files("") == []
    assert named_files(str(one)) == [str(one)]
    assert named_files(f"'{one}' {two}") == [str(one), str(two)]
    assert named_files(f"it's.yaml {two}") == ["it's.yaml", str(two)]


def test_text_is_text_whatever_it_looks_like() -> None:
    words = ["--teacher.0.ranks=7", "--user_inter_num_interval=[0,5]", "--baseline=None", "--rrd.pool=7", "--epochs="]
    assert parse(words)[1] == {
        "teacher.0.ranks": "7",
        "user_inter_num_interval": "[0,5]",
        "baseline": None,
        "rrd.pool": 7,
        "epochs": "",
    }
    assert parse(["recommend", "--users=7", "--k=7"])[1] == {"users": "7", "k": 7}


def test_a_switch_needs_no_value() -> None:
    assert parse(["--quiet", "--dry_run", "--epochs=2"])[1] == {"quiet": True, "dry_run": True, "epochs": 2}
    assert (
        parse(["export", "--overwrite", "--seen", "all"])[1] == parse(["export", "--overwrite=true", "--seen=all"])[1]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Unknown verb 'trian'. Did you mean 'train'?"),
        (["train", "model"], "'model' is not a setting; expected --key=value"),
        (["-model=BPR"], "'-model=BPR' is not a setting"),
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
    for verb, kind in VERBS.items():
        assert verb in text
        assert kind.summary in text
    assert main(["evaluate", "--help"]) == 0
    assert "--checkpoint=FILE" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for one in described(VERBS[verb]):
        assert one.flag in text
        assert one.help in text
    assert main(["help", verb]) == 0
    assert " ".join(capsys.readouterr().out.split()) == text


def test_help_of_train_has_every_setting_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for title, group in known_keys():
        assert title in text
        assert all(f"--{one.name}=" in text and one.help in text for one in group)
    assert "--epochs=300 at most [at least 0]" in text


def test_help_waits_for_no_library() -> None:
    code = "import sys; from recbole_kd.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    for words in (["--help"], ["train", "--help"], ["help", "tune"], ["--version"], ["completion"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        loaded = set(done.stderr.split())
        assert "recbole_kd.cli" in loaded
        assert not loaded & {"torch", "numpy", "pandas", "recbole", "ray", "matplotlib"}, words


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    for name in ("recbole", "torch"):
        assert f"{name} {metadata.version(name)}" in text.splitlines()


def test_every_verb_has_a_module_that_runs_it() -> None:
    for verb, kind in VERBS.items():
        assert kind.verb == verb
        run = importlib.import_module(f"recbole_kd.verbs.{verb}").run
        assert list(inspect.signature(run).parameters) == ["options", "settings"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("recbole-kd tu", ["tune"]),
        ("recbole-kd tune --tri", ["--trials=", "--trim_padding="]),
        ("recbole-kd tune --learning_rate_s", ["--learning_rate_schedule="]),
        ("recbole-kd tune --learning_rate_schedule=c", ["constant", "cosine"]),
        ("recbole-kd --use_gpu=f", ["false"]),
        ("recbole-kd list --kind=d", ["distillers", "datasets"]),
        ("recbole-kd list --tri", []),
        ("recbole-kd export --seen=train+", ["train+valid"]),
    ],
)
def test_bash_completes_words(line: str, expected: list[str]) -> None:
    """As bash calls it: words are split at "=", which is a word of its own."""
    words = [word for word in re.split(r"\s+|(=)", line) if word]
    shell = f"""
        eval "$({shlex.quote(sys.executable)} -m recbole_kd.cli completion)"
        compopt() {{ :; }}
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        _recbole_kd; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == expected


def test_an_error_of_the_program_is_a_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr("recbole_kd.verbs.list.run", broken)
    assert main(["list", "--kind=recipes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    said, _, file = line.partition("; details in ")
    assert said == "recbole-kd: internal error (IndexError: list index out of range)"
    text = Path(file).read_text()
    assert Path(file).parent == Path("log")
    assert text.startswith("recbole-kd list --kind=recipes\n")
    assert "Traceback" in text
    assert "in broken" in text


def test_an_error_of_the_program_where_no_log_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise IndexError("gone")

    monkeypatch.setattr("recbole_kd.verbs.list.run", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    Path("log").write_text("a file where the folder should be")
    assert main(["list"]) == 1
    file = Path(capsys.readouterr().err.rstrip().partition("; details in ")[2])
    assert file.parent == tmp_path / "temporary"
    assert "IndexError: gone" in file.read_text()


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in [*MODELS, *DISTILLERS, "ml-100k", "gowalla"]:
        assert name in text
    assert main(["list", "--kind=distillers"]) == 0
    text = capsys.readouterr().out
    titles = [line.split(maxsplit=1)[1].partition(" [needs ")[0] for line in text.splitlines() if "[needs" in line]
    assert len(titles) == len(set(titles)) == len(DISTILLERS)


def test_list_says_where_a_dataset_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["list", "--kind=datasets", f"--data_path={tmp_path}"]) == 0
    heading, *lines, _ = capsys.readouterr().out.splitlines()
    texts = dict((*line.split(maxsplit=1), "")[:2] for line in lines)
    assert heading == "Datasets"
    assert texts["mine"] == f"in {tmp_path}"
    assert texts["ml-100k"] == "inside RecBole"
    assert texts["gowalla"] == f"recbole-kd prepare: {PREPARABLE['gowalla'].description}"


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


def test_an_output_folder_that_cannot_be_written(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (known_answer / "taken").write_text("a file where the folder should be")
    assert main(quick(known_answer, model="BPR", checkpoint_dir=known_answer / "taken")) == 2
    assert "checkpoint_dir" in capsys.readouterr().err


def test_a_result_file_that_cannot_be_written(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (known_answer / "taken").write_text("a file where the folder should be")
    for place in (known_answer / "taken" / "result.json", known_answer):
        assert main(quick(known_answer, model="BPR", result_file=place)) == 2
        assert "--result_file" in capsys.readouterr().err
    assert not (known_answer / "saved").exists(), "refused before anything is trained"


def test_a_loss_that_explodes(known_answer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(quick(known_answer, model="SimRecStudent", **{"teacher.epochs": 1, "learning_rate": 1e30, "epochs": 9}))
        == 2
    )
    error = capsys.readouterr().err
    assert "Training stopped in epoch" in error
    assert "rec" in error
    assert "--learning_rate" in error


@pytest.mark.parametrize("resumed", [False, True])
def test_an_interrupted_student_goes_on_by_the_command_that_is_printed(
    resumed: bool, known_answer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """... and ends as one that was never stopped; an earlier --resume gives way to the new one."""
    words = quick(known_answer, model="BPR", epochs=3)
    assert main(words) == 0
    (file,) = (known_answer / "saved").glob("BPR-*.json")
    expected = json.loads(file.read_text())
    file.unlink()
    train_epoch = Trainer._train_epoch
    for stopped_in in (1, 2) if resumed else (2,):

        def interrupted(trainer: Any, data: Any, epoch: int, *rest: Any, **named: Any) -> Any:
            if epoch == stopped_in:  # noqa: B023
                raise KeyboardInterrupt
            return train_epoch(trainer, data, epoch, *rest, **named)

        monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
        assert main(words) == 130
        line = capsys.readouterr().err.splitlines()[-1]
        said, _, command = line.partition(" recbole-kd ")
        assert said == "recbole-kd: interrupted. To continue:"
        words = shlex.split(command)
        assert len([word for word in words if word.startswith("--resume=")]) == 1
    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)
    assert main(words) == 0
    (file,) = (known_answer / "saved").glob("BPR-*.json")
    result = json.loads(file.read_text())
    for key in ("test_result", "loss_history", "valid_history", "best_epoch"):
        assert result[key] == expected[key], key


def test_what_keeps_its_own_state_goes_on_when_repeated(
    known_answer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher, a baseline, a download; or there is nothing yet to go on from."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recbole_kd.verbs.train.shared_teacher", interrupt)
    words = [*quick(known_answer, model="SimRecStudent"), "--config_files", "a.yaml b.yaml"]
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text("")
    assert main(words) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"recbole-kd: interrupted. To continue: recbole-kd {shlex.join(words)}"
    monkeypatch.setattr("recbole_kd.verbs.prepare.prepare", interrupt)
    assert main(["prepare", "--dataset=gowalla"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("To continue: recbole-kd prepare --dataset=gowalla")


@pytest.mark.parametrize("module", ["recbole_kd", "recbole_kd.compat", "recbole_kd.cli", "torch"])
def test_an_interrupt_while_python_imports_is_no_traceback(module: str) -> None:
    program = f"""
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["list"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.strip() in ("", "recbole-kd: interrupted. To continue: recbole-kd list")


def test_the_result_is_printed_once(known_answer: Path) -> None:
    """On the standard output; the log's file has it too, and what the log shows on a terminal does not."""
    words = [sys.executable, str(SCRIPT), *quick(known_answer, model="BPR")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("train seconds") == 1
    assert "train seconds" not in done.stderr
    (file,) = Path("log").rglob("*.log")
    assert file.read_text().count("train seconds") == 1


def test_the_script_runs_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SimRecStudent" in done.stdout
