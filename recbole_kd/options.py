"""Options of a unit or of a verb: a frozen dataclass whose fields check their values and describe themselves.

Help, messages and the tables in docs/ are made from the same fields.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from datetime import date
from functools import cache
from typing import Any, TypeVar, Union

from recbole_kd.errors import UserError, closest

#: The largest whole number in a tensor.
LARGEST_INT = 2**63 - 1
#: The largest number that makes sense as a batch, size or length.
LARGEST_SIZE = 2**31 - 1

OptionsT = TypeVar("OptionsT", bound="Options")


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    any_case: bool = False,
    noun: str = "",
    test: Callable[[Any], object] | None = None,
    filled: bool = False,
    metavar: str = "",
    needed: str = "",
    example: str = "",
) -> Any:
    """A field of an :class:`Options` class.

    Args:
        default: value if the section does not name the field.
        help: one line on what it means, with its unit; printed by ``recbole-kd list`` and in the docs.
        minimum, maximum: closed bounds of a number (of each number of a list).
        above, below: open bounds.
        choices: the strings that are allowed.
        any_case: whether a choice may be written in upper or lower case.
        noun: the expected value in words, for messages and help, if type and bounds do not say enough.
        test: a function that says whether a value of the right type is allowed.
        filled: whether a text, list or mapping must not be empty.
        metavar: the placeholder for the value in help, if there is no default.
        needed: what the verb needs, such as "a checkpoint"; the option is then required.
        example: a value that the message about a missing required option names.
    """
    told = dict(locals())
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: default, metadata=told)
    return dataclasses.field(default=MISSING if needed else default, metadata=told)


@dataclass(frozen=True)
class Options:
    """Base of every unit's options. Unknown names, wrong types and values out of range raise :class:`UserError`."""

    @classmethod
    def parse(cls: type[OptionsT], section: str, values: Mapping[str, Any] | None) -> OptionsT:
        """Checked options from a section of the configuration.

        Args:
            section: the section's name, used in messages and as the prefix on the command line; "--" for options that
                are in no section.
            values: the section as a mapping; None is an empty one.

        Raises:
            UserError: an unknown field, a value of another type or out of range, or a required option is missing.
        """
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            name = section.lstrip("-")
            raise UserError(f"Section '{name}' is {values!r}; expected options by name, such as --{name}.FIELD=VALUE.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        check_names(section.lstrip("-"), values, fields)
        checked = {name: cls.checked(section, name, value) for name, value in values.items()}
        for name, field in fields.items():
            if field.metadata.get("needed") and checked.get(name) in (None, ""):
                raise UserError(_missing(getattr(cls, "verb", section.lstrip("-")), _joined(section, name), field))
        options = cls(**checked)
        options.check(section)
        return options

    @classmethod
    def checked(cls, section: str, name: str, value: Any) -> Any:
        """One field's value, checked as :meth:`parse` does."""
        return checked(_joined(section, name), value, _hints(cls)[name], cls.__dataclass_fields__[name].metadata)

    def check(self, section: str) -> None:
        """Checks relations between fields; a subclass raises :class:`UserError` if they do not hold."""


def check_names(section: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Raises :class:`UserError` if a section holds an unknown name."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"Unknown option '{section}.{name}'.{closest(str(name), known)} "
                f"Section '{section}' has: {', '.join(known)}."
            )


@dataclass(frozen=True)
class Described:
    """A field as help and docs show it.

    Attributes:
        name: its name.
        hint: its type.
        default: its default as written on the command line; empty for none.
        expected: the allowed values, in words.
        help: its meaning.
        metavar: the placeholder for a value.
    """

    name: str
    hint: Any
    default: str
    expected: str
    help: str
    metavar: str

    @property
    def range(self) -> str:
        """What `expected` says beyond the type (bounds, choices, a form); empty if nothing."""
        plain = (*_KINDS.values(), *map(_kind, _LISTS), "a mapping", "a name", "a separator")
        bounded = next((kind for kind in plain if self.expected.startswith(f"{kind} ")), "")
        return "" if self.expected in plain else self.expected[len(bounded) :].strip().removeprefix("of ")

    @property
    def flag(self) -> str:
        """``--name=default``, or the placeholder in place of the default."""
        return f"--{self.name}={self.default or self.metavar}"


def described(cls: type[Options], prefix: str = "") -> Iterator[Described]:
    """The fields of an options class in order; fields of a nested section have dotted names."""
    for field in dataclasses.fields(cls):
        hint = _hints(cls)[field.name]
        kinds = [one for one in _alternatives(hint) if one is not type(None)]
        if len(kinds) == 1 and _is_options(kinds[0]):
            yield from described(kinds[0], f"{prefix}{field.name}.")
            continue
        metadata = field.metadata
        default = "" if metadata.get("default") is None else as_text(metadata["default"])
        yield Described(
            prefix + field.name,
            hint,
            default,
            "needed" if metadata.get("needed") else expected(hint, metadata),
            metadata.get("help", ""),
            _metavar(hint, metadata),
        )


def is_text(hint: Any) -> bool:
    """Whether values of a type are always text: a dataset may be called 2020."""
    return str in _alternatives(hint) and all(one in (str, type(None)) for one in _alternatives(hint))


def as_text(value: Any) -> str:
    """A default as written on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_text(one)}' for key, one in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\t", "\\t")


def expected(hint: Any, metadata: Mapping[str, Any]) -> str:
    """The allowed values of an option of this type, in words."""
    noun, choices = metadata.get("noun"), metadata.get("choices")
    if (metadata.get("maximum") or 0) >= LARGEST_SIZE:  # a limit of the machine: named in messages only
        metadata = {**metadata, "maximum": None}
    if choices:
        return " | ".join(choices)
    kinds = [_kind(one) for one in _alternatives(hint) if one is not type(None)]
    return _amount(noun or " or ".join(kinds), metadata)


#: The types of a class's fields by name.
_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (Union, getattr(types, "UnionType", Union))
    return typing.get_args(hint) if union else (hint,)


def _is_options(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_LISTS = (tuple[str, ...], tuple[int, ...], tuple[float, ...])
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"a list of {_PLURALS.get(typing.get_args(hint)[0], 'values')}"
    return "a mapping" if typing.get_origin(hint) is dict else _KINDS.get(hint, "a value")


def _metavar(hint: Any, metadata: Mapping[str, Any]) -> str:
    if metadata.get("metavar"):
        return str(metadata["metavar"])
    kinds = {int: "N", float: "X", bool: "true"}
    return next((kinds[one] for one in _alternatives(hint) if one in kinds), "VALUE")


def _joined(section: str, name: str) -> str:
    """``rrd.weight``, or ``--weight`` outside sections."""
    return section + name if section in ("", "--") else f"{section}.{name}"


def _missing(who: str, name: str, field: Any) -> str:
    metadata = field.metadata
    example = f", such as {metadata['example']}" if metadata["example"] else ""
    return f"{who} needs {metadata['needed']}; set {name}={metadata['metavar']}{example}."


# Values


def checked(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value`, converted to the type `hint` and checked against the bounds in `metadata`.

    Args:
        name: its name in messages: ``rrd.weight``, or ``--trials`` outside sections.

    Raises:
        UserError: another type, or a value out of range.
    """
    others = [one for one in _alternatives(hint) if one is not type(None)]
    if value is None and len(others) < len(_alternatives(hint)):
        return None
    for number, kind in enumerate(others, 1):
        try:
            found = _of_kind(name, value, kind, metadata)
            break
        except UserError:
            if number == len(others):
                raise
    if (metadata.get("filled") and not found) or (metadata.get("test") and not metadata["test"](found)):
        raise UserError(f"{name}={_written(value)}; expected {expected(hint, metadata)}.")
    return found


def _written(value: Any) -> str:
    """A value as a user writes it: a list with dates as YAML has them, anything else as Python does."""
    if isinstance(value, (list, tuple)) and any(isinstance(one, date) for one in value):
        return f"[{','.join(map(str, value))}]"
    return repr(value)


def _of_kind(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if _is_options(hint):
        return hint.parse(name, value)
    if origin is tuple:
        if isinstance(value, str) and arguments[0] is str:
            value = [word.strip() for word in value.split(",") if word.strip()]
        if isinstance(value, str) or not isinstance(value, Sequence):
            flag = name.lstrip("-")
            raise UserError(f"{name}={value!r} is not a list; expected a list, such as --{flag}={_example(arguments)}.")
        inner = {**metadata, "test": None, "filled": False, "noun": ""}
        return tuple(checked(name, element, arguments[0], inner) for element in value)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{name}={value!r}; expected {expected(hint, metadata)}.")
        inner = {**metadata, "test": None, "filled": False, "noun": ""}
        return {key: checked(f"{name}.{key}", element, arguments[1], inner) for key, element in value.items()}
    if hint is bool:
        if not isinstance(value, bool):
            flag = name.lstrip("-")
            raise UserError(f"{name}={value!r} is not true or false; set --{flag}=true or --{flag}=false.")
        return value
    if hint in (int, float):
        return _number(name, value, hint, metadata)
    if hint is str:
        return _word(name, value, metadata)
    raise TypeError(f"{name}: options of type {hint} are not supported")


def _example(arguments: Sequence[Any]) -> str:
    return {str: "[a,b]", int: "[1,2]"}.get(arguments[0], "[1,0.5]")


def _number(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> int | float:
    kind, bounds = metadata.get("noun") or _KINDS[hint], _bounds(metadata)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    right = number and (hint is float or is_whole(value))
    largest = LARGEST_INT if hint is int else sys.float_info.max
    if not right or not abs(value) <= largest or not _inside(value, metadata):
        if name.startswith("--"):
            raise UserError(f"{name}={value!r}; expected {_amount(kind, metadata)}.")
        if not right:
            raise UserError(f"{name}={value!r} is not {kind}; expected {bounds or kind}.")
        raise UserError(f"{name}={value!r} is out of range; expected {bounds or 'a finite number'}.")
    return hint(value)


def _word(name: str, value: Any, metadata: Mapping[str, Any]) -> str:
    choices, noun = metadata.get("choices"), metadata.get("noun") or "a word"
    if not isinstance(value, str) or "\0" in value:
        wanted = f"one of {', '.join(choices)}" if choices else noun
        raise UserError(f"{name}={value!r} is not {wanted}.")
    if not choices or value in choices:
        return value
    for choice in choices if metadata.get("any_case") else ():
        if value.lower() == choice.lower():
            return value
    raise UserError(f"{name}={value!r} is not one of {', '.join(choices)}.{closest(value, choices)}")


def is_whole(value: int | float) -> bool:
    """Whether a number is whole, however large; infinity and NaN are not."""
    return isinstance(value, int) or value.is_integer()


def _inside(value: float, metadata: Mapping[str, Any]) -> bool:
    low, high, above, below = (metadata.get(key) for key in ("minimum", "maximum", "above", "below"))
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def _bounds(metadata: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    found = {word: metadata[key] for key, word in words.items() if metadata.get(key) is not None}
    return " and ".join(f"{word} {_figure(bound)}" for word, bound in found.items())


def _figure(bound: float) -> str:
    return f"{int(bound):,}" if abs(bound) < 1e15 and is_whole(bound) else f"{bound:g}"


def _amount(kind: str, metadata: Mapping[str, Any]) -> str:
    """The kind of a number with its bounds: "a whole number of at least 1"."""
    bounds = _bounds(metadata)
    return f"{kind} of {bounds}" if bounds.startswith("at ") else f"{kind} {bounds}".rstrip()
