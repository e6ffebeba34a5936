"""Opens what is a regular file and nothing else, and locks it until its process ends, however it ends.

A folder may come from somebody else: a link in it leads to a file of the user's, opening a pipe waits for its writer, and
what a hard link shares belongs to its other name too. Forked processes have no part in a lock.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from attncache.files.errors import InUseError

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
FOLLOWING = _BINARY  # flags to open a path that the user gave
NOT_FOLLOWING = _BINARY | getattr(os, "O_NOFOLLOW", 0)  # and one of a name that the format gives


def check_regular(status: os.stat_result, path: Path) -> None:
    """Refuse what is not a regular file.

    Raises:
        IsADirectoryError, OSError: it is a directory, or something else.
    """
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = " but a symbolic link" if stat.S_ISLNK(status.st_mode) else ""
        raise OSError(errno.EINVAL, f"not a regular file{kind}", str(path))


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

    def take(self, path: Path) -> bool:
        """Open a regular file, made if there is none, in place of the one before, and try to lock it.

        Raises:
            OSError: it cannot be opened, or something else is there.
        """
        self.close()
        with suppress(FileNotFoundError):
            check_regular(path.lstat(), path)
        self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | NOT_FOLLOWING, 0o666), "r+")
        check_regular(os.fstat(self.fd), path)
        return self.try_again()

    def take_own(self, path: Path, try_again: Callable[[], bool]) -> bool:
        """Open and lock a file whose contents nobody else has: they may then be thrown away.

        A link, a pipe, or a file with a second name or another owner loses this name and nothing more.

        Args:
            path: of a name that the format gives.
            try_again: called when somebody else has the lock, says whether it is ours after all.

        Returns:
            Whether it is locked.

        Raises:
            OSError: a directory is there, or the file cannot be made.
        """
        while True:
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(path.lstat().st_mode):
                    path.unlink()
            if not self.take(path) and not try_again():
                return False
            if not is_still(path, self.fd):
                continue  # its writer has renamed or removed it since it was opened
            if _is_own(os.fstat(self.fd)):
                return True
            path.unlink()

    def take_directory(self, directory: Path) -> None:
        """Take a directory's lock, and say in it who has it.

        Raises:
            InUseError: another writer has it. OSError: as ``take_own``.
        """
        is_ours = self.take_own(directory / "lock", lambda: False)
        writer = ""
        with suppress(OSError):  # only to say who it is
            if is_ours:
                os.ftruncate(self.fd, 0)
                os.write(self.fd, str(os.getpid()).encode())
            else:
                writer = os.read(self.fd, 20).decode("ascii", "replace")
        if not is_ours:
            raise InUseError(errno.EAGAIN, f"process {writer or 'unknown'} writes this cache", str(directory))

    def try_again(self) -> bool:
        """Try to lock the open file."""
        return try_lock(self.fd)

    def close(self) -> None:
        """Close and so unlock the file; may be called again."""
        if self._file is not None:
            self._file.close()


def _is_own(status: os.stat_result) -> bool:
    """Whether a file has one name, and is of the user who asks."""
    return status.st_nlink == 1 and (not hasattr(os, "geteuid") or os.geteuid() in (status.st_uid, 0))


def is_still(path: Path, fd: int) -> bool:
    """Whether a path still names the file of a descriptor."""
    with suppress(FileNotFoundError):
        there, here = path.lstat(), os.fstat(fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    return False


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
    """A forked child closes its copy of each descriptor: flock is held until the last copy is closed."""
    for lock in list(_all):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
