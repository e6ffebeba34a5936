"""Which layers and heads a capture keeps."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np

from attncache.selections import Selector


def selected(selector: Selector, size: int, argument: str) -> list[int]:
    """The indices that a selector picks out of ``size``, counted from the start.

    Args:
        selector: None for all, an int, a slice, or a sequence of ints; negative ones count from the end.
        size: how many there are.
        argument: its name for errors, "layers" or "heads".

    Raises:
        IndexError: an index is out of range. TypeError: the selector is of another kind.
    """
    if selector is None:
        return list(range(size))
    if isinstance(selector, slice):
        return list(range(size))[selector]
    items: Any = selector if isinstance(selector, Iterable) and np.ndim(selector) else [selector]
    return [_one(item, size, argument) for item in items]


def _one(item: Any, size: int, argument: str) -> int:
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        rule = "None, an int, a slice or a sequence of ints"
        raise TypeError(f"{argument} must be {rule}, got {type(item).__name__}")
    number = index(item)
    if not -size <= number < size:
        raise IndexError(f"{argument} {number} is out of range for n_{argument}={size}")
    return number % size
