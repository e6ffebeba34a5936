"""The command: runs the matrix, prints a row for each write path and fault, and says in the end whether all held."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attncache
from tests.faults import full_disk, matrix, power_loss, random_kills, short_writes, strace
from tests.faults.matrix import Row
from tests.faults.write_paths import ALL, WritePath

HEADINGS = ("write path", "fault", "points", "old", "new", "errors", "litter", "failures")
KILLS, SEED = 1000, 20240817


def rows(work: Path, wanted: str, *, quick: bool) -> Iterator[Row]:
    """All rows, of the write paths with ``wanted`` in their name."""
    for path in ALL:
        if wanted in path.name:
            yield from rows_of(path, work, quick=quick)
    if wanted in random_kills.NAME:
        (work / "kills").mkdir()
        yield random_kills.row(work / "kills", KILLS // 10 if quick else KILLS, SEED)


def rows_of(path: WritePath, work: Path, *, quick: bool) -> Iterator[Row]:
    """All rows of a write path."""
    bench = matrix.prepared(path, work)
    calls = matrix.listed(bench, work / "list.strace")
    n_writes = sum(call.name in ("pwrite64", "write") for call in calls)
    every = 11 if quick else 1  # of the calls; a prime, so that it is in step with no pattern of theirs
    yield from matrix.injected(bench, calls[::every], work / "injected.strace")
    yield from short_writes.rows(bench, range(1, n_writes + 1, every))
    yield from full_disk.rows(bench, 4 if quick else 16)
    yield power_loss.row(bench, calls)


def line(row: Row) -> str:
    """A row of the table."""
    numbers = (row.points, row.old, row.new, row.errors, row.litter, len(row.failures))
    return _aligned((row.path, row.fault, *numbers)) + (f"  {row.note}" if row.note else "")


def by_fault(rows: Sequence[Row]) -> list[Row]:
    """A row for each fault, over all write paths."""
    found: dict[str, Row] = {}
    for row in rows:
        total = found.setdefault(row.fault, Row("all write paths", row.fault))
        for name in ("points", "old", "new", "errors", "litter"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.failures += row.failures
    return list(found.values())


def _aligned(cells: Sequence[object]) -> str:
    path, fault, *numbers = cells
    return f"{path:<30} {fault:<29}" + "".join(f"{number:>9}" for number in numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if anything failed, 77 if there is no strace."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every eleventh system call, a tenth of the kills")
    parser.add_argument("--only", metavar="TEXT", default="", help="the write paths with this in their name")
    options = parser.parse_args(arguments)
    if not strace.works():
        print("!!! SKIPPED: strace is missing or may not trace here: no fault can be injected", file=sys.stderr)
        return 77
    attncache.set_num_threads(1)  # the same calls in the same order each time
    begin, found = time.monotonic(), []
    print(f"attncache {attncache.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
    print(_aligned(HEADINGS))
    with tempfile.TemporaryDirectory() as work:
        for row in rows(Path(work), options.only, quick=options.quick):
            print(line(row), flush=True)
            found.append(row)
    failures = [failure for row in found for failure in row.failures]
    print()
    for row in by_fault(found):
        print(line(row))
    print("".join(f"\n{failure}\n" for failure in failures))
    if not full_disk.can_mount():
        print("!!! SKIPPED: full disks and file names: only root may mount a small file system")
    total = [sum(getattr(row, name) for row in found) for name in ("points", "old", "new", "errors", "litter")]
    print(_aligned(("all", f"{time.monotonic() - begin:.0f} s", *total, len(failures))))
    return 1 if failures else 0
