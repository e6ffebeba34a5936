"""Files and the system's page cache, for worlds with files: what is in memory, how to get it out, what it lies on."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
CAN_EVICT = hasattr(os, "posix_fadvise")
MOUNTS = Path("/proc/self/mountinfo")


def evict(files: Iterable[Path]) -> None:
    """Ask the system to drop files from its page cache, after writing what is not on the disk yet.

    Pages that somebody has mapped stay; ``resident`` tells.
    """
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident(file: Path) -> int | None:
    """Bytes of a file in the page cache, whoever brought them there; None where the system does not tell."""
    size = file.stat().st_size
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, TypeError, AttributeError):
        return None
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        whole = np.frombuffer(mapping, np.uint8)
        states = np.zeros(-(-size // PAGE), np.uint8)
        failed = mincore(whole.ctypes.data, size, states.ctypes.data)
        del whole  # before the mapping is closed
    return None if failed else int((states & 1).sum()) * PAGE


def file_system(folder: Path) -> str:
    """The kind of file system that a folder lies on, and its free space."""
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 1e9:.0f} of {usage.total / 1e9:.0f} GB free"
    if not MOUNTS.exists():
        return f"not known, {free}"
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = [
        line.partition(" - ")[2].split()[0] for line in MOUNTS.read_text().splitlines() if line.split()[2] == wanted
    ]
    return f"{kinds[-1] if kinds else 'not known'}, {free}"
