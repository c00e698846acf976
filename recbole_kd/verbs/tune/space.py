"""Search spaces: RecBole's ``.hyper`` files, read strictly, and the configurations that are drawn from them.

A line is a setting's name, one of four words, and its values::

    learning_rate  loguniform  -8,-3          # e^-8 ... e^-3: bounds are natural logarithms, as in RecBole
    dropout_prob   uniform     0.0,0.5
    n_layers       choice      [1,2,3]
    rrd.pool       quniform    50,200,50      # multiples of 50; whole numbers where all three are written as such

RecBole's own reader skips short lines and evaluates the rest as Python. Here every line that is neither empty nor a
comment must be understood, and nothing is evaluated.
"""

from __future__ import annotations

import ast
import logging
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_kd.errors import UserError, closest
from recbole_kd.experiment.settings import KDConfig
from recbole_kd.files.properties import PROPERTIES
from recbole_kd.files.reading import read_text
from recbole_kd.registry import recipes

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
#: Kind -> (its values, an example).
_KINDS: dict[str, tuple[str, str]] = {
    "choice": ("a list", "n_layers choice [1,2,3]"),
    "uniform": ("low,high", "dropout_prob uniform 0.0,0.5"),
    "loguniform": ("low,high as natural logarithms", "learning_rate loguniform -8,-3"),
    "quniform": ("low,high,step", "rrd.pool quniform 50,200,50"),
}
#: After this many repeated draws in a row the space counts as exhausted.
_REPEATS = 1000


@dataclass(frozen=True)
class Domain:
    """The values that one setting may take.

    Attributes:
        kind: choice, uniform, loguniform or quniform.
        values: the choices; or low and high (and step), for loguniform as natural logarithms.
    """

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """One plain Python value; a real number has at most 4 significant digits, so that it is easy to type."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values[:2]
        if self.kind == "quniform":
            step = self.values[2]
            count = generator.integers(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9), endpoint=True)
            return float(f"{count * step:.12g}") if isinstance(step, float) else int(count) * step
        value = float(generator.uniform(low, high))
        if self.kind == "loguniform":
            low, high, value = math.exp(low), math.exp(high), math.exp(value)
        return float(min(max(float(f"{value:.4g}"), low), high))

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(map(str, self.values))}"
        low, high = self.values[:2]
        if self.kind == "loguniform":
            return f"{math.exp(low):.4g} to {math.exp(high):.4g}, logarithmic"
        return f"{low:g} to {high:g}" + (f" in steps of {self.values[2]:g}" if self.kind == "quniform" else "")


def default_space(config: KDConfig) -> dict[str, Domain]:
    """The default search space: properties/tune/MODEL.hyper, without settings that this run does not read.

    For a distiller that is not in this file, the space of the recipe with only this distiller is used. If the model has
    no file, that space also gives the other settings, such as the learning rate.

    Raises:
        UserError: neither the model nor a distiller of the run has such a file.
    """
    folder = PROPERTIES / "tune"
    own = folder / f"{config['model']}.hyper"
    has_own = own.is_file()
    space = read_space(own) if has_own else {}
    for distiller in config.distillers:
        if any(name.startswith(f"{distiller}.") for name in space):
            continue
        alone = [name for name, recipe in recipes().items() if recipe.get("distill") == [distiller]]
        files = [path for path in (folder / f"{name}.hyper" for name in alone) if path.is_file()]
        if not files:
            logging.getLogger().warning(
                f"There is no search space for {distiller}; write one and set --params_file=FILE.hyper."
            )
        for path in files[:1]:
            found = read_space(path)
            wanted = [name for name in found if not has_own or name.startswith(f"{distiller}.")]
            space.update({name: found[name] for name in wanted if name not in space})
    space = {name: domain for name, domain in space.items() if config.reads(name)}
    if not space:
        known = sorted(path.stem for path in folder.glob("*.hyper"))
        raise UserError(
            f"There is no search space for {config['model']}, only for {', '.join(known)}; "
            "write one and set --params_file=FILE.hyper (docs/tune.md shows how)."
        )
    return space


def read_space(path: Path) -> dict[str, Domain]:
    """The search space in a ``.hyper`` file.

    Raises:
        UserError: a file that cannot be read, or as in :func:`parse_space`.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(
            f"Cannot read the search space '{path}': {error.strerror}; set --params_file to a .hyper file."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"The search space '{path}' is not text in UTF-8; expected lines of a .hyper file.") from None
    return parse_space(text, str(path))


def parse_space(text: str, source: str = "the search space") -> dict[str, Domain]:
    """The search space in `text`.

    Args:
        text: the lines of a ``.hyper`` file.
        source: the file's name, for messages.

    Raises:
        UserError: an invalid line (with file, line and what was expected), a setting that is given twice, or no setting
            at all.
    """
    space: dict[str, Domain] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            continue
        where = f"{source}, line {number}"
        name, kind, values = (*words, "", "")[:3]
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{where}: {name[:40]!r} is not a setting's name; expected a line such as '{_KINDS['choice'][1]}'."
            )
        if kind not in _KINDS:
            raise UserError(
                f"{where}: {kind[:40]!r} after {name}; expected one of {', '.join(_KINDS)}, such as "
                f"'{_KINDS['uniform'][1]}'.{closest(kind, _KINDS)}"
            )
        if name in space:
            raise UserError(f"{where}: {name} is given a second time; keep one line of it.")
        try:
            space[name] = Domain(kind, _choices(values) if kind == "choice" else _bounds(kind, values))
        except ValueError as error:
            expected, example = _KINDS[kind]
            raise UserError(f"{where}: {error}; {kind} takes {expected}, such as '{example}'.") from None
    if not space:
        raise UserError(f"{source} names no setting to search; expected lines such as '{_KINDS['loguniform'][1]}'.")
    return space


def _choices(text: str) -> tuple[Any, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about escapes in strings
            values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{_short(text)} is not a list of plain values") from None
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{_short(text)} is not a list with at least one value")
    if not all(_plain(value) for value in values):
        raise ValueError(
            f"{_short(text)} has a value that is not a number, word, true or false, None, or list of these"
        )
    return tuple(list(value) if isinstance(value, tuple) else value for value in values)


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(element) for element in value)
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def _bounds(kind: str, text: str) -> tuple[float, ...]:
    given = text.partition("#")[0].strip()
    parts = [part.strip() for part in given.split(",")]
    wanted = 3 if kind == "quniform" else 2
    if len(parts) != wanted:
        raise ValueError(f"{_short(given)} is not {wanted} numbers with commas between")
    try:
        numbers: tuple[float, ...] = tuple(int(part) for part in parts)
    except ValueError:
        try:
            numbers = tuple(float(part) for part in parts)
        except ValueError:
            raise ValueError(f"{_short(given)} is not {wanted} numbers with commas between") from None
    if not all(abs(number) <= 1e300 for number in numbers):
        raise ValueError(f"{_short(given)} is out of range")
    low, high = numbers[:2]
    if not low < high:
        raise ValueError(f"the lower bound of {_short(given)} is not below the upper one")
    if kind == "loguniform":
        if max(abs(low), abs(high)) > 700:
            raise ValueError(f"e^{low:g} or e^{high:g} is out of range")
        if low > 0 and high <= 1:
            # Almost always a range written in plain numbers.
            raise ValueError(
                f"{_short(given)} means {math.exp(low):.4g} to {math.exp(high):.4g}; for {low:g} to {high:g} write "
                f"{math.log(low):.4g},{math.log(high):.4g}"
            )
    if kind == "quniform":
        step = numbers[2]
        if not 0 < step <= high - low or max(abs(low), abs(high)) / step > 1e9:
            raise ValueError(f"the step of {_short(given)} does not fit the range")
        if math.ceil(low / step - 1e-9) >= math.floor(high / step + 1e-9):
            raise ValueError(f"fewer than two multiples of the step lie within {_short(given)}")
    return numbers


def _short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def draw_trials(space: Mapping[str, Domain], trials: int, seed: int) -> list[dict[str, Any]]:
    """Distinct configurations, drawn uniformly from `space`; with one seed, a longer list begins with the shorter one.

    Returns:
        At most `trials` configurations; fewer if the space has no more.
    """
    generator = np.random.default_rng(seed)
    drawn: list[dict[str, Any]] = []
    seen: set[str] = set()
    repeats = 0
    while len(drawn) < trials and repeats < _REPEATS:
        settings = {name: domain.draw(generator) for name, domain in space.items()}
        repeats += 1
        if repr(settings) not in seen:
            seen.add(repr(settings))
            drawn.append(settings)
            repeats = 0
    return drawn


__all__ = ["Domain", "default_space", "draw_trials", "parse_space", "read_space"]
