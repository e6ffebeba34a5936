"""What a case on a device is, and the goal that it sets itself; the cases are in device_cases.py and device_factored.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from benchmarks.answers import Array, Expected, is_right
from benchmarks.factored_cases import Right

AnyWorld = TypeVar("AnyWorld")

ON_DEVICE = ", device_result=True"


@dataclass(frozen=True)
class Goal:
    """What is wanted of ours.

    Attributes:
        share: the least share of the copy's bandwidth; None: no goal.
        ratio: how many times as long torch takes at least, in every way that the case is timed; None: no goal.
    """

    share: float | None = None
    ratio: float | None = None

    def met(self, share: float | None, ratio: float) -> bool | None:
        """Whether it is met by one timing; None if it asks nothing of that. share: None for times of the host."""
        asked = []
        if self.share is not None and share is not None:
            asked.append(share >= self.share)
        if self.ratio is not None:
            asked.append(ratio >= self.ratio)
        return all(asked) if asked else None

    def __str__(self) -> str:
        share = [] if self.share is None else [f"{self.share:.0%} of copy"]
        ratio = [] if self.ratio is None else [f"torch / ours {self.ratio:g}"]
        return ", ".join(share + ratio) or "-"


@dataclass(frozen=True)
class DeviceCase(Generic[AnyWorld]):
    """One measured operation.

    Attributes:
        name: what the table says: the query's name alone, or followed by the variant.
        arguments, draw: the names that the expressions use, and one random value for each.
        ours: the expression with the answer left on the device.
        torch: what a user of torch writes for that.
        right: knows the right answer for one draw; of its axis -2 only ``part``.
        touched: bytes read and written by one call, counted once each.
        part: the positions on the answer's axis -2 that are checked; None for all.
        judged: the bytes whose rate is compared with the copy's; None for those touched.
        is_small: the host's times are measured too.
    """

    name: str
    arguments: tuple[str, ...]
    draw: Callable[[AnyWorld], tuple[Any, ...]]
    ours: str
    torch: str
    right: Callable[..., Right]
    touched: Callable[[AnyWorld], int]
    goal: Goal = Goal()
    part: Callable[[AnyWorld], Array | None] = lambda _world: None
    judged: Callable[[AnyWorld], int] | None = None
    is_small: bool = False

    def completed(self) -> tuple[str, str]:
        """The two expressions with the answer as NumPy arrays."""
        return self.ours.replace(ON_DEVICE, ""), f"arrived({self.torch})"


@dataclass(frozen=True)
class Exact:
    """The answer that ours must give bit for bit, and torch within the bound of a float32 mean over heads."""

    expected: Expected
    heads: int

    def accepts(self, answer: Any, *, ours: bool) -> bool:
        """Whether an answer is right."""
        return is_right(answer, self.expected, exact=ours, heads=self.heads)
