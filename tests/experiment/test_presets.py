"""The sources of settings: one list from the lowest to the highest, and the source of each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_kd.experiment.presets import Layer, merged, precedence, teacher_presets, teacher_sections
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.registry import resolve_model


def sources(model: str, dataset: str, student: str | None = None, **given: Any) -> list[str]:
    layers = precedence(
        {"learner": "adam"}, resolve_model(model, student), dataset, [Layer("command line", given, True)]
    )
    return [layer.source for layer in layers]


def test_the_list_of_sources_from_the_lowest_to_the_highest() -> None:
    assert sources("RRDStudent", "citeulike", "LightGCN") == [
        "properties/distiller/rrd.yaml",
        "RecBole",
        "properties/overall.yaml",
        "properties/dataset/citeulike.yaml",
        "properties/model/LightGCN.yaml",
        "properties/model/LightGCN.yaml, for citeulike",
        "properties/model/RRDStudent.yaml",
        "properties/student/LightGCN.yaml",
        "properties/model/RRDStudent.yaml, for citeulike",
        "properties/student/LightGCN.yaml, for citeulike",
        "command line",
    ]


def test_defaults_are_those_of_the_units_that_the_run_has() -> None:
    assert sources("BPR", "ml-100k")[0] == "RecBole"
    assert sources("BPR", "ml-100k", learner="sevo_adam")[0] == "properties/optimizer/sevo.yaml"
    units = sources("RRDStudent", "ml-100k", distill=["kd", "de"])[:2]
    assert units == ["properties/distiller/kd.yaml", "properties/distiller/de.yaml"]


def test_a_later_layer_wins_and_is_named_as_the_source() -> None:
    layers = [Layer("low", {"a": 1, "s": {"x": 1, "y": 1}}), Layer("high", {"s": {"y": 2}, "b": 2})]
    assert merged(layers) == (
        {"a": 1, "s": {"x": 1, "y": 2}, "b": 2},
        {"a": "low", "s.x": "low", "s.y": "high", "b": "high"},
    )


def test_what_recbole_takes_as_a_whole_is_replaced_as_a_whole() -> None:
    """A norm of gradients in a file says nothing of the one on the command line."""
    low = {"clip_grad_norm": {"max_norm": 5, "norm_type": 1}, "eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO"}}
    high = {"clip_grad_norm": {"max_norm": 2}, "eval_args": {"split": {"LS": "valid_and_test"}}}
    assert merged([Layer("low", low), Layer("high", high)]) == (
        {"clip_grad_norm": {"max_norm": 2}, "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO"}},
        {"clip_grad_norm": "high", "eval_args.split": "high", "eval_args.order": "low"},
    )


def test_the_source_of_every_kind_of_setting(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rrd: {pool: 200}\nteacher: {epochs: 5}\n")
    found = KDConfig("RRDStudent", "citeulike", [str(file)], {"epochs": 3, "rrd.emphasis": 5.0}).sources
    expected = {
        "seed": "RecBole",
        "split_seed": "properties/overall.yaml",
        "load_col": "properties/dataset/citeulike.yaml",
        "embedding_size": "properties/model/RRDStudent.yaml",
        "rrd.weight": "properties/model/RRDStudent.yaml, for citeulike",
        "rrd.sampling": "properties/distiller/rrd.yaml",
        "learning_rate": "properties/student/BPR.yaml, for citeulike",
        "teacher.learning_rate": "properties/teacher/BPR.yaml, for citeulike",
        "teacher.embedding_size": "properties/teacher/BPR.yaml",
        "rrd.pool": str(file),
        "teacher.epochs": str(file),
        "epochs": "command line",
        "rrd.emphasis": "command line",
    }
    assert {key: found[key] for key in expected} == expected


def test_settings_of_all_teachers_hold_for_each() -> None:
    section = {"epochs": 3, "share": 1, "0": {"model": "BPR"}, "1": {"model": "EASE", "share": 2}}
    assert teacher_sections(section) == {
        "0": {"epochs": 3, "share": 1, "model": "BPR"},
        "1": {"epochs": 3, "share": 2, "model": "EASE"},
    }
    assert teacher_sections({"model": "BPR"}) == {"": {"model": "BPR"}}


@pytest.mark.parametrize("source", ["checkpoint", "ranks"])
def test_a_file_needs_no_presets_of_a_model(source: str) -> None:
    section = {"model": "BPR", source: "FILE"}
    assert teacher_presets(section, "citeulike") == (section, {})
