"""The log: all of a run in a file; on the terminal its course, or with ``--quiet=true`` only what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_kd.testing import known_answer_settings


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    program = "import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)


def lines_of(known_answer: Path, *more: str) -> tuple[str, str]:
    """What a run of three epochs shows on the terminal, and what it writes into its file."""
    settings = known_answer_settings(known_answer, model="BPR", dataset="known-answer", teacher="BPR", distill="fitnet")
    settings |= {"teacher.epochs": 2, "baseline": "student", "show_progress": False}
    ended = ran(*(f"--{key}={value}" for key, value in settings.items()), *more)
    assert ended.returncode == 0, ended.stderr
    (file,) = Path("log").rglob("*.log")
    return ended.stderr, file.read_text()


def test_the_terminal_tells_the_course_of_a_run(known_answer: Path) -> None:
    shown, written = lines_of(known_answer)
    moments = ["Training the teacher BPR", "Training the student BPR", "Evaluating BPR", "Training the baseline BPR"]
    places = [shown.index(moment) for moment in moments]
    assert places == sorted(places)
    assert shown.count("evaluating") == 2 + 3 + 3, "one line for each evaluation of each model"
    for repeated in ("valid result", "Saving current"):
        assert repeated not in shown
        assert repeated in written


def test_a_quiet_run_shows_no_line_and_writes_its_file(known_answer: Path) -> None:
    shown, written = lines_of(known_answer, "--quiet=true")
    assert "INFO" not in shown
    assert "Training the student BPR" in written


def test_a_folder_that_cannot_be_written_stops_training_and_nothing_else(known_answer: Path) -> None:
    """A file has the name of the log's folder. The folder of checkpoints, beside it, is gone."""
    settings = known_answer_settings(known_answer, model="BPR", dataset="known-answer", epochs=1, show_progress=False)
    lines_of(known_answer)
    checkpoint = max(known_answer.parent.rglob("BPR-known-answer-*[0-9].pth"))
    shutil.rmtree("log")
    Path("log").write_text("not a folder")
    trained = ran(*(f"--{key}={value}" for key, value in settings.items()))
    assert trained.returncode == 2
    assert "run from a writable folder" in trained.stderr
    moved = checkpoint.rename("moved.pth")
    shutil.rmtree(checkpoint.parent)
    read = ran("evaluate", f"--checkpoint={moved}", f"--data_path={known_answer}")
    assert not checkpoint.parent.exists()
    assert read.returncode == 0, read.stderr
    assert "ndcg@" in read.stdout
    assert "INFO  BPR on known-answer" in read.stderr


@pytest.mark.parametrize("quiet", [True, False])
def test_no_digest_counts_the_log(quiet: bool) -> None:
    from recbole_kd.experiment.settings import KDConfig

    assert "quiet" not in KDConfig("BPR", "ml-100k", config_dict={"quiet": quiet}).plain_values()
