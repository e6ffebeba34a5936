"""Proof at size, run by hand: a cache several times as large as the memory that a process may have, written, asked and checked.

``python -m tests.proofs.larger_than_memory`` needs 3.4 GB of disk for a while and about two minutes. A process under a limit
of memory that the system enforces pushes layer after layer into a cache on disk and makes them one file; the file is put
out of memory; another process under the same limit maps it and asks. Every answer is compared with NumPy's on the same
layers, made once more. Then other ways to open the same bytes run under the same limit, and what becomes of them is shown.
The exit code is 1 if ours fails or answers wrongly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attncache import reference
from benchmarks.core import machine
from benchmarks.core.answers import same
from benchmarks.core.table import MISSING, aligned, bytes_text, duration
from benchmarks.dense.world import Size
from benchmarks.files.pages import CAN_EVICT, evict, file_system, resident
from benchmarks.files.world import folder_for
from tests.proofs import limited_process
from tests.proofs.limited_process import LAYER, POSITION, SAME_BYTES, hashed, layer_of, segment
from tests.proofs.memory_limit import Limit, limited

FULL, QUICK = Size(12, 1024, 64), Size(3, 64, 4)
LIMIT = 256 << 20


class Outcome(NamedTuple):
    """What became of a process under the limit."""

    ended: str
    report: Mapping[str, Any] | None
    peak: int | None


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    about, *_ = (__doc__ or "").split("\n")
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.larger_than_memory", description=about)
    parser.add_argument("--quick", action="store_true", help="a tiny cache: proves that it works, shows nothing")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to write; the system's temporary folder if absent"
    )
    return parser.parse_args(arguments)


def run(limit: Limit, role: str, folder: Path, size: Size) -> Outcome:
    """One role of ``limited_process`` under the limit."""
    command = [sys.executable, "-m", "tests.proofs.limited_process", role, str(folder), json.dumps(size.__dict__)]
    done = limit.run(command, Path(__file__).resolve().parents[2])
    if done.returncode == 0:
        return Outcome("answered", json.loads(done.stdout.splitlines()[-1]), limit.peak())
    *_, last = done.stderr.strip().splitlines() or [f"ended by signal or exit code {done.returncode}"]
    return Outcome(last[:100], None, limit.peak())


def wrong_answers(folder: Path, size: Size) -> list[str]:
    """What the asking process answered differently from the reference."""
    answers = np.load(folder / limited_process.ANSWERS)
    wrong = set()
    for layer in range(size.layers):
        pattern = [layer_of(size, layer)]
        mean = reference.head_mean(pattern, 0)
        right = {
            "rows": (answers["rows"][layer], mean[POSITION % size.seq]),
            "columns": (answers["columns"][layer], np.ascontiguousarray(mean[:, POSITION % size.seq])),
            "head means": (answers["means"][layer], hashed(mean)),
        }
        if layer == LAYER % size.layers:
            found = reference.top_k(pattern, 10, layers=0)
            right["first row"] = (answers["first_row"], mean[POSITION % size.seq])
            right["top positions"] = (answers["top_positions"], found[0])
            right["top weights"] = (answers["top_weights"], found[1])
        wrong |= {name for name, (answer, expected) in right.items() if not same(answer, expected)}
    return sorted(wrong)


def steps_text(steps: Sequence[Mapping[str, Any]]) -> str:
    """What the asking process did, as a table."""
    rows = [["step", "time", "of the file in the process", "of the file in memory at all"]]
    for step in steps:
        held = [MISSING if step[where] is None else bytes_text(step[where]) for where in ("touched", "resident")]
        rows.append([step["what"], duration(step["seconds"]), *held])
    return aligned(rows, markdown=False)


def peaks_text(outcomes: Mapping[str, Outcome]) -> str:
    """What became of every process, as a table."""
    rows = [["process", "outcome", "time", "peak under the limit", "peak of its resident memory", "private at the end"]]
    for name, outcome in outcomes.items():
        report = outcome.report or {}
        sizes = [outcome.peak, report.get("peak"), report.get("private")]
        took = duration(report["seconds"]) if "seconds" in report else MISSING
        rows.append([name, outcome.ended, took, *(MISSING if each is None else bytes_text(each) for each in sizes)])
    return aligned(rows, markdown=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, ask, check and compare; 0 if ours did and was right."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    size = QUICK if options.quick else FULL
    about = machine.description("tests.proofs.larger_than_memory", machine.pin_threads(None), arguments)
    with folder_for(options.folder) as folder, limited(LIMIT) as limit:
        for label in ("command", "machine", "system", "python", "attncache"):
            print(f"{label}: {about[label]}")
        print(f"file system: {file_system(folder)}\nlimit: {bytes_text(limit.n_bytes)} of {limit.counts}", flush=True)
        outcomes = {"attncache, pushing and compacting": run(limit, "write", folder, size)}
        if outcomes["attncache, pushing and compacting"].report is None:
            print(peaks_text(outcomes))
            return 1
        file = segment(folder)
        n_bytes = file.stat().st_size
        print(f"file: {bytes_text(n_bytes)}, {n_bytes / limit.n_bytes:.1f} times the limit\n", flush=True)
        cool(file)
        asked = outcomes["attncache, asking the mapped file"] = run(limit, "ask", folder, size)
        wrong = ["everything"] if asked.report is None else wrong_answers(folder, size)
        np.save(folder / SAME_BYTES, np.memmap(file, np.uint8, "r"))  # the bytes once more, as NumPy's own file
        for name in limited_process.CONTENDERS:
            cool(file)
            cool(folder / SAME_BYTES)
            outcomes[name] = run(limit, name, folder, size)
    if asked.report is not None:
        print(f"{steps_text(asked.report['steps'])}\n")
    print(peaks_text(outcomes))
    print(f"\nanswers: {f'WRONG: {wrong}' if wrong else 'the same bits as the reference'}")
    return 1 if wrong else 0


def cool(file: Path) -> None:
    """Get a file out of memory, where the system can, so that the next process must bring in what it needs."""
    if CAN_EVICT:
        evict([file])
        left = resident(file) or 0
        if left > 1 << 20:
            print(f"note: {bytes_text(left)} of {file.name} stayed in memory", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
