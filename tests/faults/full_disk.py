"""Disks that are really full: a small file system of its own at every size, and a limit on the size of files.

The file system is a tmpfs in a mount namespace of this process alone, which needs root; where that is refused, the rows
say so. Both are tried with and without a system that can reserve space: without it, writes run into the wall in the
middle, and the first of them is really short.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.child import Child, Report
from tests.faults.judging import Bench, empty
from tests.faults.matrix import Row
from tests.faults.write_paths import Session

_PAGE = 4096
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_SPACE = "tmpfs"


def rows(bench: Bench, n_limits: int) -> Iterator[Row]:
    """A row for each kind of full disk; of file sizes there are about ``n_limits``."""
    for reserves in (True, False):
        yield _file_sizes(bench, n_limits, reserves=reserves)
    if can_mount():
        for reserves in (True, False):
            yield _full(bench, reserves=reserves)
        yield _no_more_names(bench)


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount, from now on in a namespace of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    alone = ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) == 0
    return alone and subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True).returncode == 0


def _file_sizes(bench: Bench, n_limits: int, *, reserves: bool) -> Row:
    """Sizes below that of the largest file written, as the limit of a process."""
    row = Row(bench.path.name, "file size limit" + ("" if reserves else ", no reserving"))
    largest = _largest_file(bench)
    for limit in sorted({largest * part // n_limits for part in range(n_limits)} | {1, largest - 1}):
        before = functools.partial(_limit_files, limit, reserves)
        report = Child(bench.path, bench.reset(), bench.states, before=before, retries=False).wait()
        verdict = bench.judge(report)
        verdict.wrong.extend(_not_told(report, errno.EFBIG))
        row.add(f"limit of {limit} bytes", verdict)
    return row


def _full(bench: Bench, *, reserves: bool) -> Row:
    """From no room at all, page by page, until the steps succeed."""
    row = Row(bench.path.name, "full disk" + ("" if reserves else ", no reserving"))
    with _small_disk(bench):
        size, has_failed = _used(bench.reset()), True
        while has_failed:
            report = _with_room(bench, f"size={max(size, _PAGE)}", None if reserves else _reserve_nothing)
            verdict = bench.judge(report)
            verdict.wrong.extend(_not_told(report, errno.ENOSPC))
            row.add(f"{size} bytes", verdict)
            has_failed, size = bool(report.errors), size + _PAGE
    return row


def _no_more_names(bench: Bench) -> Row:
    """From no name to give to a file, one by one, until the steps succeed."""
    row = Row(bench.path.name, "no more file names")
    with _small_disk(bench):
        names, has_failed = sum(1 for _ in bench.reset().rglob("*")) + 1, True
        while has_failed:
            report = _with_room(bench, f"size=64m,nr_inodes={names}", None)
            verdict = bench.judge(report)
            verdict.wrong.extend(_not_told(report, errno.ENOSPC))
            row.add(f"{names} names", verdict)
            has_failed, names = bool(report.errors), names + 1
    return row


def _with_room(bench: Bench, options: str, before: Callable[[], None] | None) -> Report:
    """The steps on a small disk, which has room again when they have ended."""
    bench.reset()
    _mount(bench.folder, f"remount,{options}")
    report = Child(bench.path, bench.folder, bench.states, before=before, retries=False).wait()
    _mount(bench.folder, "remount,size=64m,nr_inodes=100000")
    return report


def _not_told(report: Report, number: int) -> list[str]:
    """What is wrong with the errors that a process reported."""
    return [f"must be errno {number}, got {error}" for error in report.errors if error["errno"] != number]


@contextmanager
def _small_disk(bench: Bench) -> Iterator[None]:
    """The bench's folder as a file system of its own."""
    empty(bench.folder)
    subprocess.run(["mount", "-t", _SPACE, "-o", "size=64m,nr_inodes=100000", _SPACE, str(bench.folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(bench.folder)], check=True)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", options, str(folder)], check=True)


def _used(folder: Path) -> int:
    room = os.statvfs(folder)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def _largest_file(bench: Bench) -> int:
    bench.path.run(Session(bench.reset()))
    return max(path.stat().st_size for path in bench.folder.rglob("*") if path.is_file())


def _limit_files(limit: int, reserves: bool) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if not reserves:
        _reserve_nothing()


def _reserve_nothing() -> None:
    """From here on the system cannot reserve space, as on some network disks."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    os.posix_fallocate = refuse
