"""The command: for every case build the data, check the answers, time them, print the table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import attncache
from benchmarks import bandwidth, machine, table, timing
from benchmarks.answers import WrongAnswerError, is_right
from benchmarks.case import OURS, TORCH, TORCH_ALONE, Case
from benchmarks.cases import CASES
from benchmarks.worlds import FULL_SIZES, QUICK_SIZES, Size, World, torch_or_none

POOL = 4096  # random arguments per case, drawn before timing
CHECKED, CHECKED_WHOLE = 4, 1
SMALL_CALLS = ("nothing(layer, position)", "means[0][position]", "means[0][:, position]")


def compiled(source: str, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The function ``name`` of a piece of source that may use ``names``."""
    namespace = dict(names)
    exec(source, namespace)  # noqa: S102 - expressions written in cases.py
    function: Callable[..., Any] = namespace[name]
    return function


def answer_of(expression: str, arguments: Sequence[str], names: dict[str, Any]) -> Callable[..., Any]:
    """The expression as a function of its arguments."""
    return compiled(f"def answer({', '.join(arguments)}): return {expression}", "answer", names)


def sweep_of(expression: str, arguments: Sequence[str], names: dict[str, Any]) -> timing.Sweep:
    """The expression in a bare loop over calls, as a user's own hot loop would hold it."""
    loop = f"def sweep(calls):\n    for ({', '.join(arguments)},) in calls:\n        {expression}"
    return compiled(loop, "sweep", names)


def with_torch_threads(sweep: timing.Sweep, world: World, threads: int) -> timing.Sweep:
    """The sweep with torch's thread count set first; that takes about a microsecond of a whole sample."""

    def pinned(calls: timing.Calls) -> None:
        assert world.torch is not None
        world.torch.set_num_threads(threads)
        sweep(calls)

    return pinned


def check(case: Case, world: World) -> None:
    """Raise WrongAnswerError unless every contender gives the reference's answer."""
    names = world.names()
    for _ in range(CHECKED_WHOLE if case.whole else CHECKED):
        arguments = case.draw(world)
        expected = case.expected(world, *arguments)
        part = world.sample if case.whole else None
        for contender, expression in runnable(case, world).items():
            answer = answer_of(expression, case.arguments, names)(*arguments)
            exact = contender == OURS
            if not is_right(answer, expected, exact=exact, heads=world.size.heads, part=part):
                given = ", ".join(f"{name}={value!r}" for name, value in zip(case.arguments, arguments, strict=True))
                raise WrongAnswerError(
                    f"{case.name} at {shape_of(world.size)} {world.dtype}: {contender} answers {expression} "
                    f"with {given} differently from the reference"
                )


def runnable(case: Case, world: World) -> dict[str, str]:
    """The contenders whose library is installed."""
    return {name: code for name, code in case.contenders.items() if name != TORCH or world.torch is not None}


def shape_of(size: Size) -> str:
    """Heads and positions, as the table shows them."""
    return f"{size.heads} x {size.seq}"


def measure(case: Case, world: World, plan: timing.Plan) -> table.Result:
    """Check a case, then time it."""
    check(case, world)
    names = world.names()
    pool = [case.draw(world) for _ in range(POOL)]
    sweeps = {name: sweep_of(code, case.arguments, names) for name, code in runnable(case, world).items()}
    if TORCH in sweeps:
        alone = with_torch_threads(sweeps[TORCH], world, 1)
        sweeps |= {TORCH: with_torch_threads(sweeps[TORCH], world, world.threads), TORCH_ALONE: alone}
    timings = timing.interleaved(sweeps, pool, plan)
    return table.Result(case, shape_of(world.size), world.dtype, case.touched(world), timings)


def small_calls(world: World, plan: timing.Plan) -> dict[str, timing.Timing]:
    """The emptiest Python call, and NumPy's index of a ready-made answer."""
    names = world.names()
    pool = [(0, int(position)) for position in world.rng.integers(world.size.seq, size=POOL)]
    return timing.interleaved({code: sweep_of(code, ("layer", "position"), names) for code in SMALL_CALLS}, pool, plan)


def chosen_cases(only: Sequence[str] | None, cases: Sequence[Case]) -> list[Case]:
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
    limits = table.Limits(threads, rates, calls, empty=SMALL_CALLS[0])
    print(table.text(description, limits, results, markdown=options.markdown))
    if options.json is not None:
        content = table.as_json(description, limits, results)
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
