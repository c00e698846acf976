"""``list``: a line each, what is at hand first; or one of a kind in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_kd.cli import main
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.experiment.values import nest
from recbole_kd.files.properties import parse_value
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class, recipes


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def test_what_is_at_hand_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    text = said(capsys, "--kind=datasets", f"--data_path={tmp_path}")
    heading, first, second, *_, last = text.splitlines()
    assert (heading, first.split()[0], second.split()[0]) == ("Datasets", "mine", "ml-100k")
    assert last.endswith(" more that RecBole names: recbole-kd list --kind=datasets --all=true")
    count = int(last.split()[0])
    everything = said(capsys, "--kind=datasets", "--all=true", f"--data_path={tmp_path}")
    assert len(everything.splitlines()) == len(text.splitlines()) - 1 + count


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distillers_options_have_default_range_and_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(said(capsys, "--kind=distillers", f"--name={name}").split())
    for field in distiller_class(name).options_class.__dataclass_fields__.values():
        assert f"--{name}.{field.name}=" in text
        assert field.metadata["help"] in text


def test_an_option_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--kind=distillers", "--name=rrd")
    assert "--rrd.weight=0.001            weight of the loss [at least 0]" in text
    assert "--rrd.temperature=1           tau, divides" in text


@pytest.mark.parametrize("name", MODELS)
def test_a_models_own_settings_are_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--kind=teachers", f"--name={name}")
    assert text.startswith(f"{name}: ")
    for key in ("embedding_size", "n_layers", "hidden_size"):
        if KDConfig(name, "ml-100k")[key] is not None:
            assert f"--{key}=" in text


def test_a_models_setting_has_recboles_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--kind=students", "--name=LightGCN")
    told = "--n_layers=2 The number of layers in LightGCN [at least 0 and at most 1,000]"
    assert told in " ".join(text.split()), "lines are as long as the terminal is wide"


@pytest.mark.parametrize("name", recipes())
def test_what_a_recipe_presets_is_what_a_run_gets(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--kind=recipes", f"--name={name}")
    config = KDConfig(name, "ml-100k")
    found: dict[str, object] = {}
    for_all = False
    for line in text.split("later ones override earlier ones:")[1].splitlines():
        if line.startswith("properties/"):
            for_all = ", for " not in line
        elif for_all:
            found |= {key: parse_value(value) for key, _, value in (w[2:].partition("=") for w in line.split())}
    assert "student" in found
    for key, value in nest(found).items():
        have = config[key]
        expected = {**have, **value} if isinstance(value, dict) else value
        assert have == expected, key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name=rrd"], "set --kind to one of students, teachers, distillers, recipes, datasets"),
        (["--kind=distillers", "--name=simrek"], "Unknown distiller 'simrek'. Did you mean 'simrec'?"),
        (["--kind=recipes", "--name=DERDStudent"], "Did you mean 'DERRDStudent'?"),
        (["--kind=students", "--name=BRP"], "Did you mean 'BPR'?"),
        (["--kind=datasets", "--name=gowala"], "Did you mean 'gowalla'?"),
        (["--all=perhaps"], "--all='perhaps' is not true or false"),
    ],
)
def test_what_is_not_there_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words]) == 2
    assert message in capsys.readouterr().err
