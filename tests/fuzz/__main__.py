"""``python -m tests.fuzz``: inputs until the time is up, then what became of them; 1 if there is a finding."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.campaign import all_bases, run
from tests.fuzz.mutations import case
from tests.fuzz.trying import try_case


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, or show one input."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="for how long (20)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input (0)")
    parser.add_argument(
        "--show", type=int, metavar="NUMBER", help="write this input into the folder fuzz-NUMBER and try it"
    )
    options = parser.parse_args(arguments)
    made_from = all_bases()
    if options.show is not None:
        return show(options.show, made_from)
    begin = time.monotonic()
    outcome = run(itertools.count(options.first), made_from, until=begin + 60 * options.minutes)
    for finding in outcome.findings:
        print(f"{finding}\n")
    seconds = time.monotonic() - begin
    ways = ", ".join(f"{kind} {count}" for kind, count in outcome.ways.most_common())
    print(f"{outcome.inputs} inputs from {options.first} on in {seconds:.0f} s, each loaded in four ways: {ways}")
    print(f"at most {outcome.grown / 2**20:.1f} MiB more memory, {len(outcome.findings)} findings")
    return 1 if outcome.findings else 0


def show(number: int, made_from: Sequence[dict[str, bytes]]) -> int:
    """Keep one input as files, and say what becomes of it."""
    each = case(number, made_from)
    folder = Path(f"fuzz-{number}")
    folder.mkdir(exist_ok=True)
    for name, raw in each.files.items():
        (folder / name).write_bytes(raw)
    with tempfile.TemporaryDirectory() as work:
        outcomes, findings = try_case(each, Path(work))
    print(f"{folder}: {', '.join(each.changes)}; {json.dumps(outcomes)}")
    print("\n".join(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
