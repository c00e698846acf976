"""Whatever its options get, a command does its work or refuses it in one line, within a minute of the processor.

A case is a command that works, with one to three of its settings changed: the verb's, the run's, the model's, the
distiller's, the teacher's. The same cases are tried each time; for others, and as many as fit into so many seconds::

    SECONDS=3600 pytest tests/reliability/test_fuzz.py
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_kd.cli import main
from recbole_kd.experiment.known_keys import known_keys
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.options import Described, as_text, described
from recbole_kd.registry import DISTILLERS, MODELS, distiller_class
from recbole_kd.verbs.options import VERBS
from tests.reliability.test_formats import ends_in_a_line
from tests.reliability.test_tiny import SHORT, SMALL, tiny_settings, write_tiny
from tests.report.fabricated import fabricated
from tests.test_cli import quick

SECONDS = float(os.environ.get("SECONDS", 0))
FUZZ: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
FUZZ |= {"max_examples": 10**6, "database": None} if SECONDS else {"max_examples": 150, "derandomize": True}
#: A command that computes for longer hangs.
LIMIT_S = 60

#: Values of every kind, right for some settings, and none of them a long run or a large model where it is right.
VALUES = [
    *("", "None", "null", "~", "true", "false", "-1", "0", "1", "2", "3", "7", "12", "13", "0.5", "-0.5", "1.5", "1e-300"),
    *("1e18", "1e300", "1e400", ".nan", "nan", ".inf", "-.inf", "9" * 400, "0x10", "1_0", "١", "x", "user_id", "rating"),
    *("timestamp", "BPR", "RRDStudent", "SASRec", "rrd", "de,rrd", "all", "u1", "u1,u2", "tiny", ".", "none.csv", "é\u202e"),
    *("[]", "[0]", "[1]", "[-1]", "[1,2]", "[0.5,0.5]", "[x]", "[[]]", "[[1],[2]]", "[None]", "[.nan]", "['']", "[u1,u1]"),
    *("{}", "{x: 1}", "{rating: 3}", "{rating: x}", "{inter: [user_id]}", "{'': ''}", "{1: 2}", "{x: {y: [1]}}", "[", "{"),
    *("&x [*x]", "!!python/object:x {}", "<<: x", "2025-01-01", "2025-13-01", "\\t", "$x^{$", "%s%n{0}", "'", '"', "x" * 5000),
    *("NDCG@5", "NDCG@", "ndcg@5", "@5", "AUC", "full", "uni5", "uni0", "pop3", "labeled", "TO", "RO", "LS", "[0,inf)", "(1,0]"),
    *("{RS: [0.8,0.1,0.1]}", "{RS: [1,0,0]}", "{LS: valid_and_test}", "{LS: valid_only}", "{TS: [0.5,0.3,0.2]}", "inter"),
]  # fmt: skip
#: They start processes, reach other machines or write elsewhere; their tests are in test_bad_input.py and tests/cluster.
LEFT_OUT = {"nproc", "worker", "ray_address", "log_wandb", "wandb_project", "data_path", "checkpoint_dir", "parallel"}
#: Verbs that train in other processes.
LONG = ("tune", "compare")
SEQUENTIAL = [name for name, entry in MODELS.items() if entry.sequential]


class Over(BaseException):
    """A command's or a test's time is over; no handler of errors catches it."""


def tried(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs one command, which must not hang."""

    def stop(*_: Any) -> None:
        raise Over

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        ends_in_a_line(words, capsys)
    except Over:
        raise AssertionError(f"it computes for more than {LIMIT_S} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def within_time(test: Callable[..., None]) -> Callable[..., None]:
    """A test of hypothesis that ends after SECONDS, where they are set."""

    @wraps(test)
    def timed(*arguments: Any, **given: Any) -> None:
        with suppress(Over):
            test(*arguments, **given)

    return timed


@pytest.fixture
def clock() -> Callable[[], None]:
    """To be called before each case."""
    end = time.monotonic() + SECONDS

    def ticks() -> None:
        if SECONDS and time.monotonic() > end:
            raise Over

    return ticks


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
    one = {"checkpoint": made, "data_path": data}
    searched = {key: value for key, value in tiny_settings("BPR").items() if key != "benchmark_filename"}
    searched |= {"data_path": data, "epochs": 1, "checkpoint_dir": data / "searched"}
    return {
        "list": {},
        "evaluate": one,
        "recommend": {**one, "users": "u1", "k": 3},
        "export": {**one, "output": data / "bundle", "overwrite": "true"},
        "analyse": {"student": made, "teacher": made, "output": data / "parts", "data_path": data, "parts": "[gain]"},
        "report": {"results": data / "results.json", "output": data / "report"},
        "prepare": {"dataset": "own", "source": data / "events.csv", "data_path": data, **columns},
        "completion": {},
        "tune": {**searched, "trials": 1, "cpus": 1},
        "compare": {**{key: value for key, value in searched.items() if key != "model"}, "models": "BPR,ItemKNN"},
    }


@within_time
@settings(**FUZZ)
@given(given=training())
def test_training(
    given: dict[str, Any], data: Path, clock: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    clock()
    tried(quick(data, **given), capsys)


@within_time
@settings(**{**FUZZ, "max_examples": 10**6 if SECONDS else 100})
@given(draw=st.data())
def test_the_other_verbs(
    draw: st.DataObject,
    commands: dict[str, dict[str, Any]],
    clock: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recbole_kd.report.pictures", lambda comparison: {})  # drawn in test_formats.py
    clock()
    verb = draw.draw(st.sampled_from([verb for verb in commands if verb not in LONG]))
    tried(changed_words(draw, verb, commands), capsys)


@pytest.mark.slow
@within_time
@settings(**{**FUZZ, "max_examples": 10**6 if SECONDS else 20})
@given(draw=st.data())
@pytest.mark.parametrize("verb", LONG)
def test_searches_and_comparisons(
    verb: str,
    draw: st.DataObject,
    commands: dict[str, dict[str, Any]],
    clock: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock()
    tried(changed_words(draw, verb, commands), capsys)


def changed_words(draw: st.DataObject, verb: str, commands: dict[str, dict[str, Any]]) -> list[str]:
    given = {**commands[verb], **draw.draw(changes(of_a_verb(verb)))}
    return [verb, *(f"--{key}={value}" for key, value in given.items())]
