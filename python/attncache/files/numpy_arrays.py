"""What .npz and .npy files hold: only headers are read until an array's items are wanted, and then only that array.

Nothing is executed from a file: pickled objects are refused. Every error names the file, the rule and the value.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from attncache.files.named_arrays import UNREADABLE, NamedArray

_SUFFIX = ".npy"
_MOST_LAYERS = 1_000_000
_MAGIC = b"\x93NUMPY"


def npz_arrays(path: Path) -> list[NamedArray]:
    """The arrays of a .npz file, in its order.

    Raises:
        OSError: it cannot be opened. ValueError: it is not an archive of named arrays.
    """
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) == _MAGIC:
            raise ValueError(f"{path}: a .npz file must hold named arrays, got one array without a name")
        with _undamaged(path, "the file"), zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
            return [_member(path, archive, name) for name in names]


def npy_arrays(path: Path) -> list[NamedArray]:
    """The layers of a .npy file, whose array is [layer, batch, head, query, key], or [batch, head, query, key] for one.

    Raises:
        OSError: it cannot be opened. ValueError: it is not such an array.
    """
    with path.open("rb") as stream:
        if stream.read(4) == b"PK\x03\x04":
            raise ValueError(f"{path}: a .npy file must hold one array, got an archive of named arrays")
        stream.seek(0)
        with _undamaged(path, "the file"):
            shape, is_fortran, dtype = _header(stream)
            begins = stream.tell()
            _check_size(stream, begins, shape, dtype)
    if len(shape) not in (4, 5):
        axes = "[layer, batch, head, query, key] or [batch, head, query, key]"
        raise ValueError(f"{path}: the array must be {axes}, got shape {shape}")
    if len(shape) == 5 and shape[0] > _MOST_LAYERS:  # of no bytes, or it would be a strange file
        raise ValueError(f"{path}: the array must have at most {_MOST_LAYERS} layers, got shape {shape}")

    def layer(number: int) -> NamedArray:
        def read() -> npt.NDArray[Any]:
            with _undamaged(path, f"layer {number}"):
                if is_fortran:  # its items lie all over the file
                    whole = np.load(path, mmap_mode="r", allow_pickle=False)
                    return _read_only(np.array(whole[number] if len(shape) == 5 else whole))
                with path.open("rb") as stream:
                    stream.seek(begins + number * n_bytes)
                    return np.frombuffer(_exactly(stream, n_bytes), dtype).reshape(shape[-4:])

        array = NamedArray(f"layer {number}", dtype.name, shape[-4:], read)
        n_bytes = dtype.itemsize * int(np.prod(shape[-4:], dtype=object))
        return array

    return [layer(number) for number in range(shape[0] if len(shape) == 5 else 1)]


def verify_npz(path: Path) -> int:
    """Compare every member of a .npz file with the checksum that the archive has of it.

    Returns:
        How many bytes the members are, unpacked.

    Raises:
        OSError: it cannot be read. ValueError: a member is damaged, the message says which.
    """
    n_bytes = 0
    with path.open("rb") as stream, _undamaged(path, "the file"), zipfile.ZipFile(stream) as archive:
        for name in archive.namelist():
            with _undamaged(path, name), archive.open(name) as member:
                while piece := member.read(1 << 20):
                    n_bytes += len(piece)
    return n_bytes


def _member(path: Path, archive: zipfile.ZipFile, member: str) -> NamedArray:
    """One array of an archive, which is opened again when its items are wanted."""
    name = member.removesuffix(_SUFFIX)

    def read() -> npt.NDArray[Any]:
        with path.open("rb") as stream, _undamaged(path, name), zipfile.ZipFile(stream) as again:
            with again.open(member) as items:
                array = np.lib.format.read_array(items, allow_pickle=False)
                if items.read(1):  # which also compares the checksum
                    raise ValueError("more bytes than its shape takes")
            return _read_only(array)

    try:
        with _undamaged(path, name), archive.open(member) as items:
            shape, _, dtype = _header(items)
    except ValueError:  # said when it is read
        return NamedArray(name, UNREADABLE, (), read)
    return NamedArray(name, dtype.name, shape, read)


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of the array that begins here.

    Raises:
        ValueError: there is none, or it holds objects.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, is_fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    return shape, is_fortran, dtype


def _check_size(stream: BinaryIO, begins: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a file that is shorter than its header says."""
    wanted = begins + dtype.itemsize * int(np.prod(shape, dtype=object))
    size = stream.seek(0, 2)
    if size < wanted:
        raise ValueError(f"{size} bytes where its header says {wanted}")


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    """That many bytes."""
    found = stream.read(n_bytes)
    if len(found) < n_bytes:
        raise ValueError(f"{len(found)} bytes where its header says {n_bytes}")
    return found


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


@contextmanager
def _undamaged(path: Path, what: str) -> Iterator[None]:
    """Turns everything that NumPy, zipfile and zlib raise over damaged bytes, a dozen kinds, into one ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        rule = "must be whole, in NumPy's format and without pickled objects"
        raise ValueError(f"{path}: {what} {rule}, got: {error}") from error
