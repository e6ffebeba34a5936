"""Which layers and heads a capture keeps, and how chosen query heads share their key heads."""

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


def key_heads_for(heads: list[int], n_heads: int, n_key_heads: int) -> list[int]:
    """The key heads that the chosen query heads need, as few as an even grouping allows.

    A factored layer gives every key head the same number of neighbouring query heads. Where the chosen heads fall into
    such groups, each key head is kept once; otherwise it is repeated, down to one for each query head.

    Args:
        heads: the chosen query heads, in their order.
        n_heads, n_key_heads: how many the model has; the first is a multiple of the second.

    Returns:
        Key heads, the n-th of which belongs to the n-th group of ``heads``.

    >>> key_heads_for([0, 1, 4, 5], 8, 2)
    [0, 1]
    >>> key_heads_for([0, 4, 5], 8, 2)
    [0, 1, 1]
    """
    owners = [head // (n_heads // n_key_heads) for head in heads]
    for group in range(len(owners), 1, -1):
        groups = [owners[start : start + group] for start in range(0, len(owners), group)]
        if len(owners) % group == 0 and all(len(set(members)) == 1 for members in groups):
            return [members[0] for members in groups]
    return owners
