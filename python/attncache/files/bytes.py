"""The bytes of a file as an array: mapped, so that they are read when they are looked at, or read at once; by whoever opens one.

``opened`` is the door to a file that is read: below it, errors say rule and value alone. ``in_threads`` is for whoever reads,
writes or checks a whole file. A thread that cannot start, for want of memory, must not be waited for.
``threading.Thread.start`` waits until the new thread says that it runs, and so for ever for one that has died before. Here a
piece is done by whoever claims it first, the thread made for it or the one that called.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attncache._core import get_num_threads
from attncache.files.atomic import FOLLOWING, NOT_FOLLOWING, check_regular
from attncache.files.errors import in_file
from attncache.files.safetensors import ALIGNMENT, BLOCK, Header, header_length, parse_header

Bytes = npt.NDArray[np.uint8]
_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) and os.name != "nt" else {}  # a mapping
# then takes no file descriptor, of which a process has a thousand or so
_WORTH_THREADS = 8 << 20  # bytes: a millisecond's work
_HELPER, _CALLER = "helper", "caller"


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
        n_read = os.preadv(fd, [room[at:].data], offset + at)
        if n_read == 0:
            raise OSError(errno.EIO, f"the file became shorter while it was read, to {offset + at} bytes")
        at += n_read


def in_threads(work: Callable[[Any], Any], pieces: Iterable[Any], n_bytes: int) -> list[Any]:
    """``work`` of every piece, of ``n_bytes`` together, in as many threads as attncache uses, if that is worth it.

    Pieces are taken as they are needed, so what they hold need not be in memory all at once. The first exception stops what
    has not begun, and is raised when nothing runs any longer.
    """
    n_threads = get_num_threads() if n_bytes >= _WORTH_THREADS else 1
    if n_threads <= 1:
        return [work(piece) for piece in pieces]
    tasks: list[_Task] = []
    helped: list[_Task] = []
    try:
        for piece in pieces:
            task = _Task(work, piece)
            tasks.append(task)
            for each in [each for each in helped if each.is_over]:
                helped.remove(each)
                each.outcome()
            if len(helped) < n_threads - 1 and task.starts():
                helped.append(task)
            else:
                task.outcome()
        return [task.outcome() for task in tasks]
    except BaseException:
        _leave(tasks)
        raise


def _leave(tasks: list[_Task]) -> None:
    """Wait for the tasks that a helper has begun, Ctrl-C or not: they use what the caller is about to close."""
    while tasks:
        with suppress(KeyboardInterrupt):
            tasks[-1].leave()
            tasks.pop()


class _Task:
    """One piece of work."""

    __slots__ = ("_claim", "_error", "_piece", "_result", "_said", "_work", "is_over")

    def __init__(self, work: Callable[[Any], Any], piece: Any) -> None:
        self._work, self._piece = work, piece
        self._claim: dict[str, str] = {}  # by whom; the first one to write it does the work
        self._error: BaseException | None = None
        self.is_over = False
        self._said = allocate_lock()
        self._said.acquire()

    def starts(self) -> bool:
        """Whether a thread for it could be made, which may die before it begins."""
        try:
            start_new_thread(self._help, ())
        except (RuntimeError, MemoryError):  # RuntimeError: the system has no more threads
            return False
        return True

    def outcome(self) -> Any:
        """The result of the work, or its exception; the caller does what nobody has begun."""
        if self._claim.setdefault("by", _CALLER) is _CALLER and not self.is_over:
            self._result = self._work(self._piece)
            self.is_over, self._piece = True, None
        self._wait()
        if self._error is not None:
            raise self._error
        return self._result

    def leave(self) -> None:
        """No thread begins it any more; one that has is waited for."""
        if self._claim.setdefault("by", _CALLER) is _HELPER:
            self._wait()

    def _wait(self) -> None:
        while not self.is_over:
            self._said.acquire(timeout=0.1)

    def _help(self) -> None:
        """What its thread runs. From its claim to its end nothing is allocated but inside ``work``."""
        say, by = self._said.release, _HELPER
        try:
            if self._claim.setdefault("by", by) is not by:
                return
        except MemoryError:
            return
        try:
            self._result = self._work(self._piece)
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            self._error = error
        self._piece = None
        self.is_over = True
        say()
