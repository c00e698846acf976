"""Options of a unit: a frozen dataclass whose fields are checked when a section of the configuration is read."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeVar, Union

from recbole_kd.errors import UserError, closest

#: Whole numbers beyond it are none that tensors can count to.
LARGEST_INT = 2**63 - 1

OptionsT = TypeVar("OptionsT", bound="Options")


def option(
    default: Any,
    help: str,
    *,
    minimum: Optional[float] = None,
    maximum: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
    choices: Optional[Sequence[str]] = None,
) -> Any:
    """A field of an :class:`Options` class.

    Args:
        default: value when the section does not name the field.
        help: one line on what it means, with its unit; printed by ``recbole-kd list`` and in the docs.
        minimum, maximum: closed bounds of a number (of each number of a list).
        above, below: open bounds.
        choices: the strings that are allowed.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of every unit's options. Unknown names, wrong types and values out of range raise :class:`UserError`."""

    @classmethod
    def parse(cls: type[OptionsT], section: str, values: Optional[Mapping[str, Any]]) -> OptionsT:
        """Checked options from a section of the configuration.

        Args:
            section: the section's name, used in messages and as the prefix on the command line.
            values: the section as a mapping; None is an empty one.

        Raises:
            UserError: an unknown field, a value of another type, or one out of range.
        """
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise UserError(
                f"Section '{section}' is {values!r}; expected options by name, such as --{section}.FIELD=VALUE."
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        checked = {}
        check_names(section, values, fields)
        for name, value in values.items():
            checked[name] = _checked(f"{section}.{name}", value, hints[name], fields[name].metadata)
        options = cls(**checked)
        options.check(section)
        return options

    def check(self, section: str) -> None:
        """Relations between fields; a subclass raises :class:`UserError` where they do not hold."""


def check_names(section: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Raises :class:`UserError` where a section holds a name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"Unknown option '{section}.{name}'.{closest(str(name), known)} "
                f"Section '{section}' has: {', '.join(known)}."
            )


def _checked(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `hint` says, or a :class:`UserError` that names the option."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union or origin is getattr(types, "UnionType", Union):
        if value is None and type(None) in arguments:
            return None
        others = [argument for argument in arguments if argument is not type(None)]
        if len(others) == 1:
            return _checked(name, value, others[0], metadata)
        for argument in others:
            try:
                return _checked(name, value, argument, metadata)
            except UserError as error:
                last = error
        raise last
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name}={value!r} is not a list; expected a list, such as --{name}=[1,0.5].")
        return tuple(_checked(name, element, arguments[0], metadata) for element in value)
    if hint is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} is not true or false; set --{name}=true or --{name}=false.")
        return value
    if hint in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (hint is int and not is_whole(value)):
            kind = "a whole number" if hint is int else "a number"
            raise UserError(f"{name}={value!r} is not {kind}; expected {_bounds(metadata) or kind}.")
        if not abs(value) <= (LARGEST_INT if hint is int else sys.float_info.max) or not _inside(value, metadata):
            raise UserError(f"{name}={value!r} is out of range; expected {_bounds(metadata) or 'a finite number'}.")
        return hint(value)
    if hint is str:
        choices = metadata.get("choices")
        if not isinstance(value, str) or (choices and value not in choices):
            expected = f"one of {', '.join(choices)}" if choices else "a word"
            raise UserError(f"{name}={value!r} is not {expected}.{closest(str(value), choices or ())}")
        return value
    raise TypeError(f"{name}: options of type {hint} are not supported")


def is_whole(value: Union[int, float]) -> bool:
    """Whether a number is a whole one, however large; infinity and what is not a number are none."""
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
    return " and ".join(f"{word} {metadata[key]:g}" for key, word in words.items() if metadata.get(key) is not None)
