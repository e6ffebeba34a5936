"""A device that interprets: memory, loaded modules, launches, and which instructions they reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .faults import Fault
from .flow import run
from .instructions import decode
from .instructions.control import nothing
from .machine import Machine, Step
from .memory import Array, GlobalMemory, Variables
from .parser import parse
from .places import SPACES, Environment, Launch, Shape
from .program import Kernel, Module, Variable

LANES = 2048  # threads that run at once: blocks are taken together up to so many
MOST_MACHINES = 8  # that are kept; one takes up to 100 MB
MOST_SHARED = 48 * 1024  # bytes that every GPU gives a block without being asked


class Device:
    """Device memory and the kernels of the modules loaded into it."""

    def __init__(self, seed: int = 0) -> None:
        self.memory = GlobalMemory()
        self.kernels: dict[str, Kernel] = {}
        self.environments: dict[str, Environment] = {}  # by kernel
        self.covered: dict[str, Array] = {}
        self.machines: dict[tuple[str, int, int], tuple[Machine, list[Step]]] = {}
        self.left_out: tuple[str, int] | None = None  # an instruction that is not done, by kernel and index
        self.seed = seed
        self.n_launches = 0

    def load(self, ptx: str) -> Module:
        """Parse a module and place its variables."""
        module = parse(ptx)
        by_space = {space: [each for each in module.variables if each.space == space] for space in SPACES}
        constants = Variables(by_space["const"])
        environment = Environment(self.memory, constants, dict(constants.offsets), by_space["shared"])
        for variable in by_space["global"]:
            address = self.memory.allocate(variable.size, variable.name)
            self.memory.write(address, variable.content.ljust(variable.size, b"\0"))
            environment.symbols[variable.name] = address
        for name, kernel in module.kernels.items():
            self.kernels[name], self.environments[name] = kernel, environment
            self.covered[name] = np.zeros(len(kernel.code), np.bool_)
        return module

    def launch(self, name: str, grid: Shape, block: Shape, parameters: bytes, *, shared_bytes: int = 0) -> None:
        """Run a kernel to its end, blocks in order; raise the first Fault."""
        launch = Launch(self.kernels[name], grid, block, parameters, shared_bytes)
        check(launch)
        self.n_launches += 1
        machine, steps = self.machine(launch)
        if self.left_out is not None and self.left_out[0] == name:
            steps = [Step(nothing) if index == self.left_out[1] else step for index, step in enumerate(steps)]
        machine.begin(launch, self.seed + self.n_launches)
        shared = machine.places["shared"].variables
        if shared is not None and shared.n_bytes > MOST_SHARED:
            raise Fault("launch", f"{name} takes {shared.n_bytes} bytes of shared memory, more than {MOST_SHARED}")
        for first in range(0, launch.n_blocks, machine.n_blocks):
            machine.start(first, min(machine.n_blocks, launch.n_blocks - first))
            run(machine, steps)

    def machine(self, launch: Launch) -> tuple[Machine, list[Step]]:
        """A machine that fits the launch, kept for the next such one: decoding takes longer than most launches."""
        together = 1
        while 2 * together * launch.width <= LANES and together < launch.n_blocks:
            together *= 2
        key = launch.kernel.name, launch.n_threads, together
        found = self.machines.pop(key, None)
        if found is None:
            machine = Machine(launch, self.environments[launch.kernel.name], together)
            machine.covered = self.covered[launch.kernel.name]
            found = machine, [decode(machine, index) for index in range(len(machine.kernel.code))]
        self.machines[key] = found
        if len(self.machines) > MOST_MACHINES:
            del self.machines[next(iter(self.machines))]
        return found

    def coverage(self) -> dict[str, tuple[int, int]]:
        """(reached, all) instructions by kernel."""
        return {name: (int(reached.sum()), len(reached)) for name, reached in self.covered.items()}

    def unreached(self, name: str) -> list[str]:
        """The instructions of a kernel that no launch reached, with their lines."""
        kernel = self.kernels[name]
        missing = (kernel.code[index] for index in np.flatnonzero(~self.covered[name]))
        return [f"{each.line} ({each.source}): {each.text}" for each in missing]


def check(launch: Launch) -> None:
    """Raise unless the launch fits the hardware and the kernel."""
    name, limits = launch.kernel.name, (2**31 - 1, 65535, 65535)
    if not all(1 <= size <= limit for size, limit in zip(launch.grid, limits, strict=True)):
        raise Fault("launch", f"{name} is launched over a grid of {launch.grid}, which must be in 1..{limits}")
    if not 1 <= launch.n_threads <= launch.kernel.max_threads:
        raise Fault(
            "launch", f"{name} is given {launch.n_threads} threads a block, at most {launch.kernel.max_threads}"
        )
    size = parameter_size(launch.kernel.parameters)
    if len(launch.parameters) != size:
        raise Fault("launch", f"{name} is given {len(launch.parameters)} bytes of parameters, it takes {size}")


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
