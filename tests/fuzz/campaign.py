"""Many inputs in a process of their own, so that a crash or a hang is seen and its input known."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attncache
from tests.faults.forking import fork
from tests.fuzz.bases import Files, bases
from tests.fuzz.mutations import Case, case
from tests.fuzz.trying import try_case, watch

HANGS_AFTER = 20.0  # seconds for one input in every way of loading
MOST_MEMORY = 512 << 20  # bytes that the process may grow by, whatever the inputs
_ROOM = 1 << 20


@dataclass
class Outcome:
    """What became of inputs: how many, how often one was loaded or refused by which exception, and the findings."""

    inputs: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    grown: int = 0  # bytes

    def add(self, other: Outcome) -> None:
        """Count the inputs of another process too."""
        self.inputs += other.inputs
        self.ways += other.ways
        self.findings += other.findings
        self.grown = max(self.grown, other.grown)


def all_bases() -> list[Files]:
    """What inputs are made from."""
    with tempfile.TemporaryDirectory() as folder:
        return list(bases(Path(folder)))


def run(numbers: Iterable[int], made_from: list[Files], *, until: float | None = None) -> Outcome:
    """Try inputs in a forked process, and after a crash the rest in the next.

    Args:
        numbers: of the inputs.
        made_from: as ``all_bases`` gives.
        until: None, or when to stop, by ``time.monotonic``.
    """
    outcome = Outcome()
    rest = iter(numbers)
    while batch := list(itertools.islice(rest, 2000)):
        while batch:
            tried, ended = _in_a_process(batch, made_from, until, outcome)
            if ended:
                outcome.findings.append(f"input {batch[tried]}: the process {ended}")
            batch = batch[tried + 1 :] if ended else []
        if until is not None and time.monotonic() > until:
            break
    return outcome


def _in_a_process(batch: list[int], made_from: list[Files], until: float | None, outcome: Outcome) -> tuple[int, str]:
    """Try a batch; how many inputs were finished, and how the process ended if not by itself."""
    shared = mmap.mmap(-1, _ROOM)
    pid = fork()
    if pid == 0:
        try:
            _work(batch, made_from, until, shared)
        finally:
            os._exit(0)
    tried, since = 0, time.monotonic()
    ended = ""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        now = int.from_bytes(shared[:4], "little")
        if now != tried:
            tried, since = now, time.monotonic()
        if time.monotonic() - since > HANGS_AFTER:
            ended = f"hung for {HANGS_AFTER} s"
            os.kill(pid, 9)
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    tried = int.from_bytes(shared[:4], "little")
    size = int.from_bytes(shared[4:8], "little")
    said: dict[str, Any] = json.loads(shared[8 : 8 + size]) if size else {"ways": {}, "findings": [], "grown": 0}
    outcome.add(Outcome(tried, Counter(said["ways"]), said["findings"], said["grown"]))
    return tried, ended or ("" if code == 0 else f"ended with {code}")


def _work(batch: list[int], made_from: list[Files], until: float | None, shared: mmap.mmap) -> None:
    """The process: tries each input, and keeps what it found in shared memory after each."""
    attncache.set_num_threads(1)
    watch()
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for files in made_from:
            try_case(Case(files, []), folder)  # imports what is imported late
        before = _peak()
        for number in batch:
            each = case(number, made_from)
            ways, findings = try_case(each, folder)
            outcome.ways += ways
            outcome.findings += [f"input {number}, {', '.join(each.changes)}: {finding}" for finding in findings]
            grown = _peak() - before
            if grown > MOST_MEMORY:
                outcome.findings.append(f"input {number}: the process has grown by {grown >> 20} MiB")
                before = _peak()
            outcome.grown = max(outcome.grown, grown)
            outcome.inputs += 1
            said = {"ways": outcome.ways, "findings": outcome.findings[:20], "grown": outcome.grown}
            raw = json.dumps(said).encode()[: _ROOM - 8]
            shared[8 : 8 + len(raw)] = raw
            shared[4:8] = len(raw).to_bytes(4, "little")
            shared[:4] = outcome.inputs.to_bytes(4, "little")
            if until is not None and time.monotonic() > until:
                break


def _peak() -> int:
    """The most memory that the process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
