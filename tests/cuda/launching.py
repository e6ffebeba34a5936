"""Calls of the C interface for the tests of its host side: one right call of each query, and its arguments to spoil.

Everything runs against the emulated runtime: device memory is its arena, a stream is any number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda.header import Factored, Library, Pattern, Selection

STREAM = 0x51E0  # a handle that nothing else uses
SHAPE = (2, 4, 6, 8)  # batch, head, query, key
KEYS = (2, 2, 8, 16)  # batch, key head, key, item
HEAD_ITEMS = 16
LINES, LENGTH, K = 3, 40, 5
QUERIES = ("rows", "columns", "edges", "top_k", "top_k_rows", "factored_rows")


@dataclass
class Emulated:
    """The emulated library: its C interface, and the shim's own functions."""

    library: Library
    shim: ctypes.CDLL

    def calls(self) -> list[str]:
        """What the runtime was asked for since `clear`."""
        return str(self.shim.shim_calls().decode()).splitlines()

    def live_bytes(self) -> int:
        return int(self.shim.shim_live_bytes())

    def clear(self) -> None:
        self.shim.shim_clear()

    def fail(self, name: str, nth: int, status: int) -> None:
        """Have the nth call of that name from now on fail."""
        self.shim.shim_fail(name.encode(), nth, status)

    @contextmanager
    def memory(self, values: np.ndarray[Any, Any]) -> Iterator[int]:
        """Device memory that holds these values; its address."""
        found = ctypes.c_void_p()
        self.library.call("allocate", values.nbytes, None, ctypes.byref(found))
        try:
            self.library.call("copy_to_device", found, values.ctypes.data, values.nbytes, None)
            yield found.value or 0
        finally:
            self.clear()
            self.library.call("free", found, None)


@dataclass
class Call:
    """A right call of a query, by argument, so that a test can spoil one."""

    query: str
    arguments: dict[str, Any]

    def status(self, emulated: Emulated) -> int:
        return emulated.library.status(self.query, *self.arguments.values())


def pattern(address: int, shape: tuple[int, ...], dtype: int = 2) -> Any:
    """A C-contiguous array of floats on the device."""
    item = 4 if dtype == 2 else 2
    strides = [item * int(np.prod(shape[axis + 1 :])) for axis in range(3)]
    return Pattern(address, dtype, *shape, *strides)


def indices(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def selection(layers: list[Any], batches: list[int], heads: list[int], mean_heads: int = 1) -> Any:
    lists = indices(*batches), len(batches), indices(*heads), len(heads)
    return Selection((Pattern * len(layers))(*layers), len(layers), *lists, mean_heads)


@contextmanager
def right_call(emulated: Emulated, query: str) -> Iterator[Call]:
    """A call that succeeds, with its device memory, which is given back behind it."""
    weights = np.linspace(0, 1, int(np.prod(SHAPE)), dtype=np.float32)
    out = np.zeros(4096, np.float32)
    with emulated.memory(weights) as source, emulated.memory(out) as target:
        positions = indices(5, 0, 3)
        common = {"positions": positions, "n_positions": 3}
        results = {"device_out": target, "stream": STREAM}
        if query in ("rows", "columns"):
            arguments = {"selection": selection([pattern(source, SHAPE)] * 2, [1, 0], [0, 2, 3]), **common, **results}
        elif query == "edges":
            picked = selection([pattern(source, SHAPE)], [1], [3, 0], 0)
            arguments = {"selection": picked, **common, "to": indices(7, 1), "n_to": 2, **results}
        elif query == "top_k":
            half = target + 8192
            lines = {"device_lines": source, "n_lines": LINES, "length": LENGTH, "k": K}
            arguments = {**lines, "device_positions": target, "device_weights": half, "stream": STREAM}
        elif query == "top_k_rows":
            results = {"device_positions": target, "device_weights": target + 8192, "stream": STREAM}
            arguments = {"selection": selection([pattern(source, SHAPE)] * 2, [1, 0], [0, 2, 3], 0), **common, "k": K}
            arguments |= results
        else:
            layer = Factored(pattern(source, (*SHAPE[:2], 3, HEAD_ITEMS)), pattern(source, (1, 2, 6, HEAD_ITEMS)))
            layer.query.batch_size = 1
            layer.scale, layer.causal = 0.25, 1
            lists = {"batches": indices(0), "n_batches": 1, "heads": indices(0, 3), "n_heads": 2, "mean_heads": 0}
            arguments = {"layer": layer, **lists, "positions": indices(2, 0), "n_positions": 2, **results}
        call = Call(query, arguments)
        emulated.clear()
        yield call
