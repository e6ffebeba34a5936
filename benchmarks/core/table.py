"""What a run found, as tables for a terminal or as Markdown, and as JSON; every command prints it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.core.case import OURS, TORCH, WIDE, Goal
from benchmarks.core.limits import Limits
from benchmarks.core.timing import Timing

MISSING, NONE = "not measured", "-"


@dataclass(frozen=True)
class Result:
    """What one case cost in one world, timed one way; no timings if it could not be timed there."""

    operation: str
    shape: str
    dtype: str
    way: str
    work: int
    limit: str | None
    goal: Goal | None
    expressions: dict[str, str]
    timings: dict[str, Timing]
    labels: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    about: str = ""

    def best(self, contender: str) -> tuple[str, Timing] | None:
        """The fastest of a contender's ways ("torch", "torch, 1 thread"); None if none was measured."""
        found = [(name, timing) for name, timing in self.timings.items() if name.partition(", ")[0] == contender]
        return min(found, key=lambda named: named[1].median) if found else None

    def share(self, limits: Limits, contender: str = OURS) -> float | None:
        """How much of the limit's speed a contender reaches."""
        taken = self.timings.get(contender)
        if taken is None or self.limit is None:
            return None
        if self.limit == "call":
            return limits.empty / taken.median
        if self.limit in self.expressions:
            yardstick = self.timings.get(self.limit)
            return None if yardstick is None else yardstick.median / taken.median
        return self.work / taken.median / limits.rate(self.limit)

    def ratio(self, contender: str) -> float | None:
        """How many times as long as ours a contender takes."""
        best, ours = self.best(contender), self.timings.get(OURS)
        return None if best is None or ours is None else best[1].median / ours.median

    def rate(self, contender: str = OURS) -> str:
        """What a contender does in a second: bytes, or floating-point operations."""
        taken = self.timings.get(contender)
        if taken is None or not self.work:
            return NONE
        return f"{self.work / taken.median / 1e9:.3g} {unit_of(self.limit)}"

    def met(self, limits: Limits) -> bool | None:
        """Whether the goal is met; None if there is none, or nothing to judge."""
        if self.goal is None or OURS not in self.timings:
            return None
        return self.goal.met(self.share(limits), self.ratio(self.goal.rival), self.timings[OURS].median)

    def wanted(self) -> str:
        """The goal in words."""
        goal, words = self.goal or Goal(), []
        if goal.share is not None:
            words.append(f"{goal.share:.0%} of {self.limit}")
        if goal.ratio is not None:
            words.append(f"{goal.rival} / ours {goal.ratio:g}")
        if goal.seconds is not None:
            words.append(f"at most {duration(goal.seconds)}")
        return ", ".join(words)


def unit_of(limit: str | None) -> str:
    """In what a rate is counted."""
    return "GFLOP/s" if limit is not None and limit.startswith("sgemm") else "GB/s"


def percent(share: float) -> str:
    """A share in percent, two digits for small ones."""
    return f"{share:.0%}" if share > 0.1 else f"{100 * share:.2g}%"


def duration(seconds: float) -> str:
    """Seconds to three digits in a readable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def bytes_text(n_bytes: float) -> str:
    """Bytes to three digits in a readable unit of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.9995 * scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def timing_text(timing: Timing) -> str:
    """Median and spread."""
    return f"{duration(timing.median)} ± {timing.spread:.0%}"


def aligned(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Rows as lines with aligned columns; the first row is the header."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    edge, middle = ("| ", " | ") if markdown else ("", "  ")
    lines = [(edge + middle.join(map(str.ljust, cells, widths)) + edge[::-1]).rstrip() for cells in rows]
    lines.insert(1, edge + middle.join("-" * width for width in widths) + edge[::-1])
    return "\n".join(lines)


@dataclass
class Report:
    """Everything that a run found.

    about: the machine, by label. contenders: columns beside ours; empty: a table for each operation, with a line for each
    contender. missed: cases that could not be timed, and why.
    """

    about: dict[str, str]
    contenders: tuple[str, ...] = (TORCH,)
    limits: Limits = field(default_factory=Limits)
    results: list[Result] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)

    def text(self, *, markdown: bool) -> str:
        """The whole report."""
        lines = [f"{label}: {value}" for label, value in self.about.items()]
        lines += [f"not timed: {name}: {reason}" for name, reason in self.missed]
        parts = ["\n".join(("- " if markdown else "") + line for line in lines)]
        if self.limits.rates or self.limits.calls:
            parts.append(limits_text(self.limits, markdown=markdown))
        parts += [self._wide(markdown=markdown)] if self.contenders else self._long(markdown=markdown)
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Everything, in seconds, bytes and operations, with each contender's expression."""
        return {
            "about": self.about,
            "limits": asdict(self.limits),
            "results": [
                asdict(result) | {"share": result.share(self.limits), "met": result.met(self.limits)}
                for result in self.results
            ],
            "not_timed": [{"case": name, "reason": reason} for name, reason in self.missed],
        }

    def _wide(self, *, markdown: bool) -> str:
        """One table, a line for each result, with the columns that say something."""
        header = ["operation", "shape", "dtype", "time", OURS, "rate", "share of limit"]
        header += [cell for contender in self.contenders for cell in (contender, "ratio")]
        rows = [[*header, "goal", "met"], *map(self._cells, self.results)]
        is_kept = [any(cells[column].strip(NONE) for cells in rows[1:]) for column in range(len(rows[0]))]
        kept = [[cell for cell, kept in zip(cells, is_kept, strict=True) if kept] for cells in rows]
        table = aligned(kept if self.results else rows, markdown=markdown)
        if any(" *" in cell for cells in rows for cell in cells):
            star = "\\*" if markdown else "*"
            return f"{table}\n\n{star} on a copy of the layer kept in float32, made before"
        return table

    def _cells(self, result: Result) -> list[str]:
        share, met = result.share(self.limits), result.met(self.limits)
        ours = result.timings.get(OURS)
        cells = [result.operation, result.shape, result.dtype, result.way, timing_text(ours) if ours else MISSING]
        cells += [result.rate(), NONE if share is None else f"{percent(share)} of {result.limit}"]
        for contender in self.contenders:
            best, ratio = result.best(contender), result.ratio(contender)
            if best is not None and ratio is not None:
                cells += [timing_text(best[1]) + (" *" if best[0].endswith(WIDE) else ""), f"{ratio:.3g}"]
            else:
                is_missing = any(name.partition(", ")[0] == contender for name in result.expressions)
                cells += [MISSING if is_missing else NONE] * 2
        return [*cells, result.wanted() or NONE, {None: NONE, True: "met", False: "missed"}[met]]

    def _long(self, *, markdown: bool) -> list[str]:
        """A table for each operation."""
        parts = []
        for name in dict.fromkeys(result.operation for result in self.results):
            results = [result for result in self.results if result.operation == name]
            first = results[0]
            rows = [["shape", "contender", "time", "rate", f"share of {first.limit or 'a limit'}", "ratio"]]
            rows += [self._line(result, contender) for result in results for contender in result.expressions]
            title = f"## {name}" if markdown else name.upper()
            parts += [title, *([first.about] if first.about else []), aligned(rows, markdown=markdown)]
        return parts

    def _line(self, result: Result, contender: str) -> list[str]:
        found, share = result.timings.get(contender), result.share(self.limits, contender)
        ours = result.timings.get(OURS) or next(iter(result.timings.values()), None)
        if found is None or ours is None:
            return [result.shape, contender, MISSING, NONE, NONE, NONE]
        shared = NONE if share is None else percent(share)
        ratio = f"{found.median / ours.median:.3g}"
        return [result.shape, contender, timing_text(found), result.rate(contender), shared, ratio]


def limits_text(limits: Limits, *, markdown: bool) -> str:
    """The yardsticks, as a table."""
    names: Mapping[str, str] = {
        "overwrite": "copy over old memory (overwrite)",
        "copy": "copy into fresh memory (copy)",
    }
    rate: Callable[[str, float], str] = lambda kind, rate: f"{rate / 1e9:.3g} {unit_of(kind)}"
    rows = [["limit", "threads", "measured", "how"]]
    for kind, by_threads in limits.rates.items():
        rows += [
            [names.get(kind, kind), str(count), rate(kind, each.rate), each.how] for count, each in by_threads.items()
        ]
    rows += [["call", "1", timing_text(timing), expression] for expression, timing in limits.calls.items()]
    return aligned(rows, markdown=markdown)
