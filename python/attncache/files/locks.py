"""Locks on open files that end with their process, however it ends."""

from __future__ import annotations

import os
from typing import Any


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
