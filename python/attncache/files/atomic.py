"""Replaces a file so that at any moment, and after any crash, there is the old one or the new one, each whole.

The new file is written under a hidden name beside the old one, flushed to the disk and renamed over it; then the folder is
flushed. Its space is reserved first, so that a full disk is noticed before anything is written. A process that is killed
leaves the hidden file: it has one fixed name and its lock ends with the process, so whoever saves or loads next can tell
that nobody writes it, and removes it.

A folder may come from somebody else: a link in it leads to a file of the user's, opening a pipe waits for its writer, and
what a hard link shares belongs to its other name too. So only regular files are opened. Forked processes have no part in a lock.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path

from attncache.files.errors import InUseError, naming

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
FOLLOWING = _BINARY  # flags to open a path that the user gave
NOT_FOLLOWING = _BINARY | getattr(os, "O_NOFOLLOW", 0)  # and one of a name that the format gives


def hidden_name(path: Path) -> Path:
    """Where the file that will replace ``path`` is written."""
    return path.with_name(f".{path.name}.saving")


@contextmanager
def replacing(path: Path, *, follow: bool = True) -> Iterator[int]:
    """A descriptor of an empty file that replaces ``path`` once the context ends, if it ends without an exception.

    Args:
        path: of the file.
        follow: whether a link there is followed, as for a path that the user gave; False refuses it.

    Raises:
        InUseError: somebody else is replacing this path. OSError: the system refuses, or what is there is no file that
            may be written; the message names the path. The old file is then as it was, but for a failure of the last
            step, the flush of the folder: the new one has then taken its place, though perhaps not for good if the
            machine now loses power.
    """
    if follow:
        path = Path(os.path.realpath(path))
    hidden = hidden_name(path)
    _check_replaceable(path)
    with naming(path, hidden):
        with closing(Lock()) as lock:
            _lock_hidden(lock, hidden, path)
            try:
                os.ftruncate(lock.fd, 0)
                if path.exists() and hasattr(os, "fchmod"):
                    os.fchmod(lock.fd, path.lstat().st_mode & 0o777)  # before there is anything to be read
                yield lock.fd
                os.fsync(lock.fd)
                os.replace(hidden, path)  # noqa: PTH105 (as all calls here, one that a test can make fail)
            except BaseException:
                with suppress(OSError):
                    if lock.is_open and _is_still(hidden, lock.fd):  # else the name is another writer's by now
                        hidden.unlink()
                raise
        flush_folder(path.parent)


def _check_replaceable(path: Path) -> None:
    """Refuse to replace what is not a file, and a file that may not be written: renaming over it asks nobody.

    Raises:
        OSError: it is one of these.
    """
    with suppress(FileNotFoundError):
        check_regular(path.lstat(), path)
        with naming(path):
            os.close(os.open(path, os.O_WRONLY | NOT_FOLLOWING))


def remove_abandoned(path: Path) -> None:
    """Remove what a killed process left of a file that was to replace ``path``; what is being written stays."""
    hidden = hidden_name(Path(os.path.realpath(path)))
    with suppress(OSError):  # none there, as nearly always; or in a folder that may only be read
        check_regular(hidden.lstat(), hidden)
        fd = os.open(hidden, os.O_RDWR | NOT_FOLLOWING)
        try:
            if _try_lock(fd) and _is_still(hidden, fd):  # else it has just taken its place, and the name is another's
                hidden.unlink()
        finally:
            os.close(fd)


def reserve(fd: int, n_bytes: int) -> None:
    """Make sure that the disk has room for a file, where the system can say so."""
    if n_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # this file system cannot
            raise


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset, in as many calls as the system needs."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        if written == 0:
            raise OSError(errno.EIO, "the system writes nothing more")
        rest, offset = rest[written:], offset + written


def begin_flush(fd: int, offset: int, n_bytes: int) -> None:
    """Let the disk begin with what was written, where the system can, so that the flush at the end has less to wait for.

    A hint: an error of the disk shows in that flush.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)  # on Linux: write what is dirty


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | FOLLOWING)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock_hidden(lock: Lock, hidden: Path, path: Path) -> None:
    """Open the hidden file, new or left by a killed process, and lock it, retrying for a
    moment: a reader may hold the lock briefly while it checks for leftovers.

    Raises:
        InUseError: its writer is alive. OSError: it cannot be made.
    """

    def try_again() -> bool:
        for _ in range(19):
            time.sleep(0.005)
            if lock.try_again():
                return True
        return False

    if not lock.take_own(hidden, try_again):
        raise InUseError(errno.EAGAIN, "another process or thread is writing this file", str(path))


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
            if not _is_still(path, self.fd):
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
        return _try_lock(self.fd)

    def close(self) -> None:
        """Close and so unlock the file; may be called again."""
        if self._file is not None:
            self._file.close()


def _is_own(status: os.stat_result) -> bool:
    """Whether a file has one name, and is of the user who asks."""
    return status.st_nlink == 1 and (not hasattr(os, "geteuid") or os.geteuid() in (status.st_uid, 0))


def _is_still(path: Path, fd: int) -> bool:
    """Whether a path still names the file of a descriptor."""
    with suppress(FileNotFoundError):
        there, here = path.lstat(), os.fstat(fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
    return False


def _try_lock(fd: int) -> bool:
    """Whether the file of a descriptor is now locked by it and by no other; unlocked when it is closed."""
    import fcntl  # noqa: PLC0415 (not everywhere; what only reads does without)

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_all() -> None:
    """A lock lasts while any process has its descriptor: a worker would keep it from everybody when its parent is gone."""
    for lock in list(_all):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
