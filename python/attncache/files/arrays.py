"""One array in a file of others: its name, dtype and shape without its items, and its items when they are wanted.

Every container gives such arrays (``numpy_arrays``, ``containers``); ``foreign`` finds the layers among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

FLOATS = ("float16", "bfloat16", "float32", "float64")
UNREADABLE = "unreadable"  # the dtype of what is no array
ONLY = "the array"  # the name of one that has none
_SHOWN = 8  # names in an error
_MOST_LETTERS = 100  # of such a name, which in a damaged file may be of any length


@dataclass(frozen=True)
class NamedArray:
    """One array of a file.

    Attributes:
        name, shape: as the file has them.
        dtype: NumPy's name of it, "bfloat16", or UNREADABLE.
        read: the items at an index, read-only; bfloat16 as uint16. It raises ValueError or OSError where the file is damaged.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[Any], npt.NDArray[Any]]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """The items at an index: a number or a slice for each of the first axes, or ``...`` for all."""
        return self.read(key)

    def __str__(self) -> str:
        name = self.name if len(self.name) <= _MOST_LETTERS else f"{self.name[:_MOST_LETTERS]}.."
        return f"{name} {list(self.shape)} {self.dtype}"


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """The bytes of so many floats."""
    n_bytes = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    for size in shape:
        n_bytes *= size
    return n_bytes


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype; two bytes without a kind are what NumPy makes of ml_dtypes' bfloat16 in a file."""
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None
    return "bfloat16" if is_bfloat16 else dtype.name


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, not to be changed; bfloat16 as uint16."""
    if dtype_name(array.dtype) == "bfloat16":
        array = array.view(np.uint16)
    array.flags.writeable = False
    return array


def listed(arrays: list[NamedArray]) -> str:
    """What there is, for an error."""
    words = [str(array) for array in arrays[:_SHOWN]]
    if len(arrays) > _SHOWN:
        words.append(f"and {len(arrays) - _SHOWN} more")
    return ", ".join(words) or "no array"


@contextmanager
def undamaged(path: str | PathLike[str], what: str, rule: str) -> Iterator[None]:
    """Turns everything that a reader raises over damaged bytes, a dozen kinds, into one ValueError."""
    try:
        yield
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        if str(error).startswith(f"{path}: ") and isinstance(error, ValueError):
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: {what} {rule}, got: {said}") from error


def imported(module: str, what: str) -> Any:
    """A package that reads a kind of file.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module} to be read: pip install {module}") from error
