"""``--dry_run`` estimates time and memory from a few real steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from recbole_kd.experiment.experiment import Experiment
from recbole_kd.stages.estimate import _line, estimated
from recbole_kd.testing import known_answer_settings
from recbole_kd.verbs.train import dry_run


def lines(data: Path, model: str, **given: object) -> list[str]:
    settings = known_answer_settings(data, dataset="known-answer", model=model, **given)
    return estimated(Experiment.of(given=settings))


def test_teacher_and_student_have_a_line_each(known_answer: Path) -> None:
    small = {"rrd.pool": 8, "rrd.interesting": 4, "rrd.uninteresting": 4, "epochs": 7, "teacher.epochs": 5}
    teacher, student = lines(known_answer, "RRDStudent", **small)
    assert re.match(r"teacher BPR: about [\d.e-]+ s per epoch of \d+ steps, at most .* for 5 epochs", teacher)
    assert re.match(r"student RRDStudent: about .* for 7 epochs", student)
    assert float(re.findall(r"memory ([\d,]+) MB", student)[0].replace(",", "")) > 100
    assert not [*known_answer.rglob("*.pth"), *known_answer.rglob("ranks")], "nothing is kept"


def test_what_has_no_steps_says_so(known_answer: Path) -> None:
    assert lines(known_answer, "EASE")[0].startswith("student EASE: ")
    small = {"rrd.pool": 8, "rrd.interesting": 4, "rrd.uninteresting": 4}
    teacher, student = lines(known_answer, "RRDStudent", teacher="EASE", **small)
    assert teacher == "teacher EASE: a closed form, solved in one step"
    assert "s per epoch" in student
    assert "s per epoch" not in lines(known_answer, "EASE")[0]
    settings = {"model": "BPR", "dataset": "nowhere"}
    assert estimated(Experiment.of(given=settings)) == ["no estimate, because the data of nowhere are missing"]


def test_the_estimate_is_a_comment_of_the_yaml(known_answer: Path) -> None:
    text = dry_run([], known_answer_settings(known_answer, dataset="known-answer", model="BPR"))
    assert "# student BPR: about" in text
    assert yaml.safe_load(text)["model"] == "BPR"


class Slow:
    """A trainer whose first step takes 9 seconds and whose others take 2, 3 and 2."""

    start_epoch, epochs = 0, 10

    def _train_epoch(self, steps: Any, epoch: int) -> None:
        steps.seconds = [9.0, 2.0, 3.0, 2.0]


def test_the_usual_step_makes_the_estimate() -> None:
    """100 steps of 2 seconds are 200 seconds, and 10 such epochs 2000; the first step is a warm-up."""
    line = _line("student BPR", Slow(), range(100))
    assert "about 3 min 20 s per epoch of 100 steps, at most 33 min 20 s for 10 epochs" in line
