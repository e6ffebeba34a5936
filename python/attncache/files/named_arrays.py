"""Arrays in files of others: their names, dtypes and shapes without their items, and which of them are the layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attncache.sources import Source, read_source

FLOATS = ("float16", "bfloat16", "float32", "float64")
UNREADABLE = "unreadable"  # the dtype of what is no array
_PATTERN = "layers.{}.pattern"
_MOST_OF_NOTHING = 1 << 20  # as in schema.py: what takes no bytes may still take time
_SHOWN = 8  # names in an error


class NamedArray(NamedTuple):
    """One array of a file.

    Attributes:
        name, shape: as the file has them.
        dtype: NumPy's name of it, "bfloat16", or UNREADABLE.
        read: its items, read-only; bfloat16 as uint16. It raises ValueError or OSError where the file is damaged.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]

    @property
    def is_pattern(self) -> bool:
        """Whether it may be a layer: floats [batch, head, query, key]."""
        return self.dtype in FLOATS and len(self.shape) == 4

    @property
    def n_bytes(self) -> int:
        """The bytes of its items; of a layer alone."""
        n_bytes = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        for size in self.shape:
            n_bytes *= size
        return n_bytes

    def source(self) -> Source:
        """Its items as ``push`` takes them."""
        items = self.read()
        return Source(items, "bfloat16", is_writable=False) if self.dtype == "bfloat16" else read_source(items)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype}"


def layers_among(arrays: Iterable[NamedArray], path: str | PathLike[str], names: str | None = None) -> list[NamedArray]:
    """The arrays that are the layers, in their order.

    Args:
        arrays: of the file.
        path: how errors name it.
        names: the names of the layers with {} for their number, or the name of a single layer. None finds them: those
            named layers.N.pattern, or else all arrays of four axes and floats, whose names must differ in one number
            alone, from 0 on without a gap; or the only such array.

    Raises:
        ValueError: there are none, one is missing, one is no pattern, or it is not clear which they are.
    """
    arrays = list(arrays)
    if names is not None and names.count("{}") > 1:
        raise ValueError(f"names must have {{}} once, where the number of the layer is, got {names!r}")
    if names is None and _numbered(arrays, _PATTERN):
        names = _PATTERN
    return checked_patterns(_found(arrays, path) if names is None else _named(arrays, path, names), path)


def checked_patterns(arrays: Sequence[NamedArray], path: str | PathLike[str]) -> list[NamedArray]:
    """The arrays, if all of them are floats [batch, head, query, key].

    Raises:
        ValueError: one is not.
    """
    for array in arrays:
        if array.dtype == UNREADABLE:
            array.read()  # which says why
        if len(array.shape) != 4:
            raise ValueError(f"{path}: {array.name} must be [batch, head, query, key], got shape {array.shape}")
        if array.dtype not in FLOATS:
            raise ValueError(f"{path}: {array.name} must be one of {', '.join(FLOATS)}, got {array.dtype}")
        if array.n_bytes == 0 and max(array.shape[:2]) > _MOST_OF_NOTHING:
            rule = f"must have at most {_MOST_OF_NOTHING} batch items and heads if it is empty"
            raise ValueError(f"{path}: {array.name} {rule}, got shape {array.shape}")
    return list(arrays)


def _named(arrays: Sequence[NamedArray], path: str | PathLike[str], names: str) -> list[NamedArray]:
    """The arrays of these names, numbered from 0 without a gap."""
    if "{}" not in names:
        only = [array for array in arrays if array.name == names]
        if not only:
            raise ValueError(f"{path}: must hold an array named {names}, got {_listed(arrays)}")
        return only
    numbered = _numbered(arrays, names)
    if not numbered:
        raise ValueError(f"{path}: must hold arrays named {names.replace('{}', '0')}, .., got {_listed(arrays)}")
    numbers = sorted(number for number, _ in numbered)
    if numbers != list(range(len(numbers))):
        twice = next((number for number in numbers if numbers.count(number) > 1), None)
        missing = next((number for number in range(len(numbers)) if number not in numbers), None)
        what = f"{twice} twice" if twice is not None else f"no {names.replace('{}', str(missing))}"
        raise ValueError(f"{path}: layers must be numbered 0, 1, 2, .. without a gap, got {what}")
    return [array for _, array in sorted(numbered, key=lambda pair: pair[0])]


def _found(arrays: Sequence[NamedArray], path: str | PathLike[str]) -> list[NamedArray]:
    """All arrays that may be layers, if their names say in which order."""
    candidates = [array for array in arrays if array.is_pattern]
    if len(candidates) == 1 and not re.search("[0-9]", candidates[0].name):
        return candidates
    for names in _templates(candidates[0].name) if candidates else ():
        numbered = sorted(_numbered(candidates, names), key=lambda pair: pair[0])
        if len(numbered) == len(candidates) and [number for number, _ in numbered] == list(range(len(candidates))):
            return [array for _, array in numbered]
    raise ValueError(
        f"{path}: must hold arrays of floats [batch, head, query, key], one per layer, named layers.0.pattern, .. or "
        f"otherwise alike but for one number from 0 on; names, such as 'attentions.{{}}', chooses among several kinds; "
        f"got {_listed(arrays)}"
    )


def _numbered(arrays: Iterable[NamedArray], names: str) -> list[tuple[int, NamedArray]]:
    """The arrays of these names, each with its number."""
    wanted = re.compile("([0-9]{1,9})".join(map(re.escape, names.split("{}"))))
    return [(int(match[1]), array) for array in arrays if (match := wanted.fullmatch(array.name))]


def _templates(name: str) -> list[str]:
    """The name with {} for each of its numbers in turn."""
    return [f"{name[: match.start()]}{{}}{name[match.end() :]}" for match in re.finditer("[0-9]+", name)]


def _listed(arrays: Sequence[NamedArray]) -> str:
    """What there is, for an error."""
    words = [str(array) for array in arrays[:_SHOWN]]
    if len(arrays) > _SHOWN:
        words.append(f"and {len(arrays) - _SHOWN} more")
    return ", ".join(words) or "no array"
