"""How time is taken on a device, and the yardsticks of a run: the copy's bandwidth and the emptiest kernel.

A call has three times: the device's for the work itself, the host's until the work is enqueued, and the host's until the
answer is a NumPy array.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.core import timing
from benchmarks.core.limits import Limits

DEVICE, ENQUEUED, ARRIVED = "device", "host, enqueued", "host, to NumPy"  # the ways to time a call

SLEEP_HZ = 2e9  # at least the clock of any device: a sleep lasts at least as long as it is asked to
AHEAD = 200e-6  # seconds that the device sleeps for each call, so that the host enqueues ahead of it


@dataclass(frozen=True)
class Plans:
    """How long to measure: calls that take a layer, small calls on the device, and on the host.

    Samples of small calls are so short that what they enqueue stays below what a stream takes without waiting.
    """

    whole: timing.Plan
    small: timing.Plan
    host: timing.Plan
    copied_bytes: int = 1 << 30  # far beyond any cache


FULL = Plans(
    whole=timing.Plan(sample=2e-3, budget=0.12, least=3, most=15),
    small=timing.Plan(sample=2e-4, budget=0.05, least=5, most=15),
    host=timing.Plan(sample=1e-3, budget=0.04, least=5, most=25),
)
_SHORT = timing.Plan(sample=1e-4, budget=1e-3, least=3, most=5)
QUICK = Plans(_SHORT, _SHORT, _SHORT, copied_bytes=1 << 26)


@dataclass(frozen=True)
class Clocks:
    """Seconds that one sweep over some calls takes, by what is asked for.

    Attributes:
        device: on the device, everything enqueued before it begins.
        enqueue: on the host, until everything is enqueued.
        complete: on the host; the calls wait for themselves.
    """

    device: timing.Clock
    enqueue: timing.Clock
    complete: timing.Clock = timing.seconds


def device_clocks(torch: Any) -> Clocks:
    """The clocks of the current device, by events around what a sweep enqueues on the current stream."""

    def between_events(sweep: timing.Sweep, calls: timing.Calls) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(AHEAD * len(calls) * SLEEP_HZ))
        begin.record()
        sweep(calls)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def enqueueing(sweep: timing.Sweep, calls: timing.Calls) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        sweep(calls)
        return time.perf_counter() - start

    return Clocks(between_events, enqueueing)


def sweep_over(action: Callable[[], object]) -> timing.Sweep:
    """An action in a loop over calls without arguments."""

    def sweep(calls: timing.Calls) -> None:
        for _ in calls:
            action()

    return sweep


def measure_limits(limits: Limits, torch: Any, device: Any, plans: Plans, clocks: Clocks) -> None:
    """Offer torch's copy from device memory to device memory, and time its emptiest kernel each way.

    That kernel is an addition to one number in place.
    """
    source = torch.zeros(plans.copied_bytes, dtype=torch.uint8, device=device)
    target, number = torch.empty_like(source), torch.zeros(1, device=device)

    def taken(plan: timing.Plan, clock: timing.Clock, action: Callable[[], object]) -> timing.Timing:
        return timing.interleaved({"": sweep_over(action)}, [()], plan, clock)[""]

    copied = taken(plans.whole, clocks.device, lambda: target.copy_(source))
    limits.offer("copy", 1, 2 * plans.copied_bytes / copied.median, "torch's copy on the device")
    limits.calls |= {
        f"torch's emptiest kernel, {DEVICE}": taken(plans.small, clocks.device, lambda: number.add_(1)),
        f"torch's emptiest kernel, {ENQUEUED}": taken(plans.host, clocks.enqueue, lambda: number.add_(1)),
        f"torch's emptiest kernel, {ARRIVED}": taken(plans.host, clocks.complete, lambda: number.add_(1).cpu().numpy()),
    }
