"""The command: builds the data of every case, has it checked and timed, prints the tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Protocol, TypeVar

import attncache
from benchmarks import bandwidth, goals, machine, table, timing
from benchmarks.answers import WrongAnswerError
from benchmarks.case import Case
from benchmarks.cases import CASES
from benchmarks.measuring import POOL, measure, shape_of, sweep_of
from benchmarks.worlds import FULL_SIZES, QUICK_SIZES, Size, World, torch_or_none

EMPTY_CALL, ABSENT_LAYER = "nothing(layer, position)", "cache.get_layer(1000000)"
SMALL_CALLS = (
    EMPTY_CALL,
    ABSENT_LAYER,
    "len(cache)",
    "means[0][position]",
    "means[0][:, position]",
    "AttentionCache()",
)


def small_calls(world: World, plan: timing.Plan) -> dict[str, timing.Timing]:
    """The emptiest Python call, and NumPy's index of a ready-made answer."""
    names = world.names
    pool = [(0, int(position)) for position in world.rng.integers(world.size.seq, size=POOL)]
    return timing.interleaved({code: sweep_of(code, ("layer", "position"), names) for code in SMALL_CALLS}, pool, plan)


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """What the table calls it."""


AnyCase = TypeVar("AnyCase", bound=Named)


def chosen_cases(only: Sequence[str] | None, cases: Sequence[AnyCase]) -> list[AnyCase]:
    """The cases called by ``only``, by name or by the part before the comma; all if None."""
    if only is None:
        return list(cases)
    called = {case.name: {case.name, case.name.partition(",")[0]} for case in cases}
    known = sorted(set().union(*called.values()))
    if unknown := sorted(set(only) - set(known)):
        raise SystemExit(f"no case is called {unknown[0]!r}; there are: {'; '.join(known)}")
    return [case for case in cases if called[case.name] & set(only)]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny layers and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation or query; may be repeated")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    return parser.parse_args(arguments)


def pin_threads(threads: int | None) -> int:
    """Give attncache and torch the same number of threads, and return it."""
    if threads is not None:
        attncache.set_num_threads(threads)
    count: int = attncache.get_num_threads()
    torch = torch_or_none()
    if torch is not None:
        torch.set_num_threads(count)
    return count


def measured(
    cases: Sequence[Case], sizes: Sequence[Size], plan: timing.Plan, threads: int
) -> tuple[list[table.Result], dict[str, timing.Timing]]:
    """The results of all cases in their order, and the cost of the small calls."""
    results: list[table.Result] = []
    calls: dict[str, timing.Timing] = {}
    for size, dtype in product(sizes, ("float32", "float16")):
        asked = [case for case in cases if dtype in case.dtypes]
        if asked:
            print(f"measuring {len(asked)} operations at {shape_of(size)} {dtype}", file=sys.stderr)
            world = World(size, dtype, threads)
            calls = calls or small_calls(world, plan)
            results += [measure(case, world, plan) for case in asked]
    return sorted(results, key=lambda result: cases.index(result.case)), calls


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = CASES) -> int:
    """Run the benchmarks; 0 if every answer was right, 1 if one was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    selected = chosen_cases(options.only, cases)
    threads = pin_threads(options.threads)
    plan, sizes = (timing.QUICK, QUICK_SIZES) if options.quick else (timing.FULL, FULL_SIZES)
    description = machine.description(threads, arguments)
    rates = bandwidth.Bandwidth()
    bandwidth.measure(rates, threads, quick=options.quick)
    try:
        results, calls = measured(selected, sizes, plan, threads)
    except WrongAnswerError as wrong:
        print(f"not timed: {wrong}", file=sys.stderr)
        return 1
    bandwidth.measure(rates, threads, quick=options.quick)  # again: the better of before and after is the limit
    limits = table.Limits(threads, rates, calls, empty=EMPTY_CALL)
    judged = goals.judged(results, limits, shape_of(sizes[-1]), ABSENT_LAYER)
    print(table.text(description, limits, results, markdown=options.markdown))
    print(f"\n{goals.text(judged, markdown=options.markdown)}")
    if options.json is not None:
        content = table.as_json(description, limits, results) | {"goals": [asdict(goal) for goal in judged]}
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
