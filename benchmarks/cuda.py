"""The command that measures layers on a GPU against torch: ``python -m benchmarks.cuda``.

Every answer is compared with the reference first; what is wrong or fails is said and not timed. Without a device it says why
and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attncache import cuda
from benchmarks import device_cases, device_clocks, device_factored
from benchmarks.answers import WrongAnswerError
from benchmarks.device_case import DeviceCase
from benchmarks.device_clocks import Clocks, Plans
from benchmarks.device_measuring import measure
from benchmarks.device_table import Report, description
from benchmarks.device_worlds import DeviceWorld, FactoredDeviceWorld, Place
from benchmarks.factored_world import Shape
from benchmarks.run import chosen_cases
from benchmarks.worlds import Size, torch_or_none

MIDDLE, LARGE, SMALL = Size(32, 2048, 3), Size(32, 8192, 2), Size(12, 1024, 10)  # layers: beyond the caches together
LONG = device_factored.LONG
# What matters most comes first: a run may be cut short.
FULL: tuple[tuple[Size | Shape, str], ...] = (
    (MIDDLE, "float16"), (LONG, "float16"), (LARGE, "float16"), (SMALL, "float16"),
    (LARGE, "float32"), (MIDDLE, "bfloat16"), (LONG, "bfloat16"), (MIDDLE, "float32"),
    (LARGE, "bfloat16"), (SMALL, "float32"), (SMALL, "bfloat16"),
)  # fmt: skip
TINY, TINY_LONG = Size(2, 301, 2), device_factored.TINY
QUICK: tuple[tuple[Size | Shape, str], ...] = (
    (TINY, "float16"), (TINY, "float32"), (TINY, "bfloat16"), (TINY_LONG, "float16"), (TINY_LONG, "bfloat16"),
)  # fmt: skip
ALL_CASES: tuple[DeviceCase[Any], ...] = (*device_cases.CASES, *device_factored.CASES)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small layers and short times: checks, not numbers")
    parser.add_argument("--only", action="append", metavar="NAME", help="one operation or query; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no case after so long (default: 100)")
    parser.set_defaults(budget=100.0)
    return parser.parse_args(arguments)


def why_not() -> str | None:
    """Why nothing can be measured here; None if it can."""
    torch = torch_or_none()
    if torch is None:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return cuda.why_not()


def said(words: str) -> None:
    """Tell the terminal how far the run is."""
    print(words, file=sys.stderr, flush=True)


class Run:
    """One run: what is measured where and how, and what was found.

    Args:
        budget: seconds after which no case begins.
        write: called with the report whenever something was added, so that a run that is cut short leaves it.
    """

    def __init__(
        self,
        place: Place,
        plans: Plans,
        clocks: Clocks,
        report: Report,
        *,
        budget: float,
        write: Callable[[Report], None],
    ) -> None:
        self.place, self.plans, self.clocks, self.report = place, plans, clocks, report
        self.budget, self.write = budget, write
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it lasts already."""
        return time.perf_counter() - self.start

    def measure(self, worlds: Sequence[tuple[Size | Shape, str]], cases: Sequence[DeviceCase[Any]]) -> None:
        """Everything: the yardsticks, then each world with its cases."""
        torch, device = self.place.torch, self.place.device
        self.report.copied = device_clocks.copy_rate(torch, device, self.plans, self.clocks)
        self.report.floor = device_clocks.launch_floor(torch, device, self.plans, self.clocks)
        said(f"copy on the device: {self.report.copied / 1e9:.4g} GB/s")
        for layer, dtype in worlds:
            kind = device_cases.CASES if isinstance(layer, Size) else device_factored.CASES
            asked = [case for case in cases if case in kind]
            if asked:
                self._world(layer, dtype, asked)
                self.write(self.report)

    def _world(self, layer: Size | Shape, dtype: str, cases: Sequence[DeviceCase[Any]]) -> None:
        """The cases of one world, which is let go behind them."""
        self.place.free()
        world: Any = None
        for case in cases:
            if self.seconds > self.budget:
                self._missed(f"{case.name} at {layer} {dtype}", "the time is up")
                continue
            try:
                if world is None:
                    world = self._made(layer, dtype)
                    said(f"{self.seconds:.1f} s: {world.shape} {dtype} made")
                self.report.results += self._results(case, world)
            except WrongAnswerError as error:
                self._missed(case.name, f"wrong answer: {error}")
            except Exception as error:  # noqa: BLE001 - one case that fails must not hide the others
                self._missed(f"{case.name} at {layer} {dtype}", f"{type(error).__name__}: {error}")

    def _made(self, layer: Size | Shape, dtype: str) -> DeviceWorld | FactoredDeviceWorld:
        if isinstance(layer, Size):
            return DeviceWorld(self.place, layer, dtype)
        return FactoredDeviceWorld(self.place, layer, dtype)

    def _results(self, case: DeviceCase[Any], world: Any) -> Iterator[Any]:
        for result in measure(case, world, self.plans, self.clocks):
            cells = self.report.row(result)
            said(f"{self.seconds:.1f} s: {' | '.join(cells)}")
            yield result

    def _missed(self, name: str, reason: str) -> None:
        said(f"{self.seconds:.1f} s: not timed: {name}: {reason}")
        self.report.missed.append((name, reason))


def writer(path: Path | None) -> Callable[[Report], None]:
    """What writes a report to a file, if one is wanted."""

    def write(report: Report) -> None:
        if path is not None:
            path.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    return write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a case was wrong, failed, or was left out for lack of time."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    cases = chosen_cases(options.only, ALL_CASES)
    reason = why_not()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    torch: Any = torch_or_none()
    place = Place(torch, "cuda", lambda tensor: tensor, torch.from_dlpack)
    plans, worlds = (device_clocks.QUICK, QUICK) if options.quick else (device_clocks.FULL, FULL)
    report = Report(description(torch, arguments))
    write = writer(options.json)
    run = Run(place, plans, device_clocks.device_clocks(torch), report, budget=options.budget, write=write)
    with suppress(KeyboardInterrupt):
        run.measure(worlds, cases)
    write(report)
    print(report.text(markdown=options.markdown))
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
