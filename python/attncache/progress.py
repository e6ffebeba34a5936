"""A bar for long work: tqdm's if it is installed, else a line on stderr that rewrites itself."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

DELAY = 1.0  # seconds before anything shows: short work needs no bar
_PAUSE = 0.1  # seconds between two states of the line


class Progress:
    """Counts the layers of each forward, or other pieces of work, and, if asked to, shows the count.

    Args:
        shown: whether to show anything.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
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

    def advance(self) -> None:
        """One more piece is done; after the last one, the next round begins."""
        if self._done == self._total:
            self._done, self._round = 0, self._round + 1
            if self._bar is not None:
                self._bar.n = 0
                self._bar.set_description(f"{self._what}, step {self._round}", refresh=False)
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._shown:
            self._say()

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
