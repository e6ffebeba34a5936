"""The machine's own limits, measured in the same run: reading, copying, multiplying, and the emptiest call.

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

from benchmarks.core.machine import torch_or_none
from benchmarks.core.timing import Timing

Array = npt.NDArray[np.float32]
FULL_BYTES, QUICK_BYTES = 1 << 29, 1 << 22
REPEATS = 5


@dataclass
class Limit:
    """The best rate seen, in bytes or operations per second, and how it was reached."""

    rate: float = 0.0
    how: str = "not measured"

    def offer(self, rate: float, how: str) -> None:
        """Keep the better rate."""
        if rate > self.rate:
            self.rate, self.how = rate, how


@dataclass
class Limits:
    """The yardsticks of a run.

    rates: by kind and number of threads; copies count the bytes read and the bytes written. calls: small calls by
    expression, the emptiest first.
    """

    rates: dict[str, dict[int, Limit]] = field(default_factory=dict)
    calls: dict[str, Timing] = field(default_factory=dict)

    def offer(self, kind: str, threads: int, rate: float, how: str) -> None:
        """Keep the better rate."""
        self.rates.setdefault(kind, {}).setdefault(threads, Limit()).offer(rate, how)

    def rate(self, kind: str) -> float:
        """Bytes or operations per second of a limit, with all threads."""
        by_threads = self.rates[kind]
        return by_threads[max(by_threads)].rate

    @property
    def empty(self) -> float:
        """Seconds of the emptiest call."""
        return next(iter(self.calls.values())).median


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


def measure_memory(limits: Limits, threads: int, *, quick: bool) -> None:
    """Offer reading and copying with one thread and with ``threads``."""
    size = (QUICK_BYTES if quick else FULL_BYTES) // 4
    source, target = np.ones(size, np.float32), np.ones(size, np.float32)
    for count in sorted({1, threads}):
        for name, reader in {**NUMPY_READERS, **libc_readers()}.items():
            limits.offer("read", count, source.nbytes / best_of(partial(side_by_side, reader, count, source)), name)
        torch_read(limits, source, count)
        taken = best_of(partial(side_by_side, np.copyto, count, target, source))
        limits.offer("overwrite", count, 2 * source.nbytes / taken, "np.copyto")
        taken = best_of(partial(copy_into_fresh_memory, count, source))
        limits.offer("copy", count, 2 * source.nbytes / taken, "np.copyto into np.empty")


def torch_read(limits: Limits, source: Array, threads: int) -> None:
    """Offer torch's sum with so many threads, where torch is installed."""
    torch = torch_or_none()
    if torch is None:
        return
    before = torch.get_num_threads()
    tensor = torch.from_numpy(source)
    torch.set_num_threads(threads)
    try:
        limits.offer("read", threads, source.nbytes / best_of(tensor.sum), "torch.sum")
    finally:
        torch.set_num_threads(before)


def measure_products(limits: Limits, threads: int, side: int) -> None:
    """Offer how fast NumPy and torch multiply two square float32 matrices."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    flops, out, torch = 2 * side**3, np.empty_like(left), torch_or_none()
    how = f"{side} x {side} float32"
    taken = best_of(partial(np.matmul, left, right, out=out))
    limits.offer("sgemm", threads, flops / taken, f"np.matmul, {how}")
    if torch is not None:
        taken = best_of(partial(torch.mm, torch.from_numpy(left), torch.from_numpy(right)))
        limits.offer("sgemm, torch", threads, flops / taken, f"torch.mm, {how}")
