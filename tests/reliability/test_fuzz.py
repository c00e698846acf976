"""Whatever its options get, a command does its work or refuses it in one line, within a minute of the processor.

A case is a command that works, with one to three of its settings changed: the verb's, the run's, the model's, the
distiller's, the teacher's. The same cases are tried each time; for others, and as many as fit into so many seconds::

    SECONDS=3600 pytest tests/reliability/test_fuzz.py tests/reliability/test_fuzz_files.py
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_kd.cli import main
from recbole_kd.experiment.known_keys import known_keys
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.options import Described, as_text, described
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class
from recbole_kd.verbs.options import VERBS
from tests.reliability.fuzzing import VALUES, Fuzzer, examples, within_bounds, within_time
from tests.reliability.test_tiny import SHORT, SMALL, tiny_settings, write_tiny
from tests.report.fabricated import fabricated
from tests.test_cli import quick

#: They start processes, reach other machines or write elsewhere; their tests are in test_bad_input.py and tests/cluster.
LEFT_OUT = {"nproc", "worker", "ray_address", "log_wandb", "wandb_project", "data_path", "checkpoint_dir", "parallel"}
#: Verbs that train in other processes.
LONG = ("tune", "compare")
#: Lists that are no longer than the catalogue.
LISTS = {f"rrd.{key}": value for key, value in SHORT["rrd"].items()}
SEQUENTIAL = [name for name, entry in MODELS.items() if entry.sequential]


Choices = dict[str, list[str]]


def right(option: Described) -> list[str]:
    """Values that are right for an option, as far as its type tells."""
    kinds = {"int": ["1", "2", "3", "6"], "float": ["0.1", "0.5", "1", "2"], "bool": ["true", "false"]}
    typed = [value for kind, values in kinds.items() if kind in str(option.hint) for value in values]
    return [*typed, *filter(None, [option.default, *option.expected.split(" | ")])]


def drawn_from(groups: list[Choices]) -> list[Choices]:
    kept = ({name: values for name, values in group.items() if name not in LEFT_OUT} for group in groups)
    return [group for group in kept if group]


@cache
def of_a_run(model: str, distiller: str | None) -> list[Choices]:
    """Settings that a run reads, in groups: RecBole's and ours, the model's own, the distiller's, the teacher's."""
    shared = {one.name: right(one) for _, group in known_keys() for one in group}
    defaults = KDConfig(model, "ml-100k").internal_config_dict
    own = {
        key: [as_text(value)]
        for key, value in defaults.items()
        if key not in {name.partition(".")[0] for name in shared}
    }
    groups = [shared, own]
    if distiller:
        options = {one.name: right(one) for one in described(distiller_class(distiller).options_class, f"{distiller}.")}
        groups += [
            options,
            {f"teacher.{key}": shared.get(key, []) for key in (*own, "epochs", "learning_rate", "seed")},
        ]
    return drawn_from(groups)


@cache
def of_a_verb(verb: str) -> list[Choices]:
    own = {one.name: right(one) for one in described(VERBS[verb])}
    groups = [own, {name: [] for name in VERBS[verb].settings or ()}]
    return drawn_from(groups)


@st.composite
def changes(draw: st.DrawFn, groups: list[Choices]) -> dict[str, str]:
    """One to three settings: half of their values are right by themselves, the others are anything."""
    found = {}
    for _ in range(draw(st.integers(1, 3))):
        group = draw(st.sampled_from(groups))
        name = draw(st.sampled_from(list(group)))
        anything = st.one_of(st.sampled_from(VALUES), st.text(st.characters(codec="utf-8"), max_size=8))
        found[name] = draw(st.sampled_from(group[name]) if group[name] and draw(st.booleans()) else anything)
    return found


@st.composite
def training(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a run of any model, half of them distilled."""
    model = draw(st.sampled_from([*MODELS, *5 * ["BPR"], *3 * SEQUENTIAL]))
    served = [name for name, one in DISTILLERS.items() if one.sequential or model not in SEQUENTIAL]
    distiller = draw(st.sampled_from([None, *(name for name in served if name != "dkd" or model in SEQUENTIAL)]))
    if distiller and not MODELS[model].gradient:
        model = "BPR"
    given = tiny_settings(model, **SMALL.get(model, {}))
    if distiller:
        teacher = "SASRec" if model in SEQUENTIAL else "BPR"
        short = {f"{distiller}.{key}": value for key, value in SHORT.get(distiller, {}).items()}
        given |= {"distill": distiller, "teacher": teacher, "teacher.epochs": 1, **short}
    return given | draw(changes(of_a_run(model, distiller)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def commands(data: Path) -> dict[str, dict[str, Any]]:
    """Settings with which each verb works; those of compare and tune take seconds."""
    assert main(quick(data, **tiny_settings("BPR"), checkpoint_dir=data / "kept")) == 0
    (made,) = (data / "kept").glob("BPR-*[0-9].pth")
    (data / "results.json").write_text(json.dumps(fabricated(seeds=1)))
    (data / "events.csv").write_text("who,what,when,stars\n" + "".join(f"a{n % 5},b{n},{n},3\n" for n in range(30)))
    columns = {"user": "who", "item": "what", "time": "when", "rating": "stars"}
    ranked = {"data_path": data, "topk": "[5]"}
    one = {"checkpoint": made, "data_path": data}
    searched = {key: value for key, value in tiny_settings("BPR").items() if key != "benchmark_filename"}
    searched |= {"data_path": data, "epochs": 1, "checkpoint_dir": data / "searched"}
    return {
        "list": {},
        "evaluate": {"checkpoint": made, **ranked},
        "recommend": {**one, "users": "u1", "k": 3},
        "export": {**one, "output": data / "bundle", "overwrite": "true"},
        "analyse": {"student": made, "teacher": made, "output": data / "parts", **ranked, "parts": "[gain]"},
        "report": {"results": data / "results.json", "output": data / "report"},
        "prepare": {"dataset": "own", "source": data / "events.csv", "data_path": data, **columns},
        "completion": {},
        "tune": {**searched, "trials": 1, "cpus": 1},
        "compare": {**{key: value for key, value in searched.items() if key != "model"}, "models": "BPR,ItemKNN"},
    }


def test_the_commands_work_unchanged(
    commands: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str], here: None
) -> None:
    assert {*commands} == {*VERBS} - {"train", "serve"}, "serve does not end by itself"
    for verb, settings_of in commands.items():
        within_bounds(as_words(verb, settings_of), capsys, code=0)


@within_time
@settings(**examples(230))
@given(given=training())
def test_training(given: dict[str, Any], data: Path, fuzzer: Fuzzer) -> None:
    fuzzer.tries(quick(data, **given))


@within_time
@settings(**examples(175))
@given(draw=st.data())
def test_the_other_verbs(
    draw: st.DataObject, commands: dict[str, dict[str, Any]], fuzzer: Fuzzer, undrawn: None
) -> None:
    verb = draw.draw(st.sampled_from([verb for verb in commands if verb not in LONG]))
    fuzzer.tries(changed_words(draw, verb, commands))


#: Settings of a line of a search space; some are refused there, some are no settings.
SEARCHED = [
    "learning_rate",
    "embedding_size",
    "weight_decay",
    "rrd.weight",
    "rrd.pool",
    "epochs",
    "learner",
    "seed",
    "x",
]
BOUNDS = [
    "0,1",
    "-8,-3",
    "1,3,1",
    "0.1,0.3,0.1",
    "[1,2]",
    "[1e-3,0.01]",
    "['adam','x']",
    "[None]",
    "[[1],[2]]",
    "[-1,9e99]",
]
LINES = st.tuples(
    st.sampled_from(SEARCHED),
    st.sampled_from(["choice", "uniform", "loguniform", "quniform", "x"]),
    st.sampled_from(BOUNDS) | st.sampled_from(VALUES),
).map(" ".join)


@within_time
@settings(**examples(25))
@given(draw=st.data())
def test_searches(draw: st.DataObject, commands: dict[str, dict[str, Any]], fuzzer: Fuzzer, here: None) -> None:
    """Any model, recipe, distiller, split, budget and search space."""
    model = draw.draw(st.sampled_from(["BPR", "RRDStudent", "SASRec", "ItemKNN", "FreqDStudent", *MODELS]))
    given: dict[str, Any] = {**commands["tune"], "model": model, "trials": draw.draw(st.sampled_from([1, 2, 3]))}
    given |= LISTS if model == "RRDStudent" else {}
    text = None
    if draw.draw(st.booleans()):
        text = "\n".join(draw.draw(st.lists(LINES, max_size=3)))
        Path("x.hyper").write_text(text, encoding="utf-8")
        given["params_file"] = "x.hyper"
    groups = [*of_a_verb("tune"), *of_a_run("BPR", "rrd")]
    fuzzer.tries(as_words("tune", {**given, **draw.draw(changes(groups))}), f"x.hyper: {text!r}")


@within_time
@settings(**examples(25))
@given(draw=st.data())
def test_comparisons(draw: st.DataObject, commands: dict[str, dict[str, Any]], fuzzer: Fuzzer, here: None) -> None:
    """Any models and recipes, by name or described in a file, with any seeds, splits and settings."""
    names = ["BPR", "ItemKNN", "RRDStudent", "FreqDStudent", "SASRec", "LightGCN", "Pop", "x"]
    given: dict[str, Any] = {**commands["compare"], **LISTS, "teacher.epochs": 1}
    chosen = draw.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    given["models"] = ",".join(chosen)
    text = None
    if "RRDStudent" not in chosen:
        given = {key: value for key, value in given.items() if not key.startswith(("rrd.", "teacher."))}
    groups = [*of_a_verb("compare"), *of_a_run("BPR", "rrd")]
    if draw.draw(st.booleans()):
        own = ["model", "seeds", "space", "seed", "epochs", "embedding_size", "distill", "teacher", "rrd.pool", "x"]
        section = st.dictionaries(st.sampled_from(own), st.sampled_from([*names, *VALUES]), max_size=2)
        label = st.sampled_from([*chosen, "a", "", "<b>", "7"])
        described = draw.draw(st.dictionaries(label, section, max_size=2))
        lines = [f"  {name!r}: {{{', '.join(f'{key}: {value}' for key, value in one.items())}}}\n"
                 for name, one in described.items()]  # fmt: skip
        text = "models:\n" + "".join(lines)
        Path("x.yaml").write_text(text, encoding="utf-8")
        given |= {"config_files": "x.yaml", "models": ",".join({**dict.fromkeys(chosen), **described})}
    fuzzer.tries(as_words("compare", {**given, **draw.draw(changes(groups))}), f"x.yaml: {text!r}")


def changed_words(draw: st.DataObject, verb: str, commands: dict[str, dict[str, Any]]) -> list[str]:
    return as_words(verb, {**commands[verb], **draw.draw(changes(of_a_verb(verb)))})


def as_words(verb: str, given: dict[str, Any]) -> list[str]:
    return [verb, *(f"--{key}={value}" for key, value in given.items())]
