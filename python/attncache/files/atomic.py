"""Replaces a file so that at any moment, and after any crash, there is the old one or the new one, each whole.

The new file is written under a hidden name beside the old one, flushed to the disk and renamed over it; then the folder is
flushed. Its space is reserved first, so that a full disk is noticed before anything is written. A process that is killed
leaves the hidden file: it has one fixed name and its lock ends with the process, so whoever saves or loads next can tell
that nobody writes it, and removes it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from attncache.files.errors import InUseError, naming
from attncache.files.locks import FOLLOWING, NOT_FOLLOWING, Lock, check_regular, is_still, try_lock

_RENAMES_OPEN_FILES = os.name != "nt"
_seeking = threading.Lock()


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
                if not _RENAMES_OPEN_FILES:
                    lock.close()
                os.replace(hidden, path)  # noqa: PTH105 (as all calls here, one that a test can make fail)
            except BaseException:
                _discard(hidden, lock)
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


def _discard(hidden: Path, lock: Lock) -> None:
    """Remove the hidden file, unless the name is another writer's by now."""
    with suppress(OSError):
        if not lock.is_open or is_still(hidden, lock.fd):
            hidden.unlink()


def remove_abandoned(path: Path) -> None:
    """Remove what a killed process left of a file that was to replace ``path``; what is being written stays."""
    hidden = hidden_name(Path(os.path.realpath(path)))
    with suppress(OSError):  # none there, as nearly always; or in a folder that may only be read
        check_regular(hidden.lstat(), hidden)
        fd = os.open(hidden, os.O_RDWR | NOT_FOLLOWING)
        try:
            if try_lock(fd) and is_still(hidden, fd):  # else it has just taken its place, and the name is another's
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
        written = _pwrite(fd, rest, offset)
        if written == 0:
            raise OSError(errno.EIO, "the system writes nothing more")
        rest, offset = rest[written:], offset + written


def _pwrite(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


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
