"""Interleaved timing: contenders take turns in one process, so that a slow moment of the machine hits them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

Calls = Sequence[tuple[Any, ...]]
Sweep = Callable[[Calls], None]
Clock = Callable[[Sweep, Calls], float]


@dataclass(frozen=True)
class Plan:
    """How long to measure: a sample lasts at least ``sample`` seconds, a contender about ``budget`` in all."""

    sample: float
    budget: float
    least: int
    most: int


FULL = Plan(sample=3e-3, budget=0.3, least=3, most=25)
QUICK = Plan(sample=1e-4, budget=1e-3, least=3, most=5)


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the samples: median and quartiles."""

    median: float
    lower: float
    upper: float
    samples: int
    calls_per_sample: int

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a share of the median."""
        return (self.upper - self.lower) / 2 / self.median

    def for_each_of(self, questions: int) -> Timing:
        """The timing of one question, from that of a call that asks so many."""
        median, lower, upper = (taken / questions for taken in (self.median, self.lower, self.upper))
        return Timing(median, lower, upper, self.samples, self.calls_per_sample * questions)


def seconds(sweep: Sweep, calls: Calls) -> float:
    """Seconds that one sweep over the calls takes."""
    start = time.perf_counter()
    sweep(calls)
    return time.perf_counter() - start


def calls_per_sample(
    sweep: Sweep, arguments: Iterator[tuple[Any, ...]], wanted: float, clock: Clock = seconds
) -> tuple[int, float]:
    """How many calls last about ``wanted`` seconds, and what they took."""
    count = 1
    while True:
        took = clock(sweep, list(islice(arguments, count)))
        if took >= wanted:
            return count, took
        count = max(count + 1, math.ceil(count * min(10.0, 1.2 * wanted / max(took, 1e-9))))


def interleaved(
    sweeps: Mapping[str, Sweep],
    pool: Calls,
    plan: Plan,
    clock: Clock = seconds,
    before: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time each sweep per call. All walk through the same pool of arguments; slow ones sit out some rounds.

    clock: seconds that one sweep over some calls takes. before: restores the world untimed; a sample is then one call.
    """
    arguments = {name: cycle(pool) for name in sweeps}
    samples: dict[str, list[float]] = {name: [] for name in sweeps}

    def sampled(name: str, count: int) -> float:
        if before is not None:
            before()
        return clock(sweeps[name], list(islice(arguments[name], count)))

    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        counts, stride = dict.fromkeys(sweeps, 1), {}
        for name, sweep in sweeps.items():
            if before is not None:
                took = sampled(name, 1)
            else:
                counts[name], took = calls_per_sample(sweep, arguments[name], plan.sample, clock)
            stride[name] = plan.most / min(plan.most, max(plan.least, int(plan.budget / took)))
        for turn in range(plan.most):
            for name in sweeps:
                if turn >= len(samples[name]) * stride[name]:
                    samples[name].append(sampled(name, counts[name]) / counts[name])
    finally:
        if was_enabled:
            gc.enable()
    return {name: summary(samples[name], counts[name]) for name in sweeps}


def summary(samples: Sequence[float], count: int) -> Timing:
    """Median and quartiles of the samples."""
    lower, median, upper = (float(value) for value in np.percentile(samples, [25, 50, 75]))
    return Timing(median, lower, upper, len(samples), count)


def compiled(source: str, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """The function ``name`` of a piece of source that may use ``names``."""
    namespace = dict(names)
    exec(source, namespace)  # noqa: S102 - expressions written in the cases
    function: Callable[..., Any] = namespace[name]
    return function


def answer_of(expression: str, arguments: Sequence[str], names: Mapping[str, Any]) -> Callable[..., Any]:
    """The expression as a function of its arguments."""
    return compiled(f"def answer({', '.join(arguments)}): return {expression}", "answer", names)


def sweep_of(expression: str, arguments: Sequence[str], names: Mapping[str, Any]) -> Sweep:
    """The expression in a bare loop over calls, as a user's own hot loop would hold it."""
    target = f"({', '.join(arguments)},)" if arguments else "()"
    return compiled(f"def sweep(calls):\n    for {target} in calls:\n        {expression}", "sweep", names)
