"""The bytes of a file as an array: mapped, so that they are read when they are looked at, or read at once; by whoever opens one.

``opened`` is the door to a file that is read: below it, errors say rule and value alone.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache.files.errors import in_file
from attncache.files.locks import FOLLOWING, NOT_FOLLOWING, check_regular
from attncache.files.safetensors import ALIGNMENT, BLOCK, Header, header_length, parse_header
from attncache.files.threads import in_threads

Bytes = npt.NDArray[np.uint8]
_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name != "nt" else {}  # a mapping
# then takes no file descriptor, of which a process has a thousand or so


@contextmanager
def opened(path: Path, *, follow: bool = True) -> Iterator[int]:
    """A descriptor of a regular file, to be read; errors inside name the file.

    Args:
        path: of the file.
        follow: whether it may be a link to one, as a path that the user gave; a name in a cache's directory may not.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    with in_file(path):
        check_regular(path.stat() if follow else path.lstat(), path)
        fd = os.open(path, os.O_RDONLY | (FOLLOWING if follow else NOT_FOLLOWING))
        try:
            check_regular(os.fstat(fd), path)
            yield fd
        finally:
            os.close(fd)


def read_header(fd: int) -> tuple[Header, int]:
    """The checked header of an open file, and the size of the file.

    Raises:
        OSError, DamagedFileError: it cannot be read, or breaks a rule.
    """
    size = os.fstat(fd).st_size
    beginning = _next(fd, 8)
    length = header_length(beginning, size)
    return parse_header(beginning + _next(fd, length - 8), size), size


def _next(fd: int, n_bytes: int) -> bytes:
    """The next bytes of a file; fewer only at its end."""
    found = b""
    while len(found) < n_bytes and (more := os.read(fd, n_bytes - len(found))):
        found += more
    return found


def mapped(fd: int, size: int) -> Bytes:
    """The whole file as a read-only array over a mapping, which lives as long as any view of it.

    Raises:
        OSError: it cannot be mapped, or has become shorter.
    """
    try:
        mapping = mmap.mmap(fd, size, access=mmap.ACCESS_READ, **_MAPPING)
    except ValueError as error:
        raise OSError(errno.EIO, f"the file became shorter while it was opened, it had {size} bytes") from error
    return np.frombuffer(mapping, np.uint8)


def read(fd: int, size: int) -> Bytes:
    """The whole file as a read-only array in memory, aligned as a mapping is.

    Raises:
        OSError: it cannot be read, or has become shorter. MemoryError: there is no room.
    """
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    whole = room[begin : begin + size]

    def read_block(span: tuple[int, int]) -> None:
        read_into(fd, whole[slice(*span)], span[0])

    in_threads(read_block, [(at, min(at + BLOCK, size)) for at in range(0, size, BLOCK)], size)
    whole.flags.writeable = False
    return whole


def read_between(fd: int, begin: int, end: int) -> Bytes:
    """The bytes of a file from one place to another, in memory.

    Raises:
        OSError: they cannot be read, or the file has become shorter. MemoryError: there is no room.
    """
    room = np.empty(end - begin, np.uint8)
    read_into(fd, room, begin)
    return room


def read_into(fd: int, room: Bytes, offset: int) -> None:
    """Fill ``room`` with the bytes of a file from ``offset`` on.

    Raises:
        OSError: they cannot be read, or the file has become shorter.
    """
    at = 0
    while at < len(room):
        n_read = _read_some(fd, room[at:], offset + at)
        if n_read == 0:
            raise OSError(errno.EIO, f"the file became shorter while it was read, to {offset + at} bytes")
        at += n_read


def _read_some(fd: int, room: Bytes, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [room.data], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # in one thread, see threads.py
    found = os.read(fd, len(room))
    room[: len(found)] = np.frombuffer(found, np.uint8)
    return len(found)
