"""Who touched which bytes last, and whether anything orders two touches: the race check.

Two accesses to the same bytes by different threads, at least one a write, must be ordered. Within a block a barrier
orders them, within a warp __syncwarp() does too; between blocks of a launch nothing does. Two atomic operations never
race; neither do two writes of the same value. Bytes read through the read-only path (.nc) may not be written in the
same launch at all.

A thread's clock counts the barriers of its block and, below them, those of its warp. Per grain (the smallest access of
the kernel) the shadow keeps the last writer and the last reader with their clocks, and of several readers that nothing
orders only how far apart they are: in a warp, in a block, in several blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

BLOCK_TICK = 1 << 20  # how far a block's barrier moves the clocks of its threads; a warp's moves them by 1
WARP = 32
NOBODY = -1
ALONE, IN_WARP, IN_BLOCK, ANYWHERE = range(4)  # how far apart the readers of a grain are


@dataclass(frozen=True)
class Threads:
    """Who makes an access: numbers that count through all blocks, and clocks."""

    numbers: Array
    clocks: Array

    def of(self, which: Array) -> Threads:
        return Threads(self.numbers[which], self.clocks[which])


@dataclass(frozen=True)
class Race:
    """The first conflict of an access: which of its threads, at which grain, with whom, and what that one did."""

    index: int
    grain: int
    other: int
    did: str


class Shadow:
    """The shadow of one space for one launch. Threads are numbered through all blocks, padded to whole warps."""

    def __init__(self, n_bytes: int, grain: int, block_width: int) -> None:
        n_grains = -(-n_bytes // grain)
        self.grain = grain
        self.block_width = block_width
        self.writer = np.full(n_grains, NOBODY, np.int64)
        self.writer_clock = np.zeros(n_grains, np.int64)
        self.atomic = np.zeros(n_grains, np.bool_)
        self.reader = np.full(n_grains, NOBODY, np.int64)
        self.reader_clock = np.zeros(n_grains, np.int64)
        self.apart = np.zeros(n_grains, np.int8)
        self.written = False

    def forget(self, begin: int, end: int) -> None:
        """Every later access is ordered after all earlier ones to these bytes."""
        grains = slice(begin // self.grain, -(-end // self.grain))
        self.writer[grains] = NOBODY
        self.reader[grains] = NOBODY

    def grains(self, offsets: Array, size: int) -> tuple[Array, Array]:
        """(grain, index of the access) of all that accesses of `size` bytes touch."""
        count = max(1, size // self.grain)
        first = offsets // self.grain
        if count == 1:
            return first, np.arange(len(offsets))
        return (first[:, None] + np.arange(count)).ravel(), np.repeat(np.arange(len(offsets)), count)

    def same_block(self, numbers: Array, others: Array) -> Array:
        return numbers // self.block_width == others // self.block_width

    def after_writer(self, places: Array, who: Threads) -> Array:
        """Whether what the last writers did comes before what these threads do now."""
        others, clocks = self.writer[places], self.writer_clock[places]
        later = who.clocks // BLOCK_TICK != clocks // BLOCK_TICK
        in_warp = (who.numbers // WARP == others // WARP) & (who.clocks != clocks)
        return (who.numbers == others) | (self.same_block(who.numbers, others) & later) | in_warp | (others == NOBODY)

    def after_readers(self, places: Array, who: Threads) -> Array:
        """The same of the last readers, all of them."""
        others, clocks, apart = self.reader[places], self.reader_clock[places], self.apart[places]
        alone = (who.numbers == others) & (apart == ALONE)
        in_warp = (who.numbers // WARP == others // WARP) & (who.clocks != clocks) & (apart <= IN_WARP)
        later = who.clocks // BLOCK_TICK != clocks // BLOCK_TICK
        in_block = self.same_block(who.numbers, others) & later & (apart <= IN_BLOCK)
        return alone | in_warp | in_block | (others == NOBODY)

    def read(self, offsets: Array, size: int, who: Threads, read_only_path: bool) -> Race | None:
        """Check and note reads at `offsets`."""
        places, index = self.grains(offsets, size)
        who = who.of(index)
        if self.written:
            good = self.writer[places] == NOBODY if read_only_path else self.after_writer(places, who)
            if not good.all():
                return self.race(good, places, index, self.writer, "wrote")
        if read_only_path:
            self.apart[places] = ANYWHERE
            self.reader[places] = who.numbers
        else:
            self.note_readers(places, who)
        return None

    @staticmethod
    def race(good: Array, places: Array, index: Array, others: Array, did: str) -> Race:
        first = int((~good).argmax())
        return Race(int(index[first]), int(places[first]), int(others[places[first]]), did)

    def note_readers(self, places: Array, who: Threads) -> None:
        """Who read last, and how far the readers that nothing orders are apart."""
        before, clock_before, apart = self.reader[places], self.reader_clock[places], self.apart[places]
        numbers, clocks = who.numbers, who.clocks
        same_warp = numbers // WARP == before // WARP
        warp_later = same_warp & (clocks != clock_before) & (apart <= IN_WARP)
        block_later = (clocks // BLOCK_TICK != clock_before // BLOCK_TICK) & (apart <= IN_BLOCK)
        now = np.where(same_warp, np.where(numbers == before, ALONE, IN_WARP), IN_BLOCK).astype(np.int8)
        now = np.where(warp_later | block_later, ALONE, np.maximum(now, apart))
        now = np.where(self.same_block(numbers, before), now, ANYWHERE)
        self.apart[places] = np.where(before == NOBODY, ALONE, now)
        self.reader[places] = numbers
        self.reader_clock[places] = clocks
        kept = self.reader[places]  # of several threads at one grain, one was kept
        lost = kept != numbers
        if lost.any():
            places, numbers, kept = places[lost], numbers[lost], kept[lost]
            wide = np.where(numbers // WARP == kept // WARP, IN_WARP, IN_BLOCK)
            wide = np.where(self.same_block(numbers, kept), wide, ANYWHERE).astype(np.int8)
            np.maximum.at(self.apart, places, wide)

    def write(self, offsets: Array, size: int, who: Threads, harmless: Array | None) -> Race | None:
        """Check and note writes; `harmless`: those that leave what an earlier write left. None: they are atomic."""
        places, index = self.grains(offsets, size)
        who = who.of(index)
        good = self.after_readers(places, who)
        if not good.all():
            return self.race(good, places, index, self.reader, "read")
        if self.written:
            good = self.after_writer(places, who)
            good |= self.atomic[places] if harmless is None else harmless[index] & ~self.atomic[places]
            if not good.all():
                return self.race(good, places, index, self.writer, "wrote")
        self.written = True
        self.writer[places] = who.numbers
        self.writer_clock[places] = who.clocks
        self.atomic[places] = harmless is None
        return None
