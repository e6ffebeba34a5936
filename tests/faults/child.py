"""A forked process that takes the steps of a write path while something is done to it, and reports what it saw.

It reports through shared memory, so that nothing but the steps makes system calls and a kill loses no report.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.forking import fork
from tests.faults.states import State, contents
from tests.faults.write_paths import Session, WritePath, litter_of

MARKER = os.getppid  # a call that nothing else makes: strace answers it, which proves that strace is there
MAGIC = 31415
LIMIT = 30.0  # seconds after which a process hangs
_ROOM = 1 << 16
_clean_end = 0


class Report(NamedTuple):
    """How a process ended: how many steps it had finished, its errors, and what was wrong with what it saw."""

    done: int
    errors: list[dict[str, Any]]
    wrong: list[str]
    killed: bool
    ended: str  # "", or how it ended if neither by itself nor by the kill that was meant for it


class Child:
    """A process that waits for strace (if it is to) and then takes the steps."""

    def __init__(
        self,
        path: WritePath,
        folder: Path,
        states: Sequence[State],
        *,
        before: Callable[[], None] | None = None,
        traced: bool = False,
        retries: bool = True,
    ) -> None:
        self._shared = mmap.mmap(-1, _ROOM)
        self.pid = fork()
        if self.pid == 0:
            sys.unraisablehook = lambda _: None  # a close that fails while something is collected
            try:
                if traced:
                    _wait_for_strace()
                if before is not None:
                    before()
                _take_steps(path, folder, states, self._shared, retries)
            except BaseException:  # nothing of the parent may run here
                _write(self._shared, [], [f"the harness failed: {traceback.format_exc()}"])
            finally:
                os._exit(_clean_end)

    def wait(self) -> Report:
        """How it ended; a process that hangs is killed and said to hang."""
        deadline, status, hung = time.monotonic() + LIMIT, 0, False
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.0002)
        code = os.waitstatus_to_exitcode(status)
        done = int.from_bytes(self._shared[:4], "little")
        size = int.from_bytes(self._shared[4:8], "little")
        said = json.loads(self._shared[8 : 8 + size]) if size else {"errors": [], "wrong": []}
        self._shared.close()
        ended_badly = "hung" if hung else "" if code in (0, -signal.SIGKILL) else f"ended with {code}"
        return Report(done, said["errors"], said["wrong"], code == -signal.SIGKILL, ended_badly)


def _wait_for_strace() -> None:
    """Until strace answers the marker."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(0x59616D61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)  # PR_SET_PTRACER: where only parents may trace
    while MARKER() != MAGIC:
        time.sleep(0.0002)


def _take_steps(path: WritePath, folder: Path, states: Sequence[State], shared: mmap.mmap, retries: bool) -> None:
    """The steps in turn; one that fails must have left a whole state, and is taken again if that may help."""
    session = Session(folder)
    errors: list[dict[str, Any]] = []
    wrong: list[str] = []
    at = 0
    while at < len(path.steps):
        try:
            path.steps[at](session)
        except BaseException as error:
            typed = isinstance(error, OSError | MemoryError)
            number, name = getattr(error, "errno", None), getattr(error, "filename", None)
            told = {"kind": type(error).__name__, "errno": number, "filename": name and str(name), "text": str(error)}
            errors.append({"step": at, "found": "", **told})
            if not typed:
                wrong.append(f"step {at}: not a typed error: {traceback.format_exc()[-1500:]}")
            _write(shared, errors, wrong)
            if not retries or len(errors) > 1:
                break
            errors[-1]["litter"] = bool(litter_of(session.folder))
            errors[-1]["found"], found_wrong = _after_an_error(path, session, states[at], states[at + 1])
            wrong += found_wrong
            if errors[-1]["found"] != "new" or states[at] == states[at + 1] or (path.opens and at == 0):
                continue
        at += 1
        shared[:4] = at.to_bytes(4, "little")
        MARKER()
    _write(shared, errors, wrong)


def _after_an_error(path: WritePath, session: Session, old: State, new: State) -> tuple[str, list[str]]:
    """The state that a step of this process has left although it failed, "old" or "new", and what is wrong now."""
    try:
        found = path.read(session.folder)
        wrong = [] if found in (old, new) else ["after the error a reader sees neither the old nor the new state"]
        if session.cache is not None and contents(session.cache) != found:
            wrong.append("after the error the writer's cache is not what is on disk")
    except Exception:
        return "neither", [f"after the error: {traceback.format_exc()[-1500:]}"]
    return "new" if found == new else "old", wrong


def _write(shared: mmap.mmap, errors: list[dict[str, Any]], wrong: list[str]) -> None:
    said = json.dumps({"errors": errors, "wrong": [text[:3000] for text in wrong[:5]]}).encode()
    shared[4:8] = len(said).to_bytes(4, "little")
    shared[8 : 8 + len(said)] = said
