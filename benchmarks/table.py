"""Results as a table, for a terminal or as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.bandwidth import Bandwidth, Limit
from benchmarks.case import NUMPY, OURS, READY, TORCH, TORCH_ALONE, Case
from benchmarks.timing import Timing

MISSING = "not measured"
NONE = "-"
HEADER = (
    "operation", "shape", "dtype", "attncache", "GB/s", "share of limit",
    NUMPY, "ratio", TORCH, "ratio", READY, "ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one case cost at one size and dtype."""

    case: Case
    shape: str
    dtype: str
    touched: int
    timings: dict[str, Timing]


@dataclass(frozen=True)
class Limits:
    """The yardsticks of a run; ``threads`` says which bandwidth counts, ``calls`` are small ones by expression."""

    threads: int
    bandwidth: Bandwidth
    calls: dict[str, Timing]
    empty: str

    def share(self, result: Result) -> str:
        """How close ours comes to the case's limit."""
        if result.case.limit is None:
            return MISSING
        ours = result.timings[OURS].median
        if result.case.limit == "call":
            return f"{percent(self.calls[self.empty].median / ours)} of a call"
        return f"{percent(result.touched / ours / self.rate(result.case.limit))} of {result.case.limit}"

    def rate(self, kind: str) -> float:
        """Bytes per second of a limit, with all threads."""
        kinds = {"read": self.bandwidth.read, "copy": self.bandwidth.fresh_copy, "overwrite": self.bandwidth.copy}
        return kinds[kind][self.threads].rate


def percent(share: float) -> str:
    """A share in percent, two digits for small ones."""
    return f"{share:.0%}" if share > 0.1 else f"{100 * share:.2g}%"


def duration(seconds: float) -> str:
    """Seconds to three digits in a readable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def timing_text(timing: Timing) -> str:
    """Median and spread."""
    return f"{duration(timing.median)} ± {timing.spread:.0%}"


def row(result: Result, limits: Limits) -> list[str]:
    """The cells of one result."""
    ours = result.timings[OURS].median
    rate = f"{result.touched / ours / 1e9:.3g}" if result.touched else NONE
    cells = [result.case.name, result.shape, result.dtype]
    cells += [timing_text(result.timings[OURS]), rate, limits.share(result)]
    for contender in (NUMPY, TORCH, READY):
        if contender not in result.case.contenders:
            cells += [NONE, NONE]
        elif contender not in result.timings:
            cells += [MISSING, MISSING]
        else:
            theirs = result.timings[contender]
            if contender == TORCH and TORCH_ALONE in result.timings:
                theirs = min(theirs, result.timings[TORCH_ALONE], key=lambda timing: timing.median)
            cells += [timing_text(theirs), f"{theirs.median / ours:.3g}"]
    return cells


def aligned(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Rows as lines with aligned columns; the first row is the header."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    edge, middle = ("| ", " | ") if markdown else ("", "  ")
    lines = [(edge + middle.join(map(str.ljust, cells, widths)) + edge[::-1]).rstrip() for cells in rows]
    lines.insert(1, edge + middle.join("-" * width for width in widths) + edge[::-1])
    return "\n".join(lines)


def limits_text(limits: Limits, *, markdown: bool) -> str:
    """The yardsticks, as a table."""
    rows = [["limit", "threads", "measured", "how"]]
    named: dict[str, dict[int, Limit]] = {
        "read": limits.bandwidth.read,
        "copy over old memory (overwrite)": limits.bandwidth.copy,
        "copy into fresh memory (copy)": limits.bandwidth.fresh_copy,
    }
    for name, by_threads in named.items():
        rows += [[name, str(count), f"{limit.rate / 1e9:.3g} GB/s", limit.how] for count, limit in by_threads.items()]
    rows += [["call", "1", timing_text(timing), expression] for expression, timing in limits.calls.items()]
    return aligned(rows, markdown=markdown)


def text(description: dict[str, str], limits: Limits, results: Sequence[Result], *, markdown: bool) -> str:
    """The whole report."""
    bullet = "- " if markdown else ""
    about = "\n".join(f"{bullet}{label}: {value}" for label, value in description.items())
    rows = [list(HEADER), *(row(result, limits) for result in results)]
    return "\n\n".join([about, limits_text(limits, markdown=markdown), aligned(rows, markdown=markdown)])


def as_json(description: dict[str, str], limits: Limits, results: Sequence[Result]) -> dict[str, Any]:
    """Everything measured, in seconds and bytes, with each contender's expression."""
    return {
        "about": description,
        "limits": {
            "bandwidth": asdict(limits.bandwidth),
            "calls": {expression: asdict(timing) for expression, timing in limits.calls.items()},
        },
        "results": [
            {
                "operation": result.case.name,
                "query": result.case.query,
                "shape": result.shape,
                "dtype": result.dtype,
                "bytes_touched": result.touched,
                "limit": result.case.limit,
                "expressions": dict(result.case.contenders),
                "timings": {name: asdict(timing) for name, timing in result.timings.items()},
            }
            for result in results
        ],
    }
