"""The command that measures patterns on a GPU against torch: ``python -m benchmarks.cuda``.

Times are the device's own (two events around a batch of calls on the stream in use), every answer is compared with the
reference first. Without a device it says why and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from attncache import cuda
from benchmarks import timing
from benchmarks.answers import WrongAnswerError, is_right
from benchmarks.case import OURS, TORCH, Case
from benchmarks.device_cases import CASES, DeviceWorld, on_host
from benchmarks.measuring import CHECKED, CHECKED_WHOLE, POOL, answer_of, shape_of, sweep_of
from benchmarks.run import chosen_cases
from benchmarks.table import aligned, percent, timing_text
from benchmarks.worlds import Size, torch_or_none

SIZES = (Size(12, 1024, 6), Size(32, 2048, 3))
QUICK_SIZES = (Size(2, 301, 2),)
COPIED_BYTES = 1 << 28
HEADER = ("operation", "shape", "dtype", "attncache", "GB/s", "share of copy", "torch", "torch / ours")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small layers and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation or query; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    return parser.parse_args(arguments)


def why_not() -> str | None:
    """Why nothing can be measured here; None if it can."""
    torch = torch_or_none()
    if torch is None:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return cuda.why_not()


def device_seconds(torch: Any) -> timing.Clock:
    """What a sweep takes on the device: from an event before it to an event behind all that it enqueued."""

    def seconds(sweep: timing.Sweep, calls: timing.Calls) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        sweep(calls)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return seconds


def copy_rate(torch: Any, to_device: Callable[[Any], Any], plan: timing.Plan, clock: timing.Clock) -> float:
    """Bytes per second, read and written, of torch's copy from device memory to device memory."""
    source = to_device(torch.zeros(COPIED_BYTES, dtype=torch.uint8))
    target = torch.empty_like(source)

    def copies(calls: timing.Calls) -> None:
        for _ in calls:
            target.copy_(source)

    return 2 * COPIED_BYTES / timing.interleaved({"copy": copies}, [()], plan, clock)["copy"].median


def check(case: Case, world: DeviceWorld) -> None:
    """Raise WrongAnswerError unless both contenders give the reference's answer."""
    for _ in range(CHECKED_WHOLE if case.whole else CHECKED):
        arguments = case.draw(world)
        expected = case.expected(world, *arguments)
        part = world.sample if case.whole else None
        for contender, expression in case.contenders.items():
            answer = on_host(answer_of(expression, case.arguments, world.names)(*arguments))
            if not is_right(answer, expected, exact=contender == OURS, heads=world.size.heads, part=part):
                raise WrongAnswerError(
                    f"{case.name} at {shape_of(world.size)} {world.dtype}: {contender} answers {expression} "
                    f"with {arguments} differently from the reference"
                )


def measured(case: Case, world: DeviceWorld, plan: timing.Plan, clock: timing.Clock, copied: float) -> list[str]:
    """Check a case, time it, and return its row of the table."""
    check(case, world)
    sweeps = {name: sweep_of(code, case.arguments, world.names) for name, code in case.contenders.items()}
    timings = timing.interleaved(sweeps, [case.draw(world) for _ in range(POOL)], plan, clock)
    ours, theirs = timings[OURS], timings[TORCH]
    rate = case.touched(world) / ours.median
    cells = [
        case.name,
        shape_of(world.size),
        world.dtype,
        timing_text(ours),
        f"{rate / 1e9:.3g}",
        percent(rate / copied),
    ]
    return [*cells, timing_text(theirs), f"{theirs.median / ours.median:.3g}"]


def report(torch: Any, to_device: Callable[[Any], Any], clock: timing.Clock, options: argparse.Namespace) -> str:
    """Everything measured, as a table."""
    plan = timing.QUICK if options.quick else timing.FULL
    copied = copy_rate(torch, to_device, plan, clock)
    rows: list[Sequence[str]] = [HEADER]
    for size, dtype in product(QUICK_SIZES if options.quick else SIZES, ("float32", "float16")):
        print(f"measuring at {shape_of(size)} {dtype}", file=sys.stderr)
        world = DeviceWorld(size, dtype, torch, to_device)
        rows += [measured(case, world, plan, clock, copied) for case in chosen_cases(options.only, CASES)]
    return f"copy on the device: {copied / 1e9:.3g} GB/s\n\n{aligned(rows, markdown=options.markdown)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if an answer was wrong."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    reason = why_not()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    torch = torch_or_none()
    assert torch is not None
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    try:
        print(report(torch, lambda tensor: tensor.cuda(), device_seconds(torch), options))
    except WrongAnswerError as error:
        print(f"wrong answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
