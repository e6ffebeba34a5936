"""The data behind the figures: what is plotted, and how it is measured. Nothing here knows how it will look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import attncache
from benchmarks import timing
from benchmarks.bandwidth import Bandwidth
from benchmarks.case import NUMPY, OURS, READY, TORCH, TORCH_ALONE, Case
from benchmarks.measuring import check, measure, runnable, sweep_of, with_threads
from benchmarks.timing import Timing
from benchmarks.worlds import World

DIRECT, INDEXED, KEPT = f"{OURS}, direct", f"{OURS}, indexed", "NumPy, mean kept"
LIMIT, EMPTY = "limit: bytes / read bandwidth", "limit: an empty call"


@dataclass
class Curve:
    """One line of a plot: seconds (or bytes) with their quartiles at each x."""

    xs: list[float | str] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    lowers: list[float] = field(default_factory=list)
    uppers: list[float] = field(default_factory=list)

    def add(self, x: float | str, median: float, lower: float | None = None, upper: float | None = None) -> None:
        """Append a point; without quartiles it is taken as exact."""
        self.xs.append(x)
        self.medians.append(median)
        self.lowers.append(median if lower is None else lower)
        self.uppers.append(median if upper is None else upper)


class Limited(NamedTuple):
    """A point of a limit: so many bytes, read or copied by so many threads."""

    label: str
    x: float | str
    n_bytes: int
    kind: str
    threads: int


@dataclass
class Panel:
    """One plot: curves by label, and the bytes whose limits are drawn once the run knows its best bandwidth.

    unit: of the curves, "seconds" or "bytes".
    """

    title: str
    x_label: str
    curves: dict[str, Curve] = field(default_factory=dict)
    limits: list[Limited] = field(default_factory=list)
    unit: str = "seconds"

    def add(self, label: str, x: float | str, timing: Timing, times: float = 1.0) -> None:
        """Append a timing, multiplied."""
        curve = self.curves.setdefault(label, Curve())
        curve.add(x, timing.median * times, timing.lower * times, timing.upper * times)

    def add_limits(self, rates: Bandwidth) -> None:
        """Turn the bytes into curves of seconds."""
        kinds = {"read": rates.read, "copy": rates.fresh_copy}
        for label, x, n_bytes, kind, threads in self.limits:
            self.curves.setdefault(label, Curve()).add(x, n_bytes / kinds[kind][threads].rate)
        self.limits.clear()


@dataclass
class Picture:
    """One file: panels that share their labels. kind: "lines" on two log axes, "kinds" or "bars" over names."""

    name: str
    title: str
    kind: str
    panels: list[Panel]


def pictures_from(content: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Pictures from what ``dataclasses.asdict`` made of them."""

    def panel_from(panel: Mapping[str, Any]) -> Panel:
        curves = {label: Curve(**curve) for label, curve in panel["curves"].items()}
        return Panel(panel["title"], panel["x_label"], curves, unit=panel.get("unit", "seconds"))

    return [
        Picture(picture["name"], picture["title"], picture["kind"], [panel_from(panel) for panel in picture["panels"]])
        for picture in content
    ]


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run share; ``empty`` is the seconds of a call that does nothing."""

    threads: int
    plan: timing.Plan
    empty: float


def together(direct: Case, indexed: Case | None = None) -> Case:
    """A case whose contenders are ours in both ways and everybody else's, to be timed in turns."""
    contenders = {DIRECT: direct.contenders[OURS]}
    if indexed is not None:
        contenders |= {INDEXED: indexed.contenders[OURS], KEPT: indexed.contenders[READY]}
    contenders |= {name: code for name, code in direct.contenders.items() if name in {NUMPY, TORCH}}
    return replace(direct, contenders=contenders)


def faster_torch(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """The timings with torch's faster one of all threads and one."""
    merged = dict(timings)
    alone = merged.pop(TORCH_ALONE, None)
    if alone is not None:
        merged[TORCH] = min(alone, merged[TORCH], key=lambda found: found.median)
    return merged


def add_point(panel: Panel, x: float | str, case: Case, world: World, bench: Bench) -> None:
    """Measure a case and append all of its contenders and limits to a panel."""
    result = measure(case, world, bench.plan)
    for label, found in faster_torch(result.timings).items():
        panel.add(label, x, found)
    panel.limits.append(Limited(LIMIT, x, result.touched, "read", bench.threads))
    if INDEXED in case.contenders:
        panel.curves.setdefault(EMPTY, Curve()).add(x, bench.empty)


def with_thread_counts(cases: Mapping[str, Case], world: World, bench: Bench, panel: Panel) -> None:
    """Append whole-layer cases with one thread and with all: ours, torch, and the limits of both."""
    counts = sorted({1, bench.threads})
    for name, case in cases.items():
        check(case, world)
        pool = [case.draw(world) for _ in range(64)]
        sweeps: dict[str, timing.Sweep] = {}
        for contender, code in runnable(case, world).items():
            sweep = sweep_of(code, case.arguments, world.names)
            if contender == TORCH and world.torch is not None:
                pin = world.torch.set_num_threads
            elif contender == OURS:
                pin = attncache.set_num_threads
            else:
                sweeps[contender] = sweep
                continue
            sweeps |= {threads_label(contender, count): with_threads(sweep, pin, count) for count in counts}
        for label, found in timing.interleaved(sweeps, pool, bench.plan).items():
            panel.add(label, name, found)
        for count in counts:
            label = threads_label("limit", count)
            panel.limits.append(Limited(label, name, case.touched(world), str(case.limit), count))
    attncache.set_num_threads(bench.threads)


def threads_label(contender: str, count: int) -> str:
    """How a contender with so many threads is called."""
    return f"{contender}, {count} thread{'s' if count > 1 else ''}"
