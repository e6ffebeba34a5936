"""Which vector instructions the kernels use: list, inspect and force them.

The environment variable ``ATTNCACHE_SIMD`` (a level, or ``auto``) chooses before the first import. Every level gives
the same bits; forcing one is for tests and measurements.
"""

from __future__ import annotations

from types import TracebackType

from attncache import _core


class _Restore:
    """What ``use`` returns: as a context manager it goes back to the level that was active before."""

    def __init__(self, before: str) -> None:
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _core.simd_use(self._before)


def compiled() -> tuple[str, ...]:
    """The levels in this build, slowest first: "scalar", then "avx2" and "avx512", or "neon"."""
    return _core.simd_compiled()


def available() -> tuple[str, ...]:
    """The compiled levels that this CPU can run, slowest first."""
    return _core.simd_available()


def active() -> str:
    """The level whose kernels run, as written into that level's own object file."""
    return _core.simd_active()


def instructions() -> str:
    """The instruction sets that the active level's object file was compiled with, as its compiler reported them."""
    return _core.simd_active_instructions()


def use(level: str) -> _Restore:
    """Make a level active for the whole process, at once.

    Args:
        level: one of ``available()``, or "auto" for the fastest of them.

    Returns:
        A context manager that restores the level that was active before.

    Raises:
        ValueError: the level is unknown, or this CPU cannot run it; the message lists those that it can.

    >>> with use("scalar"):
    ...     active()
    'scalar'
    """
    before = _core.simd_active()
    _core.simd_use(level)
    return _Restore(before)
