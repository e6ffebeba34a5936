"""What the CUDA library is asked to do by the Python side: recorded, and made to fail on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

Status = Callable[..., int]


class Recorder:
    """Stands in the place of ``Library.status``.

    Attributes:
        calls: name and arguments of each call, in order; may be cleared.
        live: how often each address was allocated and not freed.
        failing: a status by the name of the function that returns it instead of doing anything.
    """

    def __init__(self, call: Status) -> None:
        self.call = call
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.live: Counter[int] = Counter()
        self.failing: dict[str, int] = {}

    def __call__(self, name: str, *arguments: Any) -> int:
        self.calls.append((name, arguments))
        if name in self.failing:
            return self.failing[name]
        status = self.call(name, *arguments)
        if name == "allocate" and status == 0:
            self.live[arguments[-1]._obj.value] += 1
        if name == "free":
            self.live[arguments[0]] -= 1
        return status

    def names(self) -> list[str]:
        """The functions that were called, in order."""
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of one function."""
        return [arguments for called, arguments in self.calls if called == name]

    def misplaced(self) -> dict[int, int]:
        """How often more an address was allocated than freed, where that is not as often."""
        return {address: balance for address, balance in self.live.items() if balance != 0}
