"""The plain C interface asked from NumPy: arrays are carried to the device, answers back, nothing is left there.

`Device(library)` is one loaded library, emulated or real. Patterns keep their strides: the memory that holds an array is
copied as it is, `shift` bytes off the 16-byte boundary if asked, and described by a struct. On the emulated device the
items of an axis can lie gigabytes `apart`, each in an allocation of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from cuda.header import CONSTANTS, Factored, Pattern, Selection
from tests.support.patterns import Array

CODES = {
    np.dtype(kind): CONSTANTS[np.dtype(kind).name.upper()] for kind in (np.float16, ml_dtypes.bfloat16, np.float32)
}
INT64 = ctypes.c_int64
POINTER = ctypes.c_void_p
Apart: TypeAlias = tuple[int, int]  # an axis, and the bytes from item to item of it, a multiple of 4096


def indices(values: Sequence[int]) -> Any:
    """A C array of int64."""
    return (INT64 * len(values))(*values)


class Failed(Exception):
    """A status that is not 0."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"status {status}: {words}")
        self.status = status


class Device:
    """One library and its current device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.attncache_cuda_message.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function by name; raises its status in words."""
        status = getattr(self.library, f"attncache_cuda_{name}")(*arguments)
        if status != 0:
            raise Failed(status, self.library.attncache_cuda_message(status).decode())

    @contextmanager
    def memory(self, n_bytes: int) -> Iterator[int]:
        """Device memory of at least one byte."""
        held = POINTER()
        self.call("allocate", ctypes.c_size_t(max(1, n_bytes)), None, ctypes.byref(held))
        assert held.value is not None
        try:
            yield held.value
        finally:
            self.call("free", held, None)

    @contextmanager
    def copied(self, array: Array, shift: int = 0) -> Iterator[int]:
        """The address on the device of the first item of a copy of the memory that an array spans."""
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        first = array.__array_interface__["data"][0] - low if array.size else 0
        with self.memory(high - low + shift) as memory:
            self.call("copy_to_device", POINTER(memory + shift), POINTER(low), ctypes.c_size_t(high - low), None)
            yield memory + shift + first

    def to_host(self, memory: int, array: Array) -> Array:
        """Fills a contiguous array from the device."""
        self.call("copy_to_host", array.ctypes.data_as(POINTER), POINTER(memory), ctypes.c_size_t(array.nbytes), None)
        return array

    @contextmanager
    def pattern(self, array: Array, shift: int = 0, apart: Apart | None = None) -> Iterator[Pattern]:
        """A [batch, head, query, key] array on the device; keys must be contiguous.

        Keys that lie apart are still one row, of which only they are in memory: key i is number i * distance / itemsize.
        """
        assert array.size == 0 or array.shape[3] == 1 or array.strides[3] == array.itemsize
        if apart is None:
            with self.copied(array, shift) as data:
                yield Pattern(data, CODES[array.dtype], *array.shape, *array.strides[:3])
            return
        axis, distance = apart
        items = [np.ascontiguousarray(item) for item in np.split(array, array.shape[axis], axis)]
        with ExitStack() as stack:
            data = stack.enter_context(self.copied(items[0], shift))
            for i, item in enumerate(items[1:], 1):
                self.library.shim_leap(distance)
                assert stack.enter_context(self.copied(item, shift)) == data + i * distance
            strides = [distance if i == axis else items[0].strides[i] for i in range(3)]
            seq_k = distance // array.itemsize * (len(items) - 1) + 1 if axis == 3 else array.shape[3]
            yield Pattern(data, CODES[array.dtype], *array.shape[:3], seq_k, *strides)

    def ask(
        self,
        name: str,
        patterns: Sequence[Array],
        *lists: Sequence[int],
        batches: Sequence[int] = (0,),
        heads: Sequence[int] | None = None,
        mean: bool = False,
        shift: int = 0,
        out_shift: int = 0,
        apart: Apart | None = None,
    ) -> Array:
        """rows, columns or edges of layers: float32 [layer, batch, head, ...], head of length 1 for a mean."""
        shape = patterns[0].shape if patterns else (1, 1, 1, 1)
        chosen = range(shape[1]) if heads is None else heads
        last = {"rows": shape[3:], "columns": shape[2:3], "edges": ()}[name]
        n_heads = 1 if mean else len(chosen)
        answer = np.empty((len(patterns), len(batches), n_heads, *map(len, lists), *last), np.float32)
        with ExitStack() as stack:
            layers = [stack.enter_context(self.pattern(pattern, shift, apart)) for pattern in patterns]
            out = stack.enter_context(self.memory(answer.nbytes + out_shift))
            structs = (Pattern * len(layers))(*layers)
            selection = Selection(
                structs, len(layers), indices(batches), len(batches), indices(chosen), len(chosen), int(mean)
            )
            arguments = [part for values in lists for part in (indices(values), INT64(len(values)))]
            self.call(name, ctypes.byref(selection), *arguments, POINTER(out + out_shift), None)
            return self.to_host(out + out_shift, answer)

    def top_k(self, lines: Array, k: int, shift: int = 0) -> tuple[Array, Array]:
        """Positions and weights [line, k] of the k heaviest of float32 lines."""
        positions, weights = np.empty((len(lines), k), np.int64), np.empty((len(lines), k), np.float32)
        with self.copied(lines, shift) as data, self.memory(positions.nbytes) as to, self.memory(weights.nbytes) as of:
            sizes = (INT64(len(lines)), INT64(lines.shape[1]), INT64(k))
            self.call("top_k", POINTER(data), *sizes, POINTER(to), POINTER(of), None)
            return self.to_host(to, positions), self.to_host(of, weights)

    def top_k_rows(
        self,
        patterns: Sequence[Array],
        positions: Sequence[int],
        k: int,
        *,
        batches: Sequence[int] = (0,),
        heads: Sequence[int] | None = None,
        shift: int = 0,
        apart: Apart | None = None,
    ) -> tuple[Array, Array]:
        """Positions and weights [layer, batch, head, position, k] of the k heaviest of rows as they are stored."""
        chosen = range(patterns[0].shape[1]) if heads is None else heads
        dims = len(patterns), len(batches), len(chosen), len(positions), k
        places, weights = np.empty(dims, np.int64), np.empty(dims, np.float32)
        with ExitStack() as stack:
            layers = [stack.enter_context(self.pattern(pattern, shift, apart)) for pattern in patterns]
            to, of = (stack.enter_context(self.memory(each.nbytes)) for each in (places, weights))
            lists = indices(batches), len(batches), indices(chosen), len(chosen)
            selection = Selection((Pattern * len(layers))(*layers), len(layers), *lists, 0)
            listed = indices(positions), INT64(len(positions))
            self.call("top_k_rows", ctypes.byref(selection), *listed, INT64(k), POINTER(to), POINTER(of), None)
            return self.to_host(to, places), self.to_host(of, weights)

    def factored_rows(
        self,
        query: Array,
        key: Array,
        positions: Sequence[int],
        *,
        batches: Sequence[int] = (0,),
        heads: Sequence[int] | None = None,
        mean: bool = False,
        shift: int = 0,
        apart: Apart | None = None,
        scale: float | None = None,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        key_mask: Array | None = None,
        lse: Array | None = None,
        sinks: Array | None = None,
    ) -> Array:
        """Rows of a layer with the options of push_qk: float32 [batch, head, position, key], head of length 1 for a mean."""
        chosen = range(query.shape[1]) if heads is None else heads
        shape = (len(batches), 1 if mean else len(chosen), len(positions), key.shape[2])
        answer = np.empty(shape, np.float32)
        hidden = None if key_mask is None else np.ascontiguousarray(~key_mask).astype(np.uint8)
        with ExitStack() as stack:
            held = [
                None if array is None else stack.enter_context(self.copied(array)) for array in (hidden, sinks, lse)
            ]
            layer = Factored(
                stack.enter_context(self.pattern(query, shift, apart)),
                stack.enter_context(self.pattern(key, shift, apart)),
                query.shape[3] ** -0.5 if scale is None else scale,
                softcap or 0,
                int(causal),
                window or 0,
                *held,
            )
            out = stack.enter_context(self.memory(answer.nbytes))
            self.call(
                "factored_rows",
                ctypes.byref(layer),
                *(part for values in (batches, chosen) for part in (indices(values), INT64(len(values)))),
                int(mean),
                indices(positions),
                INT64(len(positions)),
                POINTER(out),
                None,
            )
            return self.to_host(out, answer)
