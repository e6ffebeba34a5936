"""JSON as our files may use it: no duplicate names, no NaN, no numbers of a thousand digits; and a user's metadata as such JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_MOST_DIGITS = 4000  # slow to read if there are very many, and Python by itself refuses more than 4300


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or not of this strict kind; the message says what is wrong, without naming the file.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # UnicodeDecodeError is a ValueError
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("too deeply nested brackets") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} twice in one object")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:20]}, which is too large")
    return number


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 on."""
    return type(value) is int and value >= 0


_MOST_LONG = 100_000_000  # as many as a file could hold
_MOST_DEEP = 100  # lists and mappings in each other; readers' parsers take some 1,000, less what their callers took


def checked_metadata(metadata: object) -> Mapping[str, Any]:
    """A read-only copy of the metadata, as they come back from a file.

    Raises:
        TypeError: they are not a mapping of strings to JSON values. ValueError: they hold NaN, an infinity or themselves, or
            are nested deeper than any reader is sure to take, or longer than a file can hold.

    >>> dict(checked_metadata({"layers": (1, 2)}))
    {'layers': [1, 2]}
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping of strings to JSON values, got {type(metadata).__name__}")
    copied = {}
    length = 0
    known: dict[int, tuple[int, int]] = {}
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"metadata must have names that are strings, got {name!r}")
        try:
            length += _extent(value, _MOST_DEEP - 1, known)[0]
        except (TypeError, ValueError) as error:
            raise type(error)(f"metadata[{name!r}] {error}") from None
        if length > _MOST_LONG:
            raise ValueError(
                f"metadata must come to at most {_MOST_LONG:,} characters of JSON, with {name!r} they do not"
            )
        try:
            copied[name] = parse(json.dumps(value, allow_nan=False, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"metadata[{name!r}] must be a JSON value, got {type(value).__name__}: {error}") from error
    return MappingProxyType(copied)


def _extent(value: object, deepest: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many characters of JSON a value is at least, and how many lists and mappings lie in each other in it.

    Args:
        value: anything; only lists, tuples and dicts are looked into, as ``json`` does.
        deepest: the greatest height that may be found; a value that holds itself has more.
        known: what was found of the lists and mappings that were looked at, by their ids: each is looked at once.

    Raises:
        ValueError: it is higher. TypeError: a mapping in it has a name that is no string.
    """
    if not isinstance(value, list | tuple | dict):
        digits = value.bit_length() // 4 if isinstance(value, int) else len(value) if isinstance(value, str) else 0
        return 1 + digits, 0
    extent = known.get(id(value))
    if deepest < (1 if extent is None else extent[1]):
        raise ValueError(f"must be nested at most {_MOST_DEEP} deep")
    if extent is None:
        length, height = 2, 0
        for name in value if isinstance(value, dict) else ():
            if not isinstance(name, str):
                raise TypeError(f"must have names that are strings in its mappings, got {name!r}")
            length += len(name)
        for each in value.values() if isinstance(value, dict) else value:
            inner = _extent(each, deepest - 1, known)
            length, height = length + 1 + inner[0], max(height, inner[1])
        extent = known[id(value)] = length, height + 1
    return extent


def _plain(value: Any) -> Any:
    """NumPy's numbers, which know how to become Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
