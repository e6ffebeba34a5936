"""Locks on open files that end with their process, however it ends, and that forked processes have no part in."""

from __future__ import annotations

import os
import weakref
from io import FileIO
from pathlib import Path
from typing import Any


class Lock:
    """A file that is open, and locked if ``take`` said so, until ``close`` or the end of this object or of the process.

    An interrupt at any moment leaves it open or closed, never open with no owner. In a forked process it is closed.
    """

    _file: FileIO | None = None

    def __init__(self) -> None:
        _all.add(self)

    def __del__(self) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        return self._file is not None and not self._file.closed

    @property
    def fd(self) -> int:
        """The descriptor of the open file."""
        assert self._file is not None
        return self._file.fileno()

    def take(self, path: Path, flags: int) -> bool:
        """Open a file, in place of the one before, and try to lock it."""
        self.close()
        self._file = FileIO(os.open(path, flags, 0o666), "r+")
        return self.try_again()

    def try_again(self) -> bool:
        """Try to lock the open file."""
        return try_lock(self.fd)

    def close(self) -> None:
        """Close and so unlock the file; may be called again."""
        if self._file is not None:
            self._file.close()


def try_lock(fd: int) -> bool:
    """Whether the file of a descriptor is now locked by it and by no other; unlocked when it is closed."""
    try:
        if os.name == "nt":
            import msvcrt  # noqa: PLC0415

            windows: Any = msvcrt
            os.lseek(fd, _FAR, os.SEEK_SET)
            windows.locking(fd, windows.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


_FAR = 1 << 40  # a byte that no data reach: Windows keeps others from reading what is locked
_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_all() -> None:
    """A lock lasts while any process has its descriptor: a worker would keep it from everybody when its parent is gone."""
    for lock in list(_all):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
