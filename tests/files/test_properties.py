"""properties/ documents the code: a YAML key and an option field are the same set, with the same default.

The files of the distillers are written from their options: ``python -m tests.files.test_properties`` writes them anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import runpy
import shutil
import textwrap
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_kd.errors import UserError
from recbole_kd.files import properties
from recbole_kd.files.properties import (
    PROPERTIES,
    dataset_names,
    load_yaml,
    model_names,
    overall_properties,
    read_properties,
    read_yaml,
)
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class, recipes
from recbole_kd.sevo.graphs import SEvoOptions

#: Where the comment of a line begins.
COLUMN = 32


def page(name: str) -> str:
    """The file of a distiller: its module's title, and a line for each option."""
    kind = distiller_class(name)
    title = " ".join((inspect.getdoc(inspect.getmodule(kind)) or "").split("\n\n")[0].split())
    hints = typing.get_type_hints(kind.options_class)
    lines = [f"# {line}" for line in textwrap.wrap(title, 110)]
    for field in dataclasses.fields(kind.options_class):
        setting = f"{field.name}: {_value(field.default)}"
        comment = f"({_type(hints[field.name])}) {_sentence(field.metadata['help'], field.metadata['choices'])}"
        lines.append(f"{setting:<{COLUMN - 1}} # {comment}")
    return "\n".join(lines) + "\n"


def _value(default: Any) -> str:
    """As YAML writes it."""
    if default is None or isinstance(default, bool):
        return "~" if default is None else str(default)
    return yaml.safe_dump(
        list(default) if isinstance(default, tuple) else default, default_flow_style=True
    ).splitlines()[0]


def _type(hint: Any) -> str:
    """The name of a type; an optional one is named as if it were given."""
    parts = [part for part in typing.get_args(hint) if part not in (type(None), ...)]
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(parts[0])}"
    return _type(parts[0]) if parts else hint.__name__


def _sentence(text: str, choices: Any) -> str:
    """The help as a sentence; a symbol or a value that it begins with keeps its letters."""
    first = text.split()[0]
    if not first.endswith((",", ":")) and first not in (choices or ()):
        text = text[0].upper() + text[1:]
    named = choices and not any(f"{choice}:" in text or f"{choice}," in text for choice in choices)
    return f"{' | '.join(choices)}: {text}." if named else f"{text}."


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distillers_file_is_written_from_its_options(name: str) -> None:
    assert (PROPERTIES / "distiller" / f"{name}.yaml").read_text() == page(name), (
        "run: python -m tests.files.test_properties"
    )


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distillers_file_holds_exactly_its_options(name: str) -> None:
    options = distiller_class(name).options_class()
    defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    written = read_properties("distiller", name)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} == written


@pytest.mark.parametrize("name", DISTILLERS)
def test_the_class_for_sequences_has_the_same_options(name: str) -> None:
    general, sequential = (distiller_class(name, sequential) for sequential in (False, True))
    assert general.name == sequential.name == name
    assert general.options_class is sequential.options_class


def test_no_file_is_left_over() -> None:
    assert {path.stem for path in (PROPERTIES / "distiller").glob("*.yaml")} == set(DISTILLERS)
    assert set(model_names()) <= {*MODELS, *recipes()}


def test_sevos_file_holds_exactly_its_options() -> None:
    options = SEvoOptions()
    defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    written = read_properties("optimizer", "sevo")
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} == written


# What is read


def test_numbers_with_an_exponent_need_no_point() -> None:
    """YAML's own rule takes them for text."""
    assert load_yaml("[1e-3, -1e-3, +2E4]") == [0.001, -0.001, 20000.0]


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: \xff", "is not plain YAML: 'utf-8' codec can't decode byte 0xff"),
        (b"epochs: \x00", r"is not plain YAML: unacceptable character #x0000: [^\n]*\.$"),
        (b"- epochs", "holds no settings by name; expected lines such as 'epochs: 50'"),
        (b"50: epochs", "holds no settings by name; expected lines such as 'epochs: 50'"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"^The configuration file {re.escape(str(tmp_path))}/x\.yaml {message}"):
        read_yaml(tmp_path / "x.yaml")


def test_who_changes_what_was_read_changes_no_later_reading() -> None:
    """A file is read once."""
    for read in (overall_properties, lambda: read_properties("distiller", "rrd")):
        before = dict(read())
        read().clear()
        assert read() == before != {}


# What can be named


def test_models_are_listed_by_name() -> None:
    assert model_names() == sorted(model_names())


def test_datasets_are_folders_files_of_ours_and_recboles_downloads(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "notes.txt").touch()
    names = dataset_names(str(tmp_path))
    assert {"mine", "citeulike", "ml-100k", "book-crossing"} <= set(names)
    assert "notes.txt" not in names
    assert set(names) - {"mine"} == set(dataset_names(str(tmp_path / "nowhere")))


def test_an_installed_package_reads_its_own_folder(tmp_path: Path) -> None:
    """Another package may have left a folder of this name beside it."""
    module = tmp_path / "site-packages" / "recbole_kd" / "files" / "properties.py"
    module.parent.mkdir(parents=True)
    shutil.copy(properties.__file__, module)
    for folder in (module.parents[1], module.parents[2]):
        (folder / "properties").mkdir()
    assert runpy.run_path(str(module))["PROPERTIES"] == module.parents[1] / "properties"


if __name__ == "__main__":
    for distiller in DISTILLERS:
        (PROPERTIES / "distiller" / f"{distiller}.yaml").write_text(page(distiller))
