"""What a launch is given, and the spaces that its threads then see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .memory import Array, GlobalMemory, Space, Variables
from .program import Kernel, Variable
from .races import WARP, Shadow
from .registers import DTYPES

Shape: TypeAlias = tuple[int, int, int]
SPACES = {"global", "shared", "local", "const", "param"}


@dataclass
class Environment:
    """What lives longer than a launch: device memory, constants, and the addresses of a module's variables."""

    memory: GlobalMemory = field(default_factory=GlobalMemory)
    constants: Variables = field(default_factory=lambda: Variables([]))
    symbols: dict[str, int] = field(default_factory=dict)
    dynamic_shared: list[Variable] = field(default_factory=list)


@dataclass(frozen=True)
class Launch:
    """A kernel, how many threads of it, and its arguments' bytes, each parameter aligned as it asks."""

    kernel: Kernel
    grid: Shape
    block: Shape
    parameters: bytes
    shared_bytes: int = 0

    @property
    def n_threads(self) -> int:
        """The threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def n_blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def width(self) -> int:
        """The lanes of a block: its threads, padded to whole warps."""
        return -(-self.n_threads // WARP) * WARP


@dataclass
class Place:
    """A space as the threads of a batch see it."""

    name: str
    space: Space
    variables: Variables | None
    size: int  # of the part that one thread sees
    starts: Array  # of each lane's part
    base: int = 0  # address of the first byte
    shadow: Shadow | None = None

    def near(self, address: int) -> str:
        """Words for where an address lies."""
        if isinstance(self.space, GlobalMemory):
            return self.space.near(address)
        assert self.variables is not None
        return self.variables.near(address)


def own_places(launch: Launch, environment: Environment, block_of: Array, shared_grain: int) -> dict[str, Place]:
    """Memory of the blocks and threads of a batch, and the constants and parameters that all of them share."""
    kernel, n_lanes = launch.kernel, len(block_of)
    of_blocks = [variable for variable in kernel.variables if variable.space == "shared"]
    shared = Variables([*of_blocks, *environment.dynamic_shared], dynamic_size=launch.shared_bytes)
    local = Variables([variable for variable in kernel.variables if variable.space == "local"])
    shared_space = shared.space(n_lanes // launch.width)
    params, constants = Variables(kernel.parameters), environment.constants
    nothing = np.zeros(n_lanes, np.int64)
    places = [
        Place("shared", shared_space, shared, shared.stride, block_of * shared.stride),
        Place("local", local.space(n_lanes), local, local.stride, np.arange(n_lanes) * local.stride),
        Place("const", constants.space(), constants, constants.stride, nothing),
        Place("param", filled(params, launch), params, params.stride, nothing),
    ]
    places[0].shadow = Shadow(len(shared_space.data), shared_grain, launch.width)
    return {place.name: place for place in places}


def global_place(launch: Launch, memory: GlobalMemory, n_lanes: int, grain: int) -> Place:
    """Device memory, with a shadow that is new for each launch: what came before it is ordered before it."""
    place = Place("global", memory, None, len(memory.data), np.zeros(n_lanes, np.int64), memory.base)
    place.shadow = Shadow(memory.top, grain, launch.width)
    return place


def filled(params: Variables, launch: Launch) -> Space:
    """Parameter space with the arguments in it."""
    space = params.space()
    begin = 0
    for parameter in launch.kernel.parameters:
        begin = -(-begin // parameter.align) * parameter.align
        here = slice(params.offsets[parameter.name], params.offsets[parameter.name] + parameter.size)
        space.data[here] = np.frombuffer(launch.parameters, np.uint8, parameter.size, begin)
        space.initialised[here] = 1
        begin += parameter.size
    return space


def smallest_access(kernel: Kernel, space: str) -> int:
    """The size of the kernel's smallest access to a space; an access that names no space may go anywhere."""
    sizes = [8]
    for instruction in kernel.code:
        if instruction.opcode in {"ld", "ldu", "st", "atom", "red"}:
            named = SPACES & {name.split("::")[0] for name in instruction.modifiers}
            dtype = DTYPES.get(instruction.modifiers[-1])
            if not named or space in named:
                sizes.append(1 if dtype is None else dtype.itemsize)
    return min(sizes)
