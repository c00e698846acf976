"""Checks a file's data before it is used: the types of its fields, its depth and its size.

A format's schema is a TypedDict. :func:`check` takes the types that plain data has: None, bool, int, float, str,
Tensor, Any, list, tuple, dict, unions, TypedDict. A whole number is a float too, and True is not a number.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from recbole_kd.errors import UserError

#: Largest depth of a value in a file.
DEEPEST = 100
#: A whole number as a key in JSON; and characters that no UTF-8 file can hold.
_DIGITS, _SURROGATE = re.compile(r"\d{1,18}"), re.compile(r"[\ud800-\udfff]")
_LEAVES = (type(None), bool, int, float, str)


class Unbounded(Exception):
    """The reason why a value is too large or too deep, as a clause."""


def inside(value: Any) -> tuple[Any, ...]:
    """The parts of a list, tuple, set or dict, keys included; empty for other values."""
    if isinstance(value, Mapping):
        return (*value, *value.values())
    return tuple(value) if isinstance(value, (list, tuple, set)) else ()


def require_bounded(value: Any, most: int, parts: Callable[[Any], tuple[Any, ...]] = inside) -> None:
    """Refuses a value that contains itself, is nested too deeply, or expands to too many values.

    Args:
        value: it may share parts, as YAML's aliases and pickles do.
        most: the number of values allowed, each part counted wherever it is repeated.
        parts: returns the parts of a value.

    Raises:
        Unbounded: one of these; the text says which.
    """
    known: dict[int, tuple[int, int]] = {}

    def measure(node: Any, depth: int) -> tuple[int, int]:
        """(values, levels) of a node."""
        if id(node) not in known:
            if depth > DEEPEST:
                raise Unbounded(f"it is nested more than {DEEPEST} levels deep")
            known[id(node)] = (0, 0)
            size, height = 1 + (len(node) // 8 if isinstance(node, bytes) else 0), 0
            for part in parts(node):
                counted, levels = (1, 0) if type(part) in _LEAVES else measure(part, depth + 1)
                size, height = size + counted, max(height, levels)
            if size > most:
                raise Unbounded(f"its parts unfold to more than {most:,} values")
            if height >= DEEPEST:
                raise Unbounded(f"it is nested more than {DEEPEST} levels deep")
            known[id(node)] = size, height + 1
        elif known[id(node)] == (0, 0):
            raise Unbounded("it refers to itself")
        return known[id(node)]

    if type(value) not in _LEAVES:
        measure(value, 0)


def check(value: Any, schema: Any, source: str, advice: str = "give a file that recbole-kd wrote") -> None:
    """Refuses data that does not fit a schema; fields that are not in the schema are ignored.

    Args:
        value: the data of a file.
        schema: a TypedDict or another type.
        source: the file's name in messages.
        advice: the advice in messages.

    Raises:
        UserError: a field is missing or has another type; the message names the field.
    """
    problem = _mismatch(value, schema, "")
    if problem is not None:
        where, found, expected = problem
        raise UserError(f"{source}: {f'field {where}' if where else 'it'} is {found}; expected {expected}; {advice}.")


def _mismatch(value: Any, schema: Any, where: str) -> tuple[str, str, str] | None:
    """(field, what was found, what was expected) for the first field that does not fit."""
    origin, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return None
    if origin in (Union, types.UnionType):
        choices = [_mismatch(value, choice, where) for choice in arguments]
        if None in choices:
            return None
        deeper = [problem for problem in choices if problem is not None and problem[0] != where]
        return deeper[0] if deeper else (where, _found(value), _named(schema))
    if origin is list and isinstance(value, list):
        (kind,) = arguments
        # In long lists of tokens only those that do not fit are examined further.
        parts = ((i, part) for i, part in enumerate(value) if kind not in (str, int, float) or not _is(part, kind))
        return next(filter(None, (_mismatch(part, kind, f"{where}[{i}]") for i, part in parts)), None)
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
        problems = (_mismatch(part, kind, f"{where}[{i}]") for i, (part, kind) in enumerate(zip(value, arguments)))
        return next(filter(None, problems), None)
    if origin is dict and isinstance(value, Mapping):
        for key, part in value.items():
            named = int(key) if arguments[0] is int and isinstance(key, str) and _DIGITS.fullmatch(key) else key
            problem = _mismatch(named, arguments[0], where) or _mismatch(part, arguments[1], _inner(where, key))
            if problem is not None:
                return problem
        return None
    if is_typeddict(schema) and isinstance(value, Mapping):
        for name, field in get_type_hints(schema).items():
            if name in value:
                problem = _mismatch(value[name], field, _inner(where, name))
            else:
                problem = (_inner(where, name), "missing", _named(field)) if name in schema.__required_keys__ else None
            if problem is not None:
                return problem
        return None
    return None if _is(value, schema) else (where, _found(value), _named(schema))


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) <= 2**63)
    if kind is int:
        return type(value) is int and abs(value) <= 2**63
    if kind is str:
        return isinstance(value, str) and not _SURROGATE.search(value)
    # On Python 3.10 list[int] is also a type, but isinstance does not accept it.
    plain = isinstance(kind, type) and get_origin(kind) is None and not is_typeddict(kind)
    return plain and isinstance(value, kind)


def _inner(where: str, key: Any) -> str:
    key = str(key)
    key = key if key.isprintable() and len(key) <= 50 else ascii(key[:50])
    return f"{where}.{key}" if where else key


def _found(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return "not a finite number" if isinstance(value, float) and not math.isfinite(value) else repr(value)[:50]
    return f"the text {value[:50]!a}" if isinstance(value, str) else _named(type(value))


_NAMES = {
    type(None): "nothing",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list of that length",
    dict: "values by name",
}


def _named(schema: Any) -> str:
    if get_origin(schema) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_named, get_args(schema))))
    kind = dict if is_typeddict(schema) else get_origin(schema) or schema
    name = getattr(kind, "__name__", str(kind))
    return _NAMES.get(kind, "a tensor" if name == "Tensor" else name)
