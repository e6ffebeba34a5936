"""What a case and a world are; every folder of benchmarks says its own with these.

A contender is an expression as a user would write it. It is compiled once into a loop, so what is timed is the expression
and nothing around it, and what is timed is what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from benchmarks.core.machine import TORCH_ALONE, pinned
from benchmarks.core.timing import Clock, Plan, Sweep, seconds, sweep_of

OURS, NUMPY, TORCH, READY = "attncache", "NumPy", "torch", "ready-made"
WIDE = "float32 kept"  # a contender's way that keeps the layer in float32 as well, made before
K = 10
CHECKED = 4  # draws of a case that are checked


class Right(Protocol):
    """Knows the right answer."""

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether the contender's answer is right; the names of ours begin with OURS."""


class Judged(NamedTuple):
    """A right answer that a function knows, of contender and answer."""

    judge: Callable[[str, Any], bool]

    def accepts(self, answer: Any, contender: str) -> bool:
        """Whether the contender's answer is right."""
        return self.judge(contender, answer)


@dataclass(frozen=True)
class Goal:
    """What is wanted of ours.

    share: the least share of the limit's speed. ratio: how many times as long ``rival`` takes at least. seconds: the most
    that a call takes. None: nothing of that kind.
    """

    share: float | None = None
    ratio: float | None = None
    rival: str = TORCH
    seconds: float | None = None

    def met(self, share: float | None, ratio: float | None, taken: float) -> bool | None:
        """Whether it is met by one timing; None if it asks nothing of what was measured."""
        pairs = (share, self.share), (ratio, self.ratio)
        asked = [found >= least for found, least in pairs if found is not None and least is not None]
        if self.seconds is not None:
            asked.append(taken <= self.seconds)
        return all(asked) if asked else None


def nothing(_world: Any) -> tuple[()]:
    """No argument."""
    return ()


def no_work(_world: Any) -> int:
    """Nothing read or written but a reference."""
    return 0


@dataclass(frozen=True)
class Case:
    """One measured operation.

    name: what the table says; a query's name alone, or followed by the variant.
    arguments: the names that the expressions use; ``draw`` returns one random value for each.
    contenders: expression by contender.
    right: knows the right answer for one draw, of (world, *arguments).
    work: bytes read and written by one call, or its floating-point operations, counted once each.
    limit: the limit of the run that bounds it, or the contender whose speed is the limit; None: not measured.
    goal: what is wanted of ours where the world is judged.
    dtypes, kinds: of the worlds in which it runs.
    checks: how many draws are checked.
    questions: how many questions one call asks; time and work are for each of them.
    before: puts the world in order before each call, untimed; a sample is then one call.
    facts: expressions whose values are kept with the times, by contender.
    labels: kept with the times as they are. about: a sentence above its table.
    """

    name: str
    arguments: tuple[str, ...]
    draw: Callable[[Any], tuple[Any, ...]]
    contenders: Mapping[str, str]
    right: Callable[..., Right]
    work: Callable[[Any], int] = no_work
    limit: str | None = None
    goal: Goal | None = None
    dtypes: tuple[str, ...] = ("float32", "float16")
    kinds: tuple[str, ...] = ("",)
    checks: int = CHECKED
    questions: Callable[[Any], int] | None = None
    before: Callable[[Any], None] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


class Way(NamedTuple):
    """One way to time a case: expressions by contender, how long, by which clock, and whether the limit bounds it."""

    name: str
    codes: Mapping[str, str]
    plan: Plan
    clock: Clock = seconds
    is_limited: bool = True


class World:
    """What a group of cases runs on, shared without copies by all contenders.

    shape, dtype: what the table says. without: contenders that cannot run here. threads: torch's, which is timed with one
    thread as well unless it multiplies matrices all the time; 0: it is left alone.
    """

    shape: str
    dtype: str
    plan: Plan
    torch: ModuleType | None = None
    threads = 0
    without: frozenset[str] = frozenset()

    @property
    def names(self) -> dict[str, Any]:
        """What expressions can refer to."""
        raise NotImplementedError

    def runnable(self, case: Case) -> dict[str, str]:
        """The contenders that can run here; those of torch only where it is installed."""
        return {
            name: code
            for name, code in case.contenders.items()
            if name not in self.without and (self.torch is not None or name.partition(",")[0] != TORCH)
        }

    def ways(self, case: Case) -> Iterable[Way]:
        """How the case is timed."""
        yield Way("", self.runnable(case), self.plan)

    def sweeps(self, case: Case, codes: Mapping[str, str]) -> dict[str, Sweep]:
        """What is timed, by contender."""
        sweeps = {name: sweep_of(code, case.arguments, self.names) for name, code in codes.items()}
        if not self.threads:
            return sweeps
        if TORCH in sweeps and case.limit != "sgemm":
            sweeps[TORCH_ALONE] = sweeps[TORCH]
        return pinned(sweeps, self.torch, self.threads)

    def is_judged_for(self, _case: Case) -> bool:
        """Whether the goal of a case holds here."""
        return True

    def close(self) -> None:
        """Give back what the world holds beyond its own memory."""
