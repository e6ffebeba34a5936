"""What each kernel may take on every architecture, and how much it means to read and write 16 bytes at a time.

A multiprocessor has 65536 registers, from sm_75 on, and at least 64 KiB of shared memory (sm_75; later ones more). A
kernel says how many of its blocks are to be resident at once, so that enough loads are in flight; the registers of a
thread and the shared bytes of a block follow. Spilling to stay within them is no way out: nothing may spill.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS, REGISTER_STEP, SHARED_BYTES = 65536, 8, 65536
HOST = frozenset({"memory.cu", "runtime.cu", "staging.cu"})  # sources without kernels
BOUNDED = frozenset({"factored_rows.cu"})  # sources that do not promise bits


@dataclass(frozen=True)
class Budget:
    """What one kernel may take.

    threads: of a block, at most; blocks: resident at once, at least.
    wide_loads, wide_stores: instructions of 16 bytes, at least.
    """

    source: str
    threads: int
    blocks: int
    wide_loads: int = 0
    wide_stores: int = 0

    @property
    def registers(self) -> int:
        """Of a thread; they are handed out in steps."""
        return REGISTERS // (self.threads * self.blocks) // REGISTER_STEP * REGISTER_STEP

    @property
    def shared(self) -> int:
        """Bytes of a block."""
        return SHARED_BYTES // self.blocks


KERNELS = {
    # 8 reads of a thread under way; 8 results of a mean.
    "means_kernel": Budget("rows.cu", threads=128, blocks=6, wide_loads=8, wide_stores=2),
    "rows_kernel": Budget("rows.cu", threads=128, blocks=7, wide_stores=8),  # reads 8 bytes of 16-bit items
    "rows_by_item_kernel": Budget("rows.cu", threads=128, blocks=6),
    # Of one head, 2 reads are under way; each thread writes 16 results.
    "columns_in_sequence_kernel": Budget("columns.cu", threads=256, blocks=3, wide_loads=2, wide_stores=4),
    "columns_kernel": Budget("columns.cu", threads=256, blocks=3),  # single items, neighbours joined by the warp
    "edges_kernel": Budget("edges.cu", threads=128, blocks=8),  # single items wherever they lie
    # Four pieces of a line at once: a read of each for the 16-bit types and two for float.
    "tournament_kernel": Budget("top_k.cu", threads=128, blocks=3, wide_loads=16),
    "radix_kernel": Budget("top_k_radix.cu", threads=256, blocks=2),  # single items, neighbours joined by the warp
    # Of each type 8 keys are read before the first is used; queries lie in shared memory. Both instances keep the
    # budget of the one for 8 lines.
    "factored_scores_kernel": Budget("factored_rows.cu", threads=128, blocks=2, wide_loads=24),  # 3 before sm_100
    "factored_weights_kernel": Budget("factored_rows.cu", threads=128, blocks=8, wide_loads=4, wide_stores=4),
}
