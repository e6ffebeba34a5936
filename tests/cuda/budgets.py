"""What each kernel may take on every architecture, and how wide it means to read and write."""

from __future__ import annotations

from dataclasses import dataclass

BOUNDED = frozenset({"factored_rows.cu"})  # sources that do not promise bits


@dataclass(frozen=True)
class Budget:
    """registers: of a thread; on_120: there, if more. shared: bytes of a block. wide_loads, wide_stores: instructions of 16 bytes, at least."""

    source: str
    threads: int
    registers: int
    shared: int = 0
    wide_loads: int = 0
    wide_stores: int = 0


KERNELS: dict[str, Budget] = {}
