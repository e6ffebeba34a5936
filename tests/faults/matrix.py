"""The matrix: each write path, each of its system calls, each fault that strace can make of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.faults import strace
from tests.faults.child import Child, Report
from tests.faults.judging import Bench, Verdict, empty
from tests.faults.write_paths import Session, WritePath, states


class Fault(NamedTuple):
    """What strace does to a call."""

    name: str
    what: str
    lasts: bool = False  # whether all later calls of that name fail as well


KILL = Fault("SIGKILL", "signal=SIGKILL")
ERRORS = (
    Fault("ENOSPC", "error=ENOSPC"),
    Fault("EIO", "error=EIO"),
    Fault("EINTR", "error=EINTR"),
    Fault("ENOSPC that stays", "error=ENOSPC", lasts=True),
)
FAULTS = (KILL, *ERRORS)


@dataclass
class Row:
    """What became of all points of one write path and one fault."""

    path: str
    fault: str
    points: int = 0
    old: int = 0
    new: int = 0
    errors: int = 0
    litter: int = 0
    note: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, point: str, verdict: Verdict) -> None:
        """Count a point."""
        self.points += 1
        self.old += verdict.outcome == "old"
        self.new += verdict.outcome == "new"
        self.errors += verdict.had_error
        self.litter += verdict.had_litter
        self.failures += [f"{self.path}, {self.fault}, {point}: {wrong}" for wrong in verdict.wrong]


def prepared(path: WritePath, work: Path) -> Bench:
    """A bench for a write path, in folders of its own."""
    before, folder = work / "before", work / "folder"
    for each in (before, folder):
        each.mkdir(exist_ok=True)
        empty(each)
    found = states(path, folder)
    empty(folder)
    path.prepare(Session(before))
    return Bench(path, found, before, folder)


def listed(bench: Bench, log: Path) -> list[strace.Call]:
    """The system calls of a write path to which nothing is done.

    Raises:
        AssertionError: it does not go through its states even then.
    """
    child = Child(bench.path, bench.reset(), bench.states, traced=True)
    tracer = strace.attach_listing(child.pid, log)
    report = child.wait()
    tracer.wait()
    verdict = bench.judge(report)
    if verdict.wrong or verdict.had_error or verdict.had_litter or verdict.outcome != "new":
        raise AssertionError(f"{bench.path.name}, undisturbed: {verdict} after {report}")
    return strace.calls(log)


def injected(bench: Bench, calls: Sequence[strace.Call], log: Path, faults: Sequence[Fault] = FAULTS) -> Iterator[Row]:
    """A row for each fault, with a point for each call."""
    for fault in faults:
        row = Row(bench.path.name, fault.name)
        for call in calls:
            if not (call.is_memory and fault is not KILL):
                row.add(f"{call.name} number {call.number} (step {call.step})", _point(bench, call, fault, log))
        yield row


def _point(bench: Bench, call: strace.Call, fault: Fault, log: Path) -> Verdict:
    """Do one thing to one call, and judge what is left."""
    child = Child(bench.path, bench.reset(), bench.states, traced=True, retries=not fault.lasts)
    tracer = strace.attach_injecting(child.pid, log, call.name, fault.what, f"{call.number}{'+' * fault.lasts}")
    report = child.wait()
    tracer.wait()
    # A close that strace answers has not closed, and the file stays locked: there a second try may fail.
    verdict = bench.judge(report, passes=not fault.lasts and call.name != "close")
    verdict.wrong.extend(_not_as_injected(report, call, fault, log))
    return verdict


def _not_as_injected(report: Report, call: strace.Call, fault: Fault, log: Path) -> list[str]:
    """What is wrong with the fault itself, or with how it was told."""
    if fault is KILL:
        return [] if report.killed else ["was not killed: the call was not reached"]
    wrong = [] if strace.was_injected(log) else ["the call was not reached"]
    number = getattr(errno, fault.what.partition("=")[2])
    excused = (
        [errno.EINVAL] if call.name == "newfstatat" else []
    )  # Python's mmap maps nothing if it cannot ask the size
    first = [error for error in report.errors[:1] if error["errno"] is not None]
    wrong += [
        f"the error must carry errno {number} and a file name, got {error}"
        for error in first
        if error["errno"] not in (number, *excused) or error["filename"] is None
    ]
    return wrong
