"""One array in a file of others: its name, dtype and shape without its items, and its items when they are wanted; of NumPy's files.

Every container gives such arrays; ``foreign`` finds the layers among them. Only headers are read until an array's items are
wanted, and then only that array. Nothing is executed from a file: pickled objects are refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache.files.errors import in_file

FLOATS = ("float16", "bfloat16", "float32", "float64")
UNREADABLE = "unreadable"  # the dtype of what is no array
ONLY = "the array"  # the name of one that has none
_SHOWN = 8  # names in an error
_MOST_LETTERS = 100  # of such a name, which in a damaged file may be of any length
_SUFFIX = ".npy"


@dataclass(frozen=True)
class NamedArray:
    """One array of a file.

    Attributes:
        name, shape: as the file has them.
        dtype: NumPy's name of it, "bfloat16", or UNREADABLE.
        read: the items at an index, read-only; bfloat16 as uint16. It raises ValueError or OSError where the file is damaged.
        file: which it is in.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[Any], npt.NDArray[Any]]
    file: Path

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """The items at an index: a number or a slice for each of the first axes, or ``...`` for all."""
        with in_file(self.file):
            return self.read(key)

    def __str__(self) -> str:
        name = self.name if len(self.name) <= _MOST_LETTERS else f"{self.name[:_MOST_LETTERS]}.."
        return f"{name} {list(self.shape)} {self.dtype}"


class NotWholeError(ValueError):
    """A file of others breaks a rule of its format."""


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
def undamaged(what: str, rule: str) -> Iterator[None]:
    """Turns everything that a reader raises over damaged bytes, a dozen kinds, into one ValueError."""
    try:
        yield
    except (MemoryError, ImportError, NotWholeError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise NotWholeError(f"{what} {rule}, got: {said}") from error


def imported(module: str, what: str) -> Any:
    """A package that reads a kind of file.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module} to be read: pip install {module}") from error


def npz_arrays(path: Path) -> list[NamedArray]:
    """The arrays of a .npz file, in its order.

    Raises:
        OSError: it cannot be opened. ValueError: it is not an archive of named arrays.
    """
    latest: dict[str, npt.NDArray[Any]] = {}  # the array that is read part by part
    with path.open("rb") as stream, _undamaged("the file"), zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
        return [_member(path, archive, name, latest) for name in names]


def npy_array(path: Path) -> NamedArray:
    """The array of a .npy file.

    Raises:
        OSError: it cannot be opened. ValueError: it is not such a file.
    """
    with path.open("rb") as stream, _undamaged("the file"):
        shape, dtype = _header(stream)
        _check_size(path.stat().st_size - stream.tell(), shape, dtype)

    def read(key: Any) -> npt.NDArray[Any]:
        with _undamaged("the file"):
            whole = np.load(path, mmap_mode="r", allow_pickle=False) if 0 not in shape else np.empty(shape, dtype)
            return read_only(np.array(whole[key]))

    return NamedArray(ONLY, dtype_name(dtype), shape, read, path)


def tokens_and_metadata(arrays: list[NamedArray]) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """The tokens and metadata among the arrays of a .npz file, if it has them.

    Raises:
        ValueError: they are none.
    """
    described = {array.name: array[...] for array in arrays if array.name in ("tokens", "metadata")}
    tokens, metadata = described.get("tokens"), described.get("metadata")
    if tokens is not None and (tokens.ndim != 1 or tokens.dtype.kind != "U"):
        raise ValueError(f"tokens must be strings of shape [key], got {tokens.dtype} of shape {tokens.shape}")
    words = None if tokens is None else tuple(str(token) for token in tokens)
    if metadata is None:
        return words, {}
    if metadata.ndim != 0 or metadata.dtype.kind != "U":
        raise ValueError(f"metadata must be one string, got {metadata.dtype} of shape {metadata.shape}")
    try:
        said = json.loads(str(metadata))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be JSON, got: {error}") from error
    if not isinstance(said, dict):
        rule = "metadata must be a JSON object"
        raise ValueError(f"{rule}, got {type(said).__name__}")  # noqa: TRY004 (what a file holds is a value)
    return words, said


def verify_zip(path: Path) -> int:
    """Compare every member of a zip archive with the checksum that the archive has of it, and arrays with their headers.

    Returns:
        How many bytes the members are, unpacked.

    Raises:
        OSError: it cannot be read. ValueError: a member is damaged, the message says which.
    """
    n_bytes = 0
    with path.open("rb") as stream, _undamaged("the file"), zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            name = info.filename
            checked = (
                _undamaged(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else undamaged(name, "must be whole")
            )
            with checked, archive.open(info) as member:
                if name.endswith(_SUFFIX):
                    shape, dtype = _header(member, allow_objects=True)
                    if not dtype.hasobject:
                        _check_size(info.file_size - member.tell(), shape, dtype)
                    n_bytes += member.tell()
                while piece := member.read(1 << 20):
                    n_bytes += len(piece)
    return n_bytes


def _member(path: Path, archive: zipfile.ZipFile, member: str, latest: dict[str, npt.NDArray[Any]]) -> NamedArray:
    """One array of an archive, which is opened again when its items are wanted."""
    name = member.removesuffix(_SUFFIX)

    def whole() -> npt.NDArray[Any]:
        with path.open("rb") as stream, _undamaged(name), zipfile.ZipFile(stream) as again:
            with again.open(member) as items:
                array = np.lib.format.read_array(items, allow_pickle=False)
                if items.read(1):  # which also compares the checksum
                    raise ValueError("more bytes than its shape takes")
            return read_only(array)

    def read(key: Any) -> npt.NDArray[Any]:
        if key is Ellipsis:
            return whole()
        if name not in latest:  # a part cannot be read without the rest
            latest.clear()
            latest[name] = whole()
        part: npt.NDArray[Any] = latest[name][key]
        return part

    try:
        with _undamaged(name), archive.open(member) as items:
            shape, dtype = _header(items)
            _check_size(archive.getinfo(member).file_size - items.tell(), shape, dtype)
    except ValueError:  # said when it is read
        return NamedArray(name, UNREADABLE, (), read, path)
    return NamedArray(name, dtype_name(dtype), shape, read, path)


def _header(stream: Any, *, allow_objects: bool = False) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that begins here.

    Raises:
        ValueError: there is none, or it holds objects.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject and not allow_objects:
        raise ValueError("Object arrays")
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, dtype


def _check_size(n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an array that is shorter than its header says."""
    wanted = dtype.itemsize * int(np.prod(shape, dtype=object))
    if n_bytes < wanted:
        raise ValueError(f"{n_bytes} bytes where its header says {wanted}")


def _undamaged(what: str) -> AbstractContextManager[None]:
    return undamaged(what, "must be whole, in NumPy's format and without pickled objects")
