"""Checks the metadata that a user gives a cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attncache.files import strict_json


def checked_metadata(metadata: object) -> Mapping[str, Any]:
    """A read-only copy of the metadata, as they come back from a file.

    Raises:
        TypeError: they are not a mapping of strings to JSON values. ValueError: they hold NaN, an infinity or themselves.

    >>> dict(checked_metadata({"layers": (1, 2)}))
    {'layers': [1, 2]}
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping of strings to JSON values, got {type(metadata).__name__}")
    copied = {}
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise TypeError(f"metadata must have names that are strings, got {name!r}")
        try:
            copied[name] = strict_json.parse(json.dumps(value, allow_nan=False, default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"metadata[{name!r}] must be a JSON value, got {type(value).__name__}: {error}") from error
    return MappingProxyType(copied)


def _plain(value: Any) -> Any:
    """NumPy's numbers, which know how to become Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
