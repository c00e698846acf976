"""A YAML key and an option field are the same set, with the same default: properties/ documents the code."""

from __future__ import annotations

import dataclasses

import pytest

from recbole_kd.files.properties import PROPERTIES, model_names, read_properties
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class, recipes
from recbole_kd.sevo.graphs import SEvoOptions


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distillers_file_holds_exactly_its_options(name: str) -> None:
    options = distiller_class(name).options_class()
    defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    written = read_properties("distiller", name)
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} == written


@pytest.mark.parametrize("name", DISTILLERS)
def test_every_option_is_explained_in_the_file(name: str) -> None:
    lines = (PROPERTIES / "distiller" / f"{name}.yaml").read_text().splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    assert all("#" in line for line in settings)


def test_no_file_is_left_over() -> None:
    assert {path.stem for path in (PROPERTIES / "distiller").glob("*.yaml")} == set(DISTILLERS)
    assert set(model_names()) <= {*MODELS, *recipes()}


def test_sevos_file_holds_exactly_its_options() -> None:
    options = SEvoOptions()
    defaults = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    written = read_properties("optimizer", "sevo")
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} == written
