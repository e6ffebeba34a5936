"""The goals that attncache sets itself, judged by what a run measured.

They hold for the largest layer of the run, in float16 unless said: each compares ours with a limit of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.case import OURS, READY
from benchmarks.table import MISSING, Limits, Result, aligned, duration, percent

LIST_LIMIT, EMPTY_LIMIT = 2e-6, 20e-9  # seconds


@dataclass(frozen=True)
class Judged:
    """A goal and how close ours comes: ``share`` of the limit's speed, reached if at least ``least``."""

    goal: str
    measured: str = MISSING
    limit: str = MISSING
    share: float | None = None
    least: float = 1.0

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None if it was not measured."""
        return None if self.share is None else self.share >= self.least


def within(seconds: float) -> Callable[[str, Result, Limits], Judged]:
    """The goal that a call takes no longer than so many seconds."""

    def judge(goal: str, result: Result, _limits: Limits) -> Judged:
        ours = result.timings[OURS].median
        return Judged(goal, duration(ours), duration(seconds), seconds / ours)

    return judge


def no_slower_than_ready(goal: str, result: Result, _limits: Limits) -> Judged:
    """The goal that ours takes no longer than NumPy's index of a ready-made answer."""
    ours, ready = result.timings[OURS].median, result.timings[READY].median
    return Judged(goal, duration(ours), duration(ready), ready / ours)


def share_of(kind: str, least: float) -> Callable[[str, Result, Limits], Judged]:
    """The goal to reach a share of the bandwidth of that kind, with the bytes that the table counts."""

    def judge(goal: str, result: Result, limits: Limits) -> Judged:
        rate, limit = result.touched / result.timings[OURS].median, limits.rate(kind)
        return Judged(goal, f"{rate / 1e9:.3g} GB/s", f"{limit / 1e9:.3g} GB/s {kind}", rate / limit, least)

    return judge


GOALS: tuple[tuple[str, str, str, Callable[[str, Result, Limits], Judged]], ...] = (
    (
        "attention_from_position, indexed: no slower than NumPy's mean[position]",
        "attention_from_position, indexed",
        "float16",
        no_slower_than_ready,
    ),
    (
        "attention_to_position, indexed: no slower than NumPy's mean[:, position]",
        "attention_to_position, indexed",
        "float16",
        no_slower_than_ready,
    ),
    (
        "top_attended_positions, k=10, indexed: at most 2 µs with its list",
        "top_attended_positions, k=10, indexed",
        "float16",
        within(LIST_LIMIT),
    ),
    ("head_mean, direct: 85 % of the read bandwidth", "head_mean, direct", "float16", share_of("read", 0.85)),
    (
        "push float32 as float16: 80 % of the speed of copying as many bytes into fresh memory",
        "push, float32 as float16",
        "float32",
        share_of("copy", 0.8),
    ),
    (
        "top_k of every row of every head: 60 % of the read bandwidth",
        "top_k, every query of every head, k=10",
        "float16",
        share_of("read", 0.6),
    ),
)


def judged(results: Sequence[Result], limits: Limits, shape: str, absent: str) -> list[Judged]:
    """Every goal, from the results of that shape; ``absent`` is the call of ``limits.calls`` that finds nothing."""
    found = {(result.case.name, result.dtype): result for result in results if result.shape == shape}
    answers = [
        judge(goal, found[name, dtype], limits) if (name, dtype) in found else Judged(goal)
        for goal, name, dtype, judge in GOALS
    ]
    empty = f"{absent}, which checks its argument and gives None: at most 20 ns, the loop included"
    if absent in limits.calls:
        seconds = limits.calls[absent].median
        answers.append(Judged(empty, duration(seconds), duration(EMPTY_LIMIT), EMPTY_LIMIT / seconds))
    else:
        answers.append(Judged(empty))
    return answers


def text(answers: Sequence[Judged], *, markdown: bool) -> str:
    """The goals as a table."""
    rows = [["goal", "measured", "limit", "share", "reached"]]
    for answer in answers:
        share = MISSING if answer.share is None else percent(answer.share)
        reached = {None: MISSING, True: "yes", False: "no"}[answer.reached]
        rows.append([answer.goal, answer.measured, answer.limit, share, reached])
    return aligned(rows, markdown=markdown)
