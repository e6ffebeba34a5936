"""Work on the pieces of a file in several threads, for whoever reads, writes or checks a whole file.

A thread that cannot start, for want of memory, must not be waited for. ``threading.Thread.start`` waits until the new
thread says that it runs, and so for ever for one that has died before. Here a piece is done by whoever claims it first, the
thread made for it or the one that called.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from attncache._core import get_num_threads

_WORTH_THREADS = 8 << 20  # bytes: a millisecond's work
_HELPER, _CALLER = "helper", "caller"


def in_threads(work: Callable[[Any], Any], pieces: Iterable[Any], n_bytes: int) -> list[Any]:
    """``work`` of every piece, of ``n_bytes`` together, in as many threads as attncache uses, if that is worth it.

    Pieces are taken as they are needed, so what they hold need not be in memory all at once. The first exception stops what
    has not begun, and is raised when nothing runs any longer.
    """
    n_threads = get_num_threads() if n_bytes >= _WORTH_THREADS and hasattr(os, "preadv") else 1
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
