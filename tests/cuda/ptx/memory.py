"""Device memory as bytes with two shadows, allocated and initialised; addresses that no host pointer can equal.

A space is one array of bytes. Between any two allocations or variables lie bytes that belong to none, so that an index
one too large is found even inside a block's shared memory. What is further off may hit another allocation unseen.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .faults import Fault
from .program import Variable

Array: TypeAlias = npt.NDArray[Any]

GLOBAL_BASE = 0x7D00_0000_0000  # beyond what Linux maps for a process unless asked
WINDOWS = {  # what a generic address is above an address in a space
    "global": 0,
    "shared": 0x7C00_0000_0000,
    "local": 0x7B00_0000_0000,
    "const": 0x7A00_0000_0000,
    "param": 0x7900_0000_0000,
}
GUARD = 256  # bytes between allocations; also what cudaMalloc aligns to
VARIABLE_GUARD = 64  # bytes between variables of a block or a thread
FIRST_OFFSET = 1024  # of shared and local variables: 0 is no one's address
UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
FILL = 0xCD  # what fresh memory holds, should a check ever miss that it is fresh


def all_ones(item: int) -> Any:
    """The pattern that a shadow shows where all `item` bytes are set."""
    return UNSIGNED[item].type(int.from_bytes(b"\1" * item, "little"))


class Space:
    """Bytes and their shadows. Offsets into them are found by the callers."""

    def __init__(self, size: int) -> None:
        size = -(-size // 32) * 32
        self.data = np.full(size, FILL, np.uint8)
        self.allocated = np.zeros(size, np.uint8)
        self.initialised = np.zeros(size, np.uint8)

    def grow(self, size: int) -> None:
        """Make room for at least `size` bytes."""
        now = len(self.data)
        if size > now:
            bigger = Space(max(size, 2 * now))
            for name in ("data", "allocated", "initialised"):
                getattr(bigger, name)[:now] = getattr(self, name)
                setattr(self, name, getattr(bigger, name))

    def inside(self, offsets: Array, item: int, count: int) -> Array:
        """Which accesses of `count` items lie wholly in allocated bytes; `offsets` are multiples of the item."""
        fits = (offsets >= 0) & (offsets <= len(self.data) - item * count)
        view = self.allocated.view(UNSIGNED[item])
        first = np.where(fits, offsets, 0) // item
        for step in range(count):
            fits = fits & (view[first + step] == all_ones(item))
        return fits

    def load(self, offsets: Array, item: int) -> tuple[Array, Array]:
        """(value, whether all its bytes were written) at each offset."""
        places = offsets // item
        unsigned = UNSIGNED[item]
        return self.data.view(unsigned)[places], self.initialised.view(unsigned)[places] == all_ones(item)

    def store(self, offsets: Array, values: Array, known: Array | None) -> None:
        """Write; bytes of values that are not `known` count as not written."""
        item = values.dtype.itemsize
        places = offsets // item
        self.data.view(values.dtype)[places] = values
        ones = all_ones(item)
        self.initialised.view(UNSIGNED[item])[places] = ones if known is None else np.where(known, ones, 0)


@dataclass(frozen=True)
class Allocation:
    """Bytes of global memory that belong together."""

    address: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} [{self.address:#x}, {self.address + self.size:#x})"


class GlobalMemory(Space):
    """What cudaMalloc hands out, and a module's .global variables."""

    base = GLOBAL_BASE

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.allocations: dict[int, Allocation] = {}
        self.top = GUARD

    def allocate(self, size: int, name: str = "", shift: int = 0) -> int:
        """The address of `size` fresh bytes, `shift` bytes beyond an aligned place."""
        begin = -(-self.top // GUARD) * GUARD + shift
        self.top = begin + size + GUARD
        self.grow(self.top + GUARD)
        self.allocated[begin : begin + size] = 1
        address = self.base + begin
        self.allocations[address] = Allocation(address, size, name or f"allocation {len(self.allocations)}")
        return address

    def free(self, address: int) -> None:
        if address not in self.allocations:
            raise Fault("bounds", f"free of {address:#x}, which is no allocation")
        gone = self.allocations.pop(address)
        begin = address - self.base
        self.allocated[begin : begin + gone.size] = 0
        self.initialised[begin : begin + gone.size] = 0
        if not self.allocations:
            self.top = GUARD

    def bytes_at(self, address: int, size: int) -> slice:
        """Where a host copy reads or writes; all of it must be one allocation's."""
        begin = address - self.base
        if begin < 0 or begin + size > len(self.data) or not self.allocated[begin : begin + size].all():
            raise Fault("bounds", f"a copy of {size} bytes at {address:#x} {self.near(address)}")
        return slice(begin, begin + size)

    def write(self, address: int, content: bytes) -> None:
        place = self.bytes_at(address, len(content))
        self.data[place] = np.frombuffer(content, np.uint8)
        self.initialised[place] = 1

    def read(self, address: int, size: int) -> bytes:
        place = self.bytes_at(address, size)
        missing = np.flatnonzero(self.initialised[place] == 0)
        if len(missing):
            where = f"first byte {missing[0]} of the copy"
            raise Fault("uninitialised", f"{len(missing)} of {size} bytes at {address:#x} were never written, {where}")
        return self.data[place].tobytes()

    def near(self, address: int) -> str:
        """Words for where an address lies."""
        known = sorted(self.allocations)
        index = bisect.bisect(known, address) - 1
        if index < 0:
            return "below every allocation"
        before = self.allocations[known[index]]
        beyond = address - before.address - before.size
        return f"inside {before}" if beyond < 0 else f"{beyond} bytes after the end of {before}"


class Variables:
    """The layout of named variables in one window: their offsets, with bytes of nobody between them."""

    def __init__(self, variables: Iterable[Variable], first: int = FIRST_OFFSET, dynamic_size: int = 0) -> None:
        self.offsets: dict[str, int] = {}
        self.spans: list[tuple[int, int]] = []
        self.contents: list[tuple[int, bytes]] = []
        self.names: list[str] = []
        end = first
        for variable in sorted(variables, key=lambda each: each.size == 0):  # those sized at the launch come last
            align = max(variable.align, 16)
            begin = -(-end // align) * align
            size = variable.size or dynamic_size
            self.offsets[variable.name] = begin
            self.names.append(variable.name)
            self.spans.append((begin, begin + size))
            if variable.content:
                self.contents.append((begin, variable.content.ljust(size, b"\0")))
            end = begin + size + VARIABLE_GUARD
        self.stride = -(-(end + VARIABLE_GUARD) // 32) * 32

    @property
    def n_bytes(self) -> int:
        return sum(end - begin for begin, end in self.spans)

    def space(self, copies: int = 1) -> Space:
        """Memory for so many blocks or threads, with the variables marked as allocated."""
        made = Space(self.stride * copies)

        def each_copy(shadow: Array) -> Array:
            return shadow[: self.stride * copies].reshape(copies, self.stride)

        for begin, end in self.spans:
            each_copy(made.allocated)[:, begin:end] = 1
        for begin, content in self.contents:
            each_copy(made.data)[:, begin : begin + len(content)] = np.frombuffer(content, np.uint8)
            each_copy(made.initialised)[:, begin : begin + len(content)] = 1
        return made

    def near(self, offset: int) -> str:
        for name, (begin, end) in zip(self.names, self.spans, strict=True):
            if begin <= offset < end:
                return f"inside {name}, byte {offset - begin} of {end - begin}"
        ends = [(offset - end, name) for name, (_, end) in zip(self.names, self.spans, strict=True) if end <= offset]
        return f"{min(ends)[0]} bytes after the end of {min(ends)[1]}" if ends else "before every variable"
