"""The machine's own limits, measured in the same run: reading, copying, and the emptiest Python call.

No single NumPy call is known to be bound by memory alone on every machine, so reading is the best of several
ways to walk over an array once. All of them are lower bounds: a share above 100 % means that they were beaten.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.worlds import torch_or_none

Array = npt.NDArray[np.float32]
FULL_BYTES, QUICK_BYTES = 1 << 29, 1 << 22
REPEATS = 5


@dataclass
class Limit:
    """The best rate seen, in bytes per second, and how it was reached."""

    rate: float = 0.0
    how: str = "not measured"

    def offer(self, rate: float, how: str) -> None:
        """Keep the better rate."""
        if rate > self.rate:
            self.rate, self.how = rate, how


@dataclass
class Bandwidth:
    """Limits by number of threads. Copies count the bytes read and the bytes written."""

    read: dict[int, Limit] = field(default_factory=dict)
    copy: dict[int, Limit] = field(default_factory=dict)
    fresh_copy: dict[int, Limit] = field(default_factory=dict)


# Each releases the interpreter lock, so halves on two Python threads run side by side. np.sum (pairwise) and np.dot
# (its BLAS starts threads of its own) are left out. A count of non-zero bytes reads every byte and computes little.
NUMPY_READERS: dict[str, Callable[[Array], Any]] = {
    "np.max of float32": np.max,
    "np.max of int64": lambda part: np.max(part.view(np.int64)),
    "np.count_nonzero of bytes": lambda part: np.count_nonzero(part.view(np.bool_)),
}


def libc_readers() -> dict[str, Callable[[Array], Any]]:
    """Readers of the C library, which are written for the processor at hand; none where it cannot be loaded so."""
    try:
        library = ctypes.CDLL(None)
        library.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        library.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    except (OSError, TypeError, AttributeError):
        return {}

    def compare_halves(part: Array) -> Any:
        half = part.size // 2
        return library.memcmp(part.ctypes.data, part[half:].ctypes.data, 4 * half)

    absent = 0xFF  # a byte that float32 1.0 does not have
    return {
        "memchr": lambda part: library.memchr(part.ctypes.data, absent, part.nbytes),
        "memcmp of both halves": compare_halves,
    }


def best_of(action: Callable[[], Any]) -> float:
    """The fewest seconds the action took."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def side_by_side(action: Callable[..., Any], threads: int, *arrays: Array) -> None:
    """Run the action on equal parts of the arrays, one thread for each part."""
    parts = [np.array_split(array, threads) for array in arrays]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(action, *parts))


def copy_into_fresh_memory(threads: int, source: Array) -> None:
    """Copy into memory that the process has never touched, as an answer or a pushed layer needs it."""
    side_by_side(np.copyto, threads, np.empty_like(source), source)


def measure(bandwidth: Bandwidth, threads: int, *, quick: bool) -> None:
    """Measure every limit with one thread and with ``threads``, keeping what was better before."""
    size = (QUICK_BYTES if quick else FULL_BYTES) // 4
    source, target = np.ones(size, np.float32), np.ones(size, np.float32)
    for count in sorted({1, threads}):
        read = bandwidth.read.setdefault(count, Limit())
        for name, reader in {**NUMPY_READERS, **libc_readers()}.items():
            read.offer(source.nbytes / best_of(partial(side_by_side, reader, count, source)), name)
        torch_read(read, source, count)
        seconds = best_of(partial(side_by_side, np.copyto, count, target, source))
        bandwidth.copy.setdefault(count, Limit()).offer(2 * source.nbytes / seconds, "np.copyto")
        seconds = best_of(partial(copy_into_fresh_memory, count, source))
        bandwidth.fresh_copy.setdefault(count, Limit()).offer(2 * source.nbytes / seconds, "np.copyto into np.empty")


def torch_read(read: Limit, source: Array, threads: int) -> None:
    """Offer torch's sum with so many threads, where torch is installed."""
    torch = torch_or_none()
    if torch is None:
        return
    before = torch.get_num_threads()
    tensor = torch.from_numpy(source)
    torch.set_num_threads(threads)
    try:
        read.offer(source.nbytes / best_of(tensor.sum), "torch.sum")
    finally:
        torch.set_num_threads(before)
