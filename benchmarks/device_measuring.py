"""Measuring one case on a device: both answers are compared with the right one, then they are timed, taking turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import timing
from benchmarks.answers import WrongAnswerError
from benchmarks.case import OURS, TORCH
from benchmarks.device_case import DeviceCase
from benchmarks.device_clocks import Clocks, Plans, Way
from benchmarks.device_table import Measured
from benchmarks.measuring import answer_of, sweep_of

POOL = 256  # random arguments of a case, drawn before timing
CHECKED_SMALL = 3


def check(case: DeviceCase[Any], world: Any) -> None:
    """Raise WrongAnswerError unless both contenders answer right, on the device and, if that is timed, on the host."""
    part = case.part(world)
    for _ in range(CHECKED_SMALL if case.is_small else 1):
        arguments = case.draw(world)
        right = case.right(world, *arguments)
        left = [(OURS, case.ours), (TORCH, case.torch)]
        arriving = list(zip((OURS, TORCH), case.completed(), strict=True)) if case.is_small else []
        for contender, expression in left + arriving:
            answer = answer_of(expression, case.arguments, world.names)(*arguments)
            found = world.place.on_host(answer, part) if (contender, expression) in left else answer
            if not right.accepts(found, ours=contender == OURS):
                raise WrongAnswerError(
                    f"{case.name} at {world.shape} {world.dtype}: {contender} answers {expression} "
                    f"with {arguments} differently from the reference"
                )


def measure(case: DeviceCase[Any], world: Any, plans: Plans, clocks: Clocks) -> Iterator[Measured]:
    """Check a case, then time it: each way that is asked for is one result."""
    check(case, world)
    pool = [case.draw(world) for _ in range(POOL)]

    def timed(way: Way, plan: timing.Plan, clock: timing.Clock, ours: str, torch: str) -> Measured:
        sweeps = {
            OURS: sweep_of(ours, case.arguments, world.names),
            TORCH: sweep_of(torch, case.arguments, world.names),
        }
        found = timing.interleaved(sweeps, pool, plan, clock)
        touched = case.touched(world)
        judged = touched if case.judged is None else case.judged(world)
        return Measured(
            case.name,
            world.shape,
            world.dtype,
            way,
            found[OURS],
            found[TORCH],
            touched,
            judged,
            case.goal,
            (ours, torch),
        )

    if not case.is_small:
        yield timed("device", plans.whole, clocks.device, case.ours, case.torch)
        return
    yield timed("device", plans.small, clocks.device, case.ours, case.torch)
    yield timed("enqueue", plans.host, clocks.enqueue, case.ours, case.torch)
    yield timed("complete", plans.host, clocks.complete, *case.completed())
