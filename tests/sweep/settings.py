"""Finds settings in a configuration and its parts, by the names that models give them; inputs.py and media.py use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.sweep.shrinking import is_config

BATCH, LENGTH, PADS, STEPS = 2, 12, 4, 3  # of texts: rows, tokens, further tokens where padded, tokens generated
VARIANTS = 3  # shapes of pictures and sounds to try


def parts_of(config: Any) -> Iterator[Any]:
    """A configuration and those inside it, from the outside in."""
    yield config
    inside = [value for _, value in sorted(vars(config).items()) if is_config(value)]
    for part in inside:
        yield from parts_of(part)


def setting(config: Any, *names: str, default: Any = None, within: str = "") -> Any:
    """The first of these settings that a configuration or a part of it has; parts named like ``within`` come first."""
    parts = list(parts_of(config))
    chosen = [part for part in parts if within and within in f"{part.model_type} {type(part).__name__}".lower()]
    for part in [*chosen, *parts]:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default
