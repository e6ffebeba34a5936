"""The argument ``progress`` of long work, and the bar that it may ask for: tqdm's, or a line on stderr without tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeAlias

DELAY = 1.0  # seconds before anything shows: short work needs no bar
_PAUSE = 0.1  # seconds between two states of the line

Told: TypeAlias = Callable[[int, int], object]  # is told how many pieces are done, of how many
Progress: TypeAlias = bool | Told | None


def checked_progress(progress: Any) -> None:
    """Checks the argument ``progress``: True for a bar, None or False for nothing, or a callable told done and total.

    Raises:
        TypeError: it is none of these.
    """
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False, None or callable, got {type(progress).__name__}")


class Meter:
    """Counts the layers of each forward, or other pieces of work, for a bar or for a callable.

    Args:
        progress: who is told; None and False are nobody.
    """

    def __init__(self, progress: Progress) -> None:
        self._told = progress if callable(progress) else None
        self._shown = progress is True
        self._bar: Any = None
        self._wrote = False

    def begin(self, what: str, total: int, unit: str = "layer") -> None:
        """Start to count.

        Args:
            what: the work, such as "capturing".
            total: how many pieces it has; when there are more, they belong to the next round (a step of ``generate``).
            unit: what one piece is.
        """
        self.close()
        self._what, self._unit, self._total, self._done, self._round = what, unit, total, 0, 1
        self._started = self._said = monotonic()
        if self._shown:
            self._bar = _tqdm(what, total, unit)

    def advance(self, n: int = 1) -> None:
        """More pieces are done; after the last one, the next round begins."""
        if self._done == self._total:
            self._done, self._round = 0, self._round + 1
            if self._bar is not None:
                self._bar.n = 0
                self._bar.set_description(f"{self._what}, step {self._round}", refresh=False)
        self._done += n
        if self._told is not None:
            self._told(self._done, self._total)
        elif self._bar is not None:
            self._bar.update(n)
        elif self._shown:
            self._say()

    def percent(self, done: int, total: int) -> None:
        """That much of work that ``begin`` gave 100 pieces is done."""
        if (n := 100 * done // total - self._done) > 0:
            self.advance(n)

    def close(self) -> None:
        """Leave the last state on the screen, if there was one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._wrote:
            sys.stderr.write("\n")
            self._wrote = False

    def _say(self) -> None:
        now = monotonic()
        if now - self._started < DELAY or (now - self._said < _PAUSE and self._done < self._total):
            return
        self._said, self._wrote = now, True
        step = f", step {self._round}" if self._round > 1 else ""
        sys.stderr.write(f"\r{self._what}{step}: {self._unit} {self._done} of {self._total} ")
        sys.stderr.flush()


def _tqdm(what: str, total: int, unit: str) -> Any:
    """tqdm's bar, or None if tqdm is not installed."""
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415
    except ImportError:
        return None
    return tqdm(desc=what, total=total, unit=unit, delay=DELAY)
