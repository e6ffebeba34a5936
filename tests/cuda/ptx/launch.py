"""A device that interprets: memory, loaded modules, launches, and which instructions they reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .faults import Fault
from .flow import run
from .instructions import decode
from .machine import Array, Machine, Shape
from .memory import GlobalMemory, Variables
from .parser import parse
from .program import Kernel, Module, Variable

LANES = 4096  # threads that run at once: blocks are taken together up to so many
MOST_SHARED = 48 * 1024  # bytes that every GPU gives a block without being asked


class Device:
    """Device memory and the kernels of the modules loaded into it."""

    def __init__(self, seed: int = 0) -> None:
        self.memory = GlobalMemory()
        self.kernels: dict[str, tuple[Kernel, Module]] = {}
        self.symbols: dict[str, int] = {}
        self.covered: dict[str, Array] = {}
        self.constants: dict[int, Variables] = {}
        self.seed = seed
        self.n_launches = 0

    def load(self, ptx: str) -> Module:
        """Parse a module and place its variables."""
        module = parse(ptx)
        constants = Variables([variable for variable in module.variables if variable.space == "const"])
        self.constants[id(module)] = constants
        self.symbols |= constants.offsets
        for variable in module.variables:
            if variable.space == "global":
                address = self.memory.allocate(variable.size, variable.name)
                self.memory.write(address, variable.content.ljust(variable.size, b"\0"))
                self.symbols[variable.name] = address
        for kernel in module.kernels.values():
            self.kernels[kernel.name] = kernel, module
            self.covered.setdefault(kernel.name, np.zeros(len(kernel.code), np.bool_))
        return module

    def launch(self, name: str, grid: Shape, block: Shape, parameters: bytes, shared_bytes: int = 0) -> None:
        """Run a kernel to its end, blocks in order; raise the first Fault."""
        kernel, module = self.kernels[name]
        n_blocks, n_threads = (shape[0] * shape[1] * shape[2] for shape in (grid, block))
        self.check(kernel, grid, n_threads, parameters)
        dynamic = [variable for variable in module.variables if variable.space == "shared"]
        together = max(1, min(n_blocks, LANES // (-(-n_threads // 32) * 32)))
        self.n_launches += 1
        machine = Machine(
            kernel,
            grid,
            block,
            together,
            self.memory,
            self.symbols,
            self.constants[id(module)],
            parameters,
            (dynamic, shared_bytes),
            self.seed + self.n_launches,
        )
        if machine.shared_bytes > MOST_SHARED:
            raise Fault("launch", f"{name} asks for {machine.shared_bytes} bytes of shared memory, more than {MOST_SHARED}")
        machine.covered = self.covered[name]
        for first in range(0, n_blocks, together):
            machine.start(first, min(together, n_blocks - first))
            if first == 0:
                steps = [decode(machine, index) for index in range(len(kernel.code))]
            run(machine, steps)

    @staticmethod
    def check(kernel: Kernel, grid: Shape, n_threads: int, parameters: bytes) -> None:
        limits = (2**31 - 1, 65535, 65535)
        if not all(1 <= size <= limit for size, limit in zip(grid, limits, strict=True)):
            raise Fault("launch", f"{kernel.name} is launched over a grid of {grid}, which must be in 1..{limits}")
        if not 1 <= n_threads <= kernel.max_threads:
            raise Fault("launch", f"{kernel.name} is launched with {n_threads} threads a block of {kernel.max_threads}")
        size = parameter_size(kernel.parameters)
        if len(parameters) != size:
            raise Fault("launch", f"{kernel.name} is given {len(parameters)} bytes of parameters, it takes {size}")

    def coverage(self, names: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
        """(reached, all) instructions by kernel."""
        chosen = self.covered if names is None else {name: self.covered[name] for name in names}
        return {name: (int(reached.sum()), len(reached)) for name, reached in chosen.items()}

    def unreached(self, name: str) -> list[str]:
        """The instructions of a kernel that no launch reached, with their lines."""
        kernel, _ = self.kernels[name]
        missing = (kernel.code[index] for index in np.flatnonzero(~self.covered[name]))
        return [f"{each.line} ({each.source}): {each.text}" for each in missing]


def parameter_size(parameters: Sequence[Variable]) -> int:
    """The bytes of a kernel's parameters, each aligned as it asks."""
    end = 0
    for parameter in parameters:
        end = -(-end // parameter.align) * parameter.align + parameter.size
    return end


def packed(kernel: Kernel, values: Sequence[bytes]) -> bytes:
    """The parameters' bytes one after another, each where its alignment puts it."""
    content = b""
    for parameter, value in zip(kernel.parameters, values, strict=True):
        content = content.ljust(-(-len(content) // parameter.align) * parameter.align, b"\0")
        content += value.ljust(parameter.size, b"\0")
    return content
