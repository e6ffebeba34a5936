"""Checks the metadata that a user gives a cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attncache.files import strict_json

_MOST_DEEP = 100  # lists and mappings in each other; readers' parsers take some 1,000, less what their callers took


def checked_metadata(metadata: object) -> Mapping[str, Any]:
    """A read-only copy of the metadata, as they come back from a file.

    Raises:
        TypeError: they are not a mapping of strings to JSON values. ValueError: they hold NaN, an infinity or themselves, or
            are nested deeper than any reader is sure to take.

    >>> dict(checked_metadata({"layers": (1, 2)}))
    {'layers': [1, 2]}
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping of strings to JSON values, got {type(metadata).__name__}")
    copied = {}
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"metadata must have names that are strings, got {name!r}")
        if _is_deeper(value, _MOST_DEEP - 1):
            raise ValueError(f"metadata[{name!r}] must be nested at most {_MOST_DEEP} deep")
        try:
            copied[name] = strict_json.parse(json.dumps(value, allow_nan=False, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"metadata[{name!r}] must be a JSON value, got {type(value).__name__}: {error}") from error
    return MappingProxyType(copied)


def _is_deeper(value: object, limit: int) -> bool:
    """Whether more lists and mappings lie in each other; ends at the first that do, since what holds itself has no end."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else None
    if inner is None:
        return False
    return limit == 0 or any(_is_deeper(each, limit - 1) for each in inner)


def _plain(value: Any) -> Any:
    """NumPy's numbers, which know how to become Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
