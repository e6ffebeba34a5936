"""The command that measures caches in files: ``python -m benchmarks.files``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import machine, timing
from benchmarks.answers import WrongAnswerError
from benchmarks.drawing import bytes_text
from benchmarks.files_cases import CASES, FileCase
from benchmarks.files_contenders import OURS
from benchmarks.files_opening import Opened, opened_by_size, opening_text
from benchmarks.files_world import FilesWorld, folder_for
from benchmarks.measuring import answer_of, shape_of, sweep_of
from benchmarks.pages import file_system
from benchmarks.run import chosen_cases, pin_threads
from benchmarks.table import MISSING, NONE, aligned, percent, timing_text
from benchmarks.timing import Timing
from benchmarks.worlds import Size

FULL_SIZES, QUICK_SIZES = (Size(12, 128, 12), Size(12, 1024, 8), Size(32, 2048, 2)), (Size(3, 32, 2),)
WARM = timing.Plan(sample=20e-3, budget=0.6, least=5, most=15)
ONE_BY_ONE, QUICK_ONE_BY_ONE = timing.Plan(0, 2.0, 7, 21), timing.Plan(0, 1e-3, 2, 2)
POOL = 512
PREAMBLE = """# Caches in files in full

Written by `python -m benchmarks.files --write FILE`; [README.md](README.md) says how to read it.
"""


@dataclass(frozen=True)
class Result:
    """What one case cost for one cache; no timings if its files could not be got out of memory."""

    case: FileCase
    size: Size
    n_bytes: int
    timings: dict[str, Timing]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny caches and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation; may be repeated")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to write; the system's temporary folder if absent"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the report as Markdown to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    return parser.parse_args(arguments)


def runnable(case: FileCase, world: FilesWorld) -> dict[str, str]:
    """The contenders whose library or command is installed."""
    return {name: code for name, code in case.contenders.items() if name not in world.without}


def draws(case: FileCase, world: FilesWorld) -> Iterator[tuple[Any, ...]]:
    """Arguments without end."""
    while True:
        if case.kind == "write":
            yield (world.fresh,)
        else:
            yield world.draw() if case.arguments else ()


def check(case: FileCase, world: FilesWorld) -> None:
    """Raise WrongAnswerError unless every contender writes or reads what it should."""
    for contender, code in runnable(case, world).items():
        world.empty_fresh()
        arguments = next(draws(case, world))
        answer = answer_of(code, case.arguments, world.names)(*arguments)
        if not case.is_right(world, contender, answer, *arguments):
            raise WrongAnswerError(f"{case.name} at {shape_of(world.size)}: {contender} does {code} wrongly")


def measure(case: FileCase, world: FilesWorld, *, quick: bool) -> Result:
    """Check a case, then time it."""
    check(case, world)
    codes, arguments = runnable(case, world), draws(case, world)
    plan = QUICK_ONE_BY_ONE if quick else ONE_BY_ONE
    if case.kind in ("read", "ask"):
        sweeps = {name: sweep_of(code, case.arguments, world.names) for name, code in codes.items()}
        pool = [next(arguments) for _ in range(POOL)]
        timings = timing.interleaved(sweeps, pool, timing.QUICK if quick else WARM)
    elif case.is_cold and not world.can_cool:
        timings = {}
    else:
        actions = {
            name: called(answer_of(code, case.arguments, world.names), arguments) for name, code in codes.items()
        }
        timings = timing.taking_turns(actions, world.cool if case.is_cold else world.empty_fresh, plan)
    return Result(case, world.size, world.n_bytes, timings)


def called(action: Any, arguments: Iterator[tuple[Any, ...]]) -> Any:
    """The action with new arguments each time."""
    return lambda: action(*next(arguments))


def measured(
    cases: Sequence[FileCase], sizes: Sequence[Size], threads: int, parent: Path | None, quick: bool
) -> list[Result]:
    """The results of all cases in their order."""
    results: list[Result] = []
    for size in sizes:
        print(f"measuring {len(cases)} operations at {size.layers} layers of {shape_of(size)}", file=sys.stderr)
        with folder_for(parent) as folder:
            world = FilesWorld(size, threads, folder)
            results += [measure(case, world, quick=quick) for case in cases]
    return sorted(results, key=lambda result: cases.index(result.case))


def version_of(package: str) -> str:
    """The version of an optional package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def described(threads: int, arguments: Sequence[str], folder: Path) -> dict[str, str]:
    """The machine's description, with what is different here."""
    about = machine.description(threads, shown_arguments(arguments))
    return about | {
        "command": about["command"].replace("benchmarks", "benchmarks.files", 1),
        "file system": file_system(folder),
        "torch": version_of("torch"),
        "safetensors": version_of("safetensors"),
    }


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments without the places of folder and file, which say nothing about the numbers."""
    kinds = {"--folder": "DIR", "--json": "FILE"}
    return [kinds.get(before, argument) for before, argument in zip(("", *arguments), arguments, strict=False)]


def rows(result: Result, cases_installed: Mapping[str, str]) -> list[list[str]]:
    """The lines of one case for one cache."""
    ours = result.timings.get(OURS)
    yardstick = result.timings.get(result.case.yardstick or "")
    lines = []
    for name in cases_installed:
        found = result.timings.get(name)
        cache = f"{result.size.layers} x {shape_of(result.size)}, {bytes_text(result.n_bytes)}"
        if found is None or ours is None:
            lines.append([cache, name, MISSING, NONE, NONE, NONE])
            continue
        rate = f"{result.n_bytes / found.median / 1e9:.3g} GB/s" if result.case.moves_all else NONE
        share = NONE if yardstick is None else percent(yardstick.median / found.median)
        lines.append([cache, name, timing_text(found), rate, share, f"{found.median / ours.median:.3g}"])
    return lines


def case_text(case: FileCase, results: Sequence[Result], *, markdown: bool) -> str:
    """The table of one case."""
    header = ["cache", "contender", "time", "rate", f"share of {case.yardstick or 'a limit'}", "ratio"]
    lines = [line for result in results for line in rows(result, case.contenders)]
    title = f"## {case.name}" if markdown else case.name.upper()
    return "\n\n".join([f"{title}\n\n{case.about}", aligned([header, *lines], markdown=markdown)])


def report(about: Mapping[str, str], results: Sequence[Result], opened: Sequence[Opened], *, markdown: bool) -> str:
    """Everything that is printed."""
    bullet = "- " if markdown else ""
    cases = list(dict.fromkeys(result.case.name for result in results))
    parts = ["\n".join(f"{bullet}{label}: {value}" for label, value in about.items())]
    for name in cases:
        own = [result for result in results if result.case.name == name]
        parts.append(case_text(own[0].case, own, markdown=markdown))
    if opened:
        parts.append(opening_text(opened, markdown=markdown))
    return "\n\n".join(parts)


def as_json(about: Mapping[str, str], results: Sequence[Result], opened: Sequence[Opened]) -> dict[str, Any]:
    """Everything measured, in seconds and bytes, with each contender's expression."""
    return {
        "about": dict(about),
        "results": [
            {
                "operation": result.case.name,
                "cache": asdict(result.size),
                "bytes": result.n_bytes,
                "yardstick": result.case.yardstick,
                "expressions": dict(result.case.contenders),
                "timings": {name: asdict(found) for name, found in result.timings.items()},
            }
            for result in results
        ],
        "opened": [asdict(each) for each in opened],
    }


def main(arguments: Sequence[str] | None = None, cases: Sequence[FileCase] = CASES) -> int:
    """Run the benchmarks; 0 if every answer was right, 1 if one was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    selected = chosen_cases(options.only, cases)
    threads = pin_threads(options.threads)
    with folder_for(options.folder) as folder:
        about = described(threads, arguments, folder)
    try:
        results = measured(
            selected, QUICK_SIZES if options.quick else FULL_SIZES, threads, options.folder, options.quick
        )
        opened = [] if options.only else opened_by_size(options.folder, quick=options.quick)
    except WrongAnswerError as wrong:
        print(f"not timed: {wrong}", file=sys.stderr)
        return 1
    print(report(about, results, opened, markdown=options.markdown))
    if options.write is not None:
        text = report(about, results, opened, markdown=True)
        options.write.write_text(f"{PREAMBLE}\n{text}\n", encoding="utf-8")
    if options.json is not None:
        content = json.dumps(as_json(about, results, opened), indent=2, ensure_ascii=False)
        options.json.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
