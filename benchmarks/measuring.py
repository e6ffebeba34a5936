"""Measuring one case: every contender's answer is compared with the reference, then all are timed, taking turns."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import table, timing
from benchmarks.answers import WrongAnswerError, is_right
from benchmarks.case import OURS, TORCH, TORCH_ALONE, Case
from benchmarks.worlds import Size, World

POOL, POOL_OF_MANY = 4096, 4  # random arguments per case, drawn before timing
CHECKED, CHECKED_WHOLE = 4, 1


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
    target = f"({', '.join(arguments)},)" if arguments else "()"
    loop = f"def sweep(calls):\n    for {target} in calls:\n        {expression}"
    return compiled(loop, "sweep", names)


def with_threads(sweep: timing.Sweep, set_num_threads: Callable[[int], None], threads: int) -> timing.Sweep:
    """The sweep with a library's thread count set first; that takes about a microsecond of a whole sample."""

    def pinned(calls: timing.Calls) -> None:
        set_num_threads(threads)
        sweep(calls)

    return pinned


def check(case: Case, world: World) -> None:
    """Raise WrongAnswerError unless every contender gives the reference's answer."""
    names = world.names
    for _ in range(CHECKED_WHOLE if case.whole else CHECKED):
        arguments = case.draw(world)
        expected = case.expected(world, *arguments)
        part = world.sample if case.whole else None
        for contender, expression in runnable(case, world).items():
            answer = answer_of(expression, case.arguments, names)(*arguments)
            exact = contender.startswith(OURS)
            if not is_right(answer, expected, exact=exact, heads=world.size.heads, part=part):
                given = ", ".join(
                    f"{name}={reprlib.repr(value)}" for name, value in zip(case.arguments, arguments, strict=True)
                )
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
    names = world.names
    pool = [case.draw(world) for _ in range(POOL_OF_MANY if case.many else POOL)]
    sweeps = {name: sweep_of(code, case.arguments, names) for name, code in runnable(case, world).items()}
    if world.torch is not None and TORCH in sweeps:
        pin = world.torch.set_num_threads
        alone = with_threads(sweeps[TORCH], pin, 1)
        sweeps |= {TORCH: with_threads(sweeps[TORCH], pin, world.threads), TORCH_ALONE: alone}
    timings = timing.interleaved(sweeps, pool, plan)
    if case.many:
        timings = {name: timing.for_each_of(world.size.questions, found) for name, found in timings.items()}
    return table.Result(case, shape_of(world.size), world.dtype, case.touched(world), timings)
