"""What every command does: builds its worlds, has each answer checked, times the contenders, prints and writes the report."""

from __future__ import annotations

import argparse
import json
import reprlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.core import machine
from benchmarks.core.case import NUMPY, TORCH, Case, World
from benchmarks.core.table import Report, Result
from benchmarks.core.timing import answer_of, interleaved

POOL, POOL_OF_MANY = 4096, 4  # random arguments per case, drawn before timing


class WrongAnswerError(Exception):
    """A contender answered wrong, and will not be timed."""


class Suite:
    """What one command measures; each folder of benchmarks has one.

    module: what follows ``python -m``. contenders: columns of the table; none: a table for each operation.
    title: of the report that ``--write`` makes. budget: seconds after which no case begins, unless ``--budget`` says.
    """

    module = "benchmarks"
    title = "One run in full"
    contenders: tuple[str, ...] = (NUMPY, TORCH)
    budget = float("inf")

    def cases(self, options: argparse.Namespace) -> Sequence[Case]:
        """What is measured, in the order of the table."""
        raise NotImplementedError

    def worlds(self, options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], World]]]:
        """Kind and dtype of each world, and how it is made."""
        raise NotImplementedError

    def measure_limits(self, report: Report, options: argparse.Namespace) -> None:
        """Measure the yardsticks; called before and after the cases, and the better is kept."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Options of this command alone."""

    def described(self, options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, str]:
        """What the numbers are measured on."""
        return machine.description(self.module, options.threads, arguments)

    def why_not(self) -> str | None:
        """Why nothing can be measured here; None if it can."""
        return None


def parsed(suite: Suite, arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {suite.module}", description=sys.modules[type(suite).__module__].__doc__
    )
    parser.add_argument("--quick", action="store_true", help="tiny layers and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation or query; may be repeated")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of attncache and torch")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the report as Markdown to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    parser.add_argument(
        "--budget", type=float, default=suite.budget, metavar="SECONDS", help=f"begin no case later ({suite.budget:g})"
    )
    suite.add_options(parser)
    return parser.parse_args(arguments)


def chosen_cases(only: Sequence[str] | None, cases: Sequence[Case]) -> list[Case]:
    """The cases called by ``only``, by name or by the part before the comma; all if None."""
    if only is None:
        return list(cases)
    called = {case.name: {case.name, case.name.partition(",")[0]} for case in cases}
    known = sorted(set().union(*called.values()))
    if unknown := sorted(set(only) - set(known)):
        raise SystemExit(f"no case is called {unknown[0]!r}; there are: {'; '.join(known)}")
    return [case for case in cases if called[case.name] & set(only)]


def check(case: Case, world: World) -> None:
    """Raise WrongAnswerError unless every contender answers right, in every way that is timed."""
    codes = dict.fromkeys(pair for way in world.ways(case) for pair in way.codes.items())
    for _ in range(case.checks):
        arguments = case.draw(world)
        right = case.right(world, *arguments)
        for contender, code in codes:
            if case.before is not None:
                case.before(world)
            answer = answer_of(code, case.arguments, world.names)(*arguments)
            if not right.accepts(answer, contender):
                pairs = zip(case.arguments, arguments, strict=True)
                given = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in pairs)
                raise WrongAnswerError(f"{contender} answers {code}{given and f' with {given}'} wrongly")


def measure(case: Case, world: World) -> Iterator[Result]:
    """Check a case, then time it in each of its ways."""
    check(case, world)
    asked = 1 if case.questions is None else case.questions(world)
    pool = [
        case.draw(world) for _ in range((POOL if case.questions is None else POOL_OF_MANY) if case.arguments else 1)
    ]
    before = None if case.before is None else partial(case.before, world)
    facts = {name: answer_of(code, (), world.names)() for name, code in case.facts.items() if name not in world.without}
    goal = case.goal if world.is_judged_for(case) else None
    for way in world.ways(case):
        timings = interleaved(world.sweeps(case, way.codes), pool, way.plan, way.clock, before)
        yield Result(
            case.name,
            world.shape,
            world.dtype,
            way.name,
            case.work(world) if way.is_limited else 0,
            case.limit if way.is_limited else None,
            goal,
            {**case.contenders, **way.codes},
            {name: timing.for_each_of(asked) for name, timing in timings.items()},
            dict(case.labels),
            facts,
            case.about,
        )


def measured(
    suite: Suite, options: argparse.Namespace, cases: Sequence[Case], report: Report, write: Callable[[Report], None]
) -> None:
    """Add everything to the report; a case that is wrong or fails is named there, and the others go on.

    write: called whenever something was added, so that a run that is cut short leaves it.
    """
    end = time.perf_counter() + options.budget
    suite.measure_limits(report, options)
    for kind, dtype, make in suite.worlds(options):
        asked = [case for case in cases if kind in case.kinds and dtype in case.dtypes]
        if asked:
            said(f"measuring {len(asked)} operations, {kind or 'all layers'}, {dtype}")
            in_world(asked, make, end, report)
            write(report)
    suite.measure_limits(report, options)  # again: the better of before and after is the limit
    order = [case.name for case in cases]
    report.results.sort(key=lambda result: order.index(result.operation))


def in_world(cases: Sequence[Case], make: Callable[[], World], end: float, report: Report) -> None:
    """The cases of one world, which is let go behind them."""
    world: World | None = None
    try:
        for case in cases:
            reason: str | None = "the time is up"
            where = case.name
            if time.perf_counter() <= end:
                world = world or make()
                reason, where = tried(case, world, report), f"{case.name} at {world.shape} {world.dtype}"
            if reason is not None:
                said(f"not timed: {where}: {reason}")
                report.missed.append((where, reason))
    finally:
        if world is not None:
            world.close()


def tried(case: Case, world: World, report: Report) -> str | None:
    """Measure a case; why it could not be, or None."""
    try:
        report.results += measure(case, world)
        return None
    except WrongAnswerError as error:
        return f"wrong answer: {error}"
    except Exception as error:  # noqa: BLE001 - one case that fails must not hide the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def said(words: str) -> None:
    """Tell the terminal how far the run is."""
    print(words, file=sys.stderr, flush=True)


def writer(path: Path | None) -> Callable[[Report], None]:
    """What writes a report to a file, if one is wanted."""

    def write(report: Report) -> None:
        if path is not None:
            path.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    return write


def main(suite: Suite, arguments: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    """Run a command; 1 if a case was wrong, failed, or was left out for lack of time."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(suite, arguments)
    chosen = chosen_cases(options.only, suite.cases(options) if cases is None else cases)
    reason = suite.why_not()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    options.threads = machine.pin_threads(options.threads)
    report, write = Report(suite.described(options, arguments), suite.contenders), writer(options.json)
    with suppress(KeyboardInterrupt):
        measured(suite, options, chosen, report, write)
    write(report)
    print(report.text(markdown=options.markdown))
    if options.write is not None:
        written = f"Written by `python -m {suite.module} --write FILE`; [README.md](README.md) says how to read it."
        options.write.write_text(f"# {suite.title}\n\n{written}\n\n{report.text(markdown=True)}\n", encoding="utf-8")
    return 1 if report.missed else 0
