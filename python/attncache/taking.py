"""Resolves selectors into indices, and takes these along the axes of an array; for parts of caches and for captures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache.selections import Selector


def indices(selector: Selector, size: int, argument: str, size_name: str) -> Sequence[int]:
    """The indices that a selector picks out of ``size``, counted from the start.

    Args:
        selector: as for ``rows``; an int picks one.
        size: how many there are.
        argument, size_name: what errors call the selector and the size.

    Raises:
        IndexError: an index is out of range. TypeError: the selector is of another kind.
    """
    if selector is None:
        return range(size)
    if isinstance(selector, slice):
        return range(*selector.indices(size))
    items: Any = selector if isinstance(selector, Iterable) and np.ndim(selector) else [selector]
    return [_one(item, size, argument, size_name) for item in items]


def _one(item: Any, size: int, argument: str, size_name: str) -> int:
    if isinstance(item, bool | np.bool_) or not hasattr(item, "__index__"):
        rule = "None, an int, a slice or a sequence of ints"
        raise TypeError(f"{argument} must be {rule}, got {type(item).__name__}")
    number = index(item)
    if not -size <= number < size:
        raise IndexError(f"{argument.removesuffix('s')} {number} is out of range for {size_name}={size}")
    return number % size


class Chosen(NamedTuple):
    """The indices of a layer's axes that are in a part of it."""

    batch: Sequence[int]
    heads: Sequence[int]
    queries: Sequence[int]
    keys: Sequence[int]

    def is_all(self, shape: tuple[int, int, int, int]) -> bool:
        """Whether they are the whole of a layer of this shape, in its order."""
        return all(as_slice(each) == slice(0, n, 1) for each, n in zip(self, shape, strict=True))


def as_slice(indices: Sequence[int]) -> slice | None:
    """The slice of the same indices; None if they do not ascend in even steps.

    >>> as_slice([2, 4, 6]), as_slice([4, 2]), as_slice([])
    (slice(2, 7, 2), None, slice(0, 0, 1))
    """
    if not len(indices):
        return slice(0, 0, 1)
    first, last = indices[0], indices[-1]
    step = indices[1] - first if len(indices) > 1 else 1
    if step <= 0 or not (isinstance(indices, range) or list(indices) == list(range(first, last + 1, step))):
        return None
    return slice(first, last + 1, step)


def taken(array: npt.NDArray[Any], *chosen: Sequence[int]) -> npt.NDArray[Any]:
    """The chosen indices of the first axes: a read-only view of the array, or a copy where one must be made."""
    slices = [as_slice(each) for each in chosen]
    found = array[tuple(slice(None) if each is None else each for each in slices)]
    for axis, each in enumerate(chosen):
        if slices[axis] is None:
            found = found.take(each, axis=axis)
    found.flags.writeable = False
    return found
