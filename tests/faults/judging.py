"""Judges what a write path has left: an old or a new state, cleaned by the next open, and usable."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.child import Report
from tests.faults.states import State
from tests.faults.write_paths import Session, WritePath, litter_of


class Verdict(NamedTuple):
    """What became of one point: which state was found, whether litter was there before the next open, what is wrong."""

    outcome: str  # "old", "new" or "neither"
    had_error: bool
    had_litter: bool
    wrong: list[str]


class Bench:
    """A write path with its states, and its folder as it is before the first step, to be copied for each point."""

    def __init__(self, path: WritePath, states: Sequence[State], before: Path, folder: Path) -> None:
        self.path, self.states, self._before, self.folder = path, states, before, folder

    def reset(self) -> Path:
        """The folder in the state before the first step."""
        empty(self.folder)
        shutil.copytree(self._before, self.folder, dirs_exist_ok=True)
        return self.folder

    def judge(self, report: Report, *, passes: bool = False) -> Verdict:
        """What is wrong with the folder after a process that ended so, and with going on from there.

        Args:
            report: how the process ended.
            passes: whether the fault passes, so that a second try of the step that failed must succeed.
        """
        wrong = [*report.wrong, *([report.ended] if report.ended else [])]
        is_done = report.done == len(self.path.steps)
        if not report.killed and not is_done and not report.errors:
            wrong.append(f"ended after step {report.done} without an error")
        if passes and report.errors and not is_done:
            wrong.append(f"the second try failed too: {report.errors}")
        had_litter = bool(litter_of(self.folder))
        outcome, found, more = self._found(report.done)
        if not more:
            more = self._go_on(found)
        if report.errors and report.errors[0]["found"]:  # before the second try
            outcome, had_litter = report.errors[0]["found"], report.errors[0]["litter"]
        return Verdict(outcome, bool(report.errors), had_litter, wrong + more)

    def _found(self, done: int) -> tuple[str, int, list[str]]:
        """Which state is there, seen by a reader after ``done`` finished steps, and what is wrong with it."""
        try:
            state = self.path.read(self.folder)
        except Exception:
            return "neither", done, [f"a reader fails: {traceback.format_exc()[-1500:]}"]
        if state == self.states[min(done + 1, len(self.states) - 1)]:  # equal states count as the further one
            return "new", min(done + 1, len(self.states) - 1), []
        if state == self.states[done]:
            return "old", done, []
        known = [number for number, each in enumerate(self.states) if each == state]
        return "neither", done, [f"a reader finds neither state {done} nor the next, but {known or 'no known state'}"]

    def _go_on(self, found: int) -> list[str]:
        """What is wrong with opening, and with the rest of the steps in a new process."""
        try:
            self.path.open_next(self.folder)
            wrong = [f"after the next open there lies {left}" for left in litter_of(self.folder)]
            if self.path.read(self.folder) != self.states[max(found, int(self.path.opens))]:
                wrong.append("opening changed the state")
            self.path.run(Session(self.folder), max(found, int(self.path.opens)))
            if self.path.read(self.folder) != self.states[-1]:
                wrong.append("going on does not lead to the last state")
            return wrong + [f"in the end there lies {left}" for left in litter_of(self.folder)]
        except Exception:
            return [f"going on fails: {traceback.format_exc()[-1500:]}"]


def empty(folder: Path) -> None:
    """Remove what is in a folder, but not the folder, which may be a file system of its own."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
