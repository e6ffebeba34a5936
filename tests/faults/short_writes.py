"""Writes that really write only a part, as on a signal or a disk that has just become full.

strace cannot make these: it could only lie about the count. The write functions of ``os`` are replaced by ones that pass
a part of the bytes on; that they are all that the write path uses is checked against the number of calls strace saw.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tests.faults.child import Child
from tests.faults.judging import Bench
from tests.faults.matrix import Row

PARTS: dict[str, Callable[[int], int]] = {
    "one byte": lambda size: min(1, size),
    "half": lambda size: (size + 1) // 2,
    "all but one": lambda size: max(1, size - 1),
}
THEN = ("goes on", "then ENOSPC", "then SIGKILL")


def rows(bench: Bench, numbers: Sequence[int]) -> Iterator[Row]:
    """A row for each way of going on, with a point for each of these writes and each part."""
    reached = mmap.mmap(-1, 1)  # shared with the process
    for then in THEN:
        row = Row(bench.path.name, f"short write, {then}")
        for number in numbers:
            for name, part in PARTS.items():
                point = f"write number {number}, {name}"
                reached[0] = 0
                before = partial(_replace_writes, number, part, then, reached)
                report = Child(bench.path, bench.reset(), bench.states, before=before).wait()
                verdict = bench.judge(report, passes=True)
                if not reached[0]:
                    verdict.wrong.append("the write was not reached")
                if then == "then SIGKILL" and not report.killed:
                    verdict.wrong.append("was not killed")
                if then == "goes on" and verdict.had_error:
                    verdict.wrong.append(f"must be no error, got {report.errors}")
                row.add(point, verdict)
        yield row


def _replace_writes(number: int, part: Callable[[int], int], then: str, reached: mmap.mmap) -> None:
    """From here on the ``number``-th write of this process writes a part."""
    counted = {"writes": 0}

    def replaced(function: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any, *offset: int) -> int:
            counted["writes"] += 1
            if counted["writes"] == number:
                view = memoryview(data).cast("B")
                reached[0] = 1
                written = function(fd, view[: part(len(view))], *offset)
                if then == "then SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                return written
            if counted["writes"] == number + 1 and then == "then ENOSPC":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(fd, data, *offset)

        return write

    os.pwrite, os.write = replaced(os.pwrite), replaced(os.write)
