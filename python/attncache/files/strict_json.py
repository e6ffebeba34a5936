"""JSON as our files may use it: no duplicate names, no NaN, no numbers of a thousand digits."""

from __future__ import annotations

import json
import math
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
