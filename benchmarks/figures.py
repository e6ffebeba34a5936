"""The command that measures and draws the figures of the documentation: ``python -m benchmarks.figures``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np

import attncache
from benchmarks import bandwidth, drawing, machine, timing
from benchmarks.answers import WrongAnswerError
from benchmarks.curves import Bench, Picture, pictures_from
from benchmarks.pictures import FULL, PICTURES, QUICK
from benchmarks.run import EMPTY_CALL, pin_threads, small_calls
from benchmarks.worlds import QUICK_SIZES, World, torch_or_none

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"
PLAN = timing.Plan(sample=3e-3, budget=0.2, least=5, most=21)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny layers and short times: proves that it works")
    parser.add_argument(
        "--only", action="append", choices=PICTURES, metavar="NAME", help=f"one of {', '.join(PICTURES)}"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go; docs/figures by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the data behind the figures to this file")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="draw what --json wrote, without measuring")
    options = parser.parse_args(arguments)
    if options.quick and options.folder == FOLDER:
        parser.error("--quick needs --folder: its numbers do not belong into the documentation")
    return options


def measured(names: Sequence[str], threads: int, *, quick: bool) -> tuple[list[Picture], str]:
    """The pictures of that name, and a line about what they were measured on."""
    plan, scale = (timing.QUICK, QUICK) if quick else (PLAN, FULL)
    rates = bandwidth.Bandwidth()
    bandwidth.measure(rates, threads, quick=quick)
    empty = small_calls(World(QUICK_SIZES[0], "float16", threads), plan)[EMPTY_CALL].median
    bench = Bench(threads, plan, empty)
    pictures = []
    for name in names:
        print(f"measuring {name}", file=sys.stderr)
        pictures.append(PICTURES[name](scale, bench))
    bandwidth.measure(rates, threads, quick=quick)  # again: the better of before and after is the limit
    for picture in pictures:
        for panel in picture.panels:
            panel.add_limits(rates)
    return pictures, about(threads, rates)


def about(threads: int, rates: bandwidth.Bandwidth) -> str:
    """Machine, versions and threads in two lines."""
    torch = torch_or_none()
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    reads = " and ".join(
        f"{limit.rate / 1e9:.3g} GB/s with {count} thread{'s' if count > 1 else ''}"
        for count, limit in sorted(rates.read.items())
    )
    versions = [
        f"attncache {metadata.version('attncache')} ({attncache.simd.active()}, {many})",
        f"NumPy {np.__version__} (1 thread)",
    ]
    if torch is not None:
        versions.append(f"torch {torch.__version__} ({'1 thread' if threads == 1 else f'1 or {many}'})")
    lines = [f"{machine.processor()}, {machine.usable_cores()} cores, reads {reads}", ", ".join(versions)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and draw; 0 if every answer was right, 1 if one was wrong."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    if options.redraw is not None:
        content = json.loads(options.redraw.read_text(encoding="utf-8"))
        pictures, note = pictures_from(content["pictures"]), content["about"]
    else:
        threads = pin_threads(options.threads)
        try:
            pictures, note = measured(options.only or list(PICTURES), threads, quick=options.quick)
        except WrongAnswerError as wrong:
            print(f"not drawn: {wrong}", file=sys.stderr)
            return 1
    if options.json is not None:
        content = {"about": note, "pictures": [asdict(picture) for picture in pictures]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for picture in pictures:
        if options.only is None or picture.name in options.only:
            print(drawing.draw(picture, note, options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
