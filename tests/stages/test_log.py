"""The log: all of a run in a file; on the terminal its course, or with ``--quiet=true`` only what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recbole_kd.testing import known_answer_settings


def lines_of(known_answer: Path, *more: str) -> tuple[str, str]:
    """What a run of three epochs shows on the terminal, and what it writes into its file."""
    settings = known_answer_settings(known_answer, model="BPR", dataset="known-answer", teacher="BPR", distill="fitnet")
    settings |= {"teacher.epochs": 2, "baseline": "student", "show_progress": False}
    words = [f"--{key}={value}" for key, value in settings.items()] + list(more)
    program = "import sys; from recbole_kd.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
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


@pytest.mark.parametrize("quiet", [True, False])
def test_no_digest_counts_the_log(quiet: bool) -> None:
    from recbole_kd.experiment.settings import KDConfig

    assert "quiet" not in KDConfig("BPR", "ml-100k", config_dict={"quiet": quiet}).plain_values()
