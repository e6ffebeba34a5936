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


def interleaved(sweeps: Mapping[str, Sweep], pool: Calls, plan: Plan, clock: Clock = seconds) -> dict[str, Timing]:
    """Time each sweep per call. All walk through the same pool of arguments; slow ones sit out some rounds.

    clock: seconds that one sweep over some calls takes.
    """
    arguments = {name: cycle(pool) for name in sweeps}
    samples: dict[str, list[float]] = {name: [] for name in sweeps}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        counts, stride = {}, {}
        for name, sweep in sweeps.items():
            counts[name], took = calls_per_sample(sweep, arguments[name], plan.sample, clock)
            own_rounds = min(plan.most, max(plan.least, int(plan.budget / took)))
            stride[name] = plan.most / own_rounds
        for turn in range(plan.most):
            for name, sweep in sweeps.items():
                if turn >= len(samples[name]) * stride[name]:
                    calls = list(islice(arguments[name], counts[name]))
                    samples[name].append(clock(sweep, calls) / counts[name])
    finally:
        if was_enabled:
            gc.enable()
    return {name: summary(samples[name], counts[name]) for name in sweeps}


def taking_turns(
    actions: Mapping[str, Callable[[], object]], before: Callable[[], None], plan: Plan
) -> dict[str, Timing]:
    """Time actions that leave something behind: a sample is one call, and ``before`` restores the world untimed."""
    samples: dict[str, list[float]] = {name: [] for name in actions}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(plan.most):
            for name, action in actions.items():
                if turn < plan.least or sum(samples[name]) < plan.budget:
                    before()
                    start = time.perf_counter()
                    action()
                    samples[name].append(time.perf_counter() - start)
    finally:
        if was_enabled:
            gc.enable()
    return {name: summary(samples[name], 1) for name in actions}


def summary(samples: Sequence[float], count: int) -> Timing:
    """Median and quartiles of the samples."""
    lower, median, upper = (float(value) for value in np.percentile(samples, [25, 50, 75]))
    return Timing(median, lower, upper, len(samples), count)


def for_each_of(questions: int, timing: Timing) -> Timing:
    """The timing of one question, from that of a call that asks so many."""
    return Timing(
        timing.median / questions,
        timing.lower / questions,
        timing.upper / questions,
        timing.samples,
        timing.calls_per_sample * questions,
    )
