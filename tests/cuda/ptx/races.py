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

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

BLOCK_TICK = 1 << 20  # how far a block's barrier moves the clocks of its threads; a warp's moves them by 1
WARP = 32
NOBODY = -1
ALONE, IN_WARP, IN_BLOCK, ANYWHERE = range(4)  # how far apart the readers of a grain are


class Race:
    """The first conflict of an access: the index of the lane, the other thread, and what that one did."""

    def __init__(self, lane: int, grain: int, other: int, what: str) -> None:
        self.lane, self.grain, self.other, self.what = lane, grain, other, what


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

    def ordered(self, threads: Array, clocks: Array, others: Array, other_clocks: Array) -> Array:
        """Whether what others did at their clocks comes before what these threads do now."""
        same_warp = threads // WARP == others // WARP
        same_block = threads // self.block_width == others // self.block_width
        later = clocks // BLOCK_TICK != other_clocks // BLOCK_TICK
        return (threads == others) | (same_block & (later | (same_warp & (clocks != other_clocks))))

    def read(self, offsets: Array, size: int, threads: Array, clocks: Array, read_only_path: bool) -> Race | None:
        """Check and note the reads of `threads` at `offsets`."""
        places, lane = self.grains(offsets, size)
        threads, clocks = threads[lane], clocks[lane]
        if self.written:
            writers = self.writer[places]
            bad = (writers != NOBODY) & (
                True if read_only_path else ~self.ordered(threads, clocks, writers, self.writer_clock[places])
            )
            if bad.any():
                first = int(bad.argmax())
                return Race(int(lane[first]), int(places[first]), int(writers[first]), "wrote")
        if read_only_path:
            self.apart[places] = ANYWHERE
            self.reader[places] = threads
        else:
            self.note_readers(places, threads, clocks)
        return None

    def note_readers(self, places: Array, threads: Array, clocks: Array) -> None:
        before, clock_before, apart = self.reader[places], self.reader_clock[places], self.apart[places]
        same_block = threads // self.block_width == before // self.block_width
        same_warp = threads // WARP == before // WARP
        earlier = clocks // BLOCK_TICK != clock_before // BLOCK_TICK
        alone = (threads == before) | (same_warp & (clocks != clock_before))
        now = np.where(same_warp, np.where(alone, ALONE, IN_WARP), IN_BLOCK).astype(np.int8)
        now = np.where(alone & (apart <= IN_WARP) & (clocks != clock_before), ALONE, np.maximum(now, apart))
        now = np.where(same_block, np.where(earlier & (apart < ANYWHERE), ALONE, now), ANYWHERE)
        now[before == NOBODY] = ALONE
        self.apart[places] = now
        self.reader[places] = threads
        self.reader_clock[places] = clocks
        kept = self.reader[places]  # of several threads at one grain, one was kept
        lost = kept != threads
        if lost.any():
            places, threads, kept = places[lost], threads[lost], kept[lost]
            wide = np.where(threads // WARP == kept // WARP, IN_WARP, IN_BLOCK)
            wide = np.where(threads // self.block_width == kept // self.block_width, wide, ANYWHERE).astype(np.int8)
            np.maximum.at(self.apart, places, wide)

    def write(
        self, offsets: Array, size: int, threads: Array, clocks: Array, same: Array | None, atomic: bool = False
    ) -> Race | None:
        """Check and note writes; `same`: which of them change nothing that another write left."""
        places, lane = self.grains(offsets, size)
        threads, clocks = threads[lane], clocks[lane]
        readers, read_clocks, apart = self.reader[places], self.reader_clock[places], self.apart[places]
        same_warp = threads // WARP == readers // WARP
        same_block = threads // self.block_width == readers // self.block_width
        ordered = (threads == readers) & (apart == ALONE)
        ordered |= same_warp & (clocks != read_clocks) & (apart <= IN_WARP)
        ordered |= same_block & (clocks // BLOCK_TICK != read_clocks // BLOCK_TICK) & (apart <= IN_BLOCK)
        bad = (readers != NOBODY) & ~ordered
        if bad.any():
            first = int(bad.argmax())
            return Race(int(lane[first]), int(places[first]), int(readers[first]), "read")
        if self.written:
            writers = self.writer[places]
            bad = (writers != NOBODY) & ~self.ordered(threads, clocks, writers, self.writer_clock[places])
            if atomic:
                bad &= ~self.atomic[places]
            elif same is not None:
                bad &= ~(same[lane] & ~self.atomic[places])
            if bad.any():
                first = int(bad.argmax())
                return Race(int(lane[first]), int(places[first]), int(writers[first]), "wrote")
        self.written = True
        self.writer[places] = threads
        self.writer_clock[places] = clocks
        self.atomic[places] = atomic
        return None
